"""Build a point's chunk map: copy-on-write on a base, or from empty.

Only leaves that were touched are in memory, and only until the engine says that nothing below an index will change.
What must never happen here: an entry inherited that the new volume doesn't cover, or a leaf changed that the base
still shares.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
import threading
from collections.abc import Iterator, Sequence

import msgspec

from orchestrator.repository.chunkmap import MapReader, overlaid
from orchestrator.repository.layout import FAN_OUT, LEAF_CHUNKS, OVERLAY_LIMIT, OVERLAY_MEAN, ObjectRef
from orchestrator.repository.leafupdate import EMPTY, FRESH, OVERLAY, PAGE, LeafUpdate, encode_update
from orchestrator.repository.manifest import PointStats
from orchestrator.repository.mapobject import MapObjectWriter
from orchestrator.repository.pack import CODEC_SHIFT, LENGTH_MASK, Entry
from orchestrator.repository.page import Leaf, Overlay, Ref, encode_leaf
from orchestrator.repository.plan import shard_range
from orchestrator.repository.shard import Shard
from orchestrator.repository.vault import Vault

_PENDING = struct.Struct("<H32sIII")
Leaves = set[int]
Inherited = tuple[Ref | None, Overlay]
"""A leaf of the base: its page and its overlay."""


class ShardBuilder:
    """One shard's part of the map. `set`/`clear` from any thread, in any order; flushing belongs to the loop."""

    def __init__(
        self,
        vault: Vault,
        intent_id: str,
        *,
        volume_size: int,
        chunk_size: int,
        base: MapReader | None = None,
        number: int = 0,
        shards: int = 1,
    ) -> None:
        """Start shard `number` of `shards`; `base` is the map a delta inherits, None to start empty."""
        if base is not None and base.root.chunk_size != chunk_size:
            raise ValueError(f"chunks of {chunk_size} bytes on a base of {base.root.chunk_size}")
        self._base, self._number = base, number
        self._volume_size = volume_size
        self._count = -(-volume_size // chunk_size)
        self._first, self._stop = shard_range(self._count, shards, number)
        self._writer = MapObjectWriter(vault, intent_id)
        self._pending: dict[int, bytearray] = {}
        self._packs: list[ObjectRef] = []
        self._numbers: dict[ObjectRef, int] = {}
        self._flushed = self._first
        self._lock = threading.Lock()
        self._updates: list[bytes] = []
        self._cut_written = False
        """Whether the leaf that a smaller volume ends in was written already: a leaf has one update."""
        self._border = self._border_chunk(chunk_size)

    def _border_chunk(self, chunk_size: int) -> int | None:
        """Return the chunk at the border of the smaller size, when it must be read again and is in this shard."""
        if self._base is None or self._base.root.volume_size == self._volume_size:
            return None
        index, rest = divmod(min(self._base.root.volume_size, self._volume_size), chunk_size)
        return index if rest and self._first <= index < self._stop else None

    @property
    def range(self) -> tuple[int, int]:
        """Return the chunks [first, stop) of this shard."""
        return self._first, self._stop

    def set(self, index: int, chunk_id: bytes, pack: ObjectRef, slot: int, length: int, codec: int) -> None:
        """Say where a chunk is. The pack may still be on its way; the shard is put only after it is up."""
        if len(chunk_id) != 32 or not 0 < length <= LENGTH_MASK:
            raise ValueError(f"chunk {index}: not an entry")
        with self._lock:
            number = self._numbers.get(pack)
            if number is None:
                number = self._numbers[pack] = len(self._packs)
                self._packs.append(pack)
            self._note(index, _PENDING.pack(index % LEAF_CHUNKS, chunk_id, number, slot, length | codec << CODEC_SHIFT))

    def clear(self, index: int) -> None:
        """Say that a chunk is zero: a hole."""
        with self._lock:
            self._note(index, _PENDING.pack(index % LEAF_CHUNKS, bytes(32), 0, 0, 0))

    def _note(self, index: int, packed: bytes) -> None:
        if not self._flushed <= index < self._stop:
            raise ValueError(f"chunk {index} is outside the shard or flushed already")
        if index == self._border:
            self._border = None
        self._pending.setdefault(index // LEAF_CHUNKS, bytearray()).extend(packed)

    async def flush_below(self, index: int) -> None:
        """Write the leaves of level-1 pages wholly below `index`, if any wait: nothing there may be set any more."""
        limit = index // (LEAF_CHUNKS * FAN_OUT) * FAN_OUT if index < self._stop else -(-self._stop // LEAF_CHUNKS)
        with self._lock:
            ready = sorted(leaf for leaf in self._pending if leaf < limit)
            if not ready:
                return
            self._flushed = max(self._flushed, min(limit * LEAF_CHUNKS, self._stop))
        await self._flush(ready)

    async def finish(self, stats: PointStats) -> Shard:
        """Write the remaining pages and return the shard, not put yet: `shard.put_shard` once all packs are up."""
        if self._border is not None:
            raise ValueError(f"the volume's size changed: chunk {self._border} must be read again")
        with self._lock:
            self._flushed = self._stop
            cut = self._cut_leaf()
            if cut is not None and not self._cut_written:
                self._pending.setdefault(cut, bytearray())
            ready = sorted(self._pending)
        await self._flush(ready)
        await self._writer.finish()
        stats = msgspec.structs.replace(
            stats, map_bytes=stats.map_bytes + self._writer.bytes, uploaded=stats.uploaded + self._writer.bytes
        )
        updates = b"".join(self._updates)
        return Shard(number=self._number, volume_size=self._volume_size, stats=stats, updates=updates)

    def _cut_leaf(self) -> int | None:
        """Return the last leaf when a smaller volume ends inside it: entries beyond must go."""
        if self._base is None or self._base.root.chunk_count <= self._count or not self._count % LEAF_CHUNKS:
            return None
        leaf = self._count // LEAF_CHUNKS
        return leaf if self._first <= leaf * LEAF_CHUNKS < self._stop else None

    async def _flush(self, leaves: Sequence[int]) -> None:
        for page, touched in itertools.groupby(leaves, key=lambda leaf: leaf // FAN_OUT):
            with self._lock:
                pending = {leaf: self._pending.pop(leaf) for leaf in touched}
            first = max(page * FAN_OUT, self._first // LEAF_CHUNKS)
            own = range(first, min((page + 1) * FAN_OUT, -(-self._stop // LEAF_CHUNKS)))
            old = await self._inherited(own)
            fold = self._to_fold(pending, old)
            self._cut_written |= self._cut_leaf() in pending
            pending.update({leaf: bytearray() for leaf in fold if leaf not in pending})
            needed = [ref for leaf in sorted(fold) if (ref := old[leaf][0]) and not self._covered(leaf, pending[leaf])]
            pages = await self._base.leaves(needed) if self._base is not None else {}
            self._updates.extend(await asyncio.to_thread(self._build, pending, old, fold, pages))
            await self._writer.put_full()

    async def _inherited(self, leaves: Sequence[int]) -> dict[int, Inherited]:
        if self._base is None:
            return {leaf: (None, []) for leaf in leaves}
        covered = -(-self._base.root.chunk_count // LEAF_CHUNKS)
        found = await self._base.children([leaf for leaf in leaves if leaf < covered])
        return {leaf: found.get(leaf, (None, [])) for leaf in leaves}

    def _to_fold(self, pending: dict[int, bytearray], old: dict[int, Inherited]) -> Leaves:
        """Choose the leaves of one level-1 page that are written anew.

        Those with many changes; and when the page holds many changes in all, every leaf that has any: they lie
        together, so that reading them costs one request, and writing them is paid for by the changes since.
        """
        sizes = {
            leaf: len({index for index, _ in overlay} | _indexes(pending.get(leaf, b"")))
            for leaf, (_, overlay) in old.items()
        }
        fold = {leaf for leaf, size in sizes.items() if size > OVERLAY_LIMIT or leaf == self._cut_leaf()}
        if sum(size for leaf, size in sizes.items() if leaf not in fold) > OVERLAY_MEAN * len(old):
            fold |= {leaf for leaf, size in sizes.items() if size}
        return fold

    def _limit(self, leaf: int) -> int:
        return min(LEAF_CHUNKS, self._count - leaf * LEAF_CHUNKS)

    def _covered(self, leaf: int, pending: bytearray) -> bool:
        """Say whether every chunk of the leaf was set or cleared: nothing of the base's leaf is left then."""
        return len(_indexes(pending)) >= self._limit(leaf)

    def _build(
        self, pending: dict[int, bytearray], old: dict[int, Inherited], fold: Leaves, pages: dict[Ref, Leaf]
    ) -> list[bytes]:
        updates = []
        for leaf, changes in sorted(pending.items()):
            ref, overlay = old[leaf]
            if self._covered(leaf, changes):
                ref, overlay = None, []
            merged = dict(overlay)
            merged.update(self._entries(changes))
            page = pages[ref] if ref is not None and leaf in fold else None
            updates.append(encode_update(self._update(leaf, merged, ref, page, fold=leaf in fold)))
        return updates

    def _entries(self, pending: bytearray) -> Iterator[tuple[int, Entry | None]]:
        for index, chunk_id, pack, slot, packed in _PENDING.iter_unpack(pending):
            length, codec = packed & LENGTH_MASK, packed >> CODEC_SHIFT
            yield index, Entry(chunk_id, self._packs[pack], slot, length, codec) if packed else None

    def _update(
        self, leaf: int, overlay: dict[int, Entry | None], ref: Ref | None, page: Leaf | None, *, fold: bool
    ) -> LeafUpdate:
        if ref is not None and not fold:
            return LeafUpdate(leaf, OVERLAY, None, tuple(sorted(overlay.items())))
        entries = overlaid(dict(page.chunks()) if page is not None else {}, sorted(overlay.items()))
        entries = {index: entry for index, entry in entries.items() if index < self._limit(leaf)}
        if not entries:
            return LeafUpdate(leaf, EMPTY)
        if not fold:
            return LeafUpdate(leaf, FRESH, None, tuple(sorted(entries.items())))
        return LeafUpdate(leaf, PAGE, self._writer.add(encode_leaf(entries)))


def _indexes(pending: bytes | bytearray) -> set[int]:
    return {index for index, *_ in _PENDING.iter_unpack(pending)}
