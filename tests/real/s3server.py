"""A real S3 server on loopback for as long as a test needs it."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

from tests.waiting import LONG


class S3Server:
    """versitygw on loopback, with one bucket; it can be killed and started again on the same port."""

    def __init__(self, folder: Path, program: str) -> None:
        self._folder, self._program = folder, program
        (folder / "data" / "bucket").mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        environment = {**os.environ, "ROOT_ACCESS_KEY": "testkey", "ROOT_SECRET_KEY": "testsecret"}
        command = [self._program, "--quiet", "--port", f"127.0.0.1:{self.port}", "posix", str(self._folder / "data")]
        quiet = asyncio.subprocess.DEVNULL
        self._process = await asyncio.create_subprocess_exec(
            *command, env=environment, cwd=self._folder, stdout=quiet, stderr=quiet
        )
        async with asyncio.timeout(LONG):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.05)
                    continue
                writer.close()
                return

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None

    @property
    def options(self) -> dict[str, str]:
        return {
            "endpoint": f"http://127.0.0.1:{self.port}",
            "access_key_id": "testkey",
            "secret_access_key": "testsecret",
            "region": "us-east-1",
        }
