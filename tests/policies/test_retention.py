"""Retention: each point kept or dropped, with reasons. Tables read like a calendar."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.retention import Point, Rules, keeps_nothing, plan
from tests.policies.calm import CALM

pytestmark = pytest.mark.quick

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def points(*times: str) -> list[Point]:
    """Return one good point per time, in the order of time."""
    stamps = sorted(datetime.fromisoformat(t).replace(tzinfo=UTC) for t in times)
    return [Point(id=f"{t:%m-%d %H:%M}", sequence=n, time=t) for n, t in enumerate(stamps)]


DAYS = points(
    "2026-11-22T10:00", "2026-11-22T08:00", "2026-11-21T20:00", "2026-11-21T08:00", "2026-11-20T08:00",
    "2026-11-16T08:00", "2026-11-15T08:00", "2026-11-01T08:00", "2026-10-31T08:00", "2026-10-01T08:00",
    "2025-12-31T23:00", "2025-06-01T00:00",
)  # fmt: skip

CALENDAR = [
    (Rules(keep_last=2), ["11-22 10:00", "11-22 08:00"]),
    (Rules(hourly=3), ["11-22 10:00", "11-22 08:00", "11-21 20:00"]),
    (Rules(daily=3), ["11-22 10:00", "11-21 20:00", "11-20 08:00"]),
    # ISO weeks: 22nd is a Sunday (week 47), 16th its Monday, 15th the Sunday before (week 46), 1st week 44
    (Rules(weekly=3), ["11-22 10:00", "11-15 08:00", "11-01 08:00"]),
    (Rules(monthly=3), ["11-22 10:00", "10-31 08:00", "12-31 23:00"]),
    (Rules(yearly=5), ["11-22 10:00", "12-31 23:00"]),
    (Rules(keep_within=timedelta(hours=28)), ["11-22 10:00", "11-22 08:00", "11-21 20:00"]),
    (Rules(keep_last=1, monthly=2), ["11-22 10:00", "10-31 08:00"]),
]


@pytest.mark.parametrize(("rules", "expected"), CALENDAR)
def test_the_calendar(rules: Rules, expected: list[str]) -> None:
    assert [d.point.id for d in plan(DAYS, rules, NOW).keep] == expected


def test_each_point_says_which_rules_keep_it_or_why_none_does() -> None:
    verdict = plan(DAYS, Rules(keep_last=1, daily=2), NOW)
    assert verdict.decisions[0].reasons == ("last 1/1", "daily 1/2: newest of its day")
    assert verdict.decisions[1].reasons == ("not kept by keepLast, daily",)
    assert verdict.decisions[2].reasons == ("daily 2/2: newest of its day",)


def test_days_are_days_in_utc_whatever_the_zone_of_the_stamp() -> None:
    east = datetime.fromisoformat("2026-11-22T00:30+02:00")  # the 21st in UTC
    late = datetime(2026, 11, 21, 23, 0, tzinfo=UTC)
    verdict = plan([Point("a", 0, east), Point("b", 1, late)], Rules(daily=5), NOW)
    assert [d.point.id for d in verdict.keep] == ["b"]


def test_order_comes_from_the_sequence_and_not_from_time() -> None:
    """A clock that was set back must not make the newest point look old."""
    newest = Point("new", 2, NOW - timedelta(days=9))
    verdict = plan([Point("old", 1, NOW), newest], Rules(keep_last=1), NOW)
    assert [d.point.id for d in verdict.keep] == ["new"]


def test_the_last_good_point_is_never_dropped_however_old() -> None:
    old = Point("only", 1, NOW - timedelta(days=900))
    failed = Point("bad", 2, NOW - timedelta(days=1), good=False)
    verdict = plan([failed, old], Rules(keep_within=timedelta(hours=1)), NOW)
    assert {d.point.id: d.kept for d in verdict.decisions} == {"bad": True, "only": True}
    assert verdict.decisions[1].reasons[0] == "last good point"


def test_failed_points_satisfy_no_rule() -> None:
    rows = [Point(str(n), n, NOW - timedelta(hours=10 - n), good=n % 2 == 0) for n in range(10)]
    kept = [d.point.id for d in plan(rows, Rules(keep_last=2), NOW).keep if d.point.good]
    assert kept == ["8", "6"]


def test_on_demand_points_stand_outside_the_counts_and_go_by_their_expiry() -> None:
    rows = [
        Point("scheduled-1", 1, NOW - timedelta(hours=4)),
        Point("scheduled-2", 2, NOW - timedelta(hours=3)),
        Point("kept", 3, NOW - timedelta(hours=2), on_demand=True),
        Point("expired", 4, NOW - timedelta(hours=1), on_demand=True, expires=NOW),
        Point("later", 5, NOW, on_demand=True, expires=NOW + timedelta(seconds=1)),
    ]
    verdict = plan(rows, Rules(keep_last=1), NOW)
    assert [d.point.id for d in verdict.keep] == ["later", "kept", "scheduled-2"]
    reasons = {d.point.id: d.reasons for d in verdict.decisions}
    assert reasons["expired"] == ("on demand, expired 2026-11-22T12:00:00Z",)
    assert reasons["kept"] == ("on demand, never expires",)


def test_no_retention_keeps_everything() -> None:
    assert plan(DAYS, None, NOW).drop == ()
    assert not keeps_nothing(None)


def test_rules_that_keep_nothing_are_told_and_harm_nothing() -> None:
    assert keeps_nothing(Rules())
    assert keeps_nothing(Rules(keep_within=timedelta(0)))
    assert not keeps_nothing(Rules(yearly=1))
    assert plan(DAYS, Rules(), NOW).drop == ()


rules_given = st.builds(
    Rules,
    keep_last=st.integers(0, 4),
    hourly=st.integers(0, 4),
    daily=st.integers(0, 4),
    weekly=st.integers(0, 4),
    monthly=st.integers(0, 4),
    yearly=st.integers(0, 4),
    keep_within=st.none() | st.timedeltas(timedelta(0), timedelta(days=60)),
)
point_given = st.builds(
    lambda hours, good, on_demand, expiry: (hours, good, on_demand, expiry),
    st.integers(0, 24 * 900),
    st.booleans(),
    st.booleans(),
    st.none() | st.integers(-100, 100),
)


def build(rows: list[tuple[int, bool, bool, int | None]]) -> list[Point]:
    return [
        Point(
            id=str(n),
            sequence=n,
            time=NOW - timedelta(hours=hours),
            good=good,
            on_demand=on_demand,
            expires=None if expiry is None else NOW + timedelta(hours=expiry),
        )
        for n, (hours, good, on_demand, expiry) in enumerate(rows)
    ]


@CALM
@given(st.lists(point_given, max_size=40), rules_given | st.none())
def test_every_point_is_kept_or_dropped_with_a_reason_and_the_last_good_one_stays(
    rows: list[tuple[int, bool, bool, int | None]], rules: Rules | None
) -> None:
    given_points = build(rows)
    before = list(given_points)
    verdict = plan(given_points, rules, NOW)
    assert given_points == before, "what was given is not changed"
    assert sorted(d.point.sequence for d in verdict.decisions) == [p.sequence for p in given_points]
    assert all(d.reasons for d in verdict.decisions)
    good = [p.id for p in given_points if p.good]
    if good:
        assert good[-1] in {d.point.id for d in verdict.keep}


@CALM
@given(st.lists(point_given, max_size=40), rules_given)
def test_pruning_twice_drops_no_more(rows: list[tuple[int, bool, bool, int | None]], rules: Rules) -> None:
    """Without this, each pass of the controller would eat further into what the rules promise."""
    once = plan(build(rows), rules, NOW)
    twice = plan([d.point for d in once.keep], rules, NOW)
    assert {d.point.id for d in twice.keep if d.point.good} == {d.point.id for d in once.keep if d.point.good}


@CALM
@given(st.lists(point_given, max_size=30), rules_given, rules_given)
def test_a_further_rule_never_drops_what_another_keeps(
    rows: list[tuple[int, bool, bool, int | None]], one: Rules, other: Rules
) -> None:
    both = Rules(
        *(max(getattr(one, f), getattr(other, f)) for f in ("keep_last", "hourly", "daily", "weekly", "monthly")),
        yearly=max(one.yearly, other.yearly),
        keep_within=max(one.keep_within or timedelta(0), other.keep_within or timedelta(0)),
    )
    if keeps_nothing(one):
        return
    kept = {d.point.id for d in plan(build(rows), one, NOW).keep}
    assert kept <= {d.point.id for d in plan(build(rows), both, NOW).keep}
