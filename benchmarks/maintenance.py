"""Maintenance of a large repository: how long a mark takes, and how much memory.

The maps are real ones, written with the code that commits points: a whole volume (16 TiB unless `--size` says
otherwise), then points that each change chunks at random (1,000 in all, or TIDEMARK_BENCH_POINTS). The packs are only
named: what stands for them is an empty listing of the right length, since a mark reads none. Two processes: the second
one, which is measured, only maintains.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._report import Row, size
from benchmarks._volume import parse_size
from orchestrator.blocks.offline import NAMESPACE
from orchestrator.repository.chunkmap import MapReader
from orchestrator.repository.keys import MasterKey
from orchestrator.repository.layout import LEAF_CHUNKS, Kind, ObjectRef
from orchestrator.repository.leafupdate import FRESH, OVERLAY, PAGE, LeafUpdate
from orchestrator.repository.maintenance import plan_sweep
from orchestrator.repository.manifest import Manifest, MapRoot, PointRecord, PointStats
from orchestrator.repository.mapobject import MapObjectWriter
from orchestrator.repository.pack import Entry
from orchestrator.repository.page import LEAF, Overlay, Ref
from orchestrator.repository.record import seal_record
from orchestrator.repository.repository import Repository
from orchestrator.repository.store import ObjectInfo, Store, coalesce, open_store
from orchestrator.repository.upperpages import UpperBuilder
from orchestrator.repository.vault import Vault

CHUNK = 256 * 1024
PER_PACK = 184
"""Chunks of a pack of 48 MiB."""
FRAME = CHUNK + 16
SLOTS = -(-FRAME // 64)
POINTS = int(os.environ.get("TIDEMARK_BENCH_POINTS", "1000"))
CHANGED = 64
"""Chunks that a point changes, 16 MiB of 16 TiB: scattered, so that each touches another page."""
_ID = bytes(range(32))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Build the maps, then plan a sweep in a process of its own; `--size` is the volume's."""
    volume = parse_size(args.size or "16T")
    scratch = args.dir or ("/dev/shm" if Path("/dev/shm").is_dir() else None)
    with tempfile.TemporaryDirectory(prefix="tidemark-maintenance-", dir=scratch) as folder:
        started = time.perf_counter()
        packs, pages = asyncio.run(_build(Path(folder), volume))
        built = time.perf_counter() - started
        command = [sys.executable, "-m", "benchmarks.maintenance", folder, str(packs)]
        # Its own temporary files lie on disk, as a mover's do.
        said = subprocess.run(command, check=True, capture_output=True, text=True)
        figures: dict[str, Any] = json.loads(said.stdout)
        return {
            "volume": volume,
            "points": POINTS,
            "chunksChangedPerPoint": CHANGED,
            "built": round(built, 1),
            "pagesWritten": pages,
            **figures,
        }


def rows(figures: dict[str, Any]) -> list[Row]:
    """Return the table's lines."""
    volume, points, memory = size(figures["volume"]), figures["points"], figures["peakMemory"]
    pages, reads, written = figures["pages"], figures["pagesRead"], figures["pagesWritten"]
    return [
        Row(f"mark {points} points of {volume}", "minutes", f"{figures['seconds'] / 60:.1f} min"),
        Row("the same, processor time", "", f"{figures['processorSeconds'] / 60:.1f} min"),
        Row("peak memory", "<= 256 MiB", size(memory), memory <= 256 << 20),
        Row(
            "pages that the points reach, and pages read",
            "each once",
            f"{written} ({size(figures['mapBytes'])}), {reads}",
            pages == reads == written,
        ),
        Row("requests for pages", "", f"{figures['pageRequests']}, {size(figures['pageBytes'])}"),
        Row("packs judged", "", f"{figures['packs']}"),
        Row("writing those maps first", "", f"{figures['built'] / 60:.1f} min"),
    ]


class _Writer(MapObjectWriter):
    """Counts the pages that it writes."""

    pages = 0

    def add(self, plain: bytes) -> Ref:
        _Writer.pages += 1
        return super().add(plain)


