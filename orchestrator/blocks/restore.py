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
BATCH_BYTES, DIRECT_BATCH_BYTES, BATCH_CHUNKS = 1 << 20, 4 << 20, 64
"""Of the volume: what one writer takes, opens and writes at once. Chunks in a row are one write; past the page cache
each write waits for the disk, so that fewer and larger ones pay."""
STRETCH_CHUNKS = 64 * 1024
"""Chunks looked at together when deciding what to fetch together: 4 GiB at 64 KiB, in some 10 MiB of memory."""
ZERO_STEP = 1 << 30
"""Bytes forced to zero between two looks at whether to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOptions:
    """How hard to work."""

    writers: int = 4
    bandwidth_limit: int | None = None
    """Bytes per second written to the target."""
    iops_limit: int | None = None
    """Writes of at most 256 KiB per second."""


Group = dict[Entry, list[int]]
"""Chunks to fetch together, and the indexes where each belongs (equal chunks are stored once)."""


class Fetched:
    """A group in memory, which makes room for another when all of it is written."""

    def __init__(self, chunks: int, free: Callable[[], None]) -> None:
        self._left, self._free, self._lock = chunks, free, threading.Lock()

    def wrote(self, chunks: int) -> bool:
        """Count chunks as written; say whether that was all. Nobody holds on to their memory any more."""
        with self._lock:
            self._left -= chunks
            last = self._left == 0
        if last:
            self._free()
        return last


Batch = tuple[list[tuple[Sealed, list[int]]], Fetched]
"""Fetched chunks with where each belongs, and what they were fetched with."""


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
        self._todo: Channel[Group] = Channel(self._crew, 1)
        self._ready: Channel[Batch] = Channel(self._crew, options.writers)
        self._fetching = min(FETCHERS, options.writers)
        self._room: Channel[bool] = Channel(self._crew, self._fetching)
        for _ in range(self._fetching):
            self._room.put(True)
        self._fetching_lock = threading.Lock()
        self._throttle = Throttle(options.bandwidth_limit, options.iops_limit, wait=self._crew.pause)
        self._vault = vault
        self._crew.add("feeder", self._feed)
        for number in range(self._fetching):
            self._crew.add(f"fetcher-{number}", functools.partial(self._fetch_groups, tallies.new()))
        for number in range(options.writers):
            self._crew.add(f"writer-{number}", _Writer(self, tallies.new()).run)

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
        with self._fetching_lock:
            self._fetching -= 1
            last = self._fetching == 0
        if last:
            self._ready.close()

    def _fetch_group(self, group: Group, tally: Tally) -> None:
        with tally.stage("fetch"):
            found = self._crew.call(self._fetch(group))
        fetched = Fetched(len(found), lambda: self._room.put(True))
        found.reverse()
        while found:
            some = [found.pop() for _ in range(min(self._together, len(found)))]
            # Taken from the end: what is written is let go of at once.
            self._ready.put(([(sealed, group[sealed.entry]) for sealed in reversed(some)], fetched))

    def write_some(self, tally: Tally, scratch: Sequence[memoryview]) -> bool:
        """Write the next fetched chunks; False when there are no more."""
        batch = self._ready.get()
        if batch is None:
            return False
        chunks, fetched = batch
        del batch
        count = len(chunks)
        self._write(self._open(chunks, tally, scratch), tally)
        if fetched.wrote(count):
            with tally.stage("sync"):
                self._target.start_sync()
        return True

    async def _fetch(self, group: Group) -> list[Sealed]:
        by_pack: dict[ObjectRef, list[Entry]] = {}
        for entry in group:
            by_pack.setdefault(entry.pack, []).append(entry)
        return await self._packs.fetch_all(by_pack)

    def scratch(self) -> list[memoryview]:
        """Return memory for one writer to open the chunks of a batch in."""
        memory = memoryview(big_buffer(self._together * self._chunk))
        return [memory[at : at + self._chunk] for at in range(0, len(memory), self._chunk)]

    def _open(
        self, chunks: list[tuple[Sealed, list[int]]], tally: Tally, scratch: Sequence[memoryview]
    ) -> list[tuple[int, Bytes]]:
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


class _Writer:
    """One writer thread."""

    def __init__(self, work: _Writing, tally: Tally) -> None:
        self._work, self._tally = work, tally

    def run(self) -> None:
        """Open and write chunks until there are no more."""
        scratch = self._work.scratch()
        while self._work.write_some(self._tally, scratch):
            pass


async def _next(batches: AsyncIterator[list[tuple[int, Entry]]]) -> list[tuple[int, Entry]] | None:
    return await anext(batches, None)
