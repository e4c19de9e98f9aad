"""One run over a policy's volumes: what to do next with a Backup.

    Pending --Start--> Running --(CreatePoint)*--> Running --Finish--> Completed | Failed | Cancelled

The names of a run's points are fixed in its status at its start, before any point is made: a crash between two
creations loses none, and a claim that appears later belongs to the next run. A volume has at most one point in the
making per repository; a point of a busy volume is made as soon as the other one is final.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from orchestrator.api.foreign.core import PersistentVolumeClaim
from orchestrator.api.tidemark.backup import Backup, BackupPhase
from orchestrator.api.tidemark.backup_policy import BackupPolicy, VolumeOptions, VolumeSelector
from orchestrator.api.tidemark.recovery_point import FINAL_PHASES, PointPhase, RecoveryPoint
from policies.duration import parse_duration
from policies.naming import object_name


@dataclass(frozen=True, slots=True)
class Selection:
    """What a run is over, whether it came from a policy or stands in the Backup."""

    volumes: VolumeSelector
    repository: str | None
    options: VolumeOptions
    policy: BackupPolicy | None


@dataclass(frozen=True, slots=True)
class BackupSeen:
    """All that a decision about a Backup rests on."""

    backup: Backup
    policy: BackupPolicy | None
    claims: Sequence[PersistentVolumeClaim]
    """Of the Backup's namespace."""
    points: Mapping[str, RecoveryPoint]
    """Points by name: those that the status names, as far as they exist."""
    busy: frozenset[str]
    """Uids of claims with a point in the making that belongs to another run of the same repository."""
    namespace_terminating: bool
    cluster_id: str


@dataclass(frozen=True, slots=True)
class PointPlan:
    """A point to be made."""

    name: str
    claim: PersistentVolumeClaim
    selection: Selection


@dataclass(frozen=True, slots=True)
class Start:
    """Fix the run's points."""

    points: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CreatePoints:
    """Make these points, as their volumes are free."""

    plans: tuple[PointPlan, ...]


@dataclass(frozen=True, slots=True)
class CancelPoints:
    """Ask these points to stop."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """Record how the run ended."""

    phase: BackupPhase
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Follow:
    """Nothing to do but to tell how far the points are."""


@dataclass(frozen=True, slots=True)
class Done:
    """The run is over."""


Step = Start | CreatePoints | CancelPoints | Finish | Follow | Done


def selection_of(seen: BackupSeen) -> Selection | None:
    """Return what the run is over, None when its policy is gone."""
    spec = seen.backup.spec
    if spec.selection is not None:
        return Selection(spec.selection.volumes, spec.selection.repository, spec.selection.options, None)
    if seen.policy is None:
        return None
    return Selection(seen.policy.spec.volumes, seen.policy.spec.repository, seen.policy.spec.options, seen.policy)


def selects(selector: VolumeSelector, claim: PersistentVolumeClaim) -> bool:
    """Return whether a selector takes a claim: named (if names are given), labelled, and not excluded."""
    if claim.deleting or claim.name in selector.exclude_names:
        return False
    if selector.names and claim.name not in selector.names:
        return False
    labels = claim.metadata.labels
    return all(labels.get(key) == value for key, value in selector.match_labels.items())


def select(selector: VolumeSelector, claims: Sequence[PersistentVolumeClaim]) -> list[PersistentVolumeClaim]:
    """Return the claims to back up, by name. A claim without a volume counts only when it is named."""
    chosen = [c for c in claims if selects(selector, c) and (c.bound or c.name in selector.names)]
    return sorted(chosen, key=lambda c: c.name)


def missing(selector: VolumeSelector, claims: Sequence[PersistentVolumeClaim]) -> tuple[str, ...]:
    """Return the names that a selector asks for and nobody made."""
    there = {c.name for c in claims if not c.deleting}
    return tuple(sorted(n for n in selector.names if n not in there and n not in selector.exclude_names))


def point_name(backup: Backup, claim: PersistentVolumeClaim, cluster_id: str) -> str:
    """Return the name of a run's point of a claim: the same however often it is asked for."""
    return object_name(claim.name, cluster_id, backup.uid, claim.uid)


