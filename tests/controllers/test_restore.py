"""A restore's end, its movers' failures and what they say of the stored data are counted once each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.api.foreign.core import Job, Namespace, PersistentVolume, PersistentVolumeClaim, Pod
from orchestrator.api.meta import condition
from orchestrator.api.mover import MoverOutcome
from orchestrator.api.tidemark.fields import FINALIZER, LABEL_MANAGED_BY, LABEL_RESTORE_UID, MANAGED_BY
from orchestrator.api.tidemark.recovery_point import RecoveryPoint
from orchestrator.api.tidemark.restore import Restore, RestorePhase
from orchestrator.controllers.restore import RestoreController
from orchestrator.controllers.restore.resolve import PointNotFound
from orchestrator.errors import Retryable
from orchestrator.kube.errors import Conflict
from orchestrator.volumes.job import CONTAINER
from orchestrator.volumes.ownership import NameTaken
from policies.naming import object_name
from tests.controllers.desk import NAMESPACE, SYSTEM, Desk, desk

KEY = (NAMESPACE, "back")


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path, mover_attempts=2) as made:
        yield made


async def restore(at: Desk, **status: Any) -> tuple[RestoreController, Restore]:
    """Make a restore that is being filled."""
    told = {
        "phase": "Filling",
        "startTime": at.clock.now().isoformat(),
        "grantedTime": at.clock.now().isoformat(),
        "repository": "main",
        "manifestKey": "ns/point",
        "targetNamespace": NAMESPACE,
        "targetPvc": "db",
        "attempts": 1,
        **status,
    }
    made = await at.put(
        Restore, "back", metadata={"finalizers": [FINALIZER]}, spec={"source": {"point": "p"}}, status=told
    )
    return RestoreController(at.context), made


async def filled_claim(at: Desk, made: Restore) -> None:
    name = f"tm-{made.uid}"
    labels = {LABEL_RESTORE_UID: made.uid, LABEL_MANAGED_BY: MANAGED_BY}
    driver = {"driver": "csi", "volumeHandle": "vol-1"}
    await at.put(PersistentVolume, "pv-1", spec={"csi": driver}, status={"phase": "Bound"})
    spec = {"volumeName": "pv-1"}
    body: dict[str, Any] = {"metadata": {"labels": labels}, "spec": spec, "status": {"phase": "Bound"}}
    await at.put(PersistentVolumeClaim, name, SYSTEM, **body)


async def mover(at: Desk, made: Restore, ended: str, outcome: MoverOutcome | None = None) -> None:
    """Let the restore's Job have ended."""
    name = f"tm-{made.uid}"
    labels = {LABEL_RESTORE_UID: made.uid, LABEL_MANAGED_BY: MANAGED_BY}
    status = {"conditions": [{"type": ended, "status": "True"}]}
    job = await at.put(Job, name, SYSTEM, metadata={"labels": labels}, status=status)
    if outcome is not None:
        said = msgspec.json.encode(outcome).decode()
        state = {"terminated": {"exitCode": 65, "message": said}}
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job.uid}
        meta = {"labels": {**labels, "job-name": name}, "ownerReferences": [owner]}
        statuses = {"phase": "Failed", "containerStatuses": [{"name": CONTAINER, "state": state}]}
        await at.put(Pod, f"{name}-x", SYSTEM, metadata=meta, spec={}, status=statuses)


def counted(at: Desk, result: str) -> float | None:
    return at.metric("tidemark_restores_total", namespace=NAMESPACE, result=result)


async def passes(controller: RestoreController, count: int = 8) -> None:
    for _ in range(count):
        await controller.reconcile(KEY)


async def test_a_mover_that_filled_the_volume_proves_what_is_stored(at: Desk) -> None:
    controller, made = await restore(at)
    await filled_claim(at, made)
    await mover(at, made, "Complete", MoverOutcome(ok=True, sha256="ab"))
    at.api.fail("PATCH", "restores/back/status", 409, "Conflict")
    with pytest.raises(Conflict):
        await controller.reconcile(KEY)
    assert at.metric("tidemark_verifications_total", repository="main", result="ok") is None
    await passes(controller, 2)
    assert (await at.known(Restore, "back")).status.filled
    assert at.metric("tidemark_verifications_total", repository="main", result="ok") == 1
    assert at.metric("tidemark_mover_attempts_total", task="restore", result="completed") == 1


async def test_damage_that_a_restore_meets_is_counted_as_damage_once(at: Desk) -> None:
    controller, made = await restore(at)
    await filled_claim(at, made)
    await mover(at, made, "Failed", MoverOutcome(ok=False, reason="Damaged", message="Object packs/x is damaged"))
    await passes(controller)
    now = await at.known(Restore, "back")
    assert (now.status.phase, now.status.reason) == (RestorePhase.FAILED, "Damaged")
    assert at.metric("tidemark_verifications_total", repository="main", result="damaged") == 1
    assert counted(at, "failed") == 1
    assert at.metric("tidemark_mover_attempts_total", task="restore", result="failed") == 1
    assert at.metric("tidemark_restore_duration_seconds_count") == 0, "only what worked says how long it takes"


