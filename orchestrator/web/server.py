"""The HTTP server: /metrics, /healthz, /readyz, /, /status.json.

It only reads, takes no body, loads nothing from elsewhere and answers one page of metrics at a time. It must never
hold up the controllers: samples are collected on the loop (they come from its caches), everything after that, the
text and its compression, is done in a thread.
"""

from __future__ import annotations

import asyncio
import errno
import gzip
import html
import ipaddress
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

import msgspec
from aiohttp import web
from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder

from orchestrator.web.errors import AddressRefused, AddressTaken, BadAddress
from orchestrator.web.status import STYLE_HASH, StatusPage, render

log = logging.getLogger(__name__)

Check = Callable[[], str | None]
"""Returns None when all is well, else what is wrong, for people."""

ANSWER_LIMIT_S = 15.0
KEEP_ALIVE_S = 75.0
"""Also the time that a client has to send its request."""
STOP_S = 3.0
SCRAPES_AT_ONCE = 2
BODY_LIMIT = 1024
SMALLEST_GZIP = 1024

HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{STYLE_HASH}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
}

_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\[\]:/\s]*)):([0-9]{1,5})")


class Readable(Protocol):
    """A registry, as far as a scrape needs it."""

    def collect(self) -> Iterable[Metric]:
        """Yield every family."""


class _Frozen:
    """What was collected: the encoder asks it, in a thread, instead of the live registry."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT; an empty host means every interface. Raises BadAddress."""
    match = _ADDRESS.fullmatch(address.strip())
    if match is None or int(match[3]) > 65535:
        raise BadAddress(address)
    if match[1]:
        try:
            ipaddress.IPv6Address(match[1])
        except ValueError as error:
            raise BadAddress(address) from error
    return match[1] or match[2] or "0.0.0.0", int(match[3])  # noqa: S104 - asked for by leaving the host out


class Web:
    """The server. `run` serves until it is cancelled."""

    def __init__(
        self,
        address: str,
        registry: Readable,
        checks: Mapping[str, Check],
        status: Callable[[], StatusPage],
        health: Mapping[str, Check] | None = None,
    ) -> None:
        """Take what is shown. `checks` make /readyz, `health` makes /healthz. Raises BadAddress."""
        self.host, self._asked_port = parse_address(address)
        self.address = address
        self.port = 0
        """The port really listened on, once `started` is set."""
        self.started = asyncio.Event()
        self._registry = registry
        self._checks = checks
        self._health = health or {}
        self._status = status
        self._scrapes = asyncio.Semaphore(SCRAPES_AT_ONCE)

    async def run(self) -> None:
        """Listen and serve until cancelled. Raises AddressTaken, AddressRefused."""
        runner = web.AppRunner(
            self._application(),
            access_log=None,
            handle_signals=False,
            keepalive_timeout=KEEP_ALIVE_S,
            shutdown_timeout=STOP_S,
            max_line_size=4096,
            max_field_size=4096,
            max_headers=64,
        )
        await runner.setup()
        try:
            await self._listen(runner)
            self.started.set()
            await asyncio.get_running_loop().create_future()
        finally:
            self.started.clear()
            await runner.cleanup()

    async def _listen(self, runner: web.AppRunner) -> None:
        try:
            await web.TCPSite(runner, self.host, self._asked_port, backlog=64).start()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressTaken(self.address) from error
            raise AddressRefused(self.address, error.strerror or type(error).__name__) from error
        self.port = runner.addresses[0][1]
        log.info("serving /metrics, /healthz, /readyz and the status page on %s port %d", self.host, self.port)

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[_guard], client_max_size=BODY_LIMIT)
        application.router.add_get("/", self._page)
        application.router.add_get("/status.json", self._json)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        return application

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        compress = "gzip" in request.headers.get("Accept-Encoding", "")
        async with self._scrapes:
            families = list(self._registry.collect())

            def build() -> tuple[bytes, bool]:
                body = encode(_Frozen(families))
                return (gzip.compress(body, 1), True) if compress and len(body) >= SMALLEST_GZIP else (body, False)

            body, compressed = await asyncio.to_thread(build)
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        if compressed:
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, headers=headers)

    async def _healthz(self, request: web.Request) -> web.Response:
        return _verdict(self._health)

    async def _readyz(self, request: web.Request) -> web.Response:
        return _verdict(self._checks)

    async def _page(self, request: web.Request) -> web.Response:
        page = self._status()
        text = await asyncio.to_thread(render, page)
        return web.Response(text=text, content_type="text/html")

    async def _json(self, request: web.Request) -> web.Response:
        page = self._status()
        body = await asyncio.to_thread(msgspec.json.encode, page)
        return web.Response(body=body, content_type="application/json")


def _verdict(checks: Mapping[str, Check]) -> web.Response:
    """Ask every check; 200 if all are well, else 503. Each is told on its own line."""
    lines, well = [], True
    for name, check in checks.items():
        try:
            wrong = check()
        except Exception as error:  # noqa: BLE001 - a check that breaks is a failed check, and must not hide the others
            wrong = f"the check itself failed ({type(error).__name__})"
        well = well and wrong is None
        lines.append(f"{name}: {'ok' if wrong is None else wrong}")
    return web.Response(text="\n".join(lines or ["ok"]) + "\n", status=200 if well else 503)


@web.middleware
async def _guard(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Bound the time of an answer, and put the same headers on every one, errors included."""
    try:
        if request.body_exists:
            raise web.HTTPBadRequest(text="this server takes no request body\n")
        async with asyncio.timeout(ANSWER_LIMIT_S):
            response = await handler(request)
    except web.HTTPException as error:
        error.headers.update(HEADERS)
        error.text = html.escape(error.text or error.reason, quote=False)
        raise
    except TimeoutError:
        response = web.Response(text="too slow: try again\n", status=503)
    response.headers.update(HEADERS)
    return response
