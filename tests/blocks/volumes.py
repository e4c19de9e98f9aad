"""Volumes to back up, repositories to put them in, and the world's state compared afterwards."""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.blocks.backup import CopyOptions, backup
from orchestrator.blocks.offline import lineage_of
from orchestrator.blocks.readback import read_back
from orchestrator.blocks.restore import write_point
from orchestrator.blocks.tally import Tallies, Tally
from orchestrator.blocks.target import Target
from orchestrator.extents import ChunkSet
from orchestrator.repository.intent import Intent, put_intent
from orchestrator.repository.keys import MasterKey, NamespaceIdentity
from orchestrator.repository.manifest import (
    Mode,
    PointRecord,
    PointRef,
    PointStats,
    manifest_key,
    open_manifest,
)
from orchestrator.repository.plan import Plan, put_plan
from orchestrator.repository.repository import Repository
from orchestrator.repository.store import Store, open_store
from orchestrator.repository.vault import Vault

KIB = 1024
CHUNK = 64 * KIB
MASTER = MasterKey.from_bytes(bytes(range(32)))
NAMESPACE = NamespaceIdentity(cluster_id="cluster", uid="namespace-uid", name="shop")


async def vault_at(folder: Path) -> Vault:
    """Open or make the repository in `folder`; return its test namespace's vault."""
    return await vault_on(await open_store(f"file://{folder}"))


async def vault_on(store: Store) -> Vault:
    """The same on a store of the caller's."""
    repository = await Repository.open_or_create(store, MASTER)
    return await repository.vault(NAMESPACE, create=True)


class Volume:
    """A file that stands for a volume, with reproducible content."""

    def __init__(self, path: Path, size: int, seed: int = 0) -> None:
        self.path = path
        self.random = random.Random(seed)
        self.resize(size)

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def resize(self, size: int) -> None:
        with self.path.open("ab") as file:
            file.truncate(size)

    def write(self, offset: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def noise(self, offset: int, length: int) -> None:
        """Write incompressible bytes."""
        self.write(offset, self.random.randbytes(length))

    def text(self, offset: int, length: int) -> None:
        """Write compressible bytes that differ from place to place."""
        line = f"{offset} {self.random.random()} the quick brown fox\n".encode()
        self.write(offset, (line * (length // len(line) + 1))[:length])

    def scatter(self, share: float) -> None:
        """Fill about `share` of the volume, in stretches of 1 to 9 chunks, half of it compressible."""
        for start in range(0, self.size, 10 * CHUNK):
            length = min(self.random.randrange(1, 10) * CHUNK, self.size - start)
            if self.random.random() < share * 2:
                (self.noise if self.random.random() < 0.5 else self.text)(start, length)

    def sha256(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Point:
    """What a backup came to."""

    id: str
    ref: PointRef
    stats: PointStats
    tally: Tally


def _size(path: Path) -> int:
    return path.stat().st_size


_sequence = iter(range(1, 1 << 30))


async def announce(
    vault: Vault,
    volume: Path,
    ranges: Iterable[tuple[int, int]] | None,
    *,
    mode: Mode = "full",
    base: PointRef | None = None,
    chunk_size: int = CHUNK,
    shards: int = 1,
    size: int | None = None,
) -> str:
    """Put intent and plan; `ranges` are bytes (None: all). Return the intent's id."""
    size = _size(volume) if size is None else size
    chunks = ChunkSet(size, chunk_size)
    for offset, length in [(0, size)] if ranges is None else ranges:
        chunks.add_range(offset, length)
    now = datetime(2026, 3, 1, tzinfo=UTC)
    record = PointRecord(
        point_id=str(uuid.uuid4()),
        point_name="point",
        lineage=lineage_of("test", "volume"),
        sequence=next(_sequence),
        namespace=NAMESPACE,
        pvc_name="data",
        pvc_uid="pvc-uid",
        snapshot_time=now,
        snapshot_time_ns=0,
        driver="test",
        volume_handle="volume",
        snapshot_handle="snapshot",
        base_id="snapshot",
        requested_mode=mode,
        actual_mode=mode,
        parent=base,
        volume_size=size,
        chunk_size=chunk_size,
    )
    inherits, compares = (base, None) if mode == "delta" else (None, base)
    intent = Intent(
        id=record.point_id,
        base=inherits,
        compare=compares,
        manifest_key=manifest_key(vault, record),
        lineage=record.lineage,
        created=now,
    )
    await put_intent(vault, intent)
    plan = Plan(record=record, base=inherits, compare=compares, mode=mode, bits=chunks.to_bytes(), shards=shards)
    await put_plan(vault, record.point_id, plan)
    return record.point_id


async def run(vault: Vault, intent_id: str, volume: Path, *, readers: int = 3, pack_bytes: int = 4 << 20) -> Point:
    """Run a planned backup with one shard to its commit."""
    tallies = Tallies()
    ended = await backup(
        vault, intent_id, volume, options=CopyOptions(readers=readers, pack_bytes=pack_bytes), tallies=tallies
    )
    ref = ended if isinstance(ended, PointRef) else ended.point
    assert ref is not None
    manifest, _ = await open_manifest(vault, ref.key, digest=ref.digest)
    return Point(intent_id, ref, manifest.stats, tallies.sum())


async def take(
    vault: Vault,
    volume: Path,
    ranges: Iterable[tuple[int, int]] | None = None,
    *,
    mode: Mode = "full",
    base: Point | None = None,
    chunk_size: int = CHUNK,
    size: int | None = None,
    pack_bytes: int = 4 << 20,
) -> Point:
    """Plan and run a backup; `size` where the file system doesn't know it (devices)."""
    intent_id = await announce(
        vault, volume, ranges, mode=mode, base=base.ref if base else None, chunk_size=chunk_size, size=size
    )
    return await run(vault, intent_id, volume, pack_bytes=pack_bytes)


async def give_back(vault: Vault, point: Point | PointRef, to: Path, *, sha256: bool = True) -> str:
    """Restore into a new file and read it back; return the SHA-256."""
    ref = point.ref if isinstance(point, Point) else point
    manifest, _ = await open_manifest(vault, ref.key, digest=ref.digest)
    with Target.create(to, manifest.root.volume_size) as target:
        await write_point(vault, manifest, target)
    return await read_back(vault, manifest, str(to), known_zero=True, sha256=sha256)
