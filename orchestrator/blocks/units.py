"""Cut a plan into units of work: a handful of chunks each, in ascending order.

A unit names only chunks of the plan. Chunks that lie together are read together; nothing in between is read along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec

UNIT_BYTES = 4 << 20
"""Volume bytes of one unit. Large enough that handing units about costs nothing, small enough that a few dozen
waiting ones fit into a mover's memory."""


class Unit(msgspec.Struct, frozen=True):
    """Some chunks of the plan: runs `(first, stop)` of chunk indexes, ascending."""

    number: int
    runs: tuple[tuple[int, int], ...]

    def indexes(self) -> Iterator[int]:
        """Yield every chunk index of the unit."""
        for first, stop in self.runs:
            yield from range(first, stop)

    @property
    def count(self) -> int:
        """Return how many chunks the unit has."""
        return sum(stop - first for first, stop in self.runs)


def cut(
    runs: Iterable[tuple[int, int]],
    chunk_size: int,
    *,
    unit_bytes: int = UNIT_BYTES,
    skip: Callable[[int], bool] | None = None,
) -> Iterator[Unit]:
    """Yield units over `runs`, leaving out the chunks that `skip` says are there already."""
    room = most = max(unit_bytes // chunk_size, 1)
    number = 0
    parts: list[tuple[int, int]] = []
    for first, stop in runs if skip is None else _without(runs, skip):
        while first < stop:
            part = min(stop - first, room)
            parts.append((first, first + part))
            first += part
            room -= part
            if room == 0:
                yield Unit(number, tuple(parts))
                number, parts, room = number + 1, [], most
    if parts:
        yield Unit(number, tuple(parts))


def _without(runs: Iterable[tuple[int, int]], skip: Callable[[int], bool]) -> Iterator[tuple[int, int]]:
    for first, stop in runs:
        start = first
        for index in range(first, stop):
            if skip(index):
                if start < index:
                    yield start, index
                start = index + 1
        if start < stop:
            yield start, stop
