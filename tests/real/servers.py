"""The processes of a real control plane: each with a log file, each ended with the cluster."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import ssl
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tests.api.real_apiserver import find_tool
from tests.waiting import LONG, SHORT


def tool(name: str) -> Path:
    """Return a binary that `make real-tools` built. Raises FileNotFoundError."""
    found = find_tool(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not there: run `make real-tools`")
    return found


class Server:
    """One process."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, env: dict[str, str] | None = None) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._command = list(command)
        self._env = {**os.environ, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it; its output is appended to its log."""
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self._env
            )

    def check(self) -> None:
        """Fail if it ended."""
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError(f"{self.name} ended with {self._process.returncode}:\n{self.tail()}")

    def tail(self, size: int = 3000) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-size:] if self.log.exists() else ""

    def kill(self) -> None:
        """End it with SIGKILL and wait for its end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)

    def stop(self, within_s: float = SHORT) -> None:
        """End it with SIGTERM, with SIGKILL if it does not listen."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()

    async def until(self, ready: Callable[[], bool], within_s: float = LONG) -> None:
        """Wait until `ready` says so; it is asked in a thread. Fails if the process ends before."""
        end = time.monotonic() + within_s
        while not await asyncio.to_thread(ready):
            self.check()
            if time.monotonic() > end:
                raise AssertionError(f"{self.name} was not ready within {within_s:.0f} s:\n{self.tail()}")
            await asyncio.sleep(0.1)


def answers(url: str, path: str, context: ssl.SSLContext) -> bool:
    """Return whether a server answers 200."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPSConnection(parts.hostname, parts.port, context=context, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def compact(etcd_port: int) -> int:
    """Drop etcd's history up to now; return the revision."""

    def call(path: str, body: dict[str, object]) -> dict[str, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", etcd_port, timeout=30)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            payload = answer.read()
            assert answer.status == 200, payload
            found: dict[str, dict[str, str]] = json.loads(payload)
            return found
        finally:
            connection.close()

    revision = int(call("/v3/kv/range", {"key": "AA=="})["header"]["revision"])
    call("/v3/kv/compaction", {"revision": str(revision), "physical": True})
    return revision
