"""Every kind of fault of a store at every single request of a backup, a restore and a maintenance.

First the requests of an undisturbed run are counted, then each is hit by each kind of fault in a world of its own.
Whatever happens: nothing that was committed is lost, no point is wrong, and the next run completes. The points are
read back by the stranger's reader, which shares no code with what is tested.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.blocks.backup import CopyOptions, backup
from orchestrator.blocks.tally import Tally
from orchestrator.errors import TidemarkError
from orchestrator.fence import OpenFence
from orchestrator.repository.errors import StoreUnavailable
from orchestrator.repository.maintenance import plan_sweep, sweep
from orchestrator.repository.manifest import PointRef, PointStats
from orchestrator.repository.point import remove
from orchestrator.repository.vault import Vault
from orchestrator.repository.verify import verify
from tests.blocks.volumes import CHUNK, Point, Volume, announce, give_back, run, take, vault_on
from tests.reader.stranger import open_repository
from tests.repository.faults import Fault, FaultyStore, ProcessDied, Shelf, differs

pytestmark = [pytest.mark.system, pytest.mark.timeout(1500)]

KEY = bytes(range(32))
PACK = 6 * CHUNK
GRACE = timedelta(days=1)
OPTIONS = CopyOptions(readers=2, pack_bytes=PACK)
Points = dict[str, str]
"""Manifest's name -> SHA-256 of what the point must restore to."""


def _places(counted: FaultyStore, kind: Fault) -> list[int]:
    """Return the requests at which this kind of fault is a case of its own."""
    places = [number for number, (verb, _) in enumerate(counted.requests) if differs(kind, verb)]
    return places[::4] if kind is Fault.SLOW else places


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_all(shelf: Shelf) -> Points:
    """Restore every point that is there with the stranger's reader."""
    return {
        name: sha256(namespace.volume(name))
        for namespace in open_repository(shelf.plain(), KEY)
        for name in namespace.points()
    }


def prepared(tmp_path: Path) -> Volume:
    volume = Volume(tmp_path / "volume", 24 * CHUNK + 999)
    volume.text(0, volume.size)
    volume.noise(3 * CHUNK, 9 * CHUNK)
    volume.write(14 * CHUNK, bytes(2 * CHUNK))
    return volume


async def base_world(volume: Volume) -> tuple[Shelf, PointRef, Points]:
    """Make a repository with one full point, then change the volume."""
    shelf = Shelf()
    full = await take(await vault_on(shelf), volume.path)
    points = {full.ref.key: volume.sha256()}
    volume.noise(0, 8 * CHUNK)
    volume.write(20 * CHUNK, bytes(CHUNK))
    return shelf, full.ref, points


async def whole_backup(store: FaultyStore | Shelf, volume: Volume, base: PointRef) -> PointRef:
    """Announce a delta and run it to its commit, as controller and mover do."""
    vault = await vault_on(store)
    ranges = [(0, 8 * CHUNK), (20 * CHUNK, CHUNK)]
    intent_id = await announce(vault, volume.path, ranges, mode="delta", base=base)
    ended = await backup(vault, intent_id, volume.path, options=OPTIONS)
    ref = ended if isinstance(ended, PointRef) else ended.point
    assert ref is not None
    return ref


@pytest.mark.parametrize("kind", Fault)
async def test_every_fault_at_every_request_of_a_backup(tmp_path: Path, kind: Fault) -> None:
    # given the number of requests that a whole delta takes, from its intent to its commit
    volume = prepared(tmp_path)
    shelf, base, before = await base_world(volume)
    wanted = volume.sha256()
    counted = FaultyStore(shelf.copy())
    await whole_backup(counted, volume, base)
    assert len(counted.requests) > 15
    hit = 0
    for number in _places(counted, kind):
        # when one of them goes wrong
        world = shelf.copy()
        store = FaultyStore.at(world, number, kind)
        try:
            await whole_backup(store, volume, base)
        except (TidemarkError, ProcessDied):
            hit += 1
        # then what was there is there, and a new point is right or absent
        _check_points(world, before, wanted, torn=kind is Fault.TORN)
        # and the next run completes, whatever arrives late
        ref = await whole_backup(world, volume, base)
        await store.settle()
        found = _check_points(world, before, wanted, torn=kind is Fault.TORN)
        assert found[ref.key] == wanted
    assert hit or kind in (Fault.SLOW, Fault.STALE)


def _check_points(world: Shelf, before: Points, wanted: str, *, torn: bool) -> Points:
    """Every point is right; only a torn manifest, which no atomic store leaves, may be one that doesn't open."""
    objects = world.plain()
    (namespace,) = open_repository(objects, KEY)
    if torn:
        for name in [name for name in objects if "/points/" in name]:
            try:
                namespace.volume(name)
            except Exception:  # noqa: BLE001 - the stranger says what it likes of half an object
                assert name not in before
                del objects[name]
    found = {name: sha256(namespace.volume(name)) for name in namespace.points()}
    for name, volume in found.items():
        assert volume == before.get(name, wanted), name
    assert set(before) <= set(found)
    return found


