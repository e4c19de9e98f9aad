"""Carry one request and its stream of raw responses over TLS: the only place outside the sandbox that knows grpclib.

grpclib is used below its surface in two places, each for a reason: messages are read by hand, so that a length prefix
is judged before its bytes are gathered, and the status is always asked for, because leaving grpclib's context skips it
when the connection happens to be closing, and a cut stream would look complete. A call runs in a task of its own:
grpclib wakes a waiting task by cancelling it and never takes that request back, which would confuse the time-outs and
task groups of the caller.

No deadline is ever sent: it would travel to the driver, and drivers end a scan that runs out of time with OK. There are
no keepalive pings either: servers answer pings closer than five minutes by closing the connection.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

from grpclib.client import Channel, Stream
from grpclib.config import Configuration
from grpclib.const import Cardinality
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError, StreamTerminatedError

from orchestrator.cbt.codes import Code, Failure, Kind

MESSAGE_LIMIT = 16 * 1024 * 1024
"""Bytes of the biggest message that is accepted; 190,000 ranges take 4 MiB."""

_WINDOW = 8 * 1024 * 1024
_AHEAD = 2
"""Messages that wait for the consumer; the rest waits in the server, held back by flow control."""

_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\s:/\[\]]+)):(?P<port>\d{1,5})")


class BadService(ValueError):
    """The address or CA bundle of a service can't be used; the text says which and why."""


class _Cut(Exception):
    """The stream ended without saying how."""


class _Oversize(Exception):
    """A length prefix is above MESSAGE_LIMIT."""


class _Garbled(Exception):
    """What came isn't a gRPC message."""


