"""What counts as a change of a mover, and when nothing has changed for too long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.api.meta import Condition
from orchestrator.api.mover import Progress
from orchestrator.decisions import stall

pytestmark = pytest.mark.quick

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
BOUND_S = 600.0


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def copying(done: int, attempt: int = 1) -> str:
    return stall.sign(attempt, "running", Progress(stage="copying", done=done, total=100))


def test_slow_progress_is_noted_seldom_and_never_taken_for_a_hang() -> None:
    told: tuple[Condition, ...] = ()
    writes = 0
    for second in range(0, 7200, 10):
        before = told
        assert not stall.stalled(told, copying(second), at(second), BOUND_S)
        told = stall.noted(told, copying(second), at(second), BOUND_S)
        writes += told is not before
    assert writes == 7200 / stall.NOTE_S


def test_a_mover_that_stands_still_is_found_out_whoever_looks_and_whatever_the_log_says() -> None:
    told = stall.noted((), stall.sign(1, "pending", None), at(0), BOUND_S)
    told = stall.noted(told, stall.sign(1, "running", None), at(1), BOUND_S)
    told = stall.noted(told, copying(5), at(40), BOUND_S)
    for seen in (copying(5), stall.sign(1, "running", None)):
        assert stall.noted(told, seen, at(300), BOUND_S) is told
        assert not stall.stalled(told, seen, at(640), BOUND_S)
        assert stall.stalled(told, seen, at(641), BOUND_S)
    assert not stall.stalled(told, copying(6), at(9999), BOUND_S)
    assert not stall.stalled(told, copying(5, attempt=2), at(9999), BOUND_S)


def test_a_change_of_the_pods_state_counts_at_once() -> None:
    told = stall.noted((), stall.sign(1, "pending", None), at(0), BOUND_S)
    told = stall.noted(told, stall.sign(1, "running", None), at(1), BOUND_S)
    assert not stall.overdue(told, at(601), BOUND_S)
    assert stall.overdue(told, at(602), BOUND_S)


def test_other_conditions_stay_and_what_was_seen_goes_with_the_mover() -> None:
    other = Condition(type="Other", status="True")
    told = stall.noted((other,), copying(1), at(0), BOUND_S)
    assert len(told) == 2
    assert stall.without(told) == (other,)
    assert "1 of 100 bytes" in stall.sentence(BOUND_S, told)
