"""A queue of keys that need attention: each at most once, none twice at the same time, failures ever slower.

Time comes from the loop's timers, so that virtual time drives it; nothing polls.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)


class Closed(Exception):
    """The queue takes and gives no more work."""


class _Timer(NamedTuple):
    when: float
    handle: asyncio.TimerHandle


class WorkQueue(Generic[K]):
    """De-duplicating, delaying, rate limiting. Use it on one loop."""

    def __init__(
        self,
        *,
        base_s: float = 0.5,
        max_s: float = 300.0,
        rate_per_s: float = 10.0,
        burst: int = 100,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Set the first and longest back-off of one key, and the bucket that all failures share.

        `jitter` gives numbers in [0, 1); a delay d becomes d * (0.75 + jitter/2).
        """
        self._base_s, self._max_s = base_s, max_s
        self._rate, self._burst = rate_per_s, float(burst)
        self._jitter = jitter
        self._ready: deque[K] = deque()
        self._dirty: set[K] = set()
        self._processing: set[K] = set()
        self._timers: dict[K, _Timer] = {}
        self._failures: dict[K, int] = {}
        self._tokens, self._filled_at = float(burst), 0.0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._closed = False

    def __len__(self) -> int:
        """Return how many keys are ready."""
        return len(self._ready)

    @property
    def delayed(self) -> int:
        """Return how many keys wait for their time."""
        return len(self._timers)

    def failures(self, key: K) -> int:
        """Return how often `key` was rate limited since it was last forgotten."""
        return self._failures.get(key, 0)

    def add(self, key: K) -> None:
        """Make `key` ready now; once, however often it is added; again after `done` if it is being worked on."""
        if self._closed or key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._processing:
            self._push(key)

    def add_after(self, key: K, delay_s: float) -> None:
        """Make `key` ready after `delay_s`; of several delays the earliest counts."""
        if self._closed:
            return
        if delay_s <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        when = loop.time() + delay_s
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when <= when:
                return
            timer.handle.cancel()
        self._timers[key] = _Timer(when, loop.call_at(when, self._due, key))

    def add_rate_limited(self, key: K) -> float:
        """Make `key` ready after its back-off, which doubles each time until `forget`; return the delay in s."""
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        delay = min(self._max_s, self._base_s * 2.0 ** min(count, 60)) * (0.75 + self._jitter() / 2)
        delay = min(self._max_s, max(delay, self._bucket()))
        self.add_after(key, delay)
        return delay

    def forget(self, key: K) -> None:
        """Let the back-off of `key` begin anew."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """Return the next key, which is ours until `done`; raises Closed."""
        while not self._ready:
            if self._closed:
                raise Closed
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
                elif not waiter.cancelled():
                    self._wake()  # we were woken for a key and die before taking it: wake another
                raise
        if self._closed:
            raise Closed
        key = self._ready.popleft()
        self._dirty.discard(key)
        self._processing.add(key)
        return key

    def done(self, key: K) -> None:
        """Say that the work on `key` is over; it is ready again if it was added meanwhile."""
        self._processing.discard(key)
        if key in self._dirty and not self._closed:
            self._push(key)

    def close(self) -> None:
        """Give no more work: every `get` raises Closed, timers are dropped."""
        self._closed = True
        for timer in self._timers.values():
            timer.handle.cancel()
        self._timers.clear()
        self._ready.clear()
        while self._waiters:
            self._wake()

    def _due(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def _push(self, key: K) -> None:
        self._ready.append(key)
        self._wake()

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _bucket(self) -> float:
        """Take one token and return how long to wait for it."""
        now = asyncio.get_running_loop().time()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        self._tokens -= 1.0
        return max(0.0, -self._tokens / self._rate)
