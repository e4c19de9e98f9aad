"""A policy: its slots become Backups once, its records stay few, and a bad one harms no other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from orchestrator.api.crd import definition
from orchestrator.api.meta import condition
from orchestrator.api.tidemark.backup import Backup
from orchestrator.api.tidemark.backup_policy import BackupPolicy, Objective, Retention
from orchestrator.api.tidemark.recovery_point import RecoveryPoint
from orchestrator.app.page import page
from orchestrator.controllers import retention, rpo
from orchestrator.controllers.backup_policy import KEEP_BACKUPS, BackupPolicyController
from orchestrator.decisions.backup_policy import backup_name
from orchestrator.kube.errors import Conflict
from orchestrator.volumes.ownership import NameTaken
from tests.controllers.desk import CLUSTER, NAMESPACE, NOON, Desk, desk

KEY = (NAMESPACE, "nightly")


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path) as made:
        yield made


def missed(at: Desk) -> float | None:
    return at.metric("tidemark_slots_missed_total", namespace=NAMESPACE, policy="nightly")


async def test_a_strangers_backup_under_our_name_is_never_adopted(at: Desk) -> None:
    policy = await at.policy(schedule={"every": "1h"})
    name = backup_name(policy, NOON + timedelta(hours=1), CLUSTER)
    at.clock.pass_(hours=1)
    await at.backup(name, policy="nightly", status={"phase": "Completed"})
    controller = BackupPolicyController(at.context)
    with pytest.raises(NameTaken) as error:
        await controller.reconcile(KEY)
    await controller.record_error(KEY, error.value)
    now = await at.known(BackupPolicy, "nightly")
    told = condition(now.status.conditions, "Progressing")
    assert told is not None
    assert (told.status, told.reason) == ("False", "NameTaken")
    assert now.status.last_slot is None
    assert (await at.known(Backup, name)).spec.slot is None


async def test_our_own_backup_of_the_slot_is_found_again_after_a_crash_before_the_status(at: Desk) -> None:
    await at.policy(schedule={"every": "1h"})
    at.clock.pass_(hours=1)
    at.api.fail("PATCH", "backuppolicies/nightly/status", 409, "Conflict")
    controller = BackupPolicyController(at.context)
    with pytest.raises(Conflict):
        await controller.reconcile(KEY)
    (name,) = at.names(Backup)
    await at.change(Backup, name, status={"phase": "Completed"})
    await controller.reconcile(KEY)
    assert at.names(Backup) == [name]
    assert (await at.known(BackupPolicy, "nightly")).status.last_slot == NOON + timedelta(hours=1)


async def test_missed_slots_are_counted_once_and_where_the_status_says_so(at: Desk) -> None:
    await at.policy(schedule={"every": "1h"})
    at.clock.pass_(hours=4)
    at.api.fail("PATCH", "backuppolicies/nightly/status", 409, "Conflict")
    controller = BackupPolicyController(at.context)
    with pytest.raises(Conflict):
        await controller.reconcile(KEY)
    assert missed(at) is None
    await at.change(Backup, at.names(Backup)[0], status={"phase": "Completed"})
    for _ in range(3):
        await controller.reconcile(KEY)
    assert missed(at) == 3
    assert (await at.known(BackupPolicy, "nightly")).status.missed_slots == 3
    assert [reason for reason, _ in await at.events()].count("SlotsMissed") == 1


async def test_only_the_newest_finished_backups_of_the_schedule_are_kept(at: Desk) -> None:
    policy = await at.policy(schedule={"every": "24h"})
    labels = {"tidemark.dev/policy-uid": policy.uid}
    for number in range(KEEP_BACKUPS + 5):
        slot = (NOON - timedelta(hours=number)).isoformat()
        await at.backup(f"s{number:02}", {"phase": "Completed"}, labels, policy="nightly", slot=slot)
    old = (NOON - timedelta(days=9)).isoformat()
    await at.backup("by-hand", {"phase": "Completed"}, labels, policy="nightly")
    await at.backup("of-another", {"phase": "Completed"}, {"tidemark.dev/policy-uid": "x"}, policy="other", slot=old)
    await BackupPolicyController(at.context).reconcile(KEY)
    kept = [f"s{number:02}" for number in range(KEEP_BACKUPS)]
    assert at.names(Backup) == sorted([*kept, "by-hand", "of-another"])


async def test_a_namespace_that_the_repository_does_not_admit_is_told_of(at: Desk) -> None:
    await at.repository(allowedNamespaces=["bank"])
    await at.policy(repository="main")
    await BackupPolicyController(at.context).reconcile(KEY)
    now = await at.known(BackupPolicy, "nightly")
    told = condition(now.status.conditions, "RepositoryReady")
    assert told is not None
    assert (told.status, told.reason) == ("False", "NamespaceNotAllowed")
    assert "NamespaceNotAllowed" in [reason for reason, _ in await at.events()]


async def test_durations_that_cannot_be_reckoned_with_harm_no_other_policy(at: Desk) -> None:
    """As a policy older than the rule in its definition would; without the guards nobody's samples are there."""
    await at.claim("db")
    good = await at.policy("good", objective={"rpo": "1h"})
    await at.policy()
    version = str(at.api.version + 1)
    bad = msgspec.structs.replace(
        await at.known(BackupPolicy, "nightly"),
        spec=msgspec.structs.replace(
            good.spec, objective=Objective(rpo="9999999999w"), retention=Retention(keep_within="9999999999w")
        ),
    )
    metadata = msgspec.structs.replace(bad.metadata, resource_version=version)
    at.context.caches.learn(msgspec.structs.replace(bad, metadata=metadata))
    at.clock.pass_(minutes=10)
    # the samples and the page of the good one are there, and the bad one promises nothing
    found = {sample.policy: sample for sample in rpo.samples(at.context.caches, at.clock)}
    assert found["good"].target_s == 3600
    assert found["nightly"].target_s is None
    rows = {row.name: row for row in page(at.context.caches, at.clock, version="1", leading=True).policies}
    assert rows["good"].target_s == 3600
    assert rows["nightly"].standing == "unprotected"
    assert retention.Retention(at.context).due(at.clock.now()) == []
    # the bad one says what is wrong with it
    controller = BackupPolicyController(at.context)
    bad_one = next(p for p in at.context.caches.of(BackupPolicy).all() if p.name == "nightly")
    conditions = controller._checked(bad_one, NOON)
    told = {c.type: (c.status, c.reason) for c in conditions}
    assert told["ObjectiveValid"] == ("False", "BadDuration")
    assert told["RetentionValid"] == ("False", "BadDuration")


