"""Any history restores every kept point bit for bit, to our reader and to the stranger's.

A history: writes, discards, growth and shrinking; deltas, fallbacks, shards; faults and deaths at any request; writers
that stall and go on much later; removals; maintenance with compaction, cut off anywhere; time going by; new data keys.
Most histories are written by a small engine that does nothing but follow the format, some by the real one.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from orchestrator.blocks.backup import Copied, CopyOptions
from orchestrator.blocks.backup import backup as real_backup
from orchestrator.errors import TidemarkError
from orchestrator.fence import OpenFence
from orchestrator.repository.damage import check_base
from orchestrator.repository.errors import KeysOutdated, ObjectMissing, PointCancelled, StoreUnavailable
from orchestrator.repository.keys import MasterKey
from orchestrator.repository.maintenance import plan_sweep, sweep
from orchestrator.repository.manifest import PointRecord, PointRef
from orchestrator.repository.plan import open_plan
from orchestrator.repository.point import remove
from orchestrator.repository.repository import Repository
from orchestrator.repository.vault import Vault
from orchestrator.repository.verify import verify
from tests.reader.stranger import open_repository
from tests.repository.engine import NAMESPACE, announce, backup, copy, new_vault, point_record, restore
from tests.repository.faults import DEATHS, HONEST, Fault, FaultyStore, ProcessDied, Shelf

pytestmark = [pytest.mark.system, pytest.mark.timeout(7200)]

HISTORIES = int(os.environ.get("TIDEMARK_HISTORIES", "300"))
"""More on demand: TIDEMARK_HISTORIES=5000 pytest tests/repository/test_history.py"""
SIZE = 256
PACK = 4096
OPTIONS = CopyOptions(readers=2, pack_bytes=PACK)
KEY = bytes(range(32))

_fault = st.tuples(st.integers(0, 30), st.sampled_from([*HONEST, Fault.LATE]))
_mode = st.sampled_from(["delta", "delta", "delta", "allocated", "full"])
_change = st.tuples(st.integers(0, 2**32), st.sampled_from([0, 0, 0, 1, 700, -3, -500]))
_backup = st.tuples(st.just("backup"), _mode, _change, st.sampled_from([1, 1, 3]), st.one_of(st.none(), _fault))
_stall = st.tuples(st.just("stall"), _mode, _change, st.sampled_from([1, 3]), st.integers(2, 20))
_resume = st.tuples(st.just("resume"))
_remove = st.tuples(st.just("remove"), st.integers(0, 100))
_death = st.tuples(st.integers(0, 40), st.sampled_from([*DEATHS, Fault.LATE]))
_maintain = st.tuples(st.just("maintain"), st.one_of(st.none(), _death))
_days = st.tuples(st.just("days"), st.sampled_from([1, 3, 9]))
_steps = st.lists(
    st.one_of(_backup, _backup, _stall, _resume, _remove, _remove, _maintain, _maintain, _days), max_size=14
)


@dataclass
class _Stalled:
    """A writer that stands still: its plan is in the repository, its snapshot is its own."""

    intent_id: str
    volume: bytes
    vault: Vault
    """With the keys that there were when it stood still."""


class _World:
    """A volume, its points and what each must restore to."""

    def __init__(self, shelf: Shelf, vault: Vault, folder: Path | None = None) -> None:
        """With a `folder` for volumes the real engine copies."""
        self.shelf, self.vault, self.folder = shelf, vault, folder
        self.volume = bytearray(20 * SIZE)
        self.dirty: set[int] = set()
        self.points: dict[PointRef, bytes] = {}
        self.last: PointRef | None = None
        self.last_size = 0
        self.sequence = 0
        self.stalled: list[_Stalled] = []
        self.late: list[FaultyStore] = []

    def change(self, seed: int, grow: int) -> None:
        """Write, discard, grow or shrink at random; remember which chunks changed since the last point."""
        rng = random.Random(seed)
        old = len(self.volume)
        if grow >= 0:
            self.volume.extend(bytes(grow * SIZE - (rng.randrange(SIZE) if grow > 1 else 0)))
        else:
            del self.volume[max(SIZE, old + grow * SIZE // 4) :]
            # What was cut off reads as zeros when the volume grows again.
            self.dirty.update(range(len(self.volume) // SIZE, -(-old // SIZE)))
        if grow > 0 and rng.random() < 0.3:
            self.dirty.update(range(old // SIZE, self.chunks))
        for _ in range(rng.choice([0, 1, 4, 30])):
            index = rng.randrange(self.chunks)
            data = rng.choice([bytes(SIZE), rng.randbytes(SIZE), b"same" * (SIZE // 4)])
            self.volume[index * SIZE : (index + 1) * SIZE] = data[: len(self.volume) - index * SIZE]
            self.dirty.add(index)

    @property
    def chunks(self) -> int:
        return -(-len(self.volume) // SIZE)

    def plan(self, mode: str) -> tuple[PointRecord, list[int], dict[str, PointRef | None]]:
        """Describe the next point: its record, the chunks to read, and what it builds on or compares with."""
        self.sequence += 1
        mode = "full" if self.last is None and mode == "delta" else mode
        record = point_record(
            sequence=self.sequence, size=len(self.volume), chunk_size=SIZE, mode=mode, parent=self.last
        )
        held = [i for i in range(self.chunks) if any(self.volume[i * SIZE : (i + 1) * SIZE])]
        # The chunk at the smaller size's border is read again, as every writer must.
        border = {min(self.last_size, len(self.volume)) // SIZE} if self.last_size != len(self.volume) else set()
        changed = sorted(index for index in self.dirty | border if index < self.chunks)
        touched = {"delta": changed, "allocated": held, "full": [*range(self.chunks)]}[mode]
        return record, touched, {"base": self.last if mode == "delta" else None, "compare": _not_delta(mode, self.last)}

    async def copy(self, vault: Vault, intent_id: str, volume: bytes) -> PointRef:
        """Copy every shard of a plan and commit."""
        if self.folder is None:
            return await copy(vault, intent_id, volume, pack_size=PACK)
        snapshot, ref = self.folder / "snapshot", None
        snapshot.write_bytes(volume)
        shards = 1
        with suppress(ObjectMissing):  # its point was ended, as the engine is going to find
            shards = (await open_plan(self.vault, intent_id)).shards
        for number in range(shards):
            ended = await real_backup(vault, intent_id, snapshot, shard=number, options=OPTIONS)
            ref = ended.point if isinstance(ended, Copied) else ended
        assert ref is not None, "the last shard commits"
        return ref

    def stores(self, fault: tuple[int, Fault] | None) -> Iterator[FaultyStore | Shelf]:
        """Yield a store that fails once, if at all, then the honest one."""
        if fault is not None:
            self.late.append(FaultyStore.at(self.shelf, *fault))
            yield self.late[-1]
        yield self.shelf

    async def backup(self, mode: str, change: tuple[int, int], shards: int, fault: tuple[int, Fault] | None) -> None:
        """Change the volume, then make a point; a first try may be cut off, the second must get through."""
        self.change(*change)
        record, touched, builds_on = self.plan(mode)
        for store in self.stores(fault):
            vault = Vault(store, self.vault.keys)
            try:
                intent_id = await announce(vault, record, touched, shards=shards, **builds_on)
                ref = await self.copy(vault, intent_id, bytes(self.volume))
            except (ProcessDied, StoreUnavailable):
                continue
            self.points[ref] = bytes(self.volume)
            self.last, self.last_size, self.dirty = ref, len(self.volume), set()

    async def stall(self, mode: str, change: tuple[int, int], shards: int, at: int) -> None:
        """Begin a point and stand still in the middle of it: the controller gives up on it and goes on."""
        self.change(*change)
        record, touched, builds_on = self.plan(mode)
        intent_id = await announce(self.vault, record, touched, shards=shards, **builds_on)
        store = FaultyStore.at(self.shelf, at, Fault.CRASH)
        try:
            ref = await self.copy(Vault(store, self.vault.keys), intent_id, bytes(self.volume))
        except ProcessDied:
            self.stalled.append(_Stalled(intent_id, bytes(self.volume), self.vault))
        else:
            self.points[ref] = bytes(self.volume)

    async def resume(self) -> None:
        """Let the writer that stood still for longest go on: it commits a whole point, or is told that it's over."""
        if not self.stalled:
            return
        one = self.stalled.pop(0)
        for vault in (one.vault, self.vault):
            try:
                self.points[await self.copy(vault, one.intent_id, one.volume)] = one.volume
            except KeysOutdated:
                continue  # its next try is given the new keys
            except PointCancelled:
                event("a writer was told that its point is over")
            except TidemarkError as error:
                if self.folder is not None or not self.ended(one.intent_id):
                    raise AssertionError("nobody ended this point, or the engine doesn't say so") from error
                event("a writer found nothing left of its point")
            else:
                event("a writer that stood still committed")
            return

    def ended(self, intent_id: str) -> bool:
        """Say whether a point was cancelled, or is gone with its intent."""
        return not any(name.endswith(f"/{intent_id}/intent") for name in self.shelf.objects) or any(
            "/points/" in name and name.endswith(intent_id) for name in self.shelf.objects
        )

    async def rotate(self) -> None:
        """Give the namespace a new data key."""
        self.vault = await (await Repository.open(self.shelf, MasterKey(KEY))).rotate(NAMESPACE)

    async def remove(self, number: int) -> None:
        """Remove one point; a base may go as well, its heirs live on."""
        if self.points:
            ref = sorted(self.points, key=lambda point: point.key)[number % len(self.points)]
            await remove(self.vault, ref, OpenFence())
            del self.points[ref]
            if ref == self.last:
                # The next delta has no base: everything since counts as unknown.
                self.last, self.last_size = None, 0

    async def maintain(self, fault: tuple[int, Fault] | None) -> None:
        """Sweep and compact; may be cut off."""
        store: FaultyStore | Shelf = self.shelf
        if fault is not None:
            store = FaultyStore.at(self.shelf, *fault)
            self.late.append(store)
        vault, now = Vault(store, self.vault.keys), self.shelf.now + timedelta(seconds=5)
        try:
            plan = await plan_sweep(vault, now=now, grace=timedelta(days=1), intent_age=timedelta(days=7))
            await sweep(vault, plan, OpenFence(), pack_size=PACK)
        except (ProcessDied, StoreUnavailable):
            return

    async def check(self) -> None:
        """Every kept point restores bit for bit, whatever happened."""
        for ref, volume in self.points.items():
            assert await restore(self.vault, ref) == volume

    def check_as_a_stranger(self) -> None:
        """The stranger finds the same points, and the same bytes."""
        (namespace,) = open_repository(self.shelf.plain(), KEY)
        assert set(namespace.points()) == {ref.key for ref in self.points}
        for ref, volume in self.points.items():
            assert namespace.volume(ref.key, ref.digest) == volume


