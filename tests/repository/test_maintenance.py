"""Sweeping: what nothing reaches goes, in two runs; what anything may still reach stays, whoever stops for how long."""

from __future__ import annotations

import contextlib
import random
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.errors import LeaseStale
from orchestrator.fence import OpenFence
from orchestrator.repository.crypto import Bytes
from orchestrator.repository.damage import DamageRecord, load_damage, put_damage
from orchestrator.repository.errors import BaseGone, PointCancelled, StoreUnavailable, SweepBlocked
from orchestrator.repository.intent import Intent, put_intent
from orchestrator.repository.layout import ObjectRef
from orchestrator.repository.maintenance import SweepPlan, SweepResult, plan_sweep, sweep, usage
from orchestrator.repository.manifest import PointRef, manifest_key, open_manifest
from orchestrator.repository.pack import PackBuilder
from orchestrator.repository.point import commit, remove
from orchestrator.repository.relocation import seal_relocation
from orchestrator.repository.store import CountingStore, open_store
from orchestrator.repository.vault import Vault
from tests.repository.engine import START, announce, backup, copy, new_vault, point_record, restore
from tests.repository.faults import Fault, FaultyStore, ProcessDied, Shelf

SIZE = 1024
DAY, WEEK = timedelta(days=1), timedelta(days=7)


def _volume(seed: int, chunks: int = 60) -> bytes:
    return random.Random(seed).randbytes(chunks * SIZE)


def _now(days: float = 0) -> datetime:
    """Return an instant as seen some days after the store's (real) clock."""
    return datetime.now(UTC) + timedelta(days=days, seconds=5)


async def _plan(vault: Vault, days: float = 0) -> SweepPlan:
    return await plan_sweep(vault, now=_now(days), grace=DAY, intent_age=WEEK)


async def _run(vault: Vault, days: float = 0) -> SweepResult:
    return await sweep(vault, await _plan(vault, days), OpenFence())


async def _names(vault: Vault, prefix: str) -> set[str]:
    return {info.key async for info in vault.store.list(prefix)}


async def test_what_points_need_stays_and_what_they_do_not_goes_in_a_later_run_after_the_grace_time(
    vault: Vault,
) -> None:
    kept = await backup(vault, _volume(1), sequence=1, chunk_size=SIZE)
    gone = await backup(vault, _volume(2), sequence=2, chunk_size=SIZE)
    assert (await _run(vault)).candidates == 0
    await remove(vault, gone, OpenFence())
    packs = await _names(vault, vault.names.packs)
    assert len(packs) == 2

    assert (await _run(vault, days=0)).candidates == 3, "its pack and its two map objects are written down"
    assert await _names(vault, vault.names.packs) == packs
    assert (await _run(vault, days=0.5)).deleted_objects == 0, "the grace time isn't over"
    assert await restore(vault, kept) == _volume(1)
    result = await _run(vault, days=1.5)
    assert result.deleted_objects == 3
    assert len(await _names(vault, vault.names.packs)) == 1
    assert await restore(vault, kept) == _volume(1)
    await _run(vault, days=3)
    assert await _names(vault, vault.names.sweeps) == set()
    gone_id = gone.key.partition("-")[2]
    assert not {key for key in await _names(vault, vault.names.intents) if gone_id in key}
    with pytest.raises(PointCancelled):
        await open_manifest(vault, gone.key)


async def test_a_plan_changes_nothing_and_says_why(vault: Vault) -> None:
    ref = await backup(vault, _volume(1), sequence=1, chunk_size=SIZE)
    await remove(vault, ref, OpenFence())
    before = await _names(vault, "")
    plan = await _plan(vault)
    assert await _names(vault, "") == before
    assert plan.candidate_count == 3
    assert "write down 3" in plan.sentence()


async def test_shared_chunks_live_as_long_as_any_point_that_shares_them(vault: Vault) -> None:
    volume = bytearray(_volume(1))
    base = await backup(vault, bytes(volume), sequence=1, chunk_size=SIZE)
    volume[5 * SIZE : 6 * SIZE] = b"x" * SIZE
    heir = await backup(vault, bytes(volume), sequence=2, touched=[5], base=base, chunk_size=SIZE)
    await remove(vault, base, OpenFence())
    for days in (0, 2, 4, 6):
        await _run(vault, days)
    assert await restore(vault, heir) == bytes(volume)


