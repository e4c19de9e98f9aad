"""What a point builds on, and how finely its volume is cut: as its first point was, and said where otherwise asked."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api.foreign.core import PersistentVolume, PersistentVolumeClaim, StorageClass
from orchestrator.api.meta import condition
from orchestrator.api.tidemark.recovery_point import PointPhase, RecoveryPoint
from orchestrator.controllers.recovery_point import choosing, ladder, planning, recording, removal
from orchestrator.controllers.recovery_point.work import Work, lineage_of
from orchestrator.decisions.recovery_point import RecoveryPointSeen
from orchestrator.decisions.recovery_point_steps import Bounds
from orchestrator.kube.errors import Conflict
from orchestrator.repository.manifest import open_manifest
from orchestrator.repository.plan import open_plan
from orchestrator.repository.point import cancel
from tests.controllers.desk import Desk, desk
from tests.repository.engine import copy, restore

KIB = 1024
DRIVER, HANDLE = "csi.example.com", "vol-1"
BOUNDS = Bounds(snapshot_timeout_s=60, clone_timeout_s=60, mover_attempts=3, finalizer_bound_s=60)
SMALL = 64 * KIB
"""More than the pages of a map of this volume."""
VOLUME = random.Random(3).randbytes(2048 * KIB + 512)


@dataclass
class Volume:
    """One claim whose driver tells nothing of its blocks, and the points made of it, one after the other."""

    at: Desk
    memory: ladder.Memory
    number: int = 0

    async def begun(self, **options: Any) -> Work:
        """Take a snapshot's facts for granted: the point is about to choose what it builds on."""
        self.number += 1
        self.at.clock.pass_(hours=1)
        now = self.at.clock.now().isoformat()
        spec = {"pvcName": "db", "pvcUid": "pvc-uid", "repository": "main", "options": options}
        status: dict[str, Any] = {
            "phase": "Planning",
            "snapshotTime": now,
            "startTime": now,
            "readyTime": now,
            "driver": DRIVER,
        }
        status |= {"volumeHandle": HANDLE, "restoreSize": len(VOLUME), "snapshotKept": True}
        status |= {"snapshotHandle": f"snap-{self.number}", "baseId": f"snap-{self.number}"}
        point = await self.at.put(RecoveryPoint, f"db-{self.number}", spec=spec, status=status)
        return Work(self.at.context, point)

    async def planned(self, **options: Any) -> Work:
        """Choose, ask and store the plan, each as its step does."""
        return await self.plan(await self.begun(**options))

    async def plan(self, work: Work) -> Work:
        await choosing.choose(work, self.seen(work))
        await planning.plan_copy(work, self.seen(work), self.memory)
        return work

    def seen(self, work: Work) -> RecoveryPointSeen:
        others = [p for p in self.at.context.caches.of(RecoveryPoint).all() if p.uid != work.point.uid]
        return RecoveryPointSeen(work.point, self.at.clock.now(), BOUNDS, siblings=[*others, work.point])

    async def completed(self, **options: Any) -> RecoveryPoint:
        """Make a whole point, its data copied as a mover would."""
        work = await self.planned(**options)
        async with work.vault() as (_, vault):
            await copy(vault, work.status.intent, VOLUME)
        await recording.record_point(work)
        return await self.at.known(RecoveryPoint, work.point.name)

    async def removed(self, point: RecoveryPoint) -> None:
        """Remove a point's data, as somebody asked."""
        spec = self.at.api.objects[RecoveryPoint.RESOURCE.plural][(point.namespace, point.name)]["spec"]
        point = await self.at.change(RecoveryPoint, point.name, spec=spec | {"prune": True})
        await removal.prune_point(self.at.context, point)

    async def recorded_as_allocated(self, point: RecoveryPoint) -> None:
        """Say in the record that the driver told what is allocated: a full is looked for by its record."""
        status = self.at.api.objects[RecoveryPoint.RESOURCE.plural][(point.namespace, point.name)]["status"]
        await self.at.change(RecoveryPoint, point.name, status=status | {"mode": "allocated"})

    async def failed(self) -> None:
        """Plan a point that ends without data, as when no mover comes up."""
        await recording.end(await self.planned(), PointPhase.FAILED, "MoverFailed", "No mover came up")


@pytest.fixture
async def volume(tmp_path: Path) -> AsyncIterator[Volume]:
    async with desk(tmp_path) as at:
        await at.repository()
        await at.put(StorageClass, "fast", provisioner=DRIVER)
        spec = {"volumeName": "pv-db", "storageClassName": "fast", "resources": {"requests": {"storage": "3Mi"}}}
        await at.put(PersistentVolumeClaim, "db", metadata={"uid": "pvc-uid"}, spec=spec, status={"phase": "Bound"})
        csi = {"driver": DRIVER, "volumeHandle": HANDLE}
        await at.put(PersistentVolume, "pv-db", spec={"csi": csi, "storageClassName": "fast"})
        yield Volume(at, ladder.Memory(at.clock))


async def cut(volume: Volume, point: RecoveryPoint) -> int:
    """Return the chunk size that the manifest says, after reading the whole point back."""
    work = Work(volume.at.context, point)
    assert point.status.manifest is not None
    async with work.vault() as (_, vault):
        manifest, ref = await open_manifest(vault, point.status.manifest.key)
        assert await restore(vault, ref) == VOLUME
    return manifest.root.chunk_size


