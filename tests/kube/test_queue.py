"""The work queue, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.kube.queue import Closed, WorkQueue

pytestmark = [pytest.mark.quick, pytest.mark.looptime]


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_a_key_added_often_comes_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(5):
        queue.add("a")
    queue.add("b")

    assert [await queue.get(), await queue.get()] == ["a", "b"]
    assert len(queue) == 0


async def test_a_key_in_work_is_never_given_to_a_second_worker_but_comes_again_after_it() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    key = await queue.get()
    queue.add("a")
    queue.add("a")

    assert len(queue) == 0
    queue.done(key)

    assert await queue.get() == "a"
    queue.done("a")
    assert len(queue) == 0


async def test_of_several_delays_the_earliest_counts() -> None:
    queue: WorkQueue[str] = WorkQueue()
    start = now()
    queue.add_after("a", 60)
    queue.add_after("a", 10)
    queue.add_after("a", 30)

    assert await queue.get() == "a"
    assert now() - start == pytest.approx(10)
    assert queue.delayed == 0


async def test_a_failing_key_waits_twice_as_long_each_time_up_to_a_bound_and_anew_after_success() -> None:
    queue: WorkQueue[str] = WorkQueue(base_s=1, max_s=20, jitter=lambda: 0.5)

    delays = [queue.add_rate_limited("a") for _ in range(7)]

    assert delays == [1, 2, 4, 8, 16, 20, 20]
    assert queue.failures("a") == 7
    queue.forget("a")
    assert queue.add_rate_limited("a") == 1
    assert queue.failures("other") == 0


async def test_back_off_is_spread_by_jitter_within_a_quarter() -> None:
    queue: WorkQueue[int] = WorkQueue(base_s=8)

    delays = [queue.add_rate_limited(key) for key in range(60)]

    assert all(6 <= delay <= 10 for delay in delays)
    assert len(set(delays)) > 50


async def test_many_failing_keys_together_are_held_to_the_bucket() -> None:
    queue: WorkQueue[int] = WorkQueue(base_s=0.001, rate_per_s=10, burst=10)
    start = now()
    for key in range(60):
        queue.add_rate_limited(key)
    for _ in range(60):
        await queue.get()

    assert now() - start == pytest.approx(5, abs=0.1)


async def test_a_forgotten_failure_from_long_ago_fills_the_bucket_again() -> None:
    queue: WorkQueue[int] = WorkQueue(base_s=0.001, rate_per_s=10, burst=10)
    for key in range(20):
        queue.add_rate_limited(key)
    await asyncio.sleep(100)

    assert queue.add_rate_limited(99) < 0.01


async def test_waiting_costs_no_polling_and_each_worker_gets_its_own_key() -> None:
    queue: WorkQueue[str] = WorkQueue()
    workers = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(3600)
    for key in ("a", "b", "c"):
        queue.add(key)

    assert sorted(await asyncio.gather(*workers)) == ["a", "b", "c"]


async def test_a_worker_that_is_cancelled_loses_no_key() -> None:
    queue: WorkQueue[str] = WorkQueue()
    first, second = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")
    first.cancel()

    async with asyncio.timeout(1):
        assert await second == "a"


async def test_a_closed_queue_lets_every_worker_go_and_takes_nothing() -> None:
    queue: WorkQueue[str] = WorkQueue()
    worker = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add_after("late", 5)
    queue.close()
    queue.add("a")

    with pytest.raises(Closed):
        await worker
    with pytest.raises(Closed):
        await queue.get()
    assert (len(queue), queue.delayed) == (0, 0)
