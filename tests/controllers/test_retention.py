"""Retention: what no rule keeps goes, and one point that can't be dropped holds up no other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.api.tidemark.recovery_point import RecoveryPoint
from orchestrator.controllers.retention import Retention
from tests.controllers.desk import NOON, Desk, desk


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path) as made:
        yield made


async def point(at: Desk, name: str, pvc: str, age_h: int, policy: object, repository: str | None = None) -> None:
    spec = {"pvcName": pvc, "pvcUid": pvc, "policy": policy, "slot": (NOON - timedelta(hours=age_h)).isoformat()}
    status = {
        "phase": "Completed",
        "snapshotTime": (NOON - timedelta(hours=age_h)).isoformat(),
        "sequence": 100 - age_h,
    }
    if repository is not None:
        spec["repository"] = repository
        status["manifest"] = {"key": "ns/x", "digest": "d"}
    await at.put(RecoveryPoint, name, spec=spec, status=status)


async def test_a_point_that_cannot_be_dropped_leaves_the_others_alone(at: Desk) -> None:
    policy = await at.policy(retention={"keepLast": 1}, schedule={"every": "1h"})
    ref = {"name": policy.name, "uid": policy.uid}
    # the old points of two volumes: the first one's repository is gone, so its data can't be removed
    await point(at, "a-new", "a", 1, ref)
    await point(at, "a-old", "a", 2, ref, repository="gone")
    await point(at, "b-new", "b", 1, ref)
    await point(at, "b-old", "b", 2, ref)
    await Retention(at.context).apply(NOON)
    assert at.names(RecoveryPoint) == ["a-new", "a-old", "b-new"]
    events = await at.events()
    assert "RepositoryNotFound" in [reason for reason, _ in events]
    assert [reason for reason, _ in events].count("Dropped") == 1


async def test_a_deleted_policy_freezes_its_points(at: Desk) -> None:
    policy = await at.policy(retention={"keepLast": 1}, schedule={"every": "1h"})
    ref = {"name": policy.name, "uid": policy.uid}
    await point(at, "a-new", "a", 1, ref)
    await point(at, "a-old", "a", 2, ref)
    await at.remove(type(policy), policy.name)
    await at.policy(retention={"keepLast": 1}, schedule={"every": "1h"})
    await Retention(at.context).apply(NOON)
    assert at.names(RecoveryPoint) == ["a-new", "a-old"], "a policy of the same name made later is another one"
