"""Repositories: can they be reached, what lies there, and is what no point needs swept.

Maintenance is bulk work and so a Job, one per namespace of the repository, with that namespace's keys only. The Jobs
of a slot run one after the other; a slot is done when each of them ended. A slot is written down before its first Job
is made and carried to its end whatever comes meanwhile (newer slots, suspension, another leader): a Job whose slot was
forgotten would be left behind.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec

from orchestrator.api.foreign.core import Job
from orchestrator.api.meta import Condition, with_condition
from orchestrator.api.quantity import format_size
from orchestrator.api.tidemark.backup_repository import BackupRepository, BackupRepositoryStatus, Usage
from orchestrator.api.tidemark.fields import LABEL_MANAGED_BY, LABEL_REPOSITORY_UID, MANAGED_BY
from orchestrator.api.tidemark.recovery_point import PointPhase, RecoveryPoint
from orchestrator.controllers.base import Context, Controller, Key, Requeue
from orchestrator.controllers.repositories import OpenedRepository, mover_config
from orchestrator.controllers.status import patch_status
from orchestrator.decisions import backup_repository as decisions
from orchestrator.errors import Terminal, TidemarkError
from orchestrator.repository.maintenance import usage
from orchestrator.volumes import job as jobs
from policies.naming import object_name

CHECK_S = 60.0
USAGE_EVERY = timedelta(minutes=30)
"""Usage is counted by listing: not at every check."""
USAGE_SOONEST_S = 60.0
"""After a point was completed usage is counted again, but not sooner than this after the last time..."""
USAGE_SHARE = 100.0
"""...nor sooner than so many times as long as the last count took: one hundredth of the time goes into counting."""
USAGE_TIMEOUT_S = 300.0
POLL = Requeue(2.0)
Result = Literal["completed", "failed"]


class BackupRepositoryController(Controller[BackupRepository]):
    """Where recovery points live."""

    name = "backup_repository"
    kind = BackupRepository

    def __init__(self, context: Context) -> None:
        """Take what `app` made."""
        super().__init__(context)
        self._grown: dict[str, datetime] = {}
        """When the newest point was completed that isn't counted yet, by repository: only a hint to count sooner."""
        self._counting_s: dict[str, float] = {}
        """How long the last count took."""

    def wire(self) -> None:
        """Wake for repositories and for their maintenance Jobs."""
        super().wire()
        self.watch(Job, self._by_label)
        self.watch(RecoveryPoint, self._of_completed)

    def _of_completed(self, point: RecoveryPoint) -> list[Key]:
        """Wake when a point was completed since its repository's usage was counted."""
        ended, name = point.status.completion_time, point.spec.repository
        found = self.cache.get(name) if name is not None else None
        if point.status.phase is not PointPhase.COMPLETED or ended is None or name is None or found is None:
            return []
        usage_then = found.status.usage
        if usage_then is not None and usage_then.measured is not None and ended < usage_then.measured:
            return []
        self._grown[name] = max(ended, self._grown.get(name, ended))
        return [("", name)]

    def _by_label(self, job: Job) -> list[Key]:
        owner = self.cache.by_uid(job.metadata.labels.get(LABEL_REPOSITORY_UID, ""))
        return [("", owner.name)] if owner is not None else []

    async def reconcile(self, key: Key) -> Requeue | None:
        """Check it, count what lies there, and sweep when that is due."""
        repository = self.cache.get(key[1])
        if repository is None or repository.deleting:
            return None
        opened = await self.context.repositories.open(repository.name)
        now = self.context.clock.now()
        status = self._ready(repository, opened, now)
        wait_s = self._usage_due_s(repository, now)
        if wait_s <= 0:
            status = msgspec.structs.replace(status, usage=await self._usage(opened, now))
        repository = await patch_status(self.context, repository, status)
        slot = _begun(repository)
        if slot is None:
            slot = decisions.due(repository, now)
            if slot is None:
                return Requeue(min(CHECK_S, wait_s) if wait_s > 0 else CHECK_S)
            await self._note(repository, slot, {})
            return Requeue(0.0)
        if not await self._maintain(repository, opened, slot):
            return POLL
        await self._slot_done(repository, slot, await self._usage(opened, now), now)
        return Requeue(CHECK_S)

    async def _slot_done(self, repository: BackupRepository, slot: datetime, usage_now: Usage, now: datetime) -> None:
        """Record that each of the slot's Jobs ended; only when all of them succeeded has a sweep completed.

        Suspended meanwhile, a slot ends with the Job that was running: what it did counts for nothing but its failure.
        """
        swept = _swept(repository, slot)
        failed = [uid for uid, good in swept.items() if not good]
        if repository.spec.maintenance.suspend and not failed:
            await patch_status(
                self.context, repository, msgspec.structs.replace(repository.status, last_maintenance_slot=slot)
            )
            return
        text = f"{len(failed)} of {len(swept)} namespaces could not be swept; the next slot tries again."
        condition = Condition(
            type="Maintained",
            status="False" if failed else "True",
            reason="MaintenanceFailed" if failed else "Maintained",
            message=text if failed else "",
            observed_generation=repository.metadata.generation,
        )
        status = msgspec.structs.replace(
            repository.status,
            last_maintenance_slot=slot,
            last_maintenance=repository.status.last_maintenance if failed else now,
            usage=usage_now,
            conditions=with_condition(repository.status.conditions, condition, now),
        )
        await patch_status(self.context, repository, status)
        if not failed:
            self.context.recorder.event(repository, "Normal", "Maintained", f"Swept {len(swept)} namespaces.")

    def _ready(self, repository: BackupRepository, opened: OpenedRepository, now: datetime) -> BackupRepositoryStatus:
        conditions = repository.status.conditions
        for type_, reason in (("Ready", "Reachable"), ("ConditionalPut", "Proven")):
            good = Condition(
                type=type_, status="True", reason=reason, observed_generation=repository.metadata.generation
            )
            conditions = with_condition(conditions, good, now)
        return msgspec.structs.replace(
            repository.status,
            observed_generation=repository.metadata.generation,
            repository_id=opened.repository.id,
            ready="True",
            last_checked=_minute(now, repository.status.last_checked),
            conditions=conditions,
        )

    def _usage_due_s(self, repository: BackupRepository, now: datetime) -> float:
        """Return the seconds until usage is to be counted: every half hour, and soon after points were completed."""
        counted = repository.status.usage.measured if repository.status.usage is not None else None
        if counted is None:
            return 0.0
        grown = self._grown.get(repository.name)
        every = USAGE_EVERY
        if grown is not None and grown >= counted:
            took_s = self._counting_s.get(repository.name, 0.0)
            every = min(every, timedelta(seconds=max(USAGE_SOONEST_S, USAGE_SHARE * took_s)))
        else:
            self._grown.pop(repository.name, None)
        return (counted + every - now).total_seconds()

    async def _usage(self, opened: OpenedRepository, now: datetime) -> Usage:
        stored = objects = points = 0
        started = self.context.clock.monotonic()
        async with asyncio.timeout(USAGE_TIMEOUT_S):
            for identity in await opened.repository.namespaces():
                held = await usage(await opened.repository.vault(identity))
                stored, objects, points = stored + held.bytes, objects + held.objects, points + held.points
        self._counting_s[opened.name] = self.context.clock.monotonic() - started
        return Usage(bytes=stored, objects=objects, points=points, size=format_size(stored), measured=now)

    async def _maintain(self, repository: BackupRepository, opened: OpenedRepository, slot: datetime) -> bool:
        """Run the slot's Jobs, one namespace after the other; True when each of them ended and is gone."""
        settings, client = self.context.settings, self.context.client
        labels = {LABEL_REPOSITORY_UID: repository.uid, LABEL_MANAGED_BY: MANAGED_BY}
        swept = _swept(repository, slot)
        for identity in await opened.repository.namespaces():
            if identity.cluster_id != self.context.cluster_id:
                continue
            name = object_name(f"tm-maintain-{repository.name}", repository.uid, identity.uid, slot.isoformat())
            if identity.uid in swept:
                if not await jobs.remove(client, name, settings, labels):
                    return False
                continue
            vault = await opened.repository.vault(identity)
            seen = await jobs.look(client, self.context.caches, name, settings)
            if seen.state == "missing":
                if repository.spec.maintenance.suspend:
                    continue
                config = mover_config(opened, vault, task="maintain", point=vault.namespace_id)
                job = jobs.MoverJob(name=name, task="maintain", config=config, labels=labels)
                await jobs.ensure(client, job, settings)
                return False
            if seen.state not in ("succeeded", "failed"):
                return False
            # Noted before the Job goes: a Job that is missing and not noted would be made again.
            good = seen.state == "succeeded"
            await self._note(repository, slot, {**swept, identity.uid: good})
            result: Result = "completed" if good else "failed"
            self.context.meter.mover_ended("maintain", result)
            self.context.meter.maintained(repository.name, result)
            if not good:
                text = seen.message or "see the maintenance Job's log"
                self.context.recorder.event(repository, "Warning", "MaintenanceFailed", f"{identity.name}: {text}")
            return False
        return True

    async def _note(self, repository: BackupRepository, slot: datetime, swept: dict[str, bool]) -> None:
        """Remember, in an annotation, which namespaces the slot's maintenance has been through, and how.

        Written over what was read and nothing newer: whoever wins this write counts the sweep.
        """
        value = f"{slot.isoformat()} {','.join(uid if good else uid + FAILED for uid, good in swept.items())}"
        body: dict[str, Any] = {
            "metadata": {
                "annotations": {ANNOTATION_MAINTAINED: value},
                "resourceVersion": repository.metadata.resource_version,
            }
        }
        self.context.caches.learn(await self.context.client.merge_patch(BackupRepository, repository.name, "", body))

    async def record_error(self, key: Key, error: TidemarkError) -> None:
        """Show why it can't be used."""
        repository = self.cache.get(key[1])
        if repository is None:
            return
        now = self.context.clock.now()
        conditions = with_condition(
            repository.status.conditions,
            Condition(
                type="Ready",
                status="False",
                reason=error.reason,
                message=error.sentence(),
                observed_generation=repository.metadata.generation,
            ),
            now,
        )
        if error.reason == "ConditionalPutMissing":
            refused = Condition(type="ConditionalPut", status="False", reason=error.reason, message=error.sentence())
            conditions = with_condition(conditions, refused, now)
        if repository.status.ready != "False":
            self.context.recorder.event(repository, "Warning", error.reason, error.sentence())
        status = msgspec.structs.replace(
            repository.status,
            observed_generation=repository.metadata.generation,
            ready="False",
            last_checked=_minute(now, repository.status.last_checked),
            conditions=conditions,
        )
        await patch_status(self.context, repository, status)
        if isinstance(error, Terminal):
            self.queue.add_after(key, CHECK_S)


