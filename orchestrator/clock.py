"""Time as an interface, so that a day of schedule can pass in a second of test.

Nothing else in Tidemark asks the operating system what time it is.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where instants come from."""

    def now(self) -> datetime:
        """Return the wall-clock instant, aware, in UTC."""

    def monotonic(self) -> float:
        """Return seconds that never step back."""


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        """Return the wall-clock instant, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds that never step back."""
        return time.monotonic()
