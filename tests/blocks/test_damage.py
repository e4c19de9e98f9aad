"""What a backup does when what it builds on was altered or lost behind its back, with no word of it on record."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.blocks.backup import CopyOptions, backup
from orchestrator.repository.chunkmap import MapReader
from orchestrator.repository.damage import DamageRecord, check_base, put_damage
from orchestrator.repository.errors import Damaged, ObjectMissing
from orchestrator.repository.layout import SLOT_UNIT, ObjectRef
from orchestrator.repository.manifest import open_manifest
from orchestrator.repository.vault import Vault
from tests.blocks.stores import MemoryStore
from tests.blocks.volumes import CHUNK, Point, Volume, announce, give_back, run, take, vault_at, vault_on

Harm = Callable[[dict[str, bytes], str], None]


def truncated(objects: dict[str, bytes], key: str) -> None:
    objects[key] = objects[key][: len(objects[key]) // 2]


def flipped(objects: dict[str, bytes], key: str) -> None:
    data = bytearray(objects[key])
    for at in range(64, len(data), 997):
        data[at] ^= 1
    objects[key] = bytes(data)


def deleted(objects: dict[str, bytes], key: str) -> None:
    del objects[key]


async def _full(tmp_path: Path) -> tuple[Volume, MemoryStore, Vault, Point]:
    """A full point with more chunks than an overlay holds, so that its leaf is a page of its own."""
    volume = Volume(tmp_path / "volume", 200 * CHUNK + 77)
    volume.noise(0, 150 * CHUNK)
    store = MemoryStore()
    vault = await vault_on(store)
    return volume, store, vault, await take(vault, volume.path)


def _maps(store: MemoryStore, point: Point) -> list[str]:
    found = [key for key in store.objects if "/maps/" in key]
    assert found, sorted(store.objects)
    return found


@pytest.mark.parametrize("harm", [truncated, flipped, deleted])
async def test_a_delta_whose_base_map_cant_be_read_reads_everything_instead_and_says_so(
    tmp_path: Path, harm: Harm
) -> None:
    # given a planned delta whose base's map is harmed before the mover starts
    volume, store, vault, full = await _full(tmp_path)
    volume.noise(10 * CHUNK, 3 * CHUNK)
    volume.write(20 * CHUNK, bytes(CHUNK))
    intent_id = await announce(vault, volume.path, [(10 * CHUNK, 11 * CHUNK)], mode="delta", base=full.ref)
    for key in _maps(store, full):
        harm(store.objects, key)
    # when it runs, then the point is whole, is told as what it is, and refers to nothing of the base
    point = await run(vault, intent_id, volume.path)
    assert await give_back(vault, point, tmp_path / "back") == volume.sha256()
    record = (await open_manifest(vault, point.ref.key))[0].record
    assert (record.requested_mode, record.actual_mode, record.reason) == ("delta", "full", "BaseIncomplete")
    assert "whole volume" in (record.message or "")
    assert (record.parent, record.parent_base_id) == (None, None)
    assert point.stats.read >= volume.size
    # and the next delta builds on it
    volume.noise(30 * CHUNK, CHUNK)
    after = await take(vault, volume.path, [(30 * CHUNK, CHUNK)], mode="delta", base=point)
    assert await give_back(vault, after, tmp_path / "after") == volume.sha256()
    assert (await open_manifest(vault, after.ref.key))[0].record.actual_mode == "delta"
    with pytest.raises((Damaged, ObjectMissing)):
        await give_back(vault, full, tmp_path / "old")


@pytest.mark.parametrize("harm", [truncated, flipped, deleted])
async def test_a_point_to_compare_with_that_cant_be_read_is_done_without(tmp_path: Path, harm: Harm) -> None:
    volume, store, vault, full = await _full(tmp_path)
    intent_id = await announce(vault, volume.path, None, mode="allocated", base=full.ref)
    for key in _maps(store, full):
        harm(store.objects, key)
    point = await run(vault, intent_id, volume.path)
    assert await give_back(vault, point, tmp_path / "back") == volume.sha256()
    record = (await open_manifest(vault, point.ref.key))[0].record
    assert (record.actual_mode, record.reason) == ("allocated", None)


async def test_a_step_down_that_is_killed_is_carried_on(tmp_path: Path) -> None:
    # given a step-down that was cut in mid-copy
    volume, store, vault, full = await _full(tmp_path)
    intent_id = await announce(vault, volume.path, [(0, CHUNK)], mode="delta", base=full.ref)
    for key in _maps(store, full):
        deleted(store.objects, key)
    puts = 0

    def cut(number: int, verb: str, key: str) -> None:
        nonlocal puts
        puts += verb == "put" and "/packs/" in key
        if puts > 3:
            raise Damaged(key, "the test's cut")

    store.before = cut
    with pytest.raises(Damaged, match="cut"):
        await backup(vault, intent_id, volume.path, options=CopyOptions(pack_bytes=8 * CHUNK))
    # when another mover comes, then it finds what was stored
    store.before = None
    point = await run(vault, intent_id, volume.path)
    assert point.tally.chunks_reused >= 20
    assert await give_back(vault, point, tmp_path / "back") == volume.sha256()


async def test_one_shard_may_step_down_while_the_other_stays_a_delta(tmp_path: Path) -> None:
    # given a delta in two shards, the leaf of the first one's half gone after the second was finished
    volume = Volume(tmp_path / "volume", 4096 * CHUNK)
    volume.noise(0, 100 * CHUNK)
    volume.noise(1030 * CHUNK, 2 * CHUNK)
    volume.noise(2500 * CHUNK, 3 * CHUNK)
    store = MemoryStore()
    vault = await vault_on(store)
    before = set(store.objects)
    full = await take(vault, volume.path)
    leaves = [k for k in store.objects if "/maps/" in k and k not in before]
    volume.noise(0, 90 * CHUNK)
    volume.write(1030 * CHUNK, bytes(2 * CHUNK))
    volume.noise(2501 * CHUNK, CHUNK)
    ranges = [(0, 90 * CHUNK), (1030 * CHUNK, 2 * CHUNK), (2501 * CHUNK, CHUNK)]
    intent_id = await announce(vault, volume.path, ranges, mode="delta", base=full.ref, shards=2)
    await backup(vault, intent_id, volume.path, shard=1)
    # the leaf's page lies before the root's, in the mover's own object
    root = (await open_manifest(vault, full.ref.key))[0].root
    assert root.page is not None
    for key in leaves:
        if not root.page.object.endswith(key.rpartition("/")[2]):
            deleted(store.objects, key)
    await backup(vault, intent_id, volume.path, shard=0)
    point = await run(vault, intent_id, volume.path)
    assert await give_back(vault, point, tmp_path / "back") == volume.sha256()
    record = (await open_manifest(vault, point.ref.key))[0].record
    assert (record.actual_mode, record.reason) == ("delta", "BaseIncomplete")


async def test_what_a_damage_record_hurts_is_found_without_a_request_for_every_leaf(tmp_path: Path) -> None:
    # given a point with eight leaves, and one damaged chunk on record
    volume = Volume(tmp_path / "volume", 8 * 1024 * CHUNK)
    for leaf in range(8):
        for index in range(70):
            volume.text((leaf * 1024 + index) * CHUNK, 100)
    store = MemoryStore()
    vault = await vault_on(store)
    ranges = [(leaf * 1024 * CHUNK, 70 * CHUNK) for leaf in range(8)]
    full = await take(vault, volume.path, ranges, mode="allocated")
    assert (await check_base(vault, full.ref)).heal == ()
    entry = (await MapReader(vault, (await open_manifest(vault, full.ref.key))[0].root).lookup([3 * 1024]))[3 * 1024]
    what = DamageRecord(kind="pack", object=entry.pack.to_bytes().hex(), what="test", found=datetime.now(UTC))
    await put_damage(vault, what, [entry.slot])
    # when the base is looked at, then the chunk is found with a handful of requests
    start = store.requests
    check = await check_base(vault, full.ref)
    assert (check.usable, check.heal) == (True, ((3 * 1024, 3 * 1024 + 1),))
    assert store.requests - start <= 7


async def test_a_base_that_takes_too_long_to_look_through_is_done_without(tmp_path: Path) -> None:
    volume = Volume(tmp_path / "volume", 100 * CHUNK)
    volume.noise(0, 90 * CHUNK)
    vault = await vault_at(tmp_path / "repository")
    full = await take(vault, volume.path)
    pack, *_ = [info.key async for info in vault.store.list(vault.names.packs)]
    ref = ObjectRef.named(full.id, pack.rpartition("/")[2])
    what = DamageRecord(kind="pack", object=ref.to_bytes().hex(), what="test", found=datetime.now(UTC))
    await put_damage(vault, what, [])
    assert (await check_base(vault, full.ref)).usable
    check = await check_base(vault, full.ref, within_s=0.0)
    assert not check.usable
    assert "too long" in check.why


async def test_a_leaf_known_as_damaged_is_healed_by_a_delta_that_stays_one(tmp_path: Path) -> None:
    # given a point whose leaf was lost, and verify has written it down
    volume = Volume(tmp_path / "volume", 2048 * CHUNK)
    volume.noise(0, 100 * CHUNK)
    volume.noise(1500 * CHUNK, 100 * CHUNK)
    store = MemoryStore()
    vault = await vault_on(store)
    full = await take(vault, volume.path, [(0, 100 * CHUNK), (1500 * CHUNK, 100 * CHUNK)], mode="allocated")
    root = (await open_manifest(vault, full.ref.key))[0].root
    reader = MapReader(vault, root)
    refs = await reader.children([0, 1])
    leaf = refs[0][0]
    assert leaf is not None
    what = DamageRecord(kind="map", object=leaf.object.to_bytes().hex(), what="test", found=datetime.now(UTC))
    await put_damage(vault, what, [leaf.slot])
    key = vault.names.map(leaf.object)
    data = bytearray(store.objects[key])
    start = leaf.slot * SLOT_UNIT
    data[start : start + leaf.length] = bytes(leaf.length)
    store.objects[key] = bytes(data)
    check = await check_base(vault, full.ref)
    assert (check.usable, check.heal) == (True, ((0, 1024),))
    # when the next delta reads what is to be healed and what changed
    volume.noise(1501 * CHUNK, CHUNK)
    ranges = [(0, 1024 * CHUNK), (1501 * CHUNK, CHUNK)]
    point = await take(vault, volume.path, ranges, mode="delta", base=full)
    # then it is a delta that builds on the sound half, and whole
    record = (await open_manifest(vault, point.ref.key))[0].record
    assert (record.actual_mode, record.reason) == ("delta", None)
    assert point.stats.read == 1025 * CHUNK
    assert point.stats.allocated == 200 * CHUNK
    assert await give_back(vault, point, tmp_path / "back") == volume.sha256()
