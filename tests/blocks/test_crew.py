"""Threads of a crew stand and fall together, in bounded time."""

from __future__ import annotations

import asyncio
import threading

import pytest

from orchestrator.blocks.crew import Channel, Crew, Sequence
from orchestrator.blocks.errors import NoThread
from orchestrator.errors import Terminal
from tests.waiting import LONG

pytestmark = pytest.mark.quick


class Broken(Terminal):
    """What a test's thread dies of."""


async def test_one_failing_thread_stops_all_and_its_error_is_the_one_that_surfaces() -> None:
    # given threads that wait for room, for items, for their turn and for the store
    crew = Crew("the test")
    full: Channel[int] = Channel(crew, 1)
    empty: Channel[int] = Channel(crew, 1)
    turn: Sequence[int] = Sequence(crew, 1)
    never = asyncio.Event()
    go = threading.Barrier(5)

    def fill() -> None:
        go.wait()
        while True:
            full.put(1)

    def drain() -> None:
        go.wait()
        empty.get()

    def take() -> None:
        go.wait()
        turn.take()

    def call() -> None:
        go.wait()
        crew.call(never.wait())

    def die() -> None:
        go.wait()
        while not all(queue._waiters for queue in (full._room, empty._filled, turn._changed)) or len(crew._wakers) < 4:  # type: ignore[attr-defined]
            crew.pause(0.001)  # until everybody waits
        raise Broken("the disk is gone")

    for work in (fill, drain, take, call, die):
        crew.add(work.__name__, work)
    # when one dies
    # then the crew ends with its error
    with pytest.raises(Broken, match="the disk is gone"):
        await asyncio.wait_for(crew.run(), 10)
    assert not any(thread.name in {"fill", "drain", "take", "call", "die"} for thread in threading.enumerate())


async def test_cancelling_the_owner_stops_the_threads_first() -> None:
    crew = Crew("the test")
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    def work() -> None:
        loop.call_soon_threadsafe(started.set)
        crew.pause(3600)

    crew.add("sleeper", work)
    task = asyncio.create_task(crew.run())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)
    assert not any(thread.name == "sleeper" for thread in threading.enumerate())


async def test_cancelling_again_leaves_no_thread_behind() -> None:
    """Without this a descriptor could be closed, and its number given to another file, under a write."""
    crew = Crew("the test")
    started, written = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def write() -> None:
        loop.call_soon_threadsafe(started.set)
        assert written.wait(LONG)  # a write that the disk takes its time for

    crew.add("writer", write)
    task = asyncio.create_task(crew.run())
    await started.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.01)
    assert not task.done()
    written.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(thread.name == "writer" for thread in threading.enumerate())


@pytest.mark.parametrize("last", [0, 2])
async def test_a_thread_that_cant_be_started_stops_the_others(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    # given a machine that lets a process have few threads
    crew = Crew("the test")
    start, begun = threading.Thread.start, list[str]()

    def limited(thread: threading.Thread) -> None:
        if len(begun) == last:
            raise RuntimeError("can't start new thread")
        begun.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    for number in range(4):
        crew.add(f"limited-{number}", lambda: crew.pause(3600))
    # when a crew needs more, then it says so, and those that were started have ended
    with pytest.raises(NoThread, match=f"the test could start only {last} of 4 threads"):
        await asyncio.wait_for(crew.run(), LONG)
    assert not any(thread.name.startswith("limited") for thread in threading.enumerate())


async def test_results_come_back_in_order_within_the_window() -> None:
    crew = Crew("the test")
    todo: Channel[int] = Channel(crew, 4)
    done: Sequence[int] = Sequence(crew, 8)
    seen: list[int] = []

    def feed() -> None:
        for number in range(500):
            done.admit(number)
            todo.put(number)
        todo.close()
        done.end(500)

    def work() -> None:
        while (number := todo.get()) is not None:
            done.put(number, number * 10)

    def collect() -> None:
        while (item := done.take()) is not None:
            seen.append(item)

    for job in (feed, work, work, work, collect):
        crew.add(job.__name__, job)
    await asyncio.wait_for(crew.run(), 10)
    assert seen == [number * 10 for number in range(500)]
