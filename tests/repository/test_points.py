"""Intent, commit, removal: whatever the interleaving, a point is whole or isn't there."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import uuid

import pytest

from orchestrator.errors import LeaseStale
from orchestrator.fence import OpenFence
from orchestrator.repository.ending import outcome
from orchestrator.repository.errors import (
    BaseGone,
    Damaged,
    ManifestMissing,
    ObjectMissing,
    PointCancelled,
    ShardsMissing,
    StoreUnavailable,
)
from orchestrator.repository.intent import Intent, open_intent, put_intent
from orchestrator.repository.manifest import (
    PointRef,
    list_lineage,
    list_points,
    manifest_key,
    open_manifest,
)
from orchestrator.repository.plan import open_plan, shard_range
from orchestrator.repository.point import cancel, commit, remove
from orchestrator.repository.salvage import salvage
from orchestrator.repository.store import CountingStore
from orchestrator.repository.vault import Vault
from tests.repository.engine import START, announce, backup, copy, copy_shard, new_vault, point_record, restore
from tests.repository.faults import Fault, FaultyStore, ProcessDied

pytestmark = pytest.mark.quick
SIZE = 1024


def _volume(seed: int, chunks: int = 40) -> bytes:
    rng = random.Random(seed)
    return b"".join(rng.randbytes(SIZE) if rng.random() < 0.6 else bytes(SIZE) for _ in range(chunks))


async def _intent(
    vault: Vault, volume: bytes, *, sequence: int = 1, shards: int = 1, base: PointRef | None = None
) -> str:
    record = point_record(sequence=sequence, size=len(volume), chunk_size=SIZE, mode="delta" if base else "full")
    return await announce(vault, record, range(-(-len(volume) // SIZE)), base=base, shards=shards)


async def test_a_point_keeps_everything_that_was_known_before_the_copy(vault: Vault) -> None:
    volume = _volume(1)
    ref = await backup(vault, volume, sequence=7, chunk_size=SIZE)
    manifest, again = await open_manifest(vault, ref.key, digest=ref.digest)
    assert again == ref
    assert manifest.record.sequence == 7
    assert manifest.record.snapshot_handle == "snap-7"
    assert manifest.stats.volume == len(volume)
    assert manifest.writer.startswith("tidemark")
    assert [key async for key in list_points(vault)] == [ref.key] == await list_lineage(vault, "ab12")


async def test_another_digest_than_the_one_remembered_is_damage(vault: Vault) -> None:
    ref = await backup(vault, _volume(1), sequence=1, chunk_size=SIZE)
    with pytest.raises(Damaged, match="digest"):
        await open_manifest(vault, ref.key, digest="00" * 32)
    with pytest.raises(ManifestMissing):
        await open_manifest(vault, vault.names.point("ab12", 99, "x"))


async def test_an_intent_is_put_once_and_the_first_counts(vault: Vault) -> None:
    base = await backup(vault, _volume(1), sequence=1, chunk_size=SIZE)
    record = point_record(sequence=2, size=SIZE, chunk_size=SIZE)
    first = Intent(
        id=record.point_id, base=base, manifest_key=manifest_key(vault, record), lineage="ab12", created=START
    )
    stored = await put_intent(vault, first)
    assert len(stored.roots) == 1
    other = Intent(id=record.point_id, manifest_key=first.manifest_key, lineage="ab12", created=START)
    assert await put_intent(vault, other) == stored == await open_intent(vault, record.point_id)


async def test_a_base_that_is_gone_is_said_before_anything_reads_it(vault: Vault) -> None:
    base = await backup(vault, _volume(1), sequence=1, chunk_size=SIZE)
    await remove(vault, base, OpenFence())
    with pytest.raises(BaseGone):
        await _intent(vault, _volume(2), sequence=2, base=base)


async def test_a_base_removed_right_after_the_intent_was_put_is_noticed(vault: Vault) -> None:
    base = await backup(vault, _volume(1), sequence=1, chunk_size=SIZE)

    class RemovesBase(FaultyStore):
        async def put_new(self, key: str, data: object) -> None:
            await super().put_new(key, data)  # type: ignore[arg-type]
            if key.endswith("/intent"):
                await remove(vault, base, OpenFence())

    hooked = Vault(RemovesBase(vault.store), vault.keys)
    with pytest.raises(BaseGone):
        await _intent(hooked, _volume(2), sequence=2, base=base)


@pytest.mark.parametrize("bad", ["not-a-uuid", "../../x", "CA542801-011D-44E8-B55F-5F02968CFC29", ""])
async def test_an_intent_id_is_a_uuid_or_refused(vault: Vault, bad: str) -> None:
    with pytest.raises(ValueError, match=r"UUID|badly formed|manifest"):
        await put_intent(vault, Intent(id=bad, manifest_key=f"x-{bad}", lineage="a", created=START))


@pytest.mark.parametrize(("chunks", "shards"), [(1, 3), (1024, 2), (5000, 1), (5000, 3), (70_000, 7)])
def test_shards_cover_every_chunk_once_and_are_cut_at_leaves(chunks: int, shards: int) -> None:
    ranges = [shard_range(chunks, shards, number) for number in range(shards)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == chunks
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))
    assert all(first % 1024 == 0 or first == chunks for first, _ in ranges)


async def test_several_shards_make_one_point_and_none_may_be_missing(vault: Vault) -> None:
    volume = _volume(3, chunks=3000)
    intent_id = await _intent(vault, volume, shards=3)
    plan = await open_plan(vault, intent_id)
    for number in (2, 0):
        await copy_shard(vault, intent_id, plan, number, volume)
    with pytest.raises(ShardsMissing) as caught:
        await commit(vault, intent_id)
    assert caught.value.missing == (1,)
    assert await outcome(vault, intent_id) is None
    await copy_shard(vault, intent_id, plan, 1, volume)
    ref = await commit(vault, intent_id)
    assert await restore(vault, ref) == volume
    assert await commit(vault, intent_id) == ref == await outcome(vault, intent_id)


@pytest.mark.parametrize("left", ["intent", "damaged intent", "nothing"])
async def test_what_became_of_an_intent_is_known_also_when_it_is_gone(vault: Vault, left: str) -> None:
    # given two intents, one committed and one ended
    volume = _volume(3)
    ref = await copy(vault, made := await _intent(vault, volume), volume)
    over = await _intent(vault, volume, sequence=2)
    assert await outcome(vault, over) is None
    assert await cancel(vault, (await open_intent(vault, over)).manifest_key, over, why="test")
    # when nothing or little is left of them
    for intent_id in (made, over):
        if left != "intent":
            await vault.store.delete(vault.names.intent(intent_id))
        if left == "damaged intent":
            await vault.store.put_new(vault.names.intent(intent_id), b"TIDEMARK nonsense")
    # then their ends are known all the same
    assert await outcome(vault, made) == ref
    with pytest.raises(PointCancelled):
        await outcome(vault, over)


async def test_two_writers_of_one_point_in_any_interleaving_make_one_good_manifest(vault: Vault) -> None:
    volume = _volume(4, chunks=1100)

    class Shuffled(FaultyStore):
        """Lets the other writer go first at random moments."""

        def __init__(self, seed: int) -> None:
            super().__init__(vault.store)
            self.rng = random.Random(seed)

        async def put_new(self, key: str, data: object) -> None:
            for _ in range(self.rng.randrange(20)):
                await asyncio.sleep(0)
            await super().put_new(key, data)  # type: ignore[arg-type]

    for seed in range(4):
        intent_id = await _intent(vault, volume, sequence=seed, shards=2)
        writers = [Vault(Shuffled(seed * 10 + n), vault.keys) for n in range(3)]
        refs = await asyncio.gather(*(copy(writer, intent_id, volume, pack_size=200_000) for writer in writers))
        assert len(set(refs)) == 1
        assert await restore(vault, refs[0]) == volume


async def test_a_rerun_finds_what_an_earlier_try_stored_and_copies_only_the_rest(vault: Vault) -> None:
    volume = random.Random(1).randbytes(300 * SIZE)
    intent_id = await _intent(vault, volume)
    faulty = FaultyStore(vault.store, lambda _n, verb, key: Fault.CRASH if verb == "put" and "/maps/" in key else None)
    with pytest.raises(ProcessDied):
        await copy(Vault(faulty, vault.keys), intent_id, volume, pack_size=64 * SIZE)
    found = await salvage(vault, intent_id)
    assert len(found) == 300
    entry = found.get(17)
    assert entry is not None
    assert entry.id == vault.keys.chunk_id(volume[17 * SIZE : 18 * SIZE])
    assert found.get(300) is None
    counting = CountingStore(vault.store)
    ref = await copy(Vault(counting, vault.keys), intent_id, volume)
    assert counting.bytes_written < 60 * SIZE, "chunks were uploaded again"
    assert await restore(vault, ref) == volume


async def test_a_store_that_fails_while_salvaging_is_told_as_itself(vault: Vault) -> None:
    volume = random.Random(1).randbytes(300 * SIZE)
    intent_id = await _intent(vault, volume)
    await copy(vault, intent_id, volume, pack_size=64 * SIZE)
    faulty = FaultyStore(vault.store, lambda _n, verb, _key: Fault.ERROR if verb == "get" else None)
    with pytest.raises(StoreUnavailable):
        await salvage(Vault(faulty, vault.keys), intent_id)


async def test_a_torn_or_foreign_pack_of_the_intent_is_left_aside(vault: Vault) -> None:
    volume = _volume(5)
    intent_id = await _intent(vault, volume)
    await vault.store.put_new(f"{vault.names.packs}{intent_id}/{'ab' * 16}", b"garbage" * 100)
    await vault.store.put_new(f"{vault.names.packs}{intent_id}/readme", b"x")
    assert len(await salvage(vault, intent_id)) == 0
    assert await restore(vault, await copy(vault, intent_id, volume)) == volume


@pytest.mark.parametrize("fault", [Fault.CRASH, Fault.CRASH_AFTER, Fault.ERROR, Fault.LOST])
async def test_a_copy_cut_off_at_any_request_is_completed_by_the_next(vault: Vault, fault: Fault) -> None:
    volume = _volume(6)
    base = await backup(vault, _volume(5), sequence=0, chunk_size=SIZE)
    for number in range(60):
        record = point_record(sequence=number + 1, size=len(volume), chunk_size=SIZE, mode="delta")
        faulty = FaultyStore.at(vault.store, number, fault)
        try:
            intent_id = await announce(Vault(faulty, vault.keys), record, range(40), base=base)
            await copy(Vault(faulty, vault.keys), intent_id, volume)
        except (ProcessDied, StoreUnavailable):
            pass
        intent_id = await announce(vault, record, range(40), base=base)
        ref = await copy(vault, intent_id, volume)
        assert await restore(vault, ref) == volume
        if number >= len(faulty.requests):
            return
    pytest.fail("the copy never got through")


async def test_a_removed_point_is_gone_for_good(vault: Vault) -> None:
    volume = _volume(7)
    intent_id = await _intent(vault, volume)
    ref = await copy(vault, intent_id, volume)
    await remove(vault, ref, OpenFence())
    await remove(vault, ref, OpenFence())
    with pytest.raises(PointCancelled):
        await open_manifest(vault, ref.key)
    for call in (commit, outcome):
        with pytest.raises(PointCancelled):
            await call(vault, intent_id)
    with pytest.raises(PointCancelled):
        await copy(vault, intent_id, volume)


async def test_a_writer_that_commits_while_its_point_is_removed_does_not_bring_it_back(vault: Vault) -> None:
    volume = _volume(8)
    intent_id = await _intent(vault, volume)
    ref = await copy(vault, intent_id, volume)
    zombies = 2

    class CommitsInBetween(FaultyStore):
        async def delete(self, key: str) -> None:
            nonlocal zombies
            await super().delete(key)
            if key == ref.key and zombies:
                zombies -= 1
                await commit(vault, intent_id)

    await remove(Vault(CommitsInBetween(vault.store), vault.keys), ref, OpenFence())
    assert zombies == 0
    with pytest.raises(PointCancelled):
        await open_manifest(vault, ref.key)


async def test_a_stale_lease_removes_nothing(vault: Vault) -> None:
    class Stale:
        def check(self) -> None:
            raise LeaseStale("too old")

    ref = await backup(vault, _volume(9), sequence=1, chunk_size=SIZE)
    with pytest.raises(LeaseStale):
        await remove(vault, ref, Stale())
    assert await restore(vault, ref) == _volume(9)


async def test_a_removal_cut_off_at_any_request_is_completed_by_the_next(vault: Vault) -> None:
    for number in range(10):
        ref = await backup(vault, _volume(number), sequence=number, chunk_size=SIZE)
        faulty = FaultyStore.at(vault.store, number, Fault.CRASH_AFTER)
        with contextlib.suppress(ProcessDied):
            await remove(Vault(faulty, vault.keys), ref, OpenFence())
        await remove(vault, ref, OpenFence())
        with pytest.raises(PointCancelled):
            await open_manifest(vault, ref.key)


async def test_a_point_without_changes_costs_few_requests() -> None:
    from orchestrator.repository.store import open_store

    counting = CountingStore(await open_store(f"memory://{uuid.uuid4().hex}"))
    vault = await new_vault(counting)
    volume = _volume(2, chunks=3000)
    base = await backup(vault, volume, sequence=1, chunk_size=SIZE)
    counting.requests.clear()
    ref = await backup(vault, volume, sequence=2, touched=(), base=base, chunk_size=SIZE)
    assert counting.requests.total() <= 20, counting.requests
    assert await restore(vault, ref) == volume
    assert (await open_manifest(vault, ref.key))[0].root == (await open_manifest(vault, base.key))[0].root


async def test_a_plan_that_is_missing_is_said_to_be(vault: Vault) -> None:
    record = point_record(sequence=1, size=SIZE, chunk_size=SIZE)
    await put_intent(
        vault,
        Intent(id=record.point_id, manifest_key=manifest_key(vault, record), lineage="ab12", created=START),
    )
    with pytest.raises(ObjectMissing, match="plan"):
        await commit(vault, record.point_id)
