"""Verify finds whatever was altered, says whom it hurts, and the next backup heals what the volume still holds."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest

from orchestrator.fence import OpenFence
from orchestrator.repository.chunkmap import MapReader
from orchestrator.repository.damage import check_base, load_damage
from orchestrator.repository.errors import Damaged, ObjectMissing, StoreUnavailable, UnsupportedFormat
from orchestrator.repository.manifest import PointRef, open_manifest
from orchestrator.repository.parallel import Window
from orchestrator.repository.point import remove
from orchestrator.repository.store import CountingStore, ObjectInfo, Store
from orchestrator.repository.vault import Vault
from orchestrator.repository.verified import forget_results, open_result, put_result, result_of
from orchestrator.repository.verify import Depth, verify
from tests.repository.engine import START, backup, restore
from tests.repository.faults import Fault, FaultyStore
from tests.waiting import LONG

SIZE = 1024


def _volume(seed: int, chunks: int = 60) -> bytes:
    return random.Random(seed).randbytes(chunks * SIZE)


async def _names(vault: Vault, prefix: str) -> list[str]:
    return sorted([info.key async for info in vault.store.list(prefix)])


async def _replace(vault: Vault, key: str, data: bytes) -> None:
    await vault.store.delete(key)
    await vault.store.put_new(key, data)


async def _two_points(vault: Vault) -> tuple[PointRef, bytes, PointRef, bytes]:
    first = _volume(1, chunks=1100)
    one = await backup(vault, first, sequence=1, chunk_size=SIZE)
    second = bytearray(first)
    for index in (3, 700, 1050):
        second[index * SIZE : (index + 1) * SIZE] = bytes([index % 251]) * SIZE
    two = await backup(vault, bytes(second), sequence=2, touched=[3, 700, 1050], base=one, chunk_size=SIZE)
    return one, first, two, bytes(second)


async def test_a_sound_repository_verifies_at_every_depth(vault: Vault) -> None:
    await _two_points(vault)
    for depth in ("quick", 0.3, "full"):
        report = await verify(vault, depth=depth)  # type: ignore[arg-type]
        assert report.ok, report
        assert report.points == 2
    assert report.chunks == 1103


@pytest.mark.system
async def test_one_flipped_bit_anywhere_is_found_and_hurts_only_who_needs_it(vault: Vault) -> None:
    one, first, two, second = await _two_points(vault)
    rng = random.Random(5)
    keys = [
        *await _names(vault, vault.names.packs),
        *await _names(vault, vault.names.maps),
        *await _names(vault, vault.names.points),
    ]
    for round_ in range(24):
        key = keys[round_ % len(keys)]
        good = await vault.store.get(key)
        bit = rng.randrange(len(good) * 8)
        await _replace(vault, key, good[: bit // 8] + bytes([good[bit // 8] ^ 1 << bit % 8]) + good[bit // 8 + 1 :])
        report = await verify(vault, depth="full", record=False)
        assert not report.ok, (key, bit)
        hurt = {point for finding in report.findings for point in finding.points}
        for ref, volume in ((one, first), (two, second)):
            try:
                assert await restore(vault, ref) == volume
            except (Damaged, UnsupportedFormat):
                assert ref.key in hurt, (key, bit)
            else:
                assert ref.key not in hurt, (key, bit)
        await _replace(vault, key, good)
    assert (await verify(vault, depth="full")).ok


@pytest.mark.parametrize("prefix", ["packs", "maps"])
async def test_missing_truncated_and_swapped_objects_are_found(vault: Vault, prefix: str) -> None:
    await _two_points(vault)
    names = await _names(vault, getattr(vault.names, prefix))
    for key in names:
        good = await vault.store.get(key)
        other = await vault.store.get(names[0] if key != names[0] else names[-1])
        for bad in (None, good[: len(good) // 2], good[:-1], b"", other):
            await vault.store.delete(key)
            if bad is not None:
                await vault.store.put_new(key, bad)
            quick = await verify(vault, depth="quick", record=False)
            full = await verify(vault, depth="full", record=False)
            assert not full.ok, (key, bad and len(bad))
            if bad is None:
                assert not quick.ok
            await _replace(vault, key, good)


class _Behind(FaultyStore):
    """A store whose listings don't show one object yet."""

    def __init__(self, inner: Store, hidden: str) -> None:
        super().__init__(inner)
        self.hidden = hidden

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        async for info in super().list(prefix):
            if info.key != self.hidden:
                yield info


@pytest.mark.parametrize("depth", ["quick", "full"])
async def test_what_a_listing_does_not_show_yet_is_not_missing(vault: Vault, depth: Depth) -> None:
    await _two_points(vault)
    for name in await _names(vault, vault.names.packs):
        behind = msgspec.structs.replace(vault, store=_Behind(vault.store, name))
        # when the store is asked for all that a listing leaves out, then all is sound
        assert (await verify(behind, depth=depth, record=False)).ok, name
        # but what is damaged there is still found
        good = await vault.store.get(name)
        await _replace(vault, name, good[:-40])
        assert not (await verify(behind, depth="full", record=False)).ok, name
        await _replace(vault, name, good)


