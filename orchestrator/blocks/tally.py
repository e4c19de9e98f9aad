"""What a copy has done so far, counted without locks: one tally per thread, added up when somebody asks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec


class Tally(msgspec.Struct):
    """Bytes are bytes of the volume unless said otherwise; seconds are thread seconds."""

    done: int = 0
    """Planned bytes that are settled: read, or found stored by an earlier try."""
    read: int = 0
    changed: int = 0
    """Bytes of the chunks that differ from the base (or from nothing, when there is none)."""
    held: int = 0
    """Bytes of chunks that aren't zero, less those of the base's chunks that they stand for, when there is one."""
    stored: int = 0
    """Sealed bytes put into packs."""
    written: int = 0
    """Bytes written to a target."""
    fetched: int = 0
    """Sealed bytes got from the store."""
    chunks_read: int = 0
    chunks_zero: int = 0
    chunks_reused: int = 0
    """Chunks that the store had already: same as the base, equal to another, or from an earlier try."""
    chunks_stored: int = 0
    seconds: dict[str, float] = msgspec.field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add_seconds(name, time.perf_counter() - started)

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Add seconds to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def add(self, other: Tally) -> None:
        """Add another tally's figures to this one's."""
        for name in self.__struct_fields__:
            if name != "seconds":
                setattr(self, name, getattr(self, name) + getattr(other, name))
        for stage, seconds in list(other.seconds.items()):
            self.add_seconds(stage, seconds)


class Tallies:
    """The tallies of one piece of work."""

    def __init__(self) -> None:
        self._all: list[Tally] = []
        self.total_bytes = 0
        """Planned bytes in all; 0 until the plan is open."""

    def new(self) -> Tally:
        """Return a tally for one thread."""
        self._all.append(tally := Tally())
        return tally

    def restart(self) -> None:
        """Begin anew: what was done is done again. What was read and how long it took stays counted."""
        total = self.sum()
        self._all = [Tally(read=total.read, seconds=total.seconds)]

    def sum(self) -> Tally:
        """Return everything so far."""
        total = Tally()
        for tally in list(self._all):
            total.add(tally)
        return total
