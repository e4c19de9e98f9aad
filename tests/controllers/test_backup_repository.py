"""A repository: never another one silently, keys read anew, maintenance written down before its Job goes."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api.foreign.core import Job, Secret
from orchestrator.api.meta import condition
from orchestrator.api.tidemark.backup_repository import BackupRepository
from orchestrator.controllers.backup_repository import ANNOTATION_MAINTAINED, BackupRepositoryController
from orchestrator.controllers.repositories import (
    TRUST_S,
    NamespaceNotAllowed,
    RepositoryReplaced,
    RepositoryUnknown,
    SecretMissing,
)
from orchestrator.repository.errors import WrongKey
from orchestrator.repository.keys import NamespaceIdentity
from tests.controllers.desk import CLUSTER, NAMESPACE, SYSTEM, Desk, desk

KEY = ("", "main")


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path) as made:
        yield made


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


async def ready(at: Desk, **spec: Any) -> BackupRepositoryController:
    """Make a repository and let it be opened. Verification has tests of its own."""
    await at.repository(**{"verify": {"suspend": True}, **spec})
    controller = BackupRepositoryController(at.context)
    await controller.reconcile(KEY)
    assert (await at.known(BackupRepository, "main")).status.ready == "True"
    return controller


async def namespace(at: Desk, uid: str, cluster: str = CLUSTER) -> None:
    """Let a namespace have something in the repository."""
    await at.context.repositories.vault("main", NamespaceIdentity(cluster, uid, uid), create=True)


async def job(at: Desk, name: str, ended: str) -> None:
    """Let a maintenance Job end."""
    await at.change(Job, name, SYSTEM, status={"conditions": [{"type": ended, "status": "True"}]})


async def test_another_repository_in_the_place_of_the_known_one_is_refused(at: Desk, tmp_path: Path) -> None:
    controller = await ready(at)
    known = (await at.known(BackupRepository, "main")).status.repository_id
    await at.context.repositories.close()
    key = (await at.client.get(Secret, "main-key", SYSTEM)).data["master.key"].decode()
    (tmp_path / "main").rename(tmp_path / "away")
    (tmp_path / "main").mkdir()
    # nothing there any more: it is not made anew
    with pytest.raises(RepositoryReplaced):
        await controller.reconcile(KEY)
    assert files(tmp_path / "main") == []
    # another one, of the same key
    await at.repository("other", key=key)
    other = await at.context.repositories.open("other")
    (tmp_path / "main").rmdir()
    (tmp_path / "other").rename(tmp_path / "main")
    with pytest.raises(RepositoryReplaced) as error:
        await controller.reconcile(KEY)
    await controller.record_error(KEY, error.value)
    now = await at.known(BackupRepository, "main")
    assert other.repository.id != known
    assert now.status.repository_id == known
    told = condition(now.status.conditions, "Ready")
    assert told is not None
    assert (told.status, told.reason) == ("False", "RepositoryReplaced")
    assert at.metric("tidemark_repository_reachable", repository="main") == 0


async def test_rotated_secrets_are_read_again_within_a_minute(at: Desk) -> None:
    controller = await ready(at)
    await at.secret("main-key", master__key=secrets.token_hex(32))
    await controller.reconcile(KEY)
    at.clock.pass_(seconds=TRUST_S + 1)
    with pytest.raises(WrongKey):
        await controller.reconcile(KEY)


async def test_a_secret_that_is_missing_is_waited_for(at: Desk) -> None:
    controller = await ready(at)
    at.api.remove("main-key", SYSTEM, "secrets")
    at.clock.pass_(seconds=TRUST_S + 1)
    with pytest.raises(SecretMissing) as error:
        await controller.reconcile(KEY)
    await controller.record_error(KEY, error.value)
    assert (await at.known(BackupRepository, "main")).status.ready == "False"
    assert "There is no Secret tidemark-system/main-key" in str(error.value)


async def test_who_may_use_a_repository(at: Desk) -> None:
    await at.repository(allowedNamespaces=["bank"])
    at.context.repositories.check_allowed("main", "bank")
    with pytest.raises(NamespaceNotAllowed):
        at.context.repositories.check_allowed("main", NAMESPACE)
    with pytest.raises(RepositoryUnknown):
        at.context.repositories.check_allowed("none", NAMESPACE)


async def begun(at: Desk, controller: BackupRepositoryController) -> str:
    """Let the slot that is due begin; return its first Job's name."""
    await controller.reconcile(KEY)
    await controller.reconcile(KEY)
    (name,) = at.names(Job)
    return name


