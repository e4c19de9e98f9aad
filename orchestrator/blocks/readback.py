"""Read a restored target again: every chunk against its id, every hole against zero, the whole into one digest.

What was written is not yet what is stored: caches, wrong offsets and lying devices show only here.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from orchestrator.blocks.crew import Channel, Crew, Sequence
from orchestrator.blocks.errors import ReadBackMismatch
from orchestrator.blocks.source import ALIGN, Source, aligned_buffer
from orchestrator.blocks.tally import Tallies, Tally
from orchestrator.blocks.throttle import Throttle
from orchestrator.blocks.units import UNIT_BYTES
from orchestrator.repository.chunkmap import MapReader
from orchestrator.repository.manifest import Manifest
from orchestrator.repository.pack import Entry
from orchestrator.repository.vault import Vault

_ZEROS = bytes(1 << 20)


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the target: chunks with their ids, or a hole (no ids)."""

    number: int
    offset: int
    length: int
    first: int = 0
    """Index of the first chunk."""
    ids: tuple[bytes, ...] = ()
    look: bool = True
    """False: a hole that needn't be read; the file has no blocks there, or the target began as zeros."""


async def read_back(
    vault: Vault,
    manifest: Manifest,
    path: str,
    *,
    known_zero: bool = False,
    readers: int = 4,
    sha256: bool = False,
    tallies: Tallies | None = None,
    bandwidth_limit: int | None = None,
    iops_limit: int | None = None,
) -> str:
    """Check the target at `path` against the point; return the volume's SHA-256 if asked for, else "".

    `known_zero`: the target began as zeros, so that its holes needn't be read. Raises ReadBackMismatch,
    DeviceReadFailed. Bytes beyond the volume's end are not looked at. The limits are bytes and operations a second.
    """
    tallies = tallies or Tallies()
    tallies.total_bytes = manifest.root.volume_size
    with Source.open(path) as source:
        source.forget_cache()
        check = _Checking(vault, manifest, source, known_zero, readers, sha256, tallies)
        check.throttle = Throttle(bandwidth_limit, iops_limit, wait=check.crew.pause)
        await check.crew.run()
        return check.digest.hexdigest() if sha256 else ""


class _Checking:
    def __init__(
        self,
        vault: Vault,
        manifest: Manifest,
        source: Source,
        known_zero: bool,
        readers: int,
        sha256: bool,
        tallies: Tallies,
    ) -> None:
        self._keys, self._root, self._source = vault.keys, manifest.root, source
        self._known_zero, self._wants_digest = known_zero, sha256
        self._map = MapReader(vault, manifest.root)
        self.crew = Crew("the read-back")
        self._todo: Channel[Piece] = Channel(self.crew, readers * 2)
        self._done: Sequence[tuple[Piece, bytes]] = Sequence(self.crew, readers * 4)
        self.digest = hashlib.sha256()
        self.throttle = Throttle(None)
        self.crew.add("feeder", self._feed)
        self.crew.add("digest", self._hash)
        for number in range(readers):
            self.crew.add(f"checker-{number}", functools.partial(self._check, tallies.new()))

    def _feed(self) -> None:
        count = 0
        for piece in self._pieces():
            self._done.admit(piece.number)
            self._todo.put(piece)
            count += 1
        self._todo.close()
        self._done.end(count)

    def _pieces(self) -> Iterator[Piece]:
        """Yield the whole volume in order. Runs in the feeder's thread."""
        size, most = self._root.chunk_size, max(UNIT_BYTES // self._root.chunk_size, 1)
        numbers, cursor = itertools.count(), 0
        batches = self._map.batches()
        while (batch := self.crew.call(_next(batches))) is not None:
            for run in _runs(batch, most):
                first = run[0][0]
                yield from self._hole(numbers, cursor * size, first * size)
                cursor = run[-1][0] + 1
                end = min(cursor * size, self._root.volume_size)
                ids = tuple(entry.id for _, entry in run)
                yield Piece(next(numbers), first * size, end - first * size, first, ids)
        yield from self._hole(numbers, min(cursor * size, self._root.volume_size), self._root.volume_size)

    def _hole(self, numbers: Iterator[int], start: int, end: int) -> Iterator[Piece]:
        """Yield a hole's parts: those to be read (in pieces), and those that needn't be."""
        cursor = start
        if not (self._known_zero and self._source.is_device):
            for offset, length in self._source.data_ranges(start, end):
                if offset > cursor:
                    yield Piece(next(numbers), cursor, offset - cursor, look=False)
                for at in range(offset, offset + length, UNIT_BYTES):
                    yield Piece(next(numbers), at, min(UNIT_BYTES, offset + length - at))
                cursor = offset + length
        if cursor < end:
            yield Piece(next(numbers), cursor, end - cursor, look=False)

    def _check(self, tally: Tally) -> None:
        buffer = aligned_buffer(UNIT_BYTES + self._root.chunk_size + ALIGN)
        while (piece := self._todo.get()) is not None:
            data = b""
            if piece.look:
                self.throttle.take(piece.length)
                started = time.perf_counter()
                seen = self._source.read_into(buffer, piece.offset, piece.length)
                tally.add_seconds("read", time.perf_counter() - started)
                tally.read += len(seen)
                self._compare(piece, seen, tally)
                data = bytes(seen) if self._wants_digest else b""
            tally.done += piece.length
            self._done.put(piece.number, (piece, data))

    def _compare(self, piece: Piece, seen: memoryview, tally: Tally) -> None:
        size = self._root.chunk_size
        with tally.stage("hash"):
            for position, chunk_id in enumerate(piece.ids):
                if self._keys.chunk_id(seen[position * size : (position + 1) * size]) != chunk_id:
                    raise ReadBackMismatch(self._source.path, piece.first + position)
        if not piece.ids and bytes(seen).count(0) != len(seen):
            raise ReadBackMismatch(self._source.path, piece.offset // size)

    def _hash(self) -> None:
        while (item := self._done.take()) is not None:
            piece, data = item
            if not self._wants_digest:
                continue
            if piece.look:
                self.digest.update(data)
                continue
            for offset in range(0, piece.length, len(_ZEROS)):
                self.crew.check()
                self.digest.update(memoryview(_ZEROS)[: min(len(_ZEROS), piece.length - offset)])


def _runs(batch: list[tuple[int, Entry]], most: int) -> Iterator[list[tuple[int, Entry]]]:
    """Cut a batch into stretches of neighbouring chunks, at most `most` long."""
    run: list[tuple[int, Entry]] = []
    for item in batch:
        if run and (item[0] != run[-1][0] + 1 or len(run) >= most):
            yield run
            run = []
        run.append(item)
    if run:
        yield run


async def _next(batches: AsyncIterator[list[tuple[int, Entry]]]) -> list[tuple[int, Entry]] | None:
    return await anext(batches, None)
