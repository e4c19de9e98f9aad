"""Compaction: what lives in mostly dead packs moves, and every point restores at every moment of it."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from orchestrator.fence import OpenFence
from orchestrator.repository.compaction import Compaction
from orchestrator.repository.crypto import Bytes
from orchestrator.repository.errors import StoreUnavailable
from orchestrator.repository.layout import ObjectRef
from orchestrator.repository.maintenance import SweepPlan, plan_sweep, sweep
from orchestrator.repository.manifest import PointRef, open_manifest
from orchestrator.repository.packreader import PackReader
from orchestrator.repository.relocation import open_relocation, parse_relocation, seal_relocation
from orchestrator.repository.store import Store, open_store
from orchestrator.repository.vault import Vault
from orchestrator.repository.verify import verify
from tests.repository.engine import new_vault
from tests.repository.faults import Fault, FaultyStore, ProcessDied
from tests.repository.world import DAY, SIZE, WEEK, World

EVERY = int(os.environ.get("TIDEMARK_COMPACTION_EVERY", "7"))
"""Which requests are cut off; all of them on demand: TIDEMARK_COMPACTION_EVERY=1."""


async def _half_dead(vault: Vault) -> World:
    """Make a point most of which its heir has replaced, and remove it."""
    world = World(vault)
    await world.point()
    await world.point(0.7)
    await world.prune(1)
    return world


async def test_what_lives_in_mostly_dead_packs_moves_and_the_old_packs_go_in_a_later_run(vault: Vault) -> None:
    world = await _half_dead(vault)
    before = await world.names("packs/")
    stored = await world.packs_bytes()
    result = await world.run()
    assert result.compacted.packs >= 3
    assert before <= await world.names("packs/"), "readers may still be at the old packs"
    await world.check()
    await world.run(0.1)
    await world.run(2)
    await world.check()
    assert len(await world.names("packs/") & before) < len(before)
    assert await world.packs_bytes() < 0.8 * stored
    assert (await world.plan()).compact == ()
    report = await verify(vault, depth="full")
    assert report.ok, report
    assert await world.names("intents/") != set()


async def test_records_and_intents_go_when_nothing_names_the_old_pack_any_more(vault: Vault) -> None:
    world = await _half_dead(vault)
    await world.settle_down()
    assert await world.names("relocated/") != set()
    assert await world.names("compacted/") != set()
    # when every chunk was replaced since
    await world.point(1.0)
    await world.prune(1)
    await world.settle_down()
    # then nothing of the compaction is left
    assert await world.names("relocated/") == set()
    assert await world.names("compacted/") == set()
    own = max(world.points, key=lambda ref: ref.key).key.partition("-")[2]
    assert all(own in key for key in await world.names("packs/"))
    await world.check()


@pytest.mark.system
async def test_a_pack_compacted_again_and_again_is_one_hop_away(vault: Vault) -> None:
    world = World(vault, chunks=200)
    await world.point()
    compacted = generations = 0
    for _ in range(14):
        await world.point(0.15)
        await world.prune(2)
        compacted += (await world.run(2)).compacted.packs
        await world.check()
        packs = await world.names("packs/")
        for key in await world.names("relocated/"):
            old, generation = parse_relocation(vault, key)
            generations = max(generations, generation)
            found = await open_relocation(vault, old)
            assert found is not None
            assert vault.names.pack(old) in packs or any(vault.names.pack(to) in packs for to in found.targets)
    assert compacted > 20
    assert generations >= 2
    report = await verify(vault, depth="full")
    assert report.ok, report


@pytest.mark.system
async def test_a_reader_that_knew_an_older_record_follows_the_newer_one(vault: Vault) -> None:
    world = World(vault, chunks=100)
    await world.point()
    readers: list[tuple[PackReader, PointRef]] = []
    for _ in range(12):
        ref = await world.point(0.2)
        await world.prune(1)
        await world.run(2)
        reader = PackReader(vault, SIZE)
        readers.append((reader, ref))
        from orchestrator.repository.chunkmap import MapReader

        manifest, _ = await open_manifest(vault, ref.key)
        entries = {i: e async for batch in MapReader(vault, manifest.root).batches() for i, e in batch}
        for old_reader, _ in readers:
            for index, entry in entries.items():
                assert old_reader.open((await old_reader.fetch(entry.pack, [entry]))[0]) == bytes(
                    world.volume[index * SIZE : (index + 1) * SIZE]
                )


@pytest.mark.system
@pytest.mark.parametrize("fault", [Fault.CRASH, Fault.CRASH_AFTER, Fault.LOST, Fault.STALE])
async def test_compaction_cut_off_at_any_request_can_start_again(fault: Fault) -> None:
    for number in range(list(Fault).index(fault) % EVERY, 200, EVERY):
        world = await _half_dead(await new_vault(await open_store(f"memory://{uuid.uuid4().hex}")))
        faulty = FaultyStore.at(world.vault.store, number, fault)
        with contextlib.suppress(ProcessDied, StoreUnavailable):
            await world.run(0, Vault(faulty, world.vault.keys))
        await world.check()
        for _ in range(4):
            await world.run(8)
            await world.check()
        assert await world.packs_bytes() < 60 * SIZE * 1.6
        assert not {key for key in await world.names("intents/") if key.endswith("/moves")}
        if number >= len(faulty.requests):
            return
    pytest.fail("the run never got through")


class _Stops(FaultyStore):
    """SIGSTOP right before one PUT: the world goes on, then the process does."""

    def __init__(self, inner: Store, part: str, meanwhile: Callable[[], Awaitable[None]]) -> None:
        super().__init__(inner)
        self._part: str | None = part
        self._meanwhile = meanwhile

    async def put_new(self, key: str, data: Bytes) -> None:
        if self._part is not None and self._part in key:
            self._part = None
            await self._meanwhile()
        await super().put_new(key, data)


@pytest.mark.system
@pytest.mark.parametrize("part", ["/packs/", "/moves", "/compacted/", "/relocated/"])
@pytest.mark.parametrize("step", [1, 8])
async def test_a_compaction_stopped_for_weeks_and_woken_again_harms_no_point(
    vault: Vault, part: str, step: float
) -> None:
    world = await _half_dead(vault)
    # what is to move has moved before: the packs that its maps name are gone
    for _ in range(3):
        await world.run(2)
    await world.point(0.6)
    await world.prune(1)

    async def meanwhile() -> None:
        for _ in range(5):
            if step < 8:
                await world.point(0.3)
                await world.prune(2)
            plan = await world.plan(step)
            # (where the others compact too, theirs may be what counts)
            plan = plan if step < 8 else msgspec.structs.replace(plan, compact=())
            await sweep(vault, plan, OpenFence(), pack_size=16 * SIZE)
        await world.check()

    stopped = Vault(_Stops(vault.store, part, meanwhile), vault.keys)
    await world.run(0, stopped)
    await world.check()
    await world.settle_down()
    await world.check()
    report = await verify(vault, depth="full")
    assert report.ok, report
    assert await world.packs_bytes() < 60 * SIZE * 3


async def test_two_maintenances_at_once_move_a_pack_twice_and_one_of_them_counts(vault: Vault) -> None:
    world = await _half_dead(vault)
    first, second = await world.plan(), await world.plan()
    assert first.compact
    await sweep(vault, first, OpenFence(), pack_size=16 * SIZE)
    late = await sweep(vault, second, OpenFence(), pack_size=16 * SIZE)
    assert late.compacted.packs == 0, "seen before copying: a record is there already"
    await world.check()

    # and stopped between looking and copying, both do the work
    world = await _half_dead(await new_vault(await open_store(f"memory://{uuid.uuid4().hex}")))

    async def meanwhile() -> None:
        assert (await world.run()).compacted.packs >= 3

    stopped = Vault(_Stops(world.vault.store, "/packs/", meanwhile), world.vault.keys)
    assert (await world.run(0, stopped)).compacted.packs >= 3
    await world.check()
    await world.settle_down()
    await world.check()
    assert await world.packs_bytes() < 60 * SIZE * 1.6


async def test_a_late_sweep_of_an_old_plan_deletes_nothing_that_a_compaction_made(vault: Vault) -> None:
    world = await _half_dead(vault)
    await world.run()
    await world.run(2)
    late = await world.plan(2)
    await world.point(0.5)
    await world.prune(1)
    for _ in range(4):
        await world.run(2)
    await sweep(vault, late, OpenFence(), pack_size=16 * SIZE)
    await world.check()


async def test_a_writer_whose_base_is_compacted_meanwhile_commits_no_hole(vault: Vault) -> None:
    world = World(vault, chunks=100)
    await world.point()
    for _ in range(3):
        await world.point(0.3)

    async def meanwhile() -> None:
        await world.prune(1)
        for _ in range(3):
            await world.run(2)

    world.vault = Vault(_Stops(vault.store, "/points/", meanwhile), vault.keys)
    await world.point(0.1)
    world.vault = vault
    await world.check()
    await world.prune(1)
    await world.settle_down()
    await world.check()


async def test_a_pack_with_a_damaged_chunk_is_left_alone(vault: Vault) -> None:
    world = await _half_dead(vault)
    plan = await world.plan()
    choice = plan.compact[0]
    name = vault.names.pack(choice.pack)
    data = bytearray(await vault.store.get(name))
    slot, _ = choice.slots()[0]
    data[slot * 64 + 5] ^= 1
    await vault.store.delete(name)
    await vault.store.put_new(name, bytes(data))
    done = (await sweep(vault, plan, OpenFence(), pack_size=16 * SIZE)).compacted
    assert done.unreadable == 1
    assert done.packs == len(plan.compact) - 1
    await world.settle_down()
    assert name in await world.names("packs/")
    report = await verify(vault, depth="full")
    assert {finding.key for finding in report.findings} == {name}


async def test_a_new_pack_that_is_missing_keeps_the_old_one(vault: Vault) -> None:
    world = await _half_dead(vault)
    before = await world.names("packs/")
    await world.run()
    for key in await world.names("packs/") - before:
        await vault.store.delete(key)
    await world.settle_down()
    await world.check()


async def test_a_record_that_does_not_know_all_that_lives_lets_no_pack_go(vault: Vault) -> None:
    world = await _half_dead(vault)
    choice = (await world.plan()).compact[0]
    other = next(iter(await world.names("packs/") - {vault.names.pack(choice.pack)}))
    to = ObjectRef.named(*other.removeprefix(vault.names.packs).split("/"))
    await vault.store.put_new(*seal_relocation(vault, choice.pack, {slot: (to, 1) for slot, _ in choice.slots()[1:]}))
    await world.settle_down()
    assert vault.names.pack(choice.pack) in await world.names("packs/")
    await world.check()


async def test_nothing_is_compacted_when_most_of_it_lives(vault: Vault) -> None:
    world = World(vault)
    await world.point()
    await world.point(0.2)
    await world.prune(1)
    assert (await world.run()).compacted == Compaction()


async def test_many_small_packs_are_brought_together_once_and_a_few_are_left_alone(vault: Vault) -> None:
    world = World(vault, chunks=30)
    await world.point()

    async def plan(days: float) -> SweepPlan:
        now = datetime.now(UTC) + timedelta(days=days, seconds=5)
        return await plan_sweep(vault, now=now, grace=DAY, intent_age=WEEK)

    # given fewer than sixteen packs, each of them much smaller than a pack should be
    for _ in range(12):
        await world.point(0.05)
    assert len(await world.names("packs/")) == 15
    assert (await plan(0)).compact == ()
    # when there is one more
    await world.point(0.05)
    assert len((await plan(0)).compact) == 16
    for days in (0, 2, 4):
        await sweep(vault, await plan(days), OpenFence())
        await world.check()
    # then one pack has it all, and isn't touched again
    assert len(await world.names("packs/")) == 1
    assert (await plan(6)).compact == ()
    assert (await verify(vault, depth="full")).ok
