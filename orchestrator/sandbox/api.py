"""The sandbox parts' own door to an API server: HTTPS with a kubeconfig, nothing else.

The controllers have their own client in `kube/`, which the sandbox must never import: its parts are strangers that
meet the controllers only at the API server. The same client works against a real kube-apiserver. Tokens and keys of
the kubeconfig never reach a log or an error: errors carry only what the server's Status said.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import aiohttp
import msgspec
import yaml
from yarl import URL

from orchestrator.api.meta import Resource
from orchestrator.errors import Retryable, Terminal
from orchestrator.sandbox.objects import Manifest, meta, name, namespace, uid

MERGE = "application/merge-patch+json"
_CALL_TIMEOUT_S = 30.0
_WATCH_SECONDS = 290
_PAGE = 500


class ApiError(Retryable):
    """The API server said no, or could not be reached."""

    reason: ClassVar[str] = "ApiError"

    def __init__(self, code: int, what: str, message: str) -> None:
        super().__init__(f"{what}: {message}" if message else f"{what}: HTTP {code}")
        self.code = code


class NotFound(ApiError):
    """No such object (404)."""

    reason = "NotFound"


class Conflict(ApiError):
    """Somebody else wrote in between, or the uid differs (409)."""

    reason = "Conflict"


class AlreadyExists(ApiError):
    """An object of that name is there (409 AlreadyExists)."""

    reason = "AlreadyExists"


class Expired(ApiError):
    """The version to watch from is too old (410): list again."""

    reason = "Expired"


class BadKubeconfig(Terminal):
    """The kubeconfig can't be used."""

    reason = "BadKubeconfig"


class Kubeconfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a kubeconfig's current context says. Its repr shows no credential."""

    server: str
    ca_pem: str = ""
    cert_pem: str = ""
    key_pem: str = ""
    token: str = ""

    def __repr__(self) -> str:
        return f"Kubeconfig(server={self.server!r}, ...)"

    @classmethod
    def load(cls, path: Path) -> Kubeconfig:
        """Read the current context of a kubeconfig file. Raises BadKubeconfig."""
        try:
            config = yaml.safe_load(path.read_text())
            context = _named(config["contexts"], config["current-context"])["context"]
            cluster = _named(config["clusters"], context["cluster"])["cluster"]
            user = _named(config["users"], context["user"])["user"]
        except (OSError, yaml.YAMLError, KeyError, TypeError, StopIteration) as err:
            raise BadKubeconfig(f"{path} is not a usable kubeconfig ({type(err).__name__})") from err
        base = path.parent
        token = user.get("token") or ((base / user["tokenFile"]).read_text().strip() if user.get("tokenFile") else "")
        return cls(
            server=cluster["server"].rstrip("/"),
            ca_pem=_pem(cluster, "certificate-authority", base),
            cert_pem=_pem(user, "client-certificate", base),
            key_pem=_pem(user, "client-key", base),
            token=token,
        )

    def ssl_context(self) -> ssl.SSLContext | bool:
        """Return the TLS context for the server; False-y checks are never made, http servers need none."""
        if not self.server.startswith("https"):
            return True
        context = ssl.create_default_context(cadata=self.ca_pem or None)
        context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
        if self.cert_pem:
            # The ssl module loads a client certificate from a file only; it is gone again before the first call.
            with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
                file.write(self.cert_pem + "\n" + self.key_pem)
                file.flush()
                context.load_cert_chain(file.name)
        return context


def _named(entries: list[Manifest], wanted: str) -> Manifest:
    return next(entry for entry in entries if entry["name"] == wanted)


def _pem(entry: Mapping[str, str], field: str, base: Path) -> str:
    if entry.get(f"{field}-data"):
        return base64.b64decode(entry[f"{field}-data"]).decode()
    return (base / entry[field]).read_text() if entry.get(field) else ""