async def test_an_unfinished_point_is_never_touched_until_its_intent_is_too_old(vault: Vault) -> None:
    volume = _volume(3)
    record = point_record(sequence=1, size=len(volume), chunk_size=SIZE)
    intent_id = await announce(vault, record, range(60))
    faulty = FaultyStore(
        vault.store, lambda _n, verb, key: Fault.CRASH if verb == "put" and "/points/" in key else None
    )
    with pytest.raises(ProcessDied):
        await copy(Vault(faulty, vault.keys), intent_id, volume)
    for days in (0, 2, 4, 6):
        assert (await _run(vault, days)).deleted_objects == 0
    ref = await commit(vault, intent_id)
    assert await restore(vault, ref) == volume


async def test_an_old_intent_is_ended_and_its_leftovers_go(vault: Vault) -> None:
    volume = _volume(3)
    record = point_record(sequence=1, size=len(volume), chunk_size=SIZE)
    intent_id = await announce(vault, record, range(60))
    faulty = FaultyStore(
        vault.store, lambda _n, verb, key: Fault.CRASH if verb == "put" and "/points/" in key else None
    )
    with pytest.raises(ProcessDied):
        await copy(Vault(faulty, vault.keys), intent_id, volume)
    result = await _run(vault, days=8)
    assert (result.cancelled_intents, result.deleted_objects) == (1, 0)
    with pytest.raises(PointCancelled):
        await commit(vault, intent_id)
    for days in (8, 10, 12):
        await _run(vault, days)
    assert await _names(vault, vault.names.packs) == await _names(vault, vault.names.maps) == set()
    assert await _names(vault, vault.names.intents) == set()


class _StopsBeforeCommit(FaultyStore):
    """SIGSTOP right before the manifest's PUT: the world goes on for days, then the writer does."""

    def __init__(self, vault: Vault, base: PointRef, days: tuple[float, ...]) -> None:
        super().__init__(vault.store)
        self._vault, self._base, self._days = vault, base, days

    async def put_new(self, key: str, data: Bytes) -> None:
        if "/points/" in key:
            await remove(self._vault, self._base, OpenFence())
            for day in self._days:
                await _run(self._vault, day)
        await super().put_new(key, data)


@pytest.mark.parametrize("days", [(0, 2, 4, 6), (0, 2, 8, 10, 12, 14)])
async def test_a_writer_stopped_past_every_timeout_commits_no_hole(vault: Vault, days: tuple[float, ...]) -> None:
    volume = bytearray(_volume(1))
    base = await backup(vault, bytes(volume), sequence=1, chunk_size=SIZE)
    volume[0:SIZE] = b"n" * SIZE
    stopped = Vault(_StopsBeforeCommit(vault, base, days), vault.keys)
    if max(days) < 7:
        ref = await backup(stopped, bytes(volume), sequence=2, touched=[0], base=base, chunk_size=SIZE)
        assert await restore(vault, ref) == bytes(volume)
        await _run(vault, 20)
        assert await restore(vault, ref) == bytes(volume)
    else:
        with pytest.raises(PointCancelled):
            await backup(stopped, bytes(volume), sequence=2, touched=[0], base=base, chunk_size=SIZE)
        assert await _names(vault, vault.names.packs) == set()


async def test_a_sweep_stopped_between_plan_and_deletes_harms_nothing_made_since(vault: Vault) -> None:
    gone = await backup(vault, _volume(1), sequence=1, chunk_size=SIZE)
    await remove(vault, gone, OpenFence())
    await _run(vault)
    late = await _plan(vault, days=2)
    assert late.deletion_count == 3
    ref = await backup(vault, _volume(1), sequence=2, chunk_size=SIZE)
    heir = await backup(vault, _volume(1), sequence=3, touched=[], base=ref, chunk_size=SIZE)
    await _run(vault, days=3)
    assert (await sweep(vault, late, OpenFence())).deleted_objects == 3
    assert await restore(vault, ref) == await restore(vault, heir) == _volume(1)


async def test_a_stale_lease_deletes_nothing(vault: Vault) -> None:
    class Stale:
        def check(self) -> None:
            raise LeaseStale("too old")

    gone = await backup(vault, _volume(1), sequence=1, chunk_size=SIZE)
    await remove(vault, gone, OpenFence())
    await _run(vault)
    before = await _names(vault, "")
    with pytest.raises(LeaseStale):
        await sweep(vault, await _plan(vault, days=2), Stale())
    assert await _names(vault, "") == before