def _not_delta(mode: str, ref: PointRef | None) -> PointRef | None:
    return None if mode == "delta" else ref


async def _live(world: _World, steps: list[tuple]) -> None:  # type: ignore[type-arg]
    for step in steps:
        match step:
            case ("days", days):
                world.shelf.now += timedelta(days=days)
            case (name, *arguments):
                await getattr(world, name)(*arguments)


@settings(
    max_examples=HISTORIES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(_steps, st.booleans(), st.sampled_from([False, False, False, False, False, True]))
async def test_any_history_restores_every_kept_point_bit_for_bit(
    steps: list[tuple],  # type: ignore[type-arg]
    given_up: bool,
    real: bool,
) -> None:
    with tempfile.TemporaryDirectory() if real else nullcontext() as folder:
        await _lived(steps, given_up, Path(folder) if folder else None)


async def _lived(steps: list[tuple], given_up: bool, folder: Path | None) -> None:  # type: ignore[type-arg]
    shelf = Shelf()
    world = _World(shelf, await new_vault(shelf), folder)
    await _live(world, steps)
    await world.check()
    for store in world.late:
        await store.settle()
    for _ in range(3 if given_up else 0):  # writers that stand still are ended, and what is theirs is swept
        shelf.now += timedelta(days=8)
        await world.maintain(None)
    while world.stalled:
        await world.resume()
    for _ in range(3):
        shelf.now += timedelta(days=2)
        await world.maintain(None)
    await world.check()
    world.check_as_a_stranger()
    if any("/relocated/" in name for name in shelf.objects):
        event("packs were compacted")
    report = await verify(world.vault, depth="full")
    assert report.ok, report
    for ref in world.points:
        assert (await check_base(world.vault, ref)).usable


async def test_a_delta_of_a_volume_that_shrank_commits_when_its_last_chunk_was_read(vault: Vault) -> None:
    # given a base, and a smaller volume whose last chunk is among what changed
    whole = random.Random(1).randbytes(20 * SIZE)
    base = await backup(vault, whole, sequence=1, chunk_size=SIZE)
    smaller = whole[: 7 * SIZE - 9]
    # when a delta is made of it
    ref = await backup(vault, smaller, sequence=2, touched=[2, 6], base=base, chunk_size=SIZE)
    # then it is whole, and nothing of what was cut off comes back with a larger one
    assert await restore(vault, ref) == smaller
    larger = smaller + bytes(13 * SIZE + 9)
    grown = await backup(vault, larger, sequence=3, touched=[6], base=ref, chunk_size=SIZE)
    assert await restore(vault, grown) == larger
