"""What a server does to its clients in mid-backup: conflicts, refusals, restarts, forgotten history, cut connections.

Each ends in a Completed point that comes back bit for bit, and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from orchestrator.api.foreign.core import Job, PersistentVolume, PersistentVolumeClaim
from orchestrator.api.foreign.snapshot import VolumeSnapshot, VolumeSnapshotContent
from orchestrator.api.meta import ObjectMeta
from orchestrator.api.tidemark import BackupPolicy, RecoveryPoint, Restore
from orchestrator.api.tidemark.backup import BackupPhase
from orchestrator.api.tidemark.restore import RestorePhase, RestoreSpec
from orchestrator.demo import install
from orchestrator.kube.errors import NotFound
from tests.real.cluster import RealCluster
from tests.real.world import HOME, REPOSITORY, RealWorld, real_world
from tests.system.world import SETTINGS, digest, write
from tests.waiting import LONG

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1500)]

WEATHER = "weather"
SIZE = 16 << 20
KINDS = 5
"""That the controller watches, at the least."""
CLAIMS = {"disk": "Block", "files": "Filesystem"}
ACCOUNT = f"system:serviceaccount:{HOME}:{SETTINGS.service_account}"


class Weather:
    """Two protected volumes, and how a backup of them fares."""

    def __init__(self, world: RealWorld, images: dict[str, Path]) -> None:
        self.world, self.images, self.cluster = world, images, world.cluster
        self._seed = 0

    @contextlib.asynccontextmanager
    async def in_mid_backup(self, name: str) -> AsyncIterator[None]:
        """Be in the block while movers copy; after it all must be as if nothing had been."""
        for image in self.images.values():
            self._seed += 1
            write(image, 0, random.Random(self._seed).randbytes(6 << 20))
        await self.world.backup(name, WEATHER, policy="all")
        async with asyncio.timeout(LONG):
            while not self.world.running_movers():
                await asyncio.sleep(0.05)
        yield
        done = await self.world.backup_ended(name, WEATHER)
        assert done.status.phase is BackupPhase.COMPLETED, done.status
        points = [p for p in await self.world.points(WEATHER) if p.spec.backup == name]
        assert {p.spec.pvc_name for p in points} == set(self.images)
        for point in points:
            assert await self.world.restored(point) == digest(self.images[point.spec.pvc_name]), point.name
        await self.world.settled(WEATHER, snapshots=len(self.images))

    def answers(self, code: int, since: int) -> int:
        """Return how often the server gave the controller that code, by its audit log from that place on."""
        return sum(event.get("responseStatus", {}).get("code") == code for event in self._events(since))

    def _events(self, since: int) -> list[dict[str, Any]]:
        with self.cluster.audit_log.open("rb") as file:
            file.seek(since)
            events = [json.loads(line) for line in file if line.endswith(b"\n")]
        return [event for event in events if event["user"].get("username") == ACCOUNT]

    def asked(self, verb: str, since: int) -> int:
        """Return how many requests of that verb the controller made, by the audit log from that place on."""
        return len({e["auditID"] for e in self._events(since) if e["verb"] == verb})

    def audited(self) -> int:
        """Return how long the audit log is."""
        return self.cluster.audit_log.stat().st_size


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def weather(cluster: RealCluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Weather]:
    """An installation with two protected volumes; copies take some seconds.

    Its lease is the chart's own: with a shorter one the controller would end and start anew when the server is away for
    some seconds, and nobody would see whether its caches get over it.
    """
    async with real_world(cluster, tmp_path_factory.mktemp("weather"), lease_s=15) as world:
        await install.namespace(world.client, WEATHER)
        images = {claim: await world.claim(claim, WEATHER, size=SIZE, mode=mode) for claim, mode in CLAIMS.items()}
        volumes = {"repository": REPOSITORY, "volumes": {"names": list(CLAIMS)}}
        await world.apply(BackupPolicy, "all", WEATHER, {**volumes, "options": {"bandwidthLimit": "2Mi"}})
        yield Weather(world, images)
        await world.remove_namespace(WEATHER)


async def storm(world: RealWorld, stop: asyncio.Event) -> int:
    """Write into every object of ours and of those around us, again and again; return the number of writes.

    Less often into those that others write too: the snapshot controller gives way to every conflict, and one that comes
    ten times a second keeps it from its work for as long as it lasts.
    """
    written = 0
    ours: list[tuple[Any, str]] = [(RecoveryPoint, WEATHER), (Job, HOME)]
    others: list[tuple[Any, str]] = [
        (VolumeSnapshot, WEATHER), (VolumeSnapshot, HOME), (VolumeSnapshotContent, ""),
        (PersistentVolumeClaim, WEATHER), (PersistentVolumeClaim, HOME), (PersistentVolume, ""),
    ]  # fmt: skip
    for turn in itertools.count():
        if stop.is_set():
            break
        for kind, namespace in (*ours, *(others if turn % 10 == 0 else ())):
            found, _ = await world.client.list(kind, namespace)
            for obj in found:
                written += 1
                mark = {"metadata": {"annotations": {"example.com/passer-by": str(written)}}}
                with contextlib.suppress(NotFound):
                    await world.client.merge_patch(kind, obj.name, namespace, mark)
        await asyncio.sleep(0.05)  # the machine has other things to do
    return written


async def test_another_writer_in_every_object_costs_nothing(weather: Weather) -> None:
    """Whoever writes into our objects at every moment makes conflicts, and no harm."""
    since, stop = weather.audited(), asyncio.Event()
    writer = asyncio.create_task(storm(weather.world, stop))
    try:
        async with weather.in_mid_backup("storm"):
            pass
    finally:
        stop.set()
    assert await writer > 50
    assert weather.answers(409, since) > 0


def starved() -> list[dict[str, Any]]:
    """Return the objects that leave our account no request at all."""
    group = "flowcontrol.apiserver.k8s.io/v1"
    limited = {
        "nominalConcurrencyShares": 0,
        "lendablePercent": 0,
        "borrowingLimitPercent": 0,
        "limitResponse": {"type": "Reject"},
    }
    level = {"type": "Limited", "limited": limited}
    subject = {"kind": "ServiceAccount", "serviceAccount": {"name": SETTINGS.service_account, "namespace": HOME}}
    every: dict[str, Any] = {
        "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": True, "namespaces": ["*"]
    }  # fmt: skip
    return [
        {"apiVersion": group, "kind": "PriorityLevelConfiguration", "metadata": {"name": "starved"}, "spec": level},
        {
            "apiVersion": group,
            "kind": "FlowSchema",
            "metadata": {"name": "starved"},
            "spec": {
                "matchingPrecedence": 2,
                "priorityLevelConfiguration": {"name": "starved"},
                "rules": [{"subjects": [subject], "resourceRules": [every]}],
            },
        },
    ]


async def eventually(met: Callable[[], bool], within_s: float = LONG) -> None:
    """Ask again until it is so."""
    end = time.monotonic() + within_s
    while not await asyncio.to_thread(met):
        assert time.monotonic() < end
        await asyncio.sleep(0.2)


async def test_an_account_that_is_refused_every_request_for_a_while_carries_on(weather: Weather) -> None:
    """Priority and fairness answers 429 to all that the controller asks, the renewal of its lease too."""
    since = weather.audited()
    kubectl = weather.cluster.kubectl
    manifests = "\n---\n".join(json.dumps(m) for m in starved())
    async with weather.in_mid_backup("starved"):
        await asyncio.to_thread(kubectl, "apply", "-f", "-", stdin=manifests)
        try:
            await eventually(lambda: weather.answers(429, since) > 5)
            await asyncio.sleep(7)
        finally:
            await asyncio.to_thread(kubectl, "delete", "-f", "-", stdin=manifests)


async def test_a_server_killed_and_back_without_its_history_in_mid_backup_costs_nothing(weather: Weather) -> None:
    """kill -9, some seconds of nothing, a compacted etcd: requests in flight are lost, watchers must list again."""
    since = weather.audited()
    async with weather.in_mid_backup("compacted"):
        await weather.cluster.compact_etcd()
        await weather.cluster.restart_apiserver(down_s=3)
    assert weather.asked("list", since) >= KINDS


async def test_connections_that_are_cut_again_and_again_cost_nothing(weather: Weather) -> None:
    """Every watch and every request in flight of controller and node ends at once, five times a backup."""
    since = weather.audited()
    async with weather.in_mid_backup("cut"):
        for _ in range(5):
            weather.cluster.drop_connections()
            await asyncio.sleep(0.7)
    assert weather.asked("watch", since) > KINDS


async def test_nodes_that_crash_in_mid_backup_cost_nothing(weather: Weather) -> None:
    """Their programs are killed and started again: Pods of before, the controller's too, are ended and made anew."""
    async with weather.in_mid_backup("crashed"):
        await weather.cluster.restart_part("node")