@pytest.mark.parametrize("what", ["manifest", "page", "intent"])
async def test_nothing_is_deleted_when_something_that_says_what_lives_can_not_be_read(vault: Vault, what: str) -> None:
    ref = await backup(vault, _volume(1), sequence=1, chunk_size=SIZE)
    gone = await backup(vault, _volume(2), sequence=2, chunk_size=SIZE)
    await remove(vault, gone, OpenFence())
    await _run(vault)
    record = point_record(sequence=3, size=60 * SIZE, chunk_size=SIZE)
    intent_id = await announce(vault, record, range(60), base=ref)
    own = ref.key.partition("-")[2]
    page, _ = {key for key in await _names(vault, vault.names.maps) if own in key}
    key = {"manifest": ref.key, "page": page, "intent": vault.names.intent(intent_id)}[what]
    data = await vault.store.get(key)
    await vault.store.delete(key)
    await vault.store.put_new(key, data[:-1] + bytes([data[-1] ^ 1]))
    before = await _names(vault, "")
    with pytest.raises(SweepBlocked):
        await _run(vault, days=2)
    assert await _names(vault, "") == before


LAST, VERSION = -1, 8
"""Bytes to alter: of what is sealed, or what makes an object look like a newer release's."""


async def _damage(vault: Vault, key: str, at: int = LAST) -> None:
    data = bytearray(await vault.store.get(key))
    data[at] ^= 1
    await vault.store.delete(key)
    await vault.store.put_new(key, bytes(data))


async def _unreadable_intent(vault: Vault, at: int) -> tuple[PointRef, str]:
    """Make a point, an unfinished heir whose intent is damaged, and remove the point."""
    base = await backup(vault, _volume(1), sequence=1, chunk_size=SIZE)
    record = point_record(sequence=2, size=60 * SIZE, chunk_size=SIZE, mode="delta", parent=base)
    intent_id = await announce(vault, record, [3], base=base)
    await _damage(vault, vault.names.intent(intent_id), at)
    await remove(vault, base, OpenFence())
    return PointRef(manifest_key(vault, record), ""), intent_id


@pytest.mark.parametrize("at", [LAST, VERSION])
async def test_a_damaged_intent_is_ended_by_its_plan_when_it_is_old_and_sweeping_goes_on(vault: Vault, at: int) -> None:
    point, intent_id = await _unreadable_intent(vault, at)
    packs = await _names(vault, vault.names.packs)
    with pytest.raises(SweepBlocked):
        await _run(vault, days=6)
    # when it is a week old
    plan = await _plan(vault, days=8)
    assert "can't be read" in plan.sentence()
    result = await sweep(vault, plan, OpenFence())
    # then nobody can commit it, and in the same run nothing else happened
    assert result == SweepResult(cancelled_intents=1)
    with pytest.raises(PointCancelled):
        await open_manifest(vault, point.key)
    assert await _names(vault, vault.names.packs) == packs
    for days in (8, 10, 12):
        await _run(vault, days)
    assert await _names(vault, vault.names.packs) == set()
    assert not {key for key in await _names(vault, vault.names.intents) if intent_id in key}


@pytest.mark.parametrize("at", [LAST, VERSION])
async def test_a_person_may_end_a_damaged_intent_at_once_even_without_its_plan(vault: Vault, at: int) -> None:
    kept = await backup(vault, _volume(5), sequence=9, chunk_size=SIZE)
    _, intent_id = await _unreadable_intent(vault, at)
    await _damage(vault, vault.names.plan(intent_id), at)
    with pytest.raises(SweepBlocked):
        await _run(vault, days=20)
    plan = await plan_sweep(vault, now=_now(), grace=DAY, intent_age=WEEK, end_intents=[intent_id])
    await sweep(vault, plan, OpenFence())
    assert not {key for key in await _names(vault, vault.names.intents) if intent_id in key}
    for days in (0, 2, 4):
        await _run(vault, days)
    assert len(await _names(vault, vault.names.packs)) == 1
    assert await restore(vault, kept) == _volume(5)


@pytest.mark.system
@pytest.mark.parametrize("fault", [Fault.CRASH, Fault.LOST, Fault.STALE])
async def test_maintenance_cut_off_at_any_request_can_start_again(fault: Fault) -> None:
    for number in range(100):
        vault = await new_vault(await open_store(f"memory://{uuid.uuid4().hex}"))
        kept = await backup(vault, _volume(1), sequence=1, chunk_size=SIZE)
        gone = await backup(vault, _volume(2), sequence=2, chunk_size=SIZE)
        await remove(vault, gone, OpenFence())
        requests = 0
        for days in (0, 2, 4):
            faulty = FaultyStore.at(vault.store, number, fault)
            with contextlib.suppress(ProcessDied, StoreUnavailable):
                await _run(Vault(faulty, vault.keys), days)
            requests = max(requests, len(faulty.requests))
        for days in (4, 6, 8):
            await _run(vault, days)
        assert len(await _names(vault, vault.names.packs)) == 1
        assert await restore(vault, kept) == _volume(1)
        if number >= requests:
            return
    pytest.fail("maintenance never got through")


