"""Bandwidth limits that hold.

One bucket is shared by all readers (or writers) of a mover. It must never sleep past a request to stop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

BURST_S = 0.25
"""Seconds of unused allowance that may be saved up: enough to ride over one slow read, little enough that a limit
holds within a few percent over any 10 s."""


class Throttle:
    """A token bucket over bytes; thread safe. Without a rate it allows everything."""

    def __init__(
        self,
        bytes_per_s: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        """Limit to `bytes_per_s`. `wait(seconds)` sleeps; give an Event's `wait` so that a stop ends the sleep."""
        if bytes_per_s is not None and bytes_per_s <= 0:
            raise ValueError(f"a bandwidth limit of {bytes_per_s} bytes/s would never finish")
        self._rate = bytes_per_s
        self._clock = clock
        self._wait = wait or time.sleep
        self._lock = threading.Lock()
        self._free_at = clock()

    def take(self, size: int) -> float:
        """Wait until `size` more bytes may pass; return the seconds waited for."""
        if self._rate is None or size <= 0:
            return 0.0
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - BURST_S)
            start = self._free_at
            self._free_at += size / self._rate
        pause = start - now
        if pause <= 0:
            return 0.0
        self._wait(pause)
        return pause
