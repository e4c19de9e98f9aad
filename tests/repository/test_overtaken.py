"""A maintenance stands still while others remove points, end old backups, sweep and compact for days, and goes on.

What it saw alive may be gone then, and rightly so: it looks anew and does its work. Only what something alive still
needs is missed, and then nothing is deleted. All of them at once, in any order: `test_side_by_side.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import pytest

from orchestrator.fence import OpenFence
from orchestrator.repository.errors import BaseGone, PointCancelled, SweepBlocked, SweepOvertaken
from orchestrator.repository.intent import Intent, put_intent
from orchestrator.repository.look import LOOKS
from orchestrator.repository.maintenance import SweepResult, plan_sweep, sweep
from orchestrator.repository.manifest import PointRef, manifest_key, open_manifest
from orchestrator.repository.point import remove
from orchestrator.repository.vault import Vault
from orchestrator.repository.verify import verify
from tests.repository.engine import START, announce, new_vault, point_record, restore
from tests.repository.faults import Fault, FaultyStore, ProcessDied, Shelf
from tests.repository.world import DAY, WEEK, History

pytestmark = pytest.mark.timeout(1500)

STRIDE = int(os.environ.get("TIDEMARK_STRIDE", "4"))
"""Every moment on demand: TIDEMARK_STRIDE=1 pytest -m system tests/repository/test_overtaken.py"""
SIZE, CHUNKS = 256, 60
PACK = 16 * SIZE


class Held(FaultyStore):
    """A store that, from one request on, answers only when it is let go."""

    def __init__(self, shelf: Shelf, stop: Callable[[int, str], bool]) -> None:
        self.stop, self.stopped = stop, False
        self.stands, self.go = asyncio.Event(), asyncio.Event()
        super().__init__(shelf)

    async def _next(self, verb: str, key: str, write: Callable[[], Awaitable[None]] | None = None) -> Fault | None:
        self.stopped = self.stopped or self.stop(len(self.requests), f"{verb} {key}")
        fault = await super()._next(verb, key, write)
        if self.stopped:
            self.stands.set()
            await self.go.wait()
        return fault


class Ground(History):
    """A repository, its clock, and what its points must restore to."""

    def __init__(self, shelf: Shelf, vault: Vault) -> None:
        super().__init__(vault, 5, CHUNKS, SIZE)
        self.shelf = shelf

    def copy(self) -> Ground:
        """Return an equal world that goes its own way."""
        shelf = self.shelf.copy()
        shelf.now = self.shelf.now
        ground = Ground(shelf, Vault(shelf, self.vault.keys))
        ground.points, ground.sequence = dict(self.points), self.sequence
        return ground

    async def point(self, share: float, base: PointRef | None = None) -> PointRef:
        """Change a share of the volume and make a point."""
        return await self.point_on(base, share)

    async def begin(self, base: PointRef) -> str:
        """Announce a point on a base that nobody will ever finish; return its manifest's name."""
        self.sequence += 1
        record = point_record(sequence=self.sequence, size=CHUNKS * SIZE, chunk_size=SIZE, mode="delta", parent=base)
        await announce(self.vault, record, [1, 2], base=base)
        return manifest_key(self.vault, record)

    async def remove(self, *refs: PointRef) -> None:
        """Remove points."""
        for ref in refs:
            del self.points[ref]
            await remove(self.vault, ref, OpenFence())

    async def maintain(self, vault: Vault | None = None, end: Sequence[str] = ()) -> SweepResult:
        """Sweep and compact."""
        vault, now = vault or self.vault, self.shelf.now + timedelta(seconds=5)
        plan = await plan_sweep(vault, now=now, grace=DAY, intent_age=WEEK, pack_size=PACK, end_intents=end)
        return await sweep(vault, plan, OpenFence(), pack_size=PACK)

    async def days(self, *days: float) -> list[SweepResult]:
        """Run a maintenance after each of so many days."""
        results = []
        for step in days:
            self.shelf.now += timedelta(days=step)
            results.append(await self.maintain())
        return results

    async def hold(self, stop: Callable[[int, str], bool]) -> tuple[Held, asyncio.Task[SweepResult]]:
        """Start a maintenance and return when it stands still, or has ended."""
        store = Held(self.shelf, stop)
        stopped = asyncio.create_task(self.maintain(Vault(store, self.vault.keys)))
        stands = asyncio.create_task(store.stands.wait())
        await asyncio.wait({stopped, stands}, return_when=asyncio.FIRST_COMPLETED)
        stands.cancel()
        return store, stopped

    async def check(self) -> None:
        """Every point restores, and nothing is damaged."""
        for ref, wanted in self.points.items():
            assert await restore(self.vault, ref) == wanted
        assert (await verify(self.vault, depth="full", record=False)).ok

    async def check_in_the_end(self) -> None:
        """And nothing is left of what is dead."""
        await self.check()
        await self.days(8, 8, 8, 8)
        await self.check()
        intents = {key.rpartition("-")[0][-8:] for key in self.shelf.objects if "/intents/" in key}
        assert len(intents) <= len(self.points) + 8  # those of compactions, and of points

    def names(self, part: str) -> set[str]:
        """Return the names of all objects of one kind."""
        return {key for key in self.shelf.objects if f"/{part}/" in key}