def decide(seen: BackupSeen) -> Step:
    """Choose the one next step. The same answer twice is harmless."""
    backup, status = seen.backup, seen.backup.status
    if status.phase in (BackupPhase.COMPLETED, BackupPhase.FAILED, BackupPhase.CANCELLED):
        return Done()
    if backup.spec.cancel or backup.deleting:
        return _cancel(seen)
    if status.phase is BackupPhase.PENDING:
        return _start(seen)
    selection = selection_of(seen)
    plans = () if selection is None else _plans(seen, selection)
    if plans:
        return CreatePoints(plans)
    return _finish(seen, selection) or Follow()


def _start(seen: BackupSeen) -> Step:
    selection = selection_of(seen)
    if selection is None:
        return Finish(
            BackupPhase.FAILED,
            "PolicyNotFound",
            f"There is no BackupPolicy {seen.backup.spec.policy!r} in this namespace; create it or mend spec.policy.",
        )
    if seen.namespace_terminating:
        return Finish(BackupPhase.FAILED, "NamespaceTerminating", "The namespace is being deleted.")
    claims = select(selection.volumes, seen.claims)
    absent = missing(selection.volumes, seen.claims)
    if not claims:
        named = f" ({', '.join(absent[:5])} not found)" if absent else ""
        return Finish(
            BackupPhase.FAILED,
            "NoVolumes",
            f"No claim of this namespace is selected and bound{named}; check the selector against 'kubectl get pvc'.",
        )
    return Start(tuple(point_name(seen.backup, c, seen.cluster_id) for c in claims), absent)


def _plans(seen: BackupSeen, selection: Selection) -> tuple[PointPlan, ...]:
    """Return the points that the status names, that nobody made yet and whose volume is free."""
    by_name = {point_name(seen.backup, c, seen.cluster_id): c for c in seen.claims}
    return tuple(
        PointPlan(name, by_name[name], selection)
        for name in seen.backup.status.points
        if name not in seen.points and name in by_name and by_name[name].uid not in seen.busy
    )


def _finish(seen: BackupSeen, selection: Selection | None) -> Finish | None:
    """Return how the run ended, None while a point is being made or its volume is busy."""
    by_name = {point_name(seen.backup, c, seen.cluster_id): c for c in seen.claims}
    gone = [n for n in seen.backup.status.points if n not in seen.points and (selection is None or n not in by_name)]
    waiting = [n for n in seen.backup.status.points if n not in seen.points and n not in gone]
    if waiting or any(p.status.phase not in FINAL_PHASES for p in seen.points.values()):
        return None
    failed = [p for p in seen.points.values() if p.status.phase is not PointPhase.COMPLETED]
    absent = missing(selection.volumes, seen.claims) if selection is not None else ()
    total = len(seen.backup.status.points)
    good = sum(1 for p in seen.points.values() if p.status.phase is PointPhase.COMPLETED)
    if not failed and not gone and not absent:
        return Finish(BackupPhase.COMPLETED, "Completed", f"{good} of {total} recovery points completed.")
    if failed:
        first = min(failed, key=lambda p: p.name)
        why = f"{first.spec.pvc_name}: {first.status.reason}: {first.status.message}"
    elif gone:
        why = "claims vanished before their points were made"
    else:
        why = f"claims named by the selector do not exist: {', '.join(absent[:5])}"
    reasons = {p.status.reason for p in failed}
    # What kubectl get shows: the cause itself where there is but one.
    whole = next(iter(reasons)) if len(reasons) == 1 and not gone and not absent else ""
    return Finish(
        BackupPhase.FAILED,
        "PartiallyFailed" if good else whole or "Failed",
        f"{good} of {total} recovery points completed; {why}"[:512],
    )


def _cancel(seen: BackupSeen) -> Step:
    running = tuple(
        n for n, p in sorted(seen.points.items()) if p.status.phase not in FINAL_PHASES and not p.spec.cancel
    )
    if running:
        return CancelPoints(running)
    if any(p.status.phase not in FINAL_PHASES for p in seen.points.values()):
        return Follow()
    return Finish(BackupPhase.CANCELLED, "Cancelled", "Stopped on request; finished points stay.")


def expires(backup: Backup, now: datetime) -> datetime | None:
    """Return when the run's points are dropped whatever retention says, None for never (the default)."""
    if backup.spec.expire_after is None:
        return None
    return (backup.metadata.creation_timestamp or now) + parse_duration(backup.spec.expire_after)
