"""Find everything that map roots reach: each distinct page is read once, whatever shares it.

Breadth first, level by level, through files on disk: memory doesn't grow with the repository.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from orchestrator.repository.chunkmap import PageReader
from orchestrator.repository.errors import Damaged, ObjectMissing
from orchestrator.repository.layout import SLOT_UNIT, ObjectRef
from orchestrator.repository.manifest import MapRoot
from orchestrator.repository.page import Inner, Leaf, Ref
from orchestrator.repository.partitions import COUNT, Partitions
from orchestrator.repository.secondlook import SecondLook
from orchestrator.repository.store import COALESCE_GAP
from orchestrator.repository.vault import Vault

_PAGE = struct.Struct("<32sII32s")
BATCH_BYTES = 4 * 1024 * 1024
RECENT = 100_000
"""Packs, and pages, that are remembered so as not to be written down again: every point's inner pages repeat them."""
LeafSeen = Callable[[Ref, Leaf], None]
InnerSeen = Callable[[Ref, Inner], None]
Failed = Callable[[Ref, int, Exception], None]
Page = bytes | Damaged | ObjectMissing


class Marking:
    """Packs and map objects that are reached, as records of 32 bytes in files."""

    def __init__(self, vault: Vault, folder: Path, again: SecondLook | None = None) -> None:
        """Write files into `folder`. `again`: told of pages that opened at their second reading only."""
        self._vault, self._folder, self._again = vault, folder, again or SecondLook()
        self._reader = PageReader(vault)
        self._frontier: dict[int, Partitions] = {}
        self._recent: set[bytes] = set()
        self._recent_pages: set[bytes] = set()
        self._recent_level = -1
        self.packs = Partitions(folder, "packs", 32, 16)
        self.maps = Partitions(folder, "maps", 32, 16)
        self.pages = 0
        """Distinct pages read."""

    def add_root(self, root: MapRoot) -> None:
        """Start from a root; ValueError when it is malformed."""
        if root.page is not None:
            ref = Ref.of(root.page)
            self._add_pages(root.levels, [_PAGE.pack(ref.object.to_bytes(), ref.slot, ref.length, ref.digest)])

    def add_pack(self, ref: ObjectRef) -> None:
        """Say that a pack is reached."""
        raw = ref.to_bytes()
        if raw not in self._recent:
            if len(self._recent) >= RECENT:
                self._recent.clear()
            self._recent.add(raw)
            self.packs.add(raw)

    def _add_pages(self, level: int, pages: Iterable[bytes]) -> None:
        if level not in self._frontier:
            self._frontier[level] = Partitions(self._folder, f"level{level}", _PAGE.size, 16)
        add, recent = self._frontier[level].add, self._recent_pages
        if level != self._recent_level:
            recent.clear()
            self._recent_level = level
        for page in set(pages).difference(recent):
            if len(recent) >= RECENT:
                recent.clear()
            recent.add(page)
            add(page)

    async def run(
        self, *, on_leaf: LeafSeen | None = None, on_inner: InnerSeen | None = None, on_error: Failed | None = None
    ) -> None:
        """Read every page reached, from the top level down.

        Without `on_error` the first page that can't be read ends it (Damaged, ObjectMissing); with it, such a page is
        read once more by itself, then reported and left. Store errors that may pass always end it.
        """
        for level in range(max(self._frontier, default=-1), -1, -1):
            waiting: tuple[list[Ref], list[Page]] = ([], [])
            for refs in self._batches(level) if level in self._frontier else ():
                # What was fetched is looked at while the next is on its way.
                fetch, take = self._reader.fetch_each(refs), self._taken(level, *waiting, on_leaf, on_inner, on_error)
                pages, taken = await asyncio.gather(fetch, take, return_exceptions=True)
                if taken is not None:
                    raise taken
                if isinstance(pages, BaseException):
                    raise pages
                waiting = (refs, pages)
            await self._taken(level, *waiting, on_leaf, on_inner, on_error)

    def _batches(self, level: int) -> Iterator[list[Ref]]:
        """Yield the distinct pages of a level by object and place: some MiB at a time, with what lies between them."""
        frontier = self._frontier[level]
        for number in range(COUNT):
            pages = [_PAGE.unpack(record) for record in set(frontier.records(number))]
            batch: list[Ref] = []
            size = 0
            for raw, slot, length, digest in sorted(pages):
                batch.append(Ref(ObjectRef.parse(raw), slot, length, digest))
                size += length + _between(batch[-2:])
                if size >= BATCH_BYTES:
                    yield batch
                    batch, size = [], 0
            if batch:
                yield batch
            frontier.drop(number)

    async def _taken(
        self,
        level: int,
        refs: Sequence[Ref],
        pages: Sequence[Page],
        on_leaf: LeafSeen | None,
        on_inner: InnerSeen | None,
        on_error: Failed | None,
    ) -> None:
        """Look at pages that were fetched; those that could not be read are read once more."""
        sound: list[tuple[Ref, bytes]] = []
        for ref, page in zip(refs, pages, strict=True):
            if isinstance(page, bytes):
                sound.append((ref, page))
            elif on_error is None:
                raise page
            else:
                try:
                    sound.append((ref, await self._read_again(ref, page)))
                except (Damaged, ObjectMissing) as error:
                    on_error(ref, level, error)
        try:
            await asyncio.to_thread(self._take, level, sound, on_leaf, on_inner)
        except Damaged:
            if on_error is None:
                raise
            for one in sound:
                await self._take_one(level, one, on_leaf, on_inner, on_error)

    async def _read_again(self, ref: Ref, first: Damaged | ObjectMissing) -> bytes:
        (page,) = await self._reader.fetch([ref])
        if isinstance(first, Damaged):
            self._again.opened(first.key)
        return page

    async def _take_one(
        self,
        level: int,
        one: tuple[Ref, bytes],
        on_leaf: LeafSeen | None,
        on_inner: InnerSeen | None,
        on_error: Failed,
    ) -> None:
        """Look at one page, which is what its parent names: malformed, it was written so and isn't read again."""
        try:
            await asyncio.to_thread(self._take, level, [one], on_leaf, on_inner)
        except Damaged as error:
            on_error(one[0], level, error)

    def _take(
        self,
        level: int,
        pages: Sequence[tuple[Ref, bytes]],
        on_leaf: LeafSeen | None,
        on_inner: InnerSeen | None,
    ) -> None:
        decoded: list[tuple[Ref, Inner | Leaf]] = []
        for ref, raw in pages:
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
            try:
                self._add_pages(level - 1, page.children())
            except ValueError as error:
                raise Damaged(self._vault.names.map(ref.object), f"page at slot {ref.slot}: {error}") from error
            if on_inner is not None:
                on_inner(ref, page)


def _between(two: Sequence[Ref]) -> int:
    """Return how many bytes a store fetches along between two pages that follow each other."""
    if len(two) < 2 or two[0].object != two[1].object:
        return 0
    gap = two[1].slot * SLOT_UNIT - two[0].slot * SLOT_UNIT - two[0].length
    return gap if 0 < gap <= COALESCE_GAP else 0
