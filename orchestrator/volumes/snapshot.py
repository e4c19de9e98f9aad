"""The snapshot of a tenant's volume: taken in the tenant's namespace, owned by us from the moment it is bound.

    ensure    VolumeSnapshot `tidemark-<point uid>`
    claim     its content: Retain, and our label: from now on only we destroy it
    destroy   that content back to Delete, then the VolumeSnapshot goes

What must never happen here: trust in an object that a tenant can write. A content counts only when it points back at
our VolumeSnapshot (uid) and is of the very volume that was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from orchestrator.api.foreign.snapshot import (
    ANNOTATION_BEING_DELETED,
    VolumeSnapshot,
    VolumeSnapshotContent,
)
from orchestrator.api.tidemark.fields import LABEL_MANAGED_BY, LABEL_POINT_UID, MANAGED_BY
from orchestrator.errors import Terminal
from orchestrator.kube.client import Client
from orchestrator.kube.errors import NotFound
from orchestrator.volumes.ownership import create_ours, written_by_us

SKEW = timedelta(seconds=60)
"""How far a snapshot's own time may lie outside what we saw (control plane rule 6)."""


class SnapshotMisbound(Terminal):
    """The content that a snapshot names is not its own, or not of the volume that was asked for."""

    reason = "SnapshotMisbound"
    remedy = "Somebody else wrote these objects; look at who may create VolumeSnapshots and contents."

    def __init__(self, snapshot: str, content: str, what: str) -> None:
        super().__init__(f"VolumeSnapshot {snapshot} is bound to content {content}, but {what}")


@dataclass(frozen=True)
class Wanted:
    """A snapshot to be taken."""

    namespace: str
    name: str
    pvc_name: str
    class_name: str
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)


def original_name(point_uid: str) -> str:
    """Return the name of a point's snapshot; another one than re-homed objects have, or they would collide at home."""
    return f"tidemark-{point_uid}"


def build(wanted: Wanted) -> dict[str, Any]:
    """Return the VolumeSnapshot's manifest; the class is always named (a default may change, trap T12)."""
    return {
        "metadata": {
            "name": wanted.name,
            "namespace": wanted.namespace,
            "labels": {**wanted.labels, LABEL_MANAGED_BY: MANAGED_BY},
            "annotations": wanted.annotations,
        },
        "spec": {
            "volumeSnapshotClassName": wanted.class_name,
            "source": {"persistentVolumeClaimName": wanted.pvc_name},
        },
    }


async def ensure(client: Client, wanted: Wanted) -> VolumeSnapshot:
    """Take the snapshot; idempotent. Raises NameTaken, StillGoing."""

    def fits(there: VolumeSnapshot) -> str:
        spec = there.spec
        found = (spec.source.persistent_volume_claim_name, spec.volume_snapshot_class_name)
        return "" if found == (wanted.pvc_name, wanted.class_name) else "it is of something else"

    return await create_ours(client, VolumeSnapshot, build(wanted), fits)


def check_binding(snapshot: VolumeSnapshot, content: VolumeSnapshotContent, driver: str, volume_handle: str) -> None:
    """Raise SnapshotMisbound unless the two are bound both ways and are of that volume (contract 4.2)."""
    ref = content.spec.volume_snapshot_ref
    if (ref.uid, ref.namespace, ref.name) != (snapshot.uid, snapshot.namespace, snapshot.name):
        raise SnapshotMisbound(snapshot.name, content.name, "that content points to another VolumeSnapshot")
    if content.spec.driver != driver or content.spec.source.volume_handle != volume_handle:
        raise SnapshotMisbound(snapshot.name, content.name, "that content is of another volume")


def claimed(content: VolumeSnapshotContent, point_uid: str) -> bool:
    """Return whether the content is ours to destroy and nobody else's."""
    return content.spec.deletion_policy == "Retain" and content.metadata.labels.get(LABEL_POINT_UID) == point_uid


async def claim(
    client: Client, content: VolumeSnapshotContent, point_uid: str, annotations: Mapping[str, str]
) -> VolumeSnapshotContent:
    """Set the content to Retain and label it; idempotent."""
    if claimed(content, point_uid):
        return content
    body = {
        "metadata": {
            "labels": {LABEL_POINT_UID: point_uid, LABEL_MANAGED_BY: MANAGED_BY},
            "annotations": dict(annotations),
            "resourceVersion": content.metadata.resource_version,
        },
        "spec": {"deletionPolicy": "Retain"},
    }
    return await client.merge_patch(VolumeSnapshotContent, content.name, "", body)


