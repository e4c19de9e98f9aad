"""Slots: limits hold, nobody starves, the longest broken promise goes first."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.admission import Limits, Running, Waiting, grant
from tests.policies.calm import CALM

pytestmark = pytest.mark.quick

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
WIDE = Limits(total=4, per_node=9, per_driver=9, per_repository=9)


def wait(name: str, namespace: str = "a", age: int = 0, overdue: float = 0.0, **where: str) -> Waiting:
    return Waiting(name, namespace, NOW - timedelta(minutes=age), overdue_s=overdue, **where)


def ids(granted: list[Waiting]) -> list[str]:
    return [item.id for item in granted]


def test_the_longest_broken_objective_goes_first_then_the_longest_wait() -> None:
    queue = [wait("new"), wait("old", age=5), wait("late", overdue=10), wait("later", overdue=99)]
    assert ids(grant(queue, [], WIDE)) == ["later", "late", "old", "new"]


def test_a_namespace_with_many_volumes_leaves_room_for_another() -> None:
    queue = [wait(f"big-{n}", "big", overdue=1000) for n in range(9)] + [wait("small", "small")]
    granted = ids(grant(queue, [], WIDE))
    assert granted == ["big-0", "big-1", "small", "big-2"]


def test_alone_a_namespace_takes_all_slots() -> None:
    assert len(grant([wait(f"v{n}") for n in range(9)], [], WIDE)) == 4


@pytest.mark.parametrize("where", ["node", "driver", "repository"])
def test_each_limit_holds_and_does_not_block_those_it_does_not_concern(where: str) -> None:
    tight = {"per_node": 9, "per_driver": 9, "per_repository": 9} | {f"per_{where}": 1}
    queue = [wait("x1", overdue=9, **{where: "x"}), wait("x2", overdue=8, **{where: "x"}), wait("y", **{where: "y"})]
    running: list[Running] = []
    assert ids(grant(queue, running, Limits(total=4, **tight))) == ["x1", "y"]
    running = [Running("r", "a", **{where: "x"})]
    assert ids(grant(queue, running, Limits(total=4, **tight))) == ["y"]


def test_what_runs_already_gets_no_second_slot() -> None:
    assert grant([wait("v")], [Running("v", "a")], WIDE) == []


def test_an_unknown_place_is_not_limited() -> None:
    assert len(grant([wait("a"), wait("b")], [], Limits(4, 1, 1, 1))) == 2


names = st.sampled_from(["", "x", "y", "z"])


@CALM
@given(
    st.lists(st.tuples(names, names, names, names, st.floats(0, 1e6), st.integers(0, 99)), max_size=15),
    st.lists(st.tuples(names, names, names, names), max_size=6),
    st.builds(Limits, st.integers(0, 6), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)),
)
def test_limits_are_never_exceeded_and_no_slot_stays_free_while_one_fits(
    waiting_rows: list[tuple[str, str, str, str, float, int]],
    running_rows: list[tuple[str, str, str, str]],
    limits: Limits,
) -> None:
    queue = [
        Waiting(f"w{n}", ns, NOW - timedelta(minutes=age), overdue_s=late, node=node, driver=driver, repository=repo)
        for n, (ns, node, driver, repo, late, age) in enumerate(waiting_rows)
    ]
    running = [Running(f"r{n}", *row) for n, row in enumerate(running_rows)]
    granted = grant(queue, running, limits)
    assert granted == grant(list(reversed(queue)), running, limits), "the order asked in does not matter"
    everything = [*running, *granted]

    def room(item: Waiting) -> bool:
        counts = {
            field: Counter(getattr(other, field) for other in everything) for field in ("node", "driver", "repository")
        }
        return len(everything) < limits.total and all(
            not getattr(item, field) or counts[field][getattr(item, field)] < getattr(limits, f"per_{field}")
            for field in counts
        )

    if granted:
        assert len(everything) <= limits.total
        for field in ("node", "driver", "repository"):
            for item in granted:
                place = getattr(item, field)
                used = sum(getattr(other, field) == place for other in everything)
                assert not place or used <= getattr(limits, f"per_{field}")
    assert not any(room(item) for item in queue if item not in granted)
