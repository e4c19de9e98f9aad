"""One volume at one moment: what to do next with a RecoveryPoint.

    Pending ------ Protect, TakeSnapshot --------------------------------> Snapshotting
    Snapshotting - ClaimSnapshot (bound: Retain, label; facts as they come)
                   ready, no repository: Complete -----------------------> Completed
                   ready: ClaimSnapshot ---------------------------------> Planning
    Planning ----- ChooseBase, PlanCopy
                   nothing to copy: Commit ------------------------------> Completed
                   PlanCopy ---------------------------------------------> Waiting
    Waiting ------ (controllers/slots grants) ---------------------------> Copying
    Copying ------ Rehome, Clone, StartMover, Follow, RetryMover, Commit
                   clone or pod stuck: ReleaseSlot ----------------------> Waiting
                   manifest is there: Record ----------------------------> Completed
    any of them -- Fail -------------------------------------------------> Failed | Cancelled
    final -------- TearDown, Release; then Prune or DropSnapshot, when due

The status is the only memory, and every step may be the first one after a crash: a step that was taken but not
recorded is decided again and does no harm. The finalizer is on while anything may be left to tear down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import assert_never

from orchestrator.api.foreign.snapshot import (
    ANNOTATION_DEFAULT_CLASS,
    VolumeSnapshot,
    VolumeSnapshotClass,
    VolumeSnapshotContent,
)
from orchestrator.api.meta import condition
from orchestrator.api.tidemark.fields import FINALIZER, LABEL_POINT_UID
from orchestrator.api.tidemark.recovery_point import FINAL_PHASES, PointPhase, RecoveryPoint
from orchestrator.decisions.recovery_point_steps import (
    Bounds,
    ChooseBase,
    ClaimSnapshot,
    Clone,
    Commit,
    Complete,
    Done,
    DropSnapshot,
    Fail,
    Follow,
    MoverSeen,
    PlanCopy,
    Protect,
    Prune,
    Record,
    RecoveryPointSeen,
    Rehome,
    Release,
    ReleaseSlot,
    RemoveMover,
    RetryMover,
    StartMover,
    Step,
    TakeSnapshot,
    TearDown,
    Wait,
)
from orchestrator.decisions.stall import STALLED, sentence, stalled
from policies import lineage

MOVER = "Mover"
"""Condition: how the mover fares; its last change is when the last try failed."""
CLONE = "CloneReady"
"""Condition: what keeps the clone or its pod back."""
FIRST_RETRY_S = 2.0
LONGEST_RETRY_S = 120.0


def decide(seen: RecoveryPointSeen) -> Step:
    """Choose the one next step. The same answer twice is harmless."""
    point, status = seen.point, seen.point.status
    if point.deleting:
        return _deleted(seen)
    if status.phase not in FINAL_PHASES:
        if stop := _stopped(seen):
            return stop
        if FINALIZER not in point.metadata.finalizers:
            return Protect()
    match status.phase:
        case PointPhase.PENDING:
            return _pending(seen)
        case PointPhase.SNAPSHOTTING:
            return _snapshotting(seen)
        case PointPhase.PLANNING:
            return _planning(seen)
        case PointPhase.WAITING:
            return Wait("WaitingForSlot", "All mover slots are taken.", after_s=60.0)
        case PointPhase.COPYING:
            return _copying(seen)
        case PointPhase.COMPLETED | PointPhase.FAILED | PointPhase.CANCELLED:
            return _final(seen)
        case _:
            assert_never(status.phase)


def _deleted(seen: RecoveryPointSeen) -> Step:
    """Tear down what is in flight, for a bounded time; repository data is never touched."""
    if FINALIZER not in seen.point.metadata.finalizers:
        return Done()
    since = seen.point.metadata.deletion_timestamp or seen.now
    if seen.now - since >= timedelta(seconds=seen.bounds.finalizer_bound_s):
        return Release()
    return TearDown(destroy_snapshot=True)


def _final(seen: RecoveryPointSeen) -> Step:
    point, status = seen.point, seen.point.status
    surplus = point.uid in surplus_snapshots(seen.siblings, seen.snapshots_kept)
    if FINALIZER in point.metadata.finalizers:
        if _older_than(seen, status.completion_time, seen.bounds.finalizer_bound_s):
            return Release()
        return TearDown(destroy_snapshot=status.phase is not PointPhase.COMPLETED or surplus)
    if point.spec.prune:
        return Prune()
    useless = seen.claim_gone and point.spec.repository is not None
    if seen.snapshot_lingers or (status.snapshot_kept and (surplus or useless)):
        return DropSnapshot()
    return Done()


def _stopped(seen: RecoveryPointSeen) -> Fail | Record | None:
    """End a point that somebody wants no more. Copying points are first looked up in the repository by the act."""
    spec = seen.point.spec
    if spec.cancel or spec.prune:
        return Fail(PointPhase.CANCELLED, "Cancelled", "Cancelled on request; nothing was kept.")
    if seen.namespace_gone:
        return Fail(PointPhase.CANCELLED, "NamespaceTerminating", "The namespace is being deleted.")
    return None


def _fail(reason: str, message: str) -> Fail:
    return Fail(PointPhase.FAILED, reason, message)


def _pending(seen: RecoveryPointSeen) -> Step:
    spec, claim, volume = seen.point.spec, seen.claim, seen.volume
    if claim is None or claim.uid != spec.pvc_uid:
        what = "is gone" if claim is None else "is another one now"
        return _fail("VolumeGone", f"Claim {spec.pvc_name} {what}. Its points stay; back up the new claim instead.")
    ref = volume.spec.claim_ref if volume is not None else None
    # A claim may name whatever volume it likes: what counts is that the volume names the claim.
    foreign = ref is not None and ref.uid not in ("", claim.uid)
    if not claim.bound or volume is None or foreign:
        if _older_than(seen, seen.point.metadata.creation_timestamp, seen.bounds.snapshot_timeout_s):
            return _fail("VolumeNotBound", f"Claim {claim.name} has no volume yet, so there is nothing to back up.")
        return Wait("VolumeNotBound", f"Claim {claim.name} is not bound to a volume yet.", after_s=10.0)
    if volume.spec.csi is None:
        return _fail(
            "NotCSI",
            f"Volume {volume.name} is not provisioned by a CSI driver, so it can't be snapshotted. "
            "Exclude the claim, or move it to a CSI storage class.",
        )
    chosen = choose_class(seen.classes, volume.spec.csi.driver, spec.options.snapshot_class_name)
    return chosen if isinstance(chosen, Fail) else TakeSnapshot(chosen)


def choose_class(classes: Sequence[VolumeSnapshotClass], driver: str, wanted: str | None) -> str | Fail:
    """Return the snapshot class to use: the one asked for, else the driver's only default one."""
    if wanted is not None:
        named = next((c for c in classes if c.name == wanted), None)
        if named is None:
            return _fail("UnknownSnapshotClass", f"There is no VolumeSnapshotClass {wanted!r}. Correct the policy.")
        if named.driver != driver:
            return _fail(
                "UnknownSnapshotClass",
                f"VolumeSnapshotClass {wanted!r} is of driver {named.driver}, the volume is of {driver}. "
                "Name a class of the volume's driver.",
            )
        return named.name
    own = [c for c in classes if c.driver == driver]
    if not own:
        return _fail(
            "NotCSI",
            f"Driver {driver} has no VolumeSnapshotClass, so its volumes can't be snapshotted. "
            "Install snapshot support for it, or exclude the claim.",
        )
    defaults = [c for c in own if c.metadata.annotations.get(ANNOTATION_DEFAULT_CLASS) == "true"]
    if len(defaults) == 1:
        return defaults[0].name
    if not defaults and len(own) == 1:
        return own[0].name
    count = "several default" if defaults else "no default"
    return _fail(
        "UnknownSnapshotClass",
        f"Driver {driver} has {count} VolumeSnapshotClasses. Name one in options.snapshotClassName.",
    )


