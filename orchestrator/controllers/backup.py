"""Backups: gather what a run is over, decide, make its points, tell how they are.

Points are made by name (`decisions.backup.point_name`), so that any pass may be the first after a crash.
"""

from __future__ import annotations

import dataclasses
from typing import assert_never

import msgspec

from orchestrator.api.foreign.core import Namespace, PersistentVolumeClaim
from orchestrator.api.meta import Condition, ObjectMeta, with_condition
from orchestrator.api.tidemark.backup import Backup, BackupPhase, BackupStatus
from orchestrator.api.tidemark.backup_policy import BackupPolicy
from orchestrator.api.tidemark.fields import (
    ANNOTATION_POLICY,
    FINALIZER,
    LABEL_BACKUP_UID,
    LABEL_MANAGED_BY,
    LABEL_POLICY_UID,
    LABEL_PVC_UID,
    MANAGED_BY,
)
from orchestrator.api.tidemark.recovery_point import (
    FINAL_PHASES,
    PointPhase,
    PolicyRef,
    RecoveryPoint,
    RecoveryPointSpec,
)
from orchestrator.controllers.base import Controller, Key, Requeue
from orchestrator.controllers.status import patch_status
from orchestrator.decisions import backup as decisions
from orchestrator.decisions.backup import BackupSeen, PointPlan
from orchestrator.errors import Terminal, TidemarkError
from orchestrator.kube.errors import AlreadyExists
from orchestrator.observe.metrics import Result
from orchestrator.volumes.ownership import NameTaken

FOLLOW_S = 15.0
_RESULTS: dict[BackupPhase, Result] = {
    BackupPhase.COMPLETED: "completed",
    BackupPhase.FAILED: "failed",
    BackupPhase.CANCELLED: "cancelled",
}


