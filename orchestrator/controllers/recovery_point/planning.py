"""Find out what to read, store the plan, and announce what it builds on before anything is copied.

The intent names a base only when a delta came about, because a point that inherits a map and one that starts empty are
told apart by it. The intent is put before any mover reads the base, and checked against the base after it is put, so
that maintenance can't take the base away unseen. A plan that is stored counts over what this pass would have made.
"""

from __future__ import annotations

import asyncio
import hashlib
from datetime import datetime
from typing import Any

import msgspec

from orchestrator.api.foreign.core import PersistentVolume, RawPersistentVolume, RawPersistentVolumeClaim
from orchestrator.api.foreign.snapshot import VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent
from orchestrator.api.quantity import exact_quantity, format_size
from orchestrator.api.tidemark.backup_policy import Deduplication
from orchestrator.api.tidemark.recovery_point import PointBase, PointPhase
from orchestrator.controllers.recovery_point import ladder
from orchestrator.controllers.recovery_point.choosing import Earlier, choose_base
from orchestrator.controllers.recovery_point.snapshotting import base_id_source, clone_class
from orchestrator.controllers.recovery_point.work import CHUNK_SIZE_APPLIED, Work, lineage_of
from orchestrator.decisions.recovery_point import RecoveryPointSeen
from orchestrator.errors import MESSAGE_LIMIT, Terminal
from orchestrator.repository.errors import ObjectMissing
from orchestrator.repository.intent import Intent, put_intent
from orchestrator.repository.layout import default_chunk_size
from orchestrator.repository.manifest import (
    MapRoot,
    PointRecord,
    PointRef,
    list_lineage,
    open_manifest,
)
from orchestrator.repository.neighbours import neighbours
from orchestrator.repository.plan import Plan, open_plan, put_plan
from orchestrator.repository.vault import Vault

CLONE_CLASS = "cloneClass"
NODE_LABEL = "nodeLabel"
"""Keys of `PointRecord.snapshot` that the mover's steps read back from the plan."""


class VolumeVanished(Terminal):
    """The volume's objects went before what is needed to make it again was written down."""

    reason = "VolumeGone"
    remedy = "Earlier points stay; back up the new claim instead."


class SizeUnknown(Terminal):
    """Nobody says how big the volume is; a plan of nothing would look like a good point."""

    reason = "SizeUnknown"
    remedy = "The driver must report the volume's capacity or the snapshot's restore size."


async def plan_copy(work: Work, seen: RecoveryPointSeen, memory: ladder.Memory) -> None:
    """Find out which chunks to read, store the plan, then the intent; a plan that is stored already counts."""
    plan, earlier = await _stored(work), None
    if plan is None:
        plan, earlier = await _make(work, seen, memory)
    async with work.vault() as (_, vault):
        others = await _neighbours(work, vault, plan)
        intent = msgspec.structs.replace(_intent(work, vault, plan), refers=tuple(others))
        known = {} if earlier is None else {earlier.ref: earlier.manifest.root}
        intent = await put_intent(vault, intent, roots={**others, **known})
        base = await _base(vault, plan.base, earlier) if plan.base is not None else None
    record, planned = plan.record, await asyncio.to_thread(lambda: plan.chunks().total_bytes)
    await work.write(
        phase=PointPhase.WAITING if planned else PointPhase.PLANNING,
        intent=intent.id,
        planned_time=work.context.clock.now(),
        mode=record.actual_mode,
        fallback_reason=(record.reason or "") if record.actual_mode != work.status.requested_mode else "",
        reason=record.reason or "",
        message=record.message or "",
        changed=format_size(planned),
        base=base,
        **_chunk_size_told(work, record.chunk_size),
    )


def _chunk_size_told(work: Work, chunk_size: int) -> dict[str, Any]:
    """Return what the status says of the point's chunk size; one that isn't the wished one is told as an Event too."""
    has, wished = exact_quantity(chunk_size), work.point.spec.options.chunk_size
    told: dict[str, Any] = {"chunk_size": has}
    if wished is None or wished.size_bytes == chunk_size:
        return told
    text = (
        f"The volume has points in this repository, in chunks of {has}, and keeps that size; options.chunkSize "
        f"{wished.value} counts for a volume's first point only. Use another repository for another size."
    )
    work.event("Warning", "ChunkSizeKept", text)
    return told | {"conditions": work.conditions(CHUNK_SIZE_APPLIED, "False", "ChunkSizeKept", text)}


