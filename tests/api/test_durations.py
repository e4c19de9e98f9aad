"""What the API server takes as a duration, the code can reckon with."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.api.tidemark.fields import Duration
from policies.duration import parse_duration

pytestmark = pytest.mark.quick

PATTERN = next(meta.pattern for meta in Duration.__metadata__ if meta.pattern)


def test_the_longest_duration_of_the_pattern_can_be_read() -> None:
    """Without this `9999999999w` passes the API server and breaks whoever reads it."""
    longest = "999w9999d99999h9999999m99999999s"
    assert re.fullmatch(PATTERN, longest)
    assert parse_duration(longest).days > 80 * 365


@given(
    st.from_regex(PATTERN, fullmatch=True, alphabet=st.characters(codec="ascii")).filter(
        lambda text: 2 <= len(text) <= 32
    )
)
def test_whatever_fits_the_pattern_is_a_duration(text: str) -> None:
    assert parse_duration(text.strip()) >= parse_duration("0s")


@pytest.mark.parametrize("text", ["9999999999w", "", "5", "m", "1h30", "-5m", "1.5h", "5m1h", "1000w", "5 m"])
def test_what_is_none_is_refused_by_the_type(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(text, Duration)


@pytest.mark.parametrize("text", ["15m", "24h", "7d", "1h30m", "90s", "5200m", "3650d", "520w", "0s", "31536000s"])
def test_what_people_write_is_taken(text: str) -> None:
    assert msgspec.convert(text, Duration) == text
