"""kill -9 on the controller or a mover at any moment: the backup completes, the point restores, nothing is left."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from orchestrator.api.tidemark import BackupPolicy
from orchestrator.api.tidemark.backup import BackupPhase
from orchestrator.demo import install
from tests.system.world import World, digest, world, write

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]

MOMENTS = int(os.environ.get("TIDEMARK_CHAOS_MOMENTS", "50"))
NAMESPACE = "chaos"


async def _one(found: World, number: int, chance: random.Random, images: dict[str, Path]) -> None:
    for image in images.values():
        for _ in range(chance.randrange(1, 6)):
            write(image, chance.randrange(0, (8 << 20) - 70_000), chance.randbytes(70_000))
    expected = {name: digest(image) for name, image in images.items()}
    victim = chance.choice(("controller", "controller", "mover", "both"))
    delay = chance.random() * 4.0
    name = f"run-{number}"
    await found.backup(name, NAMESPACE, policy="all", full=chance.random() < 0.2)
    await asyncio.sleep(delay)
    if victim in ("mover", "both"):
        found.kill_movers()
    if victim in ("controller", "both"):
        found.kill_controller()
        await found.start_controller()
    done = await found.backup_ended(name, NAMESPACE)
    assert done.status.phase is BackupPhase.COMPLETED, (number, victim, delay, done.status)
    points = [p for p in await found.points(NAMESPACE) if p.spec.backup == name]
    assert len(points) == len(images)
    for point in points:
        restored = await found.restored_offline(point.uid)
        assert restored == expected[point.spec.pvc_name], (number, victim, delay, point.name)
    await found.settled(NAMESPACE, snapshots=len(images))
    print(f"{number}: {victim} killed after {delay:.2f} s, {len(points)} points good")


async def test_a_backup_survives_kill_9_at_seeded_random_moments(tmp_path: Path) -> None:
    seed = int(os.environ.get("TIDEMARK_CHAOS_SEED", "20260301"))
    chance = random.Random(seed)
    async with world(tmp_path / "w") as found:
        await install.namespace(found.client, NAMESPACE)
        images = {name: await found.claim(name, NAMESPACE) for name in ("one", "two")}
        spec = {"repository": "vault", "volumes": {}}
        await found.apply(BackupPolicy, "all", NAMESPACE, spec)
        await found.start_controller()
        for number in range(MOMENTS):
            await _one(found, number, chance, images)
        code, said = await found.tidemark(
            "verify", "--repository", found.repository_url, "--key-file", str(found.key_file), "--full"
        )
        assert code == 0, said
