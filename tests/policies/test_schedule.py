"""Slots: nominal, once, right across clock changes; and nothing when the clock steps back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.schedule import (
    MISSED_LIMIT,
    SHORTEST,
    BadSchedule,
    Due,
    cron_plan,
    due_slots,
    interval_plan,
    jitter_offset,
    next_firing,
    next_slot,
    slot_name_part,
)
from tests.policies.calm import CALM

pytestmark = pytest.mark.quick

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def slots(expression: str, zone: str, start: str, end: str) -> list[str]:
    plan, at, found = cron_plan(expression, zone, now=NOW), utc(start), []
    while (slot := next_slot(plan, at)) is not None and slot <= utc(end):
        found.append(slot.strftime("%d %H:%M"))
        at = slot
    return found


CALENDAR = [
    # Berlin springs forward 2026-03-29 at 01:00 UTC (02:00 -> 03:00) and back 2026-10-25 at 01:00 UTC (03:00 -> 02:00).
    ("a time that does not exist fires when the clock has jumped", "30 2 * * *", "Europe/Berlin",
     "2026-03-27T12:00", "2026-03-31T00:00", ["28 01:30", "29 01:00", "30 00:30"]),
    ("a time that comes twice fires once", "30 2 * * *", "Europe/Berlin",
     "2026-10-23T12:00", "2026-10-26T12:00", ["24 00:30", "25 00:30", "26 01:30"]),
    ("minute steps in an hour that does not exist fire once", "*/15 2 * * *", "Europe/Berlin",
     "2026-03-29T00:00", "2026-03-29T12:00", ["29 01:00"]),
    ("minute steps in an hour that comes twice fire once each", "*/30 2 * * *", "Europe/Berlin",
     "2026-10-24T22:00", "2026-10-25T12:00", ["25 00:00", "25 00:30"]),
    ("hour steps are wall-clock times: once each", "0 */2 * * *", "Europe/Berlin",
     "2026-10-24T21:00", "2026-10-25T04:00", ["24 22:00", "25 00:00", "25 03:00"]),
    ("every hour means every real hour", "0 * * * *", "Europe/Berlin",
     "2026-10-24T22:30", "2026-10-25T03:00", ["24 23:00", "25 00:00", "25 01:00", "25 02:00", "25 03:00"]),
    ("every hour leaves no hour out in spring", "0 * * * *", "Europe/Berlin",
     "2026-03-28T23:30", "2026-03-29T02:00", ["29 00:00", "29 01:00", "29 02:00"]),
    ("day of month or day of week, as in crontab", "0 0 13 * 5", "UTC",
     "2026-11-05T00:00", "2026-11-21T00:00", ["06 00:00", "13 00:00", "20 00:00"]),
    ("Sunday is 0 and 7", "0 6 * * 7", "UTC", "2026-11-20T00:00", "2026-11-30T00:00", ["22 06:00", "29 06:00"]),
    ("Sunday by name", "0 6 * * sun", "UTC", "2026-11-20T00:00", "2026-11-30T00:00", ["22 06:00", "29 06:00"]),
    ("half-hour zones", "0 9 * * *", "Asia/Kolkata", "2026-11-20T00:00", "2026-11-21T00:00", ["20 03:30"]),
    ("a zone that changes by half an hour", "15 2 * * *", "Australia/Lord_Howe",
     "2026-10-03T00:00", "2026-10-05T00:00", ["03 15:30", "04 15:15"]),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "expression", "zone", "start", "end", "expected"), CALENDAR)
def test_the_calendar(rule: str, expression: str, zone: str, start: str, end: str, expected: list[str]) -> None:
    assert slots(expression, zone, start, end) == expected, rule


def test_from_within_the_repeated_hour_no_slot_of_the_past_is_named() -> None:
    """At 02:10 of the second pass, 02:30 has fired already: the next is tomorrow's."""
    plan = cron_plan("30 2 * * *", "Europe/Berlin", now=NOW)
    assert next_slot(plan, utc("2026-10-25T01:10")) == utc("2026-10-26T01:30")


BAD = [
    ("0 0 30 2 *", "UTC", "never fires"),
    ("0 0 31 4,6 *", "UTC", "never fires"),
    ("* * * *", "UTC", "has 4 fields"),
    ("0 * * * * *", "UTC", "has 6 fields"),
    ("@daily", "UTC", "has 1 fields"),
    ("61 * * * *", "UTC", "bad minute"),
    ("0 0 32 1 *", "UTC", "bad day-of-month"),
    ("0 0 * 13 *", "UTC", "bad month"),
    ("0 0 * * mond", "UTC", "bad day-of-week"),
    ("*/0 * * * *", "UTC", "bad minute"),
    ("0 0 * * *", "Mars/Phobos", "is not an IANA time zone"),
    ("0 0 * * *", "../../etc/passwd", "is not an IANA time zone"),
    ("0 0 * * *", "", "is not an IANA time zone"),
]


@pytest.mark.parametrize(("expression", "zone", "message"), BAD)
def test_a_schedule_that_cannot_be_followed_is_refused_with_a_reason(expression: str, zone: str, message: str) -> None:
    with pytest.raises(BadSchedule, match=message):
        cron_plan(expression, zone, now=NOW)


def test_the_29th_of_february_is_rare_but_fires() -> None:
    assert next_slot(cron_plan("0 0 29 2 *", now=NOW), NOW) == utc("2028-02-29T00:00")


