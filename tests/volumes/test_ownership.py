"""Whose an object is: ours again after a crash, a stranger's never."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api.foreign.core import PersistentVolumeClaim
from orchestrator.api.mover import MoverConfig
from orchestrator.api.tidemark.fields import LABEL_MANAGED_BY, LABEL_POINT_UID, MANAGED_BY
from orchestrator.config import Settings
from orchestrator.kube.cache import Caches
from orchestrator.kube.client import Client
from orchestrator.volumes import clone, job
from orchestrator.volumes.ownership import NameTaken, StillGoing, create_ours
from tests.kube.fakes import FakeApi, serving, write_kubeconfig
from tests.repository.engine import FixedClock

pytestmark = pytest.mark.quick

OWNER = {LABEL_POINT_UID: "uid-rp", LABEL_MANAGED_BY: MANAGED_BY}
SETTINGS = Settings(namespace="system", mover_command=("tidemark",))


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with serving(FakeApi()) as running:
        yield running


@pytest.fixture
async def client(api: FakeApi, tmp_path: Path) -> AsyncIterator[Client]:
    path = write_kubeconfig(tmp_path, api.url)
    async with await Client.connect(kubeconfig=str(path), timeout_s=2) as connected:
        yield connected


def claim(name: str = "tm-1", **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "system", "labels": OWNER, **metadata}, "spec": {}}


async def test_our_own_object_is_found_again_and_made_once(client: Client, api: FakeApi) -> None:
    first = await create_ours(client, PersistentVolumeClaim, claim())
    second = await create_ours(client, PersistentVolumeClaim, claim())
    assert first.uid == second.uid
    assert len(api.objects["persistentvolumeclaims"]) == 1


@pytest.mark.parametrize(
    "labels",
    [{}, {LABEL_POINT_UID: "uid-rp"}, {**OWNER, LABEL_POINT_UID: "uid-other"}, {LABEL_MANAGED_BY: MANAGED_BY}],
)
async def test_a_strangers_object_is_not_adopted_whatever_it_calls_itself(
    client: Client, api: FakeApi, labels: dict[str, str]
) -> None:
    api.put(claim(labels=labels), "persistentvolumeclaims")
    with pytest.raises(NameTaken):
        await create_ours(client, PersistentVolumeClaim, claim())


async def test_an_object_that_fits_the_label_but_not_the_work_is_a_strangers_too(client: Client, api: FakeApi) -> None:
    api.put({**claim(), "spec": {"volumeMode": "Filesystem"}}, "persistentvolumeclaims")
    with pytest.raises(NameTaken, match="something else"):
        await clone.ensure(client, clone.Claim("tm-1", "fast", 1, labels=OWNER), SETTINGS)


async def test_labels_copied_by_a_stranger_do_not_make_an_object_ours(client: Client, api: FakeApi) -> None:
    api.put(claim(managedFields=[{"manager": "kubectl-create", "operation": "Update"}]), "persistentvolumeclaims")
    with pytest.raises(NameTaken, match="in our name"):
        await create_ours(client, PersistentVolumeClaim, claim())
    api.put(claim(managedFields=[{"manager": "tidemark"}, {"manager": "provisioner"}]), "persistentvolumeclaims")
    await create_ours(client, PersistentVolumeClaim, claim())


async def test_our_older_object_on_its_way_out_is_waited_for(client: Client, api: FakeApi) -> None:
    api.put(claim(deletionTimestamp="2026-03-01T00:00:00Z"), "persistentvolumeclaims")
    with pytest.raises(StillGoing):
        await create_ours(client, PersistentVolumeClaim, claim())


# Jobs


def mover(attempt: int = 1, url: str = "file:///a") -> job.MoverJob:
    config = MoverConfig(task="backup", point="uid-rp", url=url, keys="{}")
    return job.MoverJob("tm-1", "backup", config, device_pvc="tm-1", labels=OWNER, attempt=attempt)


def pod(job_uid: str, **status: Any) -> dict[str, Any]:
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "tm-1", "uid": job_uid}
    labels = {**OWNER, job.LABEL_JOB: "tm-1"}
    meta = {"name": f"tm-1-{job_uid}", "namespace": "system", "ownerReferences": [owner], "labels": labels}
    return {"metadata": meta, "spec": {"nodeName": "n1"}, "status": status}


def ended(message: str, code: int) -> dict[str, Any]:
    state = {"terminated": {"exitCode": code, "reason": "Error", "message": message}}
    return {"phase": "Failed", "containerStatuses": [{"name": "mover", "state": state}]}


async def test_a_job_is_read_as_missing_pending_running_and_ended(client: Client, api: FakeApi) -> None:
    async def look() -> job.JobSeen:
        return await job.look(client, Caches(), "tm-1", SETTINGS, OWNER)

    missing = await look()
    made = await job.ensure(client, mover(attempt=2), SETTINGS)
    pending = await look()
    api.put(pod("old-job", phase="Running"), "pods")
    older = await look()
    api.put(pod(made.uid, phase="Running"), "pods")
    running = await look()
    said = '{"ok":false,"reason":"StoreUnavailable","message":"away","retryable":true}'
    api.put(pod(made.uid, **ended(said, 75)), "pods")
    stored = api.objects["jobs"][("system", "tm-1")]
    api.put({**stored, "status": {"conditions": [{"type": "Failed", "status": "True"}]}}, "jobs")
    failed = await look()
    api.put(pod(made.uid, **ended("", 137)), "pods")
    killed = await look()

    assert [s.state for s in (missing, pending, older, running, failed)] == [
        "missing", "pending", "pending", "running", "failed",
    ]  # fmt: skip
    assert pending.attempt == 2
    assert (running.node, running.pod) == ("n1", f"tm-1-{made.uid}")
    assert failed.outcome is not None
    assert failed.outcome.retryable
    assert killed.outcome is None
    assert "137" in killed.message


async def test_a_mover_whose_pod_should_have_gone_long_ago_failed_and_is_lost(client: Client, api: FakeApi) -> None:
    made = await job.ensure(client, mover(), SETTINGS)
    going = pod(made.uid, phase="Running")
    going["metadata"]["deletionTimestamp"] = "2026-03-01T00:00:00Z"
    api.put(going, "pods")

    async def look(after_s: float) -> job.JobSeen:
        clock = FixedClock(datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=after_s))
        return await job.look(client, Caches(), "tm-1", SETTINGS, OWNER, clock=clock)

    soon, late = await look(90), await look(91)
    assert (soon.state, soon.lost) == ("running", False)
    assert (late.state, late.lost, late.message) == ("failed", True, job.LOST)


def test_only_what_nobody_follows_has_a_deadline() -> None:
    assert "activeDeadlineSeconds" not in job.build(mover(), SETTINGS)["spec"]
    bounded = job.build(dataclasses.replace(mover(), task="maintain"), SETTINGS)["spec"]
    assert bounded["activeDeadlineSeconds"] == 21600


async def test_a_secret_left_by_an_earlier_try_gets_the_credentials_of_today(client: Client, api: FakeApi) -> None:
    await job.ensure(client, mover(), SETTINGS)
    before = api.objects["secrets"][("system", "tm-1")]["data"]
    await job.ensure(client, mover(url="file:///b"), SETTINGS)
    assert api.objects["secrets"][("system", "tm-1")]["data"] != before


async def test_a_job_is_removed_pods_first_secret_last_and_a_strangers_not_at_all(client: Client, api: FakeApi) -> None:
    made = await job.ensure(client, mover(), SETTINGS)
    api.put(pod(made.uid, phase="Running"), "pods")
    assert await job.remove(client, "tm-1", SETTINGS, {LABEL_POINT_UID: "uid-other"})
    assert ("system", "tm-1") in api.objects["jobs"]
    assert ("system", "tm-1") in api.objects["secrets"]
    answers = [await job.remove(client, "tm-1", SETTINGS, OWNER) for _ in range(3)]
    assert answers == [False, False, True]
    assert not (api.objects["jobs"] or api.objects["pods"] or api.objects["secrets"])
