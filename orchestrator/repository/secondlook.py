"""Read once more what doesn't open: a store that answers once with half of an object has said nothing about it.

This is the one place of that rule, for verification and for what it stands on. What doesn't open at the second reading
is damaged. What must never happen here: a third reading, damage that is read away, or a second reading nobody is told
of.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from orchestrator.repository.errors import Damaged, PointCancelled, UnsupportedFormat

REMEMBERED = 1000
"""Objects that are told by name."""
T = TypeVar("T")


class SecondLook:
    """Reads twice where that is needed; knows which objects opened only then."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """Return the objects that opened at the second reading only, sorted, at most REMEMBERED of them."""
        return tuple(sorted(self._names))

    async def at(self, read: Callable[[], Awaitable[T]]) -> T:
        """Return what `read` reads and opens. Where it tells of damage (Damaged, UnsupportedFormat) it is called again.

        Raises what `read` raises: at once what is no damage, and damage of the second reading.
        """
        try:
            return await read()
        except (Damaged, UnsupportedFormat) as error:
            name = error.key
        try:
            found = await read()
        except PointCancelled:  # it opened, and says so
            self.opened(name)
            raise
        self.opened(name)
        return found

    def opened(self, name: str) -> None:
        """Note that an object opened at its second reading."""
        if len(self._names) < REMEMBERED:
            self._names.add(name)
