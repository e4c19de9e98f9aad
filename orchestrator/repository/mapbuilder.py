"""Build a point's chunk map: copy-on-write on a base, or from empty."""

from __future__ import annotations

from orchestrator.repository.chunkmap import MapReader
from orchestrator.repository.layout import ObjectRef
from orchestrator.repository.manifest import PointStats
from orchestrator.repository.shard import Shard
from orchestrator.repository.vault import Vault


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

    @property
    def range(self) -> tuple[int, int]:
        """Return the chunks [first, stop) of this shard."""
        raise AssertionError

    def set(self, index: int, chunk_id: bytes, pack: ObjectRef, slot: int, length: int, codec: int) -> None:
        """Say where a chunk is. The pack may still be on its way; `finish` must wait for it."""

    def clear(self, index: int) -> None:
        """Say that a chunk is zero: a hole."""

    async def flush_below(self, index: int) -> None:
        """Write the pages of all leaves wholly below `index`: nothing there may be set any more."""

    async def finish(self, stats: PointStats) -> Shard:
        """Write the remaining pages and return the shard, not put yet: `shard.put_shard` once all packs are up."""
        raise AssertionError