@pytest.mark.parametrize("kind", [kind for kind in Fault if differs(kind, "get")])
async def test_every_fault_at_every_request_of_a_restore(tmp_path: Path, kind: Fault) -> None:
    # given a point, and the number of requests that a restore of it takes
    volume = prepared(tmp_path)
    shelf, base, _ = await base_world(volume)
    ref = await whole_backup(shelf, volume, base)
    wanted, before = volume.sha256(), shelf.plain()
    counted = FaultyStore(shelf)
    await give_back(await vault_on(counted), ref, tmp_path / "back")
    (tmp_path / "back").unlink()
    for number in _places(counted, kind):
        # when one of them goes wrong
        store = FaultyStore.at(shelf, number, kind)
        try:
            seen = await give_back(await vault_on(store), ref, tmp_path / "back")
        except (TidemarkError, ProcessDied):
            seen = wanted
        # then it fails or is right, the repository is as it was, and the next try is right
        assert seen == wanted
        assert shelf.plain() == before
        (tmp_path / "back").unlink(missing_ok=True)
        assert await give_back(await vault_on(shelf), ref, tmp_path / "back") == wanted
        (tmp_path / "back").unlink()


async def sweep_once(store: FaultyStore | Shelf, days: float) -> int:
    """Run one maintenance as seen `days` after the newest object; return how many objects it deleted."""
    vault = await vault_on(store)
    now = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=days)
    plan = await plan_sweep(vault, now=now, grace=GRACE, intent_age=timedelta(days=7))
    return (await sweep(vault, plan, OpenFence(), pack_size=1 << 20)).deleted_objects


async def lived_in(tmp_path: Path, volume: Volume) -> tuple[Shelf, Points, str, str]:
    """Make a repository with garbage of every kind, written down a while ago, and a backup on its way.

    Return it, its points, and the open intent with what it will restore to.
    """
    shelf, base, points = await base_world(volume)
    vault = await vault_on(shelf)
    refs = [base]
    volume.noise(8 * CHUNK, 8 * CHUNK)
    for _ in range(3):
        volume.noise(3 * CHUNK, CHUNK)
        ranges = [(0, 16 * CHUNK), (20 * CHUNK, CHUNK)]
        point = await take(vault, volume.path, ranges, mode="delta", base=_as_point(refs[-1]))
        points[point.ref.key] = volume.sha256()
        refs.append(point.ref)
    left = await announce(vault, volume.path, None)
    with pytest.raises(StoreUnavailable):
        await run(Vault(_refusing(shelf), vault.keys), left, volume.path, pack_bytes=PACK)
    open_id = await announce(vault, volume.path, [(0, 4 * CHUNK)], mode="delta", base=refs[1])
    for ref in refs[1:3]:
        await remove(vault, ref, OpenFence())
        del points[ref.key]
    volume_now = volume.sha256()
    for key in [key for key in shelf.objects if left in key]:
        data, when = shelf.objects[key]
        shelf.objects[key] = (data, when - timedelta(days=5))
    assert await sweep_once(shelf, 0.5) == 0
    # Now the pack of the first point is mostly dead, and what lives in it is for compaction.
    await remove(vault, base, OpenFence())
    del points[base.key]
    return shelf, points, open_id, volume_now


def _refusing(shelf: Shelf) -> FaultyStore:
    return FaultyStore(shelf, lambda _number, verb, key: Fault.ERROR if verb == "put" and "/shards/" in key else None)


def _as_point(ref: PointRef) -> Point:
    return Point("", ref, PointStats(), Tally())


@pytest.mark.parametrize("kind", Fault)
async def test_every_fault_at_every_request_of_a_maintenance(tmp_path: Path, kind: Fault) -> None:
    # given a repository in which a maintenance has something of everything to do
    volume = prepared(tmp_path)
    shelf, points, open_id, wanted = await lived_in(tmp_path, volume)
    undisturbed = shelf.copy()
    counted = FaultyStore(undisturbed)
    assert await sweep_once(counted, 3) > 1
    await _complete(undisturbed, volume, open_id)
    assert any("/relocated/" in key for key in undisturbed.objects)
    left = await _settled(undisturbed)
    world = undisturbed
    for number in _places(counted, kind):
        # when one request of it goes wrong
        world = shelf.copy()
        store = FaultyStore.at(world, number, kind)
        with suppress(TidemarkError, ProcessDied):
            await sweep_once(store, 3)
        # then every point restores, the backup on its way completes, and the next maintenances end the work
        assert read_all(world) == points, (kind, counted.requests[number])
        if kind is Fault.TORN:
            _mend(world, store)
        key = await _complete(world, volume, open_id)
        assert await _settled(world, left) == left, (kind, counted.requests[number])
        await store.settle()
        assert read_all(world) == {**points, key: wanted}, (kind, counted.requests[number])
    report = await verify(await vault_on(world), depth="full")
    assert report.ok, report


async def _complete(world: Shelf, volume: Volume, open_id: str) -> str:
    """Complete the backup that is on its way; return the new point's name."""
    return (await run(await vault_on(world), open_id, volume.path, pack_bytes=PACK)).ref.key


async def _settled(world: Shelf, wanted: dict[str, int] | None = None) -> dict[str, int]:
    """Run maintenance until the wanted objects are left, six times at most; return what is left."""
    for days in (5, 8, 11, 14, 17, 20):
        await sweep_once(world, days)
        if _shape(world) == wanted:
            break
    return _shape(world)


def _mend(world: Shelf, store: FaultyStore) -> None:
    """Take away a torn object: no atomic store leaves one, and a person decides about it."""
    _, key = store.requests[-1]
    world.objects.pop(key, None)


def _shape(world: Shelf) -> dict[str, int]:
    """Count the objects that hold data or keep it, so that worlds with different random names compare.

    Intents and the records that ended them may be more after a maintenance that died: those stay for good.
    """
    kinds = ("packs", "maps", "points", "relocated", "sweeps", "damaged", "removing")
    found = [name.split("/")[2] for name in world.objects if name.startswith("n/")]
    return {kind: found.count(kind) for kind in kinds}
