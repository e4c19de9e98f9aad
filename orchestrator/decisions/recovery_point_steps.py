"""What is known of a recovery point, and each thing that can be done next with it: the words of its decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from orchestrator.api.foreign.core import PersistentVolume, PersistentVolumeClaim
from orchestrator.api.foreign.snapshot import VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent
from orchestrator.api.mover import MoverOutcome
from orchestrator.api.tidemark.recovery_point import PointPhase, RecoveryPoint


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long and how often, from the settings. Seconds."""

    snapshot_timeout_s: float
    clone_timeout_s: float
    mover_attempts: int
    finalizer_bound_s: float
    mover_stall_s: float = 1800.0


@dataclass(frozen=True, slots=True)
class MoverSeen:
    """What is known of the mover's Job."""

    state: Literal["missing", "pending", "running", "succeeded", "failed"] = "missing"
    attempt: int = 0
    deleting: bool = False
    outcome: MoverOutcome | None = None
    message: str = ""
    sign: str = ""
    """What is seen of it (`decisions.stall.sign`); "" until the last change that was noted is long ago."""


@dataclass(frozen=True, slots=True)
class RecoveryPointSeen:
    """All that a decision about a RecoveryPoint rests on. Only what the phase needs is filled in."""

    point: RecoveryPoint
    now: datetime
    bounds: Bounds
    claim_gone: bool = False
    """The volume's claim was deleted, or is another one now: no delta will ever be taken against its snapshot."""
    snapshot_lingers: bool = False
    """The physical snapshot was given up, but its content is still there: whoever destroyed it was cut off."""
    namespace_gone: bool = False
    """The point's namespace is being deleted."""
    claim: PersistentVolumeClaim | None = None
    """The claim of the name that the point is of."""
    volume: PersistentVolume | None = None
    """The volume behind that claim."""
    classes: Sequence[VolumeSnapshotClass] = ()
    """All snapshot classes of the cluster."""
    snapshot: VolumeSnapshot | None = None
    """Ours, in the tenant's namespace."""
    content: VolumeSnapshotContent | None = None
    """The original content: as recorded, or as the snapshot says it is bound."""
    siblings: Sequence[RecoveryPoint] = ()
    """All points of the same volume and repository, this one among them."""
    snapshots_kept: int = 1
    """How many physical snapshots the policy keeps."""
    rehomed: bool = False
    """The re-homed snapshot is ready to be cloned."""
    rehome_started: bool = False
    cloned: bool = False
    """The clone's claim is there."""
    mover: MoverSeen = MoverSeen()
    committed: bool = False
    """The manifest is in the repository. Looked for only when `asks_repository` says so."""


# Steps


@dataclass(frozen=True, slots=True)
class Protect:
    """Put the finalizer on: work is about to begin."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do but to wait; say for what."""

    reason: str
    message: str = ""
    after_s: float = 15.0


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Take the snapshot with this class."""

    class_name: str


@dataclass(frozen=True, slots=True)
class ClaimSnapshot:
    """Make the content ours and write down what is known of the snapshot; go on when it is ready."""


@dataclass(frozen=True, slots=True)
class Complete:
    """A point that is only a snapshot is done."""


@dataclass(frozen=True, slots=True)
class ChooseBase:
    """Choose what to build on, and the point's place in its lineage."""


@dataclass(frozen=True, slots=True)
class PlanCopy:
    """Find out what to read, store the plan and announce the writer's intent."""


@dataclass(frozen=True, slots=True)
class Rehome:
    """Make the snapshot usable in the controller's namespace."""


@dataclass(frozen=True, slots=True)
class Clone:
    """Make the claim that is read."""


@dataclass(frozen=True, slots=True)
class StartMover:
    """Start a mover."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Follow:
    """Tell how far the mover is, or what keeps it from starting."""


@dataclass(frozen=True, slots=True)
class RemoveMover:
    """See that a mover whose Job is being deleted goes."""


@dataclass(frozen=True, slots=True)
class RetryMover:
    """Clear a failed mover away and note why, so that another one can start."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class ReleaseSlot:
    """Give the slot back: the clone or the pod did not come up in time."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Put the manifest: nothing had to be copied, or no mover got as far as this."""


@dataclass(frozen=True, slots=True)
class Record:
    """Write down what the manifest says."""


@dataclass(frozen=True, slots=True)
class Fail:
    """End the point without data."""

    phase: PointPhase
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class TearDown:
    """Remove what was made for the point, then take the finalizer off."""

    destroy_snapshot: bool


@dataclass(frozen=True, slots=True)
class Release:
    """Take the finalizer off whatever is left: the sweeper has it from here."""


@dataclass(frozen=True, slots=True)
class DropSnapshot:
    """Destroy the physical snapshot of a finished point: a newer one is the base now."""


@dataclass(frozen=True, slots=True)
class Prune:
    """Remove the point's data, as was asked for, and then this record."""


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing to do."""


Step = (
    Protect
    | Wait
    | TakeSnapshot
    | ClaimSnapshot
    | Complete
    | ChooseBase
    | PlanCopy
    | Rehome
    | Clone
    | StartMover
    | Follow
    | RemoveMover
    | RetryMover
    | ReleaseSlot
    | Commit
    | Record
    | Fail
    | TearDown
    | Release
    | DropSnapshot
    | Prune
    | Done
)
