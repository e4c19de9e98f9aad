"""Read chunk maps: from a root to the entry of any chunk, pages fetched in joined ranges."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from orchestrator.repository.damage import DamageIndex
from orchestrator.repository.manifest import MapRoot
from orchestrator.repository.pack import Entry
from orchestrator.repository.vault import Vault


class MapReader:
    """One point's chunk map. Keeps inner pages (bounded) and the last leaves."""

    def __init__(self, vault: Vault, root: MapRoot, *, avoid: DamageIndex | None = None) -> None:
        """Read the map at `root`; entries that `avoid` knows as damaged are left out."""
        self.vault, self.root, self.avoid = vault, root, avoid

    async def check_root(self) -> None:
        """Open the root page; ObjectMissing, Damaged."""
        raise AssertionError

    async def lookup(self, indexes: Iterable[int]) -> dict[int, Entry]:
        """Return the entries of these chunks; holes are absent. Meant for some hundreds to thousands at once."""
        raise AssertionError

    def batches(self, first: int = 0, stop: int | None = None) -> AsyncIterator[list[tuple[int, Entry]]]:
        """Yield (index, entry) of every chunk in [first, stop) that isn't a hole, ascending, a leaf or so at once."""
        raise AssertionError
