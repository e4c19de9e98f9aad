"""How much data, in time, would be lost now, and whether that is more than was promised.

A volume's exposure runs from its newest good point; a volume never protected is exposed since it was made. An age is
never negative: a point whose clock runs ahead protects up to now, not beyond.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class Volume:
    """What is known of one volume. Instants are aware."""

    name: str
    created: datetime
    last_point: datetime | None = None
    """When its newest good point was cut."""


@dataclass(frozen=True, slots=True)
class Exposure:
    """What one volume would lose now."""

    volume: Volume
    since: datetime
    """All written after this instant would be lost."""
    age: timedelta
    breached: bool

    @property
    def protected(self) -> bool:
        """Return whether the volume has any good point."""
        return self.volume.last_point is not None


def age(since: datetime, now: datetime) -> timedelta:
    """Return how long ago `since` was, never below zero."""
    return max(now - since, timedelta(0))


def exposure(volume: Volume, target: timedelta | None, now: datetime) -> Exposure:
    """Return what `volume` would lose now; without a target nothing is breached.

    Exactly at the target is still kept: the promise is "at most".
    """
    since = volume.last_point or volume.created
    lag = age(since, now)
    return Exposure(volume=volume, since=since, age=lag, breached=target is not None and lag > target)


def worst(exposures: Iterable[Exposure], count: int) -> tuple[Exposure, ...]:
    """Return the `count` worst exposed, worst first; never-protected before protected of equal age, then by name."""
    return tuple(sorted(exposures, key=lambda e: (-e.age, e.protected, e.volume.name))[: max(count, 0)])


def time_to_breach(exposed: Exposure, target: timedelta) -> timedelta:
    """Return how long until the target is broken; zero if it is."""
    return max(target - exposed.age, timedelta(0))