@dataclass(frozen=True)
class CutTime:
    """The instant that a snapshot stands for."""

    time: datetime
    time_ns: int
    skewed: bool
    """The driver's own time was out of bounds, and the VolumeSnapshot's creation counts instead."""


def cut_time(creation_ns: int | None, snapshot_created: datetime, first_seen: datetime) -> CutTime | None:
    """Return a snapshot's time from its original content, None while the driver has not said it yet.

    The API server's clock made `snapshot_created`; ours made `first_seen`. Source: control plane rule 6.
    """
    if creation_ns is None:
        return None
    seconds, nanos = divmod(creation_ns, 1_000_000_000)
    try:
        told = datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=nanos // 1000)
    except (OverflowError, ValueError, OSError):
        told = datetime.min.replace(tzinfo=UTC)
    if snapshot_created - SKEW <= told <= first_seen + SKEW:
        return CutTime(told, creation_ns, skewed=False)
    return CutTime(snapshot_created, int(snapshot_created.timestamp()) * 1_000_000_000, skewed=True)


async def destroy(client: Client, namespace: str, name: str, content_name: str, point_uid: str) -> bool:
    """Destroy the physical snapshot with both its objects; True when both are gone. Idempotent.

    Objects that don't carry the point's label, a content that points elsewhere, and a VolumeSnapshot that somebody else
    made with our labels are left alone (and count as gone).
    """
    snapshot = await client.find(VolumeSnapshot, name, namespace)
    if snapshot is not None and snapshot.metadata.labels.get(LABEL_POINT_UID) != point_uid:
        snapshot = None
    content = await _content_of(client, snapshot, content_name, point_uid)
    if snapshot is not None and not await _is_ours(client, snapshot, content, point_uid):
        snapshot = None
        content = await _content_of(client, None, content_name, point_uid)
    if content is not None and content.spec.deletion_policy != "Delete" and not content.deleting:
        content = await _doom(client, content, point_uid)
    if snapshot is not None:
        if not snapshot.deleting:
            await client.delete(VolumeSnapshot, name, namespace, uid=snapshot.uid)
        return False
    if content is None:
        return True
    if not content.deleting:
        # Without the annotation the driver's sidecar would not delete what no VolumeSnapshot asked it to delete.
        await _annotate_deleted(client, content)
        await client.delete(VolumeSnapshotContent, content.name, uid=content.uid)
    return False


async def _is_ours(
    client: Client, snapshot: VolumeSnapshot, content: VolumeSnapshotContent | None, point_uid: str
) -> bool:
    """Return whether a VolumeSnapshot with our label is ours: its content says so (no tenant writes it), or we did."""
    if content is not None and content.metadata.labels.get(LABEL_POINT_UID) == point_uid:
        return content.spec.volume_snapshot_ref.uid == snapshot.uid
    return await written_by_us(client, VolumeSnapshot, snapshot.name, snapshot.namespace)


async def _content_of(
    client: Client, snapshot: VolumeSnapshot | None, content_name: str, point_uid: str
) -> VolumeSnapshotContent | None:
    """Return the snapshot's content: as recorded, as bound, or under the name that the snapshot controller gives."""
    names = [content_name]
    if snapshot is not None:
        names += [(snapshot.status and snapshot.status.bound_volume_snapshot_content_name) or ""]
        names += [f"snapcontent-{snapshot.uid}"]
    for name in dict.fromkeys(filter(None, names)):
        content = await client.find(VolumeSnapshotContent, name)
        if content is None:
            continue
        if content.metadata.labels.get(LABEL_POINT_UID) == point_uid:
            return content
        if snapshot is not None and content.spec.volume_snapshot_ref.uid == snapshot.uid:
            return content
    return None


async def _doom(client: Client, content: VolumeSnapshotContent, point_uid: str) -> VolumeSnapshotContent | None:
    """Let the content's deletion take the physical snapshot with it, findable by label until then."""
    body = {
        "metadata": {
            "labels": {LABEL_POINT_UID: point_uid, LABEL_MANAGED_BY: MANAGED_BY},
            "resourceVersion": content.metadata.resource_version,
        },
        "spec": {"deletionPolicy": "Delete"},
    }
    try:
        return await client.merge_patch(VolumeSnapshotContent, content.name, "", body)
    except NotFound:
        return None


async def _annotate_deleted(client: Client, content: VolumeSnapshotContent) -> None:
    if content.metadata.annotations.get(ANNOTATION_BEING_DELETED):
        return
    body = {"metadata": {"annotations": {ANNOTATION_BEING_DELETED: "yes"}}}
    try:
        await client.merge_patch(VolumeSnapshotContent, content.name, "", body)
    except NotFound:
        return