def _snapshotting(seen: RecoveryPointSeen) -> Step:
    status, snapshot, content = seen.point.status, seen.snapshot, seen.content
    if not status.content_name:
        if snapshot is None or snapshot.uid != status.snapshot_uid:
            return _fail("SnapshotGone", f"VolumeSnapshot {status.snapshot_name} was deleted before it was ready.")
        if content is not None:
            return ClaimSnapshot()
    elif content is None:
        return _fail("SnapshotGone", f"VolumeSnapshotContent {status.content_name} was deleted.")
    elif news(seen):
        return ClaimSnapshot()
    elif status.ready_time is not None and seen.point.spec.repository is None:
        return Complete()
    said = snapshot_error(snapshot, content)
    if _older_than(seen, status.start_time, seen.bounds.snapshot_timeout_s):
        told = f" The driver said: {said}" if said else ""
        return _fail(
            "SnapshotTimeout",
            f"The snapshot was not ready after {seen.bounds.snapshot_timeout_s:.0f} s.{told} "
            "Look at the VolumeSnapshot and the driver's snapshotter.",
        )
    return Wait("SnapshotError" if said else "SnapshotPending", said, after_s=5.0)


def news(seen: RecoveryPointSeen) -> bool:
    """Return whether the content must be claimed (again), or says something that is not in the status yet."""
    status, content = seen.point.status, seen.content
    assert content is not None
    held = content.spec.deletion_policy == "Retain"
    if not held or content.metadata.labels.get(LABEL_POINT_UID) != seen.point.uid:
        return True
    told = content.status
    if told is None:
        return False
    if told.snapshot_handle and not status.snapshot_handle:
        return True
    if told.creation_time is not None and status.snapshot_time is None:
        return True
    return status.ready_time is None and ready(seen)


