"""Every rule that a server can break is seen, whichever range of whichever message breaks it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.cbt.checks import Checks
from orchestrator.cbt.codec import Message
from orchestrator.cbt.errors import ContractViolation

pytestmark = pytest.mark.quick

FIXED, VARIABLE = 1, 2
CAP = 1 << 20
TOP = (1 << 63) - 1
K = 4096


def message(*ranges: tuple[int, int], kind: int = VARIABLE, cap: int = CAP) -> Message:
    return Message(kind, cap, np.array([r[0] for r in ranges], np.int64), np.array([r[1] for r in ranges], np.int64))


def checks(*, start: int = 0, size: int = CAP, most: int = 0) -> Checks:
    return Checks("block.csi.example.com", start=start, size_bytes=size, max_results=most)


def feed(state: Checks, *messages: Message) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for each in messages:
        extents = state.accept(each, 13 * len(each))
        out += zip(extents.offsets.tolist(), extents.lengths.tolist(), strict=True)
    return out


@pytest.mark.parametrize(
    ("rule", "messages"),
    [
        ("X1", [message((0, 0))]),
        ("X1", [message((0, -1))]),
        ("X1", [message((-K, 2 * K))]),
        ("X1", [message((0, K), (K, 0), (2 * K, K))]),
        ("X1", [message((TOP, 1))]),
        ("X1", [message((0, K), (TOP - 5, TOP))]),
        ("X1", [message((5, -(1 << 63)))]),
        ("X2", [message((K, K), (0, K))]),
        ("X2", [message((0, 2 * K), (K, K))]),
        ("X2", [message((0, K), (0, K))]),
        ("X2", [message((0, K)), message((0, K))]),
        ("X2", [message((8 * K, K)), message((9 * K - 1, K))]),
        ("X3", [message((0, K), kind=0)]),
        ("X3", [message((0, K), kind=7)]),
        ("X3", [message((0, K), kind=-1)]),
        ("X3", [message((0, K), kind=VARIABLE), message((K, K), kind=FIXED)]),
        ("X3", [message((0, K)), message(kind=0)]),
        ("X4", [message((0, K), cap=0)]),
        ("X4", [message((0, K), cap=-1)]),
        ("X4", [message((0, K)), message((K, K), cap=CAP + 1)]),
        ("X4", [message(cap=CAP), message(cap=CAP * 2)]),
        ("X5", [message((0, K), (K, 2 * K), kind=FIXED)]),
        ("X5", [message((0, K), (K, K - 1), kind=FIXED)]),
        ("X5", [message((0, K), kind=FIXED), message((CAP - 100, 101), kind=FIXED)]),
        ("X5", [message((0, K), (CAP - 100, 100), (CAP, K), kind=FIXED)]),
        ("X5", [message((0, K), (CAP - 100, 100), kind=FIXED), message((CAP, K), kind=FIXED)]),
        ("X5", [message((0, 100), (CAP - K, K), kind=FIXED)]),
    ],
)
def test_a_broken_rule_is_named(rule: str, messages: list[Message]) -> None:
    with pytest.raises(ContractViolation) as caught:
        feed(checks(), *messages)
    assert caught.value.id == rule
    assert caught.value.driver == "block.csi.example.com"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [message()],
        [message(kind=0, cap=0)],
        [message(kind=0, cap=0), message((0, K)), message(kind=0, cap=0), message((K, K))],
        [message((0, K), (K, K), (2 * K, 1))],
        [message((0, K), (K, K)), message(), message((2 * K, K))],
        [message((0, K), (CAP - 100, 100), kind=FIXED)],
        [message((CAP - 100, 100), kind=FIXED)],
        [message((0, 1), (100, 1), (CAP - 1, 1))],
    ],
)
def test_what_is_lawful_passes_unchanged(messages: list[Message]) -> None:
    given_ranges = [pair for m in messages for pair in zip(m.offsets.tolist(), m.sizes.tolist(), strict=True)]
    assert feed(checks(), *messages) == given_ranges


def test_the_first_range_may_start_before_the_starting_offset_and_is_clipped() -> None:
    state = checks(start=100)
    assert feed(state, message((0, K), (K, K))) == [(100, K - 100), (K, K)]
    assert state.last_end == 2 * K


@pytest.mark.parametrize("first", [(0, 100), (0, 50), (99, 1)])
def test_a_first_range_that_ends_by_the_starting_offset_is_a_violation(first: tuple[int, int]) -> None:
    with pytest.raises(ContractViolation, match="X2"):
        feed(checks(start=100), message(first, (K, K)))


def test_only_the_first_range_may_start_before_the_starting_offset() -> None:
    with pytest.raises(ContractViolation, match="X2"):
        feed(checks(start=K), message((K - 10, 20)), message((K - 5, K)))


def test_ranges_past_the_device_are_clipped_and_dropped_and_counted() -> None:
    """A device of 10,000 bytes, blocks of 4 KiB: the third overhangs, the fourth is outside."""
    state = checks(size=10_000)
    assert feed(state, message((0, K), (2 * K, K), (4 * K, K), kind=FIXED)) == [(0, K), (2 * K, 10_000 - 2 * K)]
    assert (state.clipped, state.dropped, state.last_end) == (1, 1, 5 * K)
    assert feed(state, message((9 * K, K), kind=FIXED)) == []
    assert (state.clipped, state.dropped) == (1, 2)


def test_more_ranges_than_asked_for_are_noted_and_taken() -> None:
    state = checks(most=1)
    assert feed(state, message((0, 1), (1, 1)), message((2, 1))) == [(0, 1), (1, 1), (2, 1)]
    assert state.oversized == 1


def test_more_ranges_than_sectors_are_a_violation() -> None:
    """The memory guard: a 1 MiB volume can't have 3,000 separate sectors."""
    with pytest.raises(ContractViolation, match="X8"):
        feed(checks(), *(message(*((i * 1000 + j, 1) for j in range(1000))) for i in range(3)))


def test_an_endless_stream_of_empty_messages_is_a_violation() -> None:
    state = checks()
    for _ in range(64):
        state.accept(message(), 1 << 20)
    with pytest.raises(ContractViolation, match="X8"):
        state.accept(message(), 1 << 20)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    gaps=st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 9000)), min_size=1, max_size=50),
    cuts=st.lists(st.integers(1, 50), max_size=5),
    size=st.integers(1, 400_000),
)
def test_any_lawful_history_comes_out_clipped_to_the_device_and_nothing_else(
    gaps: list[tuple[int, int]], cuts: list[int], size: int
) -> None:
    """However a lawful answer is cut into messages, what comes out is what lies inside the device."""
    ranges, at = [], 0
    for gap, length in gaps:
        ranges.append((at + gap, length))
        at += gap + length
    edges = sorted({0, len(ranges), *(cut for cut in cuts if cut < len(ranges))})
    state = checks(size=max(size, 60 * 512))
    inside = state.size_bytes
    out = feed(state, *(message(*ranges[a:b], cap=at) for a, b in pairwise(edges)))
    assert out == [(o, min(o + n, inside) - o) for o, n in ranges if o < inside]
    assert state.dropped == sum(1 for o, _ in ranges if o >= inside)