async def new_ground() -> Ground:
    shelf = Shelf()
    return Ground(shelf, await new_vault(shelf))


def at_a(request: str) -> Callable[[int, str], bool]:
    """Stop at the first request of a kind, as "get maps"."""
    verb, part = request.split()
    return lambda _number, seen: seen.startswith(f"{verb} ") and f"/{part}/" in seen


def from_the(number: int) -> Callable[[int, str], bool]:
    """Stop at the request of that number, from 0."""
    return lambda seen, _request: seen >= number


async def _rich() -> tuple[Ground, list[PointRef]]:
    """A base and what it builds on, to be removed; an heir; a backup of the base begun; garbage written down."""
    ground = await new_ground()
    first = await ground.point(1)
    base = await ground.point(0.7, first)
    heir = await ground.point(0.1, base)
    gone = await ground.point(0.3, heir)
    await ground.begin(base)
    await ground.remove(gone)
    await ground.days(0, 2)
    return ground, [first, base]


@pytest.mark.parametrize("where", ["get maps", "get intents"])
@pytest.mark.parametrize("runs", [2, 8])
async def test_a_maintenance_that_slept_while_points_were_removed_and_swept_looks_anew(where: str, runs: int) -> None:
    # given one that stands still before it reads a page, or an intent
    ground, gone = await _rich()
    store, sleeper = await ground.hold(at_a(where))
    # when points that it saw go, the unfinished backup is ended (or not yet), and all of that is swept
    await ground.remove(*gone)
    results = await ground.days(*[2] * runs)
    assert sum(result.deleted_objects for result in results) > 0
    assert sum(result.cancelled_intents for result in results) == (runs > 2)
    # then it gets through when it wakes, and harms nothing
    store.go.set()
    await sleeper
    await ground.check_in_the_end()


@pytest.mark.system
@pytest.mark.parametrize("runs", [2, 8])
async def test_a_maintenance_may_sleep_at_any_of_its_requests(runs: int) -> None:
    origin, gone = await _rich()
    at, compacted = -STRIDE, 0
    while True:
        # given one that stands still at one of its requests
        at += STRIDE
        ground = origin.copy()
        store, sleeper = await ground.hold(from_the(at))
        done = sleeper.done()
        # when the ground that it saw is taken away, and a point without a change comes and goes
        await ground.remove(*gone)
        compacted += sum(result.compacted.packs for result in await ground.days(*[2] * runs))
        heir = next(iter(ground.points))
        ground.volume[:] = ground.points[heir]
        await ground.remove(await ground.point(0, heir))
        await ground.maintain()
        # then it gets through when it wakes
        store.go.set()
        await sleeper
        await ground.check_in_the_end()
        if done:
            assert at > 15
            assert compacted > 0
            return


async def _passed_by(ground: Ground) -> str:
    """Begin a backup in the moment when its base's removal has deleted the manifest, and not yet taken its name.

    A maintenance that saw it that way completes the removal, and writes down what only the base reached.
    """
    first, _ = await ground.point(1), await ground.point(1)
    ground.volume[:] = ground.points[first]
    base = await ground.point(0, first)
    manifest, _ = await open_manifest(ground.vault, base.key)
    await ground.remove(first)
    dying = FaultyStore(ground.shelf)
    dying.script = lambda _number, verb, key: Fault.CRASH_AFTER if (verb, key) == ("delete", base.key) else None
    with pytest.raises(ProcessDied):
        await remove(Vault(dying, ground.vault.keys), base, OpenFence())
    del ground.points[base]
    store, completing = await ground.hold(at_a("list relocated"))
    record = point_record(sequence=9, size=CHUNKS * SIZE, chunk_size=SIZE, mode="delta", parent=base)
    key = manifest_key(ground.vault, record)
    intent = Intent(id=record.point_id, base=base, manifest_key=key, lineage=record.lineage, created=START)
    with pytest.raises(BaseGone):
        await put_intent(ground.vault, intent, roots={base: manifest.root})
    store.go.set()
    assert (await completing).candidates > 0
    return key


async def test_an_old_intent_without_a_base_is_ended_and_swept_while_another_maintenance_reads_its_base() -> None:
    # given a backup that was told BaseGone, a week old, and its base's pages long written down
    ground = await new_ground()
    key = await _passed_by(ground)
    ground.shelf.now += 1.1 * WEEK
    # when of three maintenances at once one has seen its intent alive, one ends it, one deletes what it kept
    store, sleeper = await ground.hold(at_a("get maps"))
    assert (await ground.maintain()).cancelled_intents == 1
    assert (await ground.maintain()).deleted_objects > 0
    store.go.set()
    # then the first one gets through
    assert (await sleeper).cancelled_intents == 0
    with pytest.raises(PointCancelled):
        await open_manifest(ground.vault, key)
    await ground.check_in_the_end()