def ready(seen: RecoveryPointSeen) -> bool:
    """Return whether the snapshot can be read: ready on both sides, its handle and its time known (trap T1)."""
    told = seen.content.status if seen.content is not None else None
    if told is None or not told.ready_to_use or not told.snapshot_handle or told.creation_time is None:
        return False
    if seen.snapshot is None:
        return True  # the tenant deleted the VolumeSnapshot; the content is ours and holds the data
    return seen.snapshot.status is not None and bool(seen.snapshot.status.ready_to_use)


def snapshot_error(snapshot: VolumeSnapshot | None, content: VolumeSnapshotContent | None) -> str:
    """Return what the snapshot controllers said went wrong last. Not terminal: both of them go on trying."""
    for part in (content, snapshot):
        if part is not None and part.status is not None and part.status.error is not None:
            return part.status.error.message[:300]
    return ""


def _planning(seen: RecoveryPointSeen) -> Step:
    status, content = seen.point.status, seen.content
    if status.planned_time is not None:
        return Commit()
    told = content.status if content is not None else None
    if content is None or content.deleting or (told and told.snapshot_handle not in (None, "", status.snapshot_handle)):
        return _fail("SnapshotGone", f"VolumeSnapshotContent {status.content_name} was deleted or replaced.")
    return PlanCopy() if status.requested_mode else ChooseBase()


def asks_repository(point: RecoveryPoint, mover: MoverSeen) -> bool:
    """Return whether the next step depends on the manifest being there: a mover ended, or vanished."""
    if point.status.phase is not PointPhase.COPYING:
        return False
    return mover.state in ("succeeded", "failed") or (mover.state == "missing" and point.status.attempts > 0)


def _copying(seen: RecoveryPointSeen) -> Step:
    mover = seen.mover
    if seen.committed:
        return Record()
    match mover.state:
        case "succeeded":
            return Commit()
        case "failed":
            return _mover_failed(seen)
        case "missing":
            return _before_mover(seen)
        case "pending" | "running":
            if mover.deleting:
                return RemoveMover()
            if mover.state == "pending" and _older_than(seen, _waiting_since(seen), seen.bounds.clone_timeout_s):
                return ReleaseSlot()
            return _stalled(seen) or Follow()
        case _:
            assert_never(mover.state)


def _mover_failed(seen: RecoveryPointSeen) -> Step:
    mover, outcome = seen.mover, seen.mover.outcome
    reason = outcome.reason if outcome is not None and outcome.reason else "MoverFailed"
    message = mover.message or "The mover ended without a word; its pod may have been killed."
    if outcome is not None and not outcome.retryable:
        return _fail(reason, message)
    if mover.attempt >= seen.bounds.mover_attempts:
        return _fail(reason, f"{mover.attempt} movers failed. The last one said: {message}")
    return RetryMover(reason, message)


def _stalled(seen: RecoveryPointSeen) -> Step | None:
    """Give up a mover of which nothing has changed for too long."""
    told, mover, bound_s = seen.point.status.conditions, seen.mover, seen.bounds.mover_stall_s
    if not mover.sign or not stalled(told, mover.sign, seen.now, bound_s):
        return None
    message = sentence(bound_s, told)
    if mover.attempt >= seen.bounds.mover_attempts:
        return _fail(STALLED, f"{mover.attempt} movers failed. {message}")
    return RetryMover(STALLED, message)


def _waiting_since(seen: RecoveryPointSeen) -> datetime | None:
    """Return since when the mover should have come up: the slot was granted, or the one before it failed."""
    granted, failed = seen.point.status.granted_time, condition(seen.point.status.conditions, MOVER)
    if granted is None or failed is None or failed.status != "False" or failed.last_transition_time is None:
        return granted
    return max(granted, failed.last_transition_time)


def _before_mover(seen: RecoveryPointSeen) -> Step:
    status = seen.point.status
    if status.attempts >= seen.bounds.mover_attempts:
        return _given_up(seen)
    if _older_than(seen, _waiting_since(seen), seen.bounds.clone_timeout_s):
        return ReleaseSlot()
    if not seen.rehome_started:
        return Rehome()
    if not seen.rehomed:
        return Wait("RehomePending", "The snapshot is being made usable for the mover.", after_s=2.0)
    if not seen.cloned:
        return Clone()
    pause = retry_pause_s(seen)
    if pause > 0:
        return Wait("MoverBackoff", "The next mover starts after a pause.", after_s=pause)
    return StartMover(status.attempts + 1)