async def test_maintenance_is_written_down_before_its_job_goes_and_counted_once(at: Desk) -> None:
    controller = await ready(at)
    await namespace(at, "ns-1")
    await namespace(at, "ns-2")
    await namespace(at, "ns-3", cluster="another-cluster")
    at.clock.pass_(hours=26)
    names: list[str] = []
    await controller.reconcile(KEY)
    assert at.names(Job) == [], "the slot is written down before its first Job is made"
    for _ in range(2):
        await controller.reconcile(KEY)
        (name,) = at.names(Job)
        names.append(name)
        await controller.reconcile(KEY)
        assert at.names(Job) == [name], "one at a time"
        await job(at, name, "Complete")
        await controller.reconcile(KEY)
        noted = (await at.known(BackupRepository, "main")).metadata.annotations[ANNOTATION_MAINTAINED]
        assert at.names(Job) == [name], "the note is there before the Job goes"
        assert noted.count("ns-") == len(names)
        await controller.reconcile(KEY)
        assert at.names(Job) == []
    assert (await at.known(BackupRepository, "main")).status.last_maintenance is None
    await controller.reconcile(KEY)
    now = await at.known(BackupRepository, "main")
    assert len(set(names)) == 2
    assert now.status.last_maintenance == at.clock.now()
    assert now.status.last_maintenance_slot is not None
    assert at.metric("tidemark_maintenance_runs_total", repository="main", result="completed") == 2
    assert at.metric("tidemark_mover_attempts_total", task="maintain", result="completed") == 2
    assert ("Maintained", "Swept 2 namespaces.") in await at.events()
    await controller.reconcile(KEY)
    assert at.names(Job) == [], "the slot is done"
    await at.remove(BackupRepository, "main")
    assert at.metric("tidemark_maintenance_runs_total", repository="main", result="completed") is None


async def test_maintenance_that_fails_is_said_and_becomes_overdue(at: Desk) -> None:
    controller = await ready(at, maintenance={"schedule": {"every": "24h"}})
    await namespace(at, "ns-1")
    for _ in range(3):
        at.clock.pass_(hours=24)
        name = await begun(at, controller)
        await job(at, name, "Failed")
        for _ in range(3):
            await controller.reconcile(KEY)
    now = await at.known(BackupRepository, "main")
    told = condition(now.status.conditions, "Maintained")
    assert told is not None
    assert (told.status, told.reason) == ("False", "MaintenanceFailed")
    assert now.status.last_maintenance is None
    assert at.metric("tidemark_maintenance_runs_total", repository="main", result="failed") == 3
    assert at.metric("tidemark_repository_maintenance_overdue", repository="main") == 1
    events = await at.events()
    assert [reason for reason, _ in events].count("MaintenanceFailed") == 1
    assert "Maintained" not in [reason for reason, _ in events]
    # a sweep that completes ends it
    at.clock.pass_(hours=24)
    await job(at, await begun(at, controller), "Complete")
    for _ in range(3):
        await controller.reconcile(KEY)
    assert at.metric("tidemark_repository_maintenance_overdue", repository="main") == 0


async def test_maintenance_that_is_switched_off_runs_nothing_and_is_not_overdue(at: Desk) -> None:
    controller = await ready(at, maintenance={"suspend": True})
    await namespace(at, "ns-1")
    at.clock.pass_(days=30)
    await controller.reconcile(KEY)
    assert at.names(Job) == []
    assert at.metric("tidemark_repository_maintenance_overdue", repository="main") == 0


async def test_a_slot_that_was_begun_is_carried_to_its_end_though_newer_ones_come_due(at: Desk) -> None:
    controller = await ready(at, maintenance={"schedule": {"every": "5s"}})
    await namespace(at, "ns-1")
    at.clock.pass_(seconds=10)
    name = await begun(at, controller)
    for _ in range(3):
        at.clock.pass_(seconds=20)
        await controller.reconcile(KEY)
        assert at.names(Job) == [name], "a newer slot must not forget the Job that runs"
    await job(at, name, "Complete")
    for _ in range(3):
        await controller.reconcile(KEY)
    assert at.names(Job) == []
    assert (await at.known(BackupRepository, "main")).status.last_maintenance == at.clock.now()


@pytest.mark.parametrize("ended", ["Complete", "Failed"])
async def test_maintenance_that_is_suspended_while_it_runs_leaves_no_job_and_starts_no_other(
    at: Desk, ended: str
) -> None:
    controller = await ready(at, maintenance={"schedule": {"every": "24h"}})
    await namespace(at, "ns-1")
    await namespace(at, "ns-2")
    at.clock.pass_(hours=25)
    name = await begun(at, controller)
    await at.client.merge_patch(BackupRepository, "main", "", {"spec": {"maintenance": {"suspend": True}}})
    await at.known(BackupRepository, "main")
    await controller.reconcile(KEY)
    assert at.names(Job) == [name], "what runs may end"
    await job(at, name, ended)
    for _ in range(4):
        await controller.reconcile(KEY)
    assert at.names(Job) == []
    now = await at.known(BackupRepository, "main")
    assert now.status.last_maintenance is None, "not every namespace was swept"
    told = condition(now.status.conditions, "Maintained")
    assert (told is None) == (ended == "Complete")
