"""Take the snapshot, make it ours, and write down early what is known of it."""

from __future__ import annotations

from typing import Any

from orchestrator.api.foreign.core import StorageClass
from orchestrator.api.foreign.snapshot import VolumeSnapshot, VolumeSnapshotContent
from orchestrator.api.quantity import format_size
from orchestrator.api.tidemark.fields import Bytes, Seconds
from orchestrator.api.tidemark.recovery_point import PointPhase
from orchestrator.controllers.recovery_point.work import Work
from orchestrator.decisions.recovery_point import RecoveryPointSeen, ready
from orchestrator.errors import Terminal
from orchestrator.volumes import snapshot as snapshots

ANNOTATION_SNAPSHOT_ONLY = "tidemark.dev/snapshot-only"
"""On a content whose point has no repository: it is all the data there is."""


class NoCloneClass(Terminal):
    """There is no storage class to make the clone with, from which the volume is read."""

    reason = "NoCloneClass"
    remedy = "Name a StorageClass of the volume's driver in options.cloneClassName."


async def take(work: Work, seen: RecoveryPointSeen, class_name: str) -> None:
    """Make the VolumeSnapshot and note which volume it is of."""
    claim, volume, spec = seen.claim, seen.volume, work.point.spec
    assert claim is not None
    assert volume is not None
    assert volume.spec.csi is not None
    if spec.repository is not None:
        work.repositories.check_allowed(spec.repository, work.point.namespace)
        clone_class(work, claim.spec.storage_class_name, volume.spec.storage_class_name, volume.spec.csi.driver)
    wanted = snapshots.Wanted(
        namespace=work.point.namespace,
        name=work.snapshot_name,
        pvc_name=claim.name,
        class_name=class_name,
        labels=work.owner,
        annotations=work.annotations,
    )
    made = await snapshots.ensure(work.context.client, wanted)
    await work.write(
        phase=PointPhase.SNAPSHOTTING,
        start_time=work.status.start_time or work.context.clock.now(),
        snapshot_name=made.name,
        snapshot_uid=made.uid,
        driver=volume.spec.csi.driver,
        volume_handle=volume.spec.csi.volume_handle,
        volume_mode=claim.spec.volume_mode,
        restore_size=volume.capacity_bytes,
        size=format_size(volume.capacity_bytes),
    )


def clone_class(work: Work, of_claim: str | None, of_volume: str, driver: str) -> str:
    """Return the class of the clone: the policy's, else the claim's own, else NoCloneClass (control plane rule 3)."""
    name = work.point.spec.options.clone_class_name or of_claim or of_volume
    if not name:
        raise NoCloneClass(f"Claim {work.point.spec.pvc_name} has no storage class")
    found = work.context.caches.of(StorageClass).get(name)
    if found is None:
        raise NoCloneClass(f"There is no StorageClass {name!r}")
    if found.provisioner != driver:
        raise NoCloneClass(f"StorageClass {name!r} is of {found.provisioner}, the volume is of {driver}")
    return name


async def claim(work: Work, seen: RecoveryPointSeen) -> None:
    """Set the content to Retain under our label, and write down what it says by now."""
    content, snapshot, status = seen.content, seen.snapshot, work.status
    assert content is not None
    if not status.content_name:
        # A tenant can write a VolumeSnapshot's status as little as we, but names can be guessed: look both ways.
        assert snapshot is not None
        snapshots.check_binding(snapshot, content, status.driver, status.volume_handle)
    annotations = work.annotations
    if work.point.spec.repository is None:
        annotations |= {ANNOTATION_SNAPSHOT_ONLY: "true"}
    content = await snapshots.claim(work.context.client, content, work.point.uid, annotations)
    changes = _facts(work, snapshot, content)
    if status.ready_time is None and ready(seen):
        changes |= _readied(work, snapshot)
    await work.write(content_name=content.name, **changes)


def _facts(work: Work, snapshot: VolumeSnapshot | None, content: VolumeSnapshotContent) -> dict[str, Any]:
    """Return what the content says that the status doesn't have yet; what was stored once stays (trap T42)."""
    status, now, told = work.status, work.context.clock.now(), content.status
    changes: dict[str, Any] = {}
    if told is None:
        return changes
    if told.snapshot_handle and not status.snapshot_handle:
        changes |= {"snapshot_handle": told.snapshot_handle, "base_id": base_id(work, snapshot, told.snapshot_handle)}
    if status.snapshot_time is None:
        created = (snapshot.metadata.creation_timestamp if snapshot is not None else status.start_time) or now
        cut = snapshots.cut_time(told.creation_time, created, now)
        if cut is not None:
            changes |= {"snapshot_time": cut.time, "first_seen": now}
            if cut.skewed:
                message = "The driver's time for the snapshot is out of bounds; the VolumeSnapshot's creation counts."
                changes["conditions"] = work.conditions("ClockSkew", "True", "ClockSkew", message)
                work.event("Warning", "ClockSkew", message)
    if told.restore_size and told.restore_size > status.restore_size:
        changes |= {"restore_size": told.restore_size, "size": format_size(told.restore_size)}
    return changes


def base_id(work: Work, snapshot: VolumeSnapshot | None, handle: str) -> str:
    """Return what the next delta will name as base: the handle, or where the driver's override says (contract 4.5)."""
    source = base_id_source(work)
    if source == "handle" or snapshot is None:
        return handle if source == "handle" else ""
    return snapshot.metadata.annotations.get(source.removeprefix("annotation:"), "")


def base_id_source(work: Work) -> str:
    """Return `handle` or `annotation:<name>`, as set per driver."""
    return work.context.settings.extra.get(f"driver/{work.status.driver}/baseIdSource", "handle")


def _readied(work: Work, snapshot: VolumeSnapshot | None) -> dict[str, Any]:
    changes: dict[str, Any] = {"ready_time": work.context.clock.now(), "snapshot_kept": True}
    handle = work.status.snapshot_handle
    if handle and not work.status.base_id:
        # Some drivers annotate the VolumeSnapshot only when it is ready.
        changes["base_id"] = base_id(work, snapshot, handle)
    if work.point.spec.repository is not None:
        changes["phase"] = PointPhase.PLANNING
    return changes


async def complete(work: Work, sequence: int) -> None:
    """Record a point that is only a snapshot."""
    now, status = work.context.clock.now(), work.status
    assert status.start_time is not None
    taken_s = max(0.0, ((status.ready_time or now) - status.start_time).total_seconds())
    total_s = max(0.0, (now - status.start_time).total_seconds())
    await work.write(
        phase=PointPhase.COMPLETED,
        mode="snapshot",
        sequence=sequence,
        snapshot_kept=True,
        completion_time=now,
        bytes=Bytes(volume=status.restore_size, allocated=None, changed=None, read=0, uploaded=0),
        seconds=Seconds(snapshot=taken_s, total=total_s),
        conditions=work.final_conditions("True", "Completed"),
    )
    work.event("Normal", "Completed", "The snapshot is ready; it is kept in the storage system only.")
