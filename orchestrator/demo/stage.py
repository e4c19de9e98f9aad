"""The stage: sandbox, controller, the volumes' images, and what can be seen of them from outside."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.api.foreign.core import PersistentVolume, PersistentVolumeClaim
from orchestrator.api.meta import K8sObject
from orchestrator.clock import SystemClock
from orchestrator.config import Settings
from orchestrator.demo import install
from orchestrator.demo.programs import Program, free_port
from orchestrator.demo.report import RpoReading
from orchestrator.errors import Terminal
from orchestrator.kube.client import Client

T = TypeVar("T", bound=K8sObject)

NAMESPACE = "shop"
REPOSITORY = "vault"
CLASS = "sandbox"


class Waited(Terminal):
    """Something that the demonstration waits for did not come."""

    reason = "DemoWaited"
    remedy = "Run again with --keep and look at the logs in the demo's directory."


class Stage:
    """Everything that runs, and how to look at it.

    `patience`: seconds that anything may take; a machine that tests is busier than one that shows.
    """

    def __init__(
        self,
        folder: Path,
        client: Client,
        sandbox: Program,
        controller: Program,
        metrics: str,
        *,
        patience: float = 60.0,
    ) -> None:
        self.folder = folder
        self.patience = patience
        self.client = client
        self.sandbox = sandbox
        self.controller = controller
        self.metrics = metrics
        self.clock = SystemClock()
        self.key_file = folder / "master.key"
        self.repository_url = f"file://{folder / 'repository'}"

    @property
    def kubeconfig(self) -> Path:
        """Return the cluster's kubeconfig."""
        return self.folder / "kubeconfig"

    async def until(self, what: str, met: Callable[[], object]) -> None:
        """Wait until `met()` is true. Raises Waited, ProgramFailed."""

        async def ask() -> object:
            return met()

        await self.until_told(what, ask)

    async def until_told(self, what: str, ask: Callable[[], Awaitable[object]]) -> None:
        """Wait until an answer of `ask()` is true. Raises Waited, ProgramFailed."""
        try:
            async with asyncio.timeout(self.patience):
                while not await ask():
                    self.sandbox.check()
                    self.controller.check()
                    await asyncio.sleep(0.1)
        except TimeoutError as error:
            raise Waited(f"waited {self.patience:.0f} s in vain for {what}") from error

    async def poll(
        self, what: str, kind: type[T], name: str, met: Callable[[T | None], bool], **where: str
    ) -> T | None:
        """Wait until an object is as `met` wants it (None: it is not there). Raises Waited, ProgramFailed."""
        last: T | None = None
        try:
            async with asyncio.timeout(self.patience):
                while True:
                    last = await self.client.find(kind, name, where.get("namespace", ""))
                    if met(last):
                        return last
                    self.sandbox.check()
                    self.controller.check()
                    await asyncio.sleep(0.15)
        except TimeoutError as error:
            raise Waited(f"waited {self.patience:.0f} s in vain for {what}; last seen: {last}"[:800]) from error

    async def image(self, claim: str, namespace: str = NAMESPACE) -> Path:
        """Return the file behind a claim's volume."""
        found = await self.client.get(PersistentVolumeClaim, claim, namespace)
        volume = await self.client.get(PersistentVolume, found.spec.volume_name)
        assert volume.spec.csi is not None
        return self._file("volumes", volume.spec.csi.volume_handle)

    def snapshot_image(self, handle: str) -> Path:
        """Return the file behind a physical snapshot."""
        return self._file("snapshots", handle)

    def _file(self, kind: str, handle: str) -> Path:
        return next(iter(self.folder.rglob(f"{kind}/{handle}.img")), self.folder / kind / f"{handle}.img")

    async def rpo(self) -> list[RpoReading]:
        """Scrape the RPO gauge. Raises aiohttp.ClientError, TimeoutError."""
        timeout = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(timeout=timeout) as http, http.get(f"{self.metrics}/metrics") as answer:
            answer.raise_for_status()
            text = await answer.text()
        now: datetime = self.clock.now()
        return [
            RpoReading(
                at=now,
                namespace=sample.labels["namespace"],
                pvc=sample.labels["pvc"],
                policy=sample.labels["policy"],
                seconds=float(sample.value),
            )
            for family in text_string_to_metric_families(text)
            if family.name == "tidemark_rpo_seconds"
            for sample in family.samples
        ]


@contextlib.asynccontextmanager
async def stage(folder: Path, tell: Callable[[str], None]) -> AsyncIterator[Stage]:
    """Start the sandbox, install Tidemark, start the controller; end all of it on the way out."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = Settings()
    kubeconfig = folder / "kubeconfig"
    kubeconfig.unlink(missing_ok=True)
    sandbox = Program("sandbox", ["sandbox", "--dir", str(folder)], folder / "sandbox.log")
    port = free_port()
    metrics = f"http://127.0.0.1:{port}"
    arguments = ["controller", "--kubeconfig", str(kubeconfig), "--metrics-address", f"127.0.0.1:{port}"]
    controller = Program("controller", arguments, folder / "controller.log")

    async def ready() -> bool:
        return kubeconfig.exists() and b"ready" in (folder / "sandbox.log").read_bytes()

    async def serving() -> bool:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            timeout = aiohttp.ClientTimeout(total=2)
            async with aiohttp.ClientSession(timeout=timeout) as http, http.get(f"{metrics}/readyz") as answer:
                return answer.status == 200
        return False

    try:
        await sandbox.start(ready, 60)
        tell(f"sandbox cluster is up; look around meanwhile with:  export KUBECONFIG={kubeconfig}")
        async with await Client.connect(kubeconfig=str(kubeconfig), field_manager="tidemark-demo") as client:
            await install.definitions(client)
            await install.controller_home(client, settings)
            found = Stage(folder, client, sandbox, controller, metrics)
            key = await install.repository(client, settings, REPOSITORY, found.repository_url)
            found.key_file.touch(mode=0o600)
            found.key_file.write_text(key + "\n")
            await controller.start(serving, 60)
            tell(f"controller is up; metrics at {metrics}/metrics, status page at {metrics}/")
            yield found
    finally:
        await controller.stop()
        await sandbox.stop()
