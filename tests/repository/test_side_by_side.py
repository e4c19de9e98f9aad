"""Three maintenances and writers, removals, restores and a verification at once, request by request in any order.

Other tests stop one party at a chosen place; here nobody waits for anybody, and a seed decides whose request is next.
What must hold: who restores gets every byte, who verifies finds no damage, who writes makes a whole point or is told
that its base went, and in the end nothing that lives is missing and what is dead is gone.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from orchestrator.fence import OpenFence
from orchestrator.repository.errors import BaseGone, ManifestMissing, PointCancelled
from orchestrator.repository.maintenance import plan_sweep, sweep
from orchestrator.repository.manifest import PointRef
from orchestrator.repository.point import remove
from orchestrator.repository.vault import Vault
from orchestrator.repository.verify import verify
from tests.reader.stranger import open_repository
from tests.repository.engine import announce, copy, new_vault, point_record, restore
from tests.repository.faults import Fault, FaultyStore, Shelf
from tests.waiting import LONG

pytestmark = [pytest.mark.system, pytest.mark.timeout(3600)]

WORLDS = int(os.environ.get("TIDEMARK_WORLDS", "3"))
"""More on demand: TIDEMARK_WORLDS=500 pytest tests/repository/test_side_by_side.py"""
ROUNDS = 8
SIZE = 256
PACK = 4096
CHUNKS = 60


class Turns(FaultyStore):
    """A store where before each request a seed decides how many others go first."""

    def __init__(self, shelf: Shelf, rng: random.Random) -> None:
        super().__init__(shelf)
        self.rng = rng

    async def _next(self, verb: str, key: str, write: Callable[[], Awaitable[None]] | None = None) -> Fault | None:
        for _ in range(self.rng.choice((0, 0, 1, 3, 20))):
            await asyncio.sleep(0)
        return await super()._next(verb, key, write)


class World:
    """A repository, what each of its points must restore to, and everybody who works on it."""

    def __init__(self, shelf: Shelf, vault: Vault, seed: int) -> None:
        self.shelf, self.vault, self.rng = shelf, vault, random.Random(seed)
        self.points: dict[PointRef, bytes] = {}
        self.sequence = 0
        self.compacted = self.deleted = self.restored = 0

    def own(self) -> Vault:
        """Return a vault for one party, whose requests come when its seed says."""
        return Vault(Turns(self.shelf, random.Random(self.rng.random())), self.vault.keys)

    async def write(self) -> None:
        """Change some of a point's volume, or all, and make a point of it."""
        rng, base, volume = self.rng, None, bytearray(CHUNKS * SIZE)
        if self.points and rng.random() < 0.9:
            base = rng.choice(sorted(self.points, key=lambda ref: ref.key))
            volume = bytearray(self.points[base])
        touched = {rng.randrange(CHUNKS) for _ in range(rng.choice((0, 10, 30, 60)))} if base else {*range(CHUNKS)}
        for index in touched:
            volume[index * SIZE : (index + 1) * SIZE] = rng.choice((rng.randbytes(SIZE), bytes(SIZE)))
        mode = rng.choice(("delta", "delta", "full")) if base else "full"
        self.sequence += 1
        record = point_record(sequence=self.sequence, size=len(volume), chunk_size=SIZE, mode=mode, parent=base)
        builds_on = {"base": base} if mode == "delta" else {"compare": base}
        vault = self.own()
        try:
            intent = await announce(vault, record, touched if mode == "delta" else range(CHUNKS), **builds_on)
            ref = await copy(vault, intent, bytes(volume), pack_size=PACK)
        except BaseGone:
            return
        self.points[ref] = bytes(volume)

    async def maintain(self) -> None:
        """Sweep and compact; whatever others delete meanwhile, it gets through."""
        vault = self.own()
        now = self.shelf.now + timedelta(seconds=5)
        plan = await plan_sweep(vault, now=now, grace=timedelta(days=1), intent_age=timedelta(days=7))
        result = await sweep(vault, plan, OpenFence(), pack_size=PACK)
        self.compacted += result.compacted.packs
        self.deleted += result.deleted_objects

    async def remove(self) -> None:
        """Remove points, perhaps one that somebody builds on or restores right now."""
        while len(self.points) > 3:
            ref = self.rng.choice(sorted(self.points, key=lambda ref: ref.key))
            del self.points[ref]
            await remove(self.own(), ref, OpenFence())

    async def restore(self) -> None:
        """Restore a point; one that is removed meanwhile can be read for the grace time."""
        if self.points:
            ref = self.rng.choice(sorted(self.points, key=lambda ref: ref.key))
            wanted, vault = self.points[ref], self.own()
            try:
                assert await restore(vault, ref) == wanted
            except (ManifestMissing, PointCancelled):
                assert ref not in self.points, "removed before it was opened"
                return
            self.restored += 1

    async def prove(self) -> None:
        """Verify every byte."""
        report = await verify(self.own(), depth="full", record=False)
        assert report.ok, report

    async def check(self) -> None:
        """Every point is there and whole, also for a stranger."""
        (namespace,) = open_repository(self.shelf.plain(), bytes(range(32)))
        assert set(namespace.points()) == {ref.key for ref in self.points}
        for ref, wanted in self.points.items():
            assert await restore(self.vault, ref) == wanted
            assert namespace.volume(ref.key, ref.digest) == wanted


async def _lived(seed: int) -> World:
    shelf = Shelf()
    world = World(shelf, await new_vault(shelf), seed)
    await world.write()
    for _ in range(ROUNDS):
        # the restore and the removal begin first: they choose among the points that are there
        parties = [world.restore, world.restore, world.remove, world.remove, *[world.write] * 3]
        parties += [*[world.maintain] * 3, world.prove]
        async with asyncio.timeout(LONG), asyncio.TaskGroup() as group:
            for party in parties:
                group.create_task(party())
        await world.check()
        shelf.now += timedelta(days=world.rng.choice((0, 1.5, 3)))
    for _ in range(4):
        shelf.now += timedelta(days=8)
        await world.maintain()
    await world.check()
    report = await verify(world.vault, depth="full")
    assert report.ok, report
    return world


async def test_whoever_works_at_the_same_time_harms_nobody() -> None:
    worlds = [await _lived(seed) for seed in range(WORLDS)]
    # and all of it took place, in these worlds together
    assert sum(world.compacted for world in worlds) > 0
    assert sum(world.deleted for world in worlds) > WORLDS
    assert sum(world.restored for world in worlds) > 5 * WORLDS
    # what lives is little of what was written: the dead is gone, and each object left is there for a reason
    for world in worlds:
        live = {ref.key for ref in world.points}
        assert len([key for key in world.shelf.objects if "/packs/" in key]) < 3 * CHUNKS * len(live) * SIZE // PACK
