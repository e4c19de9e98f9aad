"""Play the snapshot-controller: bind snapshots and contents, both ways, and let them go in order.

The rules are cbt-contract 4.1 to 4.3: a class is defaulted, a content `snapcontent-<uid>` made, its status copied up; a
snapshot that a pending claim is made from can't go; with policy Delete the snapshot waits for its content, with
Retain the content stays and keeps the dead uid. It never talks to the storage: that is the snapshotter's.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import ClassVar

from orchestrator.errors import Retryable
from orchestrator.sandbox.api import AlreadyExists, ApiError, NotFound
from orchestrator.sandbox.events import Recorder
from orchestrator.sandbox.kinds import (
    PERSISTENT_VOLUME,
    PERSISTENT_VOLUME_CLAIM,
    SNAPSHOT,
    SNAPSHOT_CLASS,
    SNAPSHOT_CONTENT,
)
from orchestrator.sandbox.objects import (
    Key,
    Manifest,
    annotations_of,
    deleting,
    finalizers,
    key,
    name,
    namespace,
    spec,
    status,
    timestamp,
    uid,
    without,
)
from orchestrator.sandbox.roles import Part, Role

BOUND_FINALIZER = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection"
SOURCE_FINALIZER = "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection"
CONTENT_FINALIZER = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"
CLAIM_FINALIZER = "snapshot.storage.kubernetes.io/pvc-as-source-protection"
BEING_DELETED = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted"
IS_DEFAULT = "snapshot.storage.kubernetes.io/is-default-class"
DELETION_SECRET_NAME = "snapshot.storage.kubernetes.io/deletion-secret-name"  # noqa: S105 - a key, not a secret
SECRET_NAME = "csi.storage.k8s.io/snapshotter-secret-name"  # noqa: S105 - a key, not a secret


class SnapshotFailed(Retryable):
    """The snapshot can't be made or bound now; its status says why."""

    reason: ClassVar[str] = "SnapshotContentCreationFailed"


