"""Policies: make the Backup of a due slot, and tell how the policy stands.

Whatever wakes this (a timer, a change, the resync of at most a minute), `decisions.backup_policy` says what is due.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple, assert_never

import msgspec

from orchestrator.api.foreign.core import PersistentVolumeClaim
from orchestrator.api.meta import Condition, ObjectMeta, with_condition
from orchestrator.api.tidemark.backup import Backup, BackupPhase, BackupSpec
from orchestrator.api.tidemark.backup_policy import BackupPolicy, BackupPolicyStatus, ChunkSize, VolumeAge
from orchestrator.api.tidemark.backup_repository import BackupRepository
from orchestrator.api.tidemark.fields import ANNOTATION_POLICY, LABEL_MANAGED_BY, LABEL_POLICY_UID, MANAGED_BY
from orchestrator.api.tidemark.recovery_point import PointPhase, RecoveryPoint
from orchestrator.controllers.base import Controller, Key, Requeue
from orchestrator.controllers.rpo import Standing, standing_of
from orchestrator.controllers.status import patch_status
from orchestrator.decisions import backup_policy as decisions
from orchestrator.decisions.backup import select
from orchestrator.decisions.backup_policy import PolicySeen
from orchestrator.decisions.retention import rules_of
from orchestrator.errors import TidemarkError
from orchestrator.kube.cache import Caches
from orchestrator.kube.errors import AlreadyExists
from orchestrator.volumes.ownership import NameTaken
from policies.duration import BadDuration, parse_duration
from policies.retention import keeps_nothing
from policies.schedule import Plan, next_slot

TELL_S = 30.0
"""Seconds after which a policy's ages are told anew; also how soon a slot held back by a run is looked at again."""
KEEP_BACKUPS = 20
"""Finished Backups of a schedule kept for people to read; the points stay."""
CHUNK_SIZE_APPLIED = "ChunkSizeApplied"
"""Condition: whether all selected volumes with points are cut as the policy asks; only where it asks."""
SHOWN = 5
"""Volumes that its message names."""


class Problem(NamedTuple):
    """What is wrong with a part of a spec."""

    reason: str
    message: str


NO_VOLUMES = Problem(
    "NoVolumes",
    "spec.volumes selects no bound claim of this namespace: nothing is protected. Compare it with "
    "'kubectl get pvc --show-labels'.",
)


def _retention_problem(policy: BackupPolicy) -> Problem | None:
    if policy.spec.retention is None:
        return None
    try:
        nothing = keeps_nothing(rules_of(policy.spec.retention))
    except BadDuration as error:
        return Problem("BadDuration", f"spec.retention.keepWithin: {error}; no point is dropped.")
    text = "spec.retention keeps nothing; it is not applied. Set keepLast, keepWithin or a calendar rule."
    return Problem("KeepsNothing", text) if nothing else None


def _objective_problem(policy: BackupPolicy) -> Problem | None:
    if policy.spec.objective is None:
        return None
    try:
        if parse_duration(policy.spec.objective.rpo):
            return None
        error: object = "must be longer than zero"
    except BadDuration as bad:
        error = bad
    return Problem("BadDuration", f"spec.objective.rpo: {error}; nothing is promised.")


def _chunk_size_problem(policy: BackupPolicy, wished: ChunkSize, caches: Caches) -> Problem | None:
    """Return which volumes keep another chunk size than the wished one, because they have points already."""
    kept = [f"{name} ({size})" for name, size in sorted(_chunk_sizes(policy, caches).items()) if size != wished.value]
    if not kept:
        return None
    shown = ", ".join(kept[:SHOWN]) + (f" and {len(kept) - SHOWN} more" if len(kept) > SHOWN else "")
    return Problem(
        "ChunkSizeKept",
        f"spec.options.chunkSize {wished.value} counts for a volume's first point in a repository. In chunks of "
        f"another size, and staying so in this one: {shown}",
    )


def _chunk_sizes(policy: BackupPolicy, caches: Caches) -> dict[str, str]:
    """Return the chunk sizes of the selected claims that have points in the policy's repository, by claim."""
    newest: dict[str, RecoveryPoint] = {}
    for point in caches.of(RecoveryPoint).all():
        here = (point.namespace, point.spec.repository) == (policy.namespace, policy.spec.repository)
        if here and point.status.phase is PointPhase.COMPLETED and point.status.chunk_size:
            before = newest.setdefault(point.spec.pvc_uid, point)
            if before.status.sequence < point.status.sequence:
                newest[point.spec.pvc_uid] = point
    claims = [c for c in caches.of(PersistentVolumeClaim).all() if c.namespace == policy.namespace]
    selected = select(policy.spec.volumes, claims)
    return {c.name: newest[c.uid].status.chunk_size for c in selected if c.uid in newest}