@pytest.mark.parametrize("number", range(8))
async def test_a_removal_that_was_cut_off_is_completed_and_a_writer_woken_meanwhile_blocks_nobody(
    vault: Vault, number: int
) -> None:
    kept = await backup(vault, _volume(1), sequence=1, chunk_size=SIZE)
    gone = await backup(vault, _volume(2), sequence=2, chunk_size=SIZE)
    manifest = await vault.store.get(gone.key)
    faulty = FaultyStore.at(vault.store, number, Fault.CRASH_AFTER)
    with contextlib.suppress(ProcessDied):
        await remove(Vault(faulty, vault.keys), gone, OpenFence())
    begun = any(verb == "put" for verb, _ in faulty.requests)
    if begun and await vault.store.head(gone.key) is None:
        # A writer stopped right before its manifest's PUT wakes: its pages may be gone by now.
        await vault.store.put_new(gone.key, manifest)
        for key in await _names(vault, vault.names.maps):
            if gone.key.partition("-")[2] in key:
                await vault.store.delete(key)
    for days in (0, 2, 4, 6):
        await _run(vault, days)
    assert await restore(vault, kept) == _volume(1)
    assert await _names(vault, vault.names.removing) == set()
    if begun:
        with pytest.raises(PointCancelled):
            await open_manifest(vault, gone.key)
        assert len(await _names(vault, vault.names.packs)) == 1


@pytest.mark.parametrize("number", range(4))
async def test_a_removal_cut_off_of_a_point_whose_base_is_long_gone_blocks_no_sweep(vault: Vault, number: int) -> None:
    """Its intent still names the base's map: what a doomed point was built on is nobody's concern."""
    # given a point that holds nothing of its base, which was removed and swept
    base = await backup(vault, _volume(1), sequence=1, chunk_size=SIZE)
    heir = await backup(vault, _volume(2), sequence=2, touched=range(60), base=base, chunk_size=SIZE)
    kept = await backup(vault, _volume(3), sequence=3, chunk_size=SIZE)
    await remove(vault, base, OpenFence())
    for days in (0, 2, 4):
        await _run(vault, days)
    # when its own removal is cut off
    faulty = FaultyStore.at(vault.store, number, Fault.CRASH_AFTER)
    with contextlib.suppress(ProcessDied):
        await remove(Vault(faulty, vault.keys), heir, OpenFence())
    # then maintenance goes on, and completes it if it had begun
    for days in (4, 6, 8):
        await _run(vault, days)
    begun = any(verb == "put" for verb, _ in faulty.requests)
    assert len(await _names(vault, vault.names.packs)) == 2 - begun
    assert await restore(vault, kept) == _volume(3)


async def test_what_a_removal_that_has_only_begun_still_reaches_is_not_written_down(vault: Vault) -> None:
    """Else a point that is built on it right now would lose it without the grace time for its readers."""
    ref = await backup(vault, _volume(1), sequence=1, chunk_size=SIZE)
    begun = FaultyStore.at(vault.store, 2, Fault.CRASH)
    with contextlib.suppress(ProcessDied):
        await remove(Vault(begun, vault.keys), ref, OpenFence())
    assert [verb for verb, _ in begun.requests] == ["get", "put", "delete"]
    assert (await restore(vault, ref)) == _volume(1)
    plan = await _plan(vault)
    assert (plan.candidate_count, plan.removals) == (0, (ref.key,))


async def _days_later(vault: Vault, shelf: Shelf, days: float) -> SweepResult:
    shelf.now += timedelta(days=days)
    plan = await plan_sweep(vault, now=shelf.now + timedelta(seconds=5), grace=DAY, intent_age=WEEK)
    return await sweep(vault, plan, OpenFence())


class _StopsBeforeIntent(FaultyStore):
    """SIGSTOP right before an intent is put, for days: its base is removed and swept."""

    def __init__(self, vault: Vault, shelf: Shelf, gone: PointRef) -> None:
        super().__init__(shelf)
        self._vault, self._shelf, self._gone = vault, shelf, gone

    async def put_new(self, key: str, data: Bytes) -> None:
        await remove(self._vault, self._gone, OpenFence())
        for _ in range(3):
            await _days_later(self._vault, self._shelf, 2)
        await super().put_new(key, data)


