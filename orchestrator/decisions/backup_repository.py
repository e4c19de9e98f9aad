"""When a repository's maintenance is due."""

from __future__ import annotations

from datetime import datetime, timedelta

from orchestrator.api.tidemark.backup_repository import BackupRepository
from policies.duration import parse_duration
from policies.schedule import Plan, cron_plan, due_slots, interval_plan

DEFAULT_EVERY = timedelta(hours=24)


def plan_of(repository: BackupRepository, now: datetime) -> Plan:
    """Return when what no point needs is swept. Raises BadSchedule, ValueError."""
    schedule = repository.spec.maintenance.schedule
    if schedule is None:
        return interval_plan(DEFAULT_EVERY, jitter=timedelta(hours=1), uid=repository.uid)
    jitter = parse_duration(schedule.jitter) if schedule.jitter else timedelta(0)
    if schedule.every is not None:
        return interval_plan(parse_duration(schedule.every), jitter=jitter, uid=repository.uid)
    return cron_plan(schedule.cron or "", schedule.time_zone, jitter=jitter, uid=repository.uid, now=now)


def due(repository: BackupRepository, now: datetime) -> datetime | None:
    """Return the maintenance slot to run now, None when nothing is due."""
    if repository.spec.maintenance.suspend or repository.deleting or not repository.status.repository_id:
        return None
    created = repository.metadata.creation_timestamp or now
    return due_slots(plan_of(repository, now), repository.status.last_maintenance_slot, now, created).newest
