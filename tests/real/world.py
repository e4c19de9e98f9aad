"""Tidemark on a real cluster: the chart's installation, a repository on an S3 server, and what a person does there.

The chart is installed with helm; the controller runs with the chart's ServiceAccount and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.api.foreign.core import Event, Namespace, PersistentVolume, PersistentVolumeClaim, Secret
from orchestrator.api.meta import K8sObject
from orchestrator.api.tidemark import BackupRepository, RecoveryPoint
from orchestrator.demo.programs import Program
from orchestrator.sandbox.node.process import kill_recorded
from tests.real.cluster import RealCluster
from tests.real.installed import Installed
from tests.real.installed import install as install_chart
from tests.real.s3server import S3Server
from tests.real.servers import tool
from tests.system.world import SETTINGS, World, digest
from tests.waiting import LONG

T = TypeVar("T", bound=K8sObject)
REPOSITORY = "vault"
HOME = SETTINGS.namespace
"""Seconds that a wait may take on a busy machine before the test gives up."""
LEASE_S = 6
"""Less than the chart's own: one that was killed is followed sooner."""


class Deployed(Program):
    """The controller that the chart installed, for those who ask whether it is well."""

    def __init__(self, folder: Path) -> None:
        super().__init__("controller", [], folder / "controller.log")

    def check(self) -> None:
        """Say nothing: its Pod is started again whatever happens to it."""


class RealWorld(World):
    """One installation on a real cluster."""

    def __init__(self, installed: Installed, server: S3Server, folder: Path, key: str, metrics: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.controller = Deployed(folder)
        super().__init__(folder, installed.cluster.client, self.controller, key)
        self.installed, self.cluster, self.server = installed, installed.cluster, server
        self.metrics = metrics
        self.repository_url = "s3://bucket/main"
        self.options_file = folder / "store-options"
        self.options_file.write_text("".join(f"{k}={v}\n" for k, v in server.options.items()))
        (folder / "kubeconfig").symlink_to(self.cluster.kubeconfig)

    async def until(
        self, kind: type[T], name: str, namespace: str, met: Callable[[T | None], bool], *, within_s: float = LONG
    ) -> T | None:
        """Wait until an object is as wanted; tell the controller's last words if it does not come to be."""
        (self.folder / "controller.log").touch()
        try:
            return await super().until(kind, name, namespace, met, within_s=within_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{await self.installed.logs('', '--tail=40')}") from None

    async def kill_installed(self) -> None:
        """kill -9 the controller in its Pod; the node starts it again."""
        assert await self.installed.kill()

    async def remove_namespace(self, name: str) -> None:
        """Delete a namespace, if it is there, and wait until it is gone."""
        found = await self.client.find(Namespace, name)
        if found is not None:
            await self.client.delete(Namespace, name, uid=found.uid)
            await self.until(Namespace, name, "", lambda n: n is None, within_s=LONG)

    async def leftovers(self, namespace: str, snapshots: int) -> list[str]:
        """Return what should not be there; the controller's own Pod should."""
        found = await super().leftovers(namespace, snapshots)
        return [what for what in found if not what.startswith("Pod tidemark-controller-")]

    def running_movers(self) -> list[str]:
        """Return the uids of pods with a mover that runs now."""
        found = []
        for record in (self.cluster.data / "pods").glob("*/processes.json"):
            with contextlib.suppress(FileNotFoundError):  # it ended meanwhile
                if b'"mover"' in record.read_bytes():
                    found.append(record.parent.name)
        return found

    def kill_movers(self) -> int:
        """kill -9 every mover; return how many there were."""
        return sum(len(kill_recorded(self.cluster.data / "pods" / uid)) for uid in self.running_movers())

    async def image(self, claim: str, namespace: str) -> Path:
        """Return the image behind a claim."""
        found = await self.client.get(PersistentVolumeClaim, claim, namespace)
        volume = await self.client.get(PersistentVolume, found.spec.volume_name)
        assert volume.spec.csi is not None
        return next(self.cluster.data.rglob(f"volumes/{volume.spec.csi.volume_handle}.img"))

    def offline(self) -> list[str]:
        """Return the options with which the command line reaches the repository without a cluster."""
        return [
            "--repository", self.repository_url, "--key-file", str(self.key_file),
            "--store-options", str(self.options_file),
        ]  # fmt: skip

    async def restored(self, point: RecoveryPoint) -> str:
        """Restore a point without the cluster; return the SHA-256 of what came back."""
        target = self.folder / f"{point.uid}.img"
        code, said = await self.tidemark("restore", *self.offline(), "--point", point.uid, "--to", str(target))
        assert code == 0, said
        try:
            return await asyncio.to_thread(digest, target)
        finally:
            target.unlink()

    async def nodes_of_movers(self) -> dict[str, str]:
        """Return node by mover pod, as the scheduler told it; events outlive the pods."""
        events, _ = await self.client.list(Event, HOME)
        placed = [e for e in events if e.reason == "Scheduled" and e.involved_object.name.startswith("tm-")]
        return {e.involved_object.name: e.message.rpartition(" to ")[2] for e in placed}


async def _secret(cluster: RealCluster, name: str, data: dict[str, str]) -> None:
    body: dict[str, Any] = {"apiVersion": "v1", "kind": "Secret", "stringData": data}
    body["metadata"] = {"name": name, "namespace": HOME}
    await cluster.client.create_raw(Secret.RESOURCE, body, Secret)


@contextlib.asynccontextmanager
async def real_world(cluster: RealCluster, folder: Path, *, lease_s: int = LEASE_S) -> AsyncIterator[RealWorld]:
    """Install the chart and a repository `vault` on an S3 server; all of it goes at the end."""
    server = S3Server(folder / "server", str(tool("versitygw")))
    await server.start()
    try:
        values = {"controller": {"replicas": 1, "leaseDurationSeconds": lease_s}}
        installed = await install_chart(cluster, values=values)
        key = secrets.token_hex(32)
        await _secret(cluster, "vault-key", {"master.key": key})
        await _secret(cluster, "vault-store", server.options)
        found = RealWorld(installed, server, folder / "w", key, await installed.metrics_url())
        spec = {"url": found.repository_url, "credentialsSecret": "vault-store", "encryptionSecret": "vault-key"}
        await found.apply(BackupRepository, REPOSITORY, "", {**spec, "allowedNamespaces": ["*"]})
        try:
            yield found
        finally:
            await asyncio.to_thread(cluster.kubectl, "delete", "backuprepositories", "--all", "--timeout=300s")
            await installed.remove()
    finally:
        await server.kill()
