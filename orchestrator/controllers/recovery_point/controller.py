"""Recovery points: gather what is there, decide, act. The life of a point is drawn in `decisions.recovery_point`."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import assert_never

from orchestrator.api.foreign.core import Job, Namespace, PersistentVolume, PersistentVolumeClaim, Pod
from orchestrator.api.foreign.snapshot import VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent
from orchestrator.api.meta import K8sObject
from orchestrator.api.tidemark.backup_policy import BackupPolicy
from orchestrator.api.tidemark.fields import LABEL_POINT_UID
from orchestrator.api.tidemark.recovery_point import FINAL_PHASES, PointPhase, RecoveryPoint
from orchestrator.controllers.base import Context, Controller, Key, Requeue
from orchestrator.controllers.recovery_point import choosing, moving, planning, recording, removal, snapshotting
from orchestrator.controllers.recovery_point.ladder import Memory
from orchestrator.controllers.recovery_point.work import Work
from orchestrator.decisions import recovery_point as decisions
from orchestrator.decisions import stall
from orchestrator.decisions.recovery_point import Bounds, MoverSeen, RecoveryPointSeen
from orchestrator.errors import Terminal, TidemarkError
from orchestrator.kube.errors import NamespaceTerminating, NotFound
from orchestrator.repository.errors import ShardsMissing
from orchestrator.volumes import clone, rehome
from orchestrator.volumes import job as jobs
from orchestrator.volumes.job import JobSeen

SOON = Requeue(0)
POLL = Requeue(1.0)
PENDING = Requeue(2.0)
"""While a mover's pod is not running: pods of a real cluster tell by watch, and this is for those that don't."""
DEFAULT_SNAPSHOTS = 1
TOLD = frozenset({"VolumeNotBound", "SnapshotError"})
"""Waits that a person should read of; the others are the ordinary way."""
PROGRESSING = "Progressing"


class RecoveryPointController(Controller[RecoveryPoint]):
    """One volume at one moment, from its snapshot to its record."""

    name = "recovery_point"
    kind = RecoveryPoint

    def __init__(self, context: Context) -> None:
        """Take what `app` made."""
        super().__init__(context)
        self._memory = Memory(context.clock)
        self._planning: dict[str, asyncio.Lock] = {}
        """One plan at a time per claim, so that no two points take one sequence number."""
        self._asked: dict[str, float] = {}
        """When a mover's progress was last asked for, by point: our own writes must not make us ask again."""

    def wire(self) -> None:
        """Wake for points, for what was made for them, and for older points when a newer one is done."""
        super().wire()
        self.watch(RecoveryPoint, self._older)
        for kind in (VolumeSnapshot, VolumeSnapshotContent, Job, Pod, PersistentVolumeClaim, PersistentVolume):
            self.watch(kind, self._made_for)

    def _made_for(self, obj: K8sObject) -> Iterable[Key]:
        point = self.cache.by_uid(obj.metadata.labels.get(LABEL_POINT_UID, ""))
        return [(point.namespace, point.name)] if point is not None else []

    def _older(self, point: RecoveryPoint) -> Iterable[Key]:
        if point.status.phase is not PointPhase.COMPLETED:
            return []
        return [(p.namespace, p.name) for p in self._siblings(point) if p.status.snapshot_kept]

    def _siblings(self, point: RecoveryPoint) -> list[RecoveryPoint]:
        """Return the points of the same volume in the same repository, this one as it is in hand."""
        known = self.cache.by_index("pvc", point.spec.pvc_uid)
        volume = (point.spec.repository, point.status.driver, point.status.volume_handle)
        same = [p for p in known if (p.spec.repository, p.status.driver, p.status.volume_handle) == volume]
        return [p for p in same if p.uid != point.uid and p.namespace == point.namespace] + [point]

    async def reconcile(self, key: Key) -> Requeue | None:
        """Bring one point a step further."""
        point = self.cache.get(key[1], key[0])
        if point is None:
            return None
        if point.status.phase is not PointPhase.COPYING or point.deleting:
            self._asked.pop(point.uid, None)
        seen, job = await self._gather(point)
        work = Work(self.context, point)
        step = decisions.decide(seen)
        again = await self._act(work, seen, job, step)
        if not (isinstance(step, decisions.Wait) and step.reason in TOLD):
            await self._clear(work)
        return again

    # What is there

    async def _gather(self, point: RecoveryPoint) -> tuple[RecoveryPointSeen, JobSeen]:
        """Read what the phase's decision rests on: live, because a cache may be behind what we did ourselves."""
        job = JobSeen("missing")
        seen = self._base(point)
        if not point.deleting and point.status.phase is PointPhase.COMPLETED and point.status.snapshot_kept:
            seen = dataclasses.replace(seen, claim_gone=await self._claim_gone(point))
        if not point.deleting and point.status.phase is PointPhase.COMPLETED and not point.status.snapshot_kept:
            content = self.context.caches.of(VolumeSnapshotContent).get(point.status.content_name)
            ours = content is not None and content.metadata.labels.get(LABEL_POINT_UID) == point.uid
            seen = dataclasses.replace(seen, snapshot_lingers=ours)
        if point.deleting or point.status.phase in FINAL_PHASES:
            return seen, job
        match point.status.phase:
            case PointPhase.PENDING:
                seen = await self._gather_volume(seen)
            case PointPhase.SNAPSHOTTING | PointPhase.PLANNING:
                seen = await self._gather_snapshot(seen)
            case PointPhase.COPYING:
                return await self._gather_copy(seen)
            case _:
                pass
        return seen, job

    def _base(self, point: RecoveryPoint) -> RecoveryPointSeen:
        settings, caches = self.context.settings, self.context.caches
        home = caches.of(Namespace).get(point.namespace)
        return RecoveryPointSeen(
            point=point,
            now=self.context.clock.now(),
            bounds=Bounds(
                snapshot_timeout_s=settings.snapshot_timeout_s,
                clone_timeout_s=settings.clone_timeout_s,
                mover_attempts=settings.mover_attempts,
                finalizer_bound_s=settings.finalizer_bound_s,
                mover_stall_s=settings.mover_stall_s,
            ),
            namespace_gone=home is not None and home.deleting,
            siblings=self._siblings(point),
            snapshots_kept=self._snapshots_kept(point),
        )

    def _snapshots_kept(self, point: RecoveryPoint) -> int:
        named = point.spec.policy
        policy = self.context.caches.of(BackupPolicy).get(named.name, point.namespace) if named is not None else None
        if named is None or policy is None or policy.uid != named.uid or policy.spec.retention is None:
            return DEFAULT_SNAPSHOTS
        return policy.spec.retention.snapshots or DEFAULT_SNAPSHOTS

    async def _claim_gone(self, point: RecoveryPoint) -> bool:
        """Return whether the volume's claim is gone for good: as the cache says, and then as the API server does."""
        claims = self.context.caches.of(PersistentVolumeClaim)
        if claims.by_uid(point.spec.pvc_uid) is not None:
            return False
        found = await self.context.client.find(PersistentVolumeClaim, point.spec.pvc_name, point.namespace)
        return found is None or found.uid != point.spec.pvc_uid

    async def _gather_volume(self, seen: RecoveryPointSeen) -> RecoveryPointSeen:
        client, point = self.context.client, seen.point
        claim = await client.find(PersistentVolumeClaim, point.spec.pvc_name, point.namespace)
        volume = None
        if claim is not None and claim.spec.volume_name:
            volume = await client.find(PersistentVolume, claim.spec.volume_name)
        classes = self.context.caches.of(VolumeSnapshotClass).all()
        return dataclasses.replace(seen, claim=claim, volume=volume, classes=classes)

    async def _gather_snapshot(self, seen: RecoveryPointSeen) -> RecoveryPointSeen:
        client, status = self.context.client, seen.point.status
        snapshot = await client.find(VolumeSnapshot, status.snapshot_name, seen.point.namespace)
        if snapshot is not None and snapshot.uid != status.snapshot_uid:
            snapshot = None
        bound = snapshot.status.bound_volume_snapshot_content_name if snapshot and snapshot.status else None
        name = status.content_name or bound
        content = await client.find(VolumeSnapshotContent, name) if name else None
        return dataclasses.replace(seen, snapshot=snapshot, content=content)

    async def _gather_copy(self, seen: RecoveryPointSeen) -> tuple[RecoveryPointSeen, JobSeen]:
        client, caches, settings = self.context.client, self.context.caches, self.context.settings
        work = Work(self.context, seen.point)
        job = await jobs.look(client, caches, work.name, settings, work.owner)
        mover = MoverSeen(job.state, job.attempt, job.deleting, job.outcome, job.message)
        if stall.overdue(seen.point.status.conditions, seen.now, settings.mover_stall_s):
            said = await jobs.progress(client, job, settings)
            mover = dataclasses.replace(mover, sign=stall.sign(job.attempt, job.state, said))
        seen = dataclasses.replace(seen, mover=mover)
        stopping = seen.point.spec.cancel or seen.point.spec.prune or seen.namespace_gone
        if stopping:
            return seen, job
        if decisions.asks_repository(seen.point, mover):
            seen = dataclasses.replace(seen, committed=await recording.is_committed(work))
        if mover.state == "missing" and not seen.committed:
            imported = await rehome.look(client, work.name, settings, work.owner)
            found = await clone.look(client, caches, work.name, settings, work.owner)
            seen = dataclasses.replace(
                seen,
                rehome_started=imported.content is not None and imported.snapshot is not None,
                rehomed=imported.ready,
                cloned=found.state in ("pending", "bound"),
            )
        return seen, job

    # What to do

    async def _act(self, work: Work, seen: RecoveryPointSeen, job: JobSeen, step: decisions.Step) -> Requeue | None:
        match step:
            case decisions.Done():
                return None
            case decisions.Wait():
                await self._wait(work, step)
                return Requeue(step.after_s)
            case decisions.Protect():
                await work.hold()
                return SOON
            case decisions.TakeSnapshot() | decisions.ClaimSnapshot() | decisions.Complete():
                return await self._act_on_snapshot(work, seen, step)
            case decisions.ChooseBase() | decisions.PlanCopy():
                return await self._act_on_plan(work, seen, step)
            case decisions.Rehome() | decisions.Clone() | decisions.StartMover() | decisions.Follow():
                return await self._act_on_mover(work, job, step)
            case decisions.RetryMover() | decisions.RemoveMover() | decisions.ReleaseSlot():
                return await self._act_on_failure(work, job, step)
            case decisions.Commit() | decisions.Record() | decisions.Fail():
                return await self._act_on_end(work, job, step)
            case decisions.TearDown() | decisions.Release() | decisions.DropSnapshot() | decisions.Prune():
                return await self._act_on_rest(work, step)
            case _:
                assert_never(step)

    async def _act_on_snapshot(
        self,
        work: Work,
        seen: RecoveryPointSeen,
        step: decisions.TakeSnapshot | decisions.ClaimSnapshot | decisions.Complete,
    ) -> Requeue | None:
        match step:
            case decisions.TakeSnapshot():
                await snapshotting.take(work, seen, step.class_name)
            case decisions.ClaimSnapshot():
                await snapshotting.claim(work, seen)
            case decisions.Complete():
                sequence = max(p.status.sequence for p in seen.siblings) + 1
                await snapshotting.complete(work, sequence)
            case _:
                assert_never(step)
        return SOON

    async def _act_on_plan(
        self, work: Work, seen: RecoveryPointSeen, step: decisions.ChooseBase | decisions.PlanCopy
    ) -> Requeue | None:
        match step:
            case decisions.ChooseBase():
                async with self._alone(work.point.spec.pvc_uid):
                    # Read again under the lock: another point of the volume may have taken a number meanwhile.
                    await choosing.choose(work, dataclasses.replace(seen, siblings=self._siblings(work.point)))
            case decisions.PlanCopy():
                await planning.plan_copy(work, seen, self._memory)
            case _:
                assert_never(step)
        return SOON

    @asynccontextmanager
    async def _alone(self, claim_uid: str) -> AsyncIterator[None]:
        lock = self._planning.setdefault(claim_uid, asyncio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._planning.pop(claim_uid, None)

    async def _act_on_mover(
        self,
        work: Work,
        job: JobSeen,
        step: decisions.Rehome | decisions.Clone | decisions.StartMover | decisions.Follow,
    ) -> Requeue | None:
        match step:
            case decisions.Rehome():
                await moving.import_snapshot(work)
                return SOON
            case decisions.Clone():
                await moving.make_clone(work)
                return SOON
            case decisions.StartMover():
                await moving.start_mover(work, step.attempt)
                return PENDING
            case decisions.Follow():
                return await self._follow(work, job)
            case _:
                assert_never(step)

    async def _follow(self, work: Work, job: JobSeen) -> Requeue:
        if job.state != "running":
            await moving.tell_pending(work, job)
            return PENDING
        now, uid = self.context.clock.monotonic(), work.point.uid
        wait_s = self._asked.get(uid, -math.inf) + moving.PROGRESS_S - now
        if wait_s > 0:
            return Requeue(wait_s)
        self._asked[uid] = now
        await moving.follow(work, job)
        return Requeue(moving.PROGRESS_S)

    async def _act_on_failure(
        self,
        work: Work,
        job: JobSeen,
        step: decisions.RetryMover | decisions.RemoveMover | decisions.ReleaseSlot,
    ) -> Requeue | None:
        match step:
            case decisions.RemoveMover():
                done = await moving.remove_mover(work)
            case decisions.RetryMover():
                done = await moving.retry_mover(work, job.attempt, step.reason, step.message)
            case decisions.ReleaseSlot():
                done = await moving.release_slot(work, job)
            case _:
                assert_never(step)
        return SOON if done else POLL

    async def _act_on_end(
        self, work: Work, job: JobSeen, step: decisions.Commit | decisions.Record | decisions.Fail
    ) -> Requeue | None:
        match step:
            case decisions.Commit():
                try:
                    await recording.commit_point(work)
                except ShardsMissing as error:
                    if job.state != "succeeded":
                        raise
                    # It said that all is well, and it is not there: what is in the repository is the truth.
                    await moving.retry_mover(work, job.attempt, error.reason, str(error))
                    return POLL
            case decisions.Record():
                await recording.record_point(work)
            case decisions.Fail():
                await recording.end(work, step.phase, step.reason, step.message)
            case _:
                assert_never(step)
        return SOON

    async def _act_on_rest(
        self, work: Work, step: decisions.TearDown | decisions.Release | decisions.DropSnapshot | decisions.Prune
    ) -> Requeue | None:
        match step:
            case decisions.TearDown():
                return SOON if await removal.tear_down(work, step.destroy_snapshot) else POLL
            case decisions.Release():
                await work.release()
                return None
            case decisions.DropSnapshot():
                return None if await removal.drop_snapshot(work) else POLL
            case decisions.Prune():
                await removal.prune_point(self.context, work.point)
                work.event("Normal", "Pruned", "The data was removed on request; its space comes back by maintenance.")
                return None
            case _:
                assert_never(step)

    # What is told

    async def _wait(self, work: Work, step: decisions.Wait) -> None:
        if step.reason in TOLD:
            await work.write(conditions=work.conditions(PROGRESSING, "False", step.reason, step.message))

    async def _clear(self, work: Work) -> None:
        """Take back what an error or a wait said, once a step went well."""
        told = next((c for c in work.status.conditions if c.type == PROGRESSING), None)
        if told is not None and told.status == "False" and not work.point.deleting:
            await work.write(conditions=work.conditions(PROGRESSING, "True", "Progressing"))

    async def record_error(self, key: Key, error: TidemarkError) -> None:
        """Show an error on the point; one that no later pass can mend ends it."""
        point = self.cache.get(key[1], key[0])
        if point is None or point.deleting:
            return
        work = Work(self.context, point)
        if point.status.phase in FINAL_PHASES or not isinstance(error, Terminal) or isinstance(error, NotFound):
            await work.write(conditions=work.conditions(PROGRESSING, "False", error.reason, error.sentence()))
        elif isinstance(error, NamespaceTerminating):
            await recording.end(work, PointPhase.CANCELLED, error.reason, error.sentence())
        else:
            await recording.end(work, PointPhase.FAILED, error.reason, error.sentence())
