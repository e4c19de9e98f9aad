"""Scattered changes on a huge volume: what the chunk map alone costs in bytes, requests and time."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from argparse import Namespace
from typing import Any

from benchmarks._report import Row, size
from benchmarks._volume import parse_size
from orchestrator.blocks.offline import NAMESPACE
from orchestrator.repository.chunkmap import MapReader
from orchestrator.repository.keys import MasterKey
from orchestrator.repository.layout import ObjectRef
from orchestrator.repository.leafupdate import decode_updates
from orchestrator.repository.manifest import MapRoot, PointStats
from orchestrator.repository.mapbuilder import ShardBuilder
from orchestrator.repository.mapobject import MapObjectWriter
from orchestrator.repository.repository import Repository
from orchestrator.repository.store import CountingStore, open_store
from orchestrator.repository.upperpages import UpperBuilder
from orchestrator.repository.vault import Vault

CHUNK = 256 * 1024
CHANGED = 1 << 30
POINTS = 12


def run(args: Namespace) -> dict[str, Any]:
    """Change 1 GiB in chunks of 256 KiB at random, again and again, on `args.size` (default 16T)."""
    return asyncio.run(_measure(parse_size(args.size or "16T")))


async def _measure(volume_size: int) -> dict[str, Any]:
    store = CountingStore(await open_store(f"memory://{uuid.uuid4().hex}"))
    vault = await (await Repository.open_or_create(store, MasterKey.generate())).vault(NAMESPACE, create=True)
    source, root = random.Random(1), None
    found: list[dict[str, Any]] = []
    for number in range(POINTS):
        store.requests.clear()
        store.bytes_read = store.bytes_written = 0
        changed = sorted(source.sample(range(volume_size // CHUNK), CHANGED // CHUNK))
        started = time.perf_counter()
        root = await _point(vault, volume_size, changed, root, source)
        found.append(
            {
                "point": number,
                "seconds": round(time.perf_counter() - started, 3),
                "written": store.bytes_written,
                "read": store.bytes_read,
                "requests": store.requests.total(),
            }
        )
    return {"volume": volume_size, "changed": CHANGED, "points": found}


async def _point(
    vault: Vault, volume_size: int, changed: list[int], base: MapRoot | None, source: random.Random
) -> MapRoot:
    """Do what a mover's mapper and the commit do; the chunks themselves are made up."""
    intent, reader = str(uuid.uuid4()), MapReader(vault, base) if base is not None else None
    builder = ShardBuilder(vault, intent, volume_size=volume_size, chunk_size=CHUNK, base=reader)
    packs = [ObjectRef.new(intent) for _ in range(22)]
    for number, index in enumerate(changed):
        builder.set(index, source.randbytes(32), packs[number * 22 // len(changed)], number % 190 * 4096, CHUNK, 0)
        if number % 512 == 511:
            await builder.flush_below(index)
    shard = await builder.finish(PointStats())
    writer = MapObjectWriter(vault, intent)
    updates = list(decode_updates(shard.updates))
    root = await UpperBuilder(writer, reader, updates, volume_size=volume_size, chunk_size=CHUNK).build()
    await writer.finish()
    return root


def rows(figures: dict[str, Any]) -> list[Row]:
    """Return the table's lines."""
    points = figures["points"][1:]
    share = max(one["written"] for one in points) / figures["changed"]
    mean = sum(one["written"] for one in points) / len(points) / figures["changed"]
    requests = [one["requests"] for one in points]
    seconds = [one["seconds"] for one in points]
    told = f"{mean * 100:.2f} % on the average of {len(points)} points, {share * 100:.2f} % at most"
    what = f"{size(figures['changed'])} scattered over {size(figures['volume'])}"
    return [
        Row(f"map bytes of stored bytes, {what}", "<= 5 %", told, share <= 0.05),
        Row("requests for the map", "a few dozen", f"{min(requests)} to {max(requests)}", max(requests) <= 48),
        Row("seconds for the map", "", f"{min(seconds)} to {max(seconds)}"),
    ]
