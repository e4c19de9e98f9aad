"""What is backed up comes back bit for bit, and costs what changed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from orchestrator.blocks.backup import CopyOptions, backup
from orchestrator.blocks.errors import DeviceSizeMismatch
from orchestrator.fence import OpenFence
from orchestrator.repository.damage import check_base
from orchestrator.repository.errors import ManifestMissing
from orchestrator.repository.manifest import list_points, open_manifest
from orchestrator.repository.point import remove
from orchestrator.repository.verify import verify
from tests.blocks.stores import MemoryStore
from tests.blocks.volumes import CHUNK, KIB, Volume, announce, give_back, run, take, vault_at, vault_on

SIZE = 200 * CHUNK + 4096 + 17
"""The last chunk is short and odd."""


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    volume = Volume(tmp_path / "volume", SIZE)
    volume.scatter(0.5)
    volume.noise(SIZE - 1000, 1000)
    return volume


async def test_a_full_backup_comes_back_bit_for_bit(tmp_path: Path, volume: Volume) -> None:
    vault = await vault_at(tmp_path / "repository")
    point = await take(vault, volume.path)
    assert await give_back(vault, point, tmp_path / "back") == volume.sha256()
    assert (tmp_path / "back").read_bytes() == volume.path.read_bytes()
    assert point.stats.read == SIZE


@pytest.mark.parametrize("chunk_size", [64 * KIB, 256 * KIB, 1024 * KIB])
async def test_a_chain_of_deltas_comes_back_at_every_point(tmp_path: Path, volume: Volume, chunk_size: int) -> None:
    # given a full point and three rounds of scattered writes, each backed up as a delta
    vault = await vault_at(tmp_path / "repository")
    points = [await take(vault, volume.path, chunk_size=chunk_size)]
    wanted = [volume.sha256()]
    for _ in range(3):
        changes = [(volume.random.randrange(0, SIZE - 5000), 5000) for _ in range(7)]
        for offset, length in changes:
            volume.noise(offset, length)
        points.append(await take(vault, volume.path, changes, mode="delta", base=points[-1], chunk_size=chunk_size))
        wanted.append(volume.sha256())
    # when each is restored, then each is what its volume was
    for number, point in enumerate(points):
        assert await give_back(vault, point, tmp_path / f"back-{number}") == wanted[number]


async def test_a_delta_without_changes_reads_nothing_and_stores_nothing(tmp_path: Path, volume: Volume) -> None:
    vault = await vault_at(tmp_path / "repository")
    full = await take(vault, volume.path)
    same = await take(vault, volume.path, [], mode="delta", base=full)
    assert same.stats.read == 0
    assert same.stats.uploaded == 0
    assert same.tally.chunks_read == 0
    assert await give_back(vault, same, tmp_path / "back") == volume.sha256()


async def test_a_delta_reads_only_the_chunks_that_changes_touch(tmp_path: Path, volume: Volume) -> None:
    # given a point in chunks of 256 KiB and nine changed blocks of 64 KiB
    vault = await vault_at(tmp_path / "repository")
    full = await take(vault, volume.path, chunk_size=256 * KIB)
    blocks = [1, 2, 3, 17, 60, 61, 100, 150, 199]
    for block in blocks:
        volume.noise(block * 64 * KIB, 64 * KIB)
    changes = [(block * 64 * KIB, 64 * KIB) for block in blocks]
    # when a delta is taken
    delta = await take(vault, volume.path, changes, mode="delta", base=full, chunk_size=256 * KIB)
    # then it reads the touched chunks, once
    touched = {block // 4 for block in blocks}
    assert delta.stats.read == len(touched) * 256 * KIB
    assert delta.stats.chunks_read == len(touched)
    assert await give_back(vault, delta, tmp_path / "back") == volume.sha256()


async def test_a_block_discarded_under_a_delta_overrides_what_the_base_had(tmp_path: Path, volume: Volume) -> None:
    # given non-zero chunks in the base, zeroed since, and reported as changed
    vault = await vault_at(tmp_path / "repository")
    volume.noise(20 * CHUNK, 3 * CHUNK)
    full = await take(vault, volume.path)
    volume.write(20 * CHUNK, bytes(3 * CHUNK))
    # when a delta is taken
    delta = await take(vault, volume.path, [(20 * CHUNK, 3 * CHUNK)], mode="delta", base=full)
    # then they come back as zeros
    assert await give_back(vault, delta, tmp_path / "back") == volume.sha256()
    assert (tmp_path / "back").read_bytes()[20 * CHUNK : 23 * CHUNK] == bytes(3 * CHUNK)
    assert delta.stats.chunks_zero == 3


async def test_what_a_fallback_does_not_cover_is_zero_and_never_inherited(tmp_path: Path, volume: Volume) -> None:
    # given non-zero chunks in the base, discarded since, so that no allocated range covers them
    vault = await vault_at(tmp_path / "repository")
    volume.noise(20 * CHUNK, 3 * CHUNK)
    full = await take(vault, volume.path)
    volume.write(20 * CHUNK, bytes(3 * CHUNK))
    ranges = [(0, 20 * CHUNK), (23 * CHUNK, SIZE - 23 * CHUNK)]
    # when the ladder falls back to what is allocated
    fallback = await take(vault, volume.path, ranges, mode="allocated", base=full)
    # then they come back as zeros, and nothing unchanged was uploaded again
    assert await give_back(vault, fallback, tmp_path / "back") == volume.sha256()
    assert fallback.stats.chunks_stored == 0
    assert fallback.stats.read == SIZE - 3 * CHUNK


@pytest.mark.parametrize("size", [SIZE + 5 * CHUNK + 100, SIZE + 10, SIZE - 3 * CHUNK, SIZE - 100])
async def test_a_volume_that_grew_or_shrank_comes_back_in_its_new_size(
    tmp_path: Path, volume: Volume, size: int
) -> None:
    # given a full point, then another size and one change, and a delta that reports nothing but that change
    vault = await vault_at(tmp_path / "repository")
    full = await take(vault, volume.path)
    volume.resize(size)
    volume.noise(3 * CHUNK, 100)
    changes = [(3 * CHUNK, 100)]
    if size > SIZE:
        volume.noise(size - 50, 50)
    # when the delta is taken
    delta = await take(vault, volume.path, changes, mode="delta", base=full)
    # then what the resize changed was read too
    assert await give_back(vault, delta, tmp_path / "back") == volume.sha256()
    assert (tmp_path / "back").stat().st_size == size


async def test_equal_chunks_are_stored_once(tmp_path: Path) -> None:
    # given a volume of 120 chunks with 4 different contents, and some zeros
    volume = Volume(tmp_path / "volume", 130 * CHUNK)
    contents = [volume.random.randbytes(CHUNK) for _ in range(4)]
    for index in range(120):
        volume.write(index * CHUNK, contents[index % 4])
    vault = await vault_at(tmp_path / "repository")
    # when it is backed up by several threads
    point = await take(vault, volume.path)
    # then just the four are stored
    assert point.stats.chunks_stored == 4
    assert point.stats.chunks_zero == 10
    assert await give_back(vault, point, tmp_path / "back") == volume.sha256()


async def test_reported_but_unchanged_content_is_not_uploaded_again(tmp_path: Path, volume: Volume) -> None:
    vault = await vault_at(tmp_path / "repository")
    full = await take(vault, volume.path)
    delta = await take(vault, volume.path, [(0, SIZE)], mode="delta", base=full)
    assert delta.stats.read == SIZE
    assert delta.stats.chunks_stored == 0
    assert delta.stats.changed == 0
    assert await give_back(vault, delta, tmp_path / "back") == volume.sha256()


async def test_a_device_of_another_size_than_the_plan_is_refused_before_it_is_read(
    tmp_path: Path, volume: Volume
) -> None:
    vault = await vault_at(tmp_path / "repository")
    intent_id = await announce(vault, volume.path, None)
    volume.resize(SIZE + 4096)
    with pytest.raises(DeviceSizeMismatch):
        await run(vault, intent_id, volume.path)
    assert [key async for key in list_points(vault)] == []


async def test_a_point_that_is_committed_already_is_not_copied_again(tmp_path: Path, volume: Volume) -> None:
    vault = await vault_at(tmp_path / "repository")
    intent_id = await announce(vault, volume.path, None)
    first = await run(vault, intent_id, volume.path)
    second = await run(vault, intent_id, volume.path)
    assert second.ref == first.ref
    assert second.tally.read == 0


async def test_a_base_pruned_while_its_heir_is_copied_does_not_stop_the_heir(tmp_path: Path, volume: Volume) -> None:
    # given a planned delta whose base is pruned before the mover starts
    vault = await vault_at(tmp_path / "repository")
    full = await take(vault, volume.path)
    volume.noise(7 * CHUNK, CHUNK)
    intent_id = await announce(vault, volume.path, [(7 * CHUNK, CHUNK)], mode="delta", base=full.ref)
    await remove(vault, full.ref, OpenFence())
    # when it runs
    point = await run(vault, intent_id, volume.path)
    # then the point is whole: the intent kept what it needs
    assert await give_back(vault, point, tmp_path / "back") == volume.sha256()


async def test_two_shards_by_two_movers_make_one_point(tmp_path: Path) -> None:
    # given a volume of three leaves, planned in two shards
    volume = Volume(tmp_path / "volume", 3000 * CHUNK)
    for index in (0, 5, 1023, 1024, 1500, 2047, 2048, 2999):
        volume.noise(index * CHUNK, CHUNK)
    vault = await vault_at(tmp_path / "repository")
    intent_id = await announce(vault, volume.path, None, shards=2)
    # when the first is finished alone
    first = await backup(vault, intent_id, volume.path, shard=0, options=CopyOptions(readers=2))
    # then nothing is committed
    assert first is not None
    assert getattr(first, "point", ...) is None
    # when the second is finished too
    second = await backup(vault, intent_id, volume.path, shard=1, options=CopyOptions(readers=2))
    # then the point is whole
    ref = getattr(second, "point", None)
    assert ref is not None
    assert await give_back(vault, ref, tmp_path / "back") == volume.sha256()


async def test_an_empty_volume_costs_nothing_and_comes_back_empty(tmp_path: Path) -> None:
    volume = Volume(tmp_path / "volume", 1 << 30)
    vault = await vault_at(tmp_path / "repository")
    point = await take(vault, volume.path, [], mode="allocated")
    digest = await give_back(vault, point, tmp_path / "back", sha256=False)
    assert digest == ""
    assert (tmp_path / "back").stat().st_size == 1 << 30
    assert (tmp_path / "back").stat().st_blocks == 0
    assert point.stats.read == 0


async def test_a_wrong_digest_from_memory_outside_the_bucket_is_noticed(tmp_path: Path, volume: Volume) -> None:
    vault = await vault_at(tmp_path / "repository")
    point = await take(vault, volume.path)
    with pytest.raises(Exception, match="digest"):
        await open_manifest(vault, point.ref.key, digest=hashlib.sha256(b"other").hexdigest())
    with pytest.raises(ManifestMissing):
        await open_manifest(vault, point.ref.key + "x")


async def test_the_next_backup_heals_what_the_volume_still_holds(tmp_path: Path, volume: Volume) -> None:
    # given a point with a damaged chunk, found and written down by verify
    store = MemoryStore()
    vault = await vault_on(store)
    full = await take(vault, volume.path)
    (pack,) = [key for key in store.objects if "/packs/" in key]
    flipped = bytearray(store.objects[pack])
    flipped[5000] ^= 1
    store.objects[pack] = bytes(flipped)
    report = await verify(vault, depth="full")
    assert not report.ok
    # when the next delta reads the damaged chunks besides what changed
    base = await check_base(vault, full.ref)
    assert base.usable
    assert base.heal
    heal = [(first * CHUNK, min(stop * CHUNK, SIZE) - first * CHUNK) for first, stop in base.heal]
    healed = await take(vault, volume.path, heal, mode="delta", base=full)
    # then it comes back whole, having stored just those anew
    assert healed.stats.chunks_stored == sum(stop - first for first, stop in base.heal)
    assert await give_back(vault, healed, tmp_path / "back") == volume.sha256()
