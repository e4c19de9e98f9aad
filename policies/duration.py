"""Durations as people write them in a policy: `15m`, `24h`, `7d`, `1h30m`."""

from __future__ import annotations

import re
from datetime import timedelta

_UNITS = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1}
_WHOLE = re.compile(r"(?:[0-9]+[smhdw])+")
_PART = re.compile(r"([0-9]+)([smhdw])")
LONGEST_S = 100 * 366 * 86400
"""A century: far above any use, far below where datetime arithmetic overflows."""


class BadDuration(ValueError):
    """The text is not a duration."""


def parse_duration(text: str) -> timedelta:
    """Return the duration that `text` names; parts add up.

    Units are s, m, h, d (24 h) and w (7 d); no fractions, no signs. Raises BadDuration otherwise, or above 100 years.
    """
    if not _WHOLE.fullmatch(text):
        raise BadDuration(f"{text!r} is not a duration; write whole numbers with s, m, h, d or w, such as 15m or 1h30m")
    seconds = sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if seconds > LONGEST_S:
        raise BadDuration(f"{text!r} is longer than 100 years")
    return timedelta(seconds=seconds)


def format_duration(duration: timedelta) -> str:
    """Return the shortest text that `parse_duration` reads back as the same whole seconds.

    Parts below a second are dropped; a negative duration reads `0s`.
    """
    rest = max(0, int(duration.total_seconds()))
    parts = []
    for unit, size in _UNITS.items():
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
