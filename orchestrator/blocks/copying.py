"""What one reader thread does with a unit of work: read, look, and store what the store doesn't have.

For each chunk: zero? -> id -> same as the base at this index? -> stored already in this point? -> compress -> seal
into the open pack. A chunk that became zero is a result like any other: it overrides what the base had there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice

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
from orchestrator.repository.pack import Entry, Packed
from orchestrator.repository.packwriter import PackWriter

Result = Entry | Place | None
"""Where a chunk is, or will be once another thread has stored it; None: zero."""
Chunk = tuple[int, memoryview, Entry | None]
"""A chunk's index, its bytes, and what the base has there."""
Results = tuple[int, list[tuple[int, Result]]]
"""The index after a unit's last chunk, and what its chunks came to."""

BATCH_BYTES = 1 << 20
"""Bytes of the volume that one reader hashes, compresses and seals together: locks are taken once for all of them."""


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
        unit, skip_same = work.unit, self._shop.skip_same
        results: list[tuple[int, Result]] = []
        together = max(BATCH_BYTES // self._shop.chunk_size, 1)
        chunks = zip(unit.indexes(), self._read_unit(unit), work.known, strict=True)
        while batch := list(islice(chunks, together)):
            for (index, _, before), result in zip(batch, self._settle(batch), strict=True):
                if result is None or result is not before or not skip_same:
                    results.append((index, result))
        return unit.runs[-1][1], results

    def _read_unit(self, unit: Unit) -> list[memoryview]:
        """Read all runs of a unit, one behind the other; return its chunks."""
        size, tally = self._shop.chunk_size, self._tally
        chunks: list[memoryview] = []
        for first, stop in unit.runs:
            self._shop.throttle.take((stop - first) * size)
            started = time.perf_counter()
            room = self._buffer[len(chunks) * size :]
            data = self._shop.source.read_into(room, first * size, (stop - first) * size)
            tally.add_seconds("read", time.perf_counter() - started)
            tally.read += len(data)
            chunks += [data[at : at + size] for at in range(0, len(data), size)]
        tally.chunks_read += len(chunks)
        return chunks

    def _settle(self, batch: Sequence[Chunk]) -> list[Result]:
        """Say where each chunk of a batch is; store what isn't anywhere yet."""
        tally, chunk_id = self._tally, self._shop.keys.chunk_id
        started = time.perf_counter()
        ids = [None if self._is_zero(data) else chunk_id(data) for _, data, _ in batch]
        tally.add_seconds("hash", time.perf_counter() - started)
        results: list[Result] = [None] * len(batch)
        fresh: list[tuple[int, bytes]] = []
        for position, (found, (_, data, before)) in enumerate(zip(ids, batch, strict=True)):
            tally.done += len(data)
            if found is None:
                tally.chunks_zero += 1
                if before is not None:
                    tally.changed += len(data)
                continue
            tally.held += len(data)
            if before is not None and before.id == found:
                tally.chunks_reused += 1
                results[position] = before
                continue
            tally.changed += len(data)
            fresh.append((position, found))
        equal = self._shop.equal
        if equal is not None and fresh:
            places = equal.claim_all([found for _, found in fresh])
            for (position, _), place in zip(fresh, places, strict=True):
                if place is not None:
                    tally.chunks_reused += 1
                    results[position] = place.entry or place
            fresh = [one for one, place in zip(fresh, places, strict=True) if place is None]
        if fresh:
            stored = self._store([(batch[position], found) for position, found in fresh])
            for (position, _), entry in zip(fresh, stored, strict=True):
                results[position] = entry
        return results

    def _store(self, fresh: Sequence[tuple[Chunk, bytes]]) -> list[Entry]:
        tally = self._tally
        started = time.perf_counter()
        packed = []
        for (index, data, _), found in fresh:
            codec, smaller = compress(data)
            packed.append(Packed(index, found, smaller, codec))
        between = time.perf_counter()
        entries = self._shop.packs.add_all(packed)
        tally.add_seconds("compress", between - started)
        tally.add_seconds("seal", time.perf_counter() - between)
        if self._shop.equal is not None:
            self._shop.equal.settle_all(entries)
        tally.chunks_stored += len(entries)
        tally.stored += sum(entry.length for entry in entries)
        return entries

    def _is_zero(self, data: memoryview) -> bool:
        """Look at three bytes first: nearly all that isn't zero shows there, and costs nothing."""
        size = len(data)
        if data[0] or data[-1] or data[size // 2]:
            return False
        return bytes(data) == (self._zeros if size == len(self._zeros) else self._zeros[:size])
