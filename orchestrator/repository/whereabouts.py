"""Where the packs went that a reader misses: asked of a few large objects (`movedindex`), then one by one.

A pack that is gone costs a listing and a read to follow; a point of a much compacted repository misses many. What must
never happen here: memory that grows with the repository, or a copy that hides a newer record.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict

from orchestrator.repository.errors import Damaged, ObjectMissing, UnsupportedFormat
from orchestrator.repository.layout import ObjectRef
from orchestrator.repository.movedindex import Copy, open_index
from orchestrator.repository.relocation import Relocation, open_relocation
from orchestrator.repository.vault import Vault

INDEX_BYTES = 16 * 1024 * 1024
"""Of copies that are kept: the way to some 1.6 million chunks. What is beyond is looked up pack by pack."""
OPEN_MOVES = 32_768
"""Of decoded records that are kept, some 7 MiB: readers go pack by pack."""
LOOKUPS = 2
"""The so-manieth pack that is missing makes it worth to read the copies."""


class Whereabouts:
    """What one reader knows of moved packs. `known` may run in any thread, all else belongs to the loop."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._copies: dict[ObjectRef, Copy] = {}
        self._opened: OrderedDict[ObjectRef, Relocation] = OrderedDict()
        self._moves = self._misses = 0
        self._loaded = False
        self._loading = asyncio.Lock()
        self._guard = threading.Lock()

    def known(self, pack: ObjectRef) -> Relocation | None:
        """Return where a pack went as far as it was read; there may be a newer record."""
        with self._guard:
            found = self._opened.get(pack)
            if found is None and pack in self._copies:
                found = self._remember(self._copies[pack].open())
            return found

    async def find(self, pack: ObjectRef) -> Relocation | None:
        """Say where a pack went that is missing, None when it wasn't moved; Damaged."""
        self._misses += 1
        if self._misses >= LOOKUPS:
            await self.load()
        return self.known(pack) or await self.newest(pack)

    async def newest(self, pack: ObjectRef) -> Relocation | None:
        """Read the newest record by a listing; Damaged."""
        found = await open_relocation(self._vault, pack)
        if found is None:
            return None
        with self._guard:
            return self._remember(found)

    def _remember(self, found: Relocation) -> Relocation:
        old = self._opened.pop(found.pack, None)
        self._moves += len(found.moves) - (0 if old is None else len(old.moves))
        self._opened[found.pack] = found
        while self._moves > OPEN_MOVES and len(self._opened) > 1:
            self._moves -= len(self._opened.popitem(last=False)[1].moves)
        return found

    async def load(self) -> None:
        """Read the copies there are, once: a listing and some reads; who is going to read much does it first."""
        async with self._loading:
            if not self._loaded:
                await self._load()

    async def _load(self) -> None:
        size = 0
        async for info in self._vault.store.list(self._vault.names.moved):
            try:
                found = await open_index(self._vault, info.key)
            except (ObjectMissing, Damaged, UnsupportedFormat):
                continue  # the records themselves count
            for copy in found:
                if size + len(copy.raw) > INDEX_BYTES:
                    continue
                old = self._copies.get(copy.pack)
                if old is None or old.generation < copy.generation:
                    with self._guard:
                        self._copies[copy.pack] = copy
                    size += len(copy.raw)
        self._loaded = True