@pytest.mark.parametrize("age", [1, 8])
async def test_a_point_whose_removal_is_seen_nowhere_is_not_taken_for_an_unfinished_one_without_its_base(
    age: int,
) -> None:
    """Whose marker was put after markers were listed, and whose manifest went before manifests were."""
    # given a point that replaced all of its base, which was removed and swept; the point's intent still names it
    ground = await new_ground()
    base, kept = await ground.point(1), await ground.point(1)
    point = await ground.point(1, base)
    await ground.remove(base)
    await ground.days(0, 2, age)
    assert not [key for key in ground.names("maps") if base.key.partition("-")[2] in key]
    # when that point's removal begins between two listings of a maintenance, and dies before it took the name
    store, sleeper = await ground.hold(at_a("list points"))
    dying = FaultyStore(ground.shelf)
    dying.script = lambda _number, verb, key: Fault.CRASH_AFTER if (verb, key) == ("delete", point.key) else None
    with pytest.raises(ProcessDied):
        await remove(Vault(dying, ground.vault.keys), point, OpenFence())
    del ground.points[point]
    store.go.set()
    # then the maintenance gets through, and completes the removal
    await sleeper
    with pytest.raises(PointCancelled):
        await open_manifest(ground.vault, point.key)
    assert set(ground.points) == {kept}
    await ground.check_in_the_end()


@pytest.mark.parametrize("how", ["missing", "altered"])
@pytest.mark.parametrize("by_hand", [False, True])
async def test_an_intent_that_lost_its_base_blocks_sweeping_until_it_is_ended(how: str, by_hand: bool) -> None:
    # given an unfinished backup, a page of whose base is gone or damaged; the base itself was removed
    ground = await new_ground()
    base, kept = await ground.point(1), await ground.point(1)
    pages = [key for key in ground.names("maps") if base.key.partition("-")[2] in key]
    key = await ground.begin(base)
    await ground.remove(base)
    if how == "missing":
        del ground.shelf.objects[pages[0]]
    else:
        ground.shelf.replace(pages[0], ground.shelf.plain()[pages[0]][:-1] + b"?")
    before = set(ground.shelf.objects)
    # while it may go on, nothing is deleted
    with pytest.raises(SweepBlocked):
        await ground.maintain()
    assert set(ground.shelf.objects) == before
    # when it is a week old, or a person says so, it is ended, and nothing else is done
    ground.shelf.now += timedelta(0) if by_hand else 1.1 * WEEK
    result = await ground.maintain(end=[key.rpartition("/")[2].partition("-")[2]] if by_hand else ())
    assert result == SweepResult(cancelled_intents=1)
    assert set(ground.shelf.objects) == before | {key}
    # then sweeping goes on
    assert sum(result.deleted_objects for result in await ground.days(2, 2)) > 0
    assert set(ground.points) == {kept}
    await ground.check_in_the_end()


async def test_a_page_that_a_point_needs_is_missed_and_not_looked_for_for_long() -> None:
    ground = await new_ground()
    await ground.point(1)
    ref = await ground.point(1)
    page = next(key for key in ground.names("maps") if ref.key.partition("-")[2] in key)
    data, when = ground.shelf.objects.pop(page)
    before = set(ground.shelf.objects)
    store = FaultyStore(ground.shelf)
    with pytest.raises(SweepBlocked, match="missing"):
        await ground.maintain(Vault(store, ground.vault.keys))
    assert set(ground.shelf.objects) == before
    # one listing more shows that the point is still there; no page is read for that a second time
    pages = [key for verb, key in store.requests if verb == "get" and "/maps/" in key]
    assert len(pages) <= 2 * len(ground.names("maps"))
    assert len([verb for verb, key in store.requests if verb == "list" and key.endswith("/points/")]) == 2
    # and once it is there again, all is well
    ground.shelf.objects[page] = (data, when)
    await ground.maintain()
    await ground.check()


class Underfoot(FaultyStore):
    """A store where, whenever pages are about to be read, another point goes with all its pages."""

    def __init__(self, ground: Ground, going: list[PointRef]) -> None:
        super().__init__(ground.shelf)
        self.ground, self.going = ground, going

    async def _next(self, verb: str, key: str, write: Callable[[], Awaitable[None]] | None = None) -> Fault | None:
        fault = await super()._next(verb, key, write)
        if verb == "list" and key.endswith("/relocated/") and self.going:
            await self.ground.remove(self.going.pop())
            await self.ground.days(0, 2)
        return fault


@pytest.mark.parametrize("times", [LOOKS - 1, LOOKS])
async def test_a_maintenance_that_is_overtaken_at_every_look_says_so_and_deletes_nothing(times: int) -> None:
    ground = await new_ground()
    refs = [await ground.point(1) for _ in range(times + 1)]
    store = Underfoot(ground, refs[1:])
    told = pytest.raises(SweepOvertaken) if times == LOOKS else contextlib.nullcontext()
    with told:
        await ground.maintain(Vault(store, ground.vault.keys))
    if times == LOOKS:
        assert not [verb for verb, _ in store.requests if verb in ("put", "delete")]
    assert set(ground.points) == {refs[0]}
    await ground.check_in_the_end()
