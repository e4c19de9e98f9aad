"""What one reader thread does with a unit of work: read, look, and store what the store doesn't have.

For each chunk: zero? -> id -> same as the base at this index? -> stored already in this point? -> compress -> seal
into the open pack. A chunk that became zero is a result like any other: it overrides what the base had there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from orchestrator.blocks.crew import Channel
from orchestrator.blocks.crew import Sequence as InOrder
from orchestrator.blocks.equal import EqualChunks, Place
from orchestrator.blocks.source import ALIGN, Source, aligned_buffer
from orchestrator.blocks.tally import Tally
from orchestrator.blocks.throttle import Throttle
from orchestrator.blocks.units import Unit
from orchestrator.repository.compression import compress
from orchestrator.repository.keys import NamespaceKeys
from orchestrator.repository.pack import Entry
from orchestrator.repository.packwriter import PackWriter

Result = Entry | Place | None
"""Where a chunk is, or will be once another thread has stored it; None: zero."""
Results = tuple[int, list[tuple[int, Result]]]
"""The index after a unit's last chunk, and what its chunks came to."""


class Work(msgspec.Struct, frozen=True):
    """A unit, and what the base has at its chunks (None: a hole, or no base)."""

    unit: Unit
    known: Sequence[Entry | None]


class Shop(msgspec.Struct, frozen=True):
    """What all readers of one shard share."""

    source: Source
    chunk_size: int
    keys: NamespaceKeys
    throttle: Throttle
    equal: EqualChunks | None
    packs: PackWriter
    todo: Channel[Work]
    done: InOrder[Results]
    unit_bytes: int
    skip_same: bool
    """The map inherits the base's: a chunk that is what it was there needs no entry."""


class Reader:
    """One reader thread."""

    def __init__(self, shop: Shop, tally: Tally) -> None:
        self._shop = shop
        self._tally = tally
        self._buffer = aligned_buffer(max(shop.unit_bytes, shop.chunk_size) + ALIGN)
        self._zeros = bytes(shop.chunk_size)

    def run(self) -> None:
        """Work until the channel is closed."""
        while (work := self._shop.todo.get()) is not None:
            self._shop.done.put(work.unit.number, self.copy(work))

    def copy(self, work: Work) -> Results:
        """Read one unit and say where each of its chunks is."""
        size, skip_same = self._shop.chunk_size, self._shop.skip_same
        results: list[tuple[int, Result]] = []
        known = iter(work.known)
        for first, stop in work.unit.runs:
            data = self._read(first * size, (stop - first) * size)
            for index in range(first, stop):
                at, before = (index - first) * size, next(known)
                result = self._chunk(index, data[at : at + size], before)
                if result is None or result is not before or not skip_same:
                    results.append((index, result))
        return work.unit.runs[-1][1], results

    def _read(self, offset: int, length: int) -> memoryview:
        tally = self._tally
        self._shop.throttle.take(length)
        started = time.perf_counter()
        data = self._shop.source.read_into(self._buffer, offset, length)
        tally.add_seconds("read", time.perf_counter() - started)
        tally.read += len(data)
        return data

    def _chunk(self, index: int, data: memoryview, known: Entry | None) -> Result:
        tally = self._tally
        tally.chunks_read += 1
        tally.done += len(data)
        if self._is_zero(data):
            tally.chunks_zero += 1
            if known is not None:
                tally.changed += len(data)
            return None
        started = time.perf_counter()
        chunk_id = self._shop.keys.chunk_id(data)
        tally.add_seconds("hash", time.perf_counter() - started)
        tally.held += len(data)
        if known is not None and known.id == chunk_id:
            tally.chunks_reused += 1
            return known
        tally.changed += len(data)
        equal = self._shop.equal
        place, mine = (None, True) if equal is None else equal.claim(chunk_id)
        if place is not None and not mine:
            tally.chunks_reused += 1
            return place.entry or place
        return self._store(index, chunk_id, data)

    def _store(self, index: int, chunk_id: bytes, data: memoryview) -> Entry:
        tally = self._tally
        started = time.perf_counter()
        codec, packed = compress(data)
        between = time.perf_counter()
        placed = self._shop.packs.add(index, chunk_id, packed, codec)
        tally.add_seconds("compress", between - started)
        tally.add_seconds("seal", time.perf_counter() - between)
        entry = Entry(chunk_id, placed.pack, placed.slot, placed.length, codec)
        if self._shop.equal is not None:
            self._shop.equal.settle(entry)
        tally.chunks_stored += 1
        tally.stored += placed.length
        return entry

    def _is_zero(self, data: memoryview) -> bool:
        """Look at three bytes first: nearly all that isn't zero shows there, and costs nothing."""
        size = len(data)
        if data[0] or data[-1] or data[size // 2]:
            return False
        return bytes(data) == (self._zeros if size == len(self._zeros) else self._zeros[:size])