def _given_up(seen: RecoveryPointSeen) -> Fail:
    """Fail for the reason that was told last: a clone that never came up, or a mover that failed or vanished."""
    attempts, told = seen.point.status.attempts, seen.point.status.conditions
    clone = condition(told, CLONE)
    if clone is not None and clone.status == "False" and clone.reason == "TimedOut":
        return _fail("CloneTimeout", f"{attempts} clones did not come up in time. {clone.message}")
    mover = condition(told, MOVER)
    said = f" {mover.message}" if mover is not None and mover.status == "False" else " Look at the pods' events."
    return _fail("MoverFailed", f"{attempts} movers vanished or failed.{said}")


def retry_pause_s(seen: RecoveryPointSeen) -> float:
    """Return the seconds until another mover may start: doubling from the second failure on."""
    attempts = seen.point.status.attempts
    failed = condition(seen.point.status.conditions, MOVER)
    if attempts <= 1 or failed is None or failed.status != "False" or failed.last_transition_time is None:
        return 0.0  # a killed pod is the usual case, and its successor need not wait
    wait_s: float = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(attempts - 1, 16))
    return max(0.0, wait_s - (seen.now - failed.last_transition_time).total_seconds())


def surplus_snapshots(siblings: Sequence[RecoveryPoint], keep: int) -> frozenset[str]:
    """Return the uids of finished points whose physical snapshot may go; points that are only a snapshot stay.

    The newest good one is the base of the next delta, and a base that work in flight names stays for as long.
    """
    held = [
        lineage.Held(id=p.uid, sequence=p.status.sequence, good=True)
        for p in siblings
        if p.status.phase is PointPhase.COMPLETED and p.status.snapshot_kept and p.spec.repository is not None
    ]
    in_use = {p.status.base.uid for p in siblings if p.status.phase not in FINAL_PHASES and p.status.base is not None}
    lasting = [p for p in siblings if p.uid in {item.id for item in held} and p.spec.expires is None]
    if lasting:
        # An on-demand point that expires takes its snapshot along: the base of what follows must outlive it.
        in_use.add(max(lasting, key=lambda p: p.status.sequence).uid)
    return frozenset(item.id for item in lineage.snapshots_to_drop(held, keep, in_use))


def _older_than(seen: RecoveryPointSeen, since: datetime | None, seconds: float) -> bool:
    return since is not None and seen.now - since > timedelta(seconds=seconds)


@dataclass(frozen=True, slots=True)
class Leftover:
    """What the sweeper may take away of one point."""

    transient: bool
    """Job, Secret, clone, re-homed objects."""
    snapshot: bool
    """The original physical snapshot."""


def leftover(point: RecoveryPoint | None, now: datetime, grace_s: float) -> Leftover:
    """Return what may go of a point whose objects were found; None: there is no record of it (any more).

    A point in flight, or one that its own controller still tears down, is left alone. The snapshot of a record that a
    person deleted is known to nobody as a base, so it goes; what is in the repository never does.
    """
    if point is None:
        return Leftover(transient=True, snapshot=True)
    status = point.status
    ended = status.completion_time or now
    recent = (now - ended).total_seconds() < grace_s
    if status.phase not in FINAL_PHASES or FINALIZER in point.metadata.finalizers or recent:
        return Leftover(transient=False, snapshot=False)
    kept = status.phase is PointPhase.COMPLETED and status.snapshot_kept
    return Leftover(transient=True, snapshot=not kept)


__all__ = [
    "CLONE",
    "FIRST_RETRY_S",
    "LONGEST_RETRY_S",
    "MOVER",
    "Bounds",
    "ChooseBase",
    "ClaimSnapshot",
    "Clone",
    "Commit",
    "Complete",
    "Done",
    "DropSnapshot",
    "Fail",
    "Follow",
    "Leftover",
    "MoverSeen",
    "PlanCopy",
    "Protect",
    "Prune",
    "Record",
    "RecoveryPointSeen",
    "Rehome",
    "Release",
    "ReleaseSlot",
    "RemoveMover",
    "RetryMover",
    "StartMover",
    "Step",
    "TakeSnapshot",
    "TearDown",
    "Wait",
    "asks_repository",
    "choose_class",
    "decide",
    "leftover",
    "news",
    "ready",
    "retry_pause_s",
    "snapshot_error",
    "surplus_snapshots",
]
