"""Chunks of other volumes' points, remembered so that a copy doesn't store them again.

It only saves room: what can't be read, or doesn't fit, is stored once more.
"""

from __future__ import annotations

import asyncio

import msgspec

from orchestrator.blocks.equal import EqualChunks
from orchestrator.repository import neighbours
from orchestrator.repository.damage import DamageIndex
from orchestrator.repository.manifest import MapRoot, PointRef
from orchestrator.repository.vault import Vault


class Others(msgspec.Struct, frozen=True):
    """Points of other volumes whose chunks may be referred to: the intent names them."""

    points: list[tuple[PointRef, MapRoot]]
    damage: DamageIndex

    @property
    def count(self) -> int:
        """Return about how many chunks will be remembered."""
        return min(sum(neighbours.chunks_of(root) for _, root in self.points), neighbours.ENTRIES)

    async def remember(self, vault: Vault, equal: EqualChunks) -> None:
        """Put their chunks into the table, until they take half of it."""
        left = neighbours.ENTRIES
        for ref, root in self.points:
            async for batch in neighbours.entries(vault, ref, root, self.damage):
                await asyncio.to_thread(equal.add_all, batch)
                left -= len(batch)
                if left <= 0:
                    return
