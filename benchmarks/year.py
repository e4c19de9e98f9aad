"""A year of a volume that changes: how much is stored of what is dead.

Every day 1 % of the blocks is rewritten at random, a point is made, all but the newest 14 are removed and maintenance
runs: the code of a mover, in a small repository. What lives is what the kept points reach: their chunks, each once,
and the map pages and manifests that say where they are.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks._report import Row, size
from benchmarks._volume import parse_size
from orchestrator.blocks.offline import NAMESPACE, make_point, point_name
from orchestrator.blocks.restore import write_point
from orchestrator.blocks.target import Target
from orchestrator.fence import OpenFence
from orchestrator.repository.keys import MasterKey
from orchestrator.repository.liveness import LiveChunks, length_of
from orchestrator.repository.maintenance import plan_sweep, sweep
from orchestrator.repository.manifest import PointRef, open_manifest
from orchestrator.repository.marking import Marking
from orchestrator.repository.pack import slots_of
from orchestrator.repository.partitions import COUNT
from orchestrator.repository.point import remove
from orchestrator.repository.repository import Repository
from orchestrator.repository.store import CountingStore, open_store
from orchestrator.repository.vault import Vault

BLOCK = 64 * 1024
KEEP, SHARE = 14, 0.01


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Simulate; `--size` is the volume's (default 256M); days by `--days` where the caller has it (default 365)."""
    volume, days = parse_size(args.size or "256M"), int(getattr(args, "days", None) or 365)
    scratch = args.dir or ("/dev/shm" if Path("/dev/shm").is_dir() else None)
    with tempfile.TemporaryDirectory(prefix="tidemark-year-", dir=scratch) as folder:
        return asyncio.run(_year(Path(folder), volume, days))


def rows(figures: dict[str, Any]) -> list[Row]:
    """Return the table's lines."""
    most, mean = figures["storedPerLiveMostInSecondHalf"], figures["storedPerLiveMeanInSecondHalf"]
    gets, most_gets = figures.get("restoreGets"), 20 + 25 * figures["volume"] / 2**30
    what = f"{figures['days']} days, 1 % a day at random, keep {KEEP}, {size(figures['volume'])}"
    return [
        Row(f"stored, of what lives: {what}; the most in the second half", "<= 1.5", f"{most}", most <= 1.5),
        Row("the same, on average", "", f"{mean}"),
        Row("the same, at the end", "", f"{figures['storedPerLiveAtTheEnd']}"),
        Row("bytes compaction moves a day, of the volume", "", f"{100 * figures['bytesMovedPerDayOfVolume']:.2f} %"),
        Row(
            "GETs of a restore at the end", "<= 25 per GiB + 20", f"{gets}", None if gets is None else gets <= most_gets
        ),
        Row("one maintenance run", "", f"{figures['maintenanceSecondsPerRun']} s"),
    ]


async def _year(folder: Path, size: int, days: int) -> dict[str, Any]:
    store = await open_store(f"file://{folder}/repository")
    vault = await (await Repository.open_or_create(store, MasterKey(bytes(32)))).vault(NAMESPACE, create=True)
    numbers, volume = random.Random(1), folder / "volume"
    with volume.open("wb") as file:
        for _ in range(size // BLOCK):
            file.write(numbers.randbytes(BLOCK))
    points = [(await make_point(vault, volume, chunk_size=BLOCK)).ref]
    begun, ratios, moved, seconds = time.perf_counter(), list[float](), 0, 0.0
    for day in range(1, days + 1):
        lines = _change(volume, size, numbers)
        base = point_name(points[-1].key)
        points.append((await make_point(vault, volume, base=base, extents=lines)).ref)
        for old in points[:-KEEP]:
            await remove(vault, old, OpenFence())
        points = points[-KEEP:]
        started = time.perf_counter()
        now = datetime.now(UTC) + timedelta(days=day, minutes=1)
        plan = await plan_sweep(vault, now=now, grace=timedelta(days=1), intent_age=timedelta(days=7))
        moved += (await sweep(vault, plan, OpenFence())).compacted.written
        seconds += time.perf_counter() - started
        if day % 5 == 0 or day == days:
            live, stored = await _live(vault, points, folder), await _stored(vault)
            ratios.append(stored / live)
    gets = await _restorable(vault, points[-1], volume)
    late = ratios[len(ratios) // 2 :]
    return {
        "volume": size,
        "days": days,
        "stored": stored,
        "live": live,
        "storedPerLiveAtTheEnd": round(ratios[-1], 3),
        "storedPerLiveMostInSecondHalf": round(max(late), 3),
        "storedPerLiveMeanInSecondHalf": round(sum(late) / len(late), 3),
        "bytesMovedPerDayOfVolume": round(moved / days / size, 5),
        "maintenanceSecondsPerRun": round(seconds / days, 3),
        "restoreGets": gets,
        "seconds": round(time.perf_counter() - begun, 1),
    }


def _change(volume: Path, size: int, numbers: random.Random) -> list[str]:
    lines = []
    with volume.open("r+b") as file:
        for block in numbers.sample(range(size // BLOCK), max(1, round(size // BLOCK * SHARE))):
            file.seek(block * BLOCK)
            file.write(numbers.randbytes(BLOCK))
            lines.append(f"{block * BLOCK} {BLOCK}")
    return lines


async def _live(vault: Vault, points: list[PointRef], folder: Path) -> int:
    """Return the bytes that the points reach."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        marking, chunks, pages = Marking(vault, Path(name)), LiveChunks(Path(name), "live"), [0]
        for ref in points:
            marking.add_root((await open_manifest(vault, ref.key))[0].root)

        def leaf(ref: Any, page: Any) -> None:
            pages[0] += ref.length
            chunks.leaf(ref, page)

        def inner(ref: Any, page: Any) -> None:
            pages[0] += ref.length
            chunks.inner(ref, page)

        await marking.run(on_leaf=leaf, on_inner=inner)
        live = sum(
            slots_of(length_of(word)) * 64
            for number in range(COUNT)
            for _, places in chunks.packs(number)
            for word in places.tolist()
        )
        return live + pages[0]


async def _stored(vault: Vault) -> int:
    return sum([info.size async for info in vault.store.list("")])


async def _restorable(vault: Vault, ref: PointRef, volume: Path) -> int:
    """Restore the newest point and return how many GETs that takes; raise unless it is the volume, byte by byte."""
    counting = CountingStore(vault.store)
    manifest, _ = await open_manifest(Vault(counting, vault.keys), ref.key)
    with Target.create(volume.with_suffix(".back"), manifest.root.volume_size) as target:
        await write_point(Vault(counting, vault.keys), manifest, target)
    with volume.open("rb") as was, volume.with_suffix(".back").open("rb") as back:
        while block := was.read(1 << 20):
            if block != back.read(1 << 20):
                raise AssertionError("the newest point is another one")
    return counting.requests["get"]