async def _neighbours(work: Work, vault: Vault, plan: Plan) -> dict[PointRef, MapRoot]:
    """Return the points of other volumes whose chunks the mover may refer to."""
    if work.point.spec.options.deduplication is not Deduplication.NAMESPACE or not plan.chunks():
        return {}
    return await neighbours(vault, plan.record.lineage, plan.record.chunk_size)


async def _base(vault: Vault, ref: PointRef, earlier: Earlier | None) -> PointBase:
    if earlier is not None and earlier.ref == ref:
        manifest = earlier.manifest
    else:
        manifest, _ = await open_manifest(vault, ref.key, digest=ref.digest)
    record = manifest.record
    return PointBase(point=record.point_name, uid=record.point_id, snapshot_handle=record.base_id)


async def _stored(work: Work) -> Plan | None:
    async with work.vault(create=True) as (_, vault):
        try:
            return await open_plan(vault, work.point.uid)
        except ObjectMissing:
            return None


def _intent(work: Work, vault: Vault, plan: Plan) -> Intent:
    record = plan.record
    return Intent(
        id=work.point.uid,
        base=plan.base,
        compare=plan.compare,
        manifest_key=vault.names.point(record.lineage, record.sequence, record.point_id),
        lineage=record.lineage,
        created=work.context.clock.now(),
    )


async def _make(work: Work, seen: RecoveryPointSeen, memory: ladder.Memory) -> tuple[Plan, Earlier | None]:
    """Make and store the plan; return what is stored, and the earlier point that was opened for it."""
    record = await _record(work, seen)
    async with work.vault() as (_, vault):
        keys = await list_lineage(vault, lineage_of(work.status.driver, work.status.volume_handle))
        choice, found = await choose_base(work, seen, vault, keys)
    opened = found[choice.base.id] if choice.base is not None else None
    ref, earlier, heal = opened or (None, None, ())
    if found:
        # One size of chunk for the volume's life: ids at the same index must be comparable.
        newest = earlier or max((e.manifest for e in found.values()), key=lambda m: m.record.sequence)
        record = msgspec.structs.replace(record, chunk_size=newest.root.chunk_size)
    base = earlier if choice.mode == "delta" else None
    outcome = await ladder.descend(work, record, base, choice.mode, memory)
    if choice.reason and not work.status.reason:
        # It was to be a delta when its base was chosen; what became of that base since must not go unsaid.
        ladder.tell(work, choice.reason, f"No delta: {choice.sentence}.")
        outcome.reason = choice.reason
        outcome.message = "; ".join(filter(None, (choice.sentence, outcome.message)))[:MESSAGE_LIMIT]
    delta = outcome.mode == "delta"
    if delta:
        for first, stop in heal:
            outcome.chunks.add_chunks(min(first, outcome.chunks.chunk_count), min(stop, outcome.chunks.chunk_count))
    record = msgspec.structs.replace(
        record,
        requested_mode=work.status.requested_mode,
        actual_mode=outcome.mode,
        reason=outcome.reason or None,
        message=outcome.message or None,
        parent=ref if delta else None,
        parent_base_id=base.record.base_id if delta and base is not None else None,
        evidence=outcome.evidence,
        service_revision=outcome.service_revision,
    )
    plan = Plan(
        record=record,
        base=ref if delta else None,
        compare=None if delta else ref,
        mode=outcome.mode,
        bits=outcome.chunks.to_bytes(),
    )
    async with work.vault() as (_, vault):
        return await put_plan(vault, work.point.uid, plan), opened


