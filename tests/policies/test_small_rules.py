"""Durations, names, back-off and exposure."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.backoff import ceiling, delay
from policies.duration import BadDuration, format_duration, parse_duration
from policies.naming import object_name, transient_name
from policies.rpo import Volume, exposure, time_to_breach, worst
from tests.policies.calm import CALM

pytestmark = pytest.mark.quick

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("15m", 900), ("24h", 86400), ("7d", 604800), ("2w", 1209600), ("1h30m", 5400), ("90s", 90), ("0s", 0)],
)
def test_a_duration_is_the_sum_of_its_parts(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "15", "m", "-5m", "1.5h", "1h 30m", "5M", "1y", "١m", "99999999999w", "15m\n"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(BadDuration):
        parse_duration(text)


@CALM
@given(st.integers(0, 10**9))
def test_a_duration_written_is_read_back(seconds: int) -> None:
    assert parse_duration(format_duration(timedelta(seconds=seconds))) == timedelta(seconds=seconds)


@CALM
@given(st.text(max_size=80), st.lists(st.text(max_size=20), max_size=4))
def test_a_name_is_a_dns_label_of_at_most_43_characters(readable: str, parts: list[str]) -> None:
    name = object_name(readable, *parts)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name)
    assert len(name) <= 43
    assert name == object_name(readable, *parts)


def test_a_name_depends_on_each_part_and_on_where_one_ends() -> None:
    assert object_name("x", "ab", "c") != object_name("x", "a", "bc")
    assert object_name("x", "ab") != object_name("x", "ab", "")


def test_a_name_is_the_same_in_every_version() -> None:
    """Changed, a restart after an upgrade would make every object in flight a second time."""
    assert object_name("Nightly.Shop", "cluster", "policy", "20261122t0230z") == "nightly-shop-55sh4sm3orag"
    assert transient_name("6a1f") == "tm-6a1f"


@CALM
@given(st.integers(-3, 10**6), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_bounded_whatever_the_attempt(attempt: int, chance: float) -> None:
    assert 0 <= delay(attempt, 0.5, 300, lambda: chance) <= ceiling(attempt, 0.5, 300) <= 300


def test_the_wait_doubles_up_to_its_cap() -> None:
    assert [ceiling(n, 1, 10) for n in range(6)] == [1, 2, 4, 8, 10, 10]


def hours_ago(name: str, hours: float | None, created: float = 100) -> Volume:
    last = None if hours is None else NOW - timedelta(hours=hours)
    return Volume(name, NOW - timedelta(hours=created), last)


def test_a_volume_never_protected_is_exposed_since_it_was_made() -> None:
    exposed = exposure(hours_ago("v", None, created=3), timedelta(hours=2), NOW)
    assert (exposed.age, exposed.breached, exposed.protected) == (timedelta(hours=3), True, False)


def test_an_age_is_never_negative() -> None:
    exposed = exposure(hours_ago("v", -1), timedelta(hours=2), NOW)
    assert exposed.age == timedelta(0)
    assert not exposed.breached


def test_exactly_at_the_target_the_promise_is_kept() -> None:
    target = timedelta(hours=2)
    assert not exposure(hours_ago("v", 2), target, NOW).breached
    assert exposure(hours_ago("v", 2.001), target, NOW).breached
    assert time_to_breach(exposure(hours_ago("v", 1.5), target, NOW), target) == timedelta(minutes=30)


def test_without_a_target_nothing_is_breached() -> None:
    assert not exposure(hours_ago("v", 900), None, NOW).breached


def test_the_worst_come_first_and_are_no_more_than_asked_for() -> None:
    volumes = [hours_ago("b", 1), hours_ago("a", 1), hours_ago("never", None, 1), hours_ago("old", 9)]
    exposures = [exposure(v, None, NOW) for v in volumes]
    assert [e.volume.name for e in worst(exposures, 3)] == ["old", "never", "a"]
