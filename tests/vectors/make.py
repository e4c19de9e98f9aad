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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.fence import OpenFence
from orchestrator.repository.keys import MasterKey
from orchestrator.repository.layout import ObjectRef
from orchestrator.repository.pack import Entry, PackBuilder, open_footer
from orchestrator.repository.packreader import PackReader
from orchestrator.repository.point import remove
from orchestrator.repository.relocation import seal_relocation
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


async def relocated(vector: Vector) -> None:
    """A pack that is gone, its chunks in two others, found by its `relocated/` record."""
    volume = Volume(vector.work / "volume", 12 * CHUNK, seed=4)
    volume.text(0, volume.size)
    vault = await vault_at(vector.repository)
    first = vector.keep(await take(vault, volume.path), volume)
    volume.text(5 * CHUNK, CHUNK)
    vector.keep(await take(vault, volume.path, [(5 * CHUNK, CHUNK)], mode="delta", base=first), volume)
    (name,) = [info.key async for info in vault.store.list(f"{vault.names.packs}{first.id}/")]
    await _move(vault, ObjectRef.named(first.id, name.rpartition("/")[2]))


async def _move(vault: Vault, old: ObjectRef) -> None:
    """Move a pack's chunks as compaction does: new packs, the record, and only then the old one's end."""
    name = vault.names.pack(old)
    reader, moves = PackReader(vault, CHUNK), {}
    footer = open_footer(vault, old, await vault.store.get(name))
    intent_id = name.split("/")[-2]
    builders = [PackBuilder(vault, intent_id, bytearray(1 << 20)) for _ in range(2)]
    for position, line in enumerate(footer):
        entry = Entry(line.id, old, line.slot, line.length, line.codec)
        (sealed,) = await reader.fetch(old, [entry])
        packed = sealed.cipher.open(sealed.slot, sealed.data)
        placed = builders[position % 2].add(line.chunk, line.id, packed, line.codec)
        assert placed is not None
        moves[line.slot] = (placed.pack, placed.slot)
    for builder in builders:
        await vault.store.put_new(builder.name, builder.finish())
    await vault.store.put_new(*seal_relocation(vault, old, moves))
    await vault.store.delete(name)


MAKERS: dict[str, Callable[[Vector], Awaitable[None]]] = {
    "v1-basic": basic,
    "v1-wide": wide,
    "v1-rewrapped": rewrapped,
    "v1-relocated": relocated,
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