ANNOTATION_MAINTAINED = "tidemark.dev/maintained"
"""The slot, and the uids of the namespaces whose Jobs of that slot ended, each with FAILED behind it if it failed."""
FAILED = "!"


def _begun(repository: BackupRepository) -> datetime | None:
    """Return the slot that was begun and isn't done, None when there is none."""
    text = repository.metadata.annotations.get(ANNOTATION_MAINTAINED, "").partition(" ")[0]
    try:
        slot = datetime.fromisoformat(text)
    except ValueError:
        return None  # none yet, or a hand wrote there: the next slot that is due overwrites it
    last = repository.status.last_maintenance_slot
    return slot if slot.tzinfo is not None and (last is None or slot > last) else None


def _swept(repository: BackupRepository, slot: datetime) -> dict[str, bool]:
    """Return which namespaces the slot's maintenance has been through, and whether it succeeded."""
    text = repository.metadata.annotations.get(ANNOTATION_MAINTAINED, "")
    when, _, uids = text.partition(" ")
    if when != slot.isoformat():
        return {}
    return {uid.removesuffix(FAILED): not uid.endswith(FAILED) for uid in uids.split(",") if uid}


def _minute(now: datetime, before: datetime | None) -> datetime:
    """Return `before` unless a minute has passed: a check that finds nothing new writes nothing."""
    if before is not None and now - before < timedelta(seconds=CHECK_S):
        return before
    return now.replace(microsecond=0)
