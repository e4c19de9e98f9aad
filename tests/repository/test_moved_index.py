"""Copies of relocation records: what they save, and that nothing hangs on them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from orchestrator.fence import OpenFence
from orchestrator.repository.chunkmap import MapReader
from orchestrator.repository.errors import SweepBlocked
from orchestrator.repository.indexing import Index
from orchestrator.repository.layout import ObjectRef
from orchestrator.repository.maintenance import sweep
from orchestrator.repository.manifest import open_manifest
from orchestrator.repository.movedindex import copy_of, open_index, put_index
from orchestrator.repository.pack import Entry
from orchestrator.repository.packreader import PackReader
from orchestrator.repository.relocation import Relocation, open_generation, parse_relocation
from orchestrator.repository.vault import Vault
from orchestrator.repository.verify import verify
from tests.repository.engine import START, restore
from tests.repository.faults import FaultyStore
from tests.repository.world import SIZE, World


async def _moved(vault: Vault) -> World:
    """Make a point nearly all of whose packs were compacted, and are gone."""
    world = World(vault, chunks=352)
    await world.point()
    await world.point(0.6)
    await world.prune(1)
    await world.settle_down()
    assert len(await world.names("moved/")) == 1
    assert len(await world.names("relocated/")) > 16
    return world


def _counted(vault: Vault) -> tuple[Vault, Counter[tuple[str, str]]]:
    """Return a vault whose requests can be counted by verb and folder, once `requests` was asked."""
    store = FaultyStore(vault.store)
    return Vault(store, vault.keys), _Requests(store)


class _Requests(Counter[tuple[str, str]]):
    def __init__(self, store: FaultyStore) -> None:
        self.store = store

    def __missing__(self, key: tuple[str, str]) -> int:
        return sum((verb, name.split("/")[2]) == key for verb, name in self.store.requests)


async def _entries(vault: Vault, world: World) -> dict[ObjectRef, list[Entry]]:
    manifest, _ = await open_manifest(vault, next(iter(world.points)).key)
    found: dict[ObjectRef, list[Entry]] = {}
    async for batch in MapReader(vault, manifest.root).batches():
        for _, entry in batch:
            found.setdefault(entry.pack, []).append(entry)
    return found


async def test_a_run_in_which_nothing_changed_reads_no_record_of_a_pack_that_is_gone(vault: Vault) -> None:
    world = await _moved(vault)
    counted, requests = _counted(vault)
    plan = await world.plan(0, counted)
    assert requests["get", "relocated"] == 0
    assert requests["get", "moved"] == 1
    assert (plan.index.count, plan.index.stale) == (0, ())


async def test_what_a_run_reads_of_records_follows_what_was_moved_since_the_last(vault: Vault) -> None:
    world = await _moved(vault)
    before = await world.names("relocated/")
    # when a few more packs are compacted
    await world.point(0.1)
    await world.prune(1)
    await world.run(2)
    fresh = await world.names("relocated/") - before
    assert 0 < len(fresh) < len(before)
    # then the next run reads those
    counted, requests = _counted(vault)
    await world.plan(0, counted)
    assert requests["get", "relocated"] <= len(fresh)


async def test_a_reader_finds_packs_that_are_gone_with_a_few_requests(vault: Vault) -> None:
    world = await _moved(vault)
    by_pack = await _entries(vault, world)
    here = await world.names("packs/")
    gone = [pack for pack in by_pack if vault.names.pack(pack) not in here]
    assert len(gone) > 16
    # when it reads every chunk that the point names, some packs at a time
    counted, requests = _counted(vault)
    reader, packs, sealed = PackReader(counted, SIZE), sorted(by_pack), []
    sealed += await reader.fetch_all({pack: by_pack[pack] for pack in packs[:4]})
    sealed += await reader.fetch_all({pack: by_pack[pack] for pack in packs[4:]})
    for piece in sealed:
        reader.open(piece)
    # then it looked for few of the moved packs, and read each new pack once for each of the two calls
    assert len(sealed) == sum(map(len, by_pack.values()))
    assert requests["get", "relocated"] + requests["list", "relocated"] <= 4
    assert requests["get", "moved"] + requests["list", "moved"] == 2
    assert requests["get", "packs"] <= 4 + 2 * len(here)


async def test_copies_that_do_not_open_hurt_nobody_and_are_replaced(vault: Vault) -> None:
    world = await _moved(vault)
    (name,) = await world.names("moved/")
    data = bytearray(await vault.store.get(name))
    data[-1] ^= 1
    await vault.store.delete(name)
    await vault.store.put_new(name, bytes(data))
    # then every point restores, and a whole verification tells
    await world.check()
    report = await verify(vault, depth="full")
    assert {(finding.key, finding.points) for finding in report.findings} == {(name, ())}
    # and the next run reads the records themselves, and copies them
    await world.run(0.1)
    assert name not in await world.names("moved/")
    (fresh,) = await world.names("moved/")
    assert len(await open_index(vault, fresh)) > 16
    assert (await verify(vault, depth="full")).ok


@pytest.mark.system
async def test_copies_of_older_records_lead_no_reader_and_no_run_astray(vault: Vault) -> None:
    # given packs whose chunks were moved twice, and copies of nothing but the first time
    world = World(vault, chunks=200)
    await world.point()
    first: dict[ObjectRef, bytes] = {}
    newest: dict[ObjectRef, int] = {}
    while max(newest.values(), default=0) < 2:
        assert world.sequence < 30
        await world.point(0.15)
        await world.prune(2)
        await world.run(2)
        newest = {}
        for key in await world.names("relocated/"):
            pack, generation = parse_relocation(vault, key)
            newest[pack] = max(generation, newest.get(pack, 0))
            if generation == 1 and (record := await open_generation(vault, pack, 1)) is not None:
                first[pack] = copy_of(record)
    for _ in range(3):
        await world.run(2)  # and where they went first is gone
    # when runs go by, and readers look, with those at hand
    for _ in range(4):
        for key in await world.names("moved/"):
            await vault.store.delete(key)
        await put_index(vault, list(first.values()), START)
        by_pack = await _entries(vault, world)
        reader, packs = PackReader(vault, SIZE), sorted(by_pack)
        for some in (packs[::2], packs[1::2]):
            for piece in await reader.fetch_all({pack: by_pack[pack] for pack in some}):
                reader.open(piece)
        await world.run(2)
    # then everything is there
    await world.check()
    assert (await verify(vault, depth="full")).ok


async def test_a_run_takes_a_copy_only_of_the_generation_that_its_listing_shows(vault: Vault, tmp_path: Path) -> None:
    packs = [ObjectRef(bytes(16), bytes(16)), ObjectRef(bytes(16), bytes(15) + b"x")]
    moves = {1: (ObjectRef(b"t" * 16, bytes(16)), 7)}
    known = [Relocation(pack, (moves[1][0],), moves, generation) for pack in packs for generation in (1, 2)]
    await put_index(vault, [copy_of(record) for record in known], START)
    index = Index(vault, tmp_path)
    await index.load()
    found = index.take(0, {packs[0].to_bytes(): 2, packs[1].to_bytes(): 3})
    assert {pack: copy.open() for pack, copy in found.items()} == {packs[0]: known[1]}


async def test_a_pack_that_is_there_hangs_on_the_record_itself(vault: Vault) -> None:
    world = World(vault, chunks=352)
    await world.point()
    await world.point(0.6)
    await world.prune(1)
    await world.run()
    plan = await world.plan(0.1)
    await sweep(vault, plan, OpenFence(), pack_size=16 * SIZE)
    assert await world.names("moved/") != set()
    # when a record of an old pack that is still there is damaged, and the copy of it is not
    here = await world.names("packs/")
    key, pack = next(
        (key, pack)
        for key in sorted(await world.names("relocated/"))
        if vault.names.pack(pack := parse_relocation(vault, key)[0]) in here
    )
    data = bytearray(await vault.store.get(key))
    data[-1] ^= 1
    await vault.store.delete(key)
    await vault.store.put_new(key, bytes(data))
    # then no run sweeps by the copy
    with pytest.raises(SweepBlocked):
        await world.plan(3)
    assert vault.names.pack(pack) in await world.names("packs/")


@pytest.mark.system
async def test_many_small_objects_of_copies_become_one_and_what_is_of_no_use_goes(vault: Vault) -> None:
    world = await _moved(vault)
    (name,) = await world.names("moved/")
    found = await open_index(vault, name)
    for start in range(8):
        await put_index(vault, [copy.raw for copy in found[start::8]], START)
    await world.run(0.1)
    (fresh,) = await world.names("moved/")
    assert {copy.name for copy in await open_index(vault, fresh)} == {copy.name for copy in found}
    # when no map names the old packs any more
    await world.point(1.0)
    await world.prune(1)
    await world.settle_down()
    await world.settle_down()
    assert await world.names("relocated/") == set()
    assert await world.names("moved/") == set()
    assert await restore(vault, next(iter(world.points))) == bytes(world.volume)
