"""A repository's usage follows its points soon, at a cost that follows what counting costs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.api.tidemark.backup_repository import BackupRepository
from orchestrator.api.tidemark.recovery_point import RecoveryPoint
from orchestrator.controllers.backup_repository import BackupRepositoryController
from tests.controllers.desk import Desk, desk

KEY = ("", "main")


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path) as made:
        yield made


async def counted(at: Desk) -> str:
    usage = (await at.known(BackupRepository, "main")).status.usage
    assert usage is not None
    return str(usage.measured)


async def completed(at: Desk, name: str) -> None:
    status = {"phase": "Completed", "completionTime": at.clock.now().isoformat()}
    spec = {"pvcName": "db", "pvcUid": "u", "repository": "main"}
    await at.put(RecoveryPoint, name, spec=spec, status=status)


async def test_usage_is_counted_soon_after_points_and_not_oftener_than_it_may(at: Desk) -> None:
    await at.repository()
    controller = BackupRepositoryController(at.context)
    controller.wire()
    await controller.reconcile(KEY)
    first = await counted(at)
    at.clock.pass_(seconds=20)
    await completed(at, "one")
    again = await controller.reconcile(KEY)
    assert again is not None
    assert again.after_s == pytest.approx(40)
    assert await counted(at) == first
    at.clock.pass_(seconds=40)
    await controller.reconcile(KEY)
    second = await counted(at)
    assert second != first
    # nothing new: not before half an hour has passed
    for _ in range(20):
        at.clock.pass_(seconds=60)
        await controller.reconcile(KEY)
    assert await counted(at) == second
    # a count that takes 5 s may be made every 500 s
    controller._counting_s["main"] = 5.0
    at.clock.pass_(seconds=540)
    await completed(at, "two")
    await controller.reconcile(KEY)
    third = await counted(at)
    assert third != second
    controller._counting_s["main"] = 5.0
    at.clock.pass_(seconds=10)
    await completed(at, "three")
    at.clock.pass_(seconds=480)
    await controller.reconcile(KEY)
    assert await counted(at) == third
    at.clock.pass_(seconds=10)
    await controller.reconcile(KEY)
    assert await counted(at) != third
