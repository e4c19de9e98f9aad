"""A run: its points are made once, whoever else was there first, and its end is counted once."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.api.foreign.core import Namespace
from orchestrator.api.tidemark.backup import Backup, BackupPhase
from orchestrator.api.tidemark.backup_policy import BackupPolicy
from orchestrator.api.tidemark.fields import LABEL_BACKUP_UID
from orchestrator.api.tidemark.recovery_point import RecoveryPoint
from orchestrator.controllers.backup import BackupController
from orchestrator.decisions import backup as decisions
from orchestrator.kube.errors import Conflict
from orchestrator.volumes.ownership import NameTaken
from tests.controllers.desk import NAMESPACE, Desk, desk

KEY = (NAMESPACE, "run")


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path) as made:
        yield made


def counted(at: Desk, result: str, policy: str = "nightly") -> float | None:
    return at.metric("tidemark_backups_total", namespace=NAMESPACE, policy=policy, result=result)


async def started(at: Desk, **spec: object) -> tuple[BackupController, str]:
    """Make a run over one claim, let it start, and return its point's name."""
    await at.claim("db")
    await at.policy()
    await at.backup("run", policy="nightly", **spec)
    controller = BackupController(at.context)
    await controller.reconcile(KEY)
    run = await at.known(Backup, "run")
    assert run.status.phase is BackupPhase.RUNNING
    return controller, run.status.points[0]


async def test_a_run_ends_with_its_points_and_is_counted_once(at: Desk) -> None:
    controller, name = await started(at)
    await controller.reconcile(KEY)
    point = await at.known(RecoveryPoint, name)
    await at.change(RecoveryPoint, name, status={"phase": "Completed"})
    for _ in range(3):
        await controller.reconcile(KEY)
    run = await at.known(Backup, "run")
    assert (run.status.phase, run.status.progress) == (BackupPhase.COMPLETED, "1/1")
    assert point.metadata.labels[LABEL_BACKUP_UID] == run.uid
    assert counted(at, "completed") == 1
    assert ("Completed", "1 of 1 recovery points completed.") in await at.events()


async def test_an_end_that_another_write_overtook_is_counted_when_it_is_written(at: Desk) -> None:
    """Counted before the write, a conflict would count the run twice."""
    controller, name = await started(at)
    await controller.reconcile(KEY)
    await at.known(RecoveryPoint, name)
    await at.change(RecoveryPoint, name, status={"phase": "Failed", "reason": "SnapshotGone", "message": "it went"})
    at.api.fail("PATCH", "backups/run/status", 409, "Conflict")
    with pytest.raises(Conflict):
        await controller.reconcile(KEY)
    assert counted(at, "failed") is None
    await controller.reconcile(KEY)
    assert counted(at, "failed") == 1


async def test_a_conflict_is_tried_again_soon_and_nobody_is_told(at: Desk) -> None:
    controller, name = await started(at)
    await controller.reconcile(KEY)
    await at.known(RecoveryPoint, name)
    await at.change(RecoveryPoint, name, status={"phase": "Completed"})
    before = await at.events()
    at.api.fail("PATCH", "backups/run/status", 409, "Conflict")
    await controller._process(KEY)  # as a worker does
    assert controller.queue.delayed == 1
    assert controller.queue.failures(KEY) == 0
    assert await at.events() == before
    assert at.metric("tidemark_reconcile_errors_total", controller="backup", reason="Conflict") is None


async def test_a_strangers_point_under_our_name_is_never_adopted(at: Desk) -> None:
    controller, name = await started(at)
    foreign = {"pvcName": "db", "pvcUid": "another"}
    await at.put(RecoveryPoint, name, spec=foreign, metadata={"labels": {LABEL_BACKUP_UID: "another"}})
    await at.change(RecoveryPoint, name, status={"phase": "Completed"})
    # A cache that has not heard of it yet: the API server says so when the point is created.
    run = await at.known(Backup, "run")
    step = decisions.decide(dataclasses.replace(controller._gather(run), points={}))
    assert isinstance(step, decisions.CreatePoints)
    with pytest.raises(NameTaken) as error:
        await controller._create_point(run, step.plans[0])
    await controller.record_error(KEY, error.value)
    run = await at.known(Backup, "run")
    assert (run.status.phase, run.status.reason) == (BackupPhase.FAILED, "NameTaken")
    assert (await at.known(RecoveryPoint, name)).spec.pvc_uid == "another"
    assert counted(at, "failed") == 1


async def test_claims_that_are_named_and_missing_are_told_of(at: Desk) -> None:
    await at.claim("db")
    await at.policy(volumes={"names": ["db", "gone"]})
    await at.backup("run", policy="nightly")
    controller = BackupController(at.context)
    await controller.reconcile(KEY)
    run = await at.known(Backup, "run")
    assert [(c.type, c.status, c.reason) for c in run.status.conditions] == [
        ("VolumesFound", "False", "VolumesMissing")
    ]
    assert ("VolumesMissing", "No such claims: gone.") in await at.events()


async def test_a_run_of_an_unknown_policy_is_counted_without_its_name(at: Desk) -> None:
    """A label must come from what exists, or a loop of typing mistakes fills the metrics."""
    await at.backup("run", policy="typo")
    await BackupController(at.context).reconcile(KEY)
    assert (await at.known(Backup, "run")).status.reason == "PolicyNotFound"
    assert counted(at, "failed", policy="") == 1
    assert counted(at, "failed", policy="typo") is None


async def test_the_counters_of_what_is_deleted_go_with_it(at: Desk) -> None:
    controller, name = await started(at)
    await controller.reconcile(KEY)
    await at.known(RecoveryPoint, name)
    await at.change(RecoveryPoint, name, status={"phase": "Completed"})
    await controller.reconcile(KEY)
    await at.backup("inline", selection={"volumes": {"names": ["none"]}})
    await controller.reconcile((NAMESPACE, "inline"))
    assert counted(at, "completed") == counted(at, "failed", policy="") == 1
    await at.remove(BackupPolicy, "nightly")
    assert counted(at, "completed") is None
    assert counted(at, "failed", policy="") == 1
    await at.remove(Namespace, NAMESPACE)
    assert counted(at, "failed", policy="") is None


async def test_a_strangers_point_under_the_name_of_ours_is_not_counted_as_ours(at: Desk) -> None:
    """Else a point of whatever volume would make the run look good."""
    controller, name = await started(at)
    spec = {"pvcName": "other", "pvcUid": "uid-other"}
    await at.put(RecoveryPoint, name, spec=spec, status={"phase": "Completed"})
    with pytest.raises(NameTaken) as error:
        await controller.reconcile(KEY)
    await controller.record_error(KEY, error.value)
    run = await at.known(Backup, "run")
    assert (run.status.phase, run.status.reason, run.status.completed) == (BackupPhase.FAILED, "NameTaken", 0)
    assert (await at.known(RecoveryPoint, name)).spec.pvc_name == "other"
