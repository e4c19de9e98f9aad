"""The processes on the stage: each with a log file, each ended with the stage."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from orchestrator.errors import Terminal

STOP_S = 25.0


class ProgramFailed(Terminal):
    """A process of the demonstration did not come up, or ended."""

    reason = "DemoProgramFailed"
    remedy = "See its log file; run again with --keep to look around."

    def __init__(self, name: str, log: Path, why: str) -> None:
        tail = ""
        with contextlib.suppress(OSError):
            tail = log.read_text(errors="replace")[-600:].strip()
        super().__init__(f"{name} {why}; its log {log} ends with:\n{tail}")


class Program:
    """One process of ours."""

    def __init__(self, name: str, arguments: Sequence[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        self._arguments = [sys.executable, "-m", "orchestrator", *arguments]
        self._env = {**os.environ, **(env or {})}
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, ready: Callable[[], Awaitable[bool]], within_s: float) -> None:
        """Start it and wait until `ready` says so. Raises ProgramFailed."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._arguments, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=self._env
            )
        try:
            async with asyncio.timeout(within_s):
                while not await ready():
                    if self._process.returncode is not None:
                        raise ProgramFailed(self.name, self.log, f"ended with exit code {self._process.returncode}")
                    await asyncio.sleep(0.1)
        except TimeoutError as error:
            raise ProgramFailed(self.name, self.log, f"was not ready within {within_s:.0f} s") from error

    @property
    def ended(self) -> bool:
        """Return whether it was started and is no more."""
        return self._process is not None and self._process.returncode is not None

    def check(self) -> None:
        """Raise ProgramFailed if it ended."""
        if self._process is not None and self._process.returncode is not None:
            raise ProgramFailed(self.name, self.log, f"ended with exit code {self._process.returncode}")

    def kill(self) -> None:
        """End it with SIGKILL, at once."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def stop(self) -> int | None:
        """End it with SIGTERM, with SIGKILL when it does not listen; return its exit code."""
        process = self._process
        if process is None or process.returncode is not None:
            return process.returncode if process is not None else None
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                return await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            return await process.wait()


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
