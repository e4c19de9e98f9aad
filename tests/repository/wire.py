"""The wire between us and a bucket: a loopback server that breaks chosen requests as networks and proxies do.

It reads and writes HTTP by the byte, so that it can reset a connection in the middle of a body, cut an answer short or
refuse to be connected to. What stands behind it answers whole requests: `Objects` (as much of S3 as the store speaks,
in memory, with pages) or `Forward` (any other server). It checks no signature.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import ssl
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import format_datetime
from enum import Enum
from hashlib import md5
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.repository.faults import Shelf

AWAY_S = 0.1
"""How long nobody listens after a REFUSED."""


class Cut(Enum):
    """What happens to one request on its way."""

    REFUSED = "the connection is cut, and for a moment nobody listens"
    RESET = "the connection is reset before anything was carried out"
    RESET_UPLOAD = "the connection is reset in the middle of the request's body"
    LOST = "carried out, and the connection is reset before the answer"
    SHORT = "the answer ends short of its Content-Length"
    CHUNKS = "the answer comes in chunks and is reset before the last one"
    HALF = "the answer claims to be half as long as it is"
    EXTRA = "bytes that nobody asked for follow the answer"
    ERROR = "500 and no more"
    GATEWAY = "502 with a proxy's page"
    SLOW_DOWN = "503 SlowDown"
    SLOW_DOWN_AFTER = "503 SlowDown with Retry-After"
    TOO_MANY = "429 with Retry-After"
    FORBIDDEN = "403 for a moment"
    SILENT = "no answer ever"
    LATE = "no answer ever, but it is carried out"
    XML_200 = "200 with an error in XML"
    HTML_200 = "200 with a proxy's page"
    CACHED_200 = "200 with a proxy's page that has an ETag and a date, as static files do"
    HTML_404 = "404 of a proxy that lost the bucket's server"
    ETAG = "a wrong ETag, and half of the answer before a reset"
    STALE = "a listing leaves out its newest object"
    PAGE = "a listing's page ends in the middle of an object, well before its Content-Length"
    TLS = "garbage in the place of the next TLS record"


ONLY: Mapping[Cut, tuple[str, ...]] = {
    Cut.RESET_UPLOAD: ("PUT", "POST"),
    Cut.LOST: ("PUT", "POST"),
    Cut.LATE: ("PUT", "POST"),
    Cut.HALF: ("GET",),
    Cut.ETAG: ("GET",),
    Cut.STALE: ("LIST",),
    Cut.PAGE: ("LIST",),
}
ERROR_XML = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>InternalError</Code><Message>Again.</Message></Error>'
)
SLOW_XML = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
DENIED_XML = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body><p>Welcome to the hotel.</p></body></html>"
LOST_PAGE = b"default backend - 404"
DATE = "Sun, 22 Nov 2026 12:00:00 GMT"


@dataclass
class Request:
    """One request, read whole."""

    method: str
    target: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes = b""
    raw: bytes = b""

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    @property
    def verb(self) -> str:
        """The method, or LIST."""
        return "LIST" if self.method == "GET" and {"list-type", "comp"} & self.query.keys() else self.method


@dataclass
class Answer:
    """One answer; its length is that of the body unless told otherwise."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    def head(self, length: int | None) -> bytes:
        """Return status line and headers; no length: in chunks."""
        told = {"Date": DATE, **self.headers}
        if length is None:
            told["Transfer-Encoding"] = "chunked"
        else:
            told.setdefault("Content-Length", str(length))
        lines = [f"HTTP/1.1 {self.status} It", *(f"{name}: {value}" for name, value in told.items())]
        return "\r\n".join([*lines, "", ""]).encode()


Origin = Callable[[Request], Awaitable[Answer]]
Script = Callable[[int, Request], Cut | None]
"""(number of the request from 0, request without its body) -> what breaks."""


