"""Read chunk maps: from a root to the entry of any chunk, pages fetched in joined ranges.

What must never happen here: a page that isn't the one its parent names taken for it, or a missing page for a hole.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Sequence

from blake3 import blake3

from orchestrator.repository.crypto import Bytes, ObjectCipher
from orchestrator.repository.damage import DamageIndex
from orchestrator.repository.errors import Damaged, ObjectMissing
from orchestrator.repository.layout import FAN_OUT, LEAF_CHUNKS, SLOT_UNIT, Kind, ObjectRef
from orchestrator.repository.manifest import MapRoot
from orchestrator.repository.pack import Entry
from orchestrator.repository.page import Inner, Leaf, Overlay, Ref, levels_for
from orchestrator.repository.vault import Vault

CACHE_BYTES = 32 * 1024 * 1024
BATCH_LEAVES = 32
READ_AHEAD = 32


class PageReader:
    """Fetches pages by reference, checks digest and seal. Used by one task at a time."""

    def __init__(self, vault: Vault) -> None:
        self.vault = vault
        self._ciphers: dict[ObjectRef, ObjectCipher] = {}

    async def fetch(self, refs: Sequence[Ref]) -> list[bytes]:
        """Return the plaintext of pages, in order of `refs`; those of one object in joined requests.

        Raises ObjectMissing, Damaged.
        """
        pages: list[bytes] = []
        for page in await self.fetch_each(refs):
            if not isinstance(page, bytes):
                raise page
            pages.append(page)
        return pages

    async def fetch_each(self, refs: Sequence[Ref]) -> list[bytes | Damaged | ObjectMissing]:
        """Fetch as `fetch` does, and return what is wrong with a page in its place."""
        groups: dict[ObjectRef, list[int]] = {}
        for position, ref in enumerate(refs):
            groups.setdefault(ref.object, []).append(position)
        found: dict[int, bytes | Damaged | ObjectMissing] = {}
        for name, positions in groups.items():
            ranges = [(refs[at].slot * SLOT_UNIT, refs[at].length) for at in positions]
            try:
                pieces = await self.vault.store.get_ranges(self.vault.names.map(name), ranges)
            except ObjectMissing as error:
                found.update(dict.fromkeys(positions, error))
                continue
            wanted = [refs[at] for at in positions]
            if sum(map(len, pieces)) > 256 * 1024:
                plain = await asyncio.to_thread(self._open, wanted, pieces)
            else:
                plain = self._open(wanted, pieces)
            found.update(zip(positions, plain, strict=True))
        return [found[position] for position in range(len(refs))]

    def _open(self, refs: Sequence[Ref], pieces: Sequence[Bytes]) -> list[bytes | Damaged]:
        found: list[bytes | Damaged] = []
        for ref, sealed in zip(refs, pieces, strict=True):
            try:
                found.append(self._open_one(ref, sealed))
            except Damaged as error:
                found.append(error)
        return found

    def _open_one(self, ref: Ref, sealed: Bytes) -> bytes:
        name = self.vault.names.map(ref.object)
        if len(sealed) != ref.length:
            raise Damaged(name, f"it ends inside the page at slot {ref.slot}")
        if blake3(sealed).digest() != ref.digest:
            raise Damaged(name, f"the page at slot {ref.slot} isn't the one that its parent names")
        cipher = self._ciphers.get(ref.object)
        if cipher is None:
            if len(self._ciphers) > 4096:
                self._ciphers.clear()
            cipher, _ = self.vault.cipher_for(Kind.MAP, ref.object, [(ref.slot, sealed)])
            self._ciphers[ref.object] = cipher  # true for the whole object: these bytes have the digest of their page
        return cipher.open(ref.slot, sealed)


class MapReader:
    """One point's chunk map. Keeps inner pages in bounded memory. Used by one task at a time."""

    def __init__(self, vault: Vault, root: MapRoot, *, avoid: DamageIndex | None = None) -> None:
        """Read the map at `root`; what `avoid` knows as damaged is left out of `lookup`."""
        self.vault, self.root, self.avoid = vault, root, avoid
        self.pages = PageReader(vault)
        self._inner: OrderedDict[Ref, Inner] = OrderedDict()
        self._cached = 0
        self._leaves: OrderedDict[Ref, Leaf] = OrderedDict()
        if root.levels != levels_for(root.chunk_count):
            raise Damaged("(map root)", f"{root.levels} levels for {root.chunk_count} chunks")

    async def check_root(self) -> None:
        """Open the root page; ObjectMissing, Damaged."""
        top = self.top()
        if top is not None:
            await self.inner(self.root.levels, [top])

    def top(self) -> Ref | None:
        """Return the reference to the topmost page; Damaged when it is malformed."""
        try:
            return None if self.root.page is None else Ref.of(self.root.page)
        except ValueError as error:
            raise Damaged("(map root)", str(error)) from error

    async def inner(self, level: int, refs: Sequence[Ref]) -> list[Inner]:
        """Return decoded inner pages of one level, in order."""
        missing = [ref for ref in dict.fromkeys(refs) if ref not in self._inner]
        fresh: dict[Ref, Inner] = {}
        for ref, raw in zip(missing, await self.pages.fetch(missing), strict=True):
            fresh[ref] = self._decode(ref, raw, level)
        answer = [fresh[ref] if ref in fresh else self._inner[ref] for ref in refs]
        for ref, page in fresh.items():
            self._inner[ref] = page
            self._cached += 2 * ref.length
        while self._cached > CACHE_BYTES and self._inner:
            old, _ = self._inner.popitem(last=False)
            self._cached -= 2 * old.length
        return answer

    def _decode(self, ref: Ref, raw: bytes, level: int) -> Inner:
        try:
            return Inner(raw, level)
        except ValueError as error:
            raise Damaged(self.vault.names.map(ref.object), f"page at slot {ref.slot}: {error}") from error

    async def node_refs(self, level: int, numbers: Sequence[int]) -> dict[int, Ref]:
        """Return the references to the pages `numbers` of a level (0 = leaves); absent ones are left out."""
        if level == self.root.levels:
            top = self.top()
            return {} if top is None or 0 not in numbers else {0: top}
        parents = await self.node_refs(level + 1, sorted({number // FAN_OUT for number in numbers}))
        order = sorted(parents)
        pages = dict(zip(order, await self.inner(level + 1, [parents[at] for at in order]), strict=True))
        found = {}
        for number in numbers:
            page = pages.get(number // FAN_OUT)
            ref = None if page is None else page.child(number % FAN_OUT)
            if ref is not None:
                found[number] = ref
        return found

    async def children(self, leaves: Sequence[int]) -> dict[int, tuple[Ref | None, Overlay]]:
        """Return for each leaf its page and its overlay."""
        parents = await self.node_refs(1, sorted({leaf // FAN_OUT for leaf in leaves}))
        order = sorted(parents)
        await self._read_ahead([number for number in order if parents[number] not in self._inner])
        pages = dict(zip(order, await self.inner(1, [parents[at] for at in order]), strict=True))
        found: dict[int, tuple[Ref | None, Overlay]] = {}
        for leaf in leaves:
            page = pages.get(leaf // FAN_OUT)
            found[leaf] = (None, []) if page is None else (page.child(leaf % FAN_OUT), page.overlay(leaf % FAN_OUT))
        return found

    async def _read_ahead(self, missing: Sequence[int]) -> None:
        """Fetch level-1 pages together with those that follow in the same object: callers come in ascending order."""
        if not missing:
            return
        numbers = sorted({number + step for number in missing for step in range(READ_AHEAD)})
        last = -(-self.root.chunk_count // (LEAF_CHUNKS * FAN_OUT))
        refs = await self.node_refs(1, [number for number in numbers if number < last])
        objects = {refs[number].object for number in missing}
        wanted = [ref for ref in refs.values() if ref.object in objects and ref not in self._inner]
        size = 0
        for position, ref in enumerate(wanted):
            size += ref.length
            if size > CACHE_BYTES // 4:
                wanted = wanted[: position + 1]
                break
        await self.inner(1, wanted)

    async def leaves(self, refs: Sequence[Ref]) -> dict[Ref, Leaf]:
        """Return decoded leaves; the last few are kept."""
        missing = [ref for ref in dict.fromkeys(refs) if ref not in self._leaves]
        found = {ref: self._leaves[ref] for ref in refs if ref in self._leaves}
        for ref, raw in zip(missing, await self.pages.fetch(missing), strict=True):
            try:
                found[ref] = self._leaves[ref] = Leaf(raw)
            except ValueError as error:
                raise Damaged(self.vault.names.map(ref.object), f"page at slot {ref.slot}: {error}") from error
        while len(self._leaves) > BATCH_LEAVES:
            self._leaves.popitem(last=False)
        return found

    async def lookup(self, indexes: Iterable[int]) -> dict[int, Entry]:
        """Return the entries of these chunks; holes are absent. Meant for some hundreds to thousands at once."""
        wanted: dict[int, list[int]] = {}
        for index in indexes:
            if 0 <= index < self.root.chunk_count:
                wanted.setdefault(index // LEAF_CHUNKS, []).append(index)
        children = await self.children(list(wanted))
        found: dict[int, Entry] = {}
        numbers = list(wanted)
        for start in range(0, len(numbers), BATCH_LEAVES):
            await self._look(found, {leaf: wanted[leaf] for leaf in numbers[start : start + BATCH_LEAVES]}, children)
        return found

    async def _look(
        self, found: dict[int, Entry], wanted: dict[int, list[int]], children: dict[int, tuple[Ref | None, Overlay]]
    ) -> None:
        overlays = {leaf: dict(children[leaf][1]) for leaf in wanted}
        needed = []
        for leaf, indexes in wanted.items():
            ref = self._sound(children[leaf][0])
            if ref is not None and any(index % LEAF_CHUNKS not in overlays[leaf] for index in indexes):
                needed.append(ref)
        leaves = await self.leaves(needed)
        for leaf, indexes in wanted.items():
            ref = self._sound(children[leaf][0])
            page = None if ref is None else leaves.get(ref)
            for index in indexes:
                inside = index % LEAF_CHUNKS
                entry = overlays[leaf][inside] if inside in overlays[leaf] else page.get(inside) if page else None
                if entry is not None and not (self.avoid and self.avoid.touches(entry)):
                    found[index] = entry

    def _sound(self, ref: Ref | None) -> Ref | None:
        """Return the leaf unless it is known as damaged: nothing in it may be referred to then."""
        if ref is not None and self.avoid and self.avoid.touches_page(ref.object, ref.slot):
            return None
        return ref

    async def batches(self, first: int = 0, stop: int | None = None) -> AsyncIterator[list[tuple[int, Entry]]]:
        """Yield (index, entry) of every chunk in [first, stop) that isn't a hole, ascending, a leaf at a time."""
        end = self.root.chunk_count if stop is None else min(stop, self.root.chunk_count)
        async for node, page in self.level1(first // LEAF_CHUNKS // FAN_OUT, -(-end // LEAF_CHUNKS)):
            numbers = [n for n in page.numbers() if first < (node * FAN_OUT + n + 1) * LEAF_CHUNKS]
            numbers = [n for n in numbers if (node * FAN_OUT + n) * LEAF_CHUNKS < end]
            for start in range(0, len(numbers), BATCH_LEAVES):
                some = numbers[start : start + BATCH_LEAVES]
                refs = {n: page.child(n) for n in some}
                leaves = await self.leaves([ref for ref in refs.values() if ref is not None])
                for n in some:
                    ref = refs[n]
                    merged = dict(leaves[ref].chunks()) if ref is not None else {}
                    base = (node * FAN_OUT + n) * LEAF_CHUNKS
                    entries = _overlaid(merged, page.overlay(n))
                    batch = [(base + at, entry) for at, entry in entries if first <= base + at < end]
                    if batch:
                        yield batch

    async def level1(self, node: int, leaf_count: int) -> AsyncIterator[tuple[int, Inner]]:
        """Yield (number, page) of the level-1 pages from `node` on that cover the first `leaf_count` leaves."""
        last = -(-leaf_count // FAN_OUT)
        while node < last:
            some = range(node, min(node + 16, last))
            refs = await self.node_refs(1, list(some))
            order = sorted(refs)
            for number, page in zip(order, await self.inner(1, [refs[at] for at in order]), strict=True):
                yield number, page
            node = some.stop


def _overlaid(entries: dict[int, Entry], overlay: Overlay) -> list[tuple[int, Entry]]:
    return sorted(overlaid(entries, overlay).items())


def overlaid(entries: dict[int, Entry], overlay: Overlay) -> dict[int, Entry]:
    """Apply an overlay to a leaf's entries, in place, and return them."""
    for index, entry in overlay:
        if entry is None:
            entries.pop(index, None)
        else:
            entries[index] = entry
    return entries
