"""Choose what to build on, find out what to read, store the plan, and announce it all before anything is copied.

The intent names a base only when a delta came about, because a point that inherits a map and one that starts empty are
told apart by it. The intent is put before any mover reads the base, and checked against the base after it is put, so
that maintenance can't take the base away unseen. A plan that is stored counts over what this pass would have made.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from orchestrator.api.foreign.core import PersistentVolume, RawPersistentVolume, RawPersistentVolumeClaim
from orchestrator.api.foreign.snapshot import VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent
from orchestrator.api.quantity import format_size
from orchestrator.api.tidemark.backup_policy import Deduplication
from orchestrator.api.tidemark.recovery_point import PointBase, PointPhase, RecoveryPoint
from orchestrator.controllers.recovery_point import ladder
from orchestrator.controllers.recovery_point.snapshotting import base_id_source, clone_class
from orchestrator.controllers.recovery_point.work import Work, lineage_of
from orchestrator.decisions.recovery_point import RecoveryPointSeen
from orchestrator.errors import MESSAGE_LIMIT, Terminal
from orchestrator.repository.damage import check_base
from orchestrator.repository.errors import Damaged, ManifestMissing, ObjectMissing, PointCancelled, UnsupportedFormat
from orchestrator.repository.intent import Intent, put_intent
from orchestrator.repository.manifest import (
    Manifest,
    MapRoot,
    PointRecord,
    PointRef,
    list_lineage,
    next_sequence,
    open_manifest,
    sequence_in,
)
from orchestrator.repository.neighbours import neighbours
from orchestrator.repository.plan import Plan, open_plan, put_plan
from orchestrator.repository.vault import Vault
from policies import lineage
from policies.duration import parse_duration

LOOK_BACK = 4
"""Manifests opened, newest first, in search of a base."""
CLONE_CLASS = "cloneClass"
NODE_LABEL = "nodeLabel"
"""Keys of `PointRecord.snapshot` that the mover's steps read back from the plan."""

_EXPECTED = frozenset({"", "NoBase", "FullRequested", "FullDue"})
"""Reasons for not asking for a delta that nobody need look into."""


class VolumeVanished(Terminal):
    """The volume's objects went before what is needed to make it again was written down."""

    reason = "VolumeGone"
    remedy = "Earlier points stay; back up the new claim instead."


class SizeUnknown(Terminal):
    """Nobody says how big the volume is; a plan of nothing would look like a good point."""

    reason = "SizeUnknown"
    remedy = "The driver must report the volume's capacity or the snapshot's restore size."


class Earlier(NamedTuple):
    """An earlier point as it was opened."""

    ref: PointRef
    manifest: Manifest
    heal: tuple[tuple[int, int], ...]
    """Runs of its chunks that are known to be damaged: a delta reads them again."""


# What to build on


async def choose(work: Work, seen: RecoveryPointSeen) -> None:
    """Choose a base and a place in the lineage, and write both down."""
    status = work.status
    async with work.vault(create=True) as (_, vault):
        keys = await list_lineage(vault, lineage_of(status.driver, status.volume_handle))
        choice, found = await _choose(work, seen, vault, keys)
    known = [p.status.sequence for p in seen.siblings] + [
        earlier.manifest.record.sequence for earlier in found.values()
    ]
    sequence = next_sequence(keys, max(known, default=0))
    expected = choice.reason in _EXPECTED
    base = None
    if choice.base is not None and choice.mode == "delta":
        record = found[choice.base.id].manifest.record
        base = PointBase(point=record.point_name, uid=record.point_id, snapshot_handle=record.base_id)
    await work.write(
        sequence=sequence,
        base=base,
        requested_mode=choice.mode if expected else "delta",
        fallback_reason="" if expected else choice.reason,
        reason=choice.reason,
        message=choice.sentence,
    )
    if not expected:
        ladder.tell(work, choice.reason, f"No delta: {choice.sentence}.")