class Objects:
    """A bucket of S3 over a shelf: objects under /bucket/p/, listings in pages of `page`."""

    def __init__(self, shelf: Shelf, page: int = 1000) -> None:
        self.shelf = shelf
        self.page = page

    async def __call__(self, request: Request) -> Answer:
        key = request.path.removeprefix("/bucket").lstrip("/").removeprefix("p/")
        if request.verb == "LIST":
            return self._listing({name: values[0] for name, values in request.query.items()})
        if request.method == "PUT":
            if request.headers.get("if-none-match") == "*" and key in self.shelf.objects:
                return _refusal(412, "PreconditionFailed")
            await self.shelf.put_new(key, request.body)
            return Answer(200, headers={"ETag": _etag(request.body)})
        if request.method == "POST":
            names = [name.removeprefix("p/") for name in re.findall(r"<Key>([^<]*)</Key>", request.body.decode())]
            for name in names:
                await self.shelf.delete(name)
            rows = "".join(f"<Deleted><Key>p/{name}</Key></Deleted>" for name in names)
            return _xml(f"<DeleteResult>{rows}</DeleteResult>")
        if key not in self.shelf.objects:
            return _refusal(404, "NoSuchKey")
        data, when = self.shelf.objects[key]
        headers = {"ETag": _etag(data), "Last-Modified": format_datetime(when, usegmt=True)}
        if request.method == "HEAD":
            return Answer(200, headers={**headers, "Content-Length": str(len(data))})
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
        if wanted is None:
            return Answer(200, data, headers)
        first, last = int(wanted.group(1)), min(int(wanted.group(2)), len(data) - 1)
        if first >= len(data):
            return _refusal(416, "InvalidRange")
        return Answer(206, data[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"})

    def _listing(self, query: Mapping[str, str]) -> Answer:
        after = query.get("continuation-token", query.get("start-after", ""))
        keys = [f"p/{key}" for key in sorted(self.shelf.objects)]
        keys = [key for key in keys if key.startswith(query.get("prefix", "")) and key > after]
        shown = keys[: self.page]
        rows = "".join(map(self._row, shown))
        more = len(keys) > len(shown)
        token = f"<NextContinuationToken>{escape(shown[-1])}</NextContinuationToken>" if more else ""
        return _xml(f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}</ListBucketResult>")

    def _row(self, key: str) -> str:
        data, when = self.shelf.objects[key.removeprefix("p/")]
        stamp = when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return (
            f"<Contents><Key>{escape(key)}</Key><LastModified>{stamp}</LastModified>"
            f"<ETag>1</ETag><Size>{len(data)}</Size></Contents>"
        )


def _etag(data: bytes) -> str:
    return f'"{md5(data, usedforsecurity=False).hexdigest()}"'


def _xml(text: str) -> Answer:
    return Answer(200, text.encode(), {"Content-Type": "application/xml"})


def _refusal(status: int, code: str) -> Answer:
    return Answer(status, f"<Error><Code>{code}</Code></Error>".encode(), {"Content-Type": "application/xml"})


class Forward:
    """Another server behind the wire: the request goes there as it came."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    async def __call__(self, request: Request) -> Answer:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            head = re.sub(rb"(?im)^connection:.*\r\n", b"", request.raw)
            writer.write(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1) + request.body)
            status, headers = _answer_head(await reader.readuntil(b"\r\n\r\n"))
            length = headers.get("content-length")
            if request.method == "HEAD" or status in (204, 304):
                body = b""
            elif headers.get("transfer-encoding", "").lower() == "chunked":
                body = await _chunks(reader)
            else:
                body = await reader.readexactly(int(length)) if length is not None else await reader.read()
        finally:
            writer.close()
        drop = {"connection", "transfer-encoding", "keep-alive"} | (
            set() if request.method == "HEAD" else {"content-length"}
        )
        return Answer(status, body, {name: value for name, value in headers.items() if name not in drop})


def _answer_head(raw: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = raw.decode("latin-1").rstrip().split("\r\n")
    return int(first.split()[1]), dict(_header(line) for line in lines)


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip().lower(), value.strip()


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(parts)


class Wire:
    """A server that a script breaks. `seen` holds every request so far, without bodies."""

    def __init__(self, origin: Origin, script: Script | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.origin = origin
        self.script = script
        self.seen: list[Request] = []
        self.url = ""
        self.hits: Counter[Cut] = Counter()
        self.at: list[float] = []
        """When each request came, by the loop's clock."""
        self._tls = tls
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._next: socket.socket | None = None
        self._ends = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Wire]:
        """Listen on a free port of the loopback as long as the block lasts."""
        first = _bound(0)
        port = first.getsockname()[1]
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{port}"
        self._next = _bound(port)
        await self._listen(first)
        try:
            yield self
        finally:
            self._ends.set()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._hang_up()
            assert self._next is not None
            self._next.close()

    async def _listen(self, sock: socket.socket) -> None:
        self._server = await asyncio.start_server(self._connected, sock=sock, ssl=self._tls, limit=1 << 20)

    def _hang_up(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            _reset(writer)

    async def _go_away(self) -> None:
        """Refuse connections for a moment; the port stays ours, bound and not listening."""
        assert self._next is not None
        port = self._next.getsockname()[1]
        self._hang_up()
        await asyncio.sleep(AWAY_S)
        sock, self._next = self._next, _bound(port)
        try:
            await self._listen(sock)
        except BaseException:
            sock.close()
            raise

    def _start(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            while await self._one(reader, writer):
                await writer.drain()
        except (OSError, EOFError, asyncio.CancelledError):
            return  # the client went, or the test ends
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        raw = await reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").rstrip().split("\r\n")
        method, target, _ = first.split()
        request = Request(method, target, dict(_header(line) for line in lines), raw=raw)
        number = len(self.seen)
        self.seen.append(request)
        self.at.append(asyncio.get_running_loop().time())
        cut = self.script(number, request) if self.script else None
        if cut is not None:
            self.hits[cut] += 1
        length = int(request.headers.get("content-length", 0))
        if request.headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if cut is Cut.RESET_UPLOAD:
            await reader.readexactly(length // 2)
            _reset(writer)
            return False
        request = Request(method, target, request.headers, await reader.readexactly(length), raw)
        if cut is None:
            answer = await self.origin(request)
            writer.write(answer.head(len(answer.body)) + answer.body)
            return True
        return await self._broken(cut, request, writer)

    async def _broken(self, cut: Cut, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Break one request; True when the connection goes on."""
        match cut:
            case Cut.REFUSED:
                self._start(self._go_away())
                return False
            case Cut.SILENT | Cut.LATE:
                if cut is Cut.LATE:
                    await self.origin(request)
                await self._ends.wait()
                return False
            case Cut.RESET | Cut.LOST:
                if cut is Cut.LOST:
                    await self.origin(request)
                _reset(writer)
                return False
            case Cut.TLS:
                with contextlib.suppress(OSError):
                    os.write(writer.get_extra_info("socket").fileno(), b"\x17\x03\x03\x00\x20" + b"garbage!" * 4)
                writer.transport.abort()
                return False
        told = _instead(cut, request)
        if told is not None:
            body = b"" if request.method == "HEAD" else told.body
            writer.write(told.head(len(told.body)) + body)
            return True
        return self._mangled(cut, await self.origin(request), request, writer)

    def _mangled(self, cut: Cut, answer: Answer, request: Request, writer: asyncio.StreamWriter) -> bool:
        body, half = answer.body, answer.body[: len(answer.body) // 2]
        match cut:
            case Cut.HALF:
                writer.write(answer.head(len(half)) + half)
                return True
            case Cut.EXTRA:
                writer.write(answer.head(len(body)) + body + b"HTTP/1.1 2")
                writer.close()
                return False
            case Cut.STALE:
                body = _without_newest(body)
                writer.write(answer.head(len(body)) + body)
                return True
            case Cut.CHUNKS:
                answer.headers.pop("Content-Length", None)
                chunk = b"%x\r\n%s\r\n" % (len(half), half) if half else b"5\r\nhe"
                writer.write(answer.head(None) + (b"" if request.method == "HEAD" else chunk))
            case Cut.ETAG:
                answer.headers["ETag"] = '"0"'
                writer.write(answer.head(len(body)) + half)
            case _:
                writer.write(answer.head(len(body) or 10) + half)
        writer.close()  # all of that arrives; then the end
        return False


def _instead(cut: Cut, request: Request) -> Answer | None:
    """Return what is answered without asking the bucket."""
    xml, html = {"Content-Type": "application/xml"}, {"Content-Type": "text/html; charset=utf-8"}
    match cut:
        case Cut.ERROR:
            return Answer(500)
        case Cut.GATEWAY:
            return Answer(502, PAGE, html)
        case Cut.SLOW_DOWN:
            return Answer(503, SLOW_XML, xml)
        case Cut.SLOW_DOWN_AFTER:
            return Answer(503, SLOW_XML, {**xml, "Retry-After": "1"})
        case Cut.TOO_MANY:
            return Answer(429, SLOW_XML, {**xml, "Retry-After": "1"})
        case Cut.FORBIDDEN:
            return Answer(403, DENIED_XML, xml)
        case Cut.XML_200:
            return Answer(200, ERROR_XML, xml)
        case Cut.HTML_200:
            return Answer(200, PAGE, html)
        case Cut.CACHED_200:
            return Answer(200, PAGE, {**html, "ETag": '"65-1"', "Last-Modified": DATE})
        case Cut.HTML_404:
            return Answer(404, LOST_PAGE, {"Content-Type": "text/plain"})
    return None


def _without_newest(body: bytes) -> bytes:
    rows = re.findall(rb"<Contents>.*?</Contents>", body)
    newest = max(rows, key=lambda row: re.findall(rb"<LastModified>(.*?)<", row), default=b"")
    return body.replace(newest, b"", 1) if newest else body


def _bound(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    sock.setblocking(False)
    return sock


def _reset(writer: asyncio.StreamWriter) -> None:
    """Answer with RST and nothing else."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
