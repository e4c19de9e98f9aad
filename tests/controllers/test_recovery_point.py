"""Points made in a whole cluster: what they hold, what they cost, what stays behind, and how they fail.

Each story has a volume of its own, so they are told side by side: most of a story is waiting for pods.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from orchestrator.api.foreign.core import Namespace, PersistentVolume, PersistentVolumeClaim, StorageClass
from orchestrator.api.foreign.snapshot import VolumeSnapshot
from orchestrator.api.meta import Condition, condition
from orchestrator.api.tidemark.backup_policy import Deduplication, VolumeOptions
from orchestrator.api.tidemark.recovery_point import PointPhase, RecoveryPoint
from orchestrator.controllers.sweeper import Sweeper
from orchestrator.volumes.snapshot import original_name
from tests.controllers.bed import SYSTEM, TENANT, Bed, bed

CHUNK = 64 * 1024

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.system]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bed]:
    """One cluster for this file, with the point controller at work."""
    directory: Path = tmp_path_factory.mktemp("points")
    async with bed(directory, snapshot_timeout_s=15.0) as made, made.controller():
        yield made


Story = Callable[[Bed], Awaitable[None]]
STORIES: dict[str, Story] = {}


def story(tell: Story) -> Story:
    """Have the function told side by side with the others; each has its own volume and switches no fault."""
    STORIES[tell.__name__] = tell
    return tell


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def told(cluster: Bed) -> AsyncIterator[dict[str, asyncio.Task[None]]]:
    """All stories, begun at once."""
    tasks = {name: asyncio.create_task(tell(cluster), name=name) for name, tell in STORIES.items()}
    yield tasks
    await asyncio.gather(*tasks.values(), return_exceptions=True)


@story
async def points_read_what_changed_and_only_the_newest_snapshot_stays(cluster: Bed) -> None:
    claim = await cluster.volume("db")
    await cluster.write("db", b"first" * 100)
    whole = await cluster.completed(claim)
    await cluster.write("db", b"x" * 70000, offset=2 * 1024 * 1024)
    part = await cluster.completed(claim)
    idle = await cluster.completed(claim)

    assert (whole.status.mode, whole.status.reason) == ("allocated", "NoBase")
    assert whole.status.bytes is not None
    assert whole.status.bytes.read == CHUNK
    assert part.status.mode == "delta"
    assert part.status.base is not None
    assert part.status.base.uid == whole.uid
    assert part.status.bytes is not None
    assert part.status.bytes.read == 2 * CHUNK
    assert idle.status.mode == "delta"
    assert idle.status.bytes is not None
    assert (idle.status.bytes.read, idle.status.bytes.uploaded, idle.status.attempts) == (0, 0, 0)
    assert [p.status.sequence for p in (whole, part, idle)] == [1, 2, 3]
    assert [p.status.bytes and p.status.bytes.allocated for p in (whole, part, idle)] == [CHUNK, 3 * CHUNK, 3 * CHUNK]
    assert part.status.seconds is not None
    assert min(part.status.seconds.copy, part.status.seconds.commit) > 0
    assert part.status.seconds.copy + part.status.seconds.commit <= part.status.seconds.total

    async def dropped() -> bool:
        names = await cluster.of(VolumeSnapshot, TENANT)
        return not {original_name(whole.uid), original_name(part.uid)} & set(names)

    await cluster.eventually(dropped, "older snapshots dropped")
    await cluster.nothing_is_left_of(whole, snapshot=False)
    await cluster.nothing_is_left_of(part, snapshot=False)
    await cluster.nothing_is_left_of(idle, snapshot=True)


@story
async def a_point_without_a_repository_is_its_snapshot(cluster: Bed) -> None:
    claim = await cluster.volume("only")
    first = await cluster.completed(claim, repository=None)
    second = await cluster.completed(claim, repository=None)
    assert [p.status.mode for p in (first, second)] == ["snapshot", "snapshot"]
    assert [p.status.sequence for p in (first, second)] == [1, 2]
    await cluster.nothing_is_left_of(first, snapshot=True)
    await cluster.nothing_is_left_of(second, snapshot=True)


@story
async def a_strangers_object_under_our_name_is_never_adopted(cluster: Bed) -> None:
    claim = await cluster.volume("taken")
    point = await cluster.point(claim)
    name = f"tm-{point.uid}"
    stranger = {
        "metadata": {"name": name, "namespace": SYSTEM},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "sandbox",
            "resources": {"requests": {"storage": "1Mi"}},
        },
    }
    await cluster.client.create_raw(PersistentVolumeClaim.RESOURCE, stranger, PersistentVolumeClaim)
    await cluster.write("taken", b"data")
    ended = await cluster.ended(point)
    assert (ended.status.phase, ended.status.reason) == (PointPhase.FAILED, "NameTaken")
    kept = await cluster.client.get(PersistentVolumeClaim, name, SYSTEM)
    await cluster.client.delete(PersistentVolumeClaim, name, SYSTEM, uid=kept.uid)

    async def reclaimed() -> bool:
        return kept.spec.volume_name not in await cluster.of(PersistentVolume)

    await cluster.eventually(reclaimed, "the stranger's own volume went")
    await cluster.nothing_is_left_of(ended, snapshot=False)


@story
async def a_point_cancelled_or_deleted_in_mid_copy_leaves_nothing(cluster: Bed) -> None:
    claim = await cluster.volume("stopped", "16Mi")
    await cluster.write("stopped", bytes(range(256)) * 4096 * 8)
    slow = VolumeOptions(bandwidth_limit="1Mi")
    points = []
    for deed in ("cancel", "delete"):
        point = await cluster.point(claim, options=slow)

        async def copying(point: RecoveryPoint = point) -> bool:
            found = await cluster.client.get(RecoveryPoint, point.name, TENANT)
            return found.status.phase is PointPhase.COPYING and found.status.attempts == 1

        await cluster.eventually(copying, "the mover started")
        if deed == "cancel":
            await cluster.client.merge_patch(RecoveryPoint, point.name, TENANT, {"spec": {"cancel": True}})
            ended = await cluster.ended(point)
            assert (ended.status.phase, ended.status.reason) == (PointPhase.CANCELLED, "Cancelled")
        else:
            await cluster.client.delete(RecoveryPoint, point.name, TENANT, uid=point.uid)

            async def gone(point: RecoveryPoint = point) -> bool:
                return await cluster.client.find(RecoveryPoint, point.name, TENANT) is None

            await cluster.eventually(gone, "the record went")
        points.append(point)
    for point in points:
        await cluster.nothing_is_left_of(point, snapshot=False)


@story
async def a_tenant_who_deletes_the_snapshot_in_mid_copy_hurts_nothing(cluster: Bed) -> None:
    claim = await cluster.volume("rough", "8Mi")
    await cluster.write("rough", bytes(range(256)) * 4096 * 4)
    point = await cluster.point(claim, options=VolumeOptions(bandwidth_limit="2Mi"))

    async def copying() -> bool:
        return (await cluster.client.get(RecoveryPoint, point.name, TENANT)).status.phase is PointPhase.COPYING

    await cluster.eventually(copying, "a slot granted")
    snapshot = await cluster.client.get(VolumeSnapshot, f"tidemark-{point.uid}", TENANT)
    await cluster.client.delete(VolumeSnapshot, snapshot.name, TENANT, uid=snapshot.uid)
    ended = await cluster.ended(point)
    assert ended.status.phase is PointPhase.COMPLETED


@story
async def pruning_removes_data_snapshot_and_record_and_nothing_else_does(cluster: Bed) -> None:
    claim = await cluster.volume("pruned")
    await cluster.write("pruned", b"data")
    point = await cluster.completed(claim)
    assert point.status.manifest is not None
    manifest = cluster.directory / "repository" / point.status.manifest.key
    assert await asyncio.to_thread(manifest.exists)
    await cluster.client.merge_patch(RecoveryPoint, point.name, TENANT, {"spec": {"prune": True}})

    async def gone() -> bool:
        return await cluster.client.find(RecoveryPoint, point.name, TENANT) is None

    await cluster.eventually(gone, "the point pruned")
    await cluster.nothing_is_left_of(point, snapshot=False)
    # What stands at its name now says that it was removed, so that no late writer brings it back.
    again = await cluster.completed(claim)
    assert (again.status.mode, again.status.reason) == ("allocated", "NoBase")
    assert again.status.sequence == 2


@story
async def a_clone_class_that_keeps_volumes_leaks_none(cluster: Bed) -> None:
    keeping = {"metadata": {"name": "keeping"}, "provisioner": "sandbox.csi.tidemark.dev", "reclaimPolicy": "Retain"}
    await cluster.client.create_raw(StorageClass.RESOURCE, keeping, StorageClass)
    claim = await cluster.volume("keeper")
    await cluster.write("keeper", b"data")
    point = await cluster.completed(claim, options=VolumeOptions(clone_class_name="keeping"))
    assert point.status.attempts == 1
    await cluster.nothing_is_left_of(point, snapshot=True)


@story
async def what_cannot_be_done_is_said_and_leaves_nothing(cluster: Bed) -> None:
    claim = await cluster.volume("bad")
    unknown = await cluster.point(claim, options=VolumeOptions(snapshot_class_name="nope"))
    nowhere = await cluster.point(claim, repository="nowhere")
    classless = await cluster.point(claim, options=VolumeOptions(clone_class_name="nope"))
    ends = [await cluster.ended(point) for point in (unknown, nowhere, classless)]
    assert {p.status.phase for p in ends} == {PointPhase.FAILED}
    assert [p.status.reason for p in ends] == ["UnknownSnapshotClass", "RepositoryNotFound", "NoCloneClass"]
    for point in ends:
        assert point.status.message
        await cluster.nothing_is_left_of(point, snapshot=False)


@pytest.mark.parametrize("name", STORIES)
async def test_story(told: dict[str, asyncio.Task[None]], name: str) -> None:
    await told[name]


async def test_a_driver_that_serves_no_delta_is_asked_for_what_is_allocated_and_that_is_told(cluster: Bed) -> None:
    claim = await cluster.volume("ladder")
    await cluster.write("ladder", b"first" * 100)
    await cluster.completed(claim)
    await cluster.sandbox.fault("cbt-base-not-found")
    try:
        fallen = await cluster.completed(claim)
        await cluster.sandbox.fault("cbt-forbidden")
        deeper = await cluster.completed(claim)
    finally:
        await cluster.sandbox.fault("cbt-base-not-found", None)
        await cluster.sandbox.fault("cbt-forbidden", None)
    again = await cluster.completed(claim)

    assert (fallen.status.requested_mode, fallen.status.mode) == ("delta", "allocated")
    assert fallen.status.fallback_reason == fallen.status.reason == "MetadataNotFound"
    assert (deeper.status.mode, deeper.status.fallback_reason) == ("full", "CBTForbidden")
    assert deeper.status.bytes is not None
    assert deeper.status.bytes.read == deeper.status.bytes.volume
    assert deeper.status.bytes.uploaded < 4096  # an equal chunk is not stored twice, whatever the rung
    assert (again.status.mode, again.status.fallback_reason) == ("delta", "")


async def test_a_service_that_does_not_answer_is_told_while_it_is_asked_again(cluster: Bed) -> None:
    claim = await cluster.volume("silent")
    await cluster.write("silent", b"some" * 100)
    await cluster.sandbox.fault("cbt-unavailable")
    try:
        point = await cluster.point(claim)

        async def told() -> bool:
            now = await cluster.client.get(RecoveryPoint, point.name, point.namespace)
            return any(c.reason == "CBTRetrying" for c in now.status.conditions)

        await cluster.eventually(told, "the retry is told")
    finally:
        await cluster.sandbox.fault("cbt-unavailable", None)
    done = await cluster.ended(point)
    assert (done.status.phase, done.status.mode) == (PointPhase.COMPLETED, "allocated")


@pytest.mark.chaos
async def test_a_snapshot_that_never_becomes_ready_ends_the_point_with_the_drivers_words(cluster: Bed) -> None:
    claim = await cluster.volume("late")
    await cluster.sandbox.fault("snapshot-error")
    try:
        late = await cluster.ended(await cluster.point(claim))
    finally:
        await cluster.sandbox.fault("snapshot-error", None)
    assert (late.status.phase, late.status.reason) == (PointPhase.FAILED, "SnapshotTimeout")
    assert "The driver said" in late.status.message
    await cluster.nothing_is_left_of(late, snapshot=False)


@pytest.mark.chaos
async def test_what_a_snapshots_error_said_is_taken_back_when_it_came_up_after_all(cluster: Bed) -> None:
    claim = await cluster.volume("recovers", "16Mi")
    await cluster.write("recovers", bytes(range(256)) * 4096 * 8)
    await cluster.sandbox.fault("snapshot-error")
    point = await cluster.point(claim, options=VolumeOptions(bandwidth_limit="2Mi"))

    async def told() -> Condition | None:
        found = (await cluster.client.get(RecoveryPoint, point.name, point.namespace)).status
        return condition(found.conditions, "Progressing")

    try:

        async def waits() -> bool:
            found = await told()
            return found is not None and (found.status, found.reason) == ("False", "SnapshotError")

        await cluster.eventually(waits, "the driver's error is told")
    finally:
        await cluster.sandbox.fault("snapshot-error", None)

    async def copies() -> bool:
        return (await cluster.client.get(RecoveryPoint, point.name, point.namespace)).status.phase is PointPhase.COPYING

    await cluster.eventually(copies, "it is being copied")
    now = await told()
    assert now is not None
    assert now.status == "True", now
    assert (await cluster.ended(point)).status.phase is PointPhase.COMPLETED


async def test_a_killed_mover_is_followed_by_another_that_carries_on(cluster: Bed) -> None:
    claim = await cluster.volume("killed", "16Mi")
    await cluster.write("killed", bytes(range(256)) * 4096 * 8)
    await cluster.sandbox.fault("mover-kill", "0.3")
    point = await cluster.completed(claim, options=VolumeOptions(bandwidth_limit="8Mi"))
    await cluster.sandbox.fault("mover-kill", None)
    assert point.status.attempts == 2
    await cluster.nothing_is_left_of(point, snapshot=True)


async def test_a_status_stays_small(cluster: Bed) -> None:
    for point in (await cluster.client.list(RecoveryPoint))[0]:
        assert len(msgspec.json.encode(point.status)) <= 3072


@pytest.mark.chaos
async def test_a_namespace_can_go_in_mid_copy_with_the_repository_away(cluster: Bed) -> None:
    home = "doomed"
    await cluster.client.apply(Namespace, {"metadata": {"name": home}})
    claim = await cluster.volume("db", "8Mi", namespace=home)
    await cluster.write("db", bytes(range(256)) * 4096 * 8, namespace=home)
    good = await cluster.completed(claim)
    await cluster.write("db", bytes(255) * 4096 * 8, namespace=home)
    point = await cluster.point(claim, options=VolumeOptions(bandwidth_limit="1Mi"))

    async def copying() -> bool:
        found = await cluster.client.get(RecoveryPoint, point.name, home)
        return found.status.phase is PointPhase.COPYING and found.status.attempts == 1

    await cluster.eventually(copying, "the mover started")
    assert good.status.manifest is not None
    store, away = cluster.directory / "repository", cluster.directory / "away"
    await asyncio.to_thread(store.rename, away)
    try:
        there = await cluster.client.get(Namespace, home)
        await cluster.client.delete(Namespace, home, uid=there.uid)

        async def gone() -> bool:
            return await cluster.client.find(Namespace, home) is None

        await cluster.eventually(gone, "the namespace went")
    finally:
        if await asyncio.to_thread(store.exists):
            await asyncio.to_thread(shutil.rmtree, store)
        await asyncio.to_thread(away.rename, store)
    await cluster.nothing_is_left_of(point, snapshot=False)
    assert await asyncio.to_thread((store / good.status.manifest.key).exists)
    async with cluster.context() as context:
        assert await Sweeper(context, grace_s=-5).sweep() == [good.uid]
    assert await cluster.restored(good) == bytes(range(256)) * 4096 * 8


@pytest.mark.chaos
async def test_a_clone_that_cannot_be_made_says_why_and_goes_on_when_it_can(cluster: Bed) -> None:
    claim = await cluster.volume("stuck")
    await cluster.write("stuck", b"data")
    await cluster.sandbox.fault("clone-error")
    point = await cluster.point(claim)

    async def back() -> bool:
        found = await cluster.client.get(RecoveryPoint, point.name, TENANT)
        told = {c.type: c for c in found.status.conditions}
        return "CloneReady" in told and told["CloneReady"].status == "False" and ":" in told["CloneReady"].message

    await cluster.eventually(back, "it says why")
    await cluster.sandbox.fault("clone-error", None)
    ended = await cluster.ended(point)
    assert ended.status.phase is PointPhase.COMPLETED
    await cluster.nothing_is_left_of(ended, snapshot=True)


async def test_what_another_volume_has_is_not_stored_again_when_the_policy_says_so(cluster: Bed) -> None:
    # given a volume with a point, and another one with the same content
    data = random.Random(7).randbytes(2 << 20)
    first, second = [await cluster.volume(name) for name in ("twin-a", "twin-b")]
    for claim in (first, second):
        await cluster.write(claim.name, data)
    await cluster.completed(first)
    # when the other is backed up across volumes
    options = VolumeOptions(deduplication=Deduplication.NAMESPACE)
    point = await cluster.completed(second, options=options)
    # then next to nothing of its two MiB is stored
    assert point.status.bytes is not None
    assert point.status.bytes.read >= 2 << 20
    assert point.status.bytes.uploaded < 64 << 10
