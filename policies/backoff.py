"""How long to wait before trying again: exponential, bounded, with full jitter.

Full jitter spreads the retries of many objects that failed together (a storage system that restarts), which equal or
half jitter does not.
"""

from __future__ import annotations

from collections.abc import Callable


def ceiling(attempt: int, base_s: float, cap_s: float) -> float:
    """Return the longest wait before retry number `attempt` (0 is the first retry), in seconds."""
    if base_s <= 0 or cap_s <= 0:
        return 0.0
    # Without the bound on the exponent, a counter that never resets overflows a float after a thousand failures.
    return float(min(cap_s, base_s * 2 ** min(max(attempt, 0), 62)))


def delay(attempt: int, base_s: float, cap_s: float, random: Callable[[], float]) -> float:
    """Return seconds to wait before retry number `attempt`: uniform in [0, ceiling].

    `random` returns a float in [0, 1): pass a seeded one in tests.
    """
    return ceiling(attempt, base_s, cap_s) * random()
