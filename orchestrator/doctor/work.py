"""The work: do policies do what they say, how did the last backups go, is anything stuck or left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta

from orchestrator.api.foreign.core import Job, PersistentVolumeClaim
from orchestrator.api.foreign.snapshot import VolumeSnapshotContent
from orchestrator.api.meta import Condition, K8sObject
from orchestrator.api.tidemark import Backup, BackupPolicy, RecoveryPoint, Restore
from orchestrator.api.tidemark.backup import BackupPhase
from orchestrator.api.tidemark.fields import LABEL_POINT_UID, LABEL_RESTORE_UID
from orchestrator.api.tidemark.recovery_point import FINAL_PHASES, PointPhase
from orchestrator.api.tidemark.restore import RestorePhase
from orchestrator.doctor.finding import Finding, Place, bad, ok, warn
from orchestrator.kube.errors import NotFound
from policies.duration import BadDuration, parse_duration

STUCK = timedelta(hours=1)
SHOWN = 10
"""Findings of one sort that are told one by one; the rest is a number."""
_OLD = datetime.min.replace(tzinfo=UTC)
_RESTORED = (RestorePhase.COMPLETED, RestorePhase.FAILED, RestorePhase.CANCELLED)


async def policies(place: Place) -> AsyncIterator[Finding]:
    """Does every policy do what it says, and keep its promise?"""
    found, _ = await place.client.list(BackupPolicy)
    if not found:
        yield warn("policies", "there is no BackupPolicy: nothing is protected", "Create one in each namespace.")
    for policy in found:
        where, status = f"{policy.namespace}/{policy.name}", policy.status
        wrong = [c for c in status.conditions if c.status == "False"]
        for each in wrong:
            yield bad("policies", f"{where}: {each.reason}: {each.message}", _describe("backuppolicy", policy))
        if policy.spec.suspend:
            yield warn("policies", f"{where} is suspended: no scheduled backups", "Set spec.suspend to false again.")
        if wrong:
            continue
        if status.observed_generation < policy.metadata.generation:
            yield warn("policies", f"{where}: no controller has looked at it as it is now", "See the controller above.")
        elif status.volumes == 0:
            yield warn(
                "policies",
                f"{where} selects no claim",
                f"Check spec.volumes against kubectl get pvc -n {policy.namespace}.",
            )
        else:
            yield _promise(policy, where, place.now)


def _promise(policy: BackupPolicy, where: str, now: datetime) -> Finding:
    """Judge the RPO by the times in the status, which go stale when no controller runs."""
    status, objective = policy.status, policy.spec.objective
    if status.protected < status.volumes:
        none = status.volumes - status.protected
        return warn(
            "policies", f"{where}: {none} of {status.volumes} claims have no point yet", _describe("bp", policy)
        )
    if objective is None or status.oldest_point_time is None:
        return ok("policies", f"{where}: {status.protected} claims have points; no RPO is promised")
    try:
        target = parse_duration(objective.rpo)
    except BadDuration as error:
        return bad("policies", f"{where}: {error}", "Correct spec.objective.rpo.")
    if now - status.oldest_point_time > target:
        worst = ", ".join(volume.pvc for volume in status.worst[:3])
        text = f"{where}: RPO of {objective.rpo} is broken; the worst claim's newest point is of "
        return bad(
            "policies",
            f"{text}{status.oldest_point_time:%Y-%m-%d %H:%M} UTC ({worst or 'see its status'})",
            _describe("backuppolicy", policy),
        )
    return ok("policies", f"{where}: {status.compliant or status.protected} claims within the RPO of {objective.rpo}")


async def backups(place: Place) -> AsyncIterator[Finding]:
    """How did the newest run of each policy go, and what made the newest points dear?"""
    runs, _ = await place.client.list(Backup)
    points, _ = await place.client.list(RecoveryPoint)
    newest: dict[tuple[str, str], Backup] = {}
    for run in runs:
        key = (run.namespace, run.spec.policy or run.name)
        if run.status.phase in (BackupPhase.COMPLETED, BackupPhase.FAILED) and (
            key not in newest or _when(newest[key]) < _when(run)
        ):
            newest[key] = run
    failed = [run for run in newest.values() if run.status.phase is BackupPhase.FAILED]
    for run in failed[:SHOWN]:
        why = f"{run.status.reason}: {run.status.message}".strip(": ")
        yield bad("backups", f"the newest backup failed: {run.namespace}/{run.name}: {why}", _describe("backup", run))
    if len(failed) > SHOWN:
        yield bad("backups", f"and {len(failed) - SHOWN} more failed", "kubectl get backups -A")
    for reason, dear in sorted(_fallbacks(points).items()):
        claims = ", ".join(f"{p.namespace}/{p.spec.pvc_name}" for p in dear[:3])
        yield warn(
            "backups",
            f"{len(dear)} newest points are not the delta that was wanted: {reason} ({claims})",
            f"See docs/operations.md#{reason}; the points are whole, they only cost more.",
        )
    if not failed:
        yield ok("backups", f"the newest run of {len(newest)} policies and on-demand backups did not fail")


def _fallbacks(points: Iterable[RecoveryPoint]) -> dict[str, list[RecoveryPoint]]:
    """Return the newest completed points that stepped down from a delta, by reason."""
    newest: dict[str, RecoveryPoint] = {}
    for point in points:
        if point.status.phase is PointPhase.COMPLETED:
            old = newest.get(point.spec.pvc_uid)
            if old is None or old.status.sequence < point.status.sequence:
                newest[point.spec.pvc_uid] = point
    found: dict[str, list[RecoveryPoint]] = {}
    for point in newest.values():
        if point.status.fallback_reason and point.status.requested_mode == "delta":
            found.setdefault(point.status.fallback_reason, []).append(point)
    return found


async def leftovers(place: Place) -> AsyncIterator[Finding]:
    """Is anything left behind, or stuck?"""
    points, _ = await place.client.list(RecoveryPoint)
    restores, _ = await place.client.list(Restore)
    orphans = await _orphans(place, {p.uid for p in points} | {r.uid for r in restores})
    if orphans:
        yield warn(
            "leftovers",
            f"{len(orphans)} objects belong to no point or restore: {', '.join(orphans[:3])}",
            "The sweeper removes them in minutes; if they stay, see the controller's log.",
        )
    stuck = [
        *(_stuck_point(p, place.now) for p in points),
        *(_stuck_restore(r, place.now) for r in restores),
    ]
    told = [finding for finding in stuck if finding is not None]
    for finding in told[:SHOWN]:
        yield finding
    if len(told) > SHOWN:
        yield warn("leftovers", f"and {len(told) - SHOWN} more are stuck", "kubectl get recoverypoints,restores -A")
    if not orphans and not told:
        yield ok("leftovers", f"nothing stuck or left behind; {len(points)} points, {len(restores)} restores")


async def _orphans(place: Place, alive: set[str]) -> list[str]:
    kinds: tuple[tuple[type[K8sObject], str], ...] = (
        (Job, place.settings.namespace),
        (PersistentVolumeClaim, place.settings.namespace),
        (VolumeSnapshotContent, ""),
    )
    found = []
    for kind, namespace in kinds:
        for label in (LABEL_POINT_UID, LABEL_RESTORE_UID):
            try:
                listed, _ = await place.client.list(kind, namespace, labels=label)
            except NotFound:  # no snapshot kinds, so no contents: told by definitions
                continue
            found += [
                f"{kind.RESOURCE.kind} {obj.name}" for obj in listed if obj.metadata.labels.get(label) not in alive
            ]
    return found


def _stuck_point(point: RecoveryPoint, now: datetime) -> Finding | None:
    started = point.status.start_time or point.metadata.creation_timestamp
    if point.status.phase in FINAL_PHASES or started is None or now - started <= STUCK:
        return None
    what = f"point {point.namespace}/{point.name} is {point.status.phase.value}"
    return _stuck(what, started, point.status.conditions, _describe("recoverypoint", point))


def _stuck_restore(restore: Restore, now: datetime) -> Finding | None:
    started = restore.status.start_time or restore.metadata.creation_timestamp
    if restore.status.phase in _RESTORED or started is None or now - started <= STUCK:
        return None
    what = f"restore {restore.namespace}/{restore.name} is {restore.status.phase.value}"
    return _stuck(what, started, restore.status.conditions, _describe("restore", restore))


def _stuck(what: str, started: datetime, conditions: tuple[Condition, ...], remedy: str) -> Finding:
    why = next((f": {c.reason}: {c.message}" for c in conditions if c.status == "False"), "")
    return warn("leftovers", f"{what}, begun {started:%Y-%m-%d %H:%M} UTC{why}", remedy)


def _when(run: Backup) -> datetime:
    return run.status.completion_time or run.status.start_time or run.metadata.creation_timestamp or _OLD


def _describe(kind: str, obj: K8sObject) -> str:
    return f"kubectl describe {kind} {obj.name} -n {obj.namespace}"
