"""What verify found damaged: planners read those chunks again, writers never refer to them."""

from __future__ import annotations

from orchestrator.repository.manifest import PointRef
from orchestrator.repository.pack import Entry
from orchestrator.repository.vault import Vault


class DamageIndex:
    """Every damaged slot and page that is on record, in memory (empty in a sound repository)."""

    def touches(self, entry: Entry) -> bool:
        """Say whether a chunk is damaged."""
        raise AssertionError

    def __bool__(self) -> bool:
        raise AssertionError


async def load_damage(vault: Vault) -> DamageIndex:
    """Read all damage records; one listing when there are none."""
    raise AssertionError


class BaseCheck:
    """Whether a point can be a base, and what must be read again if it is."""

    usable: bool
    why: str
    heal: tuple[tuple[int, int], ...]
    """Runs [first, stop) of damaged chunk indexes: add them to what is read."""


async def check_base(vault: Vault, ref: PointRef) -> BaseCheck:
    """Open manifest and root page and look at the damage records; never raises for damage."""
    raise AssertionError
