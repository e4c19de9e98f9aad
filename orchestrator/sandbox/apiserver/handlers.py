"""From a request to its answer: authenticate, authorize, find the kind, do it, encode what came out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from orchestrator.sandbox.apiserver import bodies, openapi_binary, reading
from orchestrator.sandbox.apiserver.authentication import Authenticator
from orchestrator.sandbox.apiserver.authorization import Ask, Authorizer, refusal
from orchestrator.sandbox.apiserver.bodies import Accept
from orchestrator.sandbox.apiserver.calls import Call, User
from orchestrator.sandbox.apiserver.conversion import present
from orchestrator.sandbox.apiserver.discovery import Discovery
from orchestrator.sandbox.apiserver.json_text import duplicates
from orchestrator.sandbox.apiserver.nodeproxy import NodeProxy
from orchestrator.sandbox.apiserver.objects import Obj, clone
from orchestrator.sandbox.apiserver.openapi import OpenApi
from orchestrator.sandbox.apiserver.patch import json_patch, merge_patch
from orchestrator.sandbox.apiserver.registry import Kind, Registry
from orchestrator.sandbox.apiserver.requests import RequestInfo, parse
from orchestrator.sandbox.apiserver.reviews import Reviews
from orchestrator.sandbox.apiserver.status import (
    ApiError,
    UnknownPath,
    bad_request,
    method_not_allowed,
    path_not_found,
    unsupported_media,
)
from orchestrator.sandbox.apiserver.store import Store
from orchestrator.sandbox.apiserver.strategic import strategic_merge
from orchestrator.sandbox.apiserver.strategy import RETURNS_DELETED
from orchestrator.sandbox.apiserver.subresources import Subresources
from orchestrator.sandbox.apiserver.tables import Tables
from orchestrator.sandbox.apiserver.watching import Watch, check_watch
from orchestrator.sandbox.apiserver.writing import Writer

_log = logging.getLogger(__name__)
_PATCHES = (
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
)


class Handlers:
    """All endpoints of one cluster."""

    def __init__(
        self,
        *,
        store: Store,
        registry: Registry,
        authenticator: Authenticator,
        authorizer: Authorizer,
        reviews: Reviews,
        writer: Writer,
        discovery: Discovery,
        openapi: OpenApi,
        nodes: NodeProxy,
        key_set: Callable[[str], Obj],
    ) -> None:
        self._store, self._registry, self._writer = store, registry, writer
        self._authenticator, self._authorizer, self._reviews = authenticator, authorizer, reviews
        self._discovery, self._openapi, self._key_set = discovery, openapi, key_set
        self._subresources = Subresources(store, registry, writer, reviews, nodes)
        self.bookmark_every_s = 60.0
        self._watches: set[Watch] = set()
        self._ending = False

    def end_watches(self) -> None:
        """End all watches, and each that still comes: a server that shuts down waits for nobody who only listens."""
        self._ending = True
        for watch in self._watches:
            watch.end()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; every refusal is a Status."""
        accept = Accept()
        try:
            info = parse(request.method, request.path, request.query)
            user = self._user(request)
            self._authorizer.check(user, info)
            if info.path == "/openapi/v2" and openapi_binary.MEDIA in request.headers.get("Accept", ""):
                binary = await asyncio.to_thread(self._openapi.v2_binary)
                return web.Response(body=binary, content_type=openapi_binary.ANSWER)
            accept = bodies.accepted(request.headers.get("Accept", ""))
            if info.resource:
                return await self._resource(request, info, user, accept)
            return await self._plain(info, accept)
        except UnknownPath as error:
            return web.Response(text=f"{error.message}\n", status=error.code)
        except ApiError as error:
            return bodies.answer(error.status(), Accept(yaml=accept.yaml), error.code, error.warnings)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:  # noqa: BLE001 - as the real server does: one broken request must not end the others
            _log.exception("%s %s failed", request.method, request.path)
            fault = ApiError(
                500, "InternalError", "Internal error occurred: the sandbox's API server has a fault; its log says more"
            )
            return bodies.answer(fault.status(), Accept(), 500)

    def _user(self, request: web.BaseRequest) -> User:
        user = self._authenticator.user(request.headers.get("Authorization", ""))
        other = request.headers.get("Impersonate-User")
        if not other:
            return user
        if not self._authorizer.allowed(user, Ask("impersonate", "", "users", "", other))[0]:
            raise refusal(user, Ask("impersonate", "", "users", "", other))
        groups = tuple(request.headers.getall("Impersonate-Group", []))
        for group in groups:
            if not self._authorizer.allowed(user, Ask("impersonate", "", "groups", "", group))[0]:
                raise refusal(user, Ask("impersonate", "", "groups", "", group))
        return User(other, (*groups, "system:authenticated"))

    # what is no resource

    async def _plain(self, info: RequestInfo, accept: Accept) -> web.StreamResponse:
        if info.verb not in {"get", "head"}:
            raise path_not_found() if not info.path.startswith("/api") else method_not_allowed()
        parts = [p for p in info.path.split("/") if p]
        if info.path in {"/healthz", "/livez", "/readyz"} or (parts and parts[0] in {"healthz", "livez", "readyz"}):
            return web.Response(text="ok")
        aggregated = accept.shape == "APIGroupDiscoveryList"
        plain = Accept(yaml=accept.yaml)
        match parts:
            case ["version"]:
                return bodies.answer(self._discovery.version(), plain)
            case ["api" | "apis"] if aggregated:
                return bodies.answer(self._discovery.aggregated(core=parts[0] == "api"), accept)
            case ["api"]:
                return bodies.answer(self._discovery.api(), plain)
            case ["apis"]:
                return bodies.answer(self._discovery.groups(), plain)
            case ["api", version]:
                return bodies.answer(self._discovery.resources("", version), plain)
            case ["apis", group]:
                return bodies.answer(self._discovery.group(group), plain)
            case ["apis", group, version]:
                return bodies.answer(self._discovery.resources(group, version), plain)
            case ["openapi", "v2"]:
                return web.Response(body=await asyncio.to_thread(self._openapi.v2), content_type=bodies.JSON)
            case ["openapi", "v3"]:
                return bodies.answer(await asyncio.to_thread(self._openapi.index), plain)
            case ["openapi", "v3", "api", version]:
                return await self._group_schema("", version)
            case ["openapi", "v3", "apis", group, version]:
                return await self._group_schema(group, version)
            case ["openid", "v1", "jwks"] | [".well-known", "openid-configuration"]:
                return bodies.answer(self._key_set(parts[-1]), plain)
            case _:
                raise UnknownPath

    async def _group_schema(self, group: str, version: str) -> web.Response:
        body = await asyncio.to_thread(self._openapi.v3, group, version)
        return web.Response(body=body, content_type=bodies.JSON)

    # resources

    async def _resource(
        self, request: web.BaseRequest, info: RequestInfo, user: User, accept: Accept
    ) -> web.StreamResponse:
        kind = self._registry.find(info.group, info.version, info.resource)
        if kind is None and not self._registry.serves(info.group):
            raise UnknownPath
        if kind is None or (info.subresource and not kind.has(info.subresource)):
            raise path_not_found()
        if kind.namespaced and not info.namespace and info.name:
            raise path_not_found()
        if not kind.namespaced and info.namespace and kind.storage != "namespaces":
            raise path_not_found()
        call = Call(info, kind, user, request.headers.get("User-Agent", ""), bodies.media_type(request))
        if kind.warning:
            call.warn(kind.warning)
        if info.subresource and info.subresource != "status":
            return await self._subresources.handle(request, call, accept)
        if (info.verb not in kind.verbs and not info.subresource) or (
            info.verb in {"update", "patch"} and not info.name
        ):
            raise method_not_allowed()
        action: Callable[[web.BaseRequest, Call, Accept], Awaitable[web.StreamResponse]] = getattr(
            self, f"_{info.verb}", self._refuse
        )
        try:
            return await action(request, call, accept)
        except ApiError as error:
            error.warnings = tuple(call.warnings)
            raise

    async def _refuse(self, request: web.BaseRequest, call: Call, accept: Accept) -> web.StreamResponse:
        raise method_not_allowed()

    async def _object(self, request: web.BaseRequest, call: Call) -> Obj:
        body = await bodies.read(request)
        found = bodies.parse_object(body, call.content_type, call.kind.kind, binary=not call.kind.custom)
        if call.content_type in {"", bodies.JSON} and call.field_validation != "Ignore":
            call.duplicates = duplicates(body)
        return found

    def _shown(self, obj: Obj, call: Call, accept: Accept, status: int = 200) -> web.Response:
        if accept.shape == "Table":
            tables = Tables(call.kind, accept.version, call.info.query.get("includeObject", ""))
            obj = tables.table([obj], {"resourceVersion": obj["metadata"].get("resourceVersion", "")})
        elif accept.shape == "PartialObjectMetadata":
            obj = _partial(obj)
        return bodies.answer(obj, accept, status, call.warnings)

    async def _get(self, request: web.BaseRequest, call: Call, accept: Accept) -> web.StreamResponse:
        rv = reading.revision(call)
        if rv:
            await reading.reached(self._store, rv)
        obj = reading.fetch(self._store, call)
        return self._shown(present(obj, call.kind), call, accept)

    async def _list(self, request: web.BaseRequest, call: Call, accept: Accept) -> web.StreamResponse:
        found = await reading.page(self._store, call)
        body = reading.list_body(call, found)
        if accept.shape == "Table":
            tables = Tables(call.kind, accept.version, call.info.query.get("includeObject", ""))
            body = tables.table(found.items, body["metadata"])
        elif accept.shape == "PartialObjectMetadataList":
            items = [_partial(o) for o in found.items]
            body = {"kind": accept.shape, "apiVersion": "meta.k8s.io/v1", "metadata": body["metadata"], "items": items}
        return bodies.answer(body, accept, 200, call.warnings)

    async def _watch(self, request: web.BaseRequest, call: Call, accept: Accept) -> web.StreamResponse:
        check_watch(call)
        render: Callable[[Obj], Obj] = lambda obj: obj  # noqa: E731 - the plain case
        if accept.shape == "Table":
            render = Tables(call.kind, accept.version, call.info.query.get("includeObject", "")).event
        elif accept.shape in {"PartialObjectMetadata", "PartialObjectMetadataList"}:
            render = _partial
        response = web.StreamResponse(headers={"Content-Type": bodies.JSON, "Cache-Control": "no-cache, private"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        watch = Watch(self._store, call, render, self.bookmark_every_s)
        self._watches.add(watch)
        if self._ending:
            watch.end()
        lines = watch.lines()
        try:
            async for line in lines:
                await response.write(line)
            await response.write_eof()
        except ConnectionResetError:
            pass  # the watcher went away, as every watcher does some day; there is nobody to tell
        finally:
            self._watches.discard(watch)
            await lines.aclose()
        return response

    async def _create(self, request: web.BaseRequest, call: Call, accept: Accept) -> web.StreamResponse:
        body = await self._object(request, call)
        if "get" not in call.kind.verbs:
            return bodies.answer(self._reviews.answer(call, body), accept, 201, call.warnings)
        if call.name and not call.info.subresource:
            raise method_not_allowed()
        obj = self._writer.create(call, body)
        await self._store.flushed()
        return self._shown(obj, call, accept, 201)

    async def _update(self, request: web.BaseRequest, call: Call, accept: Accept) -> web.StreamResponse:
        body = await self._object(request, call)
        existed = self._store.get(call.kind.storage, call.namespace, call.name) is not None
        obj = self._writer.update(call, body)
        await self._store.flushed()
        return self._shown(obj, call, accept, 200 if existed else 201)

    async def _patch(self, request: web.BaseRequest, call: Call, accept: Accept) -> web.StreamResponse:
        media = call.content_type
        allowed = tuple(p for p in _PATCHES if not (call.kind.custom and "strategic" in p))
        if media not in _PATCHES:
            raise ApiError(415, "UnsupportedMediaType", "415: Unsupported Media Type", {})
        if media not in allowed:
            raise unsupported_media(allowed)
        body = await bodies.read(request)
        if media == "application/apply-patch+yaml":
            config = bodies.as_object(bodies.parse_yaml(body))
            obj, created = self._writer.apply(call, config, force=call.info.flag("force"))
            await self._store.flushed()
            return self._shown(obj, call, accept, 201 if created else 200)
        if call.info.query.get("force"):
            raise bad_request(
                'PatchOptions.meta.k8s.io "" is invalid: force: Forbidden: may not be specified for non-apply patch'
            )
        obj = self._writer.change(call, patcher(media, bodies.parse_json(body, "error decoding patch"), call.kind))
        await self._store.flushed()
        return self._shown(obj, call, accept)

    async def _delete(self, request: web.BaseRequest, call: Call, accept: Accept) -> web.StreamResponse:
        options = await self._options(request, call)
        obj, gone = self._writer.delete(call, options)
        await self._store.flushed()
        if not gone or call.kind.storage in RETURNS_DELETED:
            return self._shown(obj, call, accept)
        details = {"name": call.name, "group": call.kind.group, "kind": call.kind.plural, "uid": obj["metadata"]["uid"]}
        body = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
            "details": {k: v for k, v in details.items() if v},
        }  # fmt: skip
        return bodies.answer(body, Accept(yaml=accept.yaml), 200, call.warnings)

    async def _deletecollection(self, request: web.BaseRequest, call: Call, accept: Accept) -> web.StreamResponse:
        options = await self._options(request, call)
        items = self._writer.delete_all(call, options)
        await self._store.flushed()
        body = reading.list_body(call, reading.Page(items, self._store.rv))
        return bodies.answer(body, accept, 200, call.warnings)

    async def _options(self, request: web.BaseRequest, call: Call) -> Obj:
        body = await bodies.read(request)
        options = bodies.as_object(bodies.parse(body, call.content_type, binary=True)) if body.strip() else {}
        query = call.info.query
        if "propagationPolicy" in query:
            options.setdefault("propagationPolicy", query["propagationPolicy"])
        if "gracePeriodSeconds" in query:
            options.setdefault("gracePeriodSeconds", call.info.number("gracePeriodSeconds"))
        if "orphanDependents" in query:
            options.setdefault("orphanDependents", query["orphanDependents"] == "true")
        return options


def _partial(obj: Obj) -> Obj:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}


def patcher(media: str, patch: object, kind: Kind) -> Callable[[Obj], Obj]:
    """Return the function that applies a patch of some media type to an object."""
    if media == "application/json-patch+json":
        return lambda obj: json_patch(obj, patch)
    body = bodies.as_object(patch, "map[string]interface {}", "error decoding patch")
    if media == "application/merge-patch+json":
        return lambda obj: _fresh(merge_patch(obj, body))
    return lambda obj: _fresh(strategic_merge(obj, body, kind.schema))


def _fresh(obj: Obj) -> Obj:
    copied: Obj = clone(obj)
    return copied
