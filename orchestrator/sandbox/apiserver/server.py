"""One cluster's API over HTTPS on loopback: the composition of everything in this room."""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import yaml
from aiohttp import web

from orchestrator.sandbox.apiserver.authentication import Authenticator
from orchestrator.sandbox.apiserver.authorization import Aggregation, Authorizer
from orchestrator.sandbox.apiserver.bootstrap import seed
from orchestrator.sandbox.apiserver.calls import Call, User
from orchestrator.sandbox.apiserver.certificates import Credentials, new_credentials
from orchestrator.sandbox.apiserver.crds import CRDS, Definitions
from orchestrator.sandbox.apiserver.discovery import Discovery
from orchestrator.sandbox.apiserver.gc import Collector
from orchestrator.sandbox.apiserver.handlers import Handlers
from orchestrator.sandbox.apiserver.journal import Journal
from orchestrator.sandbox.apiserver.namespaces import Namespaces
from orchestrator.sandbox.apiserver.nodeproxy import NodeProxy
from orchestrator.sandbox.apiserver.objects import Obj, clone
from orchestrator.sandbox.apiserver.openapi import OpenApi
from orchestrator.sandbox.apiserver.registry import Registry
from orchestrator.sandbox.apiserver.requests import RequestInfo
from orchestrator.sandbox.apiserver.reviews import Reviews
from orchestrator.sandbox.apiserver.store import Store
from orchestrator.sandbox.apiserver.tokens import Tokens
from orchestrator.sandbox.apiserver.writing import Writer

_log = logging.getLogger(__name__)
_SYSTEM = User("system:apiserver", ("system:masters",))


class ApiServer:
    """One cluster's API over HTTPS on loopback.

    The same directory continues the same cluster: same objects and uids, revisions going up, same CA, same
    service-account key, and the same port when it is free. `history` bounds how far back a watch may start.
    """

    def __init__(
        self, directory: Path, *, port: int = 0, crd_manifests: Sequence[Mapping[str, object]] = (), history: int = 4096
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._manifests = [clone(dict(m)) for m in crd_manifests]
        self._journal = Journal(directory / "apiserver.db")
        self._credentials = self._read_credentials()
        self.ca_pem = self._credentials.ca
        self._socket = self._listen(port)
        self.url = f"https://127.0.0.1:{self._socket.getsockname()[1]}"
        self.store = Store(self._journal, history)
        self.registry = Registry()
        tokens = Tokens(self._credentials.signing_key, self.store)
        self._authenticator = Authenticator(self._credentials.signing_key, tokens)
        authorizer = Authorizer(self.store)
        self._aggregation = Aggregation(self.store)
        self._writer = Writer(self.store, self.registry)
        self._nodes = NodeProxy(self.store)
        self._definitions = Definitions(self.store, self.registry)
        self._namespaces = Namespaces(self.store, self.registry, self._writer, self.ca_pem)
        self._collector = Collector(self.store, self.registry, self._writer)
        self._handlers = Handlers(
            store=self.store,
            registry=self.registry,
            authenticator=self._authenticator,
            authorizer=authorizer,
            reviews=Reviews(self.store, self._authenticator, authorizer, tokens),
            writer=self._writer,
            discovery=Discovery(self.registry, self.url.removeprefix("https://")),
            openapi=OpenApi(self.registry),
            nodes=self._nodes,
            key_set=lambda what: tokens.key_set() if what == "jwks" else tokens.configuration(self.url),
        )

    def _read_credentials(self) -> Credentials:
        found = self._journal.meta("credentials")
        if found is not None:
            return msgspec.json.decode(found, type=Credentials)
        made = new_credentials()
        self._journal.set_meta("credentials", msgspec.json.encode(made))
        return made

    def _listen(self, port: int) -> socket.socket:
        """Bind the asked port, else the port of the last run, else a free one."""
        last = int(self._journal.meta("port") or b"0")
        for choice in [port] if port else [last, 0]:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", choice))
            except OSError:
                listener.close()
                if choice == port and port:
                    raise
                continue
            self._journal.set_meta("port", str(listener.getsockname()[1]).encode())
            return listener
        raise OSError("no free port on 127.0.0.1")

    async def run(self, ready: asyncio.Event) -> None:
        """Serve until cancelled; set `ready` when requests are answered."""
        self._journal.start()
        seed(self.store)
        await self._nodes.open()
        try:
            self._install()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._namespaces.run(), name="apiserver-namespaces")
                group.create_task(self._collector.run(), name="apiserver-gc")
                group.create_task(self._serve(ready), name="apiserver-http")
        finally:
            await self._nodes.close()
            await self._journal.close()

    async def _serve(self, ready: asyncio.Event) -> None:
        server = web.Server(self._handlers.handle, access_log=None, keepalive_timeout=300)
        runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        try:
            context = self._credentials.server_context(self._directory)
            await web.SockSite(runner, self._socket, ssl_context=context, backlog=256).start()
            ready.set()
            await asyncio.Event().wait()
        finally:
            self._handlers.end_watches()
            await runner.cleanup()

    def _install(self) -> None:
        """Create the definitions given at construction that are not there, and bring the others up to date."""
        kind = self.registry.find("apiextensions.k8s.io", "v1", "customresourcedefinitions")
        assert kind is not None
        for manifest in self._manifests:
            name = str(manifest["metadata"]["name"])
            verb = "create" if self.store.get(CRDS, "", name) is None else "update"
            info = RequestInfo(path="", verb=verb, group=kind.group, version=kind.version, resource=kind.plural)
            if verb == "update":
                info = msgspec.structs.replace(info, name=name)
            call = Call(info, kind, _SYSTEM, "sandbox")
            body: Obj = clone(manifest)
            if verb == "create":
                self._writer.create(call, body)
                continue
            old = self.store.get(CRDS, "", name)
            assert old is not None
            body["metadata"] = {**old["metadata"], **body["metadata"]}
            self._writer.update(call, body)

    @property
    def bookmark_every_s(self) -> float:
        """How often a watch that wants bookmarks gets one; tests shorten it."""
        return self._handlers.bookmark_every_s

    @bookmark_every_s.setter
    def bookmark_every_s(self, seconds: float) -> None:
        self._handlers.bookmark_every_s = seconds

    def token_for(self, user: str, groups: Sequence[str] = ()) -> str:
        """Return the bearer token of a static user with these groups."""
        return self._authenticator.static_token(user, groups)

    def kubeconfig(self, user: str = "admin", groups: Sequence[str] = ("system:masters",)) -> str:
        """Return a kubeconfig (YAML) for a static user; it holds a token: write it to private files only."""
        name = "sandbox"
        cluster = {"server": self.url, "certificate-authority-data": base64.b64encode(self.ca_pem).decode()}
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": name, "cluster": cluster}],
                "users": [{"name": user, "user": {"token": self.token_for(user, groups)}}],
                "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
                "current-context": name,
            },
            sort_keys=False,
        )
