"""Hand out container logs as a kubelet does, on loopback, to who knows the node's token.

A real API server has no token for a node; it has a client certificate. With an authority for those given, the server
speaks HTTPS (with a certificate of its own, as a kubelet that bootstraps itself) and asks for one instead.
"""

from __future__ import annotations

import asyncio
import hmac
import ssl
from pathlib import Path
from typing import Protocol

import trustme
from aiohttp import web

_STEP = 1 << 16
_FOLLOW_S = 0.1


class Logs(Protocol):
    """Where logs are."""

    def log_path(self, namespace: str, pod: str, container: str) -> Path | None:
        """Return a container's log, None if the pod is unknown here."""

    def is_running(self, namespace: str, pod: str, container: str) -> bool:
        """Return whether more may come."""


class LogServer:
    """`GET /containerLogs/{ns}/{pod}/{container}?tailLines&follow&limitBytes`."""

    name = "log-server"

    def __init__(self, logs: Logs, token: str, client_ca: Path | None = None) -> None:
        self._logs = logs
        self._token = token
        self._client_ca = client_ca
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def open(self) -> None:
        """Listen on a free port of 127.0.0.1."""
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        context = await asyncio.to_thread(_tls, self._client_ca) if self._client_ca else None
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self._client_ca is None and not hmac.compare_digest(given.encode(), self._token.encode()):
            raise web.HTTPUnauthorized(text="the node's token is wrong")
        at = request.match_info["namespace"], request.match_info["pod"], request.match_info["container"]
        path = self._logs.log_path(*at)
        if path is None or not await asyncio.to_thread(path.exists):
            raise web.HTTPBadRequest(
                text=f'container "{at[2]}" in pod "{at[1]}" is waiting to start: ContainerCreating'
            )
        limit = int(request.query.get("limitBytes", -1))
        tail = int(request.query.get("tailLines", -1))
        follow = request.query.get("follow", "false").lower() in {"1", "true"}
        response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
        await response.prepare(request)
        position = await asyncio.to_thread(_tail_start, path, tail)
        while True:
            running = self._logs.is_running(*at)
            position, limit = await _copy(path, position, limit, response)
            if limit == 0 or not follow or not running:
                return response
            await asyncio.sleep(_FOLLOW_S)


def _tls(client_ca: Path) -> ssl.SSLContext:
    """Return a context that takes only clients with a certificate of the authority in the file."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(client_ca))
    context.verify_mode = ssl.CERT_REQUIRED
    trustme.CA().issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


async def _copy(path: Path, position: int, limit: int, response: web.StreamResponse) -> tuple[int, int]:
    """Write what is there from `position` on, at most `limit` bytes (-1: all); return both as they are then."""
    while limit != 0:
        part = await asyncio.to_thread(_read, path, position, _STEP if limit < 0 else min(limit, _STEP))
        if not part:
            break
        await response.write(part)
        position += len(part)
        limit = limit if limit < 0 else limit - len(part)
    return position, limit


def _read(path: Path, position: int, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(position)
            return file.read(size)
    except FileNotFoundError:
        return b""


def _tail_start(path: Path, lines: int) -> int:
    """Return the offset at which the last `lines` lines begin, read from the end; 0 for all (-1)."""
    size = path.stat().st_size
    if lines < 0:
        return 0
    if lines == 0:
        return size
    with path.open("rb") as file:
        position, found = size, 0
        while position > 0:
            step = min(_STEP, position)
            position -= step
            file.seek(position)
            block = file.read(step)
            at = len(block) - 1 if position + step == size and block.endswith(b"\n") else len(block)
            while (at := block.rfind(b"\n", 0, at)) >= 0:
                found += 1
                if found == lines:
                    return position + at + 1
    return 0
