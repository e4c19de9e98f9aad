"""A finished shard: the leaves that one mover built, and what it cost. First wins, a later pod adopts it."""

from __future__ import annotations

import msgspec

from orchestrator.repository.errors import ObjectConflict, ObjectMissing
from orchestrator.repository.layout import Kind
from orchestrator.repository.manifest import PointStats
from orchestrator.repository.record import open_record, seal_record
from orchestrator.repository.vault import Vault


class _ShardDocument(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    number: int
    volume_size: int
    stats: PointStats
    fallback: str = ""
    message: str = ""
    uncounted: bool = False


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """One shard's part of the chunk map. `updates` is what `mapbuilder` made, opaque to others."""

    number: int
    volume_size: int
    """Bytes of the device as the mover saw it; all shards of a point must agree."""
    stats: PointStats
    updates: bytes
    fallback: str = ""
    """Reason of a delta's shard that was read whole without the base, because the base could not be read. Such a shard
    says of each of its leaves what is there: nothing is inherited."""
    message: str = ""
    uncounted: bool = False
    """What the base held in its place could not be read, so that `stats.allocated` doesn't say how much more it is."""


async def put_shard(vault: Vault, intent_id: str, shard: Shard) -> Shard:
    """Say that a shard is finished (its packs and pages are in the store) and return what counts: the first put."""
    name = vault.names.shard(intent_id, shard.number)
    document = _ShardDocument(
        number=shard.number,
        volume_size=shard.volume_size,
        stats=shard.stats,
        fallback=shard.fallback,
        message=shard.message,
        uncounted=shard.uncounted,
    )
    try:
        await vault.store.put_new(name, seal_record(vault, Kind.SHARD, name, document, shard.updates))
    except ObjectConflict:
        stored = await open_shard(vault, intent_id, shard.number)
        if stored is None:
            raise
        return stored
    return shard


async def open_shard(vault: Vault, intent_id: str, number: int) -> Shard | None:
    """Read a finished shard, None when nobody finished it yet; Damaged."""
    name = vault.names.shard(intent_id, number)
    try:
        data = await vault.store.get(name)
    except ObjectMissing:
        return None
    document, updates = open_record(vault, Kind.SHARD, name, data, _ShardDocument)
    return Shard(
        number=document.number,
        volume_size=document.volume_size,
        stats=document.stats,
        updates=updates,
        fallback=document.fallback,
        message=document.message,
        uncounted=document.uncounted,
    )
