"""What a point says that it holds: the bytes of its chunks that aren't zero, whatever way it was made."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from orchestrator.blocks.backup import CopyOptions, backup
from orchestrator.repository.chunkmap import MapReader
from orchestrator.repository.errors import StoreUnavailable
from orchestrator.repository.manifest import Mode, PointStats, open_manifest
from orchestrator.repository.mapbuilder import ShardBuilder
from orchestrator.repository.point import commit
from orchestrator.repository.shard import put_shard
from orchestrator.repository.store import CountingStore, open_store
from orchestrator.repository.vault import Vault
from tests.blocks.volumes import CHUNK, Point, Volume, announce, run, take, vault_at, vault_on

pytestmark = pytest.mark.quick


def held(volume: Volume) -> int:
    """Count in the model: the volume itself."""
    data = volume.path.read_bytes()
    chunks = (data[at : at + CHUNK] for at in range(0, len(data), CHUNK))
    return sum(len(chunk) for chunk in chunks if any(chunk))


def change(volume: Volume, chance: random.Random) -> list[tuple[int, int]]:
    """Change the volume somewhere, perhaps its size; return what a driver would report, and a little more."""
    if chance.random() < 0.4:
        volume.resize(max(CHUNK // 2, volume.size + chance.randrange(-20 * CHUNK, 20 * CHUNK)))
    ranges = []
    for _ in range(chance.randrange(6)):
        offset = chance.randrange(volume.size)
        length = min(chance.randrange(1, 5 * CHUNK), volume.size - offset)
        match chance.randrange(4):
            case 0:
                volume.write(offset, bytes(length))
            case 1:
                pass  # reported, and not changed
            case _:
                volume.noise(offset, length)
        ranges.append((offset, length))
    return ranges


@pytest.mark.parametrize("seed", range(12))
async def test_every_way_of_making_a_point_counts_what_it_holds(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    vault = await vault_at(tmp_path / "repository")
    volume = Volume(tmp_path / "volume", 40 * CHUNK + 1234, seed)
    volume.scatter(0.4)
    point = await take(vault, volume.path)
    assert point.stats.allocated == held(volume)
    for _ in range(8):
        ranges = change(volume, chance)
        mode: Mode = chance.choice(("delta", "delta", "delta", "allocated", "full"))
        if mode == "delta":
            point = await take(vault, volume.path, ranges, mode="delta", base=point)
        else:
            point = await take(vault, volume.path, mode=mode, base=point)
        assert point.stats.allocated == held(volume), mode


async def test_what_an_earlier_try_stored_is_counted_once(tmp_path: Path) -> None:
    store = await open_store(f"file://{tmp_path / 'repository'}")
    vault = await vault_on(store)
    volume = Volume(tmp_path / "volume", 60 * CHUNK)
    volume.noise(0, 20 * CHUNK)
    full = await take(vault, volume.path)
    volume.noise(10 * CHUNK, 20 * CHUNK)
    volume.write(0, bytes(3 * CHUNK))
    intent = await announce(vault, volume.path, [(0, 30 * CHUNK)], mode="delta", base=full.ref)
    shard = vault.names.shard(intent, 0)

    class Once(CountingStore):
        async def put_new(self, key, data) -> None:  # type: ignore[no-untyped-def]
            if key == shard:
                raise StoreUnavailable("here", "cut off")
            await self.inner.put_new(key, data)

    cut = Vault(Once(store), vault.keys)
    with pytest.raises(StoreUnavailable):
        await backup(cut, intent, volume.path, options=CopyOptions(pack_bytes=1 << 20))
    point = await run(vault, intent, volume.path)
    assert point.tally.read < 30 * CHUNK
    assert point.stats.allocated == held(volume)


async def test_a_point_without_a_mover_holds_what_its_base_does_and_less_when_it_shrank(tmp_path: Path) -> None:
    vault = await vault_at(tmp_path / "repository")
    volume = Volume(tmp_path / "volume", 60 * CHUNK)
    volume.noise(0, 50 * CHUNK)
    base = await take(vault, volume.path)
    for chunks in (60, 45):
        volume.resize(chunks * CHUNK)
        intent = await announce(vault, volume.path, [], mode="delta", base=base.ref)
        root = (await open_manifest(vault, base.ref.key))[0].root
        builder = ShardBuilder(
            vault, intent, volume_size=volume.size, chunk_size=CHUNK, base=MapReader(vault, root), number=0, shards=1
        )
        await put_shard(vault, intent, await builder.finish(PointStats(volume=volume.size)))
        ref = await commit(vault, intent)
        manifest, _ = await open_manifest(vault, ref.key)
        assert manifest.root.held == manifest.stats.allocated == held(volume)
        assert set(manifest.stats.seconds) == {"commit"}
        base = Point(intent, ref, manifest.stats, base.tally)


async def test_the_walls_of_copy_and_commit_are_told(tmp_path: Path) -> None:
    vault = await vault_at(tmp_path / "repository")
    volume = Volume(tmp_path / "volume", 10 * CHUNK)
    volume.noise(0, 10 * CHUNK)
    point = await take(vault, volume.path)
    assert point.stats.seconds["copy"] > 0
    assert point.stats.seconds["commit"] > 0
