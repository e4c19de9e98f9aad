"""A process that forks workers which a test kills: started once, so that two hundred of them cost no start-up.

Reads one JSON object a line: {"repository": folder, "task": "backup" | "maintain", "intent": id, "volume": path}.
Answers with the worker's pid; after an empty line with its exit status (-9: killed). Until then the pid is the worker's
even if it has ended, so that nobody else is killed by mistake.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType

from orchestrator.blocks.backup import CopyOptions, backup
from orchestrator.fence import OpenFence
from orchestrator.repository.maintenance import plan_sweep, sweep
from tests.blocks.volumes import CHUNK, vault_at

ROOT = Path(__file__).parents[2]
PACK = 6 * CHUNK


async def work(repository: str, task: str, intent: str, volume: str) -> None:
    """Do what a mover does, in this process."""
    vault = await vault_at(Path(repository))
    if task == "backup":
        await backup(vault, intent, volume, options=CopyOptions(readers=2, pack_bytes=PACK))
        return
    now = datetime.now(UTC) + timedelta(days=1)
    plan = await plan_sweep(vault, now=now, grace=timedelta(0), intent_age=timedelta(days=30))
    await sweep(vault, plan, OpenFence(), pack_size=PACK)


def serve() -> None:
    """Fork a worker for each line; the parent never starts a thread or a loop, so that forking stays safe."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                asyncio.run(work(**json.loads(line)))
                code = 0
            except BaseException:  # noqa: BLE001  # told, whatever it is: the process ends right after
                traceback.print_exc()
            finally:
                os._exit(code)
        print(pid, flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


class Killable:
    """The test's side of it."""

    def __enter__(self) -> Killable:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.repository.killable"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.communicate(timeout=60)
        assert self._server.returncode == 0 or error is not None

    def start(self, **asked: str) -> int:
        """Start a worker; return its pid."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def ended(self) -> int:
        """Wait for the worker's end; return its exit status, -9 when it was killed."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write("\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())


if __name__ == "__main__":
    serve()
