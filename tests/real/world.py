"""Tidemark on a real cluster: the chart's installation, a repository on an S3 server, and what a person does there.

The chart is installed with helm; the controller runs with the chart's ServiceAccount and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from orchestrator.api.foreign.core import Event, Namespace, PersistentVolume, PersistentVolumeClaim, Secret
from orchestrator.api.tidemark import BackupRepository, RecoveryPoint
from orchestrator.demo import install
from orchestrator.demo.programs import Program, free_port
from orchestrator.sandbox.node.process import kill_recorded
from tests.real.cluster import CHECKOUT, RealCluster
from tests.real.s3server import S3Server
from tests.real.servers import tool
from tests.system.world import SETTINGS, World, digest

REPOSITORY = "vault"
HOME = SETTINGS.namespace
VALUES = ["controller.replicas=0", "mover.cpu=50m", "networkPolicy.enabled=false"]


class RealWorld(World):
    """One installation on a real cluster."""

    def __init__(self, cluster: RealCluster, server: S3Server, folder: Path, key: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        nobody = Program("none", [], folder / "none.log")  # there is no sandbox around this cluster
        super().__init__(folder, cluster.client, nobody, key)
        self.cluster, self.server = cluster, server
        self.repository_url = "s3://bucket/main"
        self.options_file = folder / "store-options"
        self.options_file.write_text("".join(f"{k}={v}\n" for k, v in server.options.items()))

    async def start_controller(self, *arguments: str, wait: bool = True) -> None:
        """Start it as the chart's ServiceAccount, and wait until it leads."""
        port = free_port()
        self.metrics = f"http://127.0.0.1:{port}"
        config = await asyncio.to_thread(self.cluster.kubeconfig_of, HOME, SETTINGS.service_account)
        command = ["controller", "--kubeconfig", str(config), "--metrics-address", f"127.0.0.1:{port}"]
        command += ["--lease-duration", "6", "--mover-cpu", "50m", *arguments]
        self._arguments = arguments
        self._minded = True
        self._controller = Program("controller", command, self.folder / "controller.log")

        async def serving() -> bool:
            return not wait or await self.http_ok("/readyz")

        await self._controller.start(serving, 120)

    @property
    def controller(self) -> Program:
        """Return the controller's process."""
        assert self._controller is not None
        return self._controller

    def running_movers(self) -> list[str]:
        """Return the uids of pods with a mover that runs now."""
        homes = (self.cluster.data / "pods").glob("*/processes.json")
        return [home.parent.name for home in homes if b'"mover"' in home.read_bytes()]

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
async def real_world(cluster: RealCluster, folder: Path) -> AsyncIterator[RealWorld]:
    """Install the chart and a repository `vault` on an S3 server; all of it goes at the end."""
    server = S3Server(folder / "server", str(tool("versitygw")))
    await server.start()
    try:
        # Movers read block devices as root without capabilities: `baseline`, not `restricted`.
        await asyncio.to_thread(cluster.kubectl, "create", "namespace", HOME)
        level = "pod-security.kubernetes.io/enforce=baseline"
        await asyncio.to_thread(cluster.kubectl, "label", "namespace", HOME, level)
        values = [word for value in VALUES for word in ("--set", value)]
        chart = str(CHECKOUT / "charts" / "tidemark")
        await asyncio.to_thread(cluster.helm, "install", "tidemark", chart, "--namespace", HOME, *values)
        await install.definitions(cluster.client)
        key = secrets.token_hex(32)
        await _secret(cluster, "vault-key", {"master.key": key})
        await _secret(cluster, "vault-store", server.options)
        found = RealWorld(cluster, server, folder / "w", key)
        spec = {"url": found.repository_url, "credentialsSecret": "vault-store", "encryptionSecret": "vault-key"}
        await found.apply(BackupRepository, REPOSITORY, "", {**spec, "allowedNamespaces": ["*"]})
        try:
            yield found
        finally:
            await found.stop_controller()
            await _remove(cluster)
    finally:
        await server.kill()


async def _remove(cluster: RealCluster) -> None:
    """Take the installation away again; what tests made in namespaces of their own is theirs to remove."""
    await asyncio.to_thread(cluster.kubectl, "delete", "backuprepositories", "--all", "--timeout=60s")
    await asyncio.to_thread(cluster.helm, "uninstall", "tidemark", "--namespace", HOME)
    home = await cluster.client.get(Namespace, HOME)
    await cluster.client.delete(Namespace, HOME, uid=home.uid)
    await asyncio.to_thread(cluster.kubectl, "wait", "--for=delete", f"namespace/{HOME}", "--timeout=120s", ok=False)