async def _choose(
    work: Work, seen: RecoveryPointSeen, vault: Vault, keys: list[str]
) -> tuple[lineage.Choice, dict[str, Earlier]]:
    status, options = work.status, work.point.spec.options
    assert status.snapshot_time is not None
    target = lineage.Target(
        time=status.snapshot_time,
        driver=status.driver,
        volume_handle=status.volume_handle,
        size_bytes=status.restore_size,
        base_id=status.base_id,
        full_every=parse_duration(options.full_every) if options.full_every else None,
        force_full=work.point.spec.full,
    )
    records = {p.status.manifest.key: p for p in seen.siblings if p.status.manifest is not None}
    newest = sorted(keys, key=sequence_in, reverse=True)
    wanted = newest[:LOOK_BACK]
    wanted += [key for key in newest[LOOK_BACK:] if key in records and records[key].status.mode == "full"][:1]
    found: dict[str, Earlier] = {}
    candidates: list[lineage.Candidate] = []
    for key in wanted:
        candidate = await _candidate(work, vault, key, records.get(key), found)
        if candidate is not None:
            candidates.append(candidate)
            if target.full_every is None and not lineage.judge(candidate, target)[0]:
                break  # a good base: older ones can only be worse
    candidates += [_unreadable(work, key) for key, p in records.items() if key not in keys and _expected_there(p)]
    return lineage.choose_base(candidates, target), found


async def _candidate(
    work: Work, vault: Vault, key: str, record: RecoveryPoint | None, found: dict[str, Earlier]
) -> lineage.Candidate | None:
    """Return what the manifest says of an earlier point, None when it was removed or ended.

    One that can't be read is no base, but it counts as a point: otherwise the next one would be a full without a word.
    """
    digest = record.status.manifest.digest if record is not None and record.status.manifest is not None else None
    try:
        manifest, ref = await open_manifest(vault, key, digest=digest)
    except (ManifestMissing, PointCancelled):
        return None
    except (Damaged, UnsupportedFormat):
        return _unreadable(work, key)
    told = manifest.record
    check = await check_base(vault, ref, manifest=manifest)
    found[told.point_id] = Earlier(ref, manifest, check.heal)
    return lineage.Candidate(
        id=told.point_id,
        sequence=told.sequence,
        time=told.snapshot_time,
        driver=told.driver,
        volume_handle=told.volume_handle,
        size_bytes=manifest.root.volume_size,
        base_id=told.base_id,
        usable=check.usable,
        snapshot_kept=await _snapshot_kept(work, record),
        whole=told.actual_mode == "full",
    )


def _unreadable(work: Work, key: str) -> lineage.Candidate:
    """Return a candidate of which nothing is known but that it should be there."""
    assert work.status.snapshot_time is not None
    return lineage.Candidate(
        id=key,
        sequence=sequence_in(key),
        time=work.status.snapshot_time,
        driver=work.status.driver,
        volume_handle=work.status.volume_handle,
        size_bytes=0,
        base_id="",
        usable=False,
        snapshot_kept=False,
    )


def _expected_there(record: RecoveryPoint) -> bool:
    """Return whether nobody asked for the point's data to go: then its manifest was lost behind our back."""
    return record.status.phase is PointPhase.COMPLETED and not record.spec.prune and not record.deleting


async def _snapshot_kept(work: Work, record: RecoveryPoint | None) -> bool:
    """Return whether the driver can still be asked about that point's snapshot."""
    if work.context.settings.extra.get(f"driver/{work.status.driver}/baseRetention") == "NotNeeded":
        return True
    if record is None or not record.status.snapshot_kept or not record.status.content_name:
        return False
    content = await work.context.client.find(VolumeSnapshotContent, record.status.content_name)
    return content is not None and not content.deleting


# What to read


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
    record, chunks = plan.record, plan.chunks()
    await work.write(
        phase=PointPhase.WAITING if chunks else PointPhase.PLANNING,
        intent=intent.id,
        planned_time=work.context.clock.now(),
        mode=record.actual_mode,
        fallback_reason=(record.reason or "") if record.actual_mode != work.status.requested_mode else "",
        reason=record.reason or "",
        message=record.message or "",
        changed=format_size(chunks.total_bytes),
        base=base,
    )


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
        choice, found = await _choose(work, seen, vault, keys)
    opened = found[choice.base.id] if choice.base is not None else None
    ref, earlier, heal = opened or (None, None, ())
    if earlier is not None:
        # One size of chunk for the volume's life: ids at the same index must be comparable.
        record = msgspec.structs.replace(record, chunk_size=earlier.root.chunk_size)
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
    spec = point.spec
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
        chunk_size=work.context.settings.chunk_size,
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
