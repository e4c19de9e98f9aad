"""Which slots of a schedule are due. Whatever wakes the caller, this decides.

A slot is a nominal instant, in UTC, that a schedule names: its identity. Jitter moves the firing and never the slot,
so that a Backup's name is the same whoever makes it and whenever. Local times that a clock change makes unreal or
double are settled here:

- an hour field of plain `*` means every real hour, also the repeated one;
- any other hour field names wall-clock times: each fires once. One that does not exist that day fires at the first
  minute that does; one that comes twice fires the first time.
"""

from __future__ import annotations

import hashlib
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cronsim import CronSim, CronSimError

MISSED_LIMIT = 200
"""Missed slots are counted up to here: more says nothing new, and counting them would hold up the caller."""
SHORTEST = timedelta(seconds=5)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WINDOWS = (timedelta(hours=1), timedelta(days=1), timedelta(days=32), timedelta(days=400))


class BadSchedule(ValueError):
    """The schedule can't be followed; the message says why, for people."""


@dataclass(frozen=True, slots=True)
class Cron:
    """A checked crontab(5) schedule. Build it with `cron_plan`."""

    expression: str
    zone: zoneinfo.ZoneInfo
    offset: timedelta = timedelta(0)
    """How long after a slot it fires: this policy's share of the jitter."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Every multiple of `every` since the epoch. Build it with `interval_plan`."""

    every: timedelta
    offset: timedelta = timedelta(0)


Plan = Cron | Interval


@dataclass(frozen=True, slots=True)
class Due:
    """What passed since the last look."""

    newest: datetime | None
    """The slot to make now, nominal, in UTC; None if nothing is due."""
    missed: int = 0
    """Slots before it that nobody made (at most MISSED_LIMIT)."""


def jitter_offset(uid: str, jitter: timedelta) -> timedelta:
    """Return the share of `jitter` that the policy of that uid waits: whole seconds in [0, jitter), constant."""
    span = int(jitter.total_seconds())
    if span <= 0:
        return timedelta(0)
    seed = int.from_bytes(hashlib.sha256(b"jitter\0" + uid.encode()).digest()[:8], "big")
    return timedelta(seconds=seed % span)


def interval_plan(every: timedelta, *, jitter: timedelta = timedelta(0), uid: str = "") -> Interval:
    """Return the plan of a fixed interval, or raise BadSchedule if it is under SHORTEST."""
    if every < SHORTEST:
        raise BadSchedule("every: an interval under 5s can't be kept; write 5s or more")
    return Interval(every, jitter_offset(uid, jitter))


def cron_plan(
    expression: str, time_zone: str = "UTC", *, jitter: timedelta = timedelta(0), uid: str = "", now: datetime
) -> Cron:
    """Return the plan of a crontab line, or raise BadSchedule: bad fields, an unknown zone, a line that never fires."""
    fields = expression.split()
    if len(fields) != 5:
        raise BadSchedule(
            f"cron: {expression!r} has {len(fields)} fields; write five (minute hour day-of-month month day-of-week), "
            "such as '30 2 * * *'"
        )
    plan = Cron(_normal(fields), _zone(time_zone), jitter_offset(uid, jitter))
    try:
        first = next(_cron_slots(plan, now), None)
    except CronSimError as error:
        if _never(fields):
            raise _never_fires(expression) from error
        raise BadSchedule(f"cron: {expression!r} can't be read: {str(error).lower()}") from error
    if first is None:
        raise _never_fires(expression)
    return plan


def due_slots(plan: Plan, last: datetime | None, now: datetime, created: datetime) -> Due:
    """Return the newest slot whose firing time has come, and how many before it were missed.

    Looks at slots after `last` (the newest handled; None: after `created`). A clock that stepped back to before
    `last` finds nothing. All instants aware; the slot is in UTC.
    """
    start = last if last is not None else created
    end = now - plan.offset
    if end <= start:
        return Due(None)
    if isinstance(plan, Interval):
        first, final = _index(plan, start) + 1, _index(plan, end)
        return Due(_EPOCH + final * plan.every, min(final - first, MISSED_LIMIT)) if final >= first else Due(None)
    return _due_cron(plan, start, end)


def next_slot(plan: Plan, after: datetime) -> datetime | None:
    """Return the first slot after `after`, nominal, in UTC. It fires at slot + plan.offset."""
    if isinstance(plan, Interval):
        return _EPOCH + (_index(plan, after) + 1) * plan.every
    return next(_cron_slots(plan, after), None)


def next_firing(plan: Plan, after: datetime) -> datetime | None:
    """Return the first instant after `after` at which a slot fires, jitter included."""
    slot = next_slot(plan, after - plan.offset)
    return None if slot is None else slot + plan.offset


def slot_name_part(slot: datetime) -> str:
    """Return a slot's part of a name: its nominal UTC time, as `20261122t0230z`; with seconds only if there are any."""
    nominal = slot.astimezone(UTC)
    return nominal.strftime("%Y%m%dt%H%M%Sz" if nominal.second else "%Y%m%dt%H%Mz")


def _index(plan: Interval, instant: datetime) -> int:
    return (instant - _EPOCH) // plan.every


def _due_cron(plan: Cron, start: datetime, end: datetime) -> Due:
    newest, count = None, 0
    for slot in _cron_slots(plan, start):
        if slot > end:
            break
        newest, count = slot, count + 1
        if count > MISSED_LIMIT:
            # Far behind: leap to the end through the smallest window with a slot, instead of walking there.
            newest = _newest_cron(plan, newest, end)
            break
    return Due(newest, max(count - 1, 0))


def _newest_cron(plan: Cron, known: datetime, end: datetime) -> datetime:
    for window in _WINDOWS:
        newest = None
        for slot in _cron_slots(plan, max(known, end - window)):
            if slot > end:
                break
            newest = slot
        if newest is not None:
            return newest
    return known


def _cron_slots(plan: Cron, after: datetime) -> Iterator[datetime]:
    """Yield slots after `after`, ascending, in UTC."""
    previous = after
    for local in CronSim(plan.expression, after.astimezone(plan.zone)):
        slot = local.astimezone(UTC)
        # In the repeated hour the library, which counts wall-clock time, starts before where we are.
        if slot > previous:
            previous = slot
            yield slot


def _normal(fields: list[str]) -> str:
    """Rewrite `*/n` of minutes and hours as ranges: the library takes a leading star as "each real hour"."""
    minute, hour, *rest = fields
    if hour != "*":
        minute = _range(minute, "0-59")
        hour = _range(hour, "0-23")
    return " ".join((minute, hour, *rest))


def _range(field: str, whole: str) -> str:
    return ",".join(whole + term[1:] if term.startswith("*") else term for term in field.split(","))


def _zone(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise BadSchedule(f"timeZone: {name!r} is not an IANA time zone, such as UTC or Europe/Oslo") from error


def _never(fields: list[str]) -> bool:
    """Tell a line that no month can satisfy from one that can't be read: with another day it reads."""
    try:
        CronSim(" ".join((*fields[:2], "1", *fields[3:])), _EPOCH)
        CronSim(" ".join((*fields[:3], "1", fields[4])), _EPOCH)
    except CronSimError:
        return False
    return True


def _never_fires(expression: str) -> BadSchedule:
    return BadSchedule(f"cron: {expression!r} never fires: no month has such a day")
