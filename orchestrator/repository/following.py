"""Follow the relocation records of a census: which old packs may go, and which packs are alive because of them.

An old pack may go only if a fresh mark shows that its newest record knows every chunk that is alive in it, and if every
pack that these chunks went to is there. What must never happen here: a record believed that isn't the newest.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.repository.census import OBJECT, PACK, READERS, RELOCATED, Census
from orchestrator.repository.indexing import Index, IndexWork
from orchestrator.repository.layout import ObjectRef
from orchestrator.repository.liveness import LiveChunks
from orchestrator.repository.movedindex import Copy, copy_of
from orchestrator.repository.parallel import in_parallel
from orchestrator.repository.partitions import COUNT, Partitions
from orchestrator.repository.relocation import open_generation, open_relocation
from orchestrator.repository.vault import Vault

if TYPE_CHECKING:
    from orchestrator.repository.liveness import Words

_SOURCE = struct.Struct("<32s32sI")
"""Target, old pack, generation of the record that says so."""
_AT_ONCE = 64
SUPERSEDED_LIMIT = 100_000


class Following:
    """What the records of one census say. `take` first."""

    def __init__(self, vault: Vault, census: Census, folder: Path) -> None:
        self._vault, self._census = vault, census
        self._sources = Partitions(folder, "sources", _SOURCE.size, 16)
        self._gone = Partitions(folder, "gone", 32, 16)
        self._kept = Partitions(folder, "kept", 32, 16)
        self.moved = LiveChunks(folder, "moved")
        """Live chunks, by the pack that they are in now."""
        self._index = Index(vault, folder)
        self.superseded: list[str] = []
        """Records that a newer generation has taken the place of, for longer than the grace time."""

    async def take(self, before: datetime) -> None:
        """Read the newest record of every old pack that a map names; Damaged, ObjectMissing.

        The record itself while the old pack is there, because that goes by what it says; a copy of it afterwards.
        """
        await self._index.load()
        for number in range(COUNT):
            if not self._census.relocated.length(number):
                continue
            newest = await asyncio.to_thread(self._newest, number, before.timestamp())
            if newest:
                await self._take(number, newest)
        await asyncio.to_thread(self._check_targets)

    async def _take(self, number: int, newest: dict[bytes, list[tuple[ObjectRef, int]]]) -> None:
        generations = {pack.to_bytes(): generation for some in newest.values() for pack, generation in some}
        copies = await asyncio.to_thread(self._index.take, number, generations)
        here = await asyncio.to_thread(self._listed, number)
        waiting: list[tuple[ObjectRef, int, Words]] = []
        known: list[tuple[Copy, Words]] = []
        for key, places in self._census.chunks.packs(number):
            for pack, generation in newest.get(key, ()):
                copy = copies.get(pack)
                if copy is None:
                    self._index.lacks(pack, generation)
                if copy is None or pack.to_bytes() in here:
                    waiting.append((pack, generation, places))
                else:
                    known.append((copy, places))
            if len(waiting) + len(known) >= _AT_ONCE:
                await self._follow(waiting)
                await asyncio.to_thread(self._went, known)
                waiting, known = [], []
        await self._follow(waiting)
        await asyncio.to_thread(self._went, known)

    def index_work(self) -> IndexWork:
        """Return which copies of records to write; `take` first."""
        return self._index.work()

    def _newest(self, number: int, before: float) -> dict[bytes, list[tuple[ObjectRef, int]]]:
        """Return old packs that maps name, and their newest record, by the first bytes of the packs' random part."""
        generations: dict[bytes, dict[int, int]] = {}
        for record in self._census.relocated.records(number):
            raw, generation, modified = RELOCATED.unpack(record)
            generations.setdefault(raw, {})[generation] = modified
        if not generations:
            return {}
        named = {raw for raw in self._census.marking.packs.records(number) if raw in generations}
        found: dict[bytes, list[tuple[ObjectRef, int]]] = {}
        for raw in named:
            pack, seen = ObjectRef.parse(raw), generations[raw]
            newest = max(seen)
            found.setdefault(pack.random[:8], []).append((pack, newest))
            if len(seen) > 1 and seen[newest] < before and len(self.superseded) < SUPERSEDED_LIMIT:
                self.superseded += [self._vault.names.relocation(pack, old) for old in seen if old != newest]
        return found

    async def _follow(self, some: list[tuple[ObjectRef, int, Words]]) -> None:
        limit = asyncio.Semaphore(READERS)
        read: list[tuple[Copy, Words]] = []

        async def one(pack: ObjectRef, generation: int, places: Words) -> None:
            async with limit:
                # (A newer one since: what it points to is under an intent that this census saw live, or promised.)
                found = await open_generation(self._vault, pack, generation)
                if found is None:
                    found = await open_relocation(self._vault, pack)
            if found is not None:
                read.append((Copy(pack, found.generation, copy_of(found)), places))

        await in_parallel([one(*each) for each in some])
        await asyncio.to_thread(self._went, read)

    def _went(self, some: list[tuple[Copy, Words]]) -> None:
        """Note where the chunks that live in old packs are now, and which old packs nobody needs. CPU work."""
        for copy, places in some:
            targets, words, covered = copy.follow(places)
            self.moved.add_many(targets, words)
            for target in set(targets):
                self._sources.add(_SOURCE.pack(target.to_bytes(), copy.pack.to_bytes(), copy.generation))
            if covered:
                self._gone.add(copy.pack.to_bytes())

    def _listed(self, number: int) -> set[bytes]:
        return {record[1:33] for record in self._census.listed.records(number) if record[0] == PACK}

    def _check_targets(self) -> None:
        """Keep an old pack if one of those that its chunks went to isn't there (as far as this census saw)."""
        for number in range(COUNT):
            sources = self.sources(number)
            if not sources:
                continue
            listed = self._listed(number)
            for target, olds in sources.items():
                if target not in listed:
                    for old, _ in olds:
                        self._kept.add(old.to_bytes())

    def sources(self, number: int) -> dict[bytes, list[tuple[ObjectRef, int]]]:
        """Return for packs of one file that records point to: the old packs, and their records' generation."""
        found: dict[bytes, list[tuple[ObjectRef, int]]] = {}
        for record in self._sources.records(number):
            target, old, generation = _SOURCE.unpack(record)
            found.setdefault(target, []).append((ObjectRef.parse(old), generation))
        return found

    def gone(self, number: int) -> set[bytes]:
        """Return the packs of one file that no reader needs: all that is alive in them is elsewhere."""
        return set(self._gone.records(number)) - set(self._kept.records(number))

    def sizes(self, number: int) -> Iterator[tuple[bytes, int]]:
        """Yield (reference, bytes) of the packs of one file."""
        for record in self._census.listed.records(number):
            kind, raw, size = OBJECT.unpack(record)
            if kind == PACK:
                yield raw, size
