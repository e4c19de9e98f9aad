"""Repositories: can they be reached, what lies there, is what no point needs swept, and is what is stored intact.

Sweeping and verifying are bulk work and so Jobs (`controllers/namespace_runs`). They may run at the same time: neither
can harm the other (docs/repository-format.md), and a verification of days must not hold up the sweeping.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import msgspec

from orchestrator.api.foreign.core import Job
from orchestrator.api.meta import Condition, condition, with_condition
from orchestrator.api.quantity import format_size
from orchestrator.api.tidemark.backup_repository import BackupRepository, BackupRepositoryStatus, LockPromise, Usage
from orchestrator.api.tidemark.fields import LABEL_REPOSITORY_UID
from orchestrator.api.tidemark.recovery_point import PointPhase, RecoveryPoint
from orchestrator.controllers.base import Context, Controller, Key, Requeue
from orchestrator.controllers.maintenance import ANNOTATION_MAINTAINED, Maintenance
from orchestrator.controllers.repositories import OpenedRepository
from orchestrator.controllers.status import patch_status
from orchestrator.controllers.verification import VerificationRuns
from orchestrator.errors import Terminal, TidemarkError
from orchestrator.repository.lockrenewal import last_renewed
from orchestrator.repository.maintenance import usage

__all__ = ["ANNOTATION_MAINTAINED", "BackupRepositoryController"]
from policies.duration import format_duration

CHECK_S = 60.0
USAGE_EVERY = timedelta(minutes=30)
"""Usage is counted by listing: not at every check."""
USAGE_SOONEST_S = 60.0
"""After a point was completed usage is counted again, but not sooner than this after the last time..."""
USAGE_SHARE = 100.0
"""...nor sooner than so many times as long as the last count took: one hundredth of the time goes into counting."""
USAGE_TIMEOUT_S = 300.0
POLL = Requeue(2.0)


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
        self._maintenance, self._verification = Maintenance(context), VerificationRuns(context)

    def wire(self) -> None:
        """Wake for repositories and for the Jobs of their maintenance and verification."""
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
        """Check it, count what lies there; sweep and verify when that is due."""
        repository = self.cache.get(key[1])
        if repository is None or repository.deleting:
            return None
        opened = await self.context.repositories.open(repository.name)
        now = self.context.clock.now()
        status = self._ready(repository, opened, now)
        wait_s = self._usage_due_s(repository, now)
        if wait_s <= 0:
            usage_now, promise = await self._usage(opened, now), await self._promise(opened, now)
            status = msgspec.structs.replace(status, usage=usage_now, object_lock=promise)
        repository = await patch_status(self.context, repository, status)
        repository, again = await self._bulk(self._maintenance, repository, opened, now)
        repository, soon = await self._bulk(self._verification, repository, opened, now)
        asked = [each for each in (again, soon) if each is not None]
        if asked:
            return min(asked)
        return Requeue(min(CHECK_S, wait_s) if wait_s > 0 else CHECK_S)

    async def _bulk(
        self,
        runs: Maintenance | VerificationRuns,
        repository: BackupRepository,
        opened: OpenedRepository,
        now: datetime,
    ) -> tuple[BackupRepository, Requeue | None]:
        """Begin the slot that is due, or bring the one that was begun a step on; None: there is none."""
        slot = runs.begun(repository)
        if slot is None:
            try:
                slot = runs.due(repository, now)
            except ValueError as error:
                return await self._unschedulable(runs, repository, error, now), None
            if slot is None:
                return await self._mended(runs, repository), None
            return await runs.note(repository, slot, {}), Requeue(0.0)
        repository, ended = await runs.step(repository, opened, slot)
        if not ended:
            return repository, POLL
        repository = await runs.done(repository, opened, slot, now)
        if isinstance(runs, Maintenance):
            status = msgspec.structs.replace(repository.status, usage=await self._usage(opened, now))
            repository = await patch_status(self.context, repository, status)
        return repository, Requeue(CHECK_S)

    async def _unschedulable(
        self, runs: Maintenance | VerificationRuns, repository: BackupRepository, error: ValueError, now: datetime
    ) -> BackupRepository:
        """Show that a schedule can't be followed; all else goes on."""
        told = Condition(
            type=runs.condition,
            status="False",
            reason="BadSchedule",
            message=str(error)[:512],
            observed_generation=repository.metadata.generation,
        )
        conditions = with_condition(repository.status.conditions, told, now)
        status = msgspec.structs.replace(repository.status, conditions=conditions)
        return await patch_status(self.context, repository, status)

    async def _mended(self, runs: Maintenance | VerificationRuns, repository: BackupRepository) -> BackupRepository:
        """Take back what was said of a schedule that couldn't be followed: its next slot says more."""
        told = condition(repository.status.conditions, runs.condition)
        if told is None or told.reason != "BadSchedule" or runs.suspended(repository):
            return repository
        conditions = tuple(each for each in repository.status.conditions if each is not told)
        status = msgspec.structs.replace(repository.status, conditions=conditions)
        return await patch_status(self.context, repository, status)

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

    async def _promise(self, opened: OpenedRepository, now: datetime) -> LockPromise | None:
        """Say what object lock promises, and whether each namespace of this cluster was renewed in time."""
        lock = opened.lock
        if lock is None:
            return None
        async with asyncio.timeout(USAGE_TIMEOUT_S):
            found = [
                await last_renewed(await opened.repository.vault(identity), lock)
                for identity in await opened.repository.namespaces()
                if identity.cluster_id == self.context.cluster_id
            ]
        renewed = [at for at in found if at is not None]
        oldest = min(renewed, default=None) if len(renewed) == len(found) else None
        kept = oldest is not None and now - oldest <= lock.renew_every
        return LockPromise(
            undeletable_for=format_duration(lock.promise), last_renewed=oldest, kept="True" if kept else "False"
        )

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


def _minute(now: datetime, before: datetime | None) -> datetime:
    """Return `before` unless a minute has passed: a check that finds nothing new writes nothing."""
    if before is not None and now - before < timedelta(seconds=CHECK_S):
        return before
    return now.replace(microsecond=0)
