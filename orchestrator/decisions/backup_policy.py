"""What a BackupPolicy asks for now: a run for the newest due slot, or just its status told.

Any waking may call this. A slot becomes a Backup whose name is made from policy and slot, and only then does
`lastSlot` move on: firing twice, or from two controllers, makes one. While a run of the schedule goes on the next
slot waits; of several that waited only the newest is made, and the missed ones are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.api.tidemark.backup import Backup, BackupPhase
from orchestrator.api.tidemark.backup_policy import BackupPolicy
from policies.duration import parse_duration
from policies.naming import object_name
from policies.schedule import Plan, cron_plan, due_slots, interval_plan


@dataclass(frozen=True, slots=True)
class PolicySeen:
    """All that a decision about a policy rests on."""

    policy: BackupPolicy
    backups: Sequence[Backup]
    """Of the policy's namespace."""
    now: datetime
    cluster_id: str


@dataclass(frozen=True, slots=True)
class CreateBackup:
    """Make the slot's Backup, then move `lastSlot` on."""

    name: str
    slot: datetime
    missed: int


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing is due."""

    waiting_for: str = ""
    """A run that goes on and holds back a due slot."""


Step = CreateBackup | Idle


def plan_of(policy: BackupPolicy, now: datetime) -> Plan | None:
    """Return when the policy's backups are due, None for on demand only. Raises BadSchedule, ValueError.

    Without a schedule half the RPO is the interval: a point is then never older than the RPO as long as a run takes
    less than the other half.
    """
    schedule, objective = policy.spec.schedule, policy.spec.objective
    if schedule is None:
        if objective is None:
            return None
        return interval_plan(max(parse_duration(objective.rpo) / 2, timedelta(minutes=1)), uid=policy.uid)
    jitter = parse_duration(schedule.jitter) if schedule.jitter else timedelta(0)
    if schedule.every is not None:
        return interval_plan(parse_duration(schedule.every), jitter=jitter, uid=policy.uid)
    return cron_plan(schedule.cron or "", schedule.time_zone, jitter=jitter, uid=policy.uid, now=now)


def backup_name(policy: BackupPolicy, slot: datetime, cluster_id: str) -> str:
    """Return the name of a slot's Backup: made from the nominal time, without jitter."""
    return object_name(policy.name, cluster_id, policy.uid, slot.isoformat())


def running(policy: BackupPolicy, backups: Sequence[Backup]) -> Backup | None:
    """Return a run of the policy's schedule that is not over."""
    over = (BackupPhase.COMPLETED, BackupPhase.FAILED, BackupPhase.CANCELLED)
    for backup in backups:
        if backup.spec.policy == policy.name and backup.spec.slot is not None and backup.status.phase not in over:
            return backup
    return None


def decide(seen: PolicySeen, plan: Plan | None) -> Step:
    """Choose what to do now. `plan` comes from `plan_of`."""
    policy = seen.policy
    created = policy.metadata.creation_timestamp or seen.now
    if plan is None or policy.spec.suspend or policy.deleting:
        return Idle()
    due = due_slots(plan, policy.status.last_slot, seen.now, created)
    if due.newest is None:
        return Idle()
    ongoing = running(policy, seen.backups)
    if ongoing is not None:
        return Idle(waiting_for=ongoing.name)
    return CreateBackup(backup_name(policy, due.newest, seen.cluster_id), due.newest, due.missed)
