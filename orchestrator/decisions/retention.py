"""Which of a policy's points go, and why: retention's rules over our kinds.

Only points of a *live* policy are judged; a deleted policy freezes its points. Pure, so that `tidemark prune
--dry-run` explains with the very code that decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from orchestrator.api.tidemark.backup_policy import BackupPolicy, Retention
from orchestrator.api.tidemark.recovery_point import PointPhase, RecoveryPoint
from orchestrator.decisions.verification import is_damaged
from policies import retention
from policies.duration import parse_duration


def rules_of(spec: Retention) -> retention.Rules:
    """Return a policy's retention as plain rules."""
    return retention.Rules(
        keep_last=spec.keep_last,
        hourly=spec.hourly,
        daily=spec.daily,
        weekly=spec.weekly,
        monthly=spec.monthly,
        yearly=spec.yearly,
        keep_within=parse_duration(spec.keep_within) if spec.keep_within else None,
    )


def judged(point: RecoveryPoint, policy: BackupPolicy) -> bool:
    """Return whether retention of this policy has a say over a point."""
    spec, status = point.spec, point.status
    return (
        spec.policy is not None
        and spec.policy.uid == policy.uid
        and status.phase is PointPhase.COMPLETED
        and status.snapshot_time is not None
        and not point.deleting
    )


def explain(policy: BackupPolicy, points: Iterable[RecoveryPoint], now: datetime) -> dict[str, retention.Verdict]:
    """Return, for each volume (PVC uid) of a policy, which points are kept and which dropped, with reasons.

    Without `spec.retention` only what has expired is dropped. A point that is known to be damaged stays as long as the
    rules keep it, for its objects may come back; but it takes no sound point's place, nor is it the last good one.
    """
    by_volume: dict[str, list[retention.Point]] = {}
    damaged: set[str] = set()
    for point in points:
        if not judged(point, policy) or point.status.snapshot_time is None:
            continue
        if is_damaged(point):
            damaged.add(point.uid)
        by_volume.setdefault(point.spec.pvc_uid, []).append(
            retention.Point(
                id=point.uid,
                sequence=point.status.sequence,
                time=point.status.snapshot_time,
                on_demand=point.spec.slot is None,
                expires=point.spec.expires,
            )
        )
    rules = rules_of(policy.spec.retention) if policy.spec.retention is not None else None
    return {uid: _judged(volume, damaged, rules, now) for uid, volume in sorted(by_volume.items())}


def _judged(
    volume: list[retention.Point], damaged: set[str], rules: retention.Rules | None, now: datetime
) -> retention.Verdict:
    """Judge a volume's points; a sound one is kept if the rules keep it with or without the damaged ones."""
    every = retention.plan(volume, rules, now)
    sound = [point for point in volume if point.id not in damaged]
    if len(sound) == len(volume) or not sound:
        return every
    instead = {each.point.id: each for each in retention.plan(sound, rules, now).keep}
    decisions = (each if each.kept else instead.get(each.point.id, each) for each in every.decisions)
    return retention.Verdict(tuple(decisions))
