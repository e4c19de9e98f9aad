"""Commit and remove recovery points.

The manifest is the commit, and its name is taken once: by a manifest, or by a *cancelled* record after which nobody
can commit there. What must never happen here: a manifest before all that it needs, a point that comes back after it
was removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import msgspec

from orchestrator import __version__
from orchestrator.clock import Clock, SystemClock
from orchestrator.errors import MESSAGE_LIMIT
from orchestrator.fence import Fence
from orchestrator.repository.chunkmap import MapReader
from orchestrator.repository.crypto import digest as digest_of
from orchestrator.repository.errors import (
    Damaged,
    ManifestMissing,
    ObjectConflict,
    ObjectMissing,
    PointCancelled,
    ShardsMissing,
)
from orchestrator.repository.intent import Intent, open_intent
from orchestrator.repository.layout import Kind
from orchestrator.repository.leafupdate import LeafUpdate, decode_updates
from orchestrator.repository.lock import locked
from orchestrator.repository.manifest import (
    Cancelled,
    Manifest,
    MapRoot,
    PointRecord,
    PointRef,
    PointStats,
    manifest_key,
    open_manifest,
)
from orchestrator.repository.mapobject import MapObjectWriter
from orchestrator.repository.plan import Plan, open_plan, shard_range
from orchestrator.repository.record import seal_record
from orchestrator.repository.shard import Shard, open_shard
from orchestrator.repository.upperpages import UpperBuilder
from orchestrator.repository.vault import Vault


def writer_version() -> str:
    """Return name and version of this program, for manifests."""
    return f"tidemark {__version__}"


async def commit(vault: Vault, intent_id: str, *, clock: Clock | None = None) -> PointRef:
    """Put the point's manifest, once every shard is there; idempotent, by anyone. Adopts a manifest that is there.

    Raises ShardsMissing, PointCancelled, ObjectMissing (no such intent or plan), Damaged.
    """
    intent = await open_intent(vault, intent_id)
    existing = await existing_point(vault, intent.manifest_key)
    if existing is not None:
        return existing
    plan = await open_plan(vault, intent_id)
    return await commit_planned(vault, intent, plan, clock=clock)


async def commit_planned(
    vault: Vault, intent: Intent, plan: Plan, *, shard: Shard | None = None, clock: Clock | None = None
) -> PointRef:
    """Do what `commit` does, for who has read intent and plan already: both are written once and stay true.

    `shard`: one that the caller has just put. That nobody committed meanwhile is settled by the put itself.
    """
    intent_id = intent.id
    _check_plan(vault, intent, plan)
    shards = await _shards(vault, intent_id, plan.shards, shard)
    writer, started = MapObjectWriter(vault, intent_id), time.perf_counter()
    root = await _build_map(vault, intent, plan, shards, writer)
    manifest = Manifest(
        record=_told(plan.record, shards),
        root=root,
        stats=_sum(shards, writer.bytes, root, time.perf_counter() - started),
        created=(clock or SystemClock()).now(),
        writer=writer_version(),
    )
    data = seal_record(vault, Kind.MANIFEST, intent.manifest_key, manifest)
    try:
        await vault.store.put_new(intent.manifest_key, data)
    except ObjectConflict:
        found = await existing_point(vault, intent.manifest_key)
        if found is None:
            raise PointCancelled(intent.manifest_key) from None
        return found
    return PointRef(intent.manifest_key, digest_of(data))


def _check_plan(vault: Vault, intent: Intent, plan: Plan) -> None:
    name = vault.names.plan(intent.id)
    if manifest_key(vault, plan.record) != intent.manifest_key:
        raise Damaged(name, "its point isn't the one that its intent commits to")
    if plan.base != intent.base:
        raise Damaged(name, "its base isn't the one that its intent protects")


async def _shards(vault: Vault, intent_id: str, count: int, known: Shard | None) -> list[Shard]:
    found = [
        known if known is not None and known.number == number else await open_shard(vault, intent_id, number)
        for number in range(count)
    ]
    missing = tuple(number for number, shard in enumerate(found) if shard is None)
    if missing:
        raise ShardsMissing(intent_id, missing)
    shards = [shard for shard in found if shard is not None]
    if len({shard.volume_size for shard in shards}) != 1:
        raise Damaged(vault.names.shards(intent_id), "the shards saw volumes of different size")
    return shards


async def _build_map(vault: Vault, intent: Intent, plan: Plan, shards: list[Shard], writer: MapObjectWriter) -> MapRoot:
    base = None
    if intent.base is not None and not all(shard.fallback for shard in shards):
        # The root was written into the intent: it is alive even if the base's manifest is gone by now.
        base = MapReader(vault, intent.roots[intent.points.index(intent.base)])
    volume_size, chunk_size = shards[0].volume_size, plan.record.chunk_size
    try:
        updates = await asyncio.to_thread(_all_updates, shards, volume_size, chunk_size)
        root = await UpperBuilder(writer, base, updates, volume_size=volume_size, chunk_size=chunk_size).build()
    except ValueError as error:
        raise Damaged(vault.names.shards(intent.id), str(error)) from error
    await writer.finish()
    return msgspec.structs.replace(root, held=await _held(vault, base, root, shards))


async def _held(vault: Vault, base: MapReader | None, root: MapRoot, shards: list[Shard]) -> int | None:
    """Return the bytes of chunks that aren't holes: the base's and what the shards made of them; None if unreadable.

    A shard that did without the base says what is there, not what is new, and an old base doesn't say: then the new
    map is counted, which costs reading it.
    """
    changed = sum(shard.stats.allocated for shard in shards)
    if base is None:
        return changed
    try:
        if base.root.held is None or any(shard.fallback or shard.uncounted for shard in shards):
            return await _count(MapReader(vault, root), 0)
        return base.root.held + changed - await _count(base, root.chunk_count)
    except (Damaged, ObjectMissing):
        return None  # a figure is not worth failing the point: verify tells of the damage


async def _count(found: MapReader, first: int) -> int:
    """Return the bytes of chunks from `first` on that aren't holes."""
    size, volume_size, total = found.root.chunk_size, found.root.volume_size, 0
    if first >= found.root.chunk_count:
        return 0
    async for batch in found.batches(first):
        total += sum(min(size, volume_size - index * size) for index, _ in batch)
    return total


