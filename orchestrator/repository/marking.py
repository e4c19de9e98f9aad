"""Find everything that map roots reach: each distinct page is read once, whatever shares it.

Breadth first, level by level, through files on disk: memory doesn't grow with the repository.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from orchestrator.repository.chunkmap import PageReader
from orchestrator.repository.errors import Damaged, ObjectMissing
from orchestrator.repository.layout import ObjectRef
from orchestrator.repository.manifest import MapRoot
from orchestrator.repository.page import Inner, Leaf, Ref
from orchestrator.repository.partitions import COUNT, Partitions
from orchestrator.repository.vault import Vault

_PAGE = struct.Struct("<32sII32s")
BATCH_BYTES = 4 * 1024 * 1024
RECENT = 100_000
LeafSeen = Callable[[Ref, Leaf], None]
InnerSeen = Callable[[Ref, Inner], None]
Failed = Callable[[Ref, int, Exception], None]


class Marking:
    """Packs and map objects that are reached, as records of 32 bytes in files."""

    def __init__(self, vault: Vault, folder: Path) -> None:
        self._vault, self._folder = vault, folder
        self._reader = PageReader(vault)
        self._frontier: dict[int, Partitions] = {}
        self._recent: set[ObjectRef] = set()
        self.packs = Partitions(folder, "packs", 32, 16)
        self.maps = Partitions(folder, "maps", 32, 16)
        self.pages = 0
        """Distinct pages read."""

    def add_root(self, root: MapRoot) -> None:
        """Start from a root; ValueError when it is malformed."""
        if root.page is not None:
            self._add_page(root.levels, Ref.of(root.page))

    def add_pack(self, ref: ObjectRef) -> None:
        """Say that a pack is reached."""
        if ref not in self._recent:
            if len(self._recent) >= RECENT:
                self._recent.clear()
            self._recent.add(ref)
            self.packs.add(ref.to_bytes())

    def _add_page(self, level: int, ref: Ref) -> None:
        if level not in self._frontier:
            self._frontier[level] = Partitions(self._folder, f"level{level}", _PAGE.size, 16)
        self._frontier[level].add(_PAGE.pack(ref.object.to_bytes(), ref.slot, ref.length, ref.digest))

    async def run(
        self, *, on_leaf: LeafSeen | None = None, on_inner: InnerSeen | None = None, on_error: Failed | None = None
    ) -> None:
        """Read every page reached, from the top level down.

        Without `on_error` the first page that can't be read ends it (Damaged, ObjectMissing); with it, such a page is
        reported and left. Store errors that may pass always end it.
        """
        level = max(self._frontier, default=-1)
        while level >= 0:
            for number in range(COUNT) if level in self._frontier else ():
                for refs in self._batches(level, number):
                    await self._read(level, refs, on_leaf, on_inner, on_error)
                self._frontier[level].drop(number)
            level -= 1

    def _batches(self, level: int, number: int) -> Iterator[list[Ref]]:
        """Yield distinct pages of one file, by object and place, some MiB at a time."""
        batch: list[Ref] = []
        size = 0
        for record in sorted(set(self._frontier[level].records(number))):
            raw, slot, length, digest = _PAGE.unpack(record)
            batch.append(Ref(ObjectRef.parse(raw), slot, length, digest))
            size += length
            if size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    async def _read(
        self,
        level: int,
        refs: Sequence[Ref],
        on_leaf: LeafSeen | None,
        on_inner: InnerSeen | None,
        on_error: Failed | None,
    ) -> None:
        try:
            pages = await self._reader.fetch(refs)
            await asyncio.to_thread(self._take, level, refs, pages, on_leaf, on_inner)
        except (Damaged, ObjectMissing) as error:
            if on_error is None:
                raise
            if len(refs) == 1:
                on_error(refs[0], level, error)
                return
            # One of them: read each by itself, so that only that one is reported.
            for ref in refs:
                await self._read(level, [ref], on_leaf, on_inner, on_error)

    def _take(
        self,
        level: int,
        refs: Sequence[Ref],
        pages: Sequence[bytes],
        on_leaf: LeafSeen | None,
        on_inner: InnerSeen | None,
    ) -> None:
        decoded: list[tuple[Ref, Inner | Leaf]] = []
        for ref, raw in zip(refs, pages, strict=True):
            try:
                decoded.append((ref, Inner(raw, level) if level else Leaf(raw)))
            except ValueError as error:
                raise Damaged(self._vault.names.map(ref.object), f"page at slot {ref.slot}: {error}") from error
        for ref, page in decoded:
            self.pages += 1
            self.maps.add(ref.object.to_bytes())
            for pack in page.packs:
                self.add_pack(pack)
            if isinstance(page, Leaf):
                if on_leaf is not None:
                    on_leaf(ref, page)
                continue
            for number in page.numbers():
                child = page.child(number)
                if child is not None:
                    self._add_page(level - 1, child)
            if on_inner is not None:
                on_inner(ref, page)
