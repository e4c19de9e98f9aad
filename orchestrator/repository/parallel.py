"""Several requests at once, with errors that keep their class."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


async def in_parallel(calls: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Await coroutines together; the first error is raised as itself, not as a group, once all have ended."""
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if result is not None:
            raise result


class Window(NamedTuple):
    """How much may be under way at once."""

    calls: int
    weight: int
    """The sum of the weights of what is under way; one call alone may weigh more."""
    results: int = 256
    """Results that wait for an earlier one."""


async def in_order(
    calls: AsyncGenerator[tuple[int, Callable[[], Coroutine[Any, Any, T]]], None],
    window: Window,
    take: Callable[[T], None],
) -> None:
    """Run (weight, call) as many at once as the window lets, and hand each result to `take` in the order of the calls.

    The earliest error is raised as itself. Whatever ends it, no call outlives it.
    """
    running: dict[asyncio.Task[T], int] = {}
    waiting: deque[asyncio.Task[T]] = deque()

    async def settle() -> None:
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in [task for task in running if task.done()]:
            del running[task]
        while waiting and waiting[0].done():
            take(waiting.popleft().result())

    try:
        async with aclosing(calls) as source:
            async for weight, call in source:
                while running and (
                    len(running) >= window.calls
                    or sum(running.values()) + weight > window.weight
                    or len(waiting) >= window.results
                ):
                    await settle()
                task = asyncio.create_task(call())
                running[task] = weight
                waiting.append(task)
        while running:
            await settle()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
