"""Mover slots: never more than the limits, free only when a clone is really gone, and restores first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from orchestrator.api.meta import ObjectMeta
from orchestrator.api.tidemark.fields import FINALIZER, LABEL_PVC_UID
from orchestrator.api.tidemark.recovery_point import PointPhase, RecoveryPoint, RecoveryPointSpec
from orchestrator.api.tidemark.restore import Restore, RestoreSource, RestoreSpec
from orchestrator.controllers.base import Context
from orchestrator.controllers.slots import Slots
from tests.controllers.bed import REPOSITORY, TENANT, Bed, bed

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bed]:
    directory: Path = tmp_path_factory.mktemp("slots")
    async with bed(directory, max_movers=2) as made:
        yield made


async def waiting(cluster: Bed, name: str, driver: str = "a") -> RecoveryPoint:
    """Make a point that waits for a slot."""
    point = RecoveryPoint(
        metadata=ObjectMeta(name=name, namespace=TENANT, labels={LABEL_PVC_UID: name}, finalizers=(FINALIZER,)),
        spec=RecoveryPointSpec(pvc_name="db", pvc_uid=name, repository=REPOSITORY),
    )
    made = await cluster.client.create(point)
    now = datetime.now(UTC).isoformat()
    return await status(cluster, made, phase="Waiting", plannedTime=now, driver=driver)


async def status(cluster: Bed, point: RecoveryPoint, **fields: Any) -> RecoveryPoint:
    body = {"status": fields}
    return await cluster.client.merge_patch(RecoveryPoint, point.name, TENANT, body, subresource="status")


async def known(cluster: Bed, context: Context, point: RecoveryPoint) -> None:
    """Wait until the cache has heard of the point as it is now."""
    now = await cluster.client.get(RecoveryPoint, point.name, TENANT)

    async def heard() -> bool:
        found = context.caches.of(RecoveryPoint).by_uid(point.uid)
        return found is not None and found.metadata.resource_version == now.metadata.resource_version

    await cluster.eventually(heard, "the cache heard of it")


async def test_a_slot_is_given_once_and_comes_free_with_the_clone(cluster: Bed) -> None:
    points = [await waiting(cluster, f"p{number}") for number in range(4)]
    async with cluster.context() as context:
        slots = Slots(context)
        first = await slots.grant()
        again = await slots.grant()
        granted = [p for p in points if p.uid in first]
        held = await status(cluster, granted[0], phase="Completed")
        await known(cluster, context, held)
        torn_down = await slots.grant()
        free = await cluster.client.merge_patch(RecoveryPoint, held.name, TENANT, {"metadata": {"finalizers": None}})
        await known(cluster, context, free)
        last = await slots.grant()

    assert len(first) == 2
    assert again == []
    assert torn_down == []
    assert len(last) == 1
    for uid in (*first[1:], *last):
        point = next(p for p in points if p.uid == uid)
        now = await cluster.client.get(RecoveryPoint, point.name, TENANT)
        assert now.status.phase is PointPhase.COPYING
        assert now.status.granted_time is not None
    for point in points:
        await cluster.client.merge_patch(RecoveryPoint, point.name, TENANT, {"metadata": {"finalizers": None}})
        now = await cluster.client.get(RecoveryPoint, point.name, TENANT)
        await cluster.client.delete(RecoveryPoint, point.name, TENANT, uid=now.uid)


async def test_a_restore_goes_before_a_backup_and_a_cancelled_point_gets_nothing(cluster: Bed) -> None:
    backups = [await waiting(cluster, f"q{number}") for number in range(2)]
    cancelled = await waiting(cluster, "q-cancelled")
    await cluster.client.merge_patch(RecoveryPoint, cancelled.name, TENANT, {"spec": {"cancel": True}})
    restore = await cluster.client.create(
        Restore(
            metadata=ObjectMeta(name="back", namespace=TENANT),
            spec=RestoreSpec(source=RestoreSource(point="q0")),
        )
    )
    body = {"status": {"phase": "Pending", "manifestKey": "n/x", "startTime": datetime.now(UTC).isoformat()}}
    await cluster.client.merge_patch(Restore, "back", TENANT, body, subresource="status")
    async with cluster.context() as context:
        granted = await Slots(context).grant()
    assert granted[0] == restore.uid
    assert len(granted) == 2
    assert cancelled.uid not in granted
    assert {granted[1]} < {p.uid for p in backups}
    assert msgspec.to_builtins((await cluster.client.get(Restore, "back", TENANT)).status)["grantedTime"]
