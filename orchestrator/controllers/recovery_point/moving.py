"""From a granted slot to a running mover: re-home the snapshot, clone it, start the Job, follow it, try again.

What a mover needs is read from the stored plan, not from the tenant's objects: those may be gone by now.
"""

from __future__ import annotations

from typing import Any

from orchestrator.api.meta import Condition
from orchestrator.api.mover import Progress
from orchestrator.api.quantity import parse_quantity
from orchestrator.api.tidemark.recovery_point import PointPhase
from orchestrator.controllers.recovery_point.planning import CLONE_CLASS, NODE_LABEL
from orchestrator.controllers.recovery_point.work import Work
from orchestrator.controllers.repositories import mover_config
from orchestrator.decisions import stall
from orchestrator.decisions.recovery_point import CLONE, MOVER
from orchestrator.repository.manifest import PointRecord
from orchestrator.repository.plan import open_plan
from orchestrator.volumes import clone, rehome, teardown
from orchestrator.volumes import job as jobs
from orchestrator.volumes.job import JobSeen

PROGRESS_S = 10.0
"""Progress is written at most this often (control plane rule 9)."""


async def record_of(work: Work) -> PointRecord:
    """Return what the plan says of the volume."""
    async with work.vault() as (_, vault):
        return (await open_plan(vault, work.status.intent)).record


async def import_snapshot(work: Work) -> None:
    """Make the physical snapshot usable in the controller's namespace."""
    record = await record_of(work)
    facts: dict[str, Any] = record.snapshot
    wanted = rehome.Import(
        name=work.name,
        driver=record.driver,
        snapshot_handle=record.snapshot_handle,
        class_name=facts.get("class") or None,
        source_volume_mode=facts.get("sourceVolumeMode") or record.volume_mode,
        node_label=facts.get(NODE_LABEL, ""),
        labels=work.owner,
        annotations=work.annotations,
    )
    await rehome.ensure(work.context.client, wanted, work.context.settings)


async def make_clone(work: Work) -> None:
    """Make the raw block claim that the mover reads."""
    record = await record_of(work)
    wanted = clone.Claim(
        name=work.name,
        storage_class=record.snapshot[CLONE_CLASS],
        size_bytes=record.volume_size,
        snapshot=work.name,
        labels=work.owner,
        annotations=work.annotations,
    )
    await clone.ensure(work.context.client, wanted, work.context.settings)


async def start_mover(work: Work, attempt: int) -> None:
    """Make the mover's Secret and Job; then count the attempt, which the Job itself names already."""
    async with work.vault() as (opened, vault):
        record = (await open_plan(vault, work.status.intent)).record
        options = work.point.spec.options
        limit = parse_quantity(options.bandwidth_limit) if options.bandwidth_limit else None
        config = mover_config(
            opened,
            vault,
            task="backup",
            point=work.point.uid,
            readers=options.parallelism,
            bandwidth_limit=limit,
            iops_limit=options.iops_limit,
        )
    wanted = jobs.MoverJob(
        name=work.name,
        task="backup",
        config=config,
        args=("--shard", "0"),
        device_pvc=work.name,
        labels=work.owner,
        annotations=work.annotations,
        node_affinity=record.pv_spec.get("nodeAffinity"),
        read_only=True,
        attempt=attempt,
    )
    await jobs.ensure(work.context.client, wanted, work.context.settings)
    await work.write(attempts=attempt, progress="0%")


async def follow(work: Work, seen: JobSeen) -> None:
    """Tell how far a running mover is."""
    changes: dict[str, Any] = {"node": seen.node or work.status.node, "attempts": max(seen.attempt, 1)}
    progress = await jobs.progress(work.context.client, seen, work.context.settings)
    if progress is not None and progress.total > 0:
        share = min(1.0, progress.done / progress.total)
        changes["progress"] = f"{share * 100:.0f}%"
    conditions = tuple(c for c in work.conditions(MOVER, "True", "Running") if c.type != CLONE)
    conditions = _moved(work, seen, progress, conditions)
    await work.write(**changes, conditions=conditions)


async def tell_pending(work: Work, seen: JobSeen) -> None:
    """Say why a mover does not start: its claim's last event is what a person needs."""
    message = await stuck_because(work, seen)
    # Written when it changes only: the words of an event are counted by the API server, not repeated by us.
    conditions = _moved(work, seen, None, work.conditions(CLONE, "False", "Pending", message))
    await work.write(attempts=max(work.status.attempts, seen.attempt), conditions=conditions)
    # A pod before it may hold the clone on a node that is gone.
    await jobs.remove_overdue(work.context.client, work.name, work.context.settings, work.owner)


def _moved(
    work: Work, seen: JobSeen, progress: Progress | None, conditions: tuple[Condition, ...]
) -> tuple[Condition, ...]:
    """Return the conditions with what is seen of the mover, so that one that hangs is found out."""
    sign, now = stall.sign(seen.attempt, seen.state, progress), work.context.clock.now()
    return stall.noted(conditions, sign, now, work.context.settings.mover_stall_s)


async def stuck_because(work: Work, seen: JobSeen) -> str:
    """Return what keeps clone or pod back, in words."""
    client, settings = work.context.client, work.context.settings
    found = await clone.look(client, work.context.caches, work.name, settings, work.owner)
    if found.pvc is not None and found.state != "bound":
        said = await clone.last_event(client, found.pvc)
        return f"The clone is {found.state}. {said}".strip()
    return seen.message or "The pod is not running yet."


async def remove_mover(work: Work) -> bool:
    """See that a mover goes whose Job somebody deletes; True when it is gone."""
    return await jobs.remove(work.context.client, work.name, work.context.settings, work.owner)


async def retry_mover(work: Work, attempt: int, reason: str, message: str) -> bool:
    """Note why a mover failed and clear it away; True when the next one may come."""
    if work.status.attempts < attempt or not _noted(work, attempt):
        work.meter.mover_ended("backup", "failed")
        await work.write(
            attempts=max(attempt, work.status.attempts),
            conditions=work.conditions(MOVER, "False", reason, f"Attempt {attempt}: {message}"),
        )
        work.event("Warning", reason, f"Mover {attempt} failed: {message}"[:1024])
    return await jobs.remove(work.context.client, work.name, work.context.settings, work.owner)


def _noted(work: Work, attempt: int) -> bool:
    noted = next((c for c in work.status.conditions if c.type == MOVER), None)
    return noted is not None and noted.status == "False" and noted.message.startswith(f"Attempt {attempt}:")


async def release_slot(work: Work, seen: JobSeen) -> bool:
    """Tear down what did not come up, and wait for a slot again; True when that is done."""
    client, settings = work.context.client, work.context.settings
    found = await clone.look(client, work.context.caches, work.name, settings, work.owner)
    if found.state in ("pending", "bound", "lost") or not any(c.type == CLONE for c in work.status.conditions):
        # Said before anything is torn down: afterwards nobody knows why.
        message = await stuck_because(work, seen)
        await work.write(conditions=work.conditions(CLONE, "False", "TimedOut", message))
    if not await teardown.remove_transient(client, work.name, settings, work.owner):
        return False
    told = next(c for c in work.status.conditions if c.type == CLONE)
    # A mover that was started under this slot has counted itself, and left its progress as the sign of that.
    attempts = work.status.attempts + (0 if work.status.progress else 1)
    conditions = stall.without(work.status.conditions)
    await work.write(phase=PointPhase.WAITING, granted_time=None, attempts=attempts, progress="", conditions=conditions)
    work.event("Warning", "CloneTimedOut", f"The mover did not start in time. {told.message}"[:1024])
    return True
