"""One request to the API server at a time: bytes in, Structs out, errors translated, every write fenced.

Every call has a timeout, every write carries the field manager and asks the fence first, 429 and 503 are waited out
within bounds. What must never happen here: an unconditional delete, or a write without the fence.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import aiohttp

from orchestrator.api.meta import K8sObject, OwnerReference, Resource
from orchestrator.fence import Fence, OpenFence
from orchestrator.kube import errors
from orchestrator.kube.errors import Target
from orchestrator.kube.replies import TokenRequest, decode_groups, decode_resources, decode_token_request
from orchestrator.kube.transport import Transport
from orchestrator.kube.wire import BadItem, Listing, WatchEvent, decode_listing, decode_object, watch_events

log = logging.getLogger(__name__)

T = TypeVar("T", bound=K8sObject)

TRIES = 4
"""Tries of one request that the server answers with 429 or 503."""
PATIENCE_S = 30.0
"""Seconds of waiting, in all, that one call spends on 429 and 503."""
FOREVER_S = 365 * 86400.0

_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_JSON_PATCH = "application/json-patch+json"


class Client:
    """The API server, for one loop. An async context manager."""

    def __init__(
        self,
        transport: Transport,
        *,
        field_manager: str = "tidemark",
        fence: Fence | None = None,
        timeout_s: float = 30,
    ) -> None:
        """Take an open transport; `connect` is the usual way."""
        self._transport = transport
        self.field_manager = field_manager
        self.fence: Fence = fence or OpenFence()
        self.timeout_s = timeout_s
        self.refusal_pause_s = 0.0
        """Wait so long and ask again (at most TRIES times) when an answer is Forbidden; 0 takes the first for true.

        An API server that has just started says 403 to everybody until it has read its roles: without patience a
        restart of the server would fail for ever what was in work.
        """
        self.on_reply: list[Callable[[K8sObject], None]] = []
        """Called with what a write returned, so that a cache knows it before its watch does. Must be quick."""

    @classmethod
    async def connect(
        cls,
        *,
        kubeconfig: str | None = None,
        context: str | None = None,
        field_manager: str = "tidemark",
        fence: Fence | None = None,
        timeout_s: float = 30,
    ) -> Self:
        """Open a session: `kubeconfig`, else KUBECONFIG, else the in-cluster account, else ~/.kube/config.

        Raises NotConfigured. Does not talk to the server yet.
        """
        transport = await Transport.open(kubeconfig, context)
        return cls(transport, field_manager=field_manager, fence=fence, timeout_s=timeout_s)

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the session."""
        await self.close()

    async def close(self) -> None:
        """Close the session."""
        await self._transport.close()

    @property
    def host(self) -> str:
        """Return the server's URL."""
        return self._transport.host

    async def bearer(self) -> str:
        """Return our own bearer token ("" without one). Never log it."""
        return await self._transport.bearer()

    # Reads

    async def get(self, kind: type[T], name: str, namespace: str = "") -> T:
        """Return the object; raises NotFound."""
        target = _target("get", kind.RESOURCE, namespace, name)
        body = await self._call("GET", kind.RESOURCE.path(namespace, name), target)
        return decode_object(kind, body, target)

    async def find(self, kind: type[T], name: str, namespace: str = "") -> T | None:
        """Return the object, or None when it (or its kind) is not there."""
        try:
            return await self.get(kind, name, namespace)
        except errors.NotFound:
            return None

    async def list(
        self, kind: type[T], namespace: str = "", *, labels: str = "", fields: str = "", limit: int = 500
    ) -> tuple[list[T], str]:
        """Return all objects and the list's resourceVersion; read in chunks of `limit`, started again on 410.

        Raises Undecodable when one of them does not fit: a caller who decides by absence must not miss one.
        """
        listing = await self.listing(kind, namespace, labels=labels, fields=fields, limit=limit)
        if listing.bad:
            raise listing.bad[0].error
        return listing.items, listing.resource_version

    async def listing(
        self, kind: type[T], namespace: str = "", *, labels: str = "", fields: str = "", limit: int = 500
    ) -> Listing[T]:
        """Return all objects like `list`, with those that don't fit set apart (for caches)."""
        for _ in range(3):
            try:
                return await self._pages(kind, namespace, labels, fields, limit)
            except errors.Gone:
                continue
        # The server compacts faster than we page: ask for all in one answer.
        return await self._pages(kind, namespace, labels, fields, 0)

    async def _pages(self, kind: type[T], namespace: str, labels: str, fields: str, limit: int) -> Listing[T]:
        target = _target("list", kind.RESOURCE, namespace)
        query = _query(labelSelector=labels, fieldSelector=fields, limit=str(limit) if limit else "")
        whole: Listing[T] = Listing([], [], "", "")
        while True:
            body = await self._call("GET", kind.RESOURCE.path(namespace), target, query=query)
            page = decode_listing(kind, body, target)
            whole.items.extend(page.items)
            whole.bad.extend(page.bad)
            whole = whole._replace(resource_version=page.resource_version)
            if not page.continue_:
                return whole
            query["continue"] = page.continue_

    async def watch(
        self,
        kind: type[T],
        namespace: str = "",
        *,
        resource_version: str,
        labels: str = "",
        fields: str = "",
        timeout_s: float = 300,
        idle_s: float = 150,
    ) -> AsyncIterator[WatchEvent[T] | BadItem]:
        """Yield changes after `resource_version` until the server ends the stream (after about `timeout_s`).

        Bookmarks are asked for. An object that does not fit comes as a BadItem. Raises Gone when the version is too
        old, TimedOut after `idle_s` of silence or when the server overruns `timeout_s` (a stuck stream), Unavailable
        when the connection breaks.
        """
        target = _target("watch", kind.RESOURCE, namespace)
        query = _query(
            watch="true",
            allowWatchBookmarks="true",
            resourceVersion=resource_version,
            timeoutSeconds=str(max(1, int(timeout_s))),
            labelSelector=labels,
            fieldSelector=fields,
        )
        limit_s = timeout_s + min(30.0, max(1.0, timeout_s / 2))
        try:
            async with self._transport.request(
                "GET", kind.RESOURCE.path(namespace), query=query, timeout_s=limit_s, stream=True
            ) as response:
                if response.status != 200:
                    raise await _failure(target, response)
                async for event in watch_events(kind, response.content, target, idle_s):
                    yield event
        except TimeoutError as error:
            raise errors.TimedOut(target, "the watch went silent") from error
        except (aiohttp.ClientError, OSError) as error:
            raise errors.Unavailable(target, _words(error)) from error

    # Writes

    async def create(self, obj: T) -> T:
        """Create the object and return it as stored; raises AlreadyExists."""
        return await self.create_raw(obj.RESOURCE, obj.to_manifest(), type(obj))

    async def create_raw(self, resource: Resource, manifest: Mapping[str, Any], decode: type[T]) -> T:
        """Create an object given as JSON-able data, `decode` its stored form; raises AlreadyExists.

        The namespace is the manifest's metadata.namespace.
        """
        metadata = manifest.get("metadata", {})
        namespace, name = metadata.get("namespace", ""), metadata.get("name", "")
        target = _target("create", resource, namespace, name or metadata.get("generateName", ""))
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **manifest}
        reply = await self._write("POST", resource.path(namespace), target, body=body)
        return self._learn(decode_object(decode, reply, target))

    async def merge_patch(
        self, kind: type[T], name: str, namespace: str, body: Mapping[str, Any], *, subresource: str = ""
    ) -> T:
        """Merge `body` into the object; metadata.resourceVersion in it makes it conditional (Conflict)."""
        return await self._patch(kind, name, namespace, body, _MERGE, subresource)

    async def json_patch(
        self, kind: type[T], name: str, namespace: str, ops: Sequence[Mapping[str, Any]], *, subresource: str = ""
    ) -> T:
        """Apply JSON patch operations; a failed `test` is Invalid."""
        return await self._patch(kind, name, namespace, list(ops), _JSON_PATCH, subresource)

    async def apply(
        self, kind: type[T], manifest: Mapping[str, Any], *, subresource: str = "", force: bool = True
    ) -> T:
        """Server-side apply our fields; idempotent. Without `force` another owner's field is a Conflict."""
        metadata = manifest["metadata"]
        body = {"apiVersion": kind.RESOURCE.api_version, "kind": kind.RESOURCE.kind, **manifest}
        name, namespace = metadata["name"], metadata.get("namespace", "")
        return await self._patch(kind, name, namespace, body, _APPLY, subresource, force="true" if force else "false")

    async def delete(
        self,
        kind: type[K8sObject],
        name: str,
        namespace: str = "",
        *,
        uid: str,
        propagation: Literal["Background", "Foreground", "Orphan"] = "Background",
        grace_s: int | None = None,
    ) -> bool:
        """Ask for the deletion of exactly the object with `uid`; idempotent.

        Returns False when it is gone already or another object has its name now.
        """
        if not uid:
            raise ValueError("a delete without a uid could hit a successor of the same name")
        options: dict[str, Any] = {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "preconditions": {"uid": uid},
            "propagationPolicy": propagation,
        }
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        target = _target("delete", kind.RESOURCE, namespace, name)
        try:
            reply = await self._write(
                "DELETE", kind.RESOURCE.path(namespace, name), target, body=options, managed=False
            )
        except errors.NotFound:
            return False
        except errors.Conflict:
            now = await self.find(kind, name, namespace)
            if now is None or now.uid != uid:
                return False
            raise
        self._learn_if_object(kind, reply)
        return True

    # Other calls

    async def pod_log_tail(self, pod: str, namespace: str, *, container: str = "", lines: int = 1) -> str:
        """Return the last lines of a pod's log, at most 64 KiB; raises NotFound, Invalid (not started yet)."""
        target = Target("read log of", "pods", namespace, pod)
        query = _query(container=container, tailLines=str(lines), limitBytes="65536")
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
        return (await self._call("GET", path, target, query=query)).decode("utf-8", "replace")

    async def create_token(
        self,
        service_account: str,
        namespace: str,
        *,
        audience: str,
        expiration_s: int = 3600,
        bound: OwnerReference | None = None,
    ) -> tuple[str, datetime]:
        """Return a new token of the account for one audience, and when it expires. `bound` names a Pod or Secret.

        Refuses an empty audience: the server would make it a credential for itself.
        """
        if not audience:
            raise errors.TokenRefused("A token without an audience is a credential for the API server")
        request = await self.token_request(
            service_account, namespace, audiences=[audience], expiration_s=expiration_s, bound=bound
        )
        return request.status.token, request.status.expiration_timestamp

    async def token_request(
        self,
        service_account: str,
        namespace: str,
        *,
        audiences: Sequence[str],
        expiration_s: int,
        bound: OwnerReference | None = None,
    ) -> TokenRequest:
        """Return the server's whole answer to a TokenRequest. `kube.tokens` is the way for others."""
        spec: dict[str, Any] = {"expirationSeconds": expiration_s, "audiences": list(audiences)}
        if bound is not None:
            spec["boundObjectRef"] = {
                "apiVersion": bound.api_version,
                "kind": bound.kind,
                "name": bound.name,
                "uid": bound.uid,
            }
        target = Target("request a token of", "serviceaccounts/token", namespace, service_account)
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token"
        reply = await self._write("POST", path, target, body=body)
        return decode_token_request(reply, target)

    async def api_groups(self) -> dict[str, tuple[str, ...]]:
        """Return the versions that the server has of each named group."""
        target = Target("list", "apigroups")
        return decode_groups(await self._call("GET", "/apis", target), target)

    async def preferred(self, group: str, candidates: Sequence[Resource]) -> Resource | None:
        """Return the first of `candidates` that the server has, or None; they all are of `group`."""
        for resource in candidates:
            if resource.group != group:
                raise ValueError(f"{resource} is not of group {group}")
            target = Target("discover", f"{resource.group}/{resource.version}")
            path = f"/apis/{group}/{resource.version}" if group else f"/api/{resource.version}"
            try:
                body = await self._call("GET", path, target)
            except errors.NotFound:
                continue
            if resource.plural in decode_resources(body, target):
                return resource
        return None

    # The one way out

    async def _patch(
        self, kind: type[T], name: str, namespace: str, body: Any, content_type: str, subresource: str, **query: str
    ) -> T:
        target = _target("patch", kind.RESOURCE, namespace, name)
        path = kind.RESOURCE.path(namespace, name, subresource)
        reply = await self._write("PATCH", path, target, body=body, content_type=content_type, query=query)
        return self._learn(decode_object(kind, reply, target))

    async def _write(
        self,
        method: str,
        path: str,
        target: Target,
        *,
        body: Any,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
        managed: bool = True,
    ) -> bytes:
        whole = {**({"fieldManager": self.field_manager} if managed else {}), **(query or {})}
        return await self._call(
            method, path, target, query=whole, body=body, content_type=content_type, fence=self.fence
        )

    async def _call(
        self,
        method: str,
        path: str,
        target: Target,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        fence: Fence | None = None,
    ) -> bytes:
        """Send, and send again while the server asks for patience; the fence is asked before each sending."""
        waited = 0.0
        for attempt in range(1, TRIES + 1):
            if fence is not None:
                fence.check()
            try:
                async with self._transport.request(
                    method, path, query=query, body=body, content_type=content_type, timeout_s=self.timeout_s
                ) as response:
                    if response.status < 300:
                        return await response.read()
                    failure = await _failure(target, response)
                    pause = _retry_after(response, failure)
                    if type(failure) is errors.Forbidden and self.refusal_pause_s:
                        pause = self.refusal_pause_s
            except TimeoutError as error:
                raise errors.TimedOut(target, f"no answer within {self.timeout_s:g} s") from error
            except (aiohttp.ClientError, OSError) as error:
                raise errors.Unavailable(target, _words(error)) from error
            if pause is None or attempt == TRIES or waited + pause > PATIENCE_S:
                raise failure
            waited += pause
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    def _learn(self, obj: T) -> T:
        for hook in self.on_reply:
            hook(obj)
        return obj

    def _learn_if_object(self, kind: type[K8sObject], reply: bytes) -> None:
        """A delete answers with the object while finalizers hold it, and with a Status once it is gone."""
        try:
            if json.loads(reply).get("kind") == kind.RESOURCE.kind:
                self._learn(decode_object(kind, reply, Target("delete", kind.RESOURCE.plural)))
        except (ValueError, AttributeError, errors.Undecodable):
            log.debug("a delete's answer could not be read")


def _target(verb: str, resource: Resource, namespace: str = "", name: str = "") -> Target:
    full = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
    return Target(verb, full, namespace, name)


def _query(**values: str) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}


def _words(error: Exception) -> str:
    return errors.redacted(str(error) or type(error).__name__)


async def _failure(target: Target, response: aiohttp.ClientResponse) -> errors.ApiError:
    body = await response.content.read(64 * 1024)
    return errors.translate(target, response.status, body, _header_seconds(response))


def _header_seconds(response: aiohttp.ClientResponse) -> float | None:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None


def _retry_after(response: aiohttp.ClientResponse, failure: errors.ApiError) -> float | None:
    """Return how long to wait before the same request again, None to give up.

    503 only with Retry-After: it then is the server's promise that it did nothing.
    """
    if isinstance(failure, errors.TooManyRequests):
        return failure.retry_after_s * random.uniform(1.0, 1.2)  # noqa: S311 - jitter
    asked = _header_seconds(response)
    if response.status == 503 and asked is not None:
        return asked * random.uniform(1.0, 1.2)  # noqa: S311 - jitter
    return None
