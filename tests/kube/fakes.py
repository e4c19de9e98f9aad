"""A scripted API server: small, honest about resourceVersions, and as nasty as told.

It knows just enough of Kubernetes for the client and the cache: CRUD, chunked lists, watches with history. What goes
wrong is said by the test: `fail`, `drop_watches`, `compact`, `slow`, `garbage`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml
from aiohttp import web

from orchestrator.api.meta import K8sObject, Resource
from tests.waiting import LONG

TOKEN = "test-token-that-must-never-be-seen"

_PATH = re.compile(
    r"^/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))"
    r"(?:/namespaces/(?P<ns>[^/]+)(?=/))?/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+))?$"
)


class Widget(K8sObject, frozen=True, kw_only=True):
    """An object to play with; `size` must be a number, so that a bad one can be made."""

    RESOURCE: ClassVar[Resource] = Resource("test.dev", "v1", "Widget", "widgets", namespaced=True)

    size: int = 0


def widget(name: str, namespace: str = "ns", size: Any = 0, **metadata: Any) -> dict[str, Any]:
    """Return a Widget's manifest."""
    return {
        "apiVersion": "test.dev/v1",
        "kind": "Widget",
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "size": size,
    }


def status(code: int, reason: str = "", message: str = "", **details: Any) -> dict[str, Any]:
    """Return a Status body."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
        "details": details,
    }


@dataclass
class Fault:
    """What happens to the next `times` requests that fit."""

    method: str
    path: str
    times: int
    act: Callable[[web.Request], Any]


@dataclass
class Watcher:
    """One open watch."""

    plural: str
    queue: asyncio.Queue[dict[str, Any] | bytes | None] = field(default_factory=asyncio.Queue)


class FakeApi:
    """The server. All state is public: tests look at it."""

    def __init__(self) -> None:
        self.version = 100
        self.objects: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
        self.history: list[tuple[int, str, dict[str, Any]]] = []
        self.oldest = 0
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, Mapping[str, str], Any]] = []
        self.watchers: list[Watcher] = []
        self.opened = 0
        self.missing: set[str] = set()
        self.changed = asyncio.Condition()
        self.url = ""

    # What tests do to it

    def put(self, manifest: Mapping[str, Any], plural: str = "widgets") -> dict[str, Any]:
        """Store an object as if somebody else had written it; watchers hear of it."""
        meta = manifest["metadata"]
        key = (meta.get("namespace", ""), meta["name"])
        known = self.objects.setdefault(plural, {}).get(key)
        self.version += 1
        stored = json.loads(json.dumps(manifest))
        stored["metadata"]["resourceVersion"] = str(self.version)
        stored["metadata"].setdefault("uid", known["metadata"]["uid"] if known else str(uuid.uuid4()))
        self.objects[plural][key] = stored
        self._tell(plural, "MODIFIED" if known else "ADDED", stored)
        return stored

    def remove(self, name: str, namespace: str = "ns", plural: str = "widgets", *, tell: bool = True) -> None:
        """Delete an object; `tell=False`: no watcher ever hears of it, only a list shows it."""
        self.version += 1
        stored = self.objects[plural].pop((namespace, name))
        stored["metadata"]["resourceVersion"] = str(self.version)
        if tell:
            self._tell(plural, "DELETED", stored)

    def fail(
        self,
        method: str,
        path: str,
        code: int,
        reason: str = "",
        message: str = "",
        *,
        times: int = 1,
        headers: Mapping[str, str] | None = None,
        **details: Any,
    ) -> None:
        """Answer the next `times` requests on a path that matches with a Status."""
        body = status(code, reason, message, **details)
        self.faults.append(
            Fault(method, path, times, lambda _: web.json_response(body, status=code, headers=dict(headers or {})))
        )

    def garbage(self, method: str, path: str, *, times: int = 1) -> None:
        """Answer with bytes that are no JSON."""
        self.faults.append(Fault(method, path, times, lambda _: web.Response(body=b"<html>502 \xff {", status=200)))

    def slow(self, method: str, path: str, seconds: float, *, times: int = 1) -> None:
        """Answer nothing for so long."""

        async def wait(_: web.Request) -> web.Response:
            await asyncio.sleep(seconds)
            return web.json_response(status(500), status=500)

        self.faults.append(Fault(method, path, times, wait))

    def hang_up(self, method: str, path: str, *, times: int = 1) -> None:
        """Close the connection without an answer."""

        def cut(request: web.Request) -> web.Response:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        self.faults.append(Fault(method, path, times, cut))

    def drop_watches(self) -> None:
        """Break every open watch in the middle."""
        for watcher in self.watchers:
            watcher.queue.put_nowait(None)

    async def watched(self, times: int = 1) -> None:
        """Wait until watches have been opened so often in all."""
        await self.until(lambda: self.opened >= times)

    def say(self, line: dict[str, Any] | bytes) -> None:
        """Put one line into every open watch."""
        for watcher in self.watchers:
            watcher.queue.put_nowait(line)

    def bookmark(self, plural: str = "widgets") -> None:
        """Send a bookmark of the present version."""
        meta = {"resourceVersion": str(self.version), "creationTimestamp": None}
        for watcher in self.watchers:
            if watcher.plural == plural:
                watcher.queue.put_nowait({"type": "BOOKMARK", "object": {"kind": "Widget", "metadata": meta}})

    def compact(self) -> None:
        """Forget the history: a watch from any version so far gets 410."""
        self.version += 1
        self.oldest = self.version

    def count(self, method: str, path: str, **query: str) -> int:
        """Return how many requests came."""
        return sum(
            1
            for verb, url, params, _ in self.requests
            if verb == method and re.search(path, url) and all(params.get(k) == v for k, v in query.items())
        )

    async def until(self, condition: Callable[[], bool], limit_s: float = LONG) -> None:
        """Wait until the server's state fulfils `condition`."""
        async with asyncio.timeout(limit_s), self.changed:
            await self.changed.wait_for(condition)

    # Serving

    def _tell(self, plural: str, type_: str, stored: dict[str, Any]) -> None:
        event = {"type": type_, "object": json.loads(json.dumps(stored))}
        self.history.append((self.version, plural, event))
        for watcher in self.watchers:
            if watcher.plural == plural:
                watcher.queue.put_nowait(event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        body = await request.json() if request.can_read_body else None
        self.requests.append((request.method, request.path, dict(request.query), body))
        async with self.changed:
            self.changed.notify_all()
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response(status(401, "Unauthorized"), status=401)
        for fault in self.faults:
            if fault.times and fault.method == request.method and re.search(fault.path, request.path_qs):
                fault.times -= 1
                answer = fault.act(request)
                return await answer if asyncio.iscoroutine(answer) else answer
        return await self._normal(request, body)

    async def _normal(self, request: web.Request, body: Any) -> web.StreamResponse:
        match = _PATH.match(request.path)
        if match is None or match["plural"] in self.missing:
            return web.json_response(status(404, "NotFound", "the server could not find it"), status=404)
        plural, ns, name = match["plural"], match["ns"] or "", match["name"] or ""
        if name:
            return self._one(request, plural, (ns, name), body)
        if request.method == "POST":
            return self._create(plural, ns, body)
        if request.query.get("watch") == "true":
            return await self._watch(request, plural)
        return self._list(request, plural, ns)

    def _one(self, request: web.Request, plural: str, key: tuple[str, str], body: Any) -> web.Response:
        stored = self.objects.get(plural, {}).get(key)
        if stored is None:
            return web.json_response(status(404, "NotFound", f'{plural} "{key[1]}" not found'), status=404)
        if request.method == "GET":
            return web.json_response(stored)
        if request.method == "DELETE":
            wanted = (body or {}).get("preconditions", {}).get("uid")
            if wanted and wanted != stored["metadata"]["uid"]:
                return web.json_response(status(409, "Conflict", "the UID in the precondition differs"), status=409)
            self.remove(key[1], key[0], plural)
            return web.json_response({"kind": "Status", "status": "Success"})
        expected = body.get("metadata", {}).get("resourceVersion")
        if expected and expected != stored["metadata"]["resourceVersion"]:
            return web.json_response(status(409, "Conflict", "the object has been modified"), status=409)
        return web.json_response(self.put(_merged(stored, body), plural))

    def _create(self, plural: str, ns: str, body: dict[str, Any]) -> web.Response:
        key = (ns, body["metadata"]["name"])
        if key in self.objects.get(plural, {}):
            return web.json_response(status(409, "AlreadyExists", f"{key[1]} already exists"), status=409)
        body["metadata"]["namespace"] = ns
        return web.json_response(self.put(body, plural), status=201)

    def _list(self, request: web.Request, plural: str, ns: str) -> web.Response:
        everything = sorted(key for key in self.objects.get(plural, {}) if not ns or key[0] == ns)
        start, limit = int(request.query.get("continue", "0")), int(request.query.get("limit", "0"))
        chosen = everything[start : start + limit] if limit else everything
        more = str(start + limit) if limit and start + limit < len(everything) else ""
        items = [self.objects[plural][key] for key in chosen]
        return web.json_response({"metadata": {"resourceVersion": str(self.version), "continue": more}, "items": items})

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        since = int(request.query["resourceVersion"])
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if since < self.oldest:
            await response.write(_line({"type": "ERROR", "object": status(410, "Expired", "too old")}))
            return response
        watcher = Watcher(plural)
        for version, kind, event in self.history:
            if version > since and kind == plural:
                watcher.queue.put_nowait(event)
        self.watchers.append(watcher)
        self.opened += 1
        try:
            await self._stream(request, response, watcher, float(request.query["timeoutSeconds"]))
        finally:
            self.watchers.remove(watcher)
        return response

    async def _stream(
        self, request: web.Request, response: web.StreamResponse, watcher: Watcher, limit_s: float
    ) -> None:
        async with self.changed:
            self.changed.notify_all()
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(limit_s):
                while (event := await watcher.queue.get()) is not None:
                    await response.write(event if isinstance(event, bytes) else _line(event))
                assert request.transport is not None
                request.transport.abort()


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"


def _merged(old: Any, patch: Any) -> Any:
    if not isinstance(patch, dict) or not isinstance(old, dict):
        return patch
    merged = {key: value for key, value in old.items() if patch.get(key, "") is not None}
    for key, value in patch.items():
        if value is not None:
            merged[key] = _merged(old.get(key, {}) if isinstance(value, dict) else None, value)
    return merged


def write_kubeconfig(directory: Path, url: str, token: str = TOKEN) -> Path:
    """Write a kubeconfig for `url`."""
    path = directory / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@contextlib.asynccontextmanager
async def serving(api: FakeApi) -> AsyncIterator[FakeApi]:
    """Serve `api` on a free loopback port."""
    application = web.Application(client_max_size=8 * 2**20)
    application.router.add_route("*", "/{tail:.*}", api.handle)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    api.url = f"http://127.0.0.1:{port}"
    try:
        yield api
    finally:
        api.drop_watches()
        await runner.cleanup()