class SnapshotController(Role):
    """Keys with a namespace are snapshots, keys without are contents."""

    name = "snapshot-controller"

    def __init__(self, part: Part) -> None:
        super().__init__()
        self._api = part.api
        self._snapshots = part.mirror(SNAPSHOT)
        self._contents = part.mirror(SNAPSHOT_CONTENT)
        self._classes = part.mirror(SNAPSHOT_CLASS)
        self._claims = part.mirror(PERSISTENT_VOLUME_CLAIM)
        self._volumes = part.mirror(PERSISTENT_VOLUME)
        self._events = Recorder(part.api, "snapshot-controller")
        self._snapshots.listen(self._snapshot_changed)
        self._contents.listen(self._content_changed)
        self._claims.listen(self._claim_changed)

    def _snapshot_changed(self, snapshot: Manifest, _gone: bool) -> None:
        self.want(key(snapshot))
        content = self._content_of(snapshot)
        if content is not None:
            self.want(key(content))

    def _content_changed(self, content: Manifest, _gone: bool) -> None:
        self.want(key(content))
        ref = spec(content).get("volumeSnapshotRef") or {}
        if ref.get("name"):
            self.want((ref.get("namespace", ""), ref["name"]))

    def _claim_changed(self, claim: Manifest, _gone: bool) -> None:
        source = spec(claim).get("dataSource") or {}
        for snapshot in self._snapshots:
            if namespace(snapshot) == namespace(claim) and (
                name(snapshot) == source.get("name") or _source_claim(snapshot) == name(claim)
            ):
                self.want(key(snapshot))

    async def reconcile(self, at: Key) -> float | None:
        """Sync one snapshot or one content."""
        if not at[0]:
            content = self._contents.at(at)
            if content is not None:
                await self._content(content)
            return None
        snapshot = self._snapshots.at(at)
        if snapshot is None:
            return None
        if deleting(snapshot):
            return await self._let_go(snapshot)
        try:
            await self._snapshot(snapshot)
        except SnapshotFailed as err:
            await self._report(self._snapshots.at(at) or snapshot, str(err))
            raise
        return None

    # Snapshots

    async def _snapshot(self, snapshot: Manifest) -> None:
        snapshot = await self._with_finalizers(snapshot)
        content_name = (spec(snapshot).get("source") or {}).get("volumeSnapshotContentName")
        if content_name:
            content = await self._bind_static(snapshot, content_name)
        else:
            content = self._contents.get("", _content_name(snapshot)) or await self._create_content(snapshot)
        await self._copy_status(self._snapshots.at(key(snapshot)) or snapshot, content)
        await self._free_claim(snapshot)

    async def _with_finalizers(self, snapshot: Manifest) -> Manifest:
        held = finalizers(snapshot)
        content = self._content_of(snapshot)
        wanted = list(held)
        if SOURCE_FINALIZER not in held:
            wanted.append(SOURCE_FINALIZER)
        if BOUND_FINALIZER not in held and content is not None and spec(content).get("deletionPolicy") == "Delete":
            wanted.append(BOUND_FINALIZER)
        if wanted == held:
            return snapshot
        return self._snapshots.saw(await self._api.patch(SNAPSHOT, snapshot, {"metadata": {"finalizers": wanted}}))

    async def _create_content(self, snapshot: Manifest) -> Manifest:
        claim_name = _source_claim(snapshot)
        claim, volume = await self._source(snapshot, claim_name)
        csi = spec(volume).get("csi") or {}
        if not csi:
            raise SnapshotFailed(f"cannot find CSI PersistentVolumeSource for volume {name(volume)}")
        found = await self._class_of(snapshot, csi["driver"])
        if found.get("driver") != csi["driver"]:
            raise SnapshotFailed(
                f"the driver {found.get('driver')} of class {name(found)} is not the volume's driver {csi['driver']}"
            )
        if CLAIM_FINALIZER not in finalizers(claim):
            wanted = [*finalizers(claim), CLAIM_FINALIZER]
            self._claims.saw(
                await self._api.patch(PERSISTENT_VOLUME_CLAIM, claim, {"metadata": {"finalizers": wanted}})
            )
        content: Manifest = {
            "metadata": {"name": _content_name(snapshot), "finalizers": [CONTENT_FINALIZER]},
            "spec": {
                "volumeSnapshotRef": {
                    "apiVersion": SNAPSHOT.api_version,
                    "kind": "VolumeSnapshot",
                    "namespace": namespace(snapshot),
                    "name": name(snapshot),
                    "uid": uid(snapshot),
                },
                "source": {"volumeHandle": csi["volumeHandle"]},
                "volumeSnapshotClassName": name(found),
                "deletionPolicy": found["deletionPolicy"],
                "driver": csi["driver"],
                "sourceVolumeMode": spec(volume).get("volumeMode", "Filesystem"),
            },
        }
        try:
            made = self._contents.saw(await self._api.create(SNAPSHOT_CONTENT, content))
        except AlreadyExists:
            return await self._api.get(SNAPSHOT_CONTENT, _content_name(snapshot))
        message = f"Waiting for a snapshot {namespace(snapshot)}/{name(snapshot)} to be created by the CSI driver."
        await self._events.say(SNAPSHOT, snapshot, "Normal", "CreatingSnapshot", message)
        return made

    async def _source(self, snapshot: Manifest, claim_name: str) -> tuple[Manifest, Manifest]:
        claim = self._claims.get(namespace(snapshot), claim_name)
        if claim is None:
            raise SnapshotFailed(
                "Failed to create snapshot content with error snapshot controller failed to update "
                f"{name(snapshot)} on API server: cannot get claim from snapshot: "
                f'persistentvolumeclaims "{claim_name}" not found'
            )
        if deleting(claim) and CLAIM_FINALIZER not in finalizers(claim):
            raise SnapshotFailed(f"the claim {claim_name} is being deleted")
        volume = self._volumes.get("", spec(claim).get("volumeName") or "")
        if status(claim).get("phase") != "Bound" or volume is None:
            raise SnapshotFailed(f"the PVC {claim_name} is not yet bound to a PV, will not attempt to take a snapshot")
        return claim, volume

    async def _class_of(self, snapshot: Manifest, driver: str) -> Manifest:
        """Return the snapshot's class; without one, the driver's only default, written into the snapshot."""
        wanted = spec(snapshot).get("volumeSnapshotClassName")
        if wanted:
            found = self._classes.get("", wanted)
            if found is None:
                raise SnapshotFailed(
                    f"Failed to get snapshot class with error failed to retrieve snapshot class {wanted} from the "
                    f'informer: volumesnapshotclass.snapshot.storage.k8s.io "{wanted}" not found'
                )
            return found
        defaults = [
            c for c in self._classes if c.get("driver") == driver and annotations_of(c).get(IS_DEFAULT) == "true"
        ]
        if len(defaults) != 1:
            raise SnapshotFailed(f"{len(defaults) or 'cannot find'} default snapshot class for {driver}")
        live = self._snapshots.at(key(snapshot)) or snapshot
        change = {"spec": {"volumeSnapshotClassName": name(defaults[0])}}
        self._snapshots.saw(await self._api.patch(SNAPSHOT, live, change))
        return defaults[0]

    async def _bind_static(self, snapshot: Manifest, content_name: str) -> Manifest:
        content = self._contents.get("", content_name)
        if content is None:
            raise SnapshotFailed(f"VolumeSnapshotContent {content_name} is missing")
        ref = spec(content).get("volumeSnapshotRef") or {}
        if (ref.get("namespace"), ref.get("name")) != key(snapshot) or ref.get("uid") not in (None, "", uid(snapshot)):
            raise SnapshotFailed(f"VolumeSnapshotContent {content_name} is bound to a different snapshot")
        if not ref.get("uid"):
            change: Manifest = {"spec": {"volumeSnapshotRef": {"uid": uid(snapshot)}}}
            if spec(snapshot).get("volumeSnapshotClassName") and not spec(content).get("volumeSnapshotClassName"):
                change["spec"]["volumeSnapshotClassName"] = spec(snapshot)["volumeSnapshotClassName"]
            content = self._contents.saw(await self._api.patch(SNAPSHOT_CONTENT, content, change))
        return content

    async def _copy_status(self, snapshot: Manifest, content: Manifest) -> None:
        below = status(content)
        ref = spec(content).get("volumeSnapshotRef") or {}
        if ref.get("uid") != uid(snapshot):
            raise SnapshotFailed(f"VolumeSnapshotContent {name(content)} is bound to a different snapshot")
        wanted: Manifest = {
            "boundVolumeSnapshotContentName": name(content),
            "readyToUse": bool(below.get("readyToUse")),
        }
        if below.get("creationTime"):
            wanted["creationTime"] = timestamp(datetime.fromtimestamp(below["creationTime"] / 1e9, UTC))
        if below.get("restoreSize") is not None:
            wanted["restoreSize"] = _quantity(below["restoreSize"])
        wanted["error"] = below.get("error")
        held = status(snapshot)
        if any(held.get(field) != value for field, value in wanted.items()):
            became_ready = wanted["readyToUse"] and not held.get("readyToUse")
            snapshot = self._snapshots.saw(await self._api.patch_status(SNAPSHOT, snapshot, wanted))
            if became_ready:
                message = f"The CSI snapshot {namespace(snapshot)}/{name(snapshot)} is ready to use."
                await self._events.say(SNAPSHOT, snapshot, "Normal", "SnapshotReady", message)
        live = self._snapshots.at(key(snapshot)) or snapshot
        if spec(content).get("deletionPolicy") == "Delete":
            await self._with_finalizers(live)

    async def _report(self, snapshot: Manifest, message: str) -> None:
        held = status(snapshot).get("error") or {}
        if held.get("message") != message:
            wanted = {"error": {"message": message, "time": timestamp()}, "readyToUse": False}
            self._snapshots.saw(await self._api.patch_status(SNAPSHOT, snapshot, wanted))
        await self._events.say(SNAPSHOT, snapshot, "Warning", SnapshotFailed.reason, message)

    # Letting go

    async def _let_go(self, snapshot: Manifest) -> float | None:
        if self._is_source_of_pending(snapshot):
            message = "Snapshot is being used to restore a PVC"
            await self._events.say(SNAPSHOT, snapshot, "Warning", "SnapshotDeletePending", message)
            return 1.0
        content = self._content_of(snapshot)
        keep_bound = False
        if content is not None:
            if BEING_DELETED not in annotations_of(content):
                marks = {"metadata": {"annotations": {BEING_DELETED: "yes"}}}
                content = self._contents.saw(await self._api.patch(SNAPSHOT_CONTENT, content, marks))
            if spec(content).get("deletionPolicy") == "Delete":
                keep_bound = True
                if not deleting(content):
                    await self._api.delete(SNAPSHOT_CONTENT, content)
        drop = [SOURCE_FINALIZER] if keep_bound else [SOURCE_FINALIZER, BOUND_FINALIZER]
        wanted = without(finalizers(snapshot), *drop)
        await self._free_claim(snapshot)
        if wanted != finalizers(snapshot):
            # The answer is the object as it was before it vanished: taking it in could bring it back to life here.
            await self._api.patch(SNAPSHOT, snapshot, {"metadata": {"finalizers": wanted}})
        return None

    def _is_source_of_pending(self, snapshot: Manifest) -> bool:
        return any(
            namespace(claim) == namespace(snapshot)
            and (spec(claim).get("dataSource") or {}).get("kind") == "VolumeSnapshot"
            and (spec(claim).get("dataSource") or {}).get("name") == name(snapshot)
            and status(claim).get("phase", "Pending") == "Pending"
            for claim in self._claims
        )

    async def _free_claim(self, snapshot: Manifest) -> None:
        """Take the finalizer off a claim that no snapshot in the making needs any more."""
        claim = self._claims.get(namespace(snapshot), _source_claim(snapshot))
        if claim is None or CLAIM_FINALIZER not in finalizers(claim):
            return
        for other in self._snapshots:
            if namespace(other) == namespace(claim) and _source_claim(other) == name(claim) and not deleting(other):
                ready = status(other).get("readyToUse")
                if not ready and not status(other).get("error"):
                    return
        wanted = without(finalizers(claim), CLAIM_FINALIZER)
        try:
            self._claims.saw(
                await self._api.patch(PERSISTENT_VOLUME_CLAIM, claim, {"metadata": {"finalizers": wanted}})
            )
        except NotFound:
            return

    # Contents

    async def _content(self, content: Manifest) -> None:
        ref = spec(content).get("volumeSnapshotRef") or {}
        if not deleting(content) and CONTENT_FINALIZER not in finalizers(content):
            wanted = [*finalizers(content), CONTENT_FINALIZER]
            change = {"metadata": {"finalizers": wanted}}
            content = self._contents.saw(await self._api.patch(SNAPSHOT_CONTENT, content, change))
        if not ref.get("uid"):
            return
        if BEING_DELETED not in annotations_of(content) and not await self._alive(ref):
            marks = {"metadata": {"annotations": {BEING_DELETED: "yes"}}}
            self._contents.saw(await self._api.patch(SNAPSHOT_CONTENT, content, marks))

    async def _alive(self, ref: Manifest) -> bool:
        snapshot = self._snapshots.get(ref.get("namespace", ""), ref["name"])
        if snapshot is not None and uid(snapshot) == ref["uid"]:
            return True
        try:
            live = await self._api.get(SNAPSHOT, ref["name"], ref.get("namespace", ""))
        except NotFound:
            return False
        except ApiError:
            return True
        return uid(live) == str(ref["uid"])

    def _content_of(self, snapshot: Manifest) -> Manifest | None:
        """Return the content that is bound to the snapshot, or was made for it."""
        source = spec(snapshot).get("source") or {}
        content = self._contents.get("", source.get("volumeSnapshotContentName") or _content_name(snapshot))
        if content is None:
            return None
        ref = spec(content).get("volumeSnapshotRef") or {}
        return content if ref.get("uid") == uid(snapshot) else None


def _content_name(snapshot: Manifest) -> str:
    return f"snapcontent-{uid(snapshot)}"


def _source_claim(snapshot: Manifest) -> str:
    return str((spec(snapshot).get("source") or {}).get("persistentVolumeClaimName") or "")


def _quantity(size: int) -> str:
    for unit, factor in (("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)
