"""A base must earn it: a delta against the wrong one is silent corruption."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.lineage import Candidate, Held, Target, choose_base, grown_tail, snapshots_to_drop
from tests.policies.calm import CALM

pytestmark = pytest.mark.quick

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
BASE = Candidate(
    id="p1",
    sequence=1,
    time=NOW - timedelta(hours=1),
    driver="csi",
    volume_handle="vol",
    size_bytes=100,
    base_id="snap-1",
    usable=True,
    snapshot_kept=True,
)
TARGET = Target(time=NOW, driver="csi", volume_handle="vol", size_bytes=100, base_id="snap-2")

REJECTED: list[tuple[dict[str, Any], str, bool]] = [
    ({"usable": False}, "BaseIncomplete", False),
    ({"driver": "other"}, "BaseOtherDriver", False),
    ({"volume_handle": "recreated"}, "BaseOtherVolume", False),
    ({"time": NOW}, "BaseNotOlder", False),
    ({"time": NOW + timedelta(hours=1)}, "BaseNotOlder", False),
    ({"base_id": "snap-2"}, "BaseSameSnapshot", False),
    ({"size_bytes": 101}, "BaseLarger", False),
    ({"base_id": ""}, "BaseIdMissing", True),
    ({"snapshot_kept": False}, "BaseSnapshotGone", True),
]


def test_the_newest_good_point_of_the_volume_is_the_base_of_a_delta() -> None:
    newer = replace(BASE, id="p2", sequence=2, time=NOW - timedelta(minutes=5), base_id="snap-x")
    choice = choose_base([BASE, newer], TARGET)
    assert (choice.base, choice.mode, choice.reason) == (newer, "delta", "")


@pytest.mark.parametrize(("change", "reason", "compares"), REJECTED)
def test_what_breaks_the_chain_rule_is_no_base_and_says_why(
    change: dict[str, Any], reason: str, compares: bool
) -> None:
    candidate = replace(BASE, **change)
    choice = choose_base([candidate], TARGET)
    assert (choice.mode, choice.reason) == ("allocated", reason)
    assert choice.base == (candidate if compares else None)
    assert choice.sentence
    assert [r.reason for r in choice.rejections] == [reason]


@pytest.mark.parametrize(("change", "reason", "compares"), REJECTED)
def test_an_older_good_base_is_taken_when_the_newest_is_not_fit(
    change: dict[str, Any], reason: str, compares: bool
) -> None:
    unfit = replace(BASE, id="p2", sequence=2, **change)
    choice = choose_base([unfit, BASE], TARGET)
    assert (choice.base, choice.mode) == (BASE, "delta")
    assert [r.reason for r in choice.rejections] == [reason]


def test_order_comes_from_the_sequence_and_not_from_time() -> None:
    skewed = replace(BASE, id="p2", sequence=2, time=NOW - timedelta(hours=5))
    assert choose_base([BASE, skewed], TARGET).base is skewed


def test_without_an_earlier_point_allocated_blocks_are_asked_for() -> None:
    choice = choose_base([], TARGET)
    assert (choice.base, choice.mode, choice.reason) == (None, "allocated", "NoBase")


def test_a_forced_full_still_compares_with_the_base() -> None:
    choice = choose_base([BASE], replace(TARGET, force_full=True))
    assert (choice.base, choice.mode, choice.reason) == (BASE, "full", "FullRequested")


@pytest.mark.parametrize(
    ("whole_age", "mode"), [(timedelta(days=6), "delta"), (timedelta(days=7), "full"), (None, "full")]
)
def test_a_full_is_due_when_the_last_whole_read_is_too_long_ago(whole_age: timedelta | None, mode: str) -> None:
    earlier = [BASE]
    if whole_age is not None:
        earlier.append(replace(BASE, id="p0", sequence=0, time=NOW - whole_age, base_id="snap-0", whole=True))
    choice = choose_base(earlier, replace(TARGET, full_every=timedelta(days=7)))
    assert choice.mode == mode
    assert choice.base is BASE


def test_the_new_tail_of_a_grown_volume_is_always_read() -> None:
    assert grown_tail(100, 160) == (100, 160)
    assert grown_tail(100, 100) is None
    assert choose_base([BASE], replace(TARGET, size_bytes=160)).mode == "delta"


@CALM
@given(
    st.lists(
        st.builds(
            lambda n, **kw: replace(BASE, sequence=n, id=f"p{n}", **kw),
            st.integers(0, 9),
            usable=st.booleans(),
            driver=st.sampled_from(["csi", "other"]),
            volume_handle=st.sampled_from(["vol", "other"]),
            size_bytes=st.sampled_from([90, 100, 110]),
            base_id=st.sampled_from(["", "snap-1", "snap-2"]),
            snapshot_kept=st.booleans(),
            time=st.sampled_from([NOW - timedelta(hours=1), NOW, NOW + timedelta(hours=1)]),
        ),
        max_size=8,
    ),
    st.booleans(),
)
def test_a_delta_is_only_ever_asked_against_a_base_that_holds_the_whole_chain_rule(
    candidates: list[Candidate], force: bool
) -> None:
    choice = choose_base(candidates, replace(TARGET, force_full=force))
    assert (choice.mode == "delta") == (choice.reason == "")
    if choice.mode == "delta":
        base = choice.base
        assert base is not None
        assert base.usable
        assert base.snapshot_kept
        assert (base.driver, base.volume_handle) == (TARGET.driver, TARGET.volume_handle)
        assert base.base_id not in {"", TARGET.base_id}
        assert base.time < TARGET.time
        assert base.size_bytes <= TARGET.size_bytes
    if choice.base is not None:
        assert choice.base.usable, "an unreadable point serves for nothing"
        assert choice.base.volume_handle == TARGET.volume_handle


def test_old_snapshots_go_but_the_base_and_what_is_in_use_stay() -> None:
    held = [Held("a", 1, True), Held("b", 2, True), Held("c", 3, True), Held("d", 4, False)]
    assert [s.id for s in snapshots_to_drop(held, 1, in_use=())] == ["a", "b", "d"]
    assert [s.id for s in snapshots_to_drop(held, 2, in_use={"a", "d"})] == []
    assert [s.id for s in snapshots_to_drop(held, 0, in_use=())] == ["a", "b", "d"], "the next delta's base stays"


@CALM
@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=12, unique_by=lambda r: r[0]), st.integers(0, 5))
def test_no_base_is_dropped_before_its_heir(rows: list[tuple[int, bool]], keep: int) -> None:
    held = [Held(str(n), n, good) for n, good in rows]
    dropped = {s.id for s in snapshots_to_drop(held, keep, ())}
    good = [s.id for s in sorted(held, key=lambda s: s.sequence) if s.good]
    if good:
        assert good[-1] not in dropped
