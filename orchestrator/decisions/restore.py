"""A recovery point written to a new volume: what to do next with a Restore.

    Pending --Resolve--> Pending (point known) --slot--> Provisioning --CreatePrime, StartMover--> Filling
      --RecordFilled, RemoveMover--> HandingOver --SaveVolume, RemovePrime, RemoveOldVolume, CreateVolume, CreateClaim,
      PutBack--> Completed

    a mover that hangs or is lost --StartOver--> Provisioning, with another volume
    any state before SaveVolume --Abort--> Failed | Cancelled, with nothing left behind

A tenant never sees a half-filled volume: the claim is created last. From the moment the volume's spec is saved the
hand-over is carried to its end, whoever cancels: the old object may be gone already, and the saved text is then the
only reference to the volume. A volume to which a mover may still write, because nobody could see it end, is never
handed over: it is thrown away, and another one is filled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from orchestrator.api.foreign.core import PersistentVolume, PersistentVolumeClaim
from orchestrator.api.meta import condition
from orchestrator.api.mover import MoverOutcome
from orchestrator.api.tidemark.fields import LABEL_RESTORED_BY
from orchestrator.api.tidemark.restore import Restore, RestorePhase, RestoreStatus
from orchestrator.decisions.stall import STALLED

MOVER = "Mover"
"""Type of the condition that says how the last mover failed."""
LOST = "MoverLost"
UNSEEN = frozenset({STALLED, LOST})
"""Reasons of a mover's end that nobody saw: it may still write."""
FINAL = frozenset({RestorePhase.COMPLETED, RestorePhase.FAILED, RestorePhase.CANCELLED})


@dataclass(frozen=True, slots=True)
class MoverSeen:
    """What is known of the filling Job."""

    state: Literal["missing", "pending", "running", "succeeded", "failed", "deleting"] = "missing"
    outcome: MoverOutcome | None = None
    message: str = ""
    stalled: bool = False
    """Nothing of it has changed for too long."""
    lost: bool = False
    """Its pod should have gone long ago, and its node doesn't answer."""


@dataclass(frozen=True, slots=True)
class RestoreSeen:
    """All that a decision about a Restore rests on."""

    restore: Restore
    prime: PersistentVolumeClaim | None
    """The claim that is filled, in the controller's namespace."""
    prime_volume: PersistentVolume | None
    """The volume behind it: of the claim while it lives, of `status.volume` afterwards."""
    new_volume: PersistentVolume | None
    """The volume made again for the tenant."""
    target: PersistentVolumeClaim | None
    attached: bool
    """Whether a VolumeAttachment of the prime's volume is left."""
    mover: MoverSeen
    children: Mapping[str, Restore]
    max_attempts: int
    overdue: bool = False
    """Its deletion was asked for longer ago than a finalizer may hold it."""


@dataclass(frozen=True, slots=True)
class Resolve:
    """Find the point, check who may, and write down what will be made."""


@dataclass(frozen=True, slots=True)
class AwaitSlot:
    """A mover slot is not granted yet."""


@dataclass(frozen=True, slots=True)
class CreatePrime:
    """Make the raw block claim that is filled."""


@dataclass(frozen=True, slots=True)
class StartMover:
    """Start a Job that fills it."""


@dataclass(frozen=True, slots=True)
class Follow:
    """Tell how far the mover is."""


@dataclass(frozen=True, slots=True)
class RemoveMover:
    """Remove the Job, its pods and its Secret."""


@dataclass(frozen=True, slots=True)
class StartOver:
    """Remove the mover whose end nobody saw, and the volume to which it may still write."""


@dataclass(frozen=True, slots=True)
class RecordFilled:
    """Write down that the volume holds the point."""

    sha256: str


@dataclass(frozen=True, slots=True)
class AwaitDetach:
    """The volume is still attached to the mover's node."""


@dataclass(frozen=True, slots=True)
class SaveVolume:
    """Keep the volume whatever happens to its claim, and save the spec that it will have."""


