"""When a mover is hung: nothing that it says and nothing about its pod has changed for too long.

A pod can run and do nothing for ever: its node is gone, its device hangs, its process is stopped. The instant of the
last change is kept in the status, as the transition time of a condition whose message is what was seen; a controller
that starts anew therefore doesn't begin to count anew.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from orchestrator.api.meta import Condition, condition
from orchestrator.api.mover import Progress

MOVING = "MoverProgress"
"""Condition: what was last seen of the mover; its transition time is when that changed last."""
NOTE_S = 30.0
"""Progress alone is noted at most this often; a pod's state always."""
STALLED = "MoverStalled"


def sign(attempt: int, state: str, progress: Progress | None) -> str:
    """Return what is seen of a mover as one string that differs whenever the mover got anywhere."""
    head = f"Attempt {attempt} is {state}"
    if progress is None:
        return head
    told = f"{progress.stage}, {progress.done} of {progress.total} bytes"
    return f"{head}: {told}, read {progress.read}, stored {progress.uploaded}"


def noted(conditions: tuple[Condition, ...], seen: str, now: datetime, bound_s: float) -> tuple[Condition, ...]:
    """Return the conditions with what is seen now, its time moved if that is news."""
    old = condition(conditions, MOVING)
    if old is not None and (
        _same(old.message, seen) or (_same_state(old.message, seen) and _recent(old, now, bound_s))
    ):
        return conditions
    stamp = now.replace(microsecond=0)
    new = Condition(type=MOVING, status="True", reason="Changed", message=seen, last_transition_time=stamp)
    return (*(c for c in conditions if c.type != MOVING), new)


def overdue(conditions: tuple[Condition, ...], now: datetime, bound_s: float) -> bool:
    """Return whether the last change that was noted is too long ago: time to look whether there is news."""
    old = condition(conditions, MOVING)
    if old is None or old.last_transition_time is None:
        return False
    return now - old.last_transition_time > timedelta(seconds=bound_s)


def stalled(conditions: tuple[Condition, ...], seen: str, now: datetime, bound_s: float) -> bool:
    """Return whether what is seen is what was noted too long ago."""
    old = condition(conditions, MOVING)
    return old is not None and overdue(conditions, now, bound_s) and _same(old.message, seen)


def sentence(bound_s: float, conditions: tuple[Condition, ...]) -> str:
    """Say what was not seen to change."""
    old = condition(conditions, MOVING)
    told = f" {old.message}." if old is not None else ""
    return f"Nothing changed for {bound_s:.0f} s, so another mover takes its place.{told}"


def without(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
    """Return the conditions without what was seen of a mover that is gone."""
    return tuple(c for c in conditions if c.type != MOVING)


def _same(noted_: str, seen: str) -> bool:
    """Return whether nothing is new: a log that can't be read just now is no news."""
    return noted_ == seen or noted_.startswith(f"{seen}:")


def _same_state(noted_: str, seen: str) -> bool:
    return ":" in noted_ and noted_.partition(":")[0] == seen.partition(":")[0]


def _recent(old: Condition, now: datetime, bound_s: float) -> bool:
    since = old.last_transition_time
    return since is not None and now - since < timedelta(seconds=min(NOTE_S, bound_s / 4))


__all__ = ["MOVING", "STALLED", "noted", "overdue", "sentence", "sign", "stalled", "without"]
