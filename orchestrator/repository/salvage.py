"""What an interrupted try of the same intent has already stored, so that a rerun copies only the tail.

Pack names hold the intent, so its own packs are one listing away; their footers say which chunk of which index is
where. 48 bytes per chunk, in flat arrays.
"""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_left

from orchestrator.repository.errors import Damaged, ObjectMissing, UnsupportedFormat
from orchestrator.repository.layout import ObjectRef, intent_folder
from orchestrator.repository.pack import Entry, FooterEntry, read_footer
from orchestrator.repository.parallel import in_parallel
from orchestrator.repository.vault import Vault

READERS = 8


class Salvage:
    """Chunk index -> entry, for what is there already. Compact; made once, then only read."""

    __slots__ = ("_ids", "_indexes", "_packs", "_places")

    def __init__(self) -> None:
        self._packs: list[ObjectRef] = []
        self._indexes = array("Q")
        self._places = array("Q")
        self._ids = bytearray()

    def add(self, pack: ObjectRef, entries: list[FooterEntry]) -> None:
        """Add what one pack holds."""
        number = len(self._packs)
        self._packs.append(pack)
        for entry in entries:
            self._indexes.append(entry.chunk)
            self._places.append(number << 48 | entry.slot << 24 | entry.length | entry.codec << 22)
            self._ids += entry.id

    def sort(self) -> None:
        """Make `get` fast: order by index."""
        order = sorted(range(len(self._indexes)), key=self._indexes.__getitem__)
        ids = bytearray()
        for at in order:
            ids += self._ids[at * 32 : at * 32 + 32]
        self._indexes = array("Q", (self._indexes[at] for at in order))
        self._places = array("Q", (self._places[at] for at in order))
        self._ids = ids

    def get(self, index: int) -> Entry | None:
        """Return what is stored for a chunk index; whether it is still the right content is for its id to say."""
        at = bisect_left(self._indexes, index)
        if at == len(self._indexes) or self._indexes[at] != index:
            return None
        place = self._places[at]
        low = place & 0xFFFFFF
        return Entry(
            bytes(self._ids[at * 32 : at * 32 + 32]),
            self._packs[place >> 48],
            place >> 24 & 0xFFFFFF,
            low & 0x3FFFFF,
            low >> 22,
        )

    def __len__(self) -> int:
        return len(self._indexes)


async def salvage(vault: Vault, intent_id: str) -> Salvage:
    """List the intent's packs and read their footers; a pack that can't be read is left aside, never an error."""
    found = Salvage()
    prefix = f"{vault.names.packs}{intent_folder(intent_id)}/"
    packs = [info async for info in vault.store.list(prefix)]
    limit = asyncio.Semaphore(READERS)

    async def read(key: str, size: int) -> None:
        try:
            ref = ObjectRef.named(intent_id, key.rpartition("/")[2])
            async with limit:
                entries = await read_footer(vault, ref, size)
        except (Damaged, ObjectMissing, UnsupportedFormat, ValueError):
            return
        found.add(ref, entries)

    await in_parallel([read(info.key, info.size) for info in packs])
    await asyncio.to_thread(found.sort)
    return found