def told(point: RecoveryPoint) -> tuple[str, str] | None:
    found = condition(point.status.conditions, "ChunkSizeApplied")
    return (found.status, found.reason) if found is not None else None


def stored(point: RecoveryPoint) -> int:
    assert point.status.bytes is not None
    return point.status.bytes.uploaded


async def kept(volume: Volume) -> list[str]:
    return [message for reason, message in await volume.at.events() if reason == "ChunkSizeKept"]


@pytest.mark.system
@pytest.mark.parametrize(("asked", "size"), [({}, 64), ({"chunkSize": "1Mi"}, 1024)])
async def test_a_volumes_first_point_is_cut_as_its_policy_says(volume: Volume, asked: Any, size: int) -> None:
    point = await volume.completed(**asked)
    assert await cut(volume, point) == size * KIB
    assert point.status.chunk_size == {64: "64Ki", 1024: "1Mi"}[size]
    assert told(point) is None
    assert await kept(volume) == []


async def test_a_volume_keeps_its_chunk_size_and_a_point_asked_for_in_another_says_so(volume: Volume) -> None:
    # given
    first = await volume.completed(chunkSize="64Ki")
    assert (await cut(volume, first), first.status.chunk_size, told(first)) == (64 * KIB, "64Ki", None)
    # when
    other = await volume.completed(chunkSize="1Mi")
    # then its chunks are what they were, nothing is stored anew, and that lasts in the record
    assert await cut(volume, other) == 64 * KIB
    assert stored(other) < SMALL < stored(first)
    assert told(other) == ("False", "ChunkSizeKept")
    (message,) = await kept(volume)
    assert "in chunks of 64Ki" in message
    assert "options.chunkSize 1Mi" in message
    # then who asks for nothing, or for what is there, hears nothing
    for asked in ({}, {"chunkSize": "64Ki"}):
        point = await volume.completed(**asked)
        assert (point.status.chunk_size, told(point)) == ("64Ki", None)
    assert len(await kept(volume)) == 1


@pytest.mark.system
async def test_a_kept_chunk_size_is_told_also_of_a_plan_whose_maker_died_before_the_status(volume: Volume) -> None:
    # given
    await volume.completed(chunkSize="64Ki")
    work = await volume.begun(chunkSize="1Mi")
    await choosing.choose(work, volume.seen(work))
    volume.at.api.fail("PATCH", "recoverypoints/.*/status", 409, "Conflict")
    with pytest.raises(Conflict):
        await planning.plan_copy(work, volume.seen(work), volume.memory)
    # when
    again = Work(volume.at.context, await volume.at.known(RecoveryPoint, work.point.name))
    await planning.plan_copy(again, volume.seen(again), volume.memory)
    # then
    assert (again.status.chunk_size, told(again.point)) == ("64Ki", ("False", "ChunkSizeKept"))
    assert len(await kept(volume)) == 1


@pytest.mark.system
async def test_a_volume_whose_points_were_all_removed_begins_anew_in_the_size_asked_for(volume: Volume) -> None:
    for _ in range(2):
        await volume.removed(await volume.completed(chunkSize="64Ki"))
    point = await volume.completed(chunkSize="1Mi")
    assert (await cut(volume, point), told(point)) == (1024 * KIB, None)


@pytest.mark.system
async def test_an_earlier_point_that_is_no_base_still_fixes_the_chunk_size(volume: Volume) -> None:
    """The volume shrank, as after a restore from elsewhere: nothing to compare with, but points there are."""
    await volume.completed(chunkSize="64Ki")
    work = await volume.begun(chunkSize="1Mi")
    await work.write(restore_size=len(VOLUME) - 512)
    await volume.plan(work)
    async with work.vault() as (_, vault):
        plan = await open_plan(vault, work.status.intent)
    assert plan.compare is None
    assert plan.record.chunk_size == 64 * KIB
    assert told(work.point) == ("False", "ChunkSizeKept")


async def test_a_volume_whose_last_points_all_failed_still_builds_on_the_good_one(volume: Volume) -> None:
    """Their names stay taken for good; taken for points, they would hide that the volume has one."""
    # given
    good = await volume.completed(chunkSize="64Ki")
    await volume.recorded_as_allocated(good)
    for _ in range(choosing.LOOK_BACK + 1):
        await volume.failed()
    # when
    point = await volume.completed()
    # then it was compared with the good one, and nothing was stored again
    assert await cut(volume, point) == 64 * KIB
    assert point.status.reason != "NoBase"
    assert stored(point) < SMALL < stored(good)


@pytest.mark.system
async def test_a_good_point_is_found_behind_any_number_of_taken_names_if_the_cluster_knows_it(volume: Volume) -> None:
    # given
    await volume.recorded_as_allocated(await volume.completed())
    work = await volume.begun()
    async with work.vault() as (_, vault):
        for number in range(2, choosing.LOOK_THROUGH + 5):
            key = vault.names.point(lineage_of(DRIVER, HANDLE), number, f"failed-{number}")
            assert await cancel(vault, key, f"failed-{number}", why="test", clock=volume.at.clock)
    # when
    await choosing.choose(work, volume.seen(work))
    # then
    assert work.status.reason != "NoBase"
    assert work.status.sequence == choosing.LOOK_THROUGH + 5
