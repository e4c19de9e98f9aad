"""Movers that hang and pods that never go: followed for a bounded time, then another one does the work."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from orchestrator.api.foreign.core import Pod
from orchestrator.api.tidemark.backup_policy import VolumeOptions
from orchestrator.api.tidemark.fields import LABEL_MANAGED_BY, LABEL_POINT_UID, MANAGED_BY
from orchestrator.api.tidemark.recovery_point import PointPhase, RecoveryPoint
from orchestrator.controllers.recovery_point import moving
from orchestrator.volumes import job
from tests.controllers.bed import SYSTEM, TENANT, Bed, bed
from tests.system.world import World

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.system]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bed]:
    directory: Path = tmp_path_factory.mktemp("stuck")
    async with bed(directory, mover_stall_s=7.0) as made:
        yield made


async def test_a_stopped_mover_is_given_up_and_another_one_completes(
    cluster: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "PROGRESS_S", 1.0)
    claim = await cluster.volume("hung", "4Mi")
    data = bytes(range(256)) * 4096 * 4
    await cluster.write("hung", data)
    point = await cluster.point(claim, options=VolumeOptions(bandwidth_limit="2Mi"))
    stopped: list[int] = []

    async def caught() -> bool:
        stopped.extend(World.movers(cluster.directory))
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        return bool(stopped)

    async def over() -> bool:
        found = await cluster.client.get(RecoveryPoint, point.name, TENANT)
        return found.status.phase is PointPhase.COMPLETED

    async with cluster.controller():
        try:
            await cluster.eventually(caught, "a mover runs")
            await cluster.eventually(over, "another one completed the point")
        finally:
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        ended = await cluster.ended(point)
    assert ended.status.attempts == 2
    assert await cluster.restored(ended) == data
    await cluster.nothing_is_left_of(ended, snapshot=True)


async def test_a_pod_whose_node_is_gone_is_deleted_without_asking_it(cluster: Bed) -> None:
    owner = {LABEL_POINT_UID: "uid-gone", LABEL_MANAGED_BY: MANAGED_BY}
    name = "tm-uid-gone"
    manifest = {
        "metadata": {"name": name, "namespace": SYSTEM, "labels": {**owner, job.LABEL_JOB: name}},
        "spec": {"nodeName": "dead", "containers": [{"name": "mover", "image": "sandbox"}]},
    }
    await cluster.client.create_raw(Pod.RESOURCE, manifest, Pod)
    patient = cluster.settings
    overdue = dataclasses.replace(patient, pod_overdue_s=-3600.0)
    assert not await job.remove(cluster.client, name, patient, owner)
    assert not await job.remove(cluster.client, name, patient, owner)
    assert await job.lingering(cluster.client, name, patient, owner) == "going"
    assert await job.lingering(cluster.client, name, overdue, owner) == "overdue"
    assert await job.remove(cluster.client, name, overdue, {**owner, LABEL_POINT_UID: "uid-other"})
    assert name in await cluster.of(Pod, SYSTEM)
    assert not await job.remove(cluster.client, name, overdue, owner)
    assert await job.remove(cluster.client, name, patient, owner)
    assert name not in await cluster.of(Pod, SYSTEM)
