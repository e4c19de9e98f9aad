"""Bad input gets a clear condition, an Event and a message on the command line, and harms nothing."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from orchestrator.api.foreign.core import Event, PersistentVolume, PersistentVolumeClaim, Secret
from orchestrator.api.meta import Condition, condition
from orchestrator.api.tidemark import BackupPolicy, BackupRepository
from orchestrator.api.tidemark.backup import BackupPhase
from orchestrator.demo import install
from orchestrator.kube.errors import Invalid
from tests.system.world import SETTINGS, World, write
from tests.waiting import LONG

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.system, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def namespace() -> str:
    return "bad"


async def _namespace(found: World, name: str) -> None:
    await install.namespace(found.client, name)
    if await found.client.find(PersistentVolumeClaim, "data", name) is None:
        write(await found.claim("data", name), 0, b"hello" * 1000)


async def _said(found: World, namespace: str, reason: str) -> str:
    """Wait for an Event with that reason and return its words."""
    async with asyncio.timeout(LONG):
        while True:
            events, _ = await found.client.list(Event, namespace)
            for event in events:
                if event.reason == reason:
                    return event.message
            await asyncio.sleep(0.2)


async def _condition(found: World, kind: Any, name: str, namespace: str, type_: str, reason: str) -> Condition:
    def met(obj: Any) -> bool:
        seen = condition(obj.status.conditions, type_) if obj is not None else None
        return seen is not None and (seen.status, seen.reason) == ("False", reason)

    obj = await found.until(kind, name, namespace, met)
    seen = condition(obj.status.conditions, type_)
    assert seen is not None
    return seen


async def test_an_unknown_snapshot_class_fails_the_point_with_its_name(installed: World, namespace: str) -> None:
    await _namespace(installed, namespace)
    spec = {"repository": "vault", "options": {"snapshotClassName": "ghost"}}
    await installed.apply(BackupPolicy, "class", namespace, spec)
    await installed.backup("class", namespace, policy="class")
    done = await installed.backup_ended("class", namespace)
    assert done.status.phase is BackupPhase.FAILED
    assert "ghost" in done.status.message
    assert "ghost" in await _said(installed, namespace, "UnknownSnapshotClass")


async def test_a_claim_that_is_not_csi_fails_with_a_clear_sentence(installed: World, namespace: str) -> None:
    found = installed
    await _namespace(found, namespace)
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "by-hand"},
        "spec": {
            "capacity": {"storage": "8Mi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "hostPath": {"path": "/tmp/x"},
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": "old"},
        },
    }
    await found.client.create_raw(PersistentVolume.RESOURCE, volume, PersistentVolume)
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "old", "namespace": namespace},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "",
            "volumeName": "by-hand",
            "resources": {"requests": {"storage": "8Mi"}},
        },
    }
    await found.client.create_raw(PersistentVolumeClaim.RESOURCE, claim, PersistentVolumeClaim)
    await found.until(PersistentVolumeClaim, "old", namespace, lambda c: c is not None and c.bound)
    await found.backup("old", namespace, selection={"volumes": {"names": ["old"]}, "repository": "vault"})
    done = await found.backup_ended("old", namespace)
    assert done.status.phase is BackupPhase.FAILED
    assert "CSI" in done.status.message


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"encryptionSecret": "ghost"}, "SecretMissing"),
        ({"encryptionSecret": "wrong-key"}, "WrongKey"),
        ({"url": "s3://nowhere/x", "credentialsSecret": "nowhere"}, ""),
    ],
    ids=["missing-secret", "wrong-master-key", "unreachable"],
)
async def test_a_repository_that_cant_be_used_says_why(installed: World, change: dict[str, Any], reason: str) -> None:
    found = installed
    for name, data in (
        ("wrong-key", {"master.key": "ab" * 32}),
        ("nowhere", {"endpoint": "http://127.0.0.1:9", "access_key_id": "a", "secret_access_key": "b", "region": "x"}),
    ):
        body = {"apiVersion": "v1", "kind": "Secret", "stringData": data}
        body["metadata"] = {"name": name, "namespace": SETTINGS.namespace}
        with contextlib.suppress(Exception):
            await found.client.create_raw(Secret.RESOURCE, body, Secret)
    name = f"broken-{reason.lower() or 'away'}"
    spec = {"url": found.repository_url, "encryptionSecret": "vault-key", "allowedNamespaces": ["*"], **change}
    await found.apply(BackupRepository, name, "", spec)

    def met(obj: BackupRepository | None) -> bool:
        seen = condition(obj.status.conditions, "Ready") if obj is not None else None
        return seen is not None and seen.status == "False"

    obj = await found.until(BackupRepository, name, "", met)
    assert obj is not None
    seen = condition(obj.status.conditions, "Ready")
    assert seen is not None
    assert seen.message
    assert not reason or seen.reason == reason
    code, said = await found.tidemark("doctor")
    assert code == 1
    assert name in said
    assert "Traceback" not in said
    await found.client.delete(BackupRepository, name, uid=obj.uid)


async def test_a_cron_that_never_fires_and_a_retention_that_keeps_nothing_are_conditions(
    installed: World, namespace: str
) -> None:
    found = installed
    await _namespace(found, namespace)
    await found.apply(BackupPolicy, "never", namespace, {"schedule": {"cron": "0 0 30 2 *"}, "retention": {}})
    never = await _condition(found, BackupPolicy, "never", namespace, "ScheduleValid", "BadSchedule")
    assert "never fires" in never.message
    nothing = await _condition(found, BackupPolicy, "never", namespace, "RetentionValid", "KeepsNothing")
    assert "keepLast" in nothing.message
    assert "never fires" in await _said(found, namespace, "BadSchedule")


async def test_a_repository_that_does_not_exist_or_admit_is_a_condition(installed: World, namespace: str) -> None:
    found = installed
    await _namespace(found, namespace)
    await found.apply(BackupPolicy, "ghostly", namespace, {"repository": "ghost"})
    seen = await _condition(found, BackupPolicy, "ghostly", namespace, "RepositoryReady", "RepositoryNotFound")
    assert "ghost" in seen.message
    await found.backup("ghostly", namespace, policy="ghostly")
    done = await found.backup_ended("ghostly", namespace)
    assert done.status.phase is BackupPhase.FAILED
    assert "ghost" in done.status.message


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"schedule": {"cron": "* * * * *", "every": "1h"}}, "cron"),
        ({"schedule": {"every": "soon"}}, "every"),
        ({"retention": {"keepLast": -1}}, "keepLast"),
    ],
    ids=["two-schedules", "bad-duration", "negative-count"],
)
async def test_the_api_server_refuses_what_a_schema_can_say(
    installed: World, namespace: str, spec: dict[str, Any], words: str
) -> None:
    await _namespace(installed, namespace)
    with pytest.raises(Invalid, match=words):
        await installed.apply(BackupPolicy, "refused", namespace, spec)


@pytest.mark.parametrize(
    "arguments",
    [
        ("backup", "create", "--policy", "ghost", "-n", "nowhere"),
        ("get", "nonsense"),
        ("prune",),
        ("restore", "--repository", "file:///nowhere/at/all", "--key-file", "/nonexistent", "--list"),
        ("verify", "--repository", "gopher://x", "--key-file", "/nonexistent"),
        ("sandbox", "fault", "ghost"),
    ],
    ids=lambda a: a[0],
)
async def test_the_command_line_answers_nonsense_with_a_sentence(installed: World, arguments: tuple[str, ...]) -> None:
    code, said = await installed.tidemark(*arguments)
    assert code not in (0, 1)
    assert said.strip()
    assert "Traceback" not in said
