"""Write a recovery point to a target, chunk by chunk, and read it back.

Every chunk is checked before it is written: it opens only at its place in its pack, its id is the one that the
authenticated map has at its index, its length is what the volume has there. Holes stay holes where the target is
known to be zero and are forced to zero elsewhere.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

from orchestrator.blocks.crew import Channel, Crew
from orchestrator.blocks.stretch import GROUP_CHUNKS, Stretch
from orchestrator.blocks.tally import Tallies, Tally
from orchestrator.blocks.target import Target
from orchestrator.blocks.throttle import Throttle
from orchestrator.repository.buffers import big_buffer, keep_freed_memory
from orchestrator.repository.chunkmap import MapReader
from orchestrator.repository.crypto import Bytes
from orchestrator.repository.errors import Damaged
from orchestrator.repository.layout import PACK_TARGET, ObjectRef
from orchestrator.repository.manifest import Manifest
from orchestrator.repository.pack import Entry
from orchestrator.repository.packreader import PackReader, Sealed
from orchestrator.repository.vault import Vault

GROUP_BYTES = PACK_TARGET
"""Bytes that are fetched together: a pack whose chunks are all wanted comes in one request."""
FETCHERS = 3
"""Groups that are under way or being written at once: enough to hide a store's delay, and the bound of memory."""
BATCH_BYTES, DIRECT_BATCH_BYTES, BATCH_CHUNKS = 1 << 20, 2 << 20, 64
"""Of the volume: what one thread takes and opens at once. Chunks in a row are one write; past the page cache each write
waits for the disk, so that fewer and larger ones pay."""
DIRECT_WRITERS = 2
"""Threads that only write, past the page cache: a core is never idle because the disk is busy, and the disk is never
idle because a core is. Where the page cache takes what is written, nobody waits, and who opened a chunk writes it."""
STRETCH_CHUNKS = 64 * 1024
"""Chunks looked at together when deciding what to fetch together: 4 GiB at 64 KiB, in some 10 MiB of memory."""
ZERO_STEP = 1 << 30
"""Bytes forced to zero between two looks at whether to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOptions:
    """How hard to work."""

    writers: int = 4
    """Threads that open and write chunks; past the page cache up to `DIRECT_WRITERS` more do the writing."""
    bandwidth_limit: int | None = None
    """Bytes per second written to the target."""
    iops_limit: int | None = None
    """Writes of at most 256 KiB per second."""


Group = dict[Entry, list[int]]
"""Chunks to fetch together, and the indexes where each belongs (equal chunks are stored once)."""


class Countdown:
    """Calls `then` when all that it counts is done. Thread safe."""

    def __init__(self, count: int, then: Callable[[], None]) -> None:
        self._left, self._then, self._lock = count, then, threading.Lock()

    def done(self, count: int = 1) -> bool:
        """Count something as done; say whether that was all."""
        with self._lock:
            self._left -= count
            last = self._left == 0
        if last:
            self._then()
        return last


Batch = tuple[list[tuple[Sealed, list[int]]], Countdown]
"""Fetched chunks with where each belongs, and what counts those of their group."""
Scratch = list[memoryview]
"""Memory to open the chunks of a batch in, a piece for each."""


class Opened(NamedTuple):
    """Chunks that were checked, to be written."""

    pieces: list[tuple[int, Bytes]]
    """Offsets and what belongs there, in order; may lie in `scratch`."""
    scratch: Scratch
    last: bool
    """Whether these are the last of their group."""


async def write_point(
    vault: Vault,
    manifest: Manifest,
    target: Target,
    options: RestoreOptions | None = None,
    tallies: Tallies | None = None,
) -> Tally:
    """Write a whole point to the target and sync it; return what it cost.

    The target is at least as large as the volume was (`Target.open` refuses others); what is beyond is zeroed. Raises
    Damaged, ObjectMissing (a chunk is gone), TargetFull, store errors. A target that failed half-way holds garbage.
    """
    keep_freed_memory()
    tallies = tallies or Tallies()
    tallies.total_bytes = manifest.root.volume_size
    await _Writing(vault, manifest, target, options or RestoreOptions(), tallies).run()
    tally = tallies.new()
    with tally.stage("sync"):
        await asyncio.to_thread(target.finish)
    total = tallies.sum()
    if total.done != manifest.root.volume_size:
        raise RuntimeError(f"{total.done} of {manifest.root.volume_size} bytes restored, and no error told")
    return total


class _Writing:
    """One restore on its way."""

    def __init__(
        self, vault: Vault, manifest: Manifest, target: Target, options: RestoreOptions, tallies: Tallies
    ) -> None:
        root = manifest.root
        self._size, self._chunk = root.volume_size, root.chunk_size
        batch = DIRECT_BATCH_BYTES if target.direct else BATCH_BYTES
        self._together = min(max(batch // root.chunk_size, 1), BATCH_CHUNKS)
        limited = options.bandwidth_limit is not None or options.iops_limit is not None
        self._row = 1 if limited else self._together
        self._map = MapReader(vault, root)
        self._packs = PackReader(vault, root.chunk_size)
        self._target, self._tallies = target, tallies
        self._tally = tallies.new()
        self._crew = Crew("the restore")
        openers, writers = options.writers, min(options.writers, DIRECT_WRITERS) if target.direct else 0
        fetchers = min(FETCHERS, openers)
        self._todo: Channel[Group] = Channel(self._crew, 1)
        self._ready: Channel[Batch] = Channel(self._crew, openers)
        self._opened: Channel[Opened] = Channel(self._crew, writers)
        self._room: Channel[bool] = Channel(self._crew, fetchers)
        self._scratch: Channel[Scratch] = Channel(self._crew, openers + 2 * writers)
        for _ in range(fetchers):
            self._room.put(True)
        for _ in range(openers + 2 * writers):
            self._scratch.put(self._some_memory())
        self._fetching = Countdown(fetchers, self._ready.close)
        self._opening = Countdown(openers, self._opened.close)
        self._writers = writers
        self._throttle = Throttle(options.bandwidth_limit, options.iops_limit, wait=self._crew.pause)
        self._vault = vault
        self._crew.add("feeder", self._feed)
        for work, name, count in (
            (self._fetch_groups, "fetcher", fetchers),
            (self._open_batches, "opener", openers),
            (self._write_batches, "writer", writers),
        ):
            for number in range(count):
                self._crew.add(f"{name}-{number}", functools.partial(work, tallies.new()))

    async def run(self) -> None:
        await self._crew.run()

    def _feed(self) -> None:
        """Walk the map in order: hand out what to fetch, zero what lies between. Runs in its own thread."""
        self._crew.call(self._packs.prepare())
        batches = self._map.batches()
        cursor = 0
        stretch = Stretch()
        while (batch := self._crew.call(_next(batches))) is not None:
            for index, _ in batch:
                if index > cursor:
                    self._zero(cursor * self._chunk, index * self._chunk)
                cursor = index + 1
            stretch.add(batch)
            if len(stretch) >= STRETCH_CHUNKS:
                self._hand_out(stretch)
                stretch = Stretch()
        self._hand_out(stretch)
        self._todo.close()
        self._zero(min(cursor * self._chunk, self._size), self._target.size)

    def _hand_out(self, stretch: Stretch) -> None:
        """Cut a stretch into groups, pack by pack: what lies together is fetched together."""
        group: Group = {}
        weight = 0
        for wanted in stretch.gathered(self._packs.places):
            size = self._packs.weight([(chunk.slot, chunk.entry.length) for chunk in wanted])
            crowded = weight + size > GROUP_BYTES or len(group) + len(wanted) > GROUP_CHUNKS
            if group and crowded:  # no pack is cut in two: that would be one request more
                self._todo.put(group)
                group, weight = {}, 0
            for chunk in wanted:
                group.setdefault(chunk.entry, []).extend(chunk.indexes)
            weight += size
        if group:
            self._todo.put(group)

    def _zero(self, start: int, end: int) -> None:
        self._tally.done += max(min(end, self._size) - start, 0)
        if self._target.known_zero:
            return
        with self._tally.stage("zero"):
            for offset in range(start, end, ZERO_STEP):
                self._crew.check()
                self._target.zero(offset, min(ZERO_STEP, end - offset))

    def _fetch_groups(self, tally: Tally) -> None:
        """Fetch groups and hand their chunks to the writers until there are no more. Runs in threads of its own."""
        while (group := self._todo.get()) is not None:
            self._room.get()
            self._fetch_group(group, tally)
        self._fetching.done()

    def _fetch_group(self, group: Group, tally: Tally) -> None:
        with tally.stage("fetch"):
            found = self._crew.call(self._fetch(group))
        fetched = Countdown(len(found), lambda: self._room.put(True))
        found.reverse()
        while found:
            some = [found.pop() for _ in range(min(self._together, len(found)))]
            # Taken from the end: what is opened is let go of at once.
            self._ready.put(([(sealed, group[sealed.entry]) for sealed in reversed(some)], fetched))

    async def _fetch(self, group: Group) -> list[Sealed]:
        by_pack: dict[ObjectRef, list[Entry]] = {}
        for entry in group:
            by_pack.setdefault(entry.pack, []).append(entry)
        return await self._packs.fetch_all(by_pack)

    def _some_memory(self) -> Scratch:
        memory = memoryview(big_buffer(self._together * self._chunk))
        return [memory[at : at + self._chunk] for at in range(0, len(memory), self._chunk)]

    def _open_batches(self, tally: Tally) -> None:
        """Open what was fetched, batch by batch, until there are no more. Runs in threads of its own."""
        while (batch := self._ready.get()) is not None:
            chunks, fetched = batch
            del batch
            count = len(chunks)
            scratch = self._scratch.get()
            assert scratch is not None
            pieces = self._open(chunks, tally, scratch)
            opened = Opened(pieces, scratch, fetched.done(count))
            if self._writers:
                self._opened.put(opened)
            else:
                self._write_batch(opened, tally)
        self._opening.done()

    def _write_batches(self, tally: Tally) -> None:
        """Write what was opened, batch by batch, until there are no more. Runs in threads of its own."""
        while (opened := self._opened.get()) is not None:
            self._write_batch(opened, tally)

    def _write_batch(self, opened: Opened, tally: Tally) -> None:
        self._write(opened.pieces, tally)
        self._scratch.put(opened.scratch)
        if opened.last:
            with tally.stage("sync"):
                self._target.start_sync()

    def _open(self, chunks: list[tuple[Sealed, list[int]]], tally: Tally, scratch: Scratch) -> list[tuple[int, Bytes]]:
        """Open chunks, and return offsets and what belongs there, in order."""
        started = time.perf_counter()
        tally.chunks_read += len(chunks)
        pieces: list[tuple[int, Bytes]] = []
        for room in scratch[: len(chunks)]:
            sealed, indexes = chunks.pop()  # a chunk that is kept would keep all that came with it
            tally.fetched += sealed.entry.length
            plain = self._packs.open(sealed, room)
            if self._target.direct and not isinstance(plain, memoryview):
                room[: len(plain)] = plain  # a page of its own
                plain = room[: len(plain)]
            for index in indexes:
                offset = index * self._chunk
                if len(plain) != min(self._chunk, self._size - offset):
                    raise Damaged(sealed.cipher.name, f"slot {sealed.slot} has not the length of chunk {index}")
                pieces.append((offset, plain))
        pieces.sort(key=itemgetter(0))
        tally.add_seconds("open", time.perf_counter() - started)
        return pieces

    def _write(self, pieces: Sequence[tuple[int, Bytes]], tally: Tally) -> None:
        """Write pieces wherever they belong, those in a row at once."""
        first = 0
        while first < len(pieces):
            self._crew.check()
            offset = pieces[first][0]
            row: list[Bytes] = []
            length = 0
            for at, plain in pieces[first : first + self._row]:
                if at != offset + length:
                    break
                row.append(plain)
                length += len(plain)
            self._throttle.take(length)
            started = time.perf_counter()
            self._target.write_all(offset, row)
            tally.add_seconds("write", time.perf_counter() - started)
            tally.written += length
            tally.done += length
            first += len(row)


async def _next(batches: AsyncIterator[list[tuple[int, Entry]]]) -> list[tuple[int, Entry]] | None:
    return await anext(batches, None)
