"""Read instants and durations as people type them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import typer

from policies.duration import BadDuration, parse_duration

ADVICE = "write 2026-03-01T14:30:00Z, 2026-03-01T14:30+01:00, or how long ago, such as 2h or 1d12h"
AHEAD = timedelta(minutes=1)
"""How far the future may begin late: another machine's clock wrote the time that was copied here."""


class Reading(NamedTuple):
    """An instant in UTC, and whether its zone had to be assumed."""

    instant: datetime
    assumed_utc: bool = False


def read_instant(text: str, now: datetime, option: str) -> Reading:
    """Return the instant that `text` names: ISO 8601 (no zone: UTC), or a duration before `now`.

    Raises typer.BadParameter, naming `option`, for anything else and for the future.
    """
    wanted = text.strip()
    try:
        back = parse_duration(wanted.removesuffix("ago").strip())
    except BadDuration:
        found = _iso(wanted, option)
    else:
        found = Reading((now - back).replace(microsecond=0))
    if found.instant > now + AHEAD:
        late = f"{text!r} is in the future (it is now {now:%Y-%m-%dT%H:%M:%SZ})"
        raise typer.BadParameter(f"{late}; leave it out for the newest point", param_hint=option)
    return found


def check_duration(text: str, option: str) -> None:
    """Refuse what is not a duration, as wrong usage."""
    try:
        parse_duration(text)
    except BadDuration as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def _iso(text: str, option: str) -> Reading:
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is None:
            return Reading(found.replace(tzinfo=UTC), assumed_utc=True)
        return Reading(found.astimezone(UTC))
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(f"{text!r} is not a time; {ADVICE}", param_hint=option) from error
