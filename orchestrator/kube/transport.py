"""Configuration, authentication, TLS and bytes: everything that kubernetes_asyncio does for us, and nothing more.

Its model classes are never used: decoding 1,000 PVCs with them took 183 ms and blocks the loop. Importing its 700 model
modules alone costs 1.5 s of CPU in every process, so `_load` enters the package by the side door. What must never
happen here: a body or a header in a log.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import logging
import os
import sys
import threading
import types
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from orchestrator.kube.errors import NotConfigured, redacted

log = logging.getLogger(__name__)

REFRESH_S = 60.0
"""How often the credentials of an exec plugin or auth provider are looked at again."""
CONNECT_S = 10.0

_import_lock = threading.Lock()


class _Library(NamedTuple):
    configuration: Any
    rest: Any
    config: Any


def _load() -> _Library:
    """Import the few modules of kubernetes_asyncio that we use, without its model classes.

    `kubernetes_asyncio/__init__` and `client/__init__` import every model. Two bare packages stand in for them while
    the submodules load, and are taken away again, so that whoever wants the whole library still gets it.
    """
    with _import_lock:
        if "kubernetes_asyncio.config" in sys.modules:
            return _library()
        spec = importlib.util.find_spec("kubernetes_asyncio")
        if spec is None or not spec.submodule_search_locations:
            raise NotConfigured("The package kubernetes_asyncio is not installed")
        root = spec.submodule_search_locations[0]
        whole = types.ModuleType("kubernetes_asyncio")
        client = types.ModuleType("kubernetes_asyncio.client")
        whole.__path__, client.__path__ = [root], [str(Path(root) / "client")]
        whole.client = client  # type: ignore[attr-defined]
        bare = {whole.__name__: whole, client.__name__: client}
        sys.modules.update(bare)
        try:
            configuration = importlib.import_module("kubernetes_asyncio.client.configuration")
            client.Configuration = configuration.Configuration  # type: ignore[attr-defined]
            client.ApiClient = object  # type: ignore[attr-defined]
            importlib.import_module("kubernetes_asyncio.client.rest")
            importlib.import_module("kubernetes_asyncio.config")
            return _library()
        finally:
            for name in bare:
                sys.modules.pop(name, None)


def _library() -> _Library:
    loaded = sys.modules
    return _Library(
        loaded["kubernetes_asyncio.client.configuration"],
        loaded["kubernetes_asyncio.client.rest"],
        loaded["kubernetes_asyncio.config"],
    )


class Transport:
    """One session with one API server. Belongs to the loop that opened it."""

    def __init__(self, configuration: Any, rest: Any, loader: Any = None) -> None:
        """Take kubernetes_asyncio's Configuration, RESTClientObject and KubeConfigLoader."""
        self._configuration = configuration
        self._rest = rest
        self._loader = loader
        self._authorization = ""
        self._refreshed_at = asyncio.get_running_loop().time()

    @classmethod
    async def open(cls, kubeconfig: str | None = None, context: str | None = None) -> Transport:
        """Open by the argument, else KUBECONFIG, else the in-cluster account, else ~/.kube/config."""
        lib = await asyncio.to_thread(_load)
        configuration = lib.configuration.Configuration()
        in_cluster = bool(os.environ.get("KUBERNETES_SERVICE_HOST"))
        path = kubeconfig or os.environ.get("KUBECONFIG") or (None if in_cluster else _home_config())
        loader = None
        try:
            if path:
                loader = await lib.config.load_kube_config(
                    config_file=path, context=context, client_configuration=configuration, persist_config=False
                )
            elif in_cluster:
                lib.config.load_incluster_config(client_configuration=configuration)
            else:
                raise NotConfigured("There is no kubeconfig and no in-cluster service account")
        except NotConfigured:
            raise
        except Exception as error:  # YAML, keys, files, plugins: the loader raises whatever it meets
            words = redacted(str(error) or type(error).__name__, 200)
            raise NotConfigured(f"The configuration ({path or 'in-cluster'}) is not usable: {words}") from error
        return cls(configuration, lib.rest.RESTClientObject(configuration), loader)

    @property
    def host(self) -> str:
        """Return the server's URL."""
        return str(self._configuration.host)

    async def close(self) -> None:
        """Close the session."""
        await self._rest.close()

    async def bearer(self) -> str:
        """Return our own bearer token, "" when we authenticate otherwise. Never log it."""
        header = (await self._headers()).get("Authorization", "")
        return header[7:] if header.lower().startswith("bearer ") else ""

    @contextlib.asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout_s: float,
        stream: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request and give its response, not yet read. `timeout_s` covers reading it too.

        A stream is limited by the same number, but only its silence is limited by the caller.
        """
        headers = {**await self._headers(), "Content-Type": content_type, "Accept": "application/json"}
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(CONNECT_S, timeout_s))
        response: aiohttp.ClientResponse = await self._rest.request(
            method,
            self.host + path,
            query_params=dict(query) if query else None,
            headers=headers,
            body=body,
            _preload_content=False,
            _request_timeout=timeout,
        )
        try:
            yield response
        finally:
            if stream or not response.content.at_eof():
                response.close()
            else:
                response.release()

    async def _headers(self) -> dict[str, str]:
        await self._refresh()
        headers = {"User-Agent": "tidemark"}
        try:
            settings = await self._configuration.auth_settings()
        except Exception as error:  # noqa: BLE001 - a token file in mid-rotation: the last token may still do
            log.warning("the token could not be read again: %s", type(error).__name__)
            settings = {}
        for setting in settings.values():
            if setting["in"] == "header" and setting["value"]:
                self._authorization = setting["value"]
        if self._authorization:
            headers["Authorization"] = self._authorization
        return headers

    async def _refresh(self) -> None:
        """Look at plugin credentials again once a minute; they expire and nothing else renews them."""
        now = asyncio.get_running_loop().time()
        if self._loader is None or now - self._refreshed_at < REFRESH_S:
            return
        self._refreshed_at = now
        user = self._loader._user  # kubernetes_asyncio's own refresh_token() reads it likewise
        if self._loader.provider or (user is not None and "exec" in user):
            try:
                await asyncio.wait_for(self._loader.load_and_set(self._configuration), CONNECT_S)
            except Exception as error:  # noqa: BLE001 - a plugin may raise anything; the old credentials may still do
                log.warning("the credentials could not be renewed: %s", type(error).__name__)


def _home_config() -> str | None:
    path = Path.home() / ".kube" / "config"
    return str(path) if path.is_file() else None
