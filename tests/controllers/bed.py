"""A bed for controllers: a whole sandbox cluster, a repository in a directory, and the point controller over them.

Real client code, real HTTP, real movers as processes. The controller runs as the product runs it (`app.run`) and can be
cut off at any await, as a killed process would be.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from orchestrator import app
from orchestrator.api.foreign.core import Job, Namespace, PersistentVolume, PersistentVolumeClaim, Secret
from orchestrator.api.foreign.snapshot import VolumeSnapshot, VolumeSnapshotContent
from orchestrator.api.meta import K8sObject, ObjectMeta, Resource
from orchestrator.api.tidemark.fields import FINALIZER, LABEL_POINT_UID, LABEL_PVC_UID
from orchestrator.api.tidemark.recovery_point import FINAL_PHASES, PointPhase, RecoveryPoint, RecoveryPointSpec
from orchestrator.app.house import House, Part
from orchestrator.config import Settings
from orchestrator.controllers.base import Context
from orchestrator.controllers.recovery_point import RecoveryPointController
from orchestrator.controllers.slots import Slots
from orchestrator.controllers.sweeper import Sweeper
from orchestrator.demo import install
from orchestrator.kube.client import Client
from orchestrator.sandbox.cluster import Sandbox
from orchestrator.volumes.snapshot import original_name
from policies.naming import transient_name
from tests.waiting import LONG

SYSTEM = "tidemark-system"
REPOSITORY = "main"
TENANT = "shop"


@dataclass
class Bed:
    """One cluster with one tenant namespace and one repository."""

    directory: Path
    sandbox: Sandbox
    client: Client
    settings: Settings
    key: str = ""
    """The repository's master key, in hex."""
    contexts: list[Context] = field(default_factory=list)
    names: int = 0

    async def volume(self, name: str, size: str = "4Mi", namespace: str = TENANT) -> PersistentVolumeClaim:
        """Make a Block claim and wait until it is bound."""
        manifest = {
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "volumeMode": "Block",
                "storageClassName": "sandbox",
                "resources": {"requests": {"storage": size}},
            },
        }
        await self.client.create_raw(PersistentVolumeClaim.RESOURCE, manifest, PersistentVolumeClaim)
        await self.eventually(lambda: self._bound(name, namespace), f"claim {name} bound")
        return await self.client.get(PersistentVolumeClaim, name, namespace)

    async def _bound(self, name: str, namespace: str) -> bool:
        return (await self.client.get(PersistentVolumeClaim, name, namespace)).bound

    async def write(self, claim: str, data: bytes, offset: int = 0, namespace: str = TENANT) -> None:
        """Write to the file behind a claim."""
        path = await self.sandbox.volume_path(claim, namespace)

        def put() -> None:
            with path.open("r+b") as file:
                file.seek(offset)
                file.write(data)

        await asyncio.to_thread(put)

    async def point(self, claim: PersistentVolumeClaim, **spec: Any) -> RecoveryPoint:
        """Make a RecoveryPoint of the claim, as a Backup would."""
        self.names += 1
        spec.setdefault("repository", REPOSITORY)
        point = RecoveryPoint(
            metadata=ObjectMeta(
                name=f"{claim.name}-{self.names}",
                namespace=claim.namespace,
                labels={LABEL_PVC_UID: claim.uid},
                finalizers=(FINALIZER,),
            ),
            spec=RecoveryPointSpec(pvc_name=claim.name, pvc_uid=claim.uid, **spec),
        )
        return await self.client.create(point)

    async def ended(self, point: RecoveryPoint, timeout_s: float = LONG) -> RecoveryPoint:
        """Wait until the point is final and everything on its way is torn down."""

        async def over() -> bool:
            now = await self.client.get(RecoveryPoint, point.name, point.namespace)
            return now.status.phase in FINAL_PHASES and not now.metadata.finalizers

        await self.eventually(over, f"point {point.name} ended", timeout_s)
        return await self.client.get(RecoveryPoint, point.name, point.namespace)

    async def completed(self, claim: PersistentVolumeClaim, **spec: Any) -> RecoveryPoint:
        """Make a point and wait until it is completed."""
        point = await self.ended(await self.point(claim, **spec))
        assert point.status.phase is PointPhase.COMPLETED, point.status
        return point

    async def eventually(self, check: Any, what: str, timeout_s: float = LONG) -> None:
        """Ask again until the answer is yes; what other processes do has no signal to wait for."""
        end = time.monotonic() + timeout_s
        while not await check():
            assert time.monotonic() < end, f"it did not come about: {what}\n{await self.picture()}"
            await asyncio.sleep(0.1)

    async def picture(self) -> str:
        """Return what there is, for messages of failed tests."""
        lines = []
        for kind in (RecoveryPoint, VolumeSnapshot, VolumeSnapshotContent, PersistentVolumeClaim, PersistentVolume):
            found = (await self.client.list(kind))[0]
            lines += [f"{kind.__name__} {o.namespace}/{o.name}: {getattr(o, 'status', None)}" for o in found]
        return "\n".join(lines)

    async def of(self, kind: type[K8sObject], namespace: str = "") -> list[str]:
        """Return the names of all objects of a kind."""
        return [obj.name for obj in (await self.client.list(kind, namespace))[0]]

    async def nothing_is_left_of(self, point: RecoveryPoint, *, snapshot: bool) -> None:
        """Assert that of a point nothing is left but, perhaps, its snapshot."""
        name = transient_name(point.uid)
        for kind in (Job, Secret, PersistentVolumeClaim, VolumeSnapshot):
            assert name not in await self.of(kind, SYSTEM), await self.picture()
        assert name not in await self.of(VolumeSnapshotContent)
        for volume in (await self.client.list(PersistentVolume))[0]:
            assert volume.spec.claim_ref is None or volume.spec.claim_ref.name != name
        kept = original_name(point.uid) in await self.of(VolumeSnapshot, point.namespace)
        assert kept == snapshot, await self.picture()
        contents = (await self.client.list(VolumeSnapshotContent, labels=f"{LABEL_POINT_UID}={point.uid}"))[0]
        assert [c.spec.deletion_policy for c in contents] == (["Retain"] if snapshot else [])

    async def restored(self, point: RecoveryPoint) -> bytes:
        """Return what the point holds, read back with nothing but the repository and the key."""
        folder = self.directory / "restored"
        key, out = folder / "key", folder / point.uid
        await asyncio.to_thread(folder.mkdir, exist_ok=True)
        await asyncio.to_thread(key.write_text, self.key)
        command = ["restore", "--repository", f"file://{self.directory}/repository", "--key-file", str(key)]
        command += ["--point", point.uid, "--to", str(out)]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "orchestrator", *command,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await process.communicate()
        assert process.returncode == 0, said.decode()
        return await asyncio.to_thread(out.read_bytes)

    @contextlib.asynccontextmanager
    async def context(self) -> AsyncIterator[Context]:
        """Give a context with live caches and nobody at work."""
        async with self.controller(alone=True):
            yield self.contexts[-1]

    @contextlib.asynccontextmanager
    async def controller(
        self,
        settings: Settings | None = None,
        sweeper: Callable[[Context], Sweeper] | None = None,
        hook: Callable[[Context], None] = lambda _: None,
        *,
        alone: bool = False,
    ) -> AsyncIterator[asyncio.Task[None]]:
        """Run the point controller, the slots and perhaps a sweeper; at the end it is cut off where it stands.

        `hook` sees the context before anything runs. Yields the task that all of it is in.
        """
        started = asyncio.Event()

        def build(context: Context) -> House:
            hook(context)
            self.contexts.append(context)
            if alone:
                return House()
            parts = [Part("slots", Slots(context).run)]
            if sweeper is not None:
                parts.append(Part("sweeper", sweeper(context).run))
            return House(controllers=[RecoveryPointController(context)], parts=parts)

        running = asyncio.create_task(
            app.run(
                settings or self.settings,
                kubeconfig=str(self.sandbox.kubeconfig),
                build=build,
                started=lambda _: started.set(),
            )
        )
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait({running, waiting}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        try:
            if running.done():
                await running
            yield running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@contextlib.asynccontextmanager
async def bed(directory: Path, **settings: Any) -> AsyncIterator[Bed]:
    """Make a cluster in `directory`, with Tidemark's definitions, one tenant and one repository."""
    chosen = Settings(
        namespace=SYSTEM,
        mover_image="sandbox",
        mover_command=(sys.executable, "-m", "orchestrator"),
        metrics_address="",
        leader_elect=False,
        **settings,
    )
    async with (
        Sandbox(directory / "cluster") as sandbox,
        await Client.connect(kubeconfig=str(sandbox.kubeconfig)) as client,
    ):
        await install.definitions(client)
        await install.controller_home(client, chosen)
        await _allow(client, chosen)
        await client.apply(Namespace, {"metadata": {"name": TENANT}})
        (directory / "repository").mkdir(exist_ok=True)
        key = await install.repository(client, chosen, REPOSITORY, f"file://{directory}/repository")
        yield Bed(directory, sandbox, client, chosen, key)


class _Role(K8sObject, frozen=True, kw_only=True):
    RESOURCE: ClassVar[Resource] = Resource(
        "rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", namespaced=False
    )


class _Binding(K8sObject, frozen=True, kw_only=True):
    RESOURCE: ClassVar[Resource] = Resource(
        "rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", namespaced=False
    )


async def _allow(client: Client, settings: Settings) -> None:
    """Let the account whose tokens the CBT service gets read snapshots, as the chart does."""
    rule = {"apiGroups": ["snapshot.storage.k8s.io"], "resources": ["volumesnapshots"], "verbs": ["get"]}
    await client.apply(_Role, {"metadata": {"name": "tidemark-cbt"}, "rules": [rule]})
    account = {"kind": "ServiceAccount", "name": settings.service_account, "namespace": settings.namespace}
    group = _Role.RESOURCE.group
    body = {
        "metadata": {"name": "tidemark-cbt"},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "tidemark-cbt"},
        "subjects": [account],
    }
    await client.apply(_Binding, body)
