"""Play the external provisioner and resizer of the driver: make, grow and destroy volumes.

Refusals are the provisioner's own: each becomes a ProvisioningFailed event on the claim and is tried again
(cbt-contract 4.4: mode conversion, size, driver, readiness). A volume is destroyed only through a Released
PersistentVolume whose policy is Delete.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

from orchestrator.api.quantity import parse_quantity
from orchestrator.errors import Retryable
from orchestrator.sandbox.api import AlreadyExists, NotFound
from orchestrator.sandbox.events import Recorder
from orchestrator.sandbox.faults import Faults
from orchestrator.sandbox.kinds import (
    DRIVER,
    NODE,
    PERSISTENT_VOLUME,
    PERSISTENT_VOLUME_CLAIM,
    SNAPSHOT,
    SNAPSHOT_CONTENT,
    STORAGE_CLASS,
    VOLUME_ATTACHMENT,
)
from orchestrator.sandbox.objects import (
    Key,
    Manifest,
    annotations_of,
    deleting,
    finalizers,
    key,
    labels,
    meta,
    name,
    namespace,
    spec,
    status,
    uid,
    without,
)
from orchestrator.sandbox.roles import Part, Role
from orchestrator.sandbox.storage.images import ImageStore
from orchestrator.sandbox.storage.pv_controller import PROVISIONED_BY, PROVISIONER, SELECTED_NODE

VOLUME_FINALIZER = "external-provisioner.volume.kubernetes.io/finalizer"
IN_USE_FINALIZER = "provisioner.storage.kubernetes.io/volumesnapshot-as-source-protection"
ALLOW_MODE_CHANGE = "snapshot.storage.kubernetes.io/allow-volume-mode-change"
ZONE = "topology.kubernetes.io/zone"
_SECTOR = 512
_GO_TRUE = {"1", "t", "T", "true", "TRUE", "True"}


class ProvisioningFailed(Retryable):
    """The volume can't be made now; the claim's event says why."""

    reason: ClassVar[str] = "ProvisioningFailed"


class Provisioner(Role):
    """Keys with a namespace are claims to provision, keys without are volumes to destroy."""

    name = "provisioner"

    def __init__(self, part: Part, images: ImageStore, faults: Faults) -> None:
        super().__init__()
        self._api = part.api
        self._images = images
        self._faults = faults
        self._claims = part.mirror(PERSISTENT_VOLUME_CLAIM)
        self._volumes = part.mirror(PERSISTENT_VOLUME)
        self._classes = part.mirror(STORAGE_CLASS)
        self._attachments = part.mirror(VOLUME_ATTACHMENT)
        self._events = Recorder(part.api, f"{DRIVER}_sandbox")
        self.holds = Holds(part)
        self._claims.listen(lambda obj, _gone: self.want(key(obj)))
        self._volumes.listen(lambda obj, _gone: self.want(key(obj)))
        self._attachments.listen(
            lambda obj, _gone: self.want(("", (spec(obj).get("source") or {}).get("persistentVolumeName") or "-"))
        )

    async def reconcile(self, at: Key) -> float | None:
        """Provision a claim, or destroy a released volume."""
        if at[0]:
            claim = self._claims.at(at)
            return None if claim is None else await self._claim(claim)
        volume = self._volumes.at(at)
        if volume is not None and (spec(volume).get("csi") or {}).get("driver") == DRIVER:
            await self._volume(volume)
        return None

    # Making

    async def _claim(self, claim: Manifest) -> float | None:
        storage_class = self._classes.get("", spec(claim).get("storageClassName") or "")
        if (
            deleting(claim)
            or spec(claim).get("volumeName")
            or annotations_of(claim).get(PROVISIONER) != DRIVER
            or storage_class is None
            or storage_class.get("provisioner") != DRIVER
        ):
            return None
        wait_for_node = storage_class.get("volumeBindingMode") == "WaitForFirstConsumer"
        if (wait_for_node and SELECTED_NODE not in annotations_of(claim)) or self._volumes.get("", _volume_name(claim)):
            return None
        if _foreign_source(claim):
            await self._events.say(
                PERSISTENT_VOLUME_CLAIM,
                claim,
                "Normal",
                "Provisioning",
                "Assuming an external populator will provision the volume",
            )
            return None
        if _source(claim) and self._faults.on("clone-pending"):
            return 0.5
        await self._events.say(
            PERSISTENT_VOLUME_CLAIM,
            claim,
            "Normal",
            "Provisioning",
            f'External provisioner is provisioning volume for claim "{namespace(claim)}/{name(claim)}"',
        )
        try:
            volume = await self._provision(claim, storage_class)
        except ProvisioningFailed as err:
            said = f'failed to provision volume with StorageClass "{name(storage_class)}": {err}'
            await self._events.say(PERSISTENT_VOLUME_CLAIM, claim, "Warning", "ProvisioningFailed", said)
            raise
        said = f"Successfully provisioned volume {name(volume)}"
        await self._events.say(PERSISTENT_VOLUME_CLAIM, claim, "Normal", "ProvisioningSucceeded", said)
        return None

    async def _provision(self, claim: Manifest, storage_class: Manifest) -> Manifest:
        size = -(-parse_quantity(spec(claim)["resources"]["requests"]["storage"]) // _SECTOR) * _SECTOR
        source = _source(claim)
        if not source:
            path = await asyncio.to_thread(self._images.create_volume, _handle(claim), size)
        elif source["kind"] == "VolumeSnapshot":
            path = await self._from_snapshot(claim, source["name"], size)
        else:
            path = await self._from_volume(claim, source["name"], size)
        volume = await self._describe(claim, storage_class, path, size)
        try:
            return self._volumes.saw(await self._api.create(PERSISTENT_VOLUME, volume))
        except AlreadyExists:
            return volume

    async def _from_snapshot(self, claim: Manifest, snapshot_name: str, size: int) -> Path:
        snapshot, content = await self._usable_snapshot(claim, snapshot_name)
        minimum = parse_quantity(status(snapshot).get("restoreSize") or 0)
        if size < minimum:
            raise ProvisioningFailed(
                f"requested volume size {size} is less than the size {minimum} for the source snapshot {snapshot_name}"
            )
        _check_mode(claim, content)
        if self._faults.on("clone-error"):
            raise ProvisioningFailed("rpc error: code = Internal desc = the clone failed (fault clone-error)")
        async with self.holds.hold(snapshot):
            await asyncio.sleep(self._faults.number("clone-slow"))
            origin = self._images.snapshot_path(status(content)["snapshotHandle"])
            return await self._copy(claim, size, origin)

    async def _usable_snapshot(self, claim: Manifest, snapshot_name: str) -> tuple[Manifest, Manifest]:
        try:
            snapshot = await self._api.get(SNAPSHOT, snapshot_name, namespace(claim))
            if deleting(snapshot):
                raise ProvisioningFailed(f"snapshot {snapshot_name} is currently being deleted")
            bound = status(snapshot).get("boundVolumeSnapshotContentName")
            if not bound:
                raise ProvisioningFailed(f"snapshot {snapshot_name} is not bound")
            content = await self._api.get(SNAPSHOT_CONTENT, bound)
        except NotFound as err:
            raise ProvisioningFailed(f"error getting snapshot {snapshot_name} from api server: {err}") from err
        ref = spec(content).get("volumeSnapshotRef") or {}
        if (ref.get("uid"), ref.get("name"), ref.get("namespace")) != (uid(snapshot), *reversed(key(snapshot))):
            raise ProvisioningFailed(f"snapshotContent {bound} is bound to a different snapshot than {snapshot_name}")
        if not status(snapshot).get("readyToUse"):
            raise ProvisioningFailed(f"snapshot {snapshot_name} is not Ready")
        if not status(content).get("snapshotHandle"):
            raise ProvisioningFailed(f"snapshot handle of {bound} is not available")
        if spec(content).get("driver") != DRIVER:
            raise ProvisioningFailed(f"the snapshot's driver {spec(content).get('driver')} is not {DRIVER}")
        return snapshot, content

    async def _from_volume(self, claim: Manifest, claim_name: str, size: int) -> Path:
        source = self._claims.get(namespace(claim), claim_name)
        volume = self._volumes.get("", spec(source).get("volumeName") or "") if source else None
        csi = spec(volume).get("csi") or {} if volume else {}
        if volume is None or csi.get("driver") != DRIVER or status(volume).get("phase") != "Bound":
            raise ProvisioningFailed(f"claim in dataSource {claim_name} is not bound to a volume of {DRIVER}")
        if size < parse_quantity(spec(volume)["capacity"]["storage"]):
            raise ProvisioningFailed(f"requested volume size {size} is less than that of the source claim {claim_name}")
        return await self._copy(claim, size, self._images.volume_path(csi["volumeHandle"]))

    async def _copy(self, claim: Manifest, size: int, origin: Path) -> Path:
        try:
            return await asyncio.to_thread(self._images.create_volume, _handle(claim), size, origin)
        except FileNotFoundError as err:
            raise ProvisioningFailed("rpc error: code = NotFound desc = the source does not exist") from err

    async def _describe(self, claim: Manifest, storage_class: Manifest, path: Path, size: int) -> Manifest:
        mode = spec(claim).get("volumeMode", "Filesystem")
        csi: Manifest = {"driver": DRIVER, "volumeHandle": _handle(claim), "volumeAttributes": {"path": str(path)}}
        if mode == "Filesystem":
            csi["fsType"] = (storage_class.get("parameters") or {}).get("csi.storage.k8s.io/fstype", "ext4")
        described: Manifest = {
            "metadata": {
                "name": _volume_name(claim),
                "annotations": {PROVISIONED_BY: DRIVER},
                "finalizers": [VOLUME_FINALIZER, "kubernetes.io/pv-protection"],
            },
            "spec": {
                "capacity": {"storage": _printed(size)},
                "accessModes": spec(claim).get("accessModes") or ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": storage_class.get("reclaimPolicy") or "Delete",
                "storageClassName": name(storage_class),
                "volumeMode": mode,
                "csi": csi,
                "claimRef": {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "namespace": namespace(claim),
                    "name": name(claim),
                    "uid": uid(claim),
                    "resourceVersion": meta(claim).get("resourceVersion"),
                },
            },
        }
        if storage_class.get("mountOptions"):
            described["spec"]["mountOptions"] = storage_class["mountOptions"]
        zone = await self._zone(claim)
        if zone:
            expression = {"key": ZONE, "operator": "In", "values": [zone]}
            described["spec"]["nodeAffinity"] = {
                "required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
            }
        return described

    async def _zone(self, claim: Manifest) -> str | None:
        """Return the zone of the selected node: a volume that waited for its consumer lives in its zone."""
        node = annotations_of(claim).get(SELECTED_NODE)
        if not node:
            return None
        try:
            return labels(await self._api.get(NODE, node)).get(ZONE)
        except NotFound as err:
            raise ProvisioningFailed(f"node {node} does not exist") from err

    # Destroying

    async def _volume(self, volume: Manifest) -> None:
        ours = VOLUME_FINALIZER in finalizers(volume)
        destroy = spec(volume).get("persistentVolumeReclaimPolicy") == "Delete"
        provisioned = annotations_of(volume).get(PROVISIONED_BY) == DRIVER
        if destroy and provisioned and status(volume).get("phase") == "Released":
            if any(
                (spec(a).get("source") or {}).get("persistentVolumeName") == name(volume) for a in self._attachments
            ):
                return
            await asyncio.to_thread(self._images.delete_volume, spec(volume)["csi"]["volumeHandle"])
            await self._api.delete(PERSISTENT_VOLUME, volume)
            await self._drop_finalizer(volume)
        elif destroy and provisioned and not deleting(volume) and not ours:
            wanted = [*finalizers(volume), VOLUME_FINALIZER]
            self._volumes.saw(await self._api.patch(PERSISTENT_VOLUME, volume, {"metadata": {"finalizers": wanted}}))
        elif ours and (not destroy or (deleting(volume) and status(volume).get("phase") == "Available")):
            await self._drop_finalizer(volume)

    async def _drop_finalizer(self, volume: Manifest) -> None:
        try:
            live = await self._api.get(PERSISTENT_VOLUME, name(volume))
            if uid(live) == uid(volume) and VOLUME_FINALIZER in finalizers(live):
                wanted = without(finalizers(live), VOLUME_FINALIZER)
                await self._api.patch(PERSISTENT_VOLUME, live, {"metadata": {"finalizers": wanted}})
        except NotFound:
            return


class Holds(Role):
    """Hold snapshots by the provisioner's own finalizer while volumes are made from them, and no longer.

    Keys are snapshots. What a killed provisioner left held is let go at the next start.
    """

    name = "holds"

    def __init__(self, part: Part) -> None:
        super().__init__()
        self._api = part.api
        self._snapshots = part.mirror(SNAPSHOT)
        self._users: dict[str, int] = {}
        self._snapshots.listen(lambda obj, _gone: self.want(key(obj)))

    @asynccontextmanager
    async def hold(self, snapshot: Manifest) -> AsyncIterator[None]:
        """Hold a snapshot for the block. Raises NotFound, Conflict."""
        self._users[uid(snapshot)] = self._users.get(uid(snapshot), 0) + 1
        try:
            live = await self._api.get(SNAPSHOT, name(snapshot), namespace(snapshot))
            if IN_USE_FINALIZER not in finalizers(live) and not deleting(live):
                wanted = [*finalizers(live), IN_USE_FINALIZER]
                self._snapshots.saw(await self._api.patch(SNAPSHOT, live, {"metadata": {"finalizers": wanted}}))
            yield
        finally:
            self._users[uid(snapshot)] -= 1
            self.want(key(snapshot))

    async def reconcile(self, at: Key) -> float | None:
        """Let go of a snapshot that no volume is made from now."""
        snapshot = self._snapshots.at(at)
        if snapshot is not None and IN_USE_FINALIZER in finalizers(snapshot) and not self._users.get(uid(snapshot)):
            self._users.pop(uid(snapshot), None)
            wanted = without(finalizers(snapshot), IN_USE_FINALIZER)
            changed = await self._api.patch(SNAPSHOT, snapshot, {"metadata": {"finalizers": wanted}})
            if not deleting(changed):
                self._snapshots.saw(changed)
        return None


class Resizer(Role):
    """Grow a bound claim's volume online when its request was raised."""

    name = "resizer"

    def __init__(self, part: Part, images: ImageStore) -> None:
        super().__init__()
        self._api = part.api
        self._images = images
        self._claims = part.mirror(PERSISTENT_VOLUME_CLAIM)
        self._volumes = part.mirror(PERSISTENT_VOLUME)
        self._events = Recorder(part.api, f"external-resizer {DRIVER}")
        self._claims.listen(lambda obj, _gone: self.want(key(obj)))

    async def reconcile(self, at: Key) -> float | None:
        """Grow the image, then the volume's capacity, then the claim's."""
        claim = self._claims.at(at)
        volume = self._volumes.get("", spec(claim).get("volumeName") or "") if claim else None
        if claim is None or volume is None or status(claim).get("phase") != "Bound":
            return None
        csi = spec(volume).get("csi") or {}
        asked = -(-parse_quantity(spec(claim)["resources"]["requests"]["storage"]) // _SECTOR) * _SECTOR
        have = parse_quantity((status(claim).get("capacity") or {}).get("storage") or 0)
        if csi.get("driver") != DRIVER or asked <= have:
            return None
        if asked > parse_quantity(spec(volume)["capacity"]["storage"]):
            await asyncio.to_thread(self._images.grow_volume, csi["volumeHandle"], asked)
            change = {"spec": {"capacity": {"storage": _printed(asked)}}}
            self._volumes.saw(await self._api.patch(PERSISTENT_VOLUME, volume, change))
        capacity = {"capacity": {"storage": _printed(asked)}}
        self._claims.saw(await self._api.patch_status(PERSISTENT_VOLUME_CLAIM, claim, capacity))
        await self._events.say(
            PERSISTENT_VOLUME_CLAIM, claim, "Normal", "VolumeResizeSuccessful", "Resize volume succeeded"
        )
        return None


def _check_mode(claim: Manifest, content: Manifest) -> None:
    before = spec(content).get("sourceVolumeMode")
    after = spec(claim).get("volumeMode", "Filesystem")
    if before and before != after and annotations_of(content).get(ALLOW_MODE_CHANGE) not in _GO_TRUE:
        raise ProvisioningFailed(
            f"requested volume {namespace(claim)}/{name(claim)} modifies the mode of the source volume but does not "
            f"have permission to do so. {ALLOW_MODE_CHANGE} annotation is not present on snapshotcontent "
            f"{name(content)}"
        )


def _handle(claim: Manifest) -> str:
    return f"vol-{uid(claim)}"


def _volume_name(claim: Manifest) -> str:
    return f"pvc-{uid(claim)}"


def _source(claim: Manifest) -> Manifest | None:
    return spec(claim).get("dataSourceRef") or spec(claim).get("dataSource")


def _foreign_source(claim: Manifest) -> bool:
    source = _source(claim)
    known = {("snapshot.storage.k8s.io", "VolumeSnapshot"), ("", "PersistentVolumeClaim")}
    return bool(source) and ((source or {}).get("apiGroup") or "", (source or {}).get("kind")) not in known


def _printed(size: int) -> str:
    """Return a size as a canonical quantity, so that kubectl shows 1Gi and not 1073741824."""
    for unit, factor in (("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)
