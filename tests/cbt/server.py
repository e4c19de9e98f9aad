"""A metadata service that follows a script: real gRPC over real TLS on loopback, each call played from a list of acts.

It encodes with the generated messages, never with the client's own codec. When the script is used up, a call is
answered with an empty OK, which is what a completeness probe of a good server sees.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import trustme
from grpclib.const import Cardinality, Handler, Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError
from grpclib.server import Server

from orchestrator.cbt.client import Client, Settings
from orchestrator.cbt.service import Service, Token
from orchestrator.extents import Extents
from orchestrator.wire.snapshotmetadata import (
    BlockMetadata,
    BlockMetadataType,
    GetMetadataAllocatedRequest,
    GetMetadataDeltaRequest,
    GetMetadataDeltaResponse,
)

GIB = 1 << 30
BLOCK = 4096
FIXED, VARIABLE = 1, 2
START = datetime(2026, 3, 1, tzinfo=UTC)

Request = GetMetadataAllocatedRequest | GetMetadataDeltaRequest


@dataclass(frozen=True)
class Say:
    """Send bytes as one message."""

    data: bytes


@dataclass(frozen=True)
class Fail:
    """End with a status."""

    status: Status
    message: str = ""


@dataclass(frozen=True)
class Raw:
    """Send bytes as DATA without a message's frame; `end` closes the stream without trailers."""

    data: bytes
    end: bool = False


@dataclass(frozen=True)
class Reset:
    """Send RST_STREAM."""


@dataclass(frozen=True)
class Goaway:
    """Send GOAWAY, as a server that is asked to stop."""


@dataclass(frozen=True)
class Drop:
    """Cut the TCP connection."""


@dataclass(frozen=True)
class Hang:
    """Say nothing until the client goes."""


@dataclass(frozen=True)
class Once:
    """Wait for an event, for example that the client has taken what was said: a reset would overtake it."""

    event: asyncio.Event


Act = Say | Fail | Raw | Reset | Goaway | Drop | Hang | Once
Answer = Callable[[Request], Sequence[Act]]


def say(*ranges: tuple[int, int], kind: int = VARIABLE, cap: int = GIB) -> Say:
    """Return a message with (offset, size) ranges."""
    return Say(
        bytes(
            GetMetadataDeltaResponse(
                block_metadata_type=BlockMetadataType(kind),
                volume_capacity_bytes=cap,
                block_metadata=[BlockMetadata(byte_offset=offset, size_bytes=size) for offset, size in ranges],
            )
        )
    )


class _Raw(CodecBase):
    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        return message_type.parse(data)


@dataclass
class ScriptedService:
    """The server: `script` has one entry per call, a list of acts or a function of the request."""

    script: list[Sequence[Act] | Answer] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    port: int = 0
    open_now: int = 0
    most_open: int = 0
    two_open: asyncio.Event = field(default_factory=asyncio.Event)

    def __mapping__(self) -> dict[str, Handler]:
        service = "/snapshotmetadata.SnapshotMetadata/"
        return {
            service + "GetMetadataAllocated": Handler(
                self._serve, Cardinality.UNARY_STREAM, GetMetadataAllocatedRequest, bytes
            ),
            service + "GetMetadataDelta": Handler(
                self._serve, Cardinality.UNARY_STREAM, GetMetadataDeltaRequest, bytes
            ),
        }

    @property
    def offsets(self) -> list[int]:
        """Return where each call started."""
        return [request.starting_offset for request in self.requests]

    async def _serve(self, stream: Any) -> None:
        request = await stream.recv_message()
        self.requests.append(request)
        tls = stream._stream._transport.get_extra_info("ssl_object")
        alpn = str(tls and tls.selected_alpn_protocol())
        self.metadata.append({**stream.metadata, "deadline": str(stream.deadline), "alpn": alpn})
        entry = self.script.pop(0) if self.script else ()
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        if self.open_now == 2:
            self.two_open.set()
        try:
            for act in entry(request) if callable(entry) else entry:
                await _play(stream, act)
        finally:
            self.open_now -= 1