@pytest.mark.parametrize("rung", ["base", "compare", "refers"])
async def test_an_intent_put_long_after_its_base_was_swept_blocks_no_sweep_and_ends_by_its_age(rung: str) -> None:
    # given a writer that opened its base, and was stopped before it announced that
    shelf = Shelf()
    vault = await new_vault(shelf)
    base = await backup(vault, _volume(1), sequence=1, chunk_size=SIZE)
    kept = await backup(vault, _volume(2), sequence=2, chunk_size=SIZE)
    record = point_record(sequence=3, size=60 * SIZE, chunk_size=SIZE)
    intent = Intent(
        id=record.point_id,
        manifest_key=manifest_key(vault, record),
        lineage=record.lineage,
        created=START,
        base=base if rung == "base" else None,
        compare=base if rung == "compare" else None,
        refers=(base,) if rung == "refers" else (),
    )
    # when it wakes and does so, its base being swept by then
    late = Vault(_StopsBeforeIntent(vault, shelf, base), vault.keys)
    with pytest.raises(BaseGone) if rung != "refers" else contextlib.nullcontext():
        await put_intent(late, intent)
    assert len(await _names(vault, vault.names.packs)) == 1
    # then maintenance goes on all the same, and ends that intent when it is old
    assert (await _days_later(vault, shelf, 1)).cancelled_intents == 0
    assert (await _days_later(vault, shelf, 7)).cancelled_intents == 1
    for _ in range(2):
        await _days_later(vault, shelf, 2)
    assert not {name for name in await _names(vault, vault.names.intents) if record.point_id in name}
    assert await restore(vault, kept) == _volume(2)


async def test_each_distinct_page_is_read_once(vault: Vault) -> None:
    volume = bytearray(_volume(1, chunks=3000))
    ref = await backup(vault, bytes(volume), sequence=0, chunk_size=SIZE)
    for sequence in range(1, 15):
        volume[sequence * SIZE : (sequence + 1) * SIZE] = b"c" * SIZE
        ref = await backup(vault, bytes(volume), sequence=sequence, touched=[sequence], base=ref, chunk_size=SIZE)
    counting = CountingStore(vault.store)
    plan = await _plan(Vault(counting, vault.keys))
    assert plan.points == 15
    # Three leaves and an inner page of the first point, and 14 more inner pages.
    assert plan.pages == 18


async def test_a_moved_pack_is_followed_and_kept(vault: Vault) -> None:
    volume = _volume(4)
    ref = await backup(vault, volume, sequence=1, chunk_size=SIZE)
    (name,) = await _names(vault, vault.names.packs)
    intent_id, random_part = name.removeprefix(vault.names.packs).split("/")
    old = ObjectRef.named(intent_id, random_part)
    # What compaction will do: copy chunks into a new pack, say where they went, delete the old pack later.
    from orchestrator.repository.chunkmap import MapReader
    from orchestrator.repository.compression import compress
    from orchestrator.repository.packreader import PackReader

    manifest, _ = await open_manifest(vault, ref.key)
    reader = PackReader(vault, SIZE)
    pack = PackBuilder(vault, intent_id, bytearray(1 << 20))
    moves = {}
    async for batch in MapReader(vault, manifest.root).batches():
        for index, entry in reversed(batch):
            codec, packed = compress(await reader.read(entry))
            placed = pack.add(index, entry.id, packed, codec)
            assert placed is not None
            moves[entry.slot] = (placed.pack, placed.slot)
    await vault.store.put_new(pack.name, pack.finish())
    await vault.store.put_new(*seal_relocation(vault, old, moves))
    await vault.store.delete(name)
    assert await restore(vault, ref) == volume
    for days in (0, 2, 4):
        await _run(vault, days)
    assert await restore(vault, ref) == volume
    from orchestrator.repository.verify import verify

    assert (await verify(vault, depth="full")).ok


async def test_damage_records_about_nothing_are_tidied_and_others_kept(vault: Vault) -> None:
    ref = await backup(vault, _volume(1), sequence=1, chunk_size=SIZE)
    (name,) = await _names(vault, vault.names.packs)
    real = ObjectRef.named(*name.removeprefix(vault.names.packs).split("/"))
    for pack in (real, ObjectRef(real.intent, bytes(16))):
        record = DamageRecord(kind="pack", object=pack.to_bytes().hex(), what="test", found=START)
        await put_damage(vault, record, [1])
    await _run(vault)
    assert set((await load_damage(vault)).packs) == {real}
    assert await restore(vault, ref) == _volume(1)


async def test_usage_counts_what_is_there(vault: Vault) -> None:
    await backup(vault, _volume(1), sequence=1, chunk_size=SIZE)
    seen = await usage(vault)
    assert seen.points == 1
    assert seen.objects == len(await _names(vault, vault.names.prefix))
    assert seen.bytes > 60 * SIZE
