"""One container as a local process in a session of its own, and what is left of one after a restart.

A record beside the pod's files (pid and the kernel's start time of it) lets a later life of the node end what an
earlier one started, and nothing else: a pid that was given to a stranger since has another start time.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

_MESSAGE_LIMIT = 4096


class Record(msgspec.Struct, frozen=True):
    """Which process a container was."""

    container: str
    pid: int
    started: str


class ContainerProcess:
    """A running container: its process group, log and termination message."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, termination: Path) -> None:
        self.name = name
        self.exit_code: int | None = None
        self.record = Record(name, process.pid, _start_time(process.pid))
        self._process = process
        self._termination = termination

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        folder: Path,
        log: Path,
        termination: Path,
    ) -> ContainerProcess:
        """Start a process whose output goes to `log`. Raises OSError if it can't be started."""
        log.parent.mkdir(parents=True, exist_ok=True)
        termination.parent.mkdir(parents=True, exist_ok=True)
        termination.write_bytes(b"")
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=dict(environment),
                cwd=folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        finally:
            os.close(output)
        return cls(name, process, termination)

    async def wait(self) -> int:
        """Return the exit code as a shell says it (128 + signal), the whole group having ended."""
        code = await self._process.wait()
        self.signal(signal.SIGKILL)  # children that the container left behind
        self.exit_code = code if code >= 0 else 128 - code
        return self.exit_code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole process group; none left is fine."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def message(self) -> str:
        """Return the termination message, at most 4096 bytes."""
        try:
            return self._termination.read_bytes()[:_MESSAGE_LIMIT].decode(errors="replace")
        except FileNotFoundError:
            return ""


def end_leftover(record: Record) -> bool:
    """Kill the process group of an earlier life, if it still is that process; return whether it was."""
    if not record.started or _start_time(record.pid) != record.started:
        return False
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(record.pid, signal.SIGKILL)
    return True


def _start_time(pid: int) -> str:
    """Return the kernel's start time of a process, "" if there is none (or no /proc)."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = line.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def kill_recorded(home: Path) -> list[str]:
    """Kill every process that the record of a pod's directory names and that still is that process; return containers.

    For whoever is not the node itself: the kill helper of the command line and of tests.
    """
    try:
        held = msgspec.json.decode((home / "processes.json").read_bytes())
    except FileNotFoundError:
        return []
    records = [msgspec.convert(record, Record) for record in held["processes"]]
    return [record.container for record in records if end_leftover(record)]
