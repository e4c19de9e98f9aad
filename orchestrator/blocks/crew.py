"""Threads that stand and fall together, and the bounded channels between them.

The engine's bulk work runs in threads; the event loop only serves the store. Whatever stops one thread stops all of
them in bounded time, and exactly one typed error surfaces. Nothing here may wait without watching for the stop.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError as FutureCancelled
from typing import Any, Generic, TypeVar

from orchestrator.blocks.errors import Interrupted, NoThread

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stopped(Exception):
    """This thread should end: another one failed, or the work was told to stop. Never leaves a crew."""


class Crew:
    """A group of threads around one event loop."""

    def __init__(self, what: str) -> None:
        """Make an empty crew that belongs to the running loop. `what` names the work in Interrupted."""
        self._what = what
        self._loop = asyncio.get_running_loop()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._wakers: list[Callable[[], None]] = []
        self._left = 0
        self._ended = asyncio.Event()

    @property
    def stopped(self) -> bool:
        """Return whether the crew was told to stop."""
        return self._over.is_set()

    def watch(self, waker: Callable[[], None]) -> None:
        """Call `waker` once when the crew stops."""
        with self._lock:
            self._wakers.append(waker)
        if self._over.is_set():
            waker()

    def pause(self, seconds: float) -> None:
        """Sleep, but not past a stop."""
        if self._over.wait(seconds):
            raise Stopped

    def check(self) -> None:
        """Raise Stopped when this thread should end."""
        if self._over.is_set():
            raise Stopped

    def fail(self, error: BaseException) -> None:
        """Stop everybody; the first error is the one that `run` raises."""
        with self._lock:
            if self._error is None:
                self._error = error
            wakers = list(self._wakers)
        self._over.set()
        for waker in wakers:
            waker()

    def add(self, name: str, work: Callable[[], None]) -> None:
        """Add one thread that runs `work` once `run` is called."""
        self._threads.append(threading.Thread(target=self._run_one, args=(work,), name=name, daemon=True))

    def call(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine on the crew's loop from one of its threads and wait for it, but not past a stop."""
        if self._over.is_set():
            work.close()
            raise Stopped
        future = asyncio.run_coroutine_threadsafe(work, self._loop)

        def cancel() -> None:
            future.cancel()

        self.watch(cancel)
        try:
            return future.result()
        except FutureCancelled:
            raise Stopped from None
        finally:
            with self._lock:
                self._wakers.remove(cancel)

    async def run(self) -> None:
        """Start all threads and wait until all have ended; raise the first error.

        Cancelling stops them; however often that happens, none of them outlives this call. Raises also NoThread.
        """
        assert self._threads, "a crew needs somebody"
        self._start()
        cancelled: asyncio.CancelledError | None = None
        while not self._ended.is_set():
            try:
                await self._ended.wait()
            except asyncio.CancelledError as error:
                cancelled = error
                self.fail(Interrupted(self._what))
        for thread in self._threads:
            thread.join()
        if cancelled is not None:
            raise cancelled
        if self._error is not None:
            raise self._error

    def _start(self) -> None:
        """Start the threads; one that can't be started is an error like another's, and those after it are let go of."""
        self._left = len(self._threads)
        for number, thread in enumerate(self._threads):
            try:
                thread.start()
            except RuntimeError:
                self.fail(NoThread(self._what, number, len(self._threads)))
                self._gone(len(self._threads) - number)
                del self._threads[number:]
                return

    def _run_one(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001  # any death of a thread must stop the others and be told
            self.fail(error)
        finally:
            self._gone(1)

    def _gone(self, count: int) -> None:
        with self._lock:
            self._left -= count
            last = self._left == 0
        if last:
            self._loop.call_soon_threadsafe(self._ended.set)


class Channel(Generic[Item]):
    """A bounded queue between a crew's threads. Closing it ends its readers once it is empty."""

    def __init__(self, crew: Crew, bound: int) -> None:
        self._crew = crew
        self._bound = bound
        self._items: deque[Item] = deque()
        self._closed = False
        lock = threading.Lock()
        self._room = threading.Condition(lock)
        self._filled = threading.Condition(lock)
        crew.watch(self._wake)

    def _wake(self) -> None:
        with self._room:
            self._room.notify_all()
            self._filled.notify_all()

    def put(self, item: Item) -> None:
        """Add an item; waits while the channel is full."""
        with self._room:
            while len(self._items) >= self._bound and not self._crew.stopped:
                self._room.wait()
            self._crew.check()
            self._items.append(item)
            self._filled.notify()

    def get(self) -> Item | None:
        """Take the oldest item; waits for one. None once the channel is closed and empty."""
        with self._room:
            while not self._items and not self._closed and not self._crew.stopped:
                self._filled.wait()
            self._crew.check()
            if not self._items:
                return None
            item = self._items.popleft()
            self._room.notify()
            return item

    def close(self) -> None:
        """Say that nothing more comes."""
        with self._room:
            self._closed = True
            self._filled.notify_all()


class Sequence(Generic[Item]):
    """Puts results that are finished in any order back into order, within a window that bounds memory."""

    def __init__(self, crew: Crew, window: int) -> None:
        self._crew = crew
        self._window = window
        self._ready: dict[int, Item] = {}
        self._next = 0
        self._end: int | None = None
        self._changed = threading.Condition()
        crew.watch(self._wake)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def admit(self, number: int) -> None:
        """Wait until work item `number` may start: at most `window` are under way or waiting to be taken."""
        with self._changed:
            while number >= self._next + self._window and not self._crew.stopped:
                self._changed.wait()
            self._crew.check()

    def put(self, number: int, item: Item) -> None:
        """Hand in the result of work item `number`."""
        with self._changed:
            self._ready[number] = item
            if number == self._next:
                self._changed.notify_all()

    def end(self, count: int) -> None:
        """Say how many items there are in all."""
        with self._changed:
            self._end = count
            self._changed.notify_all()

    def take(self) -> Item | None:
        """Take the next item in order; None after the last."""
        with self._changed:
            while self._next not in self._ready and self._next != self._end and not self._crew.stopped:
                self._changed.wait()
            self._crew.check()
            if self._next == self._end:
                return None
            item = self._ready.pop(self._next)
            self._next += 1
            self._changed.notify_all()
            return item