async def test_a_policy_that_selects_nothing_says_so_until_it_does(at: Desk) -> None:
    await at.policy()
    controller = BackupPolicyController(at.context)
    for _ in range(2):
        await controller.reconcile(KEY)
    told = condition((await at.known(BackupPolicy, "nightly")).status.conditions, "VolumesSelected")
    assert told is not None
    assert (told.status, told.reason) == ("False", "NoVolumes")
    assert [reason for reason, _ in await at.events()].count("NoVolumes") == 1
    await at.claim("db")
    await controller.reconcile(KEY)
    told = condition((await at.known(BackupPolicy, "nightly")).status.conditions, "VolumesSelected")
    assert told is not None
    assert told.status == "True"


async def test_volumes_that_keep_another_chunk_size_than_the_policy_asks_for_are_named(at: Desk) -> None:
    # given volumes with points in chunks of 256 KiB, one as asked for, one without a point, and one elsewhere
    for number, size in enumerate(["256Ki", "256Ki", "64Ki", None]):
        claim = await at.claim(f"db-{number}")
        for sequence in (1, 2) if size else ():
            spec = {"pvcName": claim.name, "pvcUid": claim.uid, "repository": "main"}
            status = {"phase": "Completed", "sequence": sequence, "chunkSize": size if sequence == 2 else "1Mi"}
            await at.put(RecoveryPoint, f"{claim.name}-{sequence}", spec=spec, status=status)
    elsewhere = {"pvcName": "db-3", "pvcUid": claim.uid, "repository": "other"}
    await at.put(RecoveryPoint, "x", spec=elsewhere, status={"phase": "Completed", "sequence": 1, "chunkSize": "1Mi"})
    await at.policy(repository="main", options={"chunkSize": "64Ki"})
    controller = BackupPolicyController(at.context)
    # when
    for _ in range(2):
        await controller.reconcile(KEY)
    # then
    found = condition((await at.known(BackupPolicy, "nightly")).status.conditions, "ChunkSizeApplied")
    assert found is not None
    assert (found.status, found.reason) == ("False", "ChunkSizeKept")
    assert found.message.endswith("in this one: db-0 (256Ki), db-1 (256Ki)")
    assert [reason for reason, _ in await at.events()].count("ChunkSizeKept") == 1
    # then a policy that asks for what is there is told so, and one that asks for nothing hears nothing
    for options, told in (({"chunkSize": "256Ki"}, "db-2 (64Ki)"), ({}, None)):
        await at.change(BackupPolicy, "nightly", spec={"repository": "main", "options": options})
        await controller.reconcile(KEY)
        found = condition((await at.known(BackupPolicy, "nightly")).status.conditions, "ChunkSizeApplied")
        assert (found is None) if told is None else (found is not None and found.message.endswith(told))


async def test_many_volumes_of_another_chunk_size_are_counted_and_a_policy_with_all_its_conditions_is_valid(
    at: Desk,
) -> None:
    for number in range(8):
        claim = await at.claim(f"db-{number}")
        spec = {"pvcName": claim.name, "pvcUid": claim.uid, "repository": "main"}
        await at.put(RecoveryPoint, claim.name, spec=spec, status={"phase": "Completed", "chunkSize": "1Mi"})
    await at.policy(repository="main", options={"chunkSize": "64Ki"})
    controller = BackupPolicyController(at.context)
    await controller.reconcile(KEY)
    await controller.record_error(KEY, NameTaken("Backup", NAMESPACE, "x"))
    conditions = (await at.known(BackupPolicy, "nightly")).status.conditions
    found = condition(conditions, "ChunkSizeApplied")
    assert found is not None
    assert found.message.endswith("db-4 (1Mi) and 3 more")
    shape = definition(BackupPolicy)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    assert len(conditions) == 7 <= shape["properties"]["conditions"]["maxItems"]


async def test_an_objective_of_nothing_promises_nothing(at: Desk) -> None:
    await at.claim("db")
    await at.policy(objective={"rpo": "0s"})
    await BackupPolicyController(at.context).reconcile(KEY)
    told = condition((await at.known(BackupPolicy, "nightly")).status.conditions, "ObjectiveValid")
    assert told is not None
    assert told.status == "False"
    assert "longer than zero" in told.message
    assert [sample.target_s for sample in rpo.samples(at.context.caches, at.clock)] == [None]
