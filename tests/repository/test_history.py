"""Any history of writes, growth, deltas, fallbacks, removals, maintenance and crashes restores every kept point."""

from __future__ import annotations

import os
import random
import uuid
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.fence import OpenFence
from orchestrator.repository.damage import check_base
from orchestrator.repository.errors import StoreUnavailable
from orchestrator.repository.maintenance import plan_sweep, sweep
from orchestrator.repository.manifest import PointRef
from orchestrator.repository.point import remove
from orchestrator.repository.store import open_store
from orchestrator.repository.vault import Vault
from orchestrator.repository.verify import verify
from tests.repository.engine import announce, copy, new_vault, point_record, restore
from tests.repository.faults import DEATHS, HONEST, Fault, FaultyStore, ProcessDied

HISTORIES = int(os.environ.get("TIDEMARK_HISTORIES", "25"))
"""More on demand: TIDEMARK_HISTORIES=5000 pytest tests/repository/test_history.py"""
SIZE = 256

_backup = st.tuples(
    st.just("backup"),
    st.sampled_from(["delta", "allocated", "full"]),
    st.integers(0, 2**32),
    st.sampled_from([0, 0, 0, 1, 700]),
    st.sampled_from([1, 1, 3]),
    st.one_of(st.none(), st.tuples(st.integers(0, 25), st.sampled_from(HONEST))),
)
_remove = st.tuples(st.just("remove"), st.integers(0, 100))
_maintain = st.tuples(st.just("maintain"), st.one_of(st.none(), st.tuples(st.integers(0, 25), st.sampled_from(DEATHS))))
_days = st.tuples(st.just("days"), st.sampled_from([1, 3, 9]))


class _World:
    """A volume, its points and what each must restore to."""

    def __init__(self, vault: Vault) -> None:
        self.vault = vault
        self.volume = bytearray(20 * SIZE)
        self.dirty: set[int] = set()
        self.points: dict[PointRef, bytes] = {}
        self.last: PointRef | None = None
        self.sequence = 0
        self.days = 0.0

    def change(self, seed: int, grow: int) -> None:
        """Write, discard and grow at random; remember which chunks changed since the last point."""
        rng = random.Random(seed)
        old = len(self.volume)
        self.volume.extend(bytes(grow * SIZE))
        self.dirty.update(range(old // SIZE, len(self.volume) // SIZE) if rng.random() < 0.3 else ())
        for _ in range(rng.choice([0, 1, 4, 30])):
            index = rng.randrange(len(self.volume) // SIZE)
            data = rng.choice([bytes(SIZE), rng.randbytes(SIZE), b"same" * (SIZE // 4)])
            self.volume[index * SIZE : (index + 1) * SIZE] = data
            self.dirty.add(index)

    async def backup(self, mode: str, seed: int, grow: int, shards: int, fault: tuple[int, Fault] | None) -> None:
        """Change the volume, then make a point; a first try may be cut off, the second must get through."""
        self.change(seed, grow)
        self.sequence += 1
        base = self.last if mode == "delta" else None
        if base is None and mode == "delta":
            mode = "full"
        record = point_record(
            sequence=self.sequence, size=len(self.volume), chunk_size=SIZE, mode=mode, parent=self.last
        )
        every = range(len(self.volume) // SIZE)
        held = [i for i in every if any(self.volume[i * SIZE : (i + 1) * SIZE])]
        touched = {"delta": sorted(self.dirty), "allocated": held, "full": every}[mode]
        compare = self.last if mode != "delta" else None
        for store in ([FaultyStore.at(self.vault.store, *fault)] if fault else []) + [self.vault.store]:
            vault = Vault(store, self.vault.keys)
            try:
                intent_id = await announce(vault, record, touched, base=base, compare=compare, shards=shards)
                ref = await copy(vault, intent_id, bytes(self.volume), pack_size=64 * 1024)
            except (ProcessDied, StoreUnavailable):
                continue
            self.points[ref] = bytes(self.volume)
            self.last, self.dirty = ref, set()

    async def remove(self, number: int) -> None:
        """Remove one point; a base may go as well, its heirs live on."""
        if self.points:
            ref = sorted(self.points, key=lambda point: point.key)[number % len(self.points)]
            await remove(self.vault, ref, OpenFence())
            del self.points[ref]
            if ref == self.last:
                # The next delta has no base: everything since counts as unknown.
                self.last = None

    async def maintain(self, fault: tuple[int, Fault] | None) -> None:
        """Sweep as seen some days after the store's clock; may be cut off."""
        store = FaultyStore.at(self.vault.store, *fault) if fault else self.vault.store
        vault = Vault(store, self.vault.keys)
        now = datetime.now(UTC) + timedelta(days=self.days, seconds=5)
        try:
            plan = await plan_sweep(vault, now=now, grace=timedelta(days=1), intent_age=timedelta(days=7))
            await sweep(vault, plan, OpenFence())
        except (ProcessDied, StoreUnavailable):
            return

    async def check(self) -> None:
        """Every kept point restores bit for bit, whatever happened."""
        for ref, volume in self.points.items():
            assert await restore(self.vault, ref) == volume


@settings(max_examples=HISTORIES, deadline=None)
@given(st.lists(st.one_of(_backup, _backup, _remove, _maintain, _days), min_size=1, max_size=10))
async def test_any_history_restores_every_kept_point_bit_for_bit(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    world = _World(await new_vault(await open_store(f"memory://{uuid.uuid4().hex}")))
    for step in steps:
        match step:
            case ("backup", *arguments):
                await world.backup(*arguments)
            case ("remove", number):
                await world.remove(number)
            case ("maintain", fault):
                await world.maintain(fault)
            case ("days", days):
                world.days += days
    await world.check()
    for _ in range(3):
        world.days += 2
        await world.maintain(None)
    await world.check()
    report = await verify(world.vault, depth="full")
    assert report.ok, report
    for ref in world.points:
        assert (await check_base(world.vault, ref)).usable