class _RawCodec(CodecBase):  # type: ignore[misc]  # grpclib is not followed by mypy
    """Hand bytes through: requests are encoded before, responses decoded after."""

    __content_subtype__ = "proto"

    def encode(self, message: bytes, message_type: Any) -> bytes:
        return message

    def decode(self, data: bytes, message_type: Any) -> bytes:
        return data


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port` or `[v6]:port`; raise BadService for anything else."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise BadService("address is not host:port")
    return match["v6"] or match["host"], int(match["port"])


def tls_context(ca_pem: bytes) -> ssl.SSLContext:
    """Return a context that trusts only `ca_pem` (a PEM bundle) and speaks HTTP/2 over TLS 1.2 or later.

    Without the h2 ALPN servers hang up at once. VERIFY_X509_STRICT (on in the default contexts of Python 3.13) would
    refuse the CA that the sidecar's documented recipe makes, which has no key usage; chain and host name are checked
    all the same. Any certificate of the bundle may be an anchor, as in the servers' own language.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["h2"])
    try:
        context.load_verify_locations(cadata=ca_pem.decode("ascii"))
    except (UnicodeDecodeError, ValueError, ssl.SSLError) as error:
        raise BadService("CA bundle holds no PEM certificate") from error
    if not context.cert_store_stats()["x509"]:
        raise BadService("CA bundle holds no PEM certificate")
    return context


class Line:
    """One connection to one service, made on the first call and again after it broke.

    `discard()` takes it out of use: it is closed when the last call on it has ended.
    """

    def __init__(self, address: str, ca_pem: bytes) -> None:
        """Take address and trust; raise BadService if they can't be used. Nothing is connected yet."""
        host, port = parse_address(address)
        self._channel = Channel(
            host,
            port,
            codec=_RawCodec(),
            ssl=tls_context(ca_pem),
            config=Configuration(http2_connection_window_size=_WINDOW, http2_stream_window_size=_WINDOW),
        )
        self._calls = 0
        self.discarded = False

    @asynccontextmanager
    async def call(
        self, path: str, request: bytes, *, connect_timeout_s: float, idle_timeout_s: float
    ) -> AsyncIterator[Call]:
        """Send `request` and give its responses; leaving the context resets a call that is still running."""
        self._calls += 1
        try:
            async with Call(self._channel, path, request, connect_timeout_s, idle_timeout_s) as call:
                yield call
        finally:
            self._calls -= 1
            if self.discarded and not self._calls:
                self._channel.close()

    def discard(self) -> None:
        """Close as soon as no call runs."""
        self.discarded = True
        if not self._calls:
            self._channel.close()


class Call:
    """A running call: iterate it for raw messages, then ask `failure`; None means ended by the server with OK."""

    def __init__(
        self, channel: Channel, path: str, request: bytes, connect_timeout_s: float, idle_timeout_s: float
    ) -> None:
        self._channel = channel
        self._path = path
        self._request = request
        self._connect_timeout_s = connect_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(_AHEAD)
        self._pump: asyncio.Task[None] | None = None
        self.failure: Failure | None = Failure(Kind.BROKEN, "not ended")

    async def __aenter__(self) -> Call:
        self._pump = asyncio.create_task(self._run(), name=f"call {self._path}")
        # However the task ends, whoever iterates is told.
        self._pump.add_done_callback(lambda _: self._queue.put_nowait(None))
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._pump is not None
        self._pump.cancel()
        await asyncio.wait([self._pump])

    def __aiter__(self) -> Call:
        return self

    async def __anext__(self) -> bytes:
        message = await self._queue.get()
        if message is None:
            raise StopAsyncIteration
        self._room.release()
        return message

    async def _run(self) -> None:
        """Fill the queue and set `failure`."""
        try:
            self.failure = await self._connect() or await self._receive()
        except Exception as error:  # noqa: BLE001  # grpclib and h2 raise AssertionError, KeyError and more for a broken
            # peer. Whatever it was, the stream did not end with OK, and "not complete" is the safe answer.
            self.failure = Failure(Kind.BROKEN, type(error).__name__)

    async def _connect(self) -> Failure | None:
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self._channel.__connect__()
        except ssl.SSLCertVerificationError as error:
            return Failure(Kind.UNTRUSTED, error.verify_message)
        except TimeoutError:
            return Failure(Kind.UNREACHABLE, f"no connection within {self._connect_timeout_s:g} s")
        except (OSError, UnicodeError) as error:  # refused, unknown or impossible name, TLS handshake, reset
            return Failure(Kind.UNREACHABLE, str(error) or type(error).__name__)
        return None

    async def _receive(self) -> Failure | None:
        """Translate every way in which grpclib reports an end; this is the one door for its errors."""
        try:
            await self._stream_messages()
        except GRPCError as error:
            return Failure(Kind.STATUS, error.message or "", Code(int(error.status.value)))
        except TimeoutError:
            return Failure(Kind.IDLE, f"nothing for {self._idle_timeout_s:g} s")
        except _Oversize as error:
            return Failure(Kind.OVERSIZE, str(error))
        except _Garbled as error:
            return Failure(Kind.GARBLED, str(error))
        except (_Cut, StreamTerminatedError, OSError) as error:
            return Failure(Kind.BROKEN, str(error) or type(error).__name__)
        return None

    async def _stream_messages(self) -> None:
        idle = self._idle_timeout_s
        stream: Stream[bytes, bytes] = self._channel.request(self._path, Cardinality.UNARY_STREAM, bytes, bytes)
        async with stream:
            async with asyncio.timeout(idle):
                await stream.send_message(self._request, end=True)
                await stream.recv_initial_metadata()
            while True:
                async with asyncio.timeout(idle):
                    message = await _next_message(stream)
                if message is None:
                    break
                await self._room.acquire()
                self._queue.put_nowait(message)
            if stream._stream.trailers is None and not stream._trailers_only:
                raise _Cut("the stream ended without a status")
            async with asyncio.timeout(idle):
                await stream.recv_trailing_metadata()


async def _next_message(stream: Stream[bytes, bytes]) -> bytes | None:
    """Return the next message, None at the end of the stream. grpclib's own would gather any length first."""
    with stream._wrapper:
        prefix = await stream._stream.recv_data(5)
        if not prefix:
            return None
        compressed, length = struct.unpack(">BI", prefix)
        if compressed:
            raise _Garbled("a compressed message, which was not asked for")
        if length > MESSAGE_LIMIT:
            raise _Oversize(f"{length} bytes in one message, more than {MESSAGE_LIMIT}")
        body: bytes = await stream._stream.recv_data(length)
    if len(body) != length:
        raise _Cut("the stream ended inside a message")
    return body
