"""What a verification of the repository says of the RecoveryPoints that the cluster knows, compared both ways.

The repository alone can't show that its newest state is missing or rolled back: the digests in RecoveryPoints' statuses
can. What must never happen here: a point called sound that nobody looked at.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from orchestrator.api.meta import Condition, condition
from orchestrator.api.tidemark.recovery_point import PointPhase, RecoveryPoint

DAMAGED = "Damaged"
"""Condition of a RecoveryPoint."""
MESSAGE_LIMIT = 512
HEALING = (
    "Restore another point of the volume. Its next backup reads again what is lost here and is whole as far as the "
    "volume still holds it; this point is sound again only if the object comes back, from a replica or an old version."
)
LOSS = (
    "The cluster knows it and the repository doesn't hold it as it was. Find out who changed the bucket; put the "
    "object back from a replica or an old version, or delete this record."
)


class Standing(enum.Enum):
    """How a known point stands after a verification."""

    SOUND = "sound"
    DAMAGED = "damaged"
    MISSING = "missing"
    """Not where it should be, or another object is."""
    UNSEEN = "unseen"
    """Nothing was learnt of it."""


class Judged(NamedTuple):
    """A point's standing, with the reason and words of its condition."""

    standing: Standing
    reason: str = ""
    message: str = ""


def judge(
    point: RecoveryPoint,
    digests: Mapping[str, str],
    hurt: Mapping[str, tuple[str, int]],
    *,
    whole: bool,
    slot: datetime,
) -> Judged:
    """Say how a point stands.

    `digests`: of each manifest that opened, by name. `hurt`: words and number of lost chunks (0: not known) by
    manifest's name; `whole`: every hurt point is named there. A point completed after `slot` may not have been seen.
    """
    told, status = point.status.manifest, point.status
    if told is None or status.phase is not PointPhase.COMPLETED or point.deleting or point.spec.prune:
        return Judged(Standing.UNSEEN)
    if told.key in hurt:
        what, chunks = hurt[told.key]
        lost = f"{chunks} chunks are lost" if chunks else "It can't be read at all"
        return Judged(Standing.DAMAGED, "Damaged", f"{lost}: {what}. {HEALING}"[:MESSAGE_LIMIT])
    if told.key not in digests:
        before = status.completion_time is not None and status.completion_time < slot
        return missing("there is no such object") if before else Judged(Standing.UNSEEN)
    if digests[told.key] != told.digest:
        return missing("another manifest is in its place")
    return Judged(Standing.SOUND if whole else Standing.UNSEEN)


def missing(what: str) -> Judged:
    """Return the judgement on a point that is lost or rolled back."""
    return Judged(Standing.MISSING, "ManifestMissing", f"Its manifest: {what}. {LOSS}"[:MESSAGE_LIMIT])


def condition_of(point: RecoveryPoint, judged: Judged) -> Condition | None:
    """Return the condition to write, None to leave the point as it is.

    A sound point that was never hurt gets none.
    """
    known = condition(point.status.conditions, DAMAGED)
    generation = point.metadata.generation
    match judged.standing:
        case Standing.UNSEEN:
            return None
        case Standing.SOUND:
            if known is None or known.status != "True":
                return None
            return Condition(type=DAMAGED, status="False", reason="VerifiedClean", observed_generation=generation)
        case Standing.DAMAGED | Standing.MISSING:
            return Condition(
                type=DAMAGED,
                status="True",
                reason=judged.reason,
                message=judged.message,
                observed_generation=generation,
            )


def is_damaged(point: RecoveryPoint) -> bool:
    """Return whether a verification found the point damaged or missing, and none since found it sound."""
    known = condition(point.status.conditions, DAMAGED)
    return known is not None and known.status == "True"
