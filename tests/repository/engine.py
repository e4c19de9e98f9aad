"""A minimal, single-threaded copy and restore: just enough to exercise the format. The real engine is `blocks/`."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from orchestrator.extents import ChunkSet
from orchestrator.repository.chunkmap import MapReader
from orchestrator.repository.compression import compress
from orchestrator.repository.damage import load_damage
from orchestrator.repository.intent import Intent, open_intent, put_intent
from orchestrator.repository.keys import MasterKey, NamespaceIdentity
from orchestrator.repository.layout import ObjectRef
from orchestrator.repository.manifest import PointRecord, PointRef, PointStats, manifest_key, open_manifest
from orchestrator.repository.mapbuilder import ShardBuilder
from orchestrator.repository.pack import Entry, PackBuilder
from orchestrator.repository.packreader import PackReader
from orchestrator.repository.plan import Plan, open_plan, put_plan
from orchestrator.repository.point import commit
from orchestrator.repository.repository import Repository
from orchestrator.repository.salvage import salvage
from orchestrator.repository.shard import open_shard, put_shard
from orchestrator.repository.store import Store
from orchestrator.repository.vault import Vault

CHUNK = 64 * 1024
NAMESPACE = NamespaceIdentity("cluster-1", "ns-uid-1", "shop")
START = datetime(2026, 1, 1, tzinfo=UTC)
PACK = 4 * 1024 * 1024


class FixedClock:
    """A clock that a test sets."""

    def __init__(self, now: datetime = START) -> None:
        self.instant = now

    def now(self) -> datetime:
        return self.instant

    def monotonic(self) -> float:
        return self.instant.timestamp()

    def advance(self, step: timedelta) -> None:
        self.instant += step


async def new_vault(store: Store, master: MasterKey | None = None) -> Vault:
    """Make a repository with one namespace."""
    repository = await Repository.open_or_create(store, master or MasterKey(bytes(range(32))))
    return await repository.vault(NAMESPACE, create=True)


def point_record(
    *,
    sequence: int,
    size: int,
    point_id: str | None = None,
    chunk_size: int = CHUNK,
    mode: str = "full",
    parent: PointRef | None = None,
) -> PointRecord:
    """Describe a point."""
    return PointRecord(
        point_id=point_id or str(uuid.uuid4()),
        point_name=f"p-{sequence}",
        lineage="ab12",
        sequence=sequence,
        namespace=NAMESPACE,
        pvc_name="db",
        pvc_uid="pvc-uid",
        snapshot_time=START + timedelta(hours=sequence),
        snapshot_time_ns=0,
        driver="sandbox.csi.tidemark.dev",
        volume_handle="vol",
        snapshot_handle=f"snap-{sequence}",
        base_id=f"snap-{sequence}",
        requested_mode=mode,  # type: ignore[arg-type]
        actual_mode=mode,  # type: ignore[arg-type]
        parent=parent,
        volume_size=size,
        chunk_size=chunk_size,
    )


async def announce(
    vault: Vault,
    record: PointRecord,
    touched: Iterable[int],
    *,
    base: PointRef | None = None,
    compare: PointRef | None = None,
    shards: int = 1,
) -> str:
    """Put intent and plan; return the intent's id."""
    intent = Intent(
        id=record.point_id,
        base=base,
        compare=compare,
        manifest_key=manifest_key(vault, record),
        lineage=record.lineage,
        created=START,
    )
    await put_intent(vault, intent)
    bits = ChunkSet(record.volume_size, record.chunk_size)
    for index in touched:
        bits.add_chunks(index, index + 1)
    plan = Plan(record=record, base=base, compare=compare, mode=record.actual_mode, bits=bits.to_bytes(), shards=shards)
    await put_plan(vault, record.point_id, plan)
    return record.point_id


