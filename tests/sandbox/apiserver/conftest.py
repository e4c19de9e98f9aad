"""An API server of one's own, in this process, with a plain client."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from orchestrator.sandbox.apiserver.server import ApiServer
from tests.waiting import SHORT


class Client:
    """Speaks JSON to one server as its admin."""

    def __init__(self, server: ApiServer, session: aiohttp.ClientSession, running: asyncio.Task[None]) -> None:
        self.server, self.session, self.running = server, session, running

    async def call(self, method: str, path: str, body: Any = None, **query: str) -> tuple[int, Any]:
        url = self.server.url + path
        async with asyncio.timeout(SHORT), self.session.request(method, url, json=body, params=query) as response:
            return response.status, await response.json()

    async def made(self, path: str, body: Any) -> Any:
        status, found = await self.call("POST", path, body)
        assert status == 201, found
        return found


@contextlib.asynccontextmanager
async def serving(directory: Path, **options: Any) -> AsyncIterator[Client]:
    """Run a server on a directory until the block ends."""
    server = ApiServer(directory, **options)
    ready = asyncio.Event()
    task = asyncio.create_task(server.run(ready))
    try:
        async with asyncio.timeout(SHORT):
            await ready.wait()
        context = ssl.create_default_context(cadata=server.ca_pem.decode())
        token = server.token_for("admin", ["system:masters"])
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}, connector=connector) as session:
            yield Client(server, session, task)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with serving(tmp_path) as found:
        yield found
