"""A restore writes exactly the point, notices every damage, and refuses what it can't do before it writes."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.blocks import restore
from orchestrator.blocks.errors import ReadBackMismatch, TargetFull, TargetTooSmall
from orchestrator.blocks.readback import read_back
from orchestrator.blocks.restore import RestoreOptions, write_point
from orchestrator.blocks.target import Target
from orchestrator.repository.crypto import Bytes
from orchestrator.repository.errors import Damaged, ObjectMissing
from orchestrator.repository.layout import ObjectRef
from orchestrator.repository.manifest import open_manifest
from orchestrator.repository.pack import Entry
from orchestrator.repository.packreader import PackReader, Sealed
from orchestrator.repository.vault import Vault
from tests.blocks.stores import MemoryStore
from tests.blocks.volumes import CHUNK, Point, Volume, give_back, take, vault_at, vault_on
from tests.waiting import SHORT

SIZE = 60 * CHUNK + 4096 + 17


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def vault(store: MemoryStore) -> Vault:
    return await vault_on(store)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    volume = Volume(tmp_path / "volume", SIZE)
    volume.scatter(0.5)
    volume.noise(SIZE - 1000, 1000)
    return volume


@pytest.fixture
async def point(vault: Vault, volume: Volume) -> Point:
    return await take(vault, volume.path)


@pytest.mark.parametrize("extra", [0, 3 * CHUNK + 512])
async def test_a_used_target_holds_the_volume_and_zeros_beyond_it(
    tmp_path: Path, vault: Vault, volume: Volume, point: Point, extra: int
) -> None:
    # given a target full of somebody's old data, as large as the volume or larger
    target_path = tmp_path / "used"
    target_path.write_bytes(b"old!" * ((SIZE + extra) // 4 + 1))
    os.truncate(target_path, SIZE + extra)
    manifest, _ = await open_manifest(vault, point.ref.key)
    # when the point is restored onto it and read back
    with Target.open(target_path, SIZE) as target:
        await write_point(vault, manifest, target)
    digest = await read_back(vault, manifest, str(target_path), sha256=True)
    # then it holds the volume, and nothing old
    assert target_path.read_bytes() == volume.path.read_bytes() + bytes(extra)
    assert digest == volume.sha256()


async def test_holes_stay_holes(tmp_path: Path, vault: Vault) -> None:
    volume = Volume(tmp_path / "sparse", 1 << 30)
    volume.noise(512 << 20, CHUNK)
    point = await take(vault, volume.path, [(512 << 20, CHUNK)], mode="allocated")
    await give_back(vault, point, tmp_path / "back", sha256=False)
    assert (tmp_path / "back").stat().st_blocks * 512 <= 2 * CHUNK


async def test_a_target_too_small_is_refused_before_a_byte_is_written(tmp_path: Path, point: Point) -> None:
    small = tmp_path / "small"
    small.write_bytes(b"keep" * 100)
    with pytest.raises(TargetTooSmall):
        Target.open(small, SIZE)
    assert small.read_bytes() == b"keep" * 100


async def test_a_full_target_is_named_as_such(vault: Vault, point: Point) -> None:
    manifest, _ = await open_manifest(vault, point.ref.key)
    fd = os.open("/dev/full", os.O_RDWR)
    with Target(fd, "/dev/full", SIZE, known_zero=True, is_device=False) as target, pytest.raises(TargetFull):
        await write_point(vault, manifest, target)


@pytest.mark.parametrize("where", [0, 70, 5000, -100, -5])
async def test_one_flipped_bit_in_a_pack_is_found_or_harmless(
    tmp_path: Path, vault: Vault, store: MemoryStore, volume: Volume, point: Point, where: int
) -> None:
    # given a pack with one bit flipped: in its header, in its chunks, in its footer
    (key,) = [key for key in store.objects if "/packs/" in key]
    flipped = bytearray(store.objects[key])
    flipped[where] ^= 1
    store.objects[key] = bytes(flipped)
    # when the point is restored
    # then it is found if what was restored needs it, and does no harm if not (header and footer)
    try:
        digest = await give_back(vault, point, tmp_path / "back")
    except Damaged as found:
        message = str(found)
    else:
        message = key
        assert where in (0, -100, -5)
        assert digest == volume.sha256()
    assert key in message


async def test_a_pack_that_is_gone_is_named(tmp_path: Path, vault: Vault, store: MemoryStore, point: Point) -> None:
    (key,) = [key for key in store.objects if "/packs/" in key]
    del store.objects[key]
    with pytest.raises(ObjectMissing, match=key):
        await give_back(vault, point, tmp_path / "back")


@pytest.mark.parametrize("where", ["data", "hole"])
async def test_what_the_target_lost_shows_when_it_is_read_back(
    tmp_path: Path, vault: Vault, volume: Volume, where: str
) -> None:
    # given a restored target on which one byte changed since, in a chunk or in a hole
    volume.write(10 * CHUNK, bytes(2 * CHUNK))
    volume.noise(20 * CHUNK, CHUNK)
    point = await take(vault, volume.path)
    manifest, _ = await open_manifest(vault, point.ref.key)
    back = tmp_path / "back"
    await give_back(vault, point, back)
    index = 20 if where == "data" else 11
    with back.open("r+b") as file:
        file.seek(index * CHUNK + 77)
        file.write(b"\x5a" if where == "hole" else bytes((volume.path.read_bytes()[20 * CHUNK + 77] ^ 1,)))
    # when it is read back
    # then the chunk is named
    with pytest.raises(ReadBackMismatch, match=f"chunk {index} "):
        await read_back(vault, manifest, str(back), known_zero=True)


async def test_a_chunk_of_another_length_than_its_place_has_is_damage(
    tmp_path: Path, vault: Vault, point: Point
) -> None:
    # given a manifest whose volume ends elsewhere than the one that was copied
    manifest, _ = await open_manifest(vault, point.ref.key)
    shorter = msgspec.structs.replace(manifest.root, volume_size=manifest.root.volume_size - 10)
    # when it is restored, then the last chunk doesn't fit
    with Target.create(tmp_path / "back", SIZE) as target, pytest.raises(Damaged, match="length of chunk 60"):
        await write_point(vault, msgspec.structs.replace(manifest, root=shorter), target)


async def test_a_chunk_that_nobody_brings_is_noticed_and_the_new_file_goes(
    tmp_path: Path, vault: Vault, point: Point, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no part of a restore tells as an error, as one that loses a chunk by a slip of ours, shows at its end."""
    # given a reader of packs that leaves out the last chunk that it is asked for
    manifest, _ = await open_manifest(vault, point.ref.key)
    whole, left_out = PackReader.fetch_all, list[Sealed]()

    async def all_but_one(reader: PackReader, by_pack: Mapping[ObjectRef, Sequence[Entry]]) -> list[Sealed]:
        found = await whole(reader, by_pack)
        left_out.append(found.pop())
        return found

    monkeypatch.setattr(PackReader, "fetch_all", all_but_one)
    back = tmp_path / "back"
    before = sorted(tmp_path.iterdir())

    async def into_a_new_file() -> None:
        with Target.for_restore(back, SIZE, overwrite=False, known_zero=False) as target:
            assert sorted(tmp_path.iterdir()) != before
            await write_point(vault, manifest, target)
            target.keep()

    # when a point is restored into a new file
    with pytest.raises(RuntimeError, match=rf"of {SIZE} bytes restored, and no error told"):
        await into_a_new_file()
    # then that is told, and no file is left, by whatever name
    assert left_out
    assert sorted(tmp_path.iterdir()) == before


