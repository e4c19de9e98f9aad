"""What a point costs in requests: stores charge for each, and each is a round trip."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import pytest

from orchestrator.blocks.backup import backup
from orchestrator.blocks.offline import make_point
from orchestrator.blocks.restore import RestoreOptions, write_point
from orchestrator.blocks.target import Target
from orchestrator.repository.errors import PointCancelled
from orchestrator.repository.intent import open_intent
from orchestrator.repository.manifest import open_manifest
from orchestrator.repository.point import cancel
from orchestrator.repository.store import CountingStore, open_store
from tests.blocks.volumes import KIB, Volume, announce, give_back, run, take, vault_on

MIB = 1024 * KIB


async def _counting() -> CountingStore:
    return CountingStore(await open_store(f"memory://{uuid.uuid4().hex}"))


async def test_a_point_without_changes_takes_a_dozen_requests_in_all(tmp_path: Path) -> None:
    """From opening the repository to the manifest: what is read once is not read again."""
    volume, store = Volume(tmp_path / "volume", 2048 * KIB), await _counting()
    volume.noise(0, 2048 * KIB)
    vault = await vault_on(store)
    base = (await make_point(vault, volume.path)).manifest.record.point_id
    store.requests.clear()
    made = await make_point(vault, volume.path, base=base, extents=[])
    assert store.requests.total() <= 9, store.requests
    assert await give_back(vault, made.ref, tmp_path / "back") == await asyncio.to_thread(volume.sha256)


async def test_a_mover_without_changes_takes_half_a_dozen(tmp_path: Path) -> None:
    """Intent, plan and shard read, shard and manifest put: no listing, no second look."""
    volume, store = Volume(tmp_path / "volume", 2048 * KIB), await _counting()
    volume.noise(0, 2048 * KIB)
    vault = await vault_on(store)
    base = await take(vault, volume.path)
    intent_id = await announce(vault, volume.path, [], mode="delta", base=base.ref)
    store.requests.clear()
    point = await run(vault, intent_id, volume.path)
    assert store.requests.total() <= 6, store.requests
    assert await give_back(vault, point, tmp_path / "back") == await asyncio.to_thread(volume.sha256)


@pytest.mark.parametrize("planned", [[], [(0, 64 * KIB)]])
async def test_a_mover_of_an_ended_point_commits_nothing(tmp_path: Path, planned: list[tuple[int, int]]) -> None:
    """Whether it looks first or only puts: the cancelled record stands at the manifest's name."""
    volume, store = Volume(tmp_path / "volume", 2048 * KIB), await _counting()
    vault = await vault_on(store)
    base = await take(vault, volume.path)
    intent_id = await announce(vault, volume.path, planned, mode="delta", base=base.ref)
    intent = await open_intent(vault, intent_id)
    assert await cancel(vault, intent.manifest_key, intent_id, why="test")
    with pytest.raises(PointCancelled):
        await backup(vault, intent_id, volume.path)


@pytest.mark.parametrize("writers", [1, 4])
async def test_a_restore_takes_one_request_for_each_pack(tmp_path: Path, writers: int) -> None:
    """Whatever the number of writers: GETs are at most 25 for each GiB stored, and 20."""
    volume, store = Volume(tmp_path / "volume", 16 * MIB), await _counting()
    volume.noise(0, 16 * MIB)
    vault = await vault_on(store)
    # given a point in eight packs or so
    intent_id = await announce(vault, volume.path, None)
    point = await run(vault, intent_id, volume.path, pack_bytes=2 * MIB)
    manifest, _ = await open_manifest(vault, point.ref.key)
    store.requests.clear()
    # when it is restored
    with Target.create(tmp_path / "back", volume.size) as target:
        await write_point(vault, manifest, target, RestoreOptions(writers=writers))
    # then each pack is asked once, and the map's few pages
    assert store.requests["get"] <= manifest.stats.packs + 3, store.requests
    assert (tmp_path / "back").read_bytes() == volume.path.read_bytes()


async def test_a_restore_of_a_point_with_a_past_takes_one_request_for_each_pack(tmp_path: Path) -> None:
    """Though the chunks of each are scattered over a long stretch of the volume."""
    chunks = 12 * KIB
    volume, store = Volume(tmp_path / "volume", chunks * KIB), await _counting()
    volume.noise(0, volume.size)
    vault = await vault_on(store)
    point = await take(vault, volume.path, chunk_size=KIB, pack_bytes=5 * MIB)
    # given increments of chunks here and there
    for _ in range(3):
        changed = sorted(volume.random.sample(range(chunks), 500))
        for chunk in changed:
            volume.noise(chunk * KIB, KIB)
        ranges = [(chunk * KIB, KIB) for chunk in changed]
        point = await take(vault, volume.path, ranges, mode="delta", base=point, chunk_size=KIB)
    manifest, _ = await open_manifest(vault, point.ref.key)
    store.requests.clear()
    # when the last one is restored
    with Target.create(tmp_path / "back", volume.size) as target:
        await write_point(vault, manifest, target)
    # then the three packs of the first and those of the others are asked once each, and the map's few pages
    assert store.requests["get"] <= 3 + 3 + 5, store.requests
    assert (tmp_path / "back").read_bytes() == volume.path.read_bytes()
