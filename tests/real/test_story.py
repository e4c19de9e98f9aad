"""The whole story with real controllers: what the demonstration shows, two zones, kills, and nothing left behind."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from orchestrator.api.foreign.core import PersistentVolumeClaim, Pod
from orchestrator.api.meta import ObjectMeta
from orchestrator.api.tidemark import BackupPolicy, RecoveryPoint, Restore
from orchestrator.api.tidemark.backup import BackupPhase
from orchestrator.api.tidemark.restore import RestorePhase, RestoreSpec
from orchestrator.demo import install
from orchestrator.demo.report import Report
from orchestrator.demo.script import Script
from orchestrator.demo.stage import NAMESPACE as DEMO_NAMESPACE
from orchestrator.demo.stage import Stage
from orchestrator.demo.story import tell_story
from tests.real.cluster import RealCluster
from tests.real.world import REPOSITORY, RealWorld, real_world
from tests.system.world import digest, write
from tests.waiting import LONG

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1500)]

SHOP = "two-zones"
SIZE = 16 << 20
CHUNK = 64 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def world(cluster: RealCluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RealWorld]:
    """Tidemark installed on the cluster, its controller running."""
    async with real_world(cluster, tmp_path_factory.mktemp("story")) as found:
        yield found


def user_of(claim: str, zone: str) -> dict[str, object]:
    """Return a pod that uses a claim in a zone for as long as it is let."""
    container = {
        "name": "user", "image": "tidemark", "command": ["sleep", "3600"],
        "volumeDevices": [{"name": "disk", "devicePath": "/dev/disk"}],
        "resources": {"requests": {"cpu": "10m"}},
    }  # fmt: skip
    spec = {
        "nodeSelector": {"topology.kubernetes.io/zone": zone},
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "containers": [container],
        "volumes": [{"name": "disk", "persistentVolumeClaim": {"claimName": claim}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"user-{claim}", "namespace": SHOP}, "spec": spec}


async def test_the_demonstration_holds_on_a_real_cluster(world: RealWorld) -> None:
    """The same text that `tidemark demo` plays: every claim of it holds with real controllers."""
    lines: list[str] = []
    folder = world.cluster.data.parent
    stage = Stage(folder, world.client, world.sandbox, world.controller, world.metrics, patience=LONG)
    script = Script(stage=stage, report=Report(), tell=lines.append)
    try:
        await tell_story(script, 64 << 20, 1.0)
    finally:
        await world.remove_namespace(DEMO_NAMESPACE)
    broken = [check for check in script.report.checks if not check["held"]]
    assert not broken, "\n".join([*map(str, broken), *lines])
    assert len(script.report.restores) == 6
    await world.settled(DEMO_NAMESPACE, snapshots=0)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def images(world: RealWorld) -> AsyncIterator[dict[str, Path]]:
    """Claims of both binding modes: `now` at once, `east` in zone-a and `west` in zone-b with their consumers."""
    await install.namespace(world.client, SHOP)
    found: dict[str, Path] = {}
    found["now"] = await world.claim("now", SHOP, size=SIZE)
    for number, (claim, zone) in enumerate({"east": "zone-a", "west": "zone-b"}.items()):
        await world.client.create_raw(Pod.RESOURCE, user_of(claim, zone), Pod)
        found[claim] = await world.claim(claim, SHOP, size=SIZE, storageClassName="sandbox-wffc")
        write(found[claim], 0, random.Random(number).randbytes(6 << 20))
    write(found["now"], 1 << 20, random.Random(9).randbytes(6 << 20))
    spec = {
        "repository": REPOSITORY,
        "volumes": {"names": ["now", "east", "west"]},
        "options": {"bandwidthLimit": "64Mi"},
    }
    await world.apply(BackupPolicy, "all", SHOP, spec)
    yield found
    await world.remove_namespace(SHOP)


async def backed_up(world: RealWorld, name: str) -> dict[str, RecoveryPoint]:
    """Make a Backup, wait for its completion, and return its points by claim."""
    await world.backup(name, SHOP, policy="all")
    done = await world.backup_ended(name, SHOP)
    assert done.status.phase is BackupPhase.COMPLETED, done.status
    return {p.spec.pvc_name: p for p in await world.points(SHOP) if p.spec.backup == name}


async def test_movers_run_in_the_zone_of_their_volume(world: RealWorld, images: dict[str, Path]) -> None:
    """Points of both binding modes hold their volumes bit for bit, and each mover ran where its volume can be."""
    first = await backed_up(world, "zones-1")
    assert set(first) == set(images)
    for claim, point in first.items():
        assert await world.restored(point) == digest(images[claim]), claim
    ran = await world.nodes_of_movers()
    for claim, node in {"east": "sandbox-1", "west": "sandbox-2"}.items():
        assert {n for pod, n in ran.items() if first[claim].uid in pod} == {node}, (claim, ran)
    for image in images.values():
        write(image, 4 << 20, b"another day")
    second = await backed_up(world, "zones-2")
    for claim, point in second.items():
        assert point.status.mode == "delta", point.status
        assert point.status.bytes is not None
        assert point.status.bytes.read == CHUNK
        assert await world.restored(point) == digest(images[claim]), claim
    await world.settled(SHOP, snapshots=3)


async def test_a_restored_volume_of_a_zone_comes_back_whole(world: RealWorld, images: dict[str, Path]) -> None:
    """A restore into a class that waits for its consumer is handed over bound, with the content of the point."""
    points = {p.spec.pvc_name: p for p in await world.points(SHOP) if p.spec.backup == "zones-2"}
    for claim, point in points.items():
        target = {"source": {"point": point.name}, "target": {"pvcName": f"{claim}-back"}}
        spec = msgspec.convert(target, RestoreSpec)
        await world.client.create(Restore(metadata=ObjectMeta(name=f"back-{claim}", namespace=SHOP), spec=spec))
    for claim in points:
        done = await world.restore_ended(f"back-{claim}", SHOP)
        assert done.status.phase is RestorePhase.COMPLETED, done.status
        assert digest(await world.image(f"{claim}-back", SHOP)) == digest(images[claim])
        assert (await world.client.get(PersistentVolumeClaim, f"{claim}-back", SHOP)).bound
    await world.settled(SHOP, snapshots=3)


async def test_kills_of_controller_and_mover_cost_no_point(world: RealWorld, images: dict[str, Path]) -> None:
    """kill -9 of both in mid-copy: the next ones carry on, the points are whole and nothing is left behind."""
    slow = {
        "repository": REPOSITORY,
        "volumes": {"names": ["now", "east", "west"]},
        "options": {"bandwidthLimit": "2Mi"},
    }
    await world.apply(BackupPolicy, "all", SHOP, slow)
    for number, image in enumerate(images.values()):
        write(image, 0, random.Random(100 + number).randbytes(6 << 20))
    await world.backup("killed", SHOP, policy="all")
    async with asyncio.timeout(LONG):
        while not world.running_movers():
            await asyncio.sleep(0.05)
    assert world.kill_movers()
    await world.kill_installed()
    done = await world.backup_ended("killed", SHOP)
    assert done.status.phase is BackupPhase.COMPLETED, done.status
    for point in [p for p in await world.points(SHOP) if p.spec.backup == "killed"]:
        assert await world.restored(point) == digest(images[point.spec.pvc_name])
    await world.settled(SHOP, snapshots=3)


async def test_a_deleted_namespace_leaves_no_volume_and_no_snapshot_and_keeps_every_point(
    world: RealWorld, images: dict[str, Path]
) -> None:
    """What lay on the storage goes, down to the last image; what lies in the repository stays and comes back."""
    kept = {p.uid: digest(images[p.spec.pvc_name]) for p in await world.points(SHOP) if p.spec.backup == "killed"}
    points = [p for p in await world.points(SHOP) if p.uid in kept]
    await world.remove_namespace(SHOP)

    def left() -> list[str]:
        stored = [*world.cluster.data.glob("volumes/*.img"), *world.cluster.data.glob("snapshots/*.img")]
        listed = world.cluster.kubectl("get", "pv,volumesnapshotcontents,volumeattachments", "-o", "name").stdout
        return [*map(str, stored), *listed.split()]

    try:
        async with asyncio.timeout(LONG):
            while await asyncio.to_thread(left):
                await asyncio.sleep(0.5)
    except TimeoutError:
        raise AssertionError(await asyncio.to_thread(left)) from None
    for point in points:
        assert await world.restored(point) == kept[point.uid]
    await world.settled(SHOP, snapshots=0)
