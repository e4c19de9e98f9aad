"""When a repository's maintenance and its verification are due, and when they are overdue."""

from __future__ import annotations

from datetime import datetime, timedelta

from orchestrator.api.tidemark.backup_policy import Schedule
from orchestrator.api.tidemark.backup_repository import BackupRepository, VerifyDepth
from policies.duration import parse_duration
from policies.schedule import Plan, cron_plan, due_slots, interval_plan

DEFAULT_EVERY = timedelta(hours=24)
DEFAULT_JITTER = timedelta(hours=1)
VERIFY_EVERY = timedelta(days=7)
VERIFY_JITTER = timedelta(hours=12)
VERIFY_DEADLINE = timedelta(hours=24)
OVERDUE_SLOTS = 2


def plan_of(repository: BackupRepository, now: datetime) -> Plan:
    """Return when what no point needs is swept. Raises BadSchedule, ValueError."""
    return _plan(repository.spec.maintenance.schedule, repository.uid, now, DEFAULT_EVERY, DEFAULT_JITTER)


def verify_plan_of(repository: BackupRepository, now: datetime) -> Plan:
    """Return when what is stored is proven. Raises BadSchedule, ValueError."""
    return _plan(repository.spec.verify.schedule, repository.uid, now, VERIFY_EVERY, VERIFY_JITTER)


def _plan(schedule: Schedule | None, uid: str, now: datetime, every: timedelta, spread: timedelta) -> Plan:
    if schedule is None:
        return interval_plan(every, jitter=spread, uid=uid)
    jitter = parse_duration(schedule.jitter) if schedule.jitter else timedelta(0)
    if schedule.every is not None:
        return interval_plan(parse_duration(schedule.every), jitter=jitter, uid=uid)
    return cron_plan(schedule.cron or "", schedule.time_zone, jitter=jitter, uid=uid, now=now)


def due(repository: BackupRepository, now: datetime) -> datetime | None:
    """Return the maintenance slot to run now, None when nothing is due."""
    if repository.spec.maintenance.suspend or repository.deleting or not repository.status.repository_id:
        return None
    created = repository.metadata.creation_timestamp or now
    return due_slots(plan_of(repository, now), repository.status.last_maintenance_slot, now, created).newest


def verify_due(repository: BackupRepository, now: datetime) -> datetime | None:
    """Return the verification slot to run now, None when nothing is due."""
    if repository.spec.verify.suspend or repository.deleting or not repository.status.repository_id:
        return None
    created = repository.metadata.creation_timestamp or now
    return due_slots(verify_plan_of(repository, now), repository.status.last_verification_slot, now, created).newest


def maintenance_overdue(repository: BackupRepository, now: datetime) -> bool | None:
    """Return whether more than OVERDUE_SLOTS maintenance slots passed since a sweep last completed.

    Switched off is not stuck; None where the schedule can't be read, as the repository's own condition says.
    """
    if repository.spec.maintenance.suspend:
        return False
    try:
        return _overdue(plan_of(repository, now), repository, repository.status.last_maintenance, now)
    except ValueError:
        return None


def verification_overdue(repository: BackupRepository, now: datetime) -> bool | None:
    """Return the same of verifications: the last one that went through every namespace."""
    if repository.spec.verify.suspend:
        return False
    try:
        return _overdue(verify_plan_of(repository, now), repository, repository.status.last_verified, now)
    except ValueError:
        return None


def _overdue(plan: Plan, repository: BackupRepository, last: datetime | None, now: datetime) -> bool:
    passed = due_slots(plan, last, now, repository.metadata.creation_timestamp or now)
    return passed.newest is not None and passed.missed >= OVERDUE_SLOTS


def sample_of(repository: BackupRepository) -> float:
    """Return the share of the chunks that a verification reads, 0 to 1."""
    match repository.spec.verify.depth:
        case VerifyDepth.QUICK:
            return 0.0
        case VerifyDepth.SAMPLED:
            return repository.spec.verify.sample_percent / 100
        case VerifyDepth.FULL:
            return 1.0


def next_turn(repository: BackupRepository) -> int:
    """Return which part of the chunks the next sample takes: each run takes another, until all were read."""
    last = repository.status.verification
    return last.turn + 1 if last is not None else 0


def verify_deadline(repository: BackupRepository) -> timedelta:
    """Return after how long a namespace's verification is given up. Raises ValueError."""
    given = repository.spec.verify.deadline
    return parse_duration(given) if given is not None else VERIFY_DEADLINE
