"""Build the inner pages of a point's map from its shards' updates and the base's pages: the last step of a commit.

The inputs are the same for everybody who does it, so anyone may. Pages of the base that no update touches are shared.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.repository.chunkmap import MapReader
from orchestrator.repository.layout import FAN_OUT, LEAF_CHUNKS
from orchestrator.repository.leafupdate import OVERLAY, LeafUpdate
from orchestrator.repository.manifest import MapRoot
from orchestrator.repository.mapobject import MapObjectWriter
from orchestrator.repository.page import Inner, Overlay, Ref, encode_inner, levels_for

_BATCH = 16


class UpperBuilder:
    """Builds one map's inner pages, bottom up, level-1 pages of the base read some at a time."""

    def __init__(
        self,
        writer: MapObjectWriter,
        base: MapReader | None,
        updates: Sequence[LeafUpdate],
        *,
        volume_size: int,
        chunk_size: int,
    ) -> None:
        """Take all updates of a point, ascending by leaf."""
        self._writer, self._base = writer, base
        self._volume_size, self._chunk_size = volume_size, chunk_size
        self._count = -(-volume_size // chunk_size)
        self._leaves = -(-self._count // LEAF_CHUNKS)
        self._nodes: dict[int, list[LeafUpdate]] = {}
        for update in updates:
            if update.leaf >= self._leaves:
                raise ValueError(f"an update of leaf {update.leaf} of {self._leaves}")
            self._nodes.setdefault(update.leaf // FAN_OUT, []).append(update)

    async def build(self) -> MapRoot:
        """Write the pages that differ from the base's and return the new root."""
        levels = levels_for(self._count)
        root = MapRoot(self._volume_size, self._chunk_size, levels)
        if self._base is not None and not self._nodes and self._base.root.volume_size == self._volume_size:
            return self._base.root
        fresh = await self._level1()
        for level in range(2, levels + 1):
            fresh = await self._level(level, fresh)
        top = fresh[0] if 0 in fresh else (await self._shared(levels, [0])).get(0)
        return MapRoot(root.volume_size, root.chunk_size, levels, None if top is None else top.to_page())

    async def _shared(self, level: int, numbers: Sequence[int]) -> dict[int, Ref]:
        """Return the base's pages of a level that exist and lie inside its geometry."""
        if self._base is None or level > self._base.root.levels:
            return {}
        covered = -(-self._base.root.chunk_count // (LEAF_CHUNKS * FAN_OUT**level))
        return await self._base.node_refs(level, [number for number in numbers if number < covered])

    async def _level1(self) -> dict[int, Ref | None]:
        """Return the new level-1 pages: those with updates, and the last one when the volume got smaller."""
        touched = set(self._nodes)
        if self._base is not None and self._base.root.chunk_count > self._count and self._leaves:
            touched.add((self._leaves - 1) // FAN_OUT)
        fresh: dict[int, Ref | None] = {}
        order = sorted(touched)
        for start in range(0, len(order), _BATCH):
            some = order[start : start + _BATCH]
            refs = await self._shared(1, some)
            pages = {}
            if self._base is not None and refs:
                pages = dict(zip(refs, await self._base.inner(1, list(refs.values())), strict=True))
            for node in some:
                fresh[node] = self._page1(node, pages.get(node))
            await self._writer.put_full()
        return fresh

    def _page1(self, node: int, old: Inner | None) -> Ref | None:
        width = min(FAN_OUT, self._leaves - node * FAN_OUT)
        children: list[tuple[Ref | None, Overlay]] = [
            (None, []) if old is None else (old.child(at), old.overlay(at)) for at in range(width)
        ]
        for update in self._nodes.get(node, ()):
            at = update.leaf - node * FAN_OUT
            kept = children[at][0] if update.what == OVERLAY else update.ref
            children[at] = (kept, list(update.overlay))
        return self._write(1, children)

    async def _level(self, level: int, below: dict[int, Ref | None]) -> dict[int, Ref | None]:
        """Return the new pages of a level above new pages of the one below."""
        base_levels = 0 if self._base is None else self._base.root.levels
        touched = {number // FAN_OUT for number in below}
        shrunk = self._base is not None and self._base.root.chunk_count > self._count
        count_below = -(-self._leaves // FAN_OUT ** (level - 1))
        if level > base_levels:
            touched.add(0)
        if shrunk and count_below:
            touched.add((count_below - 1) // FAN_OUT)
        fresh: dict[int, Ref | None] = {}
        for node in sorted(touched):
            numbers = range(node * FAN_OUT, min((node + 1) * FAN_OUT, count_below))
            shared = await self._shared(level - 1, [number for number in numbers if number not in below])
            children = [below[n] if n in below else shared.get(n) for n in numbers]
            fresh[node] = self._write(level, [(ref, []) for ref in children])
        return fresh

    def _write(self, level: int, children: Sequence[tuple[Ref | None, Overlay]]) -> Ref | None:
        last = max((at for at, (ref, overlay) in enumerate(children) if ref is not None or overlay), default=-1)
        if last < 0:
            return None
        return self._writer.add(encode_inner(level, children[: last + 1]))