async def _record(work: Work, seen: RecoveryPointSeen) -> PointRecord:
    """Return everything that is known before the copy, and all that is needed to make the claim again."""
    point, status, client = work.point, work.status, work.context.client
    assert status.snapshot_time is not None
    if status.restore_size <= 0:
        raise SizeUnknown(f"Neither volume nor snapshot of claim {point.spec.pvc_name} has a size")
    claim = await client.find(RawPersistentVolumeClaim, point.spec.pvc_name, point.namespace)
    if claim is None or claim.uid != point.spec.pvc_uid:
        raise VolumeVanished(f"Claim {point.spec.pvc_name} was deleted while its point was being planned")
    volume = await client.find(RawPersistentVolume, claim.spec.get("volumeName", ""))
    if volume is None:
        raise VolumeVanished(f"The volume of claim {point.spec.pvc_name} was deleted while its point was being planned")
    slice_ = msgspec.convert(volume.spec, type(PersistentVolume().spec))
    class_name = clone_class(work, claim.spec.get("storageClassName"), slice_.storage_class_name, status.driver)
    spec, wished = point.spec, point.spec.options.chunk_size
    return PointRecord(
        point_id=point.uid,
        point_name=point.name,
        lineage=lineage_of(status.driver, status.volume_handle),
        sequence=status.sequence,
        namespace=await work.identity(),
        pvc_name=spec.pvc_name,
        pvc_uid=spec.pvc_uid,
        pvc_labels=claim.metadata.labels,
        pvc_annotations=claim.metadata.annotations,
        pvc_spec=claim.spec,
        pv_name=volume.name,
        pv_spec=volume.spec,
        volume_mode=status.volume_mode or "Filesystem",
        policy_name=spec.policy.name if spec.policy else None,
        policy_uid=spec.policy.uid if spec.policy else None,
        backup_name=spec.backup,
        slot=spec.slot,
        on_demand=spec.slot is None,
        expires=spec.expires,
        snapshot_time=status.snapshot_time,
        snapshot_time_ns=_nanoseconds(status.snapshot_time, seen.content),
        driver=status.driver,
        volume_handle=status.volume_handle,
        snapshot_handle=status.snapshot_handle,
        base_id=status.base_id,
        base_id_source=base_id_source(work),
        snapshot=await _snapshot_facts(work, seen, class_name),
        requested_mode="delta",
        actual_mode="full",
        volume_size=status.restore_size,
        chunk_size=wished.size_bytes if wished else default_chunk_size(status.restore_size),
    )


def _nanoseconds(time: datetime, content: VolumeSnapshotContent | None) -> int:
    told = content.status.creation_time if content is not None and content.status is not None else None
    seconds = int(time.timestamp())
    if told is not None and abs(told - seconds * 1_000_000_000) < 2_000_000_000:
        return told
    return seconds * 1_000_000_000 + time.microsecond * 1000  # the driver's own time was not believed


async def _snapshot_facts(work: Work, seen: RecoveryPointSeen, class_name: str) -> dict[str, Any]:
    """Return what contract 4.5 wants kept of the snapshot's objects, and what the clone needs."""
    status, content = work.status, seen.content
    snapshot = await work.context.client.find(VolumeSnapshot, status.snapshot_name, work.point.namespace)
    facts: dict[str, Any] = {
        "name": status.snapshot_name,
        "uid": status.snapshot_uid,
        "contentName": status.content_name,
        "restoreSize": status.restore_size,
        CLONE_CLASS: class_name,
    }
    if snapshot is not None:
        facts["annotations"] = snapshot.metadata.annotations
    if content is not None:
        facts |= {
            "contentUid": content.uid,
            "contentAnnotations": content.metadata.annotations,
            "deletionPolicy": content.spec.deletion_policy,
            "sourceVolumeMode": content.spec.source_volume_mode or status.volume_mode,
            "class": content.spec.volume_snapshot_class_name or "",
            NODE_LABEL: content.metadata.labels.get("snapshot.storage.kubernetes.io/managed-by", ""),
        }
        named = content.spec.volume_snapshot_class_name
        found = work.context.caches.of(VolumeSnapshotClass).get(named) if named else None
        if found is not None:
            text = msgspec.json.encode(sorted(found.parameters.items()))
            facts["parametersHash"] = hashlib.sha256(text).hexdigest()
    return facts
