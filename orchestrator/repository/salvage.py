"""What an interrupted try of the same intent has already stored, so that a rerun copies only the tail.

Pack names hold the intent, so its own packs are one listing away; their footers say which chunk of which index is
where. Footers of a large volume don't fit into a mover's memory: they lie in a temporary file, 48 bytes a chunk, and
memory holds 60 bytes a pack.
"""

from __future__ import annotations

import asyncio
import struct
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from typing import IO

from orchestrator.repository.errors import Damaged, ObjectMissing, UnsupportedFormat
from orchestrator.repository.layout import ObjectRef, intent_folder
from orchestrator.repository.pack import CODEC_SHIFT, LENGTH_MASK, Entry, FooterEntry, read_footer
from orchestrator.repository.parallel import in_parallel
from orchestrator.repository.vault import Vault

READERS = 8
IN_MEMORY = 4 * 1024 * 1024
"""Footers of so much (90,000 chunks) are kept in memory, more in a file."""
RECENT = 64
_LINE = struct.Struct("<QII32s")


class Salvage:
    """Chunk index -> entry, for what is there already: `add` and `sort` first, then only read, by any thread."""

    def __init__(self, in_memory: int = IN_MEMORY) -> None:
        self._in_memory = in_memory
        self._packs = bytearray()
        self._firsts, self._lasts, self._starts = array("Q"), array("Q"), array("Q")
        self._counts = array("L")
        self._reach = array("Q")
        """The highest index in this pack or any before it: where a search from the right may end."""
        self._file: IO[bytes] | None = None
        self._end = 0
        self._recent: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._count = 0

    def add(self, pack: ObjectRef, entries: list[FooterEntry]) -> None:
        """Add what one pack holds."""
        if not entries:
            return
        if self._file is None:
            # Imported here: a mover that has nothing to salvage must start fast.
            import tempfile

            self._file = tempfile.SpooledTemporaryFile(max_size=self._in_memory)  # noqa: SIM115  # lives as long as this
        lines = sorted(entries, key=lambda entry: entry.chunk)
        self._packs += pack.to_bytes()
        self._firsts.append(lines[0].chunk)
        self._lasts.append(lines[-1].chunk)
        self._starts.append(self._end)
        self._counts.append(len(lines))
        self._end += self._file.write(
            b"".join(_LINE.pack(e.chunk, e.slot, e.length | e.codec << CODEC_SHIFT, e.id) for e in lines)
        )
        self._count += len(lines)

    def sort(self) -> None:
        """Make `get` fast: order packs by their first index."""
        order = sorted(range(len(self._firsts)), key=self._firsts.__getitem__)
        self._packs = bytearray(b"".join(self._packs[at * 32 : at * 32 + 32] for at in order))
        self._firsts, self._lasts, self._starts = (
            array("Q", (table[at] for at in order)) for table in (self._firsts, self._lasts, self._starts)
        )
        self._counts = array("L", (self._counts[at] for at in order))
        self._reach, highest = array("Q"), 0
        for last in self._lasts:
            highest = max(highest, last)
            self._reach.append(highest)

    def get(self, index: int) -> Entry | None:
        """Return what is stored for a chunk index; whether it is still the right content is for its id to say."""
        at = bisect_right(self._firsts, index) - 1
        while at >= 0 and self._reach[at] >= index:
            if self._lasts[at] >= index:
                found = self._look(at, index)
                if found is not None:
                    return found
            at -= 1
        return None

    def _look(self, at: int, index: int) -> Entry | None:
        lines = self._lines(at)
        low, high = 0, self._counts[at]
        while low < high:
            middle = (low + high) // 2
            chunk, slot, packed, chunk_id = _LINE.unpack_from(lines, middle * _LINE.size)
            if chunk == index:
                pack = ObjectRef.parse(bytes(self._packs[at * 32 : at * 32 + 32]))
                return Entry(chunk_id, pack, slot, packed & LENGTH_MASK, packed >> CODEC_SHIFT)
            low, high = (middle + 1, high) if chunk < index else (low, middle)
        return None

    def _lines(self, at: int) -> bytes:
        with self._lock:
            lines = self._recent.get(at)
            if lines is None:
                assert self._file is not None
                self._file.seek(self._starts[at])
                lines = self._recent[at] = self._file.read(self._counts[at] * _LINE.size)
                if len(self._recent) > RECENT:
                    self._recent.popitem(last=False)
            else:
                self._recent.move_to_end(at)
            return lines

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def __del__(self) -> None:
        # Without this a file that nobody closed would be told of as a leak.
        self.close()

    def __len__(self) -> int:
        return self._count


async def salvage(vault: Vault, intent_id: str) -> Salvage:
    """List the intent's packs and read their footers; a pack that can't be read is left aside, never an error."""
    found = Salvage()
    prefix = f"{vault.names.packs}{intent_folder(intent_id)}/"
    batch: list[tuple[str, int]] = []
    async for info in vault.store.list(prefix):
        batch.append((info.key, info.size))
        if len(batch) == READERS * 32:
            await _read(vault, intent_id, found, batch)
            batch = []
    await _read(vault, intent_id, found, batch)
    await asyncio.to_thread(found.sort)
    return found


async def _read(vault: Vault, intent_id: str, found: Salvage, packs: list[tuple[str, int]]) -> None:
    limit = asyncio.Semaphore(READERS)

    async def read(key: str, size: int) -> None:
        try:
            ref = ObjectRef.named(intent_id, key.rpartition("/")[2])
            async with limit:
                entries = await read_footer(vault, ref, size)
        except (Damaged, ObjectMissing, UnsupportedFormat, ValueError):
            return
        found.add(ref, entries)

    await in_parallel([read(key, size) for key, size in packs])