async def test_a_restore_through_all_of_it_hands_over_whole_volumes(weather: Weather) -> None:
    """Cut connections, a compaction, killed movers, a restarted server and a killed controller, all in one restore."""
    world, cluster = weather.world, weather.cluster
    if not await world.points(WEATHER):  # when this test is run alone
        async with weather.in_mid_backup("before-restore"):
            pass
    for claim in weather.images:
        source = {"pvc": {"pvc": claim, "repository": REPOSITORY}}
        spec = msgspec.convert({"source": source, "target": {"pvcName": f"{claim}-back"}}, RestoreSpec)
        await world.client.create(Restore(metadata=ObjectMeta(name=f"{claim}-back", namespace=WEATHER), spec=spec))
    async with asyncio.timeout(LONG):
        while not world.running_movers():
            await asyncio.sleep(0.02)
    cluster.drop_connections()
    world.kill_movers()
    await cluster.compact_etcd()
    await cluster.restart_apiserver()
    await world.kill_installed()
    for claim, image in weather.images.items():
        done = await world.restore_ended(f"{claim}-back", WEATHER)
        assert done.status.phase is RestorePhase.COMPLETED, done.status
        assert digest(await world.image(f"{claim}-back", WEATHER)) == digest(image) == done.status.sha256
    await world.settled(WEATHER, snapshots=len(weather.images))
