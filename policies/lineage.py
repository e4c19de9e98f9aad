"""What the next point of a volume builds on, and how it may be read.

A delta against the wrong base is silent corruption, so a base must earn it: each candidate that does not is told with
its reason. Order comes from stored sequence numbers; time is a check only. The best that can be asked for is chosen
here; what the driver then refuses is another matter.

Two uses of a base are kept apart. Any whole, readable point of the same volume serves for *comparison*: its chunk map
says which chunks are known. Only a base that the storage system can still be asked about serves for a *delta*.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

Mode = Literal["delta", "allocated", "full"]

Reason = Literal[
    "",
    "NoBase",
    "FullRequested",
    "FullDue",
    "BaseIncomplete",
    "BaseOtherDriver",
    "BaseOtherVolume",
    "BaseNotOlder",
    "BaseSameSnapshot",
    "BaseLarger",
    "BaseIdMissing",
    "BaseSnapshotGone",
]
"""Why something is not a delta, or why a candidate is not its base. Stable: a metric label and a runbook anchor."""

_NO_DELTA_ONLY: frozenset[Reason] = frozenset({"BaseIdMissing", "BaseSnapshotGone"})
"""These rule out the delta; the base still serves for comparison."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An earlier point of the volume in the same repository. Facts come from the authenticated manifest."""

    id: str
    sequence: int
    time: datetime
    driver: str
    volume_handle: str
    size_bytes: int
    base_id: str
    """What the driver wants to hear as base: the snapshot handle, or what stands for it. Used verbatim."""
    usable: bool
    """Complete, and its manifest opened."""
    snapshot_kept: bool
    """The physical snapshot is still there, or the driver does not need it."""
    whole: bool = False
    """It was read whole (mode full)."""


@dataclass(frozen=True, slots=True)
class Target:
    """The point about to be made."""

    time: datetime
    driver: str
    volume_handle: str
    size_bytes: int
    base_id: str
    """What it will be named by as a base; tells the same snapshot apart."""
    full_every: timedelta | None = None
    force_full: bool = False


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a candidate is not the base of a delta."""

    candidate: Candidate
    reason: Reason
    sentence: str


@dataclass(frozen=True, slots=True)
class Choice:
    """What to build on and what to ask for."""

    base: Candidate | None
    """Base of the delta; in other modes the point to compare chunks with. None: there is none."""
    mode: Mode
    reason: Reason
    """Why it is not a delta; empty for a delta."""
    sentence: str
    rejections: tuple[Rejection, ...] = ()


def choose_base(candidates: Iterable[Candidate], target: Target) -> Choice:
    """Return the newest candidate that a delta may be taken against, else what to do without.

    Source: CBT contract 4.5 (chain rule), traps T11, T16, T17, T18. Forced or due fulls come before everything.
    """
    newest_first = sorted(candidates, key=lambda c: c.sequence, reverse=True)
    rejections: list[Rejection] = []
    chosen: Candidate | None = None
    compare: Candidate | None = None
    for candidate in newest_first:
        reason, sentence = judge(candidate, target)
        if not reason:
            chosen = candidate
            break
        rejections.append(Rejection(candidate, reason, sentence))
        if compare is None and reason in _NO_DELTA_ONLY:
            compare = candidate
    told = tuple(rejections)
    if target.force_full:
        return Choice(chosen or compare, "full", "FullRequested", "A full read was asked for", told)
    if target.full_every is not None and _full_due(newest_first, target, target.full_every):
        return Choice(chosen or compare, "full", "FullDue", "No full read within fullEvery", told)
    if chosen is not None:
        return Choice(chosen, "delta", "", "", told)
    if not rejections:
        return Choice(None, "allocated", "NoBase", "The volume has no earlier point here", told)
    closest = next((r for r in rejections if r.candidate is compare), rejections[0])
    return Choice(compare, "allocated", closest.reason, closest.sentence, told)


def judge(candidate: Candidate, target: Target) -> tuple[Reason, str]:
    """Return why no delta may be taken against `candidate`, with a sentence; two empty strings if one may."""
    if not candidate.usable:
        return "BaseIncomplete", "The earlier point is incomplete or can't be read"
    if candidate.driver != target.driver:
        return "BaseOtherDriver", f"The earlier point is of driver {candidate.driver}, this one of {target.driver}"
    if candidate.volume_handle != target.volume_handle:
        return "BaseOtherVolume", "The claim has another volume than the earlier point"
    if candidate.base_id and candidate.base_id == target.base_id:
        return "BaseSameSnapshot", "The earlier point is of this very snapshot"
    if candidate.time >= target.time:
        return "BaseNotOlder", "The earlier point's snapshot is not older than this one"
    if candidate.size_bytes > target.size_bytes:
        return "BaseLarger", f"The volume shrank from {candidate.size_bytes} to {target.size_bytes} bytes"
    if not candidate.base_id:
        return "BaseIdMissing", "The earlier point does not say what the driver calls its snapshot"
    if not candidate.snapshot_kept:
        return "BaseSnapshotGone", "The earlier point's snapshot is gone"
    return "", ""


def grown_tail(base_size: int, target_size: int) -> tuple[int, int] | None:
    """Return the byte range [base_size, target_size) that must be read whatever the driver reports; None if not grown.

    Source: trap T11: a driver may be silent about the new tail of an expanded volume.
    """
    return (base_size, target_size) if target_size > base_size else None


def _full_due(candidates: Sequence[Candidate], target: Target, full_every: timedelta) -> bool:
    fulls = [c.time for c in candidates if c.whole and c.usable and c.volume_handle == target.volume_handle]
    return not fulls or target.time - max(fulls) >= full_every


@dataclass(frozen=True, slots=True)
class Held:
    """A physical snapshot that is held for a point."""

    id: str
    sequence: int
    good: bool
    """Its point is complete: it can be a base."""


def snapshots_to_drop(snapshots: Iterable[Held], keep: int, in_use: Collection[str]) -> tuple[Held, ...]:
    """Return the physical snapshots of one volume that may go, oldest first.

    Stays: the newest `keep` (at least 1: the next delta's base) of good points, and each whose id is in `in_use`
    (base or target of work in flight). Without the last rule a running delta loses its base.
    """
    ordered = sorted(snapshots, key=lambda s: s.sequence)
    good = [s.id for s in ordered if s.good]
    stay = set(good[-max(keep, 1) :]) | set(in_use)
    return tuple(s for s in ordered if s.id not in stay)