class Held(bytearray):
    """What one request brought, as long as anybody looks at it."""


class Keeping(MemoryStore):
    """Answers with views of one piece of memory, as stores do, and counts how many pieces are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self._lock = threading.Lock()

    async def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[Bytes]:
        if "/packs/" not in key:
            return await super().get_ranges(key, ranges)
        held = Held(await self.get(key))
        with self._lock:
            self.alive += 1
            self.most = max(self.most, self.alive)
        weakref.finalize(held, self._gone)
        return [memoryview(held)[start : start + length] for start, length in ranges]

    def _gone(self) -> None:
        with self._lock:
            self.alive -= 1


class SlowTarget(Target):
    """Takes its time for each write, so that whoever fetches ahead without a bound does so."""

    def write_all(self, offset: int, pieces: Sequence[Bytes]) -> None:
        time.sleep(0.002)
        super().write_all(offset, pieces)


async def test_no_more_packs_are_in_memory_than_fetchers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a point in many packs, each of them fetched by itself, and a target slower than the store
    monkeypatch.setattr(restore, "GROUP_BYTES", 1)
    store = Keeping()
    vault = await vault_on(store)
    volume = Volume(tmp_path / "volume", SIZE)
    volume.noise(0, SIZE)
    point = await take(vault, volume.path, pack_bytes=4 * CHUNK)
    manifest, _ = await open_manifest(vault, point.ref.key)
    # when it is restored
    with SlowTarget.create(tmp_path / "back", SIZE) as target:
        await write_point(vault, manifest, target, RestoreOptions(writers=4))
    # then it is whole, and what was fetched was let go of before more came
    assert (tmp_path / "back").read_bytes() == volume.path.read_bytes()
    assert store.requests > 15
    assert 2 <= store.most <= restore.FETCHERS
    assert store.alive == 0


def _take_direct_writes(target: Target) -> None:
    """Have it behave as on a disk, on whatever the tests run."""
    if target._direct >= 0:
        os.close(target._direct)
    target._direct = os.dup(target._fd)


async def test_what_waits_for_the_disk_keeps_its_memory(
    tmp_path: Path, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a point of many batches, each opened in memory that is used again, and a slow target
    monkeypatch.setattr(restore, "BATCH_CHUNKS", 1)
    volume = Volume(tmp_path / "volume", SIZE)
    volume.noise(0, SIZE)
    manifest, _ = await open_manifest(vault, (await take(vault, volume.path)).ref.key)
    # when it is restored
    with SlowTarget.create(tmp_path / "back", SIZE) as target:
        _take_direct_writes(target)
        await write_point(vault, manifest, target, RestoreOptions(writers=4))
    # then nothing was opened over what had still to be written
    assert (tmp_path / "back").read_bytes() == volume.path.read_bytes()


async def test_chunks_are_opened_while_the_disk_is_busy(
    tmp_path: Path, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a point of many batches, and a target whose first write ends only when more chunks were opened
    monkeypatch.setattr(restore, "BATCH_CHUNKS", 1)
    volume = Volume(tmp_path / "volume", SIZE)
    volume.noise(0, SIZE)
    manifest, _ = await open_manifest(vault, (await take(vault, volume.path)).ref.key)
    opened = threading.Semaphore(0)
    in_time: list[bool] = []
    open_one = PackReader.open

    def counted(self: PackReader, sealed: Sealed, scratch: memoryview | None = None) -> Bytes:
        opened.release()
        return open_one(self, sealed, scratch)

    class Busy(Target):
        def write_all(self, offset: int, pieces: Sequence[Bytes]) -> None:
            if not in_time:
                in_time.append(opened.acquire(timeout=SHORT) and opened.acquire(timeout=SHORT))
            super().write_all(offset, pieces)

    monkeypatch.setattr(PackReader, "open", counted)
    # when it is restored by one thread that opens
    with Busy.create(tmp_path / "back", SIZE) as target:
        _take_direct_writes(target)
        await write_point(vault, manifest, target, RestoreOptions(writers=1))
    # then that one hadn't waited
    assert in_time == [True]
    assert (tmp_path / "back").read_bytes() == volume.path.read_bytes()


async def test_all_that_goes_past_the_page_cache_lies_on_pages_of_its_own(
    tmp_path: Path, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a point whose chunks are compressed or not, some of them equal, and a target that takes direct writes
    volume = Volume(tmp_path / "volume", SIZE)
    volume.noise(0, 10 * CHUNK)
    volume.text(10 * CHUNK, 10 * CHUNK)
    volume.write(20 * CHUNK, b"equal" * CHUNK)
    manifest, _ = await open_manifest(vault, (await take(vault, volume.path)).ref.key)
    written, write = [0], os.pwritev

    def aligned_only(descriptor: int, pieces: Sequence[memoryview], offset: int) -> int:
        for piece in pieces:
            if ctypes.addressof(ctypes.c_char.from_buffer(piece)) % 4096:
                raise OSError(errno.EINVAL, "not aligned")
        written[0] += (done := write(descriptor, pieces, offset))
        return done

    monkeypatch.setattr(os, "pwritev", aligned_only)
    # when it is restored
    with Target.create(tmp_path / "back", SIZE) as target:
        _take_direct_writes(target)
        total = await write_point(vault, manifest, target)
    # then nothing of it was refused for where it lay in memory
    assert (tmp_path / "back").read_bytes() == volume.path.read_bytes()
    assert 25 * CHUNK <= written[0] <= total.written
    assert total.written - written[0] < CHUNK, "only the volume's odd end goes another way"


class Noting(Target):
    """Notes in which order it is told to bring what it has to the medium."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.told: list[str] = []

    def start_sync(self) -> None:
        self.told.append("start")
        super().start_sync()

    def finish(self) -> None:
        self.told.append("finish")
        super().finish()


async def test_a_restore_brings_to_the_medium_what_it_has_as_it_goes(tmp_path: Path) -> None:
    """So that the sync at the end isn't a second restore's time."""
    vault = await vault_at(tmp_path / "repository")
    volume = Volume(tmp_path / "volume", SIZE)
    volume.noise(0, SIZE)
    point = await take(vault, volume.path)
    manifest, _ = await open_manifest(vault, point.ref.key)
    with Noting.create(tmp_path / "back", SIZE) as target:
        await write_point(vault, manifest, target)
    assert isinstance(target, Noting)
    assert set(target.told[:-1]) == {"start"}
    assert target.told[-1] == "finish"
    assert (tmp_path / "back").read_bytes() == volume.path.read_bytes()
