"""The status page's rows, read from the caches when somebody looks."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.api.meta import condition
from orchestrator.api.tidemark.backup_policy import BackupPolicy
from orchestrator.api.tidemark.backup_repository import BackupRepository
from orchestrator.api.tidemark.recovery_point import FINAL_PHASES, RecoveryPoint
from orchestrator.clock import Clock
from orchestrator.controllers.rpo import standing_of, target_of
from orchestrator.kube.cache import Caches
from orchestrator.web.status import PointRow, PolicyRow, RepositoryRow, Standing, StatusPage

NO_VOLUME = "It selects no bound volume of its namespace"


def page(caches: Caches, clock: Clock, *, version: str, leading: bool) -> StatusPage:
    """Return the page as things stand now."""
    return StatusPage(
        at=clock.now(),
        version=version,
        leading=leading,
        policies=tuple(_policies(caches, clock)),
        points=tuple(
            _point(point) for point in caches.of(RecoveryPoint).all() if point.status.phase not in FINAL_PHASES
        ),
        repositories=tuple(_repository(repository) for repository in caches.of(BackupRepository).all()),
    )


def _policies(caches: Caches, clock: Clock) -> Iterable[PolicyRow]:
    now = clock.now()
    for policy in caches.of(BackupPolicy).all():
        standing = standing_of(caches, policy, now)
        worst = next(iter(standing.worst(1)), None)
        target = target_of(policy)
        last = max((e.volume.last_point for e in standing.exposures if e.volume.last_point), default=None)
        verdict: Standing = "none" if target is None else "ok"
        if not standing.exposures or any(exposed.volume.last_point is None for exposed in standing.exposures):
            verdict = "unprotected"
        elif any(exposed.breached for exposed in standing.exposures):
            verdict = "breached"
        within = sum(not exposed.breached for exposed in standing.exposures)
        ready = condition(policy.status.conditions, "Ready")
        yield PolicyRow(
            namespace=policy.namespace,
            name=policy.name,
            standing=verdict,
            target_s=target.total_seconds() if target else None,
            worst_age_s=max(worst.age.total_seconds(), 0.0) if worst else None,
            worst_pvc=worst.volume.name if worst else "",
            compliant=f"{within}/{len(standing.exposures)}",
            last_point=last,
            next_run=policy.status.next_slot,
            suspended=policy.spec.suspend,
            message=ready.message if ready and ready.status != "True" else "" if standing.exposures else NO_VOLUME,
        )


def _point(point: RecoveryPoint) -> PointRow:
    return PointRow(
        namespace=point.namespace,
        name=point.name,
        pvc=point.spec.pvc_name,
        phase=point.status.phase.value,
        progress=point.status.progress,
        mode=point.status.mode or point.status.requested_mode,
        reason=point.status.fallback_reason or point.status.reason,
        since=point.status.start_time or point.metadata.creation_timestamp,
    )


def _repository(repository: BackupRepository) -> RepositoryRow:
    status = repository.status
    ready, verified = condition(status.conditions, "Ready"), condition(status.conditions, "Verified")
    unwell = [c.message for c in (ready, verified) if c is not None and c.status != "True"]
    seen = status.verification
    return RepositoryRow(
        name=repository.name,
        url=repository.spec.url,
        ready=ready.status if ready else "Unknown",
        points=status.usage.points if status.usage else None,
        size=status.usage.size if status.usage else "",
        last_checked=status.last_checked,
        last_maintenance=status.last_maintenance,
        last_verified=status.last_verified,
        hurt=seen.damaged_points + seen.missing_points if seen is not None else 0,
        message=" ".join(unwell),
    )