class Api:
    """A small asynchronous client: get, list, watch, create, update, merge-patch, delete."""

    def __init__(self, kubeconfig: Kubeconfig, *, agent: str = "tidemark-sandbox") -> None:
        self._config = kubeconfig
        self._agent = agent
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def from_file(cls, path: Path, *, agent: str = "tidemark-sandbox") -> Api:
        """Return a client for the current context of the file at `path`. Raises BadKubeconfig."""
        return cls(Kubeconfig.load(path), agent=agent)

    @property
    def server(self) -> str:
        """Return the server's URL."""
        return self._config.server

    async def __aenter__(self) -> Self:
        headers = {"User-Agent": self._agent, "Accept": "application/json"}
        if self._config.token:
            headers["Authorization"] = f"Bearer {self._config.token}"
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(ssl=self._config.ssl_context(), limit=0),
            read_bufsize=1 << 20,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        timeout_s: float = _CALL_TIMEOUT_S,
    ) -> Manifest:
        """Make one call and return the JSON answer. Raises ApiError and its kinds."""
        assert self._session is not None, "the client is used inside its own `async with`"
        what = f"{method} {path}"
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with self._session.request(
                method,
                URL(self._config.server + path),
                params=query,
                data=data,
                headers={"Content-Type": content_type} if data is not None else None,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
            ) as reply:
                payload = await reply.read()
                if reply.status >= 400:
                    raise _error(reply.status, what, payload)
        except (aiohttp.ClientError, TimeoutError, OSError) as err:
            raise ApiError(0, what, type(err).__name__) from err
        return _decode(payload) if payload else {}

    async def get(self, resource: Resource, at: str, in_namespace: str = "") -> Manifest:
        """Return one object. Raises NotFound."""
        return await self.call("GET", resource.path(in_namespace, at))

    async def list(self, resource: Resource, in_namespace: str = "", selector: str = "") -> tuple[list[Manifest], str]:
        """Return all objects, read in pages, and the resourceVersion of the list."""
        items: list[Manifest] = []
        query = {"limit": str(_PAGE)}
        if selector:
            query["labelSelector"] = selector
        while True:
            page = await self.call("GET", resource.path(in_namespace), query=query)
            items += page.get("items") or []
            more = meta(page).get("continue")
            if not more:
                return items, str(meta(page).get("resourceVersion", "0"))
            query["continue"] = more

    async def watch(self, resource: Resource, since: str, in_namespace: str = "") -> AsyncIterator[Manifest]:
        """Yield watch events ({type, object}) after `since` until the server ends the stream. Raises Expired."""
        assert self._session is not None
        what = f"WATCH {resource.plural}"
        query = {
            "watch": "1",
            "resourceVersion": since,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        try:
            async with self._session.get(
                URL(self._config.server + resource.path(in_namespace)),
                params=query,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=_WATCH_SECONDS + 30),
            ) as reply:
                if reply.status >= 400:
                    raise _error(reply.status, what, await reply.read())
                rest = b""
                async for part in reply.content.iter_any():
                    *lines, rest = (rest + part).split(b"\n")
                    for line in lines:
                        event = _decode(line)
                        if event.get("type") == "ERROR":
                            problem = event.get("object") or {}
                            kind = Expired if problem.get("code") == 410 else ApiError
                            raise kind(int(problem.get("code") or 500), what, str(problem.get("message", "")))
                        yield event
        except (aiohttp.ClientError, TimeoutError, OSError) as err:
            raise ApiError(0, what, type(err).__name__) from err

    async def create(self, resource: Resource, obj: Manifest) -> Manifest:
        """Create an object (apiVersion and kind are filled in). Raises AlreadyExists."""
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **obj}
        return await self.call("POST", resource.path(namespace(obj)), body=body)

    async def ensure(self, resource: Resource, obj: Manifest) -> Manifest:
        """Create an object, or merge its fields into the one that is there."""
        try:
            return await self.create(resource, obj)
        except AlreadyExists:
            body = {"apiVersion": resource.api_version, "kind": resource.kind, **obj}
            path = resource.path(namespace(obj), name(obj))
            return await self.call("PATCH", path, body=body, content_type=MERGE)

    async def patch(self, resource: Resource, seen: Manifest, change: Manifest, *, subresource: str = "") -> Manifest:
        """Merge-patch the object as it was `seen`: raises Conflict if it has another version or uid by now."""
        body = {**change}
        body["metadata"] = {
            **meta(change),
            "resourceVersion": meta(seen).get("resourceVersion"),
            "uid": uid(seen),
        }
        path = resource.path(namespace(seen), name(seen), subresource)
        return await self.call("PATCH", path, body=body, content_type=MERGE)

    async def patch_status(self, resource: Resource, seen: Manifest, status: Manifest) -> Manifest:
        """Merge-patch the status subresource; same precondition as `patch`."""
        return await self.patch(resource, seen, {"status": status}, subresource="status")

    async def delete(self, resource: Resource, seen: Manifest, *, grace_s: int | None = None) -> None:
        """Delete the object of that uid. It being gone already is success."""
        options: Manifest = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid(seen)}}
        if resource.kind == "Job":
            options["propagationPolicy"] = "Background"
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        try:
            await self.call("DELETE", resource.path(namespace(seen), name(seen)), body=options)
        except (NotFound, Conflict):
            return


def _decode(payload: bytes) -> Manifest:
    try:
        found: Manifest = msgspec.json.decode(payload)
    except msgspec.DecodeError as err:
        raise ApiError(0, "decode", "the answer is not JSON") from err
    return found


def _error(code: int, what: str, payload: bytes) -> ApiError:
    try:
        said = msgspec.json.decode(payload)
        message, reason = str(said.get("message", "")), str(said.get("reason", ""))
    except (msgspec.DecodeError, AttributeError):
        message, reason = payload[:200].decode(errors="replace"), ""
    kind = {404: NotFound, 410: Expired}.get(code, ApiError)
    if code == 409:
        kind = AlreadyExists if reason == "AlreadyExists" else Conflict
    return kind(code, what, message[:500])


async def wait_until_served(api: Api, resource: Resource, timeout_s: float = 30.0) -> None:
    """Wait until the API server serves a kind (a new CRD takes a moment). Raises ApiError after `timeout_s`."""
    give_up = asyncio.get_running_loop().time() + timeout_s
    while True:
        try:
            await api.call("GET", resource.path(), query={"limit": "1"})
            return
        except ApiError:
            if asyncio.get_running_loop().time() > give_up:
                raise
            await asyncio.sleep(0.05)