class BackupPolicyController(Controller[BackupPolicy]):
    """What a policy asks for."""

    name = "backup_policy"
    kind = BackupPolicy

    def wire(self) -> None:
        """Wake for policies, their runs and their points."""
        super().wire()
        self.watch(Backup, lambda b: [(b.namespace, b.spec.policy)] if b.spec.policy else [])
        self.watch(RecoveryPoint, lambda p: [(p.namespace, p.spec.policy.name)] if p.spec.policy else [])

    async def reconcile(self, key: Key) -> Requeue | None:
        """Make what is due, then tell how the policy stands."""
        namespace, name = key
        policy = self.cache.get(name, namespace)
        if policy is None or policy.deleting:
            return None
        now = self.context.clock.now()
        conditions = self._checked(policy, now)
        plan: Plan | None = None
        problem: Problem | None = None
        try:
            plan = decisions.plan_of(policy, now)
        except ValueError as error:  # BadSchedule and BadDuration among them
            problem = Problem("BadSchedule", str(error))
        conditions = self._judged(policy, conditions, "ScheduleValid", problem, now)
        told = self._told(policy, plan, now)
        conditions = self._judged(policy, conditions, "VolumesSelected", None if told.volumes else NO_VOLUMES, now)
        backups = [b for b in self.context.caches.of(Backup).all() if b.namespace == namespace]
        step = decisions.decide(PolicySeen(policy, backups, now, self.context.cluster_id), plan)
        status = msgspec.structs.replace(told, conditions=conditions, observed_generation=policy.metadata.generation)
        match step:
            case decisions.CreateBackup():
                await self._create(policy, step)
                status = msgspec.structs.replace(
                    status,
                    last_slot=step.slot,
                    last_backup=step.name,
                    missed_slots=policy.status.missed_slots + step.missed,
                )
            case decisions.Idle():
                pass
            case _:
                assert_never(step)
        await patch_status(self.context, policy, status)
        if isinstance(step, decisions.CreateBackup) and step.missed:
            # After the write, which only one pass can win: a slot is counted and told of once.
            self.context.meter.slots_were_missed(namespace, name, step.missed)
            text = f"{step.missed} slots passed without a backup; made the newest."
            self.context.recorder.event(policy, "Warning", "SlotsMissed", text)
        await self._tidy(policy, backups)
        return Requeue(TELL_S)

    async def _create(self, policy: BackupPolicy, step: decisions.CreateBackup) -> None:
        backup = Backup(
            metadata=ObjectMeta(
                name=step.name,
                namespace=policy.namespace,
                labels={LABEL_MANAGED_BY: MANAGED_BY, LABEL_POLICY_UID: policy.uid},
                annotations={ANNOTATION_POLICY: f"{policy.namespace}/{policy.name}"},
            ),
            spec=BackupSpec(policy=policy.name, slot=step.slot),
        )
        try:
            created = await self.context.client.create(backup)
        except AlreadyExists as error:
            found = await self.context.client.get(Backup, step.name, policy.namespace)
            same = (found.spec.policy, found.spec.slot) == (policy.name, step.slot)
            if found.metadata.labels.get(LABEL_POLICY_UID) != policy.uid or not same:
                raise NameTaken("Backup", policy.namespace, step.name) from error
            return
        self.context.caches.learn(created)

    def _told(self, policy: BackupPolicy, plan: Plan | None, now: datetime) -> BackupPolicyStatus:
        standing: Standing = standing_of(self.context.caches, policy, now)
        upcoming = None if plan is None or policy.spec.suspend else next_slot(plan, now)
        objective = policy.spec.objective
        protected = [e for e in standing.exposures if e.protected]
        within = sum(1 for e in standing.exposures if not e.breached)
        worst = standing.worst(10)
        if policy.spec.suspend:
            shown = "suspended"
        elif upcoming is None:
            shown = "on demand"
        else:
            shown = upcoming.strftime("%Y-%m-%dT%H:%M:%SZ")
        return msgspec.structs.replace(
            policy.status,
            next_slot=shown,
            volumes=len(standing.exposures),
            protected=len(protected),
            compliant=f"{within}/{len(standing.exposures)}",
            points=standing.points,
            rpo=objective.rpo if objective else "",
            oldest_point_time=worst[0].since if worst else None,
            last_point_time=max((e.since for e in protected), default=None),
            worst=tuple(
                VolumeAge(
                    pvc=e.volume.name,
                    last_point_time=e.volume.last_point,
                    message="" if e.protected else "Never backed up.",
                )
                for e in worst
            ),
        )

    def _checked(self, policy: BackupPolicy, now: datetime) -> tuple[Condition, ...]:
        """Return conditions for what a schema can't say: of the repository, chunk sizes, retention and objective."""
        conditions = policy.status.conditions
        reason, message = "Ready", ""
        name = policy.spec.repository
        if name is not None:
            repository = self.context.caches.of(BackupRepository).get(name)
            if repository is None:
                reason, message = (
                    "RepositoryNotFound",
                    f"There is no BackupRepository {name!r}; create it or mend the name.",
                )
            elif "*" not in (allowed := repository.spec.allowed_namespaces) and policy.namespace not in allowed:
                reason = "NamespaceNotAllowed"
                message = f"BackupRepository {name!r} does not admit this namespace; ask its admin to add it."
            elif repository.status.ready == "False":
                reason, message = "RepositoryNotReady", f"BackupRepository {name!r} is not ready; see its conditions."
        else:
            reason, message = "SnapshotsOnly", "No repository: snapshots are lost together with the storage system."
        good = reason in ("Ready", "SnapshotsOnly")
        conditions = with_condition(
            conditions,
            Condition(
                type="RepositoryReady",
                status="True" if good else "False",
                reason=reason,
                message=message,
                observed_generation=policy.metadata.generation,
            ),
            now,
        )
        if not good:
            self._warn_once(policy, "RepositoryReady", reason, message)
        wished = policy.spec.options.chunk_size
        conditions = tuple(c for c in conditions if wished is not None or c.type != CHUNK_SIZE_APPLIED)
        if wished is not None:
            problem = _chunk_size_problem(policy, wished, self.context.caches)
            conditions = self._judged(policy, conditions, CHUNK_SIZE_APPLIED, problem, now)
        conditions = self._judged(policy, conditions, "RetentionValid", _retention_problem(policy), now)
        return self._judged(policy, conditions, "ObjectiveValid", _objective_problem(policy), now)

    def _judged(
        self,
        policy: BackupPolicy,
        conditions: tuple[Condition, ...],
        type_: str,
        problem: Problem | None,
        now: datetime,
    ) -> tuple[Condition, ...]:
        """Return the conditions with one more, which says what is wrong with a part of the spec, if anything is."""
        if problem is not None:
            self._warn_once(policy, type_, problem.reason, problem.message)
        condition = Condition(
            type=type_,
            status="False" if problem else "True",
            reason=problem.reason if problem else "Valid",
            message=problem.message[:512] if problem else "",
            observed_generation=policy.metadata.generation,
        )
        return with_condition(conditions, condition, now)

    def _warn_once(self, policy: BackupPolicy, type_: str, reason: str, message: str) -> None:
        """Say it as an Event when the condition turns, not at every pass."""
        old = next((c for c in policy.status.conditions if c.type == type_), None)
        if old is None or (old.status, old.reason, old.message) != ("False", reason, message[:512]):
            self.context.recorder.event(policy, "Warning", reason, message)

    async def _tidy(self, policy: BackupPolicy, backups: list[Backup]) -> None:
        """Remove the oldest finished Backups of the schedule: records of runs, never data."""
        over = (BackupPhase.COMPLETED, BackupPhase.FAILED, BackupPhase.CANCELLED)
        mine = [
            b
            for b in backups
            if b.metadata.labels.get(LABEL_POLICY_UID) == policy.uid
            and b.spec.slot is not None
            and b.status.phase in over
            and not b.deleting
        ]
        mine.sort(key=lambda b: (b.spec.slot is not None, b.spec.slot), reverse=True)
        for old in mine[KEEP_BACKUPS:]:
            await self.context.client.delete(Backup, old.name, old.namespace, uid=old.uid)

    async def record_error(self, key: Key, error: TidemarkError) -> None:
        """Show what keeps the schedule from being followed."""
        policy = self.cache.get(key[1], key[0])
        if policy is None:
            return
        new = Condition(type="Progressing", status="False", reason=error.reason, message=error.sentence())
        conditions = with_condition(policy.status.conditions, new, self.context.clock.now())
        await patch_status(self.context, policy, msgspec.structs.replace(policy.status, conditions=conditions))
