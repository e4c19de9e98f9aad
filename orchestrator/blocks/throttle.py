"""Limits of bandwidth and of operations that hold.

One throttle is shared by all readers (or writers) of a mover. It must never sleep past a request to stop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

BURST_S = 0.25
"""Seconds of unused allowance that may be saved up: enough to ride over one slow read, little enough that a limit
holds within a few percent over any 10 s."""
OPERATION_BYTES = 256 * 1024
"""One operation moves at most so much: a longer one counts as several, as storage systems and clouds count them."""


def operations_of(size: int) -> int:
    """Return as how many operations one read or write of `size` bytes in a row counts."""
    return -(-size // OPERATION_BYTES)


class Throttle:
    """Token buckets over bytes and over operations; thread safe. Without a rate it allows everything."""

    def __init__(
        self,
        bytes_per_s: float | None,
        operations_per_s: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        """Limit to either rate, or both. `wait(seconds)` sleeps; give an Event's `wait` so that a stop ends it."""
        for rate, unit in ((bytes_per_s, "bytes/s"), (operations_per_s, "operations/s")):
            if rate is not None and rate <= 0:
                raise ValueError(f"a limit of {rate} {unit} would never finish")
        self._rates = bytes_per_s, operations_per_s
        self._clock = clock
        self._wait = wait or time.sleep
        self._lock = threading.Lock()
        self._free_at = [clock(), clock()]

    def take(self, size: int) -> float:
        """Wait until one read or write of `size` more bytes in a row may pass; return the seconds waited for."""
        if self._rates == (None, None) or size <= 0:
            return 0.0
        with self._lock:
            now = start = self._clock()
            for at, (rate, amount) in enumerate(zip(self._rates, (size, operations_of(size)), strict=True)):
                if rate is not None:
                    free_at = max(self._free_at[at], now - BURST_S)
                    start = max(start, free_at)
                    self._free_at[at] = free_at + amount / rate
        if start <= now:
            return 0.0
        self._wait(start - now)
        return start - now


def pace_of(bytes_per_s: float | None, operations_per_s: float | None = None) -> Callable[[int], float] | None:
    """Return what tells a reader on the event loop how many seconds to wait before so many bytes; None: no limit."""
    if bytes_per_s is None and operations_per_s is None:
        return None
    return Throttle(bytes_per_s, operations_per_s, wait=lambda _seconds: None).take