class BackupController(Controller[Backup]):
    """One run over a policy's volumes."""

    name = "backup"
    kind = Backup

    def wire(self) -> None:
        """Wake for Backups, for their points, and for volumes that become free."""
        super().wire()
        self.watch(RecoveryPoint, self._runs_of)

    def _runs_of(self, point: RecoveryPoint) -> list[Key]:
        keys = {(point.namespace, point.spec.backup)} if point.spec.backup else set()
        if point.status.phase in FINAL_PHASES:
            keys |= {
                (b.namespace, b.name)
                for b in self.cache.all()
                if b.namespace == point.namespace and b.status.phase is BackupPhase.RUNNING
            }
        return sorted(keys)

    async def reconcile(self, key: Key) -> Requeue | None:
        """Bring one run a step further."""
        namespace, name = key
        backup = self.cache.get(name, namespace)
        if backup is None:
            return None
        seen = self._gather(backup)
        step = decisions.decide(seen)
        match step:
            case decisions.Done():
                return None
            case decisions.Start():
                await self._start(backup, step)
                return Requeue(0)
            case decisions.CreatePoints():
                for plan in step.plans:
                    await self._create_point(backup, plan)
                return Requeue(0)
            case decisions.CancelPoints():
                for point in step.names:
                    await self.context.client.merge_patch(RecoveryPoint, point, namespace, {"spec": {"cancel": True}})
                return Requeue(1)
            case decisions.Finish():
                await self._finish(backup, seen, step)
                return None
            case decisions.Follow():
                await self._count(backup, seen)
                return Requeue(FOLLOW_S)
            case _:
                assert_never(step)

    def _gather(self, backup: Backup) -> BackupSeen:
        caches, namespace = self.context.caches, backup.namespace
        points = caches.of(RecoveryPoint)
        # By name and label: a stranger's point under the name of one of ours is not the run's.
        own = {
            name: p
            for name in backup.status.points
            if (p := points.get(name, namespace)) is not None and p.metadata.labels.get(LABEL_BACKUP_UID) == backup.uid
        }
        policy = caches.of(BackupPolicy).get(backup.spec.policy, namespace) if backup.spec.policy else None
        home = caches.of(Namespace).get(namespace)
        seen = BackupSeen(
            backup=backup,
            policy=policy,
            claims=[c for c in caches.of(PersistentVolumeClaim).all() if c.namespace == namespace],
            points=own,
            busy=frozenset(),
            namespace_terminating=home is not None and home.deleting,
            cluster_id=self.context.cluster_id,
        )
        selection = decisions.selection_of(seen)
        repository = selection.repository if selection is not None else None
        busy = frozenset(
            p.spec.pvc_uid
            for p in points.all()
            if p.namespace == namespace
            and p.name not in own
            and p.spec.repository == repository
            and p.status.phase not in FINAL_PHASES
        )
        return dataclasses.replace(seen, busy=busy)

    async def _start(self, backup: Backup, step: decisions.Start) -> None:
        now = self.context.clock.now()
        status = msgspec.structs.replace(
            backup.status,
            observed_generation=backup.metadata.generation,
            phase=BackupPhase.RUNNING,
            start_time=now,
            points=step.points,
            volumes=len(step.points),
            progress=f"0/{len(step.points)}",
            conditions=with_condition(
                backup.status.conditions,
                Condition(
                    type="VolumesFound",
                    status="False" if step.missing else "True",
                    reason="VolumesMissing" if step.missing else "Found",
                    message=f"No such claims: {', '.join(step.missing[:10])}"[:512] if step.missing else "",
                    observed_generation=backup.metadata.generation,
                ),
                now,
            ),
        )
        await patch_status(self.context, backup, status)
        self.context.recorder.event(backup, "Normal", "Started", f"Making {len(step.points)} recovery points.")
        if step.missing:
            self.context.recorder.event(
                backup, "Warning", "VolumesMissing", f"No such claims: {', '.join(step.missing[:10])}."
            )

    async def _create_point(self, backup: Backup, plan: PointPlan) -> None:
        selection, claim = plan.selection, plan.claim
        policy = selection.policy
        labels = {LABEL_MANAGED_BY: MANAGED_BY, LABEL_BACKUP_UID: backup.uid, LABEL_PVC_UID: claim.uid}
        annotations = {}
        if policy is not None:
            labels[LABEL_POLICY_UID] = policy.uid
            annotations[ANNOTATION_POLICY] = f"{policy.namespace}/{policy.name}"
        point = RecoveryPoint(
            metadata=ObjectMeta(
                name=plan.name,
                namespace=backup.namespace,
                labels=labels,
                annotations=annotations,
                finalizers=(FINALIZER,),
            ),
            spec=RecoveryPointSpec(
                pvc_name=claim.name,
                pvc_uid=claim.uid,
                policy=PolicyRef(name=policy.name, uid=policy.uid) if policy is not None else None,
                backup=backup.name,
                slot=backup.spec.slot,
                repository=selection.repository,
                full=backup.spec.full,
                options=selection.options,
                expires=decisions.expires(backup, self.context.clock.now()),
            ),
        )
        try:
            await self.context.client.create(point)
        except AlreadyExists as error:
            found = await self.context.client.get(RecoveryPoint, plan.name, backup.namespace)
            if found.metadata.labels.get(LABEL_BACKUP_UID) != backup.uid or found.spec.pvc_uid != claim.uid:
                raise NameTaken("RecoveryPoint", backup.namespace, plan.name) from error

    def _counted(self, backup: Backup, seen: BackupSeen) -> BackupStatus:
        phases = [p.status.phase for p in seen.points.values()]
        completed = phases.count(PointPhase.COMPLETED)
        return msgspec.structs.replace(
            backup.status,
            observed_generation=backup.metadata.generation,
            completed=completed,
            failed=phases.count(PointPhase.FAILED) + phases.count(PointPhase.CANCELLED),
            progress=f"{completed}/{backup.status.volumes}",
        )

    async def _count(self, backup: Backup, seen: BackupSeen) -> None:
        await patch_status(self.context, backup, self._counted(backup, seen))

    async def _finish(self, backup: Backup, seen: BackupSeen, step: decisions.Finish) -> None:
        now, good = self.context.clock.now(), step.phase is BackupPhase.COMPLETED
        status = msgspec.structs.replace(
            self._counted(backup, seen),
            phase=step.phase,
            reason=step.reason,
            message="" if good else step.message,
            completion_time=now,
            conditions=with_condition(
                backup.status.conditions,
                Condition(
                    type="Complete",
                    status="True" if good else "False",
                    reason=step.reason,
                    message=step.message,
                    observed_generation=backup.metadata.generation,
                ),
                now,
            ),
        )
        await patch_status(self.context, backup, status)
        # After the write, which only one pass can win: a run is counted once. An unknown policy's name is no label.
        policy = seen.policy.name if seen.policy is not None else ""
        self.context.meter.backup_ended(backup.namespace, policy, _RESULTS[step.phase])
        self.context.recorder.event(backup, "Normal" if good else "Warning", step.reason, step.message)

    async def record_error(self, key: Key, error: TidemarkError) -> None:
        """Show an error on the run; one that no later pass can mend ends it."""
        backup = self.cache.get(key[1], key[0])
        if backup is None or backup.status.phase in (BackupPhase.COMPLETED, BackupPhase.FAILED, BackupPhase.CANCELLED):
            return
        if isinstance(error, Terminal):
            seen = self._gather(backup)
            await self._finish(backup, seen, decisions.Finish(BackupPhase.FAILED, error.reason, error.sentence()))
            return
        now = self.context.clock.now()
        new = Condition(type="Progressing", status="False", reason=error.reason, message=error.sentence())
        status = msgspec.structs.replace(backup.status, conditions=with_condition(backup.status.conditions, new, now))
        await patch_status(self.context, backup, status)
