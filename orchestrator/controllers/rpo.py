"""How much would be lost now: read from the caches whenever somebody asks.

Nothing is remembered here. So a restart starts right, a deleted policy's series vanish at the next scrape, and a
suspended policy goes on being told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.api.foreign.core import PersistentVolumeClaim
from orchestrator.api.tidemark.backup_policy import BackupPolicy
from orchestrator.api.tidemark.recovery_point import PointPhase, RecoveryPoint
from orchestrator.clock import Clock
from orchestrator.decisions.backup import select
from orchestrator.kube.cache import Caches
from orchestrator.observe.metrics import RpoSample
from policies.duration import BadDuration, parse_duration
from policies.rpo import Exposure, Volume, exposure, worst


@dataclass(frozen=True, slots=True)
class Standing:
    """How a policy's volumes stand."""

    exposures: tuple[Exposure, ...]
    points: int
    """Good points of those volumes in the policy's repository."""

    def worst(self, count: int) -> tuple[Exposure, ...]:
        """Return the worst volumes, worst first."""
        return worst(self.exposures, count)


def target_of(policy: BackupPolicy) -> timedelta | None:
    """Return what the policy promises; None without an objective, or with one that can't be read.

    The API server refuses such a one, but a policy may be older than that rule: it must not take the samples and the
    status page of all others along. Its own condition ObjectiveValid says so.
    """
    if policy.spec.objective is None:
        return None
    try:
        return parse_duration(policy.spec.objective.rpo) or None
    except BadDuration:
        return None


def standing_of(caches: Caches, policy: BackupPolicy, now: datetime) -> Standing:
    """Return what each selected volume would lose now.

    Any good point of the volume in the policy's repository counts, whoever asked for it.
    """
    target = target_of(policy)
    points: dict[str, list[RecoveryPoint]] = {}
    for point in caches.of(RecoveryPoint).all():
        if (
            point.namespace == policy.namespace
            and point.status.phase is PointPhase.COMPLETED
            and point.spec.repository == policy.spec.repository
            and point.status.snapshot_time is not None
        ):
            points.setdefault(point.spec.pvc_uid, []).append(point)
    claims = [c for c in caches.of(PersistentVolumeClaim).all() if c.namespace == policy.namespace]
    exposures, count = [], 0
    for claim in select(policy.spec.volumes, claims):
        good = points.get(claim.uid, [])
        count += len(good)
        last = max((p.status.snapshot_time for p in good if p.status.snapshot_time is not None), default=None)
        volume = Volume(claim.name, claim.metadata.creation_timestamp or now, last)
        exposures.append(exposure(volume, target, now))
    return Standing(tuple(exposures), count)


def samples(caches: Caches, clock: Clock) -> Iterable[RpoSample]:
    """Return a sample for each volume of each policy, as they stand now."""
    now = clock.now()
    for policy in caches.of(BackupPolicy).all():
        target = target_of(policy)
        for exposed in standing_of(caches, policy, now).exposures:
            last = exposed.volume.last_point
            yield RpoSample(
                namespace=policy.namespace,
                pvc=exposed.volume.name,
                policy=policy.name,
                age_s=exposed.age.total_seconds(),
                target_s=target.total_seconds() if target is not None else None,
                breached=exposed.breached,
                last_timestamp=last.timestamp() if last is not None else None,
                suspended=policy.spec.suspend,
            )