def test_an_interval_too_short_to_be_kept_is_refused() -> None:
    with pytest.raises(BadSchedule, match="write 5s or more"):
        interval_plan(SHORTEST - timedelta(seconds=1))


def test_only_the_newest_slot_is_made_and_the_others_are_counted() -> None:
    plan = cron_plan("0 * * * *", now=NOW)
    due = due_slots(plan, utc("2026-11-22T08:00"), utc("2026-11-22T12:30"), utc("2026-01-01T00:00"))
    assert due == Due(utc("2026-11-22T12:00"), missed=3)


def test_a_new_policy_waits_for_its_first_slot() -> None:
    plan = cron_plan("0 * * * *", now=NOW)
    created = utc("2026-11-22T11:30")
    assert due_slots(plan, None, utc("2026-11-22T11:59"), created) == Due(None)
    assert due_slots(plan, None, utc("2026-11-22T12:00"), created) == Due(utc("2026-11-22T12:00"))


@pytest.mark.parametrize("plan", [cron_plan("*/5 * * * *", now=NOW), interval_plan(timedelta(minutes=5))])
def test_a_clock_that_steps_back_creates_nothing(plan: object) -> None:
    last = utc("2026-11-22T12:00")
    for now in ("2026-11-22T11:03", "2026-11-22T12:00", "2026-11-22T12:04", "2020-01-01T00:00"):
        assert due_slots(plan, last, utc(now), utc("2026-01-01T00:00")) == Due(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("plan", [cron_plan("* * * * *", now=NOW), interval_plan(timedelta(minutes=1))])
def test_a_year_of_missed_minutes_is_settled_at_once(plan: object) -> None:
    due = due_slots(plan, NOW - timedelta(days=366), NOW, NOW - timedelta(days=400))  # type: ignore[arg-type]
    assert due == Due(NOW, missed=MISSED_LIMIT)


def test_every_is_counted_from_the_epoch_so_that_two_controllers_agree() -> None:
    plan = interval_plan(timedelta(hours=6))
    assert next_slot(plan, utc("2026-11-22T07:13")) == utc("2026-11-22T12:00")
    due = due_slots(plan, None, utc("2026-11-22T19:00"), utc("2026-11-22T05:00"))
    assert due == Due(utc("2026-11-22T18:00"), missed=2)


def test_jitter_moves_the_firing_and_never_the_slot() -> None:
    plan = cron_plan("0 * * * *", jitter=timedelta(minutes=30), uid="b7c1", now=NOW)
    slot = utc("2026-11-22T12:00")
    assert timedelta(0) < plan.offset < timedelta(minutes=30)
    early, late = slot + plan.offset - timedelta(seconds=1), slot + plan.offset
    assert due_slots(plan, slot - timedelta(hours=1), early, NOW) == Due(None)
    assert due_slots(plan, slot - timedelta(hours=1), late, NOW) == Due(slot)
    assert next_firing(plan, early) == late
    assert next_firing(plan, late) == late + timedelta(hours=1)


@CALM
@given(st.text(max_size=40), st.integers(0, 10**6))
def test_jitter_is_the_same_each_time_and_inside_its_span(uid: str, seconds: int) -> None:
    span = timedelta(seconds=seconds)
    offset = jitter_offset(uid, span)
    assert offset == jitter_offset(uid, span)
    assert timedelta(0) <= offset < max(span, timedelta(seconds=1))


@CALM
@given(
    st.sampled_from(["*/15 * * * *", "30 2 * * *", "0 */3 * * *", "5,35 1-3 * * *", "0 2 * * 0", "17 3 1 * *"]),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
    st.integers(0, 366 * 24 * 60),
    st.lists(st.integers(1, 12 * 60), min_size=1, max_size=4),
)
def test_however_often_one_looks_each_slot_is_due_exactly_once(
    expression: str, zone: str, first: int, steps: list[int]
) -> None:
    # given
    plan = cron_plan(expression, zone, now=NOW)
    start = utc("2026-01-01T00:00") + timedelta(minutes=first)
    total = start + timedelta(minutes=sum(steps))
    # when one looks at irregular moments
    seen, last, now = 0, start, start
    for step in steps:
        now += timedelta(minutes=step)
        due = due_slots(plan, last, now, start)
        if due.newest is not None:
            assert last < due.newest <= now
            assert due_slots(plan, due.newest, now, start) == Due(None)
            seen, last = seen + due.missed + 1, due.newest
    # then all slots were accounted for, once
    once = due_slots(plan, start, total, start)
    assert seen == (0 if once.newest is None else once.missed + 1)


def test_the_name_of_a_slot_is_its_nominal_utc_time() -> None:
    assert slot_name_part(utc("2026-11-22T02:30")) == "20261122t0230z"
    assert slot_name_part(datetime.fromisoformat("2026-11-22T03:30+01:00")) == "20261122t0230z"


@CALM
@given(st.integers(int(SHORTEST.total_seconds()), 7200), st.integers(0, 10**6))
def test_two_slots_never_share_a_name(every: int, start: int) -> None:
    """With one name, the second slot's Backup would be taken for the first one's, and never made."""
    plan = interval_plan(timedelta(seconds=every))
    first = next_slot(plan, utc("2026-01-01T00:00") + timedelta(seconds=start))
    assert first is not None
    second = next_slot(plan, first)
    assert second is not None
    assert slot_name_part(first) != slot_name_part(second)
