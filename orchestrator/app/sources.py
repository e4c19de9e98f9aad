"""What the metrics page reads from the caches at each scrape. Nothing is counted or remembered here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from orchestrator.api.foreign.core import Job
from orchestrator.api.tidemark.backup_repository import BackupRepository
from orchestrator.api.tidemark.fields import LABEL_TASK
from orchestrator.api.tidemark.recovery_point import PointPhase, RecoveryPoint
from orchestrator.api.tidemark.restore import Restore
from orchestrator.clock import Clock
from orchestrator.controllers import rpo
from orchestrator.controllers.base import Controller
from orchestrator.controllers.slots import restore_waits
from orchestrator.decisions.backup_repository import maintenance_overdue, verification_overdue
from orchestrator.kube.cache import Caches
from orchestrator.observe.state import (
    MoverSample,
    PointSample,
    QueueSample,
    RepositorySample,
    SnapshotSample,
    Sources,
)


def sources(caches: Caches, clock: Clock, controllers: Callable[[], Sequence[Controller[Any]]]) -> Sources:
    """Return the sources of one controller process; `controllers` gives those that run now."""
    return Sources(
        rpo=partial(rpo.samples, caches, clock),
        points=partial(points, caches),
        snapshots=partial(snapshots, caches),
        repositories=partial(repositories, caches, clock),
        movers=partial(movers, caches),
        queues=lambda: queues(controllers()),
    )


def points(caches: Caches) -> Iterable[PointSample]:
    """Count recovery points by policy and phase."""
    counts = Counter(
        (point.namespace, point.spec.policy.name if point.spec.policy else "", point.status.phase.value)
        for point in caches.of(RecoveryPoint).all()
    )
    return [PointSample(*labels, count) for labels, count in sorted(counts.items())]


def snapshots(caches: Caches) -> Iterable[SnapshotSample]:
    """Count the physical snapshots that points keep, by driver."""
    counts = Counter(
        point.status.driver
        for point in caches.of(RecoveryPoint).all()
        if point.status.snapshot_kept and point.status.driver
    )
    return [SnapshotSample(driver, count) for driver, count in sorted(counts.items())]


def repositories(caches: Caches, clock: Clock) -> Iterable[RepositorySample]:
    """Tell how each repository was when it was last looked at."""
    now = clock.now()
    for repository in caches.of(BackupRepository).all():
        status = repository.status
        swept, seen = status.last_maintenance, status.verification
        yield RepositorySample(
            repository=repository.name,
            reachable={"True": True, "False": False}.get(status.ready),
            bytes=status.usage.bytes if status.usage else None,
            objects=status.usage.objects if status.usage else None,
            points=status.usage.points if status.usage else None,
            last_maintenance_timestamp=swept.timestamp() if swept else None,
            maintenance_overdue=maintenance_overdue(repository, now),
            verified_timestamp=status.last_verified.timestamp() if status.last_verified else None,
            verification_overdue=verification_overdue(repository, now),
            damaged_objects=seen.damaged_objects if seen else None,
            damaged_chunks=seen.damaged_chunks if seen else None,
            damaged_points=seen.damaged_points if seen else None,
            missing_points=seen.missing_points if seen else None,
        )


def movers(caches: Caches) -> Iterable[MoverSample]:
    """Count movers by task: Jobs that run, and points and restores that wait for a slot."""
    running = Counter(
        job.metadata.labels.get(LABEL_TASK, "unknown")
        for job in caches.of(Job).all()
        if not job.complete and not job.failed
    )
    waiting = Counter("backup" for point in caches.of(RecoveryPoint).all() if point.status.phase is PointPhase.WAITING)
    waiting.update("restore" for restore in caches.of(Restore).all() if restore_waits(restore))
    return [MoverSample(task, running[task], waiting[task]) for task in sorted({"backup", "restore", *running})]


def queues(controllers: Sequence[Controller[Any]]) -> Iterable[QueueSample]:
    """Tell each controller's backlog, and how long ago its kind was last heard of."""
    return [QueueSample(each.name, len(each.queue), each.cache.age_s) for each in controllers]
