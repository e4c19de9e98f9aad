"""Calls run side by side within a window, their results come in order, and none outlives the whole."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.repository.parallel import Window, in_order
from orchestrator.repository.partitions import Partitions

pytestmark = pytest.mark.quick

Calls = AsyncGenerator[tuple[int, Callable[[], Coroutine[Any, Any, int]]], None]


class _Work:
    """Calls that take a number of turns of the loop each, and what was under way at most."""

    def __init__(self, weights: list[int], turns: list[int]) -> None:
        self.weights, self.turns = weights, turns
        self.running: list[int] = []
        self.most_calls = self.most_weight = 0

    async def calls(self) -> Calls:
        for number, weight in enumerate(self.weights):
            yield weight, lambda number=number: self.one(number)  # type: ignore[misc]

    async def one(self, number: int) -> int:
        self.running.append(number)
        self.most_calls = max(self.most_calls, len(self.running))
        if len(self.running) > 1:
            self.most_weight = max(self.most_weight, sum(self.weights[one] for one in self.running))
        try:
            for _ in range(self.turns[number]):
                await asyncio.sleep(0)
        finally:
            self.running.remove(number)
        return number


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30), st.integers(1, 5), st.integers(1, 12))
async def test_results_come_in_order_and_no_more_runs_than_the_window_lets(
    work: list[tuple[int, int]], calls: int, weight: int
) -> None:
    found = _Work([w for w, _ in work], [t for _, t in work])
    got: list[int] = []
    await in_order(found.calls(), Window(calls, weight, results=4), got.append)
    assert got == list(range(len(work)))
    assert found.most_calls <= calls
    assert found.most_weight <= weight


async def test_light_calls_run_side_by_side() -> None:
    found = _Work([1] * 20, [5] * 20)
    await in_order(found.calls(), Window(4, 100), lambda _: None)
    assert found.most_calls == 4


async def test_the_earliest_error_is_raised_as_itself_and_nothing_goes_on() -> None:
    # given a slow call, one that fails at once, and one that would never end
    ended: list[str] = []

    async def slow() -> int:
        for _ in range(20):
            await asyncio.sleep(0)
        return 0

    async def fails() -> int:
        raise LookupError("gone")

    async def endless() -> int:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("endless")
        return 2

    async def calls() -> Calls:
        try:
            for call in (slow, fails, endless):
                yield 1, call
        finally:
            ended.append("calls")

    got: list[int] = []
    # when they run together
    with pytest.raises(LookupError):
        await in_order(calls(), Window(3, 3), got.append)
    # then what came before the error was taken, and what came after has ended
    assert got == [0]
    assert ended == ["calls", "endless"]


async def test_cancelling_ends_every_call() -> None:
    ended: list[int] = []

    async def endless() -> int:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(1)
        return 0

    async def calls() -> Calls:
        for _ in range(3):
            yield 1, endless

    whole = asyncio.create_task(in_order(calls(), Window(3, 3), lambda _: None))
    for _ in range(5):
        await asyncio.sleep(0)
    whole.cancel()
    with pytest.raises(asyncio.CancelledError):
        await whole
    assert ended == [1, 1, 1]


@pytest.mark.parametrize("limit", [64, 400, 10**6])
def test_a_long_file_of_records_is_cut_into_slices_that_keep_equal_ones_together(tmp_path: Path, limit: int) -> None:
    # given records that all fall into one file, many of them more than once
    rng = random.Random(4)
    table = Partitions(tmp_path, "uses", 8, 1)
    distinct = [bytes((rng.randrange(256), 5)) + rng.randbytes(6) for _ in range(3000)]
    for record in [*distinct, *distinct[:1000]]:
        table.add(record)
    # when the file is cut
    slices = [list(one) for one in table.slices(5, limit)]
    # then every record is in one slice, and slices are short unless nothing tells their records apart
    assert sorted(record for one in slices for record in one) == sorted([*distinct, *distinct[:1000]])
    sets = [set(one) for one in slices]
    assert sum(map(len, sets)) == len(set(distinct))
    assert all(len(one) * 8 <= limit for one in slices)
    assert len(list(tmp_path.iterdir())) <= 65, "what was read of the slices is deleted"