def _told(record: PointRecord, shards: list[Shard]) -> PointRecord:
    """Return what the manifest says: a delta whose base couldn't be read is none, whatever was planned.

    Where only some shards had to do without it, the point still inherits the rest, and says so.
    """
    down = [shard for shard in shards if shard.fallback]
    if not down:
        return record
    message = "; ".join(filter(None, (record.message, down[0].message)))[:MESSAGE_LIMIT]
    record = msgspec.structs.replace(record, reason=record.reason or down[0].fallback, message=message)
    if len(down) < len(shards):
        return record
    return msgspec.structs.replace(record, actual_mode="full", parent=None, parent_base_id=None)


def _all_updates(shards: list[Shard], volume_size: int, chunk_size: int) -> list[LeafUpdate]:
    """Decode the shards' updates, each inside its own range."""
    count = -(-volume_size // chunk_size)
    updates: list[LeafUpdate] = []
    for number, shard in enumerate(shards):
        first, stop = shard_range(count, len(shards), number)
        for update in decode_updates(shard.updates):
            if not first // 1024 <= update.leaf < -(-stop // 1024):
                raise ValueError(f"shard {number} has an update of leaf {update.leaf}, which isn't its own")
            updates.append(update)
    return updates


def _sum(shards: list[Shard], map_bytes: int, root: MapRoot, seconds: float) -> PointStats:
    stats = PointStats(
        volume=root.volume_size, map_bytes=map_bytes, uploaded=map_bytes, seconds={"commit": round(seconds, 6)}
    )
    for shard in shards:
        stats = stats.plus(shard.stats)
    return msgspec.structs.replace(stats, allocated=root.held or 0)


async def existing_point(vault: Vault, key: str) -> PointRef | None:
    """Return the point committed at a manifest's name, None when there is none; PointCancelled."""
    try:
        _, ref = await open_manifest(vault, key)
    except ManifestMissing:
        return None
    return ref


async def cancel(vault: Vault, key: str, intent_id: str, *, why: str, clock: Clock | None = None) -> bool:
    """Make sure that nobody commits at `key` any more; False when a manifest was there first."""
    record = Cancelled(intent_id=intent_id, why=why, at=(clock or SystemClock()).now())
    try:
        await vault.store.put_new(key, seal_record(vault, Kind.CANCELLED, key, record))
    except ObjectConflict:
        try:
            await open_manifest(vault, key)
        except PointCancelled:
            return True
        except ManifestMissing:
            return await cancel(vault, key, intent_id, why=why, clock=clock)
        except Damaged:
            return False
        return False
    return True


async def remove(
    vault: Vault, ref: PointRef, fence: Fence, *, why: str = "removed", clock: Clock | None = None
) -> None:
    """Remove a point for good: its manifest goes, a cancelled record takes its place; idempotent.

    Written down first, so that maintenance completes it if this is cut off. A stopped writer of the same point that
    commits in between finds its manifest removed likewise. Packs go by maintenance. A damaged manifest is removed too.
    Under object lock the cancelled record is put over the manifest instead, in one step: see `lock`.
    """
    point_id = ref.key.rpartition("/")[2].partition("-")[2]
    marker = vault.names.removal(ref.key)
    record = Cancelled(intent_id=point_id, why=why, at=(clock or SystemClock()).now())
    store = locked(vault.store)
    if store is not None and not await _ended(vault, ref.key):
        fence.check()
        await store.put_over(ref.key, seal_record(vault, Kind.CANCELLED, ref.key, record))
    if store is not None and await store.head(marker) is None:
        # A delete of what isn't there would leave a marker of its own in a bucket with versions.
        return
    while not await _ended(vault, ref.key):
        fence.check()
        # An earlier try may have written it down; what it says doesn't matter.
        with contextlib.suppress(ObjectConflict):
            await vault.store.put_new(marker, seal_record(vault, Kind.REMOVING, marker, record))
        fence.check()
        await vault.store.delete(ref.key)
        await cancel(vault, ref.key, point_id, why=why, clock=clock)
    fence.check()
    await vault.store.delete(marker)


async def _ended(vault: Vault, key: str) -> bool:
    """Say whether a cancelled record stands at a manifest's name."""
    try:
        await open_manifest(vault, key)
    except PointCancelled:
        return True
    except (ManifestMissing, Damaged):
        return False
    return False
