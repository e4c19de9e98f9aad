"""Build a point's chunk map: copy-on-write on a base, or from empty.

Only leaves that were touched are in memory, and only until the engine says that nothing below an index will change.
What must never happen here: an entry inherited that the new volume doesn't cover, or a leaf changed that the base
still shares.
"""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Sequence

import msgspec

from orchestrator.repository.chunkmap import MapReader, overlaid
from orchestrator.repository.layout import LEAF_CHUNKS, OVERLAY_LIMIT, ObjectRef
from orchestrator.repository.leafupdate import EMPTY, OVERLAY, PAGE, LeafUpdate, encode_update
from orchestrator.repository.manifest import PointStats
from orchestrator.repository.mapobject import MapObjectWriter
from orchestrator.repository.pack import CODEC_SHIFT, LENGTH_MASK, Entry
from orchestrator.repository.page import Leaf, Overlay, Ref, encode_leaf
from orchestrator.repository.plan import shard_range
from orchestrator.repository.shard import Shard
from orchestrator.repository.vault import Vault

_PENDING = struct.Struct("<H32sIII")
FLUSH_LEAVES = 32


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
        """Write the pages of leaves wholly below `index`, if enough are waiting: nothing there may be set any more."""
        limit = index // LEAF_CHUNKS if index < self._stop else -(-self._stop // LEAF_CHUNKS)
        with self._lock:
            ready = sorted(leaf for leaf in self._pending if leaf < limit)
            if len(ready) < FLUSH_LEAVES:
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
            if cut is not None:
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
        for start in range(0, len(leaves), FLUSH_LEAVES):
            some = leaves[start : start + FLUSH_LEAVES]
            with self._lock:
                pending = {leaf: self._pending.pop(leaf) for leaf in some}
            old = await self._inherited(some)
            needed = [
                ref for leaf in some if (ref := old[leaf][0]) and self._needs_page(leaf, pending[leaf], old[leaf])
            ]
            pages = await self._base.leaves(needed) if self._base is not None else {}
            self._updates.extend(await asyncio.to_thread(self._build, pending, old, pages))
            await self._writer.put_full()

    async def _inherited(self, leaves: Sequence[int]) -> dict[int, tuple[Ref | None, Overlay]]:
        if self._base is None:
            return {leaf: (None, []) for leaf in leaves}
        covered = -(-self._base.root.chunk_count // LEAF_CHUNKS)
        found = await self._base.children([leaf for leaf in leaves if leaf < covered])
        return {leaf: found.get(leaf, (None, [])) for leaf in leaves}

    def _needs_page(self, leaf: int, pending: bytearray, old: tuple[Ref | None, Overlay]) -> bool:
        """Say whether the base's leaf must be read: more changes than an overlay holds, but not every chunk."""
        if leaf == self._cut_leaf():
            return True
        touched = {index for index, *_ in _PENDING.iter_unpack(pending)}
        limit = min(LEAF_CHUNKS, self._count - leaf * LEAF_CHUNKS)
        return len(touched | {index for index, _ in old[1]}) > OVERLAY_LIMIT and len(touched) < limit

    def _build(
        self,
        pending: dict[int, bytearray],
        old: dict[int, tuple[Ref | None, Overlay]],
        pages: dict[Ref, Leaf],
    ) -> list[bytes]:
        return [
            encode_update(self._update(leaf, changes, old[leaf], pages)) for leaf, changes in sorted(pending.items())
        ]

    def _update(
        self, leaf: int, pending: bytearray, old: tuple[Ref | None, Overlay], pages: dict[Ref, Leaf]
    ) -> LeafUpdate:
        ref, inherited = old
        limit = min(LEAF_CHUNKS, self._count - leaf * LEAF_CHUNKS)
        overlay = dict(inherited)
        changes = [
            (
                index,
                Entry(chunk_id, self._packs[pack], slot, packed & LENGTH_MASK, packed >> CODEC_SHIFT)
                if packed
                else None,
            )
            for index, chunk_id, pack, slot, packed in _PENDING.iter_unpack(pending)
        ]
        overlay.update(changes)
        covered = len({index for index, _ in changes}) >= limit
        page = None if ref is None or covered else pages.get(ref)
        if ref is not None and not covered and page is None:
            return LeafUpdate(leaf, OVERLAY, None, tuple(sorted(overlay.items())))
        entries = overlaid(dict(page.chunks()) if page is not None else {}, sorted(overlay.items()))
        entries = {index: entry for index, entry in entries.items() if index < limit}
        if not entries:
            return LeafUpdate(leaf, EMPTY)
        if ref is None and len(entries) <= OVERLAY_LIMIT:
            return LeafUpdate(leaf, OVERLAY, None, tuple(sorted(entries.items())))
        return LeafUpdate(leaf, PAGE, self._writer.add(encode_leaf(entries)))
