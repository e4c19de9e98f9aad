"""A volume of some small packs whose points come and go, for what maintenance does to it."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

from orchestrator.fence import OpenFence
from orchestrator.repository.maintenance import SweepPlan, SweepResult, plan_sweep, sweep
from orchestrator.repository.manifest import PointRef
from orchestrator.repository.point import remove
from orchestrator.repository.vault import Vault
from tests.repository.engine import backup, restore

SIZE = 1024
DAY, WEEK = timedelta(days=1), timedelta(days=7)


class History:
    """A volume, its points in a repository of small packs, and what each must restore to."""

    def __init__(self, vault: Vault, seed: int, chunks: int, size: int = SIZE) -> None:
        self.vault, self.random, self.size = vault, random.Random(seed), size
        self.volume = bytearray(self.random.randbytes(chunks * size))
        self.points: dict[PointRef, bytes] = {}
        self.sequence = 0

    async def point_on(self, base: PointRef | None, share: float) -> PointRef:
        """Change a share of the chunks and make a point, with a base or as a whole."""
        size = self.size
        count = len(self.volume) // size
        touched = sorted(self.random.sample(range(count), round(share * count)))
        for index in touched:
            self.volume[index * size : (index + 1) * size] = self.random.randbytes(size)
        self.sequence += 1
        ref = await backup(
            self.vault,
            bytes(self.volume),
            sequence=self.sequence,
            touched=touched if base else None,
            base=base,
            chunk_size=size,
            pack_size=16 * size,
        )
        self.points[ref] = bytes(self.volume)
        return ref


class World(History):
    """A volume of some packs whose points are made, pruned and maintained day by day."""

    def __init__(self, vault: Vault, seed: int = 1, chunks: int = 60) -> None:
        super().__init__(vault, seed, chunks)
        self.days = 0.0

    async def point(self, share: float = 1.0) -> PointRef:
        """Change a share of the chunks and make a point on the newest."""
        return await self.point_on(max(self.points, key=lambda ref: ref.key, default=None), share)

    async def prune(self, keep: int) -> None:
        """Remove all but the newest points."""
        for ref in sorted(self.points, key=lambda ref: ref.key)[:-keep]:
            await remove(self.vault, ref, OpenFence())
            del self.points[ref]

    async def plan(self, days: float = 0, vault: Vault | None = None) -> SweepPlan:
        """Plan a run, as seen some days later than the last."""
        self.days += days
        now = datetime.now(UTC) + timedelta(days=self.days, seconds=5)
        return await plan_sweep(vault or self.vault, now=now, grace=DAY, intent_age=WEEK, pack_size=16 * SIZE)

    async def run(self, days: float = 0, vault: Vault | None = None) -> SweepResult:
        """Plan and carry out."""
        plan = await self.plan(days, vault)
        return await sweep(vault or self.vault, plan, OpenFence(), pack_size=16 * SIZE)

    async def check(self) -> None:
        """Every point restores bit for bit."""
        for ref, volume in self.points.items():
            assert await restore(self.vault, ref) == volume, ref.key

    async def settle_down(self) -> None:
        """Run until nothing is left to do."""
        for _ in range(6):
            await self.run(8)

    async def names(self, prefix: str) -> set[str]:
        """Return what lies there."""
        return {info.key async for info in self.vault.store.list(self.vault.names.prefix + prefix)}

    async def packs_bytes(self) -> int:
        """Return the bytes of all packs."""
        return sum([info.size async for info in self.vault.store.list(self.vault.names.packs)])
