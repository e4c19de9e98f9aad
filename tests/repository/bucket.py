"""A bucket at the wire: as much of S3 as `repository/cloud` speaks, over real HTTP, with answers that a test scripts.

Beside it the metadata service of a cloud's instances, which hands out credentials. Who asked with which access key is
written down. It checks no signature: a real S3 server does that (`test_stores.TestS3`).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import md5
from xml.sax.saxutils import escape

from aiohttp import web

SLOW_DOWN = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
MANY = "<Error><Code>TooManyRequests</Code><Message>Slow.</Message></Error>"
ROLE = "backup-node"
IDENTITY = "AKIDOFTHEINSTANCE"
ROLE_KEY = "AKIDOFTHEROLE"


@dataclass
class Seen:
    """One request."""

    method: str
    key: str
    access_key: str
    at: float
    status: int = 0


@dataclass
class Bucket:
    """Objects, and what is to be answered instead of the truth."""

    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    script: Callable[[Seen, int], tuple[int, str] | None] = lambda seen, before: None
    """Gets a request and how many like it (method and key) came before; an answer, or None for the truth."""
    lost: Callable[[Seen], bool] = lambda seen: False
    """Whether the answer to a request gets lost after it was carried out: the connection is cut."""
    silent: asyncio.Event | None = None
    """While it isn't set, nothing is answered."""
    locks: dict[str, tuple[str, datetime]] = field(default_factory=dict)
    """Mode and end of the lock that a put asked for."""
    roles: list[dict[str, str]] = field(default_factory=list)
    """What was asked of the service that gives credentials of roles."""
    tokens: int = 0
    """Session tokens that the metadata service gave."""

    def tries(self, method: str, key: str) -> list[Seen]:
        return [each for each in self.seen if (each.method, each.key) == (method, key)]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        key = request.path.removeprefix("/bucket").lstrip("/")
        credential = re.search(r"Credential=([^/]+)/", request.headers.get("Authorization", ""))
        seen = Seen(request.method, key, credential.group(1) if credential else "", time.monotonic())
        told = self.script(seen, len(self.tries(seen.method, key)))
        self.seen.append(seen)
        body = await request.read()
        if self.silent is not None:
            await self.silent.wait()
        if told is not None:
            answer = web.Response(status=told[0], text=told[1], content_type="application/xml")
        else:
            answer = self._truth(request, key, body)
        seen.status = answer.status
        if self.lost(seen):
            assert request.transport is not None
            request.transport.abort()
        return answer

    def _truth(self, request: web.Request, key: str, body: bytes) -> web.Response:
        if request.method == "PUT":
            if request.headers.get("If-None-Match") == "*" and key in self.objects:
                return web.Response(status=412, text="<Error><Code>PreconditionFailed</Code></Error>")
            self.objects[key] = body
            if mode := request.headers.get("x-amz-object-lock-mode"):
                until = request.headers["x-amz-object-lock-retain-until-date"]
                self.locks[key] = mode, datetime.fromisoformat(until)
            return web.Response(headers={"ETag": f'"{md5(body, usedforsecurity=False).hexdigest()}"'})
        if request.method == "DELETE":
            self.objects.pop(key, None)
            return web.Response(status=204)
        if request.method == "POST" and "delete" in request.query:
            names = re.findall(r"<Key>([^<]*)</Key>", body.decode())
            for name in names:
                self.objects.pop(name, None)
            rows = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in names)
            return web.Response(text=f"<DeleteResult>{rows}</DeleteResult>", content_type="application/xml")
        if not key and "list-type" in request.query:
            return self._listing(request.query.get("prefix", ""), request.query.get("start-after", ""))
        if key not in self.objects:
            return web.Response(status=404, text="<Error><Code>NoSuchKey</Code></Error>")
        return self._object(request, self.objects[key])

    def _object(self, request: web.Request, data: bytes) -> web.Response:
        headers = {"ETag": '"1"', "Last-Modified": "Sun, 22 Nov 2026 12:00:00 GMT"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if wanted is None:
            return web.Response(body=data, headers=headers)
        first, last = int(wanted.group(1)), min(int(wanted.group(2)), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return web.Response(status=206, body=data[first : last + 1], headers=headers)

    def _listing(self, prefix: str, after: str) -> web.Response:
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size><ETag>1</ETag>"
            "<LastModified>2026-11-22T12:00:00.000Z</LastModified></Contents>"
            for key, data in sorted(self.objects.items())
            if key.startswith(prefix) and key > after
        )
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"
        return web.Response(text=text, content_type="application/xml")

    async def token(self, request: web.Request) -> web.Response:
        self.tokens += 1
        return web.Response(text="metadata-token")

    async def identity(self, request: web.Request) -> web.Response:
        if request.headers.get("X-aws-ec2-metadata-token") != "metadata-token":
            return web.Response(status=401)
        if not request.match_info.get("role"):
            return web.Response(text=ROLE)
        return web.json_response(
            {
                "AccessKeyId": IDENTITY,
                "SecretAccessKey": "s",
                "Token": "t",
                "Expiration": (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        )

    async def assume_role(self, request: web.Request) -> web.Response:
        """Give credentials of a role for a workload's token, as STS does."""
        self.roles.append({name: str(value) for name, value in (await request.post()).items()})
        until = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        keys = f"<AccessKeyId>{ROLE_KEY}</AccessKeyId><SecretAccessKey>s</SecretAccessKey>"
        given = f"<Credentials>{keys}<SessionToken>t</SessionToken><Expiration>{until}</Expiration></Credentials>"
        name = "AssumeRoleWithWebIdentity"
        text = f"<{name}Response><{name}Result>{given}</{name}Result></{name}Response>"
        return web.Response(text=text, content_type="text/xml")


@contextlib.asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Bucket]:
    """Serve a bucket on a free port of the loopback."""
    bucket = Bucket()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/", bucket.assume_role)
    app.router.add_put("/latest/api/token", bucket.token)
    roles = "/latest/meta-data/iam/security-credentials/"
    app.router.add_get(roles, bucket.identity)
    app.router.add_get(roles + "{role}", bucket.identity)
    app.router.add_route("*", "/bucket", bucket.answer)
    app.router.add_route("*", "/bucket/{key:.*}", bucket.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    bucket.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    try:
        yield bucket
    finally:
        await runner.cleanup()