async def test_a_mover_that_fails_is_told_of_before_the_next_one(at: Desk) -> None:
    controller, made = await restore(at)
    await filled_claim(at, made)
    await mover(
        at, made, "Failed", MoverOutcome(ok=False, reason="StoreUnavailable", message="no answer", retryable=True)
    )
    at.api.fail("DELETE", "/jobs/", 503, "ServiceUnavailable")
    with pytest.raises(Retryable):
        await controller.reconcile(KEY)
    await controller.reconcile(KEY)
    told = condition((await at.known(Restore, "back")).status.conditions, "Mover")
    assert told is not None
    assert (told.reason, told.message) == ("StoreUnavailable", "Attempt 1: no answer")
    assert at.metric("tidemark_mover_attempts_total", task="restore", result="failed") == 1
    assert ("StoreUnavailable", "Mover 1 failed: no answer") in await at.events()


async def test_a_cancelled_restore_is_counted_once(at: Desk) -> None:
    controller, _ = await restore(at)
    await at.change(Restore, "back", spec={"source": {"point": "p"}, "cancel": True})
    await passes(controller)
    assert (await at.known(Restore, "back")).status.phase is RestorePhase.CANCELLED
    assert counted(at, "cancelled") == 1
    await at.remove(Namespace, NAMESPACE)
    assert counted(at, "cancelled") is None


async def test_a_completed_restore_says_how_long_it_took(at: Desk) -> None:
    controller, made = await restore(at, savedVolume="{}", volumeHandle="vol-1", filled=True)
    name = f"tm-{made.uid}"
    await at.put(PersistentVolume, name, spec={"persistentVolumeReclaimPolicy": "Delete"}, status={})
    mine = {"labels": {"tidemark.dev/restored-by": made.uid}}
    await at.put(PersistentVolumeClaim, "db", metadata=mine, spec={"volumeName": name}, status={"phase": "Bound"})
    at.clock.pass_(seconds=90)
    await passes(controller, 3)
    assert (await at.known(Restore, "back")).status.phase is RestorePhase.COMPLETED
    assert counted(at, "completed") == 1
    assert at.metric("tidemark_restore_duration_seconds_sum") == timedelta(seconds=90).total_seconds()


async def test_a_restore_that_waits_for_a_slot_is_shown(at: Desk) -> None:
    assert at.metric("tidemark_slots_waiting", task="restore") == 0
    await restore(at, phase="Pending", grantedTime=None)
    assert at.metric("tidemark_slots_waiting", task="restore") == 1
    assert at.metric("tidemark_slots_waiting", task="backup") == 0


async def whole(at: Desk, **status: Any) -> Restore:
    """Make the restore of a whole Backup."""
    body = {"spec": {"source": {"backup": "b"}}, "status": status}
    return await at.put(Restore, "back", metadata={"finalizers": [FINALIZER]}, **body)


async def test_a_whole_backups_restore_ends_with_the_count_of_all_its_volumes(at: Desk) -> None:
    started = {"phase": "Filling", "startTime": at.clock.now().isoformat()}
    made = await whole(at, **started, children=["db-1", "files-1"], progress="1/2")
    for name in ("db-1", "files-1"):
        labels = {"labels": {LABEL_RESTORE_UID: made.uid}}
        spec = {"source": {"point": name}}
        await at.put(Restore, name, metadata=labels, spec=spec, status={"phase": "Completed"})

    await passes(RestoreController(at.context))

    ended = await at.known(Restore, "back")
    assert (ended.status.phase, ended.status.progress) == (RestorePhase.COMPLETED, "2/2")


async def test_a_strangers_restore_under_a_childs_name_is_not_counted_as_ours(at: Desk) -> None:
    """Else somebody's own restore would stand for a volume that was never restored."""
    spec = {"pvcName": "db", "pvcUid": "u", "backup": "b"}
    await at.backup("b", policy="p")
    point = await at.put(RecoveryPoint, "db-point", spec=spec, status={"phase": "Completed"})
    made = await whole(at)
    name = object_name("db", made.uid, point.uid)
    await at.put(Restore, name, spec={"source": {"point": "other"}}, status={"phase": "Completed"})
    controller = RestoreController(at.context)
    with pytest.raises(NameTaken) as error:
        await controller.reconcile(KEY)
    await controller.record_error(KEY, error.value)

    await passes(controller)

    ended = await at.known(Restore, "back")
    assert (ended.status.phase, ended.status.reason) == (RestorePhase.FAILED, "NameTaken")
    assert name in ended.status.message
    assert (await at.known(Restore, name)).spec.source.point == "other"


async def test_the_restore_of_a_backup_that_is_not_there_fails(at: Desk) -> None:
    await whole(at)
    controller = RestoreController(at.context)
    with pytest.raises(PointNotFound) as error:
        await controller.reconcile(KEY)
    await controller.record_error(KEY, error.value)

    await passes(controller)

    ended = await at.known(Restore, "back")
    assert (ended.status.phase, ended.status.reason) == (RestorePhase.FAILED, "PointNotFound")
    assert ended.metadata.finalizers == ()