async def _build(folder: Path, size: int) -> tuple[int, int]:
    store = await open_store(f"file://{folder}/repository")
    vault = await (await Repository.open_or_create(store, MasterKey(bytes(32)))).vault(NAMESPACE, create=True)
    intent, count = str(uuid.UUID(int=1)), size // CHUNK
    writer, numbers = _Writer(vault, intent), random.Random(1)
    updates = []
    for leaf in range(-(-count // LEAF_CHUNKS)):
        first = leaf * LEAF_CHUNKS
        updates.append(LeafUpdate(leaf, PAGE, writer.add(_leaf(first, min(LEAF_CHUNKS, count - first)))))
        await writer.put_full()
    root = await UpperBuilder(writer, None, updates, volume_size=size, chunk_size=CHUNK).build()
    await writer.finish()
    await _manifest(vault, intent, 1, root)
    for number in range(2, POINTS + 1):
        intent = str(uuid.UUID(int=number))
        writer, base = _Writer(vault, intent), MapReader(vault, root)
        root = await _delta(writer, base, numbers, number, size)
        await writer.finish()
        await _manifest(vault, intent, number, root)
    return -(-count // PER_PACK) + POINTS, _Writer.pages


def _leaf(first: int, count: int) -> bytes:
    """Write a full leaf as `page.encode_leaf` does, from arrays: 67 million entries one by one would take minutes."""
    indexes = np.arange(first, first + count, dtype=np.uint64)
    packs, inside = np.divmod(indexes, np.uint64(PER_PACK))
    numbers = packs - packs[0]
    rows = np.zeros(count, dtype=[("id", "V32"), ("word", "<u8")])
    rows["id"] = np.void(_ID)
    slots = np.uint64(1) + inside * np.uint64(SLOTS)
    rows["word"] = numbers | slots << np.uint64(16) | np.uint64(FRAME) << np.uint64(40)
    uses = np.bincount(numbers.astype(np.int64))
    table = b"".join(
        _pack(1, int(packs[0]) + at).to_bytes() + int(used).to_bytes(2, "little") for at, used in enumerate(uses)
    )
    head = struct.pack("<BBHHH", LEAF, 0, count, len(uses), 0)
    return b"".join((head, table, ((1 << count) - 1).to_bytes(LEAF_CHUNKS // 8, "little"), rows.tobytes()))


def _pack(intent: int, number: int) -> ObjectRef:
    # The bytes by which packs are told apart must differ at the front, as random ones do.
    return ObjectRef(intent.to_bytes(16, "big"), (number * 0x9E3779B97F4A7C15 % (1 << 128)).to_bytes(16, "little"))


async def _delta(writer: MapObjectWriter, base: MapReader, numbers: random.Random, number: int, size: int) -> MapRoot:
    """Change scattered chunks, as overlays on the leaves, which is what a writer does until there are many."""
    changed: dict[int, Overlay] = {}
    pack = _pack(number, number)
    for slot, index in enumerate(sorted(numbers.sample(range(size // CHUNK), CHANGED))):
        entry = Entry(_ID, pack, 1 + slot * (SLOTS), FRAME, 0)
        changed.setdefault(index // LEAF_CHUNKS, []).append((index % LEAF_CHUNKS, entry))
    updates = []
    for leaf, (ref, old) in (await base.children(list(changed))).items():
        merged = tuple(sorted({**dict(old), **dict(changed[leaf])}.items()))
        updates.append(LeafUpdate(leaf, OVERLAY if ref is not None else FRESH, None, merged))
    return await UpperBuilder(writer, base, sorted(updates), volume_size=size, chunk_size=CHUNK).build()


async def _manifest(vault: Vault, intent: str, sequence: int, root: MapRoot) -> None:
    now = datetime.now(UTC)
    record = PointRecord(
        point_id=intent,
        point_name=f"p-{sequence}",
        lineage="ab12",
        sequence=sequence,
        namespace=NAMESPACE,
        pvc_name="big",
        pvc_uid="pvc",
        snapshot_time=now,
        snapshot_time_ns=0,
        driver="none",
        volume_handle="big",
        snapshot_handle="none",
        base_id="none",
        requested_mode="full",
        actual_mode="full",
        volume_size=root.volume_size,
        chunk_size=CHUNK,
    )
    name = vault.names.point(record.lineage, sequence, intent)
    manifest = Manifest(record=record, root=root, stats=PointStats(), created=now, writer="benchmark")
    await vault.store.put_new(name, seal_record(vault, Kind.MANIFEST, name, manifest))


class _WithPacks:
    """A store in whose listing packs appear that aren't there."""

    def __init__(self, inner: Store, vault: Vault, packs: int) -> None:
        self._inner, self._vault, self._packs = inner, vault, packs
        self.url = inner.url
        self.seen: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[Any]:
        """Count pages, and requests as a bucket's store would make them."""
        joined = coalesce(ranges)
        self.seen["pagesRead"] += len(ranges)
        self.seen["pageRequests"] += len(joined)
        self.seen["pageBytes"] += sum(length for _, length, _ in joined)
        return await self._inner.get_ranges(key, ranges)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """List; packs are made up."""
        if prefix != self._vault.names.packs:
            async for found in self._inner.list(prefix):
                yield found
            return
        now = datetime.now(UTC)
        size = 64 + PER_PACK * SLOTS * 64 + PER_PACK * 48 + 32
        for number in range(self._packs - POINTS):
            yield ObjectInfo(prefix + _pack(1, number).path, size, now)
        for number in range(2, POINTS + 1):
            yield ObjectInfo(prefix + _pack(number, number).path, 64 + CHANGED * SLOTS * 64, now)


async def _maintain(folder: Path, packs: int) -> dict[str, Any]:
    inner = await open_store(f"file://{folder}/repository")
    plain = await (await Repository.open(inner, MasterKey(bytes(32)))).vault(NAMESPACE)
    store: Any = _WithPacks(inner, plain, packs)
    vault = Vault(store, plain.keys)
    started, used = time.perf_counter(), time.process_time()
    plan = await plan_sweep(vault, now=datetime.now(UTC), grace=timedelta(days=1), intent_age=timedelta(days=7))
    seconds, used = time.perf_counter() - started, time.process_time() - used
    size = sum([info.size async for info in inner.list(plain.names.maps)])
    return {
        "pages": plan.pages,
        "mapBytes": size,
        "packs": packs,
        "unreached": plan.candidate_count,
        "packsToCompact": len(plan.compact),
        "seconds": round(seconds, 1),
        "processorSeconds": round(used, 1),
        **store.seen,
        "peakMemory": _peak(),
    }


def _peak() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    json.dump(asyncio.run(_maintain(Path(sys.argv[1]), int(sys.argv[2]))), sys.stdout)
