"""Which recovery points of one volume are kept, and why: every point listed, none dropped without a reason.

Buckets are calendar hours, days, ISO weeks, months and years in UTC; a point is kept if any rule keeps it. Two
things no rule can do: drop the last good point, or drop everything because it was written so that it keeps nothing.
Pure: nothing is sorted in place, no clock is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

FAILED_KEPT = 3
"""Records of failed points kept for people to read, once a newer good point is there."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How many points each rule keeps. 0 and None: the rule is absent."""

    keep_last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    keep_within: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """One recovery point of the volume."""

    id: str
    sequence: int
    """Its place in the lineage. Order comes from here; time only says which bucket."""
    time: datetime
    good: bool = True
    """Completed, and not known to be damaged."""
    on_demand: bool = False
    """Made by a person: outside the counts, kept until `expires`."""
    expires: datetime | None = None
    """Of an on-demand point; None: never."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one point."""

    point: Point
    kept: bool
    reasons: tuple[str, ...]
    """The rules that keep it, or why none does. Never empty."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Every point of the volume, newest first."""

    decisions: tuple[Decision, ...]

    @property
    def keep(self) -> tuple[Decision, ...]:
        """Return the points that stay, newest first."""
        return tuple(d for d in self.decisions if d.kept)

    @property
    def drop(self) -> tuple[Decision, ...]:
        """Return the points that go, newest first."""
        return tuple(d for d in self.decisions if not d.kept)


Bucket = tuple[int, ...]

_CALENDAR: tuple[tuple[str, str, Callable[[datetime], Bucket]], ...] = (
    ("hourly", "hour", lambda t: (t.year, t.month, t.day, t.hour)),
    ("daily", "day", lambda t: (t.year, t.month, t.day)),
    ("weekly", "week", lambda t: (t.isocalendar().year, t.isocalendar().week)),
    ("monthly", "month", lambda t: (t.year, t.month)),
    ("yearly", "year", lambda t: (t.year,)),
)


def keeps_nothing(rules: Rules | None) -> bool:
    """Return whether the rules, taken literally, would keep no point. None (no retention) keeps everything."""
    if rules is None:
        return False
    counts = (rules.keep_last, rules.hourly, rules.daily, rules.weekly, rules.monthly, rules.yearly)
    return not any(count > 0 for count in counts) and not rules.keep_within


def plan(points: Sequence[Point], rules: Rules | None, now: datetime) -> Verdict:
    """Return keep or drop, with reasons, for every point of one volume.

    `rules` None keeps every scheduled point; so do rules that keep nothing (see `keeps_nothing`): a mistake in a policy
    must not cost data. On-demand points go by their own expiry. The last good point always stays.
    """
    newest_first = sorted(points, key=lambda p: (p.sequence, p.time, p.id), reverse=True)
    last_good = next((p for p in newest_first if p.good), None)
    by_rules = _kept_by_rules([p for p in newest_first if p.good and not p.on_demand], rules, now)
    failed = [p.id for p in newest_first if not p.good][:FAILED_KEPT]
    decisions = []
    for point in newest_first:
        if not point.good:
            kept, reason = _judge_failed(point, last_good, failed)
            reasons = [reason]
        elif point.on_demand:
            kept, reason = _judge_on_demand(point, now)
            reasons = [reason]
        else:
            reasons = by_rules.get(point.id, [])
            kept = bool(reasons)
            reasons = reasons or [_not_kept(rules)]
        if point is last_good and not kept:
            kept, reasons = True, ["last good point", *reasons]
        decisions.append(Decision(point, kept, tuple(reasons)))
    return Verdict(tuple(decisions))


def _kept_by_rules(points: Sequence[Point], rules: Rules | None, now: datetime) -> dict[str, list[str]]:
    """Return the rules that keep each scheduled good point; `points` newest first."""
    kept: dict[str, list[str]] = {}
    if rules is None or keeps_nothing(rules):
        why = (
            "no retention: everything is kept" if rules is None else "retention that would keep nothing is not applied"
        )
        return {point.id: [why] for point in points}
    for number, point in enumerate(points[: max(rules.keep_last, 0)], start=1):
        kept.setdefault(point.id, []).append(f"last {number}/{rules.keep_last}")
    for field, noun, bucket_of in _CALENDAR:
        count: int = getattr(rules, field)
        seen: set[Bucket] = set()
        for point in points:
            bucket = bucket_of(point.time.astimezone(UTC))
            if len(seen) < count and bucket not in seen:
                seen.add(bucket)
                kept.setdefault(point.id, []).append(f"{field} {len(seen)}/{count}: newest of its {noun}")
    if rules.keep_within:
        for point in points:
            if point.time > now - rules.keep_within:
                kept.setdefault(point.id, []).append("within the time in which everything is kept")
    return kept


def _judge_on_demand(point: Point, now: datetime) -> tuple[bool, str]:
    if point.expires is None:
        return True, "on demand, never expires"
    stamp = point.expires.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if point.expires > now:
        return True, f"on demand, expires {stamp}"
    return False, f"on demand, expired {stamp}"


def _judge_failed(point: Point, last_good: Point | None, shown: Sequence[str]) -> tuple[bool, str]:
    if last_good is None or point.sequence > last_good.sequence:
        return True, "not a good point, and no newer one is good"
    if point.id in shown:
        return True, f"not a good point; the last {FAILED_KEPT} are shown"
    return False, "not a good point, and a newer one is good"


def _not_kept(rules: Rules | None) -> str:
    assert rules is not None
    named = [name for name, _, _ in _CALENDAR if getattr(rules, name) > 0]
    if rules.keep_last > 0:
        named.insert(0, "keepLast")
    if rules.keep_within:
        named.append("keepWithin")
    return f"not kept by {', '.join(named)}"
