"""Damage found by the schedule, told on the point that it hurts, healed by the next backup: a whole installation."""

from __future__ import annotations

import asyncio
import re

import pytest

from orchestrator.api.foreign.core import Job
from orchestrator.api.meta import condition
from orchestrator.api.tidemark import BackupRepository, RecoveryPoint
from tests.system.test_data_path import CHUNK, backed_up, flipped, objects, protected
from tests.system.world import SETTINGS, World, digest, write
from tests.waiting import LONG

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.system, pytest.mark.timeout(1500)]


def verified(found: BackupRepository | None) -> str:
    """Return the reason of the condition Verified."""
    told = condition(found.status.conditions, "Verified") if found is not None else None
    return told.reason if told is not None else ""


def hurt(point: RecoveryPoint | None) -> str:
    told = condition(point.status.conditions, "Damaged") if point is not None else None
    return told.status if told is not None else ""


async def gauge(found: World, name: str) -> str:
    line = re.search(rf'^tidemark_repository_{name}{{repository="vault"}} (\S+)', await found.scrape(), re.MULTILINE)
    assert line is not None, name
    return line.group(1)


async def test_damage_is_found_by_the_schedule_told_on_its_points_and_healed_by_the_next_backup(
    installed: World,
) -> None:
    # given two points, of which only the second uses the pack that then rots
    image, one, _ = await protected(installed, "rotten", 5)
    known = objects(installed, "packs")
    write(image, 3 * CHUNK, b"\x5a" * CHUNK)
    two = await backed_up(installed, "rotten", "second")
    (pack,) = objects(installed, "packs") - known
    flipped(pack)
    # when verifications come by themselves
    spec = {"verify": {"schedule": {"every": "5s"}, "depth": "full"}}
    await installed.client.merge_patch(BackupRepository, "vault", "", {"spec": spec})
    await installed.until(BackupRepository, "vault", "", lambda r: verified(r) == "Damaged")
    # then the second point is hurt, and the first is not
    await installed.until(RecoveryPoint, two.name, "rotten", lambda p: hurt(p) == "True")
    assert hurt(await installed.client.get(RecoveryPoint, one.name, "rotten")) == ""
    found = await installed.client.get(BackupRepository, "vault")
    assert found.status.verification is not None
    assert found.status.verification.hurt == (f"rotten/{two.name}",)
    assert await gauge(installed, "damaged_points") == "1.0"
    # and the next backup, a delta without a change, reads again what was lost
    three = await backed_up(installed, "rotten", "third")
    assert three.status.mode == "delta"
    assert await installed.restored_offline(three.uid) == await asyncio.to_thread(digest, image)
    # with the hurt point gone, all is sound
    await installed.client.merge_patch(RecoveryPoint, two.name, "rotten", {"spec": {"prune": True}})
    await installed.until(RecoveryPoint, two.name, "rotten", lambda p: p is None)
    # (any change wakes it sooner than its look each minute)
    await installed.client.merge_patch(BackupRepository, "vault", "", {"spec": {"verify": {"samplePercent": 6}}})
    await installed.until(BackupRepository, "vault", "", lambda r: verified(r) == "Verified")
    assert await gauge(installed, "damaged_points") == "0.0"
    # switched off, nothing is left behind
    spec = {"verify": {"suspend": True}}
    await installed.client.merge_patch(BackupRepository, "vault", "", {"spec": spec})
    async with asyncio.timeout(LONG):
        while (await installed.client.list(Job, SETTINGS.namespace))[0]:
            await asyncio.sleep(0.2)
    assert objects(installed, "verified") == set()