async def test_a_rolled_back_or_exchanged_manifest_is_found_against_the_digest_kept_outside(vault: Vault) -> None:
    one, _, two, _ = await _two_points(vault)
    assert (await verify(vault, points={one.key: one.digest, two.key: two.digest})).ok
    report = await verify(vault, points={one.key: two.digest})
    assert [finding.key for finding in report.findings] == [one.key]
    await vault.store.delete(two.key)
    report = await verify(vault, points={one.key: one.digest, two.key: two.digest})
    assert [finding.key for finding in report.findings] == [two.key]
    await vault.store.put_new(two.key, await vault.store.get(one.key))
    report = await verify(vault)
    assert [finding.key for finding in report.findings] == [two.key], "a manifest under another's name doesn't open"


async def test_a_damaged_chunk_names_its_points_and_the_next_backup_heals_it(vault: Vault) -> None:
    one, _, two, second = await _two_points(vault)
    manifest, _ = await open_manifest(vault, one.key)
    entry = (await MapReader(vault, manifest.root).lookup([500]))[500]
    key = vault.names.pack(entry.pack)
    good = await vault.store.get(key)
    at = entry.slot * 64 + 5
    await _replace(vault, key, good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    report = await verify(vault, depth="full")
    (finding,) = report.findings
    assert set(finding.points) == {one.key, two.key}
    assert finding.chunks == 2
    await verify(vault, depth="full")
    assert len(await _names(vault, vault.names.damaged)) == 1, "known damage is not written down twice"
    check = await check_base(vault, two)
    assert (check.usable, check.heal) == (True, ((500, 501),))

    healed = await backup(
        vault, second, sequence=3, touched=[i for a, b in check.heal for i in range(a, b)], base=two, chunk_size=SIZE
    )
    assert await restore(vault, healed) == second
    assert (await check_base(vault, healed)).heal == ()
    whole = await backup(vault, second, sequence=4, compare=two, chunk_size=SIZE)
    assert await restore(vault, whole) == second, "a comparison must not refer to the damaged chunk"
    with pytest.raises(Damaged):
        await restore(vault, two)
    for ref in (one, two):
        await remove(vault, ref, OpenFence())
    assert (await verify(vault, depth="full")).ok


async def test_a_missing_pack_is_healed_likewise(vault: Vault) -> None:
    one, _, two, second = await _two_points(vault)
    manifest, _ = await open_manifest(vault, two.key)
    entry = (await MapReader(vault, manifest.root).lookup([700]))[700]
    await vault.store.delete(vault.names.pack(entry.pack))
    with pytest.raises(ObjectMissing):
        await restore(vault, two)
    report = await verify(vault, depth="quick")
    assert [finding.points for finding in report.findings] == [(two.key,)]
    check = await check_base(vault, two)
    assert check.heal == ((3, 4), (700, 701), (1050, 1051))
    assert (await check_base(vault, one)).heal == ()
    healed = await backup(vault, second, sequence=3, touched=[3, 700, 1050], base=two, chunk_size=SIZE)
    assert await restore(vault, healed) == second


async def test_a_damaged_leaf_is_healed_and_a_damaged_root_makes_no_base(vault: Vault) -> None:
    one, first, _, _ = await _two_points(vault)
    manifest, _ = await open_manifest(vault, one.key)
    leaf = (await MapReader(vault, manifest.root).node_refs(0, [0]))[0]
    key = vault.names.map(leaf.object)
    good = await vault.store.get(key)
    at = leaf.slot * 64 + 9
    await _replace(vault, key, good[:at] + b"\0\1\2\3" + good[at + 4 :])
    report = await verify(vault, depth="quick")
    assert {point for finding in report.findings for point in finding.points} >= {one.key}
    check = await check_base(vault, one)
    assert (check.usable, check.heal) == (True, ((0, 1024),))
    healed = await backup(vault, first, sequence=3, touched=range(1024), base=one, chunk_size=SIZE)
    assert await restore(vault, healed) == first

    page = manifest.root.page
    assert page is not None
    from orchestrator.repository.page import Ref

    await vault.store.delete(vault.names.map(Ref.of(page).object))
    check = await check_base(vault, one)
    assert not check.usable
    assert "missing" in check.why


async def test_a_damage_record_that_can_not_be_read_stops_nobody(vault: Vault) -> None:
    one, _, _, _ = await _two_points(vault)
    await vault.store.put_new(vault.names.damaged + "00", b"garbage")
    index = await load_damage(vault)
    assert not index
    assert index.broken
    assert (await check_base(vault, one)).usable


async def test_progress_is_told(vault: Vault) -> None:
    await _two_points(vault)
    seen: list[tuple[int, int]] = []
    await verify(vault, depth="full", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2, 2)


async def _flip(vault: Vault, key: str, at: int) -> bytes:
    """Alter one byte of an object; return how it was."""
    good = await vault.store.get(key)
    await _replace(vault, key, good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    return good


async def test_hurt_points_are_told_with_their_volume_and_how_much_they_lost(vault: Vault) -> None:
    one, _, two, _ = await _two_points(vault)
    manifest, _ = await open_manifest(vault, two.key)
    entry = (await MapReader(vault, manifest.root).lookup([700]))[700]
    await vault.store.delete(vault.names.pack(entry.pack))
    good = await _flip(vault, one.key, 100)
    report = await verify(vault, depth="quick", record=False)
    assert [(p.key, p.pvc, p.name, p.chunks) for p in report.hurt] == [
        (one.key, "db", "", 0),
        (two.key, "db", "p-2", 3),
    ]
    assert report.digests == {two.key: two.digest}
    await _replace(vault, one.key, good)
    report = await verify(vault, depth="quick", record=False)
    assert [p.key for p in report.hurt] == [two.key], "a point that doesn't use it isn't hurt"
    assert report.digests == {one.key: one.digest, two.key: two.digest}


async def test_known_damage_is_looked_at_again_at_every_depth(vault: Vault) -> None:
    """Without this a sample that happens to miss it would tell of healing."""
    one, _, _, _ = await _two_points(vault)
    manifest, _ = await open_manifest(vault, one.key)
    entry = (await MapReader(vault, manifest.root).lookup([500]))[500]
    key = vault.names.pack(entry.pack)
    good = await _flip(vault, key, entry.slot * 64 + 5)
    assert (await verify(vault, depth="quick")).ok, "structure alone doesn't show it"
    assert not (await verify(vault, depth="full")).ok
    for depth in ("quick", 0.001):
        report = await verify(vault, depth=depth, turn=0)  # type: ignore[arg-type]
        assert [point.chunks for point in report.hurt] == [1, 1]
    await _replace(vault, key, good)
    assert (await verify(vault, depth="quick")).ok


async def test_turns_one_after_the_other_read_every_chunk_once(vault: Vault) -> None:
    await _two_points(vault)
    read = [(await verify(vault, depth=0.25, turn=turn)).chunks for turn in range(4)]
    assert sum(read) == 1103
    assert min(read) > 200
    assert (await verify(vault, depth=0.25, turn=7)).chunks == read[3]


async def test_a_runs_result_is_found_under_its_name_only(vault: Vault) -> None:
    one, _, two, _ = await _two_points(vault)
    result = result_of(await verify(vault), begun=START, ended=START, share=0.0)
    await put_result(vault, "run-1", result)
    await put_result(vault, "run-1", msgspec.structs.replace(result, points=99))
    found = await open_result(vault, "run-1")
    assert found == result, "of two pods of one run the first wins"
    assert found.digests == {one.key: one.digest, two.key: two.digest}
    assert await open_result(vault, "run-2") is None
    # an old result under a newer run's name is no result
    await vault.store.put_new(vault.names.verified + "run-2", await vault.store.get(vault.names.verified + "run-1"))
    with pytest.raises(Damaged):
        await open_result(vault, "run-2")
    assert await forget_results(vault) == 2
    assert await open_result(vault, "run-1") is None


async def test_finding_whom_damage_hurts_reads_what_points_share_once(vault: Vault) -> None:
    """Without this a thousand points of a large volume would cost a thousand times its map."""
    volume = bytearray(_volume(3, chunks=1100))
    ref = await backup(vault, bytes(volume), sequence=1, chunk_size=SIZE)
    for sequence in range(2, 22):
        volume[sequence * SIZE : (sequence + 1) * SIZE] = bytes([sequence]) * SIZE
        ref = await backup(vault, bytes(volume), sequence=sequence, touched=[sequence], base=ref, chunk_size=SIZE)
    manifest, _ = await open_manifest(vault, ref.key)
    entry = (await MapReader(vault, manifest.root).lookup([1050]))[1050]
    await vault.store.delete(vault.names.pack(entry.pack))
    counting = CountingStore(vault.store)
    report = await verify(msgspec.structs.replace(vault, store=counting), depth="quick")
    assert len(report.hurt) == 21
    assert [point.chunks for point in report.hurt] == [1100 - n for n in range(21)]
    # manifests twice, one page each with what is of one object joined, and the two leaves that all of them share once
    assert counting.requests["get"] <= 2 * 21 + 2 * 21 + 10


class _Whims(FaultyStore):
    """A store that answers reads of packs in an order of its own, and notes how many are under way."""

    def __init__(self, inner: Store, seed: int) -> None:
        super().__init__(inner)
        self.rng, self.together = random.Random(seed), asyncio.Event()
        self.under_way = self.most = self.bytes = self.most_bytes = 0

    async def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        if "/packs/" not in key:
            return await super().get_ranges(key, ranges)
        size = sum(length for _, length in ranges)
        self.under_way, self.bytes = self.under_way + 1, self.bytes + size
        self.most, self.most_bytes = max(self.most, self.under_way), max(self.most_bytes, self.bytes)
        if self.under_way > 1:
            self.together.set()
        # the first read is answered when a second is under way; what comes next may have to wait for this one, though
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.together.wait(), 2.0)
        for _ in range(self.rng.randrange(60)):
            await asyncio.sleep(0)
        try:
            return await super().get_ranges(key, ranges)
        finally:
            self.under_way, self.bytes = self.under_way - 1, self.bytes - size


async def _many_packs(vault: Vault) -> list[str]:
    """Make a point in many packs; return their names."""
    await backup(vault, _volume(9, chunks=400), sequence=1, chunk_size=SIZE, pack_size=20 * SIZE)
    names = await _names(vault, vault.names.packs)
    assert len(names) > 20
    return names


async def test_packs_are_read_side_by_side_and_the_findings_do_not_hang_on_who_answers_first(vault: Vault) -> None:
    # given many packs, some of them damaged, one gone
    names = await _many_packs(vault)
    for name in names[::4]:
        await _flip(vault, name, 200)
    await vault.store.delete(names[1])
    # when they are verified by stores that answer in any order
    seen, most = [], 0
    for seed in range(3):
        told: list[int] = []
        whims = _Whims(vault.store, seed)
        report = await verify(
            msgspec.structs.replace(vault, store=whims),
            depth="full",
            record=False,
            progress=lambda done, _total, told=told: told.append(done),  # type: ignore[misc]
        )
        seen.append(msgspec.json.encode(report))
        most = max(most, whims.most)
        assert told == list(range(1, len(names) + 1))
    # then they say the same, down to the order
    assert len(set(seen)) == 1
    assert len(report.findings) == len(names[::4]) + 1
    assert most > 1


async def test_how_much_of_packs_is_read_at_once_is_bounded(vault: Vault) -> None:
    await _many_packs(vault)
    whims = _Whims(vault.store, 1)
    # the real bound is two packs of the usual size; these are small
    window = Window(calls=8, weight=70 * SIZE)
    assert (await verify(msgspec.structs.replace(vault, store=whims), depth="full", window=window)).ok
    assert whims.most > 1
    assert whims.most_bytes <= 70 * SIZE


async def test_every_byte_of_a_pack_is_announced_before_it_is_read(vault: Vault) -> None:
    """Without this a limit of bandwidth would not hold."""
    await _many_packs(vault)
    for depth in ("full", 0.5):
        announced: list[int] = []

        def pace(size: int, announced: list[int] = announced) -> float:
            announced.append(size)
            return 0.0

        report = await verify(vault, depth=depth, pace=pace)  # type: ignore[arg-type]
        assert sum(announced) == report.bytes_read > 0


async def test_a_read_that_was_cut_short_once_is_no_damage(vault: Vault) -> None:
    names = await _many_packs(vault)
    short = {names[3], names[9]}

    def script(_number: int, verb: str, key: str) -> Fault | None:
        if verb == "get" and key in short:
            short.remove(key)
            return Fault.SHORT
        return None

    report = await verify(msgspec.structs.replace(vault, store=FaultyStore(vault.store, script)), depth="full")
    assert report.ok, report
    assert not short


async def test_a_verification_that_is_cancelled_leaves_no_read_behind(vault: Vault) -> None:
    # given a store that never answers
    await _many_packs(vault)
    reading = asyncio.Event()
    left: list[str] = []

    class Silent(FaultyStore):
        async def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
            if "/packs/" not in key:
                return await super().get_ranges(key, ranges)
            left.append(key)
            reading.set()
            try:
                await asyncio.Event().wait()
            finally:
                left.remove(key)
            return []

    # when its verification is cancelled
    run = asyncio.create_task(verify(msgspec.structs.replace(vault, store=Silent(vault.store)), depth="full"))
    async with asyncio.timeout(LONG):
        await reading.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
    # then nothing of it goes on
    assert left == []


async def test_a_store_that_does_not_answer_is_no_damage(vault: Vault) -> None:
    names = await _many_packs(vault)

    def script(_number: int, verb: str, key: str) -> Fault | None:
        return Fault.ERROR if verb == "get" and key == names[7] else None

    with pytest.raises(StoreUnavailable):
        await verify(msgspec.structs.replace(vault, store=FaultyStore(vault.store, script)), depth="full")
    assert await _names(vault, vault.names.damaged) == []