async def copy(vault: Vault, intent_id: str, volume: bytes, *, pack_size: int = PACK) -> PointRef:
    """Copy every shard of a plan from `volume` and commit, going on where an earlier try stopped."""
    plan = await open_plan(vault, intent_id)
    for number in range(plan.shards):
        if await open_shard(vault, intent_id, number) is None:
            await copy_shard(vault, intent_id, plan, number, volume, pack_size=pack_size)
    return await commit(vault, intent_id)


async def copy_shard(
    vault: Vault, intent_id: str, plan: Plan, number: int, volume: bytes, *, pack_size: int = PACK
) -> None:
    """Copy one shard."""
    intent = await open_intent(vault, intent_id)
    size = plan.record.chunk_size
    base = compare = None
    damage = await load_damage(vault)
    if intent.base is not None:
        base = MapReader(vault, intent.roots[intent.points.index(intent.base)], avoid=damage)
    if intent.compare is not None:
        compare = MapReader(vault, intent.roots[intent.points.index(intent.compare)], avoid=damage)
    known = base or compare
    stored = await salvage(vault, intent_id)
    builder = ShardBuilder(
        vault, intent_id, volume_size=len(volume), chunk_size=size, base=base, number=number, shards=plan.shards
    )
    pack: PackBuilder | None = None
    uploaded = 0
    for first, stop in plan.chunks().runs(*builder.range):
        before = await known.lookup(range(first, stop)) if known is not None else {}
        for index in range(first, stop):
            data = volume[index * size : (index + 1) * size]
            if not data.strip(b"\0"):
                builder.clear(index)
                continue
            chunk_id = vault.keys.chunk_id(data)
            old = stored.get(index)
            if old is None or old.id != chunk_id:
                old = before.get(index)
            if old is not None and old.id == chunk_id:
                builder.set(index, *old)
                continue
            codec, packed = compress(data)
            while True:
                if pack is None:
                    pack = PackBuilder(vault, intent_id, bytearray(pack_size))
                placed = pack.add(index, chunk_id, packed, codec)
                if placed is not None:
                    break
                await vault.store.put_new(pack.name, pack.finish())
                pack = None
            builder.set(index, chunk_id, placed.pack, placed.slot, placed.length, codec)
            uploaded += placed.length
        await builder.flush_below(stop)
    if pack is not None and pack.count:
        await vault.store.put_new(pack.name, pack.finish())
    shard = await builder.finish(PointStats(uploaded=uploaded))
    await put_shard(vault, intent_id, shard)


async def backup(
    vault: Vault,
    volume: bytes,
    *,
    sequence: int,
    touched: Iterable[int] | None = None,
    base: PointRef | None = None,
    compare: PointRef | None = None,
    shards: int = 1,
    chunk_size: int = CHUNK,
    pack_size: int = PACK,
) -> PointRef:
    """Make one point of a volume."""
    mode = "delta" if base else "full"
    record = point_record(sequence=sequence, size=len(volume), chunk_size=chunk_size, mode=mode, parent=base or compare)
    every = range(-(-len(volume) // chunk_size))
    intent_id = await announce(
        vault, record, every if touched is None else touched, base=base, compare=compare, shards=shards
    )
    return await copy(vault, intent_id, volume, pack_size=pack_size)


async def restore(vault: Vault, ref: PointRef) -> bytes:
    """Read a point back, everything checked."""
    manifest, _ = await open_manifest(vault, ref.key, digest=ref.digest)
    root = manifest.root
    target = bytearray(root.volume_size)
    reader = PackReader(vault, root.chunk_size)
    async for batch in MapReader(vault, root).batches():
        by_pack: dict[ObjectRef, list[tuple[int, Entry]]] = {}
        for index, entry in batch:
            by_pack.setdefault(entry.pack, []).append((index, entry))
        sealed = [
            (index, piece)
            for pack, members in by_pack.items()
            for (index, _), piece in zip(members, await reader.fetch(pack, [e for _, e in members]), strict=True)
        ]
        for index, piece in sealed:
            data = reader.open(piece)
            start = index * root.chunk_size
            data = data[: root.volume_size - start]
            target[start : start + len(data)] = data
    return bytes(target)
