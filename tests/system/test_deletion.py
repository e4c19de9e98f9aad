"""Deleting anything in Kubernetes deletes no repository data, in any order, and nothing hangs in Terminating."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from orchestrator.api.foreign.cluster import CustomResourceDefinition
from orchestrator.api.foreign.core import Namespace, PersistentVolumeClaim
from orchestrator.api.tidemark import Backup, BackupPolicy, BackupRepository, RecoveryPoint
from orchestrator.demo import install
from tests.system.world import World, digest, write

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.system, pytest.mark.timeout(1500)]


async def _protected(found: World, namespace: str, seed: int) -> tuple[str, str]:
    """Make a namespace with one protected volume; return the point's id and what it holds."""
    await install.namespace(found.client, namespace)
    image = await found.claim("data", namespace)
    write(image, 4096, random.Random(seed).randbytes(1 << 20))
    await found.apply(BackupPolicy, "all", namespace, {"repository": "vault", "retention": {"keepLast": 1}})
    await found.backup("run", namespace, policy="all")
    await found.backup_ended("run", namespace)
    (point,) = await found.points(namespace)
    return point.uid, digest(image)


async def _gone(found: World, kind: type, name: str, namespace: str = "") -> None:
    obj = await found.client.find(kind, name, namespace)
    if obj is not None:
        await found.client.delete(kind, name, namespace, uid=obj.uid)
    await found.until(kind, name, namespace, lambda o: o is None or o.uid != (obj.uid if obj else ""))


@pytest.mark.parametrize(
    "order",
    [
        (BackupPolicy, Backup, RecoveryPoint),
        (RecoveryPoint, BackupPolicy, Backup),
        (Backup, RecoveryPoint, BackupPolicy),
    ],
    ids=["policy-first", "point-first", "backup-first"],
)
async def test_records_can_be_deleted_in_any_order(installed: World, order: tuple[type, ...]) -> None:
    namespace = f"del-{order[0].__name__.lower()}"
    point, expected = await _protected(installed, namespace, seed=len(namespace))
    (record,) = await installed.points(namespace)
    names = {BackupPolicy: "all", Backup: "run", RecoveryPoint: record.name}
    for kind in order:
        await _gone(installed, kind, names[kind], namespace)
    assert await installed.restored_offline(point) == expected


async def test_a_claim_goes_with_its_snapshot_and_its_points_stay(installed: World) -> None:
    point, expected = await _protected(installed, "del-claim", seed=6)
    await _gone(installed, PersistentVolumeClaim, "data", "del-claim")
    await installed.settled("del-claim", snapshots=0)
    assert [p.uid for p in await installed.points("del-claim")] == [point]
    assert await installed.restored_offline(point) == expected


async def test_a_namespace_goes_and_its_points_stay(installed: World) -> None:
    point, expected = await _protected(installed, "del-ns", seed=1)
    await _gone(installed, Namespace, "del-ns")
    assert await installed.restored_offline(point) == expected
    await installed.settled("del-ns", snapshots=0)


async def test_a_namespace_that_goes_in_mid_copy_leaves_nothing_behind(installed: World) -> None:
    found = installed
    await _protected(found, "del-mid", seed=2)
    image = await found.image("data", "del-mid")
    write(image, 0, random.Random(3).randbytes(4 << 20))
    await found.backup("again", "del-mid", policy="all", full=True)
    await found.until(Backup, "again", "del-mid", lambda b: b is not None and b.status.volumes > 0)
    await _gone(found, Namespace, "del-mid")
    await found.settled("del-mid", snapshots=0)


async def test_a_namespace_goes_though_the_repository_is_unreachable(installed: World) -> None:
    found = installed
    point, expected = await _protected(found, "del-away", seed=4)
    store = Path(found.repository_url.removeprefix("file://"))
    aside = store.with_name("aside")
    shutil.move(store, aside)
    try:
        write(await found.image("data", "del-away"), 0, b"x" * 100_000)
        await found.backup("blind", "del-away", policy="all")
        await found.until(Backup, "blind", "del-away", lambda b: b is not None and b.status.volumes > 0)
        await _gone(found, Namespace, "del-away")
    finally:
        if store.exists():
            shutil.rmtree(store)
        shutil.move(aside, store)
    assert await found.restored_offline(point) == expected
    await found.settled("del-away", snapshots=0, within_s=420)  # what lost its record is the sweeper's, after its grace


async def test_the_kinds_themselves_can_go_and_come_back(installed: World) -> None:
    found = installed
    point, expected = await _protected(found, "del-crd", seed=5)
    for kind in (RecoveryPoint, Backup, BackupPolicy, BackupRepository):
        await _gone(found, CustomResourceDefinition, f"{kind.RESOURCE.plural}.{kind.RESOURCE.group}")
    assert await found.restored_offline(point) == expected
    await install.definitions(found.client)
    assert await found.restored_offline(point) == expected