@dataclass(frozen=True, slots=True)
class RemovePrime:
    """Delete the filled claim; its volume stays."""


@dataclass(frozen=True, slots=True)
class RemoveOldVolume:
    """Delete the old volume object; the storage stays."""


@dataclass(frozen=True, slots=True)
class CreateVolume:
    """Make the volume object again, for the tenant's claim."""


@dataclass(frozen=True, slots=True)
class CreateClaim:
    """Make the tenant's claim, last."""


@dataclass(frozen=True, slots=True)
class AwaitBound:
    """The claim is not bound yet."""


@dataclass(frozen=True, slots=True)
class PutBack:
    """Give the volume the reclaim policy of its class."""


@dataclass(frozen=True, slots=True)
class CreateChildren:
    """Make one Restore per volume of the Backup."""


@dataclass(frozen=True, slots=True)
class CancelChildren:
    """Ask the children to stop."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Abort:
    """Remove what was made, then end with this phase."""

    phase: RestorePhase
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Record how it ended."""

    phase: RestorePhase
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Release:
    """Nothing is in flight: drop the finalizer."""


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing to do."""


Step = (
    Resolve
    | AwaitSlot
    | CreatePrime
    | StartMover
    | Follow
    | RemoveMover
    | StartOver
    | RecordFilled
    | AwaitDetach
    | SaveVolume
    | RemovePrime
    | RemoveOldVolume
    | CreateVolume
    | CreateClaim
    | AwaitBound
    | PutBack
    | CreateChildren
    | CancelChildren
    | Abort
    | Finish
    | Release
    | Done
)


def decide(seen: RestoreSeen) -> Step:
    """Choose the one next step. The same answer twice is harmless."""
    restore, status = seen.restore, seen.restore.status
    if status.phase in FINAL:
        return Release() if restore.metadata.finalizers else Done()
    if seen.overdue:
        return Release()
    stop = restore.spec.cancel or restore.deleting
    if restore.spec.source.backup is not None:
        return _follow_children(seen, stop=stop)
    if status.saved_volume:
        return _hand_over(seen)
    if status.reason:
        phase = RestorePhase.CANCELLED if status.reason == "Cancelled" else RestorePhase.FAILED
        return Abort(phase, status.reason, status.message)
    if stop:
        return Abort(RestorePhase.CANCELLED, "Cancelled", "Stopped on request; the half-filled volume was removed.")
    if not status.manifest_key:
        return Resolve()
    if seen.target is not None:
        return _target_exists(seen)
    return _fill(seen)


def _fill(seen: RestoreSeen) -> Step:
    status = seen.restore.status
    if status.granted_time is None:
        return AwaitSlot()
    if not status.filled and forsaken(status):
        return StartOver()
    if seen.prime is None:
        return CreatePrime()
    if not status.filled:
        return _mover(seen)
    if seen.mover.state != "missing":
        return RemoveMover()
    if seen.attached:
        return AwaitDetach()
    return SaveVolume()


def _mover(seen: RestoreSeen) -> Step:
    mover, status = seen.mover, seen.restore.status
    match mover.state:
        case "missing":
            if status.attempts >= seen.max_attempts:
                return Abort(
                    RestorePhase.FAILED,
                    "MoverFailed",
                    f"{status.attempts} movers failed to fill the volume; see the Events and the movers' logs.",
                )
            return StartMover()
        case "pending" | "running":
            if not mover.stalled:
                return Follow()
            if status.attempts >= seen.max_attempts:
                return Abort(RestorePhase.FAILED, STALLED, mover.message or "The movers got nowhere.")
            return RemoveMover()
        case "deleting":
            return RemoveMover()
        case "succeeded":
            return RecordFilled(mover.outcome.sha256 if mover.outcome else "")
        case "failed":
            outcome = mover.outcome
            if outcome is not None and not outcome.retryable and outcome.reason:
                return Abort(RestorePhase.FAILED, outcome.reason, outcome.message)
            if status.attempts >= seen.max_attempts:
                return Abort(RestorePhase.FAILED, "MoverFailed", mover.message or "The movers failed.")
            return RemoveMover()


def forsaken(status: RestoreStatus) -> bool:
    """Return whether the last mover was given up without anybody having seen it end."""
    failed = condition(status.conditions, MOVER)
    return failed is not None and failed.status == "False" and failed.reason in UNSEEN


def ours(restore: Restore, claim: PersistentVolumeClaim) -> bool:
    """Return whether a claim was made by this restore."""
    return claim.metadata.labels.get(LABEL_RESTORED_BY) == restore.uid


def _target_exists(seen: RestoreSeen) -> Abort:
    status = seen.restore.status
    return Abort(
        RestorePhase.FAILED,
        "TargetExists",
        f"A claim {status.target_namespace}/{status.target_pvc} exists already; an existing volume is never "
        "overwritten. Choose another spec.target.pvcName or remove the claim first.",
    )


def _hand_over(seen: RestoreSeen) -> Step:
    target = seen.target
    if seen.new_volume is None:
        if seen.prime is not None:
            return RemovePrime()
        if seen.prime_volume is not None:
            return RemoveOldVolume()
        return CreateVolume()
    if target is None:
        return CreateClaim()
    if not ours(seen.restore, target):
        return _target_exists(seen)
    if not target.bound:
        return AwaitBound()
    if target.spec.volume_name != seen.new_volume.name:
        return Abort(
            RestorePhase.FAILED,
            "ForeignVolume",
            f"The claim was bound to {target.spec.volume_name}, not to the restored volume {seen.new_volume.name}, "
            "which is kept with reclaim policy Retain.",
        )
    if seen.new_volume.metadata.annotations.get(ANNOTATION_RECLAIM, "") not in (
        "",
        seen.new_volume.spec.persistent_volume_reclaim_policy,
    ):
        return PutBack()
    return Finish(RestorePhase.COMPLETED, "Completed", "The volume holds the recovery point and is bound.")


ANNOTATION_RECLAIM = "tidemark.dev/reclaim-policy"
"""On a volume that is being handed over: the reclaim policy that it gets once its claim is bound."""


def _follow_children(seen: RestoreSeen, *, stop: bool) -> Step:
    status = seen.restore.status
    if not status.children:
        if stop:
            return Finish(RestorePhase.CANCELLED, "Cancelled", "Stopped on request.")
        if status.reason:
            return Finish(RestorePhase.FAILED, status.reason, status.message)
        return Resolve()
    absent = [n for n in status.children if n not in seen.children]
    running = [n for n, c in seen.children.items() if c.status.phase not in FINAL]
    if stop:
        to_stop = tuple(n for n in running if not seen.children[n].spec.cancel)
        if to_stop:
            return CancelChildren(to_stop)
        if running:
            return Follow()
        return Finish(RestorePhase.CANCELLED, "Cancelled", "Stopped on request; finished volumes stay.")
    if absent and not status.reason:
        return CreateChildren()
    if running:
        return Follow()
    if status.reason:
        # No later pass can mend it: a child's name is taken, or the Backup's points went meanwhile.
        return Finish(RestorePhase.FAILED, status.reason, status.message)
    failed = sorted(
        (c for c in seen.children.values() if c.status.phase is not RestorePhase.COMPLETED), key=lambda c: c.name
    )
    good = len(seen.children) - len(failed)
    if not failed:
        return Finish(RestorePhase.COMPLETED, "Completed", f"{good} volumes restored.")
    why = f"{failed[0].name}: {failed[0].status.reason}: {failed[0].status.message}"
    text = f"{good} of {len(seen.children)} volumes restored; {why}"
    reasons = {c.status.reason for c in failed}
    whole = next(iter(reasons)) if len(reasons) == 1 else ""
    return Finish(RestorePhase.FAILED, "PartiallyFailed" if good else whole or "Failed", text[:512])
