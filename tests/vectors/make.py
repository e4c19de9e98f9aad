"""Make test vectors: small repositories that every later release must read.

    python -m tests.vectors.make NAME       writes tests/vectors/NAME/ (which must not exist)

A vector is made once by the release whose format it pins, checked in, and never made anew: random keys and ids differ
from run to run, and readers must not care. `vector.json` has the master key and what each point restores to.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from orchestrator.fence import OpenFence
from orchestrator.repository.keys import MasterKey
from orchestrator.repository.maintenance import plan_sweep, sweep
from orchestrator.repository.point import remove
from orchestrator.repository.repository import Repository
from orchestrator.repository.store import open_store
from orchestrator.repository.vault import Vault
from tests.blocks.volumes import CHUNK, MASTER, Point, Volume, announce, run, take, vault_at

HERE = Path(__file__).parent
MASTER_HEX = bytes(range(32)).hex()
OTHER_HEX = bytes(range(100, 132)).hex()
Ranges = list[tuple[int, int]]


@dataclass
class Vector:
    """One repository in the making."""

    folder: Path
    work: Path
    about: str = ""
    master: str = MASTER_HEX
    points: list[dict[str, Any]] = field(default_factory=list)

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    def keep(self, point: Point, volume: Volume, ranges: Ranges | None = None) -> Point:
        """Write down what a point must restore to: the SHA-256 of its ranges joined, and zero elsewhere."""
        ranges = ranges or [(0, volume.size)]
        digest = hashlib.sha256()
        with volume.path.open("rb") as file:
            for offset, length in ranges:
                file.seek(offset)
                digest.update(file.read(length))
        self.points.append(
            {
                "key": point.ref.key,
                "digest": point.ref.digest,
                "size": volume.size,
                "ranges": ranges,
                "sha256": digest.hexdigest(),
            }
        )
        return point

    def write(self) -> None:
        document = {"about": self.about, "master": self.master, "points": self.points}
        (self.folder / "vector.json").write_text(json.dumps(document, indent=1) + "\n")


async def basic(vector: Vector) -> None:
    """Fulls, deltas with overlays, holes, both codecs, growth, a short last chunk, a removed point, an open intent."""
    volume = Volume(vector.work / "volume", 150 * CHUNK + 4321, seed=1)
    volume.text(0, 40 * CHUNK)
    volume.noise(41 * CHUNK, CHUNK)
    volume.text(130 * CHUNK, 20 * CHUNK + 4321)
    vault = await vault_at(vector.repository)
    first = vector.keep(await take(vault, volume.path), volume)
    volume.write(3 * CHUNK, bytes(2 * CHUNK))
    volume.text(60 * CHUNK, CHUNK + 100)
    delta: Ranges = [(3 * CHUNK, 2 * CHUNK), (60 * CHUNK, CHUNK + 100)]
    second = vector.keep(await take(vault, volume.path, delta, mode="delta", base=first), volume)
    gone = await take(vault, volume.path, [], mode="delta", base=second)
    volume.resize(170 * CHUNK + 99)
    volume.text(169 * CHUNK, CHUNK + 99)
    grown: Ranges = [(150 * CHUNK, 20 * CHUNK + 99)]
    third = vector.keep(await take(vault, volume.path, grown, mode="delta", base=gone), volume)
    await remove(vault, gone.ref, OpenFence())
    for index in range(0, 140, 2):
        volume.text(index * CHUNK, 100)
    folded: Ranges = [(index * CHUNK, 100) for index in range(0, 140, 2)]
    fourth = vector.keep(await take(vault, volume.path, folded, mode="delta", base=third), volume)
    volume.write(0, bytes(100 * CHUNK))
    vector.keep(await take(vault, volume.path, mode="full", base=fourth), volume)
    await announce(vault, volume.path, [(0, CHUNK)], mode="delta", base=fourth.ref)


async def wide(vector: Vector) -> None:
    """A sparse volume of 40 GiB: two inner levels, leaves and overlays far apart, every chunk size."""
    for number, chunk in enumerate((CHUNK, 4 * CHUNK, 16 * CHUNK)):
        volume = Volume(vector.work / f"volume{number}", 40 << 30, seed=number)
        places: Ranges = [(at << 30, 2 * chunk) for at in (0, 7, 16, 39)]
        for offset, length in places:
            volume.text(offset, length)
        vault = await vault_at(vector.repository)
        intent_id = await announce(vault, volume.path, places, mode="allocated", chunk_size=chunk)
        base = vector.keep(await run(vault, intent_id, volume.path), volume, places)
        changed: Ranges = [((16 << 30) + chunk, chunk), (33 << 30, chunk)]
        for offset, length in changed:
            volume.text(offset, length)
        point = await take(vault, volume.path, changed, mode="delta", base=base, chunk_size=chunk)
        vector.keep(point, volume, [*places, (33 << 30, chunk)])


async def rewrapped(vector: Vector) -> None:
    """A repository key wrapped by a second master key; a point from before and one from after."""
    volume = Volume(vector.work / "volume", 9 * CHUNK, seed=3)
    volume.text(0, volume.size)
    vault = await vault_at(vector.repository)
    first = vector.keep(await take(vault, volume.path), volume)
    store = await open_store(f"file://{vector.repository}")
    other = MasterKey.from_bytes(bytes.fromhex(OTHER_HEX))
    await (await Repository.open(store, MASTER)).rewrap(other)
    vector.master = OTHER_HEX
    again = await (await Repository.open(store, other)).vault(vault.namespace)
    volume.text(CHUNK, CHUNK)
    vector.keep(await take(again, volume.path, [(CHUNK, CHUNK)], mode="delta", base=first), volume)


async def compacted(vector: Vector) -> None:
    """Packs that were compacted, and one of them again: relocation records of two generations, packs that are gone."""
    volume = Volume(vector.work / "volume", 40 * CHUNK, seed=4)
    volume.text(0, volume.size)
    vault = await vault_at(vector.repository)
    points = [await take(vault, volume.path)]
    kept = vector.keep(points[0], volume)
    for first, count in ((0, 26), (26, 12)):
        volume.text(first * CHUNK, count * CHUNK)
        ranges: Ranges = [(first * CHUNK, count * CHUNK)]
        kept = vector.keep(await take(vault, volume.path, ranges, mode="delta", base=points[-1]), volume)
        for point in points:
            await remove(vault, point.ref, OpenFence())
        points = [kept]
        vector.points[:] = vector.points[-1:]
        for days in (2, 4, 6):
            await _maintain(vault, days)
    records = [info.key async for info in vault.store.list(vault.names.relocated)]
    assert any(key.endswith("/000002") for key in records), records


async def _maintain(vault: Vault, days: float) -> None:
    now = datetime.now(UTC) + timedelta(days=days)
    plan = await plan_sweep(vault, now=now, grace=timedelta(days=1), intent_age=timedelta(days=7))
    await sweep(vault, plan, OpenFence(), pack_size=1 << 20)


async def rotated(vector: Vector) -> None:
    """Two epochs of data keys in one namespace: a full of the first, a delta on it of the second, and a compaction."""
    volume = Volume(vector.work / "volume", 40 * CHUNK, seed=5)
    volume.text(0, volume.size)
    vault = await vault_at(vector.repository)
    first = await take(vault, volume.path)
    store = await open_store(f"file://{vector.repository}")
    vault = await (await Repository.open(store, MASTER)).rotate(vault.namespace)
    volume.text(0, 26 * CHUNK)
    second = vector.keep(await take(vault, volume.path, [(0, 26 * CHUNK)], mode="delta", base=first), volume)
    await remove(vault, first.ref, OpenFence())
    for days in (2, 4, 6):
        await _maintain(vault, days)
    volume.text(30 * CHUNK, CHUNK)
    vector.keep(await take(vault, volume.path, [(30 * CHUNK, CHUNK)], mode="delta", base=second), volume)


MAKERS: dict[str, Callable[[Vector], Awaitable[None]]] = {
    "v1-basic": basic,
    "v1-wide": wide,
    "v1-rewrapped": rewrapped,
    "v1-compacted": compacted,
    "v1-rotated": rotated,
}


async def make(name: str, folder: Path) -> None:
    """Make one vector in a folder that doesn't exist yet."""
    folder.mkdir()
    with tempfile.TemporaryDirectory() as work:
        maker = MAKERS[name]
        vector = Vector(folder, Path(work), about=(maker.__doc__ or "").strip())
        await maker(vector)
        vector.about += f" Made {datetime.now(UTC):%Y-%m-%d}."
        vector.write()


if __name__ == "__main__":
    asyncio.run(make(sys.argv[1], HERE / sys.argv[1]))
