"""One mover of a point in several shards stands still at any of its requests, and goes on long after.

Meanwhile its shard is done by another mover or by nobody, the point is committed or ended, its base is pruned, swept
and compacted, and what is no longer needed of its own work is swept too. Woken, it gives the one good point, or says
that the point was cancelled: nothing else, at no moment. With processes and real signals: `test_zombie.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.blocks.backup import Copied, CopyOptions, backup
from orchestrator.blocks.tally import Tallies
from orchestrator.fence import OpenFence
from orchestrator.repository.errors import PointCancelled
from orchestrator.repository.maintenance import plan_sweep, sweep
from orchestrator.repository.manifest import PointRef, list_points, open_manifest
from orchestrator.repository.point import remove
from orchestrator.repository.vault import Vault
from orchestrator.repository.verify import verify
from tests.blocks.volumes import Point, Volume, announce, take, vault_on
from tests.repository.engine import restore
from tests.repository.faults import Fault, FaultyStore, Shelf
from tests.waiting import LONG

pytestmark = [pytest.mark.system, pytest.mark.timeout(1500)]

STRIDE = int(os.environ.get("TIDEMARK_STRIDE", "8"))
"""Every one on demand: TIDEMARK_STRIDE=1 pytest tests/repository/test_zombie_moments.py"""
CHUNK = 1024
LEAF = 1024 * CHUNK
SIZE = 3 * LEAF + 5 * CHUNK + 7
SHARDS = 3
PACK = 16 * CHUNK
OPTIONS = CopyOptions(readers=2, pack_bytes=PACK)
CHANGES = [(leaf * LEAF + at * CHUNK, 9 * CHUNK) for leaf in range(SHARDS) for at in (2, 500, 1000)]


class Held(FaultyStore):
    """A store that, from one request on, answers only when it is let go."""

    def __init__(self, shelf: Shelf, number: int) -> None:
        self.number = number
        self.stands, self.go, self.tallies = asyncio.Event(), asyncio.Event(), Tallies()
        super().__init__(shelf)

    async def _next(self, verb: str, key: str, write: Callable[[], Awaitable[None]] | None = None) -> Fault | None:
        number = len(self.requests)
        fault = await super()._next(verb, key, write)
        if number >= self.number:
            self.stands.set()
            await self.go.wait()
        return fault


@dataclass
class Ground:
    """A volume, its repository with a base and an heir of it, and a planned delta on the base in three shards."""

    shelf: Shelf
    vault: Vault
    volume: Volume
    gone: list[Point]
    heir: PointRef
    heir_content: bytes
    intent: str

    def at(self, shelf: Shelf) -> Ground:
        """Return the same world on another shelf."""
        vault = Vault(shelf, self.vault.keys)
        return Ground(shelf, vault, self.volume, self.gone, self.heir, self.heir_content, self.intent)

    async def shard(self, number: int) -> Copied | PointRef:
        """Run a mover of one shard to its end."""
        return await backup(self.vault, self.intent, self.volume.path, shard=number, options=OPTIONS)

    async def take_the_ground_away(self, days: int) -> int:
        """Prune the base and what it builds on, and run a maintenance every other day; return packs compacted."""
        for point in self.gone:
            await remove(self.vault, point.ref, OpenFence())
        compacted = 0
        for _ in range(0, days, 2):
            self.shelf.now += timedelta(days=2)
            plan = await plan_sweep(
                self.vault, now=self.shelf.now, grace=timedelta(days=1), intent_age=timedelta(days=7)
            )
            compacted += (await sweep(self.vault, plan, OpenFence(), pack_size=PACK)).compacted.packs
        return compacted

    async def check(self, point: PointRef | None) -> None:
        """The heir is whole, and so is the point, if there is one; nothing else is there, nothing is damaged."""
        report = await verify(self.vault, depth="full", record=False)
        assert report.ok, report
        keys = {self.heir.key} | ({point.key} if point else set())
        assert set(report.digests) == keys
        assert await restore(self.vault, self.heir) == self.heir_content
        if point is not None:
            assert await restore(self.vault, point) == self.volume.path.read_bytes()


async def prepared(folder: Path) -> Ground:
    shelf = Shelf()
    vault = await vault_on(shelf)
    volume = Volume(folder / "volume", SIZE, seed=3)
    first_ranges = [(leaf * LEAF, 40 * CHUNK) for leaf in range(SHARDS)]
    for offset, length in first_ranges:
        volume.noise(offset, length)
    first = await _take(vault, volume, first_ranges, None)
    most = [(offset + index * CHUNK, CHUNK) for offset, _ in first_ranges for index in range(40) if index % 4]
    for offset, length in most:
        volume.noise(offset, length)
    base = await _take(vault, volume, most, first)
    volume.noise(CHUNK, CHUNK)
    heir = await _take(vault, volume, [(CHUNK, CHUNK)], base)
    content = volume.path.read_bytes()
    for offset, length in CHANGES:
        volume.noise(offset, length)
    ranges = [(CHUNK, CHUNK), *CHANGES]
    intent = await announce(vault, volume.path, ranges, mode="delta", base=base.ref, chunk_size=CHUNK, shards=SHARDS)
    return Ground(shelf, vault, volume, [first, base], heir.ref, content, intent)


async def _take(vault: Vault, volume: Volume, ranges: list[tuple[int, int]], base: Point | None) -> Point:
    return await take(vault, volume.path, ranges, mode="delta" if base else "allocated", base=base, chunk_size=CHUNK)


async def _stopped(ground: Ground, number: int, shard: int) -> tuple[Held, asyncio.Task[Copied | PointRef]]:
    """Start a mover of a shard that stands still at one of its requests; return when it does, or has ended."""
    store = Held(ground.shelf, number)
    vault = Vault(store, ground.vault.keys)
    work = backup(vault, ground.intent, ground.volume.path, shard=shard, options=OPTIONS, tallies=store.tallies)
    zombie = asyncio.create_task(work)
    stands = asyncio.create_task(store.stands.wait())
    await asyncio.wait({zombie, stands}, return_when=asyncio.FIRST_COMPLETED)
    stands.cancel()
    return store, zombie


@dataclass
class Moment:
    """A mover that stands still at one of its requests, or had ended before it came to that one."""

    at: int
    ground: Ground
    store: Held
    zombie: asyncio.Task[Copied | PointRef]
    done: bool


async def _moments(folder: Path, first: tuple[int, ...], shard: int) -> AsyncIterator[Moment]:
    """Give each moment at which a shard's mover can stand still, the shards `first` being done; last, one past its end.

    Each on ground of its own.
    """
    origin = await prepared(folder)
    for number in first:
        await origin.shard(number)
    for at in itertools.count(0, STRIDE):
        ground = origin.at(origin.shelf.copy())
        store, zombie = await _stopped(ground, at, shard)
        done = zombie.done()
        assert at > 10 or not done, "so few requests are no copy"
        yield Moment(at, ground, store, zombie, done)
        if done:
            return


async def _ended(store: Held, zombie: asyncio.Task[Copied | PointRef]) -> PointRef | None:
    store.go.set()
    try:
        async with asyncio.timeout(LONG):
            ended = await zombie
    finally:
        # Without a look at its point's end it would read the whole shard first, because the base's map is gone.
        assert store.tallies.sum().read < LEAF // 4
    return ended.point if isinstance(ended, Copied) else ended


@pytest.mark.parametrize(("first", "shard"), [((), 1), ((0, 1), 2)])
async def test_a_zombie_of_one_shard_finds_the_point_that_others_made(
    tmp_path: Path, first: tuple[int, ...], shard: int
) -> None:
    """Of a shard in the middle, and of the last, which would commit."""
    # given a mover that stands still at one of its requests
    async for moment in _moments(tmp_path, first, shard):
        ground = moment.ground
        # when others do its shard and the rest, the point is committed, and the ground under all of it is taken away
        for number in (shard, *(number for number in range(SHARDS) if number not in (*first, shard))):
            await ground.shard(number)
        assert await ground.take_the_ground_away(days=10) > 0
        # and it wakes
        point = await _ended(moment.store, moment.zombie)
        # then it has nothing to say but that point, which is whole
        keys = [key async for key in list_points(ground.vault) if key.endswith(ground.intent)]
        _, ref = await open_manifest(ground.vault, keys[0])
        assert len(keys) == 1
        assert point == ref or (moment.done and point is None), moment.at
        await ground.check(ref)
        await ground.take_the_ground_away(days=6)
        await ground.check(ref)


@pytest.mark.parametrize(("first", "shard"), [((), 1), ((0, 1), 2)])
async def test_a_zombie_whose_point_was_ended_says_that_it_was_cancelled(
    tmp_path: Path, first: tuple[int, ...], shard: int
) -> None:
    # given a mover that stands still at one of its requests
    async for moment in _moments(tmp_path, first, shard):
        if moment.done:
            continue
        ground = moment.ground
        # when nobody goes on, its point is ended by its age, and all that it wrote and stood on is swept
        assert await ground.take_the_ground_away(days=18) > 0
        assert not [key for key in ground.shelf.objects if f"intents/{ground.intent}/" in key]
        # then it says that it is over, or had committed before
        with pytest.raises(PointCancelled):
            await _ended(moment.store, moment.zombie)
        await ground.check(None)
        # and what it wrote after is swept as well
        await ground.take_the_ground_away(days=6)
        assert not [key for key in ground.shelf.objects if ground.intent in key and "/points/" not in key]
        await ground.check(None)


async def test_a_mover_that_starts_after_its_point_was_ended_says_that_it_was_cancelled(tmp_path: Path) -> None:
    ground = await prepared(tmp_path)
    await ground.take_the_ground_away(days=18)
    for number in range(SHARDS):
        with pytest.raises(PointCancelled):
            await ground.shard(number)
    await ground.check(None)
