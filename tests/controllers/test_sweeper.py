"""Leftovers go, whatever was lost on the way; kept snapshots, work in flight and repository data stay."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from orchestrator.api.foreign.cluster import CustomResourceDefinition
from orchestrator.api.foreign.core import Namespace, PersistentVolume, PersistentVolumeClaim, StorageClass
from orchestrator.api.foreign.snapshot import VolumeSnapshot, VolumeSnapshotContent
from orchestrator.api.tidemark.backup_policy import VolumeOptions
from orchestrator.api.tidemark.fields import LABEL_POINT_UID
from orchestrator.api.tidemark.recovery_point import PointPhase, RecoveryPoint
from orchestrator.controllers.base import Context
from orchestrator.controllers.sweeper import Sweeper
from orchestrator.demo import install
from orchestrator.kube.client import Client
from orchestrator.kube.errors import NotFound
from tests.controllers.bed import SYSTEM, TENANT, Bed, bed

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bed]:
    directory: Path = tmp_path_factory.mktemp("sweeps")
    async with bed(directory) as made:
        yield made


async def sweep(cluster: Bed, *until: str, grace_s: float = -5.0) -> list[str]:
    """Sweep, and again until all of these went, as one sweep's few steps may be too few; return all that went.

    Creation times are whole seconds, hence a grace below nothing.
    """
    went: set[str] = set()
    async with cluster.context() as context:
        sweeper = Sweeper(context, grace_s=grace_s, step_s=0.1)

        async def over() -> bool:
            went.update(await sweeper.sweep())
            return went.issuperset(until)

        await cluster.eventually(over, f"{until} swept")
    return sorted(went)


async def forget(cluster: Bed, point: RecoveryPoint) -> None:
    """Delete a record by force, its finalizer torn off."""
    await cluster.client.merge_patch(RecoveryPoint, point.name, TENANT, {"metadata": {"finalizers": None}})
    await cluster.client.delete(RecoveryPoint, point.name, TENANT, uid=point.uid)


async def test_what_a_lost_record_leaves_goes_and_work_in_flight_stays(cluster: Bed) -> None:
    claims = {name: await cluster.volume(name, "4Mi") for name in ("lost", "busy")}
    for name in claims:
        await cluster.write(name, bytes(range(256)) * 4096 * 4)

    async def started(name: str, bandwidth_limit: str) -> RecoveryPoint:
        made = await cluster.point(claims[name], options=VolumeOptions(bandwidth_limit=bandwidth_limit))

        async def copies() -> bool:
            status = (await cluster.client.get(RecoveryPoint, made.name, TENANT)).status
            return status.phase is PointPhase.COPYING and status.attempts == 1

        await cluster.eventually(copies, f"the mover of {name} started")
        return made

    async with cluster.controller():
        # The first would take a minute, so that it can't be done before the second one starts, however late that is.
        lost, busy = await started("lost", "64Ki"), await started("busy", "1Mi")
    await forget(cluster, lost)
    young = await sweep(cluster, grace_s=3600)
    swept = await sweep(cluster, lost.uid)
    assert young == []
    assert swept == [lost.uid]
    await cluster.nothing_is_left_of(lost, snapshot=False)
    name = f"tm-{busy.uid}"
    assert name in await cluster.of(PersistentVolumeClaim, SYSTEM)
    async with cluster.controller():
        assert (await cluster.ended(busy)).status.phase is PointPhase.COMPLETED


async def test_a_deleted_record_takes_its_snapshot_along_and_never_its_data(cluster: Bed) -> None:
    claims = [await cluster.volume("gone"), await cluster.volume("kept")]
    async with cluster.controller():
        gone, kept = [await cluster.completed(claim) for claim in claims]
    assert gone.status.manifest is not None
    await cluster.client.delete(RecoveryPoint, gone.name, TENANT, uid=gone.uid)
    assert await sweep(cluster, gone.uid) == [gone.uid]
    await cluster.nothing_is_left_of(gone, snapshot=False)
    await cluster.nothing_is_left_of(kept, snapshot=True)
    assert await asyncio.to_thread((cluster.directory / "repository" / gone.status.manifest.key).exists)


async def test_a_copy_of_our_snapshot_that_somebody_made_is_theirs_and_does_not_shield_ours(cluster: Bed) -> None:
    """Labels come along when objects are copied; a name too, into another namespace."""
    home = "copies"
    await cluster.client.apply(Namespace, {"metadata": {"name": home}})
    claim = await cluster.volume("copied")
    theirs = await cluster.volume("theirs", namespace=home)
    async with cluster.controller():
        point = await cluster.completed(claim)
    ours = await cluster.client.get(VolumeSnapshot, point.status.snapshot_name, TENANT)
    stranger = str(uuid.uuid4())
    config = str(cluster.sandbox.kubeconfig)
    async with await Client.connect(kubeconfig=config, field_manager="kubectl-create") as person:
        for uid in (point.uid, stranger):
            labels = {**ours.metadata.labels, LABEL_POINT_UID: uid}
            manifest = {
                "metadata": {"name": f"tidemark-{uid}", "namespace": home, "labels": labels},
                "spec": {
                    "source": {"persistentVolumeClaimName": theirs.name},
                    "volumeSnapshotClassName": ours.spec.volume_snapshot_class_name,
                },
            }
            await person.create_raw(VolumeSnapshot.RESOURCE, manifest, VolumeSnapshot)
    await cluster.client.delete(RecoveryPoint, point.name, TENANT, uid=point.uid)

    await sweep(cluster, point.uid)

    await cluster.nothing_is_left_of(point, snapshot=False)
    assert {f"tidemark-{point.uid}", f"tidemark-{stranger}"} <= set(await cluster.of(VolumeSnapshot, home))


async def test_the_last_copy_of_a_namespace_that_is_gone_is_left_to_people(cluster: Bed) -> None:
    claim = await cluster.volume("alone")
    async with cluster.controller():
        only = await cluster.completed(claim, repository=None)
    await cluster.client.delete(RecoveryPoint, only.name, TENANT, uid=only.uid)
    content = (await cluster.client.list(VolumeSnapshotContent, labels=f"{LABEL_POINT_UID}={only.uid}"))[0][0]
    home = {"metadata": {"annotations": {"tidemark.dev/point": "never-was/alone"}}}
    await cluster.client.merge_patch(VolumeSnapshotContent, content.name, "", home)
    assert only.uid not in await sweep(cluster)
    back = {"metadata": {"annotations": {"tidemark.dev/point": f"{TENANT}/{only.name}"}}}
    await cluster.client.merge_patch(VolumeSnapshotContent, content.name, "", back)
    assert only.uid in await sweep(cluster, only.uid)
    assert content.name not in await cluster.of(VolumeSnapshotContent)
    assert only.status.snapshot_name not in await cluster.of(VolumeSnapshot, TENANT)


async def test_a_volume_whose_claim_went_behind_our_back_does_not_leak(cluster: Bed) -> None:
    keeping = {"metadata": {"name": "keeping"}, "provisioner": "sandbox.csi.tidemark.dev", "reclaimPolicy": "Retain"}
    await cluster.client.create_raw(StorageClass.RESOURCE, keeping, StorageClass)
    name = f"tm-{uuid.uuid4()}"
    manifest = {
        "metadata": {"name": name, "namespace": SYSTEM},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "volumeMode": "Block",
            "storageClassName": "keeping",
            "resources": {"requests": {"storage": "1Mi"}},
        },
    }
    await cluster.client.create_raw(PersistentVolumeClaim.RESOURCE, manifest, PersistentVolumeClaim)

    async def bound() -> bool:
        return (await cluster.client.get(PersistentVolumeClaim, name, SYSTEM)).bound

    await cluster.eventually(bound, "the claim bound")
    claim = await cluster.client.get(PersistentVolumeClaim, name, SYSTEM)
    await cluster.client.delete(PersistentVolumeClaim, name, SYSTEM, uid=claim.uid)

    async def released() -> bool:
        return (await cluster.client.get(PersistentVolume, claim.spec.volume_name)).status.phase == "Released"

    await cluster.eventually(released, "the volume released")
    await sweep(cluster)

    async def gone() -> bool:
        return claim.spec.volume_name not in await cluster.of(PersistentVolume)

    await cluster.eventually(gone, "the volume went")


async def test_what_a_deleted_record_or_namespace_leaves_goes_at_once(cluster: Bed) -> None:
    home = "leaves"
    await cluster.client.apply(Namespace, {"metadata": {"name": home}})
    one, two = await cluster.volume("alone-again"), await cluster.volume("db", namespace=home)

    def soon(context: Context) -> Sweeper:
        return Sweeper(context, every_s=3600, deleted_grace_s=0.5)

    async with cluster.controller(sweeper=soon):
        record, gone, stays = [
            await cluster.completed(one), await cluster.completed(two), await cluster.completed(two, repository=None),
        ]  # fmt: skip
        await cluster.client.delete(RecoveryPoint, record.name, TENANT, uid=record.uid)
        there = await cluster.client.get(Namespace, home)
        await cluster.client.delete(Namespace, home, uid=there.uid)

        async def left() -> bool:
            contents = (await cluster.client.list(VolumeSnapshotContent))[0]
            return not {record.uid, gone.uid} & {c.metadata.labels.get(LABEL_POINT_UID) for c in contents}

        await cluster.eventually(left, "both snapshots went", 20)
    contents = (await cluster.client.list(VolumeSnapshotContent, labels=f"{LABEL_POINT_UID}={stays.uid}"))[0]
    assert [content.spec.deletion_policy for content in contents] == ["Retain"]


async def test_records_that_go_with_their_definition_take_no_snapshot_along(cluster: Bed) -> None:
    claim = await cluster.volume("undefined")
    async with cluster.controller():
        point = await cluster.completed(claim)
    name = "recoverypoints.tidemark.dev"
    held = {"metadata": {"finalizers": ["test.example.com/held"]}}
    await cluster.client.merge_patch(CustomResourceDefinition, name, "", held)
    definition = await cluster.client.get(CustomResourceDefinition, name)
    async with cluster.context() as context:
        sweeper = Sweeper(context, grace_s=-5)
        await cluster.client.delete(CustomResourceDefinition, name, uid=definition.uid)
        with contextlib.suppress(NotFound):
            await cluster.client.delete(RecoveryPoint, point.name, TENANT, uid=point.uid)
        assert (await sweeper.sweep_deleted({point.uid}), await sweeper.sweep()) == ([], [])
    await cluster.client.merge_patch(CustomResourceDefinition, name, "", {"metadata": {"finalizers": None}})

    async def gone() -> bool:
        found = await cluster.client.find(CustomResourceDefinition, name)
        return found is None or found.uid != definition.uid

    await cluster.eventually(gone, "the definition went")
    await asyncio.sleep(1)  # creation times are whole seconds
    await install.definitions(cluster.client)
    assert await sweep(cluster) == []
    contents = (await cluster.client.list(VolumeSnapshotContent, labels=f"{LABEL_POINT_UID}={point.uid}"))[0]
    assert [content.spec.deletion_policy for content in contents] == ["Retain"]
