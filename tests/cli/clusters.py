"""An API server in a thread of its own: commands run their own event loop, as in life, and talk to it over HTTPS."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml

from orchestrator.api.foreign.cluster import CustomResourceDefinition
from orchestrator.config import Settings
from orchestrator.demo import install
from orchestrator.kube.client import Client
from orchestrator.sandbox.apiserver.server import ApiServer
from tests.waiting import LONG

T = TypeVar("T")
SETTINGS = Settings()
SNAPSHOT_KINDS = Path(install.__file__).parents[1] / "sandbox" / "storage" / "crds.yaml"


class Cluster:
    """A running API server, and ways in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._client: Client | None = None
        self._thread = threading.Thread(target=self._serve, name="api-server")

    def kubeconfig(self, name: str = "admin") -> str:
        """Return the path of a way in: `admin`, or `nobody` who may do nothing."""
        return str(self.folder / name)

    def do(self, act: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        """Do something as the admin and return what came of it."""
        assert self._client is not None
        return asyncio.run_coroutine_threadsafe(act(self._client), self._loop).result(LONG)

    async def _run(self) -> None:
        server = ApiServer(self.folder / "state")
        self.url = server.url
        (self.folder / "admin").write_text(server.kubeconfig())
        (self.folder / "nobody").write_text(server.kubeconfig("nobody", ["system:authenticated"]))
        ready = asyncio.Event()
        self._task = asyncio.create_task(server.run(ready))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([self._task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        async with await Client.connect(kubeconfig=self.kubeconfig(), field_manager="test") as self._client:
            self._ready.set()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def _serve(self) -> None:
        try:
            self._loop.run_until_complete(self._run())
        finally:
            self._ready.set()
            self._loop.close()

    def start(self) -> None:
        """Serve."""
        self._thread.start()
        assert self._ready.wait(LONG)
        assert self._task is not None
        assert not self._task.done()

    def stop(self) -> None:
        """Stop serving."""
        assert self._task is not None
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(LONG)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Cluster]:
    """Run an API server for as long as the block lasts; nothing is installed."""
    cluster = Cluster(folder)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()


async def install_all(client: Client) -> None:
    """Install our kinds, the snapshot kinds, and the controller's home."""
    await install.definitions(client)
    for manifest in yaml.safe_load_all(SNAPSHOT_KINDS.read_text()):
        if manifest:
            await client.apply(CustomResourceDefinition, manifest)
    await install.controller_home(client, SETTINGS)
