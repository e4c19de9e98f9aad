"""Times in builtin objects, as Go's decoder reads them: strictly, and with its own words for what is wrong.

A MicroTime (a Lease's renewTime, an Event's eventTime) has exactly six digits after the second; a client that sends
another number of them is refused by a real server, so it must be here.
"""

from __future__ import annotations

import datetime as dt
import re

_SECONDS = (("2006", r"\d{4}"), ("-", "-"), ("01", r"\d{2}"), ("-", "-"), ("02", r"\d{2}"), ("T", "T"),
            ("15", r"\d{2}"), (":", ":"), ("04", r"\d{2}"), (":", ":"), ("05", r"\d{2}"))  # fmt: skip
_FRACTION = (".000000", r"\.\d{6}(?!\d)")
_ZONE = ("Z07:00", r"Z|[+-]\d{2}:\d{2}")


def broken_time(text: str, *, micro: bool) -> str:
    """Return what Go's decoder says about a time; "" when it can be read."""
    layout = "2006-01-02T15:04:05.000000Z07:00" if micro else "2006-01-02T15:04:05Z07:00"
    start = f'parsing time "{text}" as "{layout}"'
    rest = text
    for element, pattern in (*_SECONDS, _FRACTION if micro else ("", r"([.,]\d+)?"), _ZONE):
        found = re.match(pattern, rest)
        if found is None:
            return f'{start}: cannot parse "{rest}" as "{element}"'
        rest = rest[found.end() :]
    if rest:
        return f'{start}: extra text: "{rest}"'
    return _out_of_range(text)


def _out_of_range(text: str) -> str:
    try:
        dt.datetime.fromisoformat(text[:19])
    except ValueError as error:
        field = (
            "day"
            if "day" in str(error)
            else next((f for f in ("month", "hour", "minute") if f in str(error)), "second")
        )
        return f'parsing time "{text}": {field} out of range'
    return ""
