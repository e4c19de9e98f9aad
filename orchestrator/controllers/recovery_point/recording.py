"""How a point ends: the manifest committed and written down, or a reason why not.

What is in the repository is the truth. A point is ended without data only after its manifest's name was taken, where
the repository can be reached: a forgotten mover can then no longer commit a point that nobody expects.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from orchestrator.api.quantity import exact_quantity, format_size
from orchestrator.api.tidemark.fields import Bytes, Seconds
from orchestrator.api.tidemark.recovery_point import PointManifest, PointPhase
from orchestrator.controllers.recovery_point import ladder
from orchestrator.controllers.recovery_point.work import Work
from orchestrator.errors import TidemarkError
from orchestrator.repository.chunkmap import MapReader
from orchestrator.repository.ending import outcome
from orchestrator.repository.errors import ManifestMissing, PointCancelled
from orchestrator.repository.intent import Intent, open_intent
from orchestrator.repository.manifest import Manifest, PointRef, PointStats, open_manifest
from orchestrator.repository.mapbuilder import ShardBuilder
from orchestrator.repository.plan import Plan, open_plan
from orchestrator.repository.point import cancel, commit_planned, existing_point
from orchestrator.repository.shard import Shard, open_shard, put_shard
from orchestrator.repository.vault import Vault


async def is_committed(work: Work) -> bool:
    """Return whether the point's manifest is in the repository; an ended point raises PointCancelled."""
    async with work.vault() as (_, vault):
        return await outcome(vault, work.status.intent) is not None


async def commit_point(work: Work) -> None:
    """Put the manifest; an unchanged volume needs no mover for that. Raises ShardsMissing."""
    async with work.vault() as (_, vault):
        intent, plan = await open_intent(vault, work.status.intent), await open_plan(vault, work.status.intent)
        shard = None
        if not plan.chunks():
            shard = await open_shard(vault, intent.id, 0) or await _put_empty_shard(vault, intent, plan)
        ref = await commit_planned(vault, intent, plan, shard=shard, clock=work.context.clock)
    await _record(work, ref)


async def _put_empty_shard(vault: Vault, intent: Intent, plan: Plan) -> Shard:
    """Stand in for a mover that would have nothing to read."""
    record, base = plan.record, None
    if plan.base is not None:
        # The intent keeps the base's map alive, even when its manifest was pruned since.
        base = MapReader(vault, intent.roots[intent.points.index(plan.base)])
    builder = ShardBuilder(
        vault, intent.id, volume_size=record.volume_size, chunk_size=record.chunk_size, base=base, number=0, shards=1
    )
    return await put_shard(vault, intent.id, await builder.finish(PointStats(volume=record.volume_size)))


async def record_point(work: Work) -> None:
    """Write down what the manifest says."""
    async with work.vault() as (_, vault):
        ref = await outcome(vault, work.status.intent)
    if ref is None:
        raise ManifestMissing(work.status.intent)
    await _record(work, ref)


async def _record(work: Work, ref: PointRef) -> None:
    async with work.vault() as (opened, vault):
        manifest, ref = await open_manifest(vault, ref.key, digest=ref.digest)
    now, stats, record = work.context.clock.now(), manifest.stats, manifest.record
    changes: dict[str, Any] = {}
    if stepped_down := bool(work.status.mode) and record.actual_mode != work.status.mode:
        # The mover could not read the base: what was planned is not what came of it.
        changes = {"base": None, "fallback_reason": record.reason or ""}
    seconds = _seconds(work, manifest, now)
    size = manifest.root.volume_size
    await work.write(
        phase=PointPhase.COMPLETED,
        completion_time=now,
        mode=record.actual_mode,
        reason=record.reason or "",
        message=record.message or "",
        sequence=record.sequence,
        snapshot_kept=True,
        restore_size=size,
        size=format_size(size),
        changed=format_size(stats.changed),
        chunk_size=exact_quantity(manifest.root.chunk_size),
        progress="100%",
        bytes=Bytes(
            volume=size,
            allocated=manifest.root.held,
            changed=stats.changed,
            read=stats.read,
            uploaded=stats.uploaded,
        ),
        seconds=seconds,
        manifest=PointManifest(key=ref.key, digest=ref.digest, repository_id=opened.repository.id),
        conditions=work.final_conditions("True", "Completed"),
        **changes,
    )
    if stepped_down:
        ladder.tell(work, record.reason or "", (record.message or "")[:1024])
    _count(work)
    work.event(
        "Normal",
        "Completed",
        f"{record.actual_mode}: read {format_size(stats.read)} of {format_size(size)}, "
        f"stored {format_size(stats.uploaded)}.",
    )


def _seconds(work: Work, manifest: Manifest, now: datetime) -> Seconds:
    """Return how long the stages took: the mover's own walls, and for the copy what came before its start as well."""
    status, told = work.status, manifest.stats.seconds
    commit_s = told.get("commit", 0.0)
    copied = told.get("copy", 0.0)
    if status.granted_time is not None and status.attempts:
        copied = max(copied, _between(status.granted_time, manifest.created) - commit_s)
    return Seconds(
        snapshot=_between(status.start_time, status.ready_time),
        diff=_between(status.ready_time, status.planned_time),
        copy=max(0.0, copied),
        commit=max(0.0, commit_s),
        total=_between(status.start_time, now),
    )


def _between(start: datetime | None, end: datetime | None) -> float:
    return max(0.0, (end - start).total_seconds()) if start is not None and end is not None else 0.0


def _count(work: Work) -> None:
    told, spent = work.status.bytes, work.status.seconds
    assert told is not None
    assert spent is not None
    if work.status.attempts:
        work.meter.mover_ended("backup", "completed")
    work.meter.point_bytes("volume", told.volume)
    work.meter.point_bytes("allocated", told.allocated or 0)
    work.meter.point_bytes("changed", told.changed or 0)
    work.meter.point_bytes("read", told.read)
    work.meter.point_bytes("uploaded", told.uploaded)
    work.meter.point_stage("snapshot", spent.snapshot)
    work.meter.point_stage("diff", spent.diff)
    work.meter.point_stage("copy", spent.copy)
    work.meter.point_stage("commit", spent.commit)
    work.meter.point_stage("total", spent.total)


async def end(work: Work, phase: PointPhase, reason: str, message: str) -> None:
    """End the point without data, unless a mover was faster: then it is recorded."""
    if work.status.planned_time is not None:
        ref = await _close_name(work, message)
        if ref is not None:
            await _record(work, ref)
            return
    now = work.context.clock.now()
    failed = phase is PointPhase.FAILED
    await work.write(
        phase=phase,
        reason=reason[:64],
        message=message[:512],
        start_time=work.status.start_time or now,
        completion_time=now,
        snapshot_kept=False,
        progress="",
        conditions=work.final_conditions("False", reason, message),
    )
    work.event("Warning" if failed else "Normal", reason, message[:1024])


async def _close_name(work: Work, why: str) -> PointRef | None:
    """Take the manifest's name, so that no mover can commit any more; return the point if one did already.

    A repository that can't be reached does not hold up a cancellation: at worst a point without a record appears.
    """
    try:
        async with work.vault() as (_, vault):
            key = (await open_intent(vault, work.status.intent)).manifest_key
            if not await cancel(vault, key, work.status.intent, why=why[:200], clock=work.context.clock):
                return await existing_point(vault, key)
    except PointCancelled:
        return None
    except TidemarkError as error:
        work.event("Warning", error.reason, f"The point ends without the repository knowing: {error}"[:1024])
    return None