async def _play(stream: Any, act: Act) -> None:
    match act:
        case Say(data):
            await stream.send_message(data)
        case Fail(status, message):
            raise GRPCError(status, message)
        case Raw(data, end):
            if not stream._send_initial_metadata_done:
                await stream.send_initial_metadata()
            await stream._stream.send_data(data, end_stream=end)
        case Reset():
            if not stream._send_initial_metadata_done:
                await stream.send_initial_metadata()
            await stream.cancel()
        case Goaway():
            stream._stream._h2_connection.close_connection()
            stream._stream._transport.write(stream._stream._h2_connection.data_to_send())
            await asyncio.sleep(30)
        case Drop():
            stream._stream._transport.abort()
            await asyncio.sleep(30)
        case Once(event):
            await event.wait()
        case Hang():
            if not stream._send_initial_metadata_done:
                await stream.send_initial_metadata()
            await asyncio.sleep(30)


@dataclass
class FakeClock:
    """Time that passes only when somebody waits."""

    seconds: float = 0.0
    waits: list[float] = field(default_factory=list)

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.waits.append(seconds)
        await asyncio.sleep(0)


@dataclass
class Tokens:
    """A token source that counts what it mints."""

    clock: FakeClock
    ttl_s: float = 3600.0
    minted: int = 0
    current: Token | None = None
    audiences: list[str] = field(default_factory=list)

    async def token(self, audience: str, *, min_ttl_s: float = 120.0, fresh: bool = False) -> Token:
        self.audiences.append(audience)
        left = (self.current.expires_at - self.clock.now()).total_seconds() if self.current else 0.0
        if self.current is None or fresh or left < min_ttl_s:
            self.minted += 1
            self.current = Token(f"secret-token-{self.minted}", self.clock.now() + timedelta(seconds=self.ttl_s))
        return self.current


@dataclass
class Collected:
    """A sink that keeps everything."""

    ranges: list[tuple[int, int]] = field(default_factory=list)
    resets: int = 0
    batches: int = 0
    taken: asyncio.Event = field(default_factory=asyncio.Event)

    def accept(self, extents: Extents) -> None:
        self.batches += 1
        self.taken.set()
        self.ranges += list(zip(extents.offsets.tolist(), extents.lengths.tolist(), strict=True))

    def reset(self) -> None:
        self.ranges.clear()
        self.resets += 1


@dataclass
class World:
    """A running service, and a client of it in virtual time."""

    service: ScriptedService
    clock: FakeClock
    tokens: Tokens
    client: Client
    authority: trustme.CA
    rechecks: int = 0
    rediscoveries: int = 0
    on_recheck: Callable[[], None] = lambda: None
    found: Service | None = None


@asynccontextmanager
async def world(
    *script: Sequence[Act] | Answer,
    settings: Settings | None = None,
    change: Callable[[Service], Service] = lambda service: service,
) -> AsyncIterator[World]:
    """Run a scripted service and a client that knows it by its address and CA; `change` falsifies what it knows."""
    authority = trustme.CA()
    service = ScriptedService(list(script))
    async with serve(service, server_context(authority)):
        true = Service(
            "block.csi.example.com",
            f"127.0.0.1:{service.port}",
            authority.cert_pem.bytes(),
            "block.csi.example.com",
            "uid-1/7",
        )
        clock = FakeClock()
        tokens = Tokens(clock)

        async def recheck() -> None:
            here.rechecks += 1
            here.on_recheck()

        async def rediscover() -> Service:
            here.rediscoveries += 1
            return here.found or true

        async with Client(
            change(true),
            tokens,
            recheck=recheck,
            rediscover=rediscover,
            settings=settings or Settings(idle_timeout_s=5, connect_timeout_s=5),
            clock=clock,
            random=Random(7),
            sleep=clock.sleep,
        ) as client:
            here = World(service, clock, tokens, client, authority)
            yield here


def server_context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """Return a server's TLS context with a certificate for `names` (127.0.0.1)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    authority.issue_cert(*(names or ("127.0.0.1",))).configure_cert(context)
    return context


@asynccontextmanager
async def serve(service: ScriptedService, context: ssl.SSLContext | None) -> AsyncIterator[None]:
    """Serve on an ephemeral port of the loopback."""
    server = Server([service], codec=_Raw())
    await server.start("127.0.0.1", 0, ssl=context)
    assert server._server is not None
    service.port = server._server.sockets[0].getsockname()[1]
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()
