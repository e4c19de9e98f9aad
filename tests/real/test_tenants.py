"""Attempts to cross from one namespace into another, each made with nothing but a tenant's rights.

`red` tries, `blue` has something to lose. Red's person has the cluster's own `edit`, into which the chart puts
`tidemark-edit`, and may write VolumeSnapshots, as many clusters let their tenants. Each attempt ends refused, in words
that help, and nothing of anybody's is touched.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from orchestrator.api.foreign.core import Namespace, PersistentVolumeClaim, Pod, Secret
from orchestrator.api.foreign.snapshot import (
    SnapshotMetadataService,
    VolumeSnapshot,
    VolumeSnapshotClass,
    VolumeSnapshotContent,
)
from orchestrator.api.meta import condition
from orchestrator.api.tidemark import Backup, BackupPolicy, BackupRepository, RecoveryPoint
from orchestrator.api.tidemark.backup import BackupPhase
from orchestrator.api.tidemark.fields import (
    ANNOTATION_ACCEPT_RESTORES,
    ANNOTATION_INHERIT_POINTS,
    LABEL_MANAGED_BY,
    LABEL_POINT_UID,
    MANAGED_BY,
)
from orchestrator.api.tidemark.recovery_point import PointPhase
from orchestrator.api.tidemark.restore import RestorePhase
from orchestrator.demo import install
from tests.real import audit
from tests.real.cluster import ISSUER, RealCluster
from tests.real.site import ACCOUNT, HOME, Site, claim, ours, site
from tests.real.world import REPOSITORY
from tests.system.world import digest, write
from tests.waiting import LONG

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1500)]

BLUE, RED = "blue", "red"
PRIVATE = "private"
MODE_CHANGE = "snapshot.storage.kubernetes.io/allow-volume-mode-change"
SNAPSHOT_USER = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: snapshot-user}
rules:
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshots]
  verbs: ["*"]
"""


class Town:
    """The installation with its two teams, each with a volume and a point of it."""

    def __init__(self, at: Site, red: Path, images: dict[str, Path]) -> None:
        self.at, self.world, self.client = at, at.world, at.client
        self.red, self.images = red, images

    async def backup(self, name: str, by: str = RED, repository: str = REPOSITORY, **selection: Any) -> Backup:
        """Let red's person (or the administrator, for blue) ask for a backup; return how it ended."""
        options = selection.pop("options", {})
        wanted = {"volumes": selection, "repository": repository, "options": options}
        await self.at.put(ours("Backup", name, by, {"selection": wanted}), self.red if by == RED else None)
        return await self.world.backup_ended(name, by, LONG)

    async def restore(self, name: str, source: dict[str, Any], **target: Any) -> tuple[RestorePhase, str, str]:
        """Let red's person ask for a restore; return how it ended."""
        await self.at.put(ours("Restore", name, RED, {"source": source, "target": target}), self.red)
        ended = (await self.world.restore_ended(name, RED, LONG)).status
        return ended.phase, ended.reason, ended.message

    async def point(self, namespace: str) -> RecoveryPoint:
        """Return a team's first point."""
        return await self.at.point(namespace, "first")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def town(cluster: RealCluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Town]:
    """Two teams, one of which has something to lose."""
    async with site(cluster, tmp_path_factory.mktemp("tenants")) as at:
        await at.kubectl("apply", "-f", "-", stdin=SNAPSHOT_USER)
        spec = {"credentialsSecret": "vault-store", "encryptionSecret": "vault-key"}
        private = {**spec, "url": "s3://bucket/private", "allowedNamespaces": [BLUE]}
        await at.world.apply(BackupRepository, PRIVATE, "", private)
        await at.team(BLUE)
        red = await at.team(RED, "edit", "snapshot-user")
        images = {}
        for number, (team, name) in enumerate(((BLUE, "treasure"), (RED, "own"))):
            images[team] = await at.world.claim(name, team)
            await asyncio.to_thread(write, images[team], 0, bytes([number + 1]) * (2 << 20))
        made = Town(at, red, images)
        ended = [await made.backup("first", by=team) for team in (BLUE, RED)]
        assert [b.status.phase for b in ended] == [BackupPhase.COMPLETED] * 2, [b.status for b in ended]
        yield made


# What roles alone forbid


async def test_a_tenant_reaches_nothing_outside_its_namespace_and_writes_no_status(town: Town) -> None:
    """The API server says no before any code of ours is asked."""
    at, mine = town.at, await town.point(RED)
    backup = ours("Backup", "x", BLUE, {"policy": "p"})
    point = ours("RecoveryPoint", "forged", RED, {"pvcName": "own", "pvcUid": "u", "repository": REPOSITORY})
    done = '{"status":{"phase":"Completed"}}'
    status = ["--subresource=status", "--type=merge", "-p", done, "-n", RED]
    attempts: list[tuple[tuple[str, ...], dict[str, Any] | None]] = [
        (("get", "recoverypoints", "-n", BLUE), None),
        (("create", "-f", "-"), backup),
        (("get", "backuprepositories"), None),
        (("get", "secrets", "-n", HOME), None),
        (("get", "pods", "-n", HOME), None),
        (("create", "token", ACCOUNT, "-n", HOME), None),
        (("create", "-f", "-"), point),
        (("patch", "recoverypoint", mine.name, "-n", RED, "--type=merge", "-p", '{"spec":{"prune":true}}'), None),
        (("delete", "recoverypoint", mine.name, "-n", RED), None),
        (("patch", "recoverypoint", mine.name, *status), None),
        (("patch", "backup", "first", *status), None),
        (("annotate", "namespace", RED, f"{ANNOTATION_INHERIT_POINTS}=any"), None),
        (("annotate", "namespace", BLUE, f"{ANNOTATION_ACCEPT_RESTORES}={RED}"), None),
        (("get", "volumesnapshotcontents"), None),
        (("get", "persistentvolumes"), None),
    ]
    for arguments, body in attempts:
        await at.refused(*arguments, as_=town.red, body=body)


async def test_a_status_sent_along_with_a_new_restore_is_not_taken(town: Town) -> None:
    """A Restore's status is memory, volumes to take over included: the server drops what its maker wrote there."""
    treasure = await town.client.get(PersistentVolumeClaim, "treasure", BLUE)
    forged = {
        "phase": "HandingOver", "filled": True, "manifestKey": "k", "volume": treasure.spec.volume_name,
        "savedVolume": "{}", "targetNamespace": RED, "targetPvc": "stolen",
    }  # fmt: skip
    body = ours("Restore", "forged", RED, {"source": {"point": "none"}, "target": {"pvcName": "stolen"}})
    await town.at.put(body | {"status": forged}, town.red)
    ended = await town.world.restore_ended("forged", RED, LONG)
    assert (ended.status.phase, ended.status.reason) == (RestorePhase.FAILED, "PointNotFound")
    assert ended.status.volume == ""
    assert (await town.client.get(PersistentVolumeClaim, "treasure", BLUE)).bound


# What is asked in the ordinary way


async def test_policies_and_backups_reach_claims_of_their_own_namespace_only(town: Town) -> None:
    """Another namespace's claim, by its name, is not there; nor is its policy."""
    await town.world.apply(BackupPolicy, "nightly", BLUE, {"volumes": {"names": ["treasure"]}, "repository": "vault"})
    by_name = await town.backup("by-name", names=["treasure"])
    assert (by_name.status.phase, by_name.status.reason) == (BackupPhase.FAILED, "NoVolumes")
    assert "treasure not found" in by_name.status.message
    _, said = await town.at.kubectl(
        "create", "-f", "-", as_=town.red, ok=False,
        stdin=json.dumps(ours("Backup", "x", RED, {"selection": {"volumes": {"names": [f"{BLUE}/treasure"]}}})),
    )  # fmt: skip
    assert "names" in said
    assert "Invalid value" in said
    await town.at.put(ours("Backup", "by-policy", RED, {"policy": "nightly"}), town.red)
    by_policy = await town.world.backup_ended("by-policy", RED, LONG)
    assert (by_policy.status.phase, by_policy.status.reason) == (BackupPhase.FAILED, "PolicyNotFound")


async def test_a_repository_takes_points_of_the_namespaces_that_it_admits_and_of_no_other(town: Town) -> None:
    """For a backup, in a policy's condition, and for a restore."""
    ended = await town.backup("elsewhere", repository=PRIVATE, names=["own"])
    assert ended.status.phase is BackupPhase.FAILED
    assert "NamespaceNotAllowed" in ended.status.message
    spec = {"volumes": {"names": ["own"]}, "repository": PRIVATE}
    await town.at.put(ours("BackupPolicy", "elsewhere", RED, spec), town.red)

    def told(policy: BackupPolicy | None) -> bool:
        found = condition(policy.status.conditions, "RepositoryReady") if policy else None
        return found is not None and (found.status, found.reason) == ("False", "NamespaceNotAllowed")

    await town.world.until(BackupPolicy, "elsewhere", RED, told)
    phase, reason, _ = await town.restore("elsewhere", {"pvc": {"pvc": "treasure", "repository": PRIVATE}})
    assert (phase, reason) == (RestorePhase.FAILED, "NamespaceNotAllowed")


@pytest.mark.parametrize("way", ["record", "id", "claim"])
async def test_another_namespaces_point_is_not_found_whatever_it_is_called(town: Town, way: str) -> None:
    """In the records, by its id in the shared repository, by the claim that it is of."""
    theirs = await town.point(BLUE)
    sources = {
        "record": {"point": theirs.name},
        "id": {"repositoryPoint": {"repository": REPOSITORY, "point": theirs.uid}},
        "claim": {"pvc": {"pvc": "treasure", "repository": REPOSITORY}},
    }
    phase, reason, said = await town.restore(f"steal-by-{way}", sources[way], pvcName=f"stolen-by-{way}")
    assert (phase, reason) == (RestorePhase.FAILED, "PointNotFound"), said
    assert await town.client.find(PersistentVolumeClaim, f"stolen-by-{way}", RED) is None


async def test_a_restore_into_another_namespace_needs_its_grant(town: Town) -> None:
    """Without one the answer is the same for a namespace that is there and one that is not; with one it is written."""
    mine = (await town.point(RED)).name
    refusals = [
        await town.restore(f"into-{name}", {"point": mine}, namespace=name, pvcName="gift") for name in (BLUE, "nobody")
    ]
    for name, (phase, reason, said) in zip((BLUE, "nobody"), refusals, strict=True):
        assert (phase, reason) == (RestorePhase.FAILED, "RestoreForbidden")
        assert said.startswith(f"Namespace '{name}' does not accept restores from '{RED}'")
    assert await town.client.find(PersistentVolumeClaim, "gift", BLUE) is None

    await install.namespace(town.client, BLUE, {ANNOTATION_ACCEPT_RESTORES: RED})
    taken = await town.restore("over", {"point": mine}, namespace=BLUE, pvcName="treasure")
    given = await town.restore("give", {"point": mine}, namespace=BLUE, pvcName="gift")

    assert taken[:2] == (RestorePhase.FAILED, "TargetExists")
    assert given[0] is RestorePhase.COMPLETED, given
    assert digest(await town.world.image("gift", BLUE)) == digest(town.images[RED])


async def test_classes_of_other_drivers_are_refused(town: Town) -> None:
    """A class may name Secrets and parameters: one that is not of the volume's driver is not used."""
    foreign = {"metadata": {"name": "foreign"}, "driver": "other.csi", "deletionPolicy": "Delete"}
    body = {"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass", **foreign}
    await town.client.apply(VolumeSnapshotClass, body)
    slow = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "foreign"}}
    await town.at.put(slow | {"provisioner": "other.csi"})
    try:
        by_snapshot = await town.backup("class-1", names=["own"], options={"snapshotClassName": "foreign"})
        by_clone = await town.backup("class-2", names=["own"], options={"cloneClassName": "foreign"})
    finally:
        await town.at.kubectl("delete", "volumesnapshotclass/foreign", "storageclass/foreign")
    assert "is of driver other.csi" in by_snapshot.status.message
    assert "is of other.csi, the volume is of" in by_clone.status.message


# What the controller might trust


async def test_snapshots_made_beforehand_under_our_names_are_not_taken(town: Town) -> None:
    """Whether somebody copied our labels, or forged the writer's name as well to point at another's snapshot."""
    at, names = town.at, ("early", "sly")
    for name in names:
        await at.put(claim(name, RED, storageClassName="sandbox-wffc"), town.red)
        selection = {"volumes": {"names": [name]}, "repository": REPOSITORY}
        await at.put(ours("Backup", name, RED, {"selection": selection}), town.red)
    points = [await _appeared(town, name) for name in names]
    content = (await town.point(BLUE)).status.content_name
    sources = [{"persistentVolumeClaimName": "own"}, {"volumeSnapshotContentName": content}]
    for point, source, manager in zip(points, sources, ("kubectl", "tidemark"), strict=True):
        body = _snapshot(f"tidemark-{point.uid}", point.uid, source)
        await at.kubectl("create", f"--field-manager={manager}", "-f", "-", stdin=json.dumps(body), as_=town.red)
    made = [await town.client.get(VolumeSnapshot, f"tidemark-{p.uid}", RED) for p in points]

    await at.put(_user_of(*names), town.red)  # now the claims get their volumes, and their points go on

    for name, point, theirs in zip(names, points, made, strict=True):
        assert (await town.world.backup_ended(name, RED, LONG)).status.phase is BackupPhase.FAILED
        ended = (await town.client.get(RecoveryPoint, point.name, RED)).status
        assert (ended.phase, ended.reason) == (PointPhase.FAILED, "NameTaken"), ended
        left = await town.client.find(VolumeSnapshot, theirs.name, RED)
        # Whoever forges the writer's name may lose the forgery, which nobody can tell from ours, and nothing else.
        assert name == "sly" or (left is not None and left.uid == theirs.uid)
    stolen = await town.client.get(VolumeSnapshotContent, content)
    assert stolen.spec.volume_snapshot_ref.namespace == BLUE
    assert stolen.spec.deletion_policy == "Retain"


async def test_objects_with_our_labels_stay_their_makers_when_a_record_is_swept(town: Town) -> None:
    """What was made for a deleted record goes, and only that: names and labels can be copied."""
    ended = await town.backup("swept", by=BLUE, names=["treasure"])
    assert ended.status.phase is BackupPhase.COMPLETED
    point = await town.at.point(BLUE, "swept")
    labels = {LABEL_POINT_UID: point.uid, LABEL_MANAGED_BY: MANAGED_BY}
    await town.at.put(_snapshot(f"tidemark-{point.uid}", point.uid, {"persistentVolumeClaimName": "own"}), town.red)
    copies = [claim(f"tm-{point.uid}", RED), {"apiVersion": "v1", "kind": "Secret", "metadata": {}}]
    for body in copies:
        body["metadata"] |= {"name": f"tm-{point.uid}", "namespace": RED, "labels": labels}
        await town.at.put(body, town.red)

    await town.client.delete(RecoveryPoint, point.name, BLUE, uid=point.uid)

    content = point.status.content_name
    await town.world.until(VolumeSnapshotContent, content, "", lambda c: c is None)
    for kind, name in (
        (VolumeSnapshot, f"tidemark-{point.uid}"),
        (PersistentVolumeClaim, f"tm-{point.uid}"),
        (Secret, f"tm-{point.uid}"),
    ):
        left = await town.client.find(kind, name, RED)
        assert left is not None
        assert left.metadata.deletion_timestamp is None


async def test_a_namespace_made_again_under_the_same_name_is_another_one(town: Town) -> None:
    """Its points are found again with an administrator's grant, and not by the name."""
    at = town.at
    await at.team("ghost")
    image = await town.world.claim("soul", "ghost")
    await asyncio.to_thread(write, image, 0, b"ghost" * 1000)
    wanted = digest(image)
    assert (await town.backup("first", by="ghost")).status.phase is BackupPhase.COMPLETED
    old = (await town.client.get(Namespace, "ghost")).uid
    await at.drop("ghost")
    person = await at.team("ghost")
    spec = {"source": {"pvc": {"pvc": "soul", "repository": REPOSITORY}}}
    await at.put(ours("Restore", "before", "ghost", spec), person)
    refused = (await town.world.restore_ended("before", "ghost", LONG)).status
    assert (refused.phase, refused.reason) == (RestorePhase.FAILED, "PointNotFound")

    await install.namespace(town.client, "ghost", {ANNOTATION_INHERIT_POINTS: old})
    await at.put(ours("Restore", "after", "ghost", spec), person)

    assert (await town.world.restore_ended("after", "ghost", LONG)).status.phase is RestorePhase.COMPLETED
    assert digest(await town.world.image("soul", "ghost")) == wanted


# Movers and tokens


async def test_movers_hold_no_token_and_their_secrets_do_not_leave_home(town: Town) -> None:
    """Looked at while one is at work; the mode of our own re-homed content may change, the original's may not."""
    image = town.images[RED]
    await asyncio.to_thread(write, image, 0, b"\x07" * (4 << 20))
    slow = {"volumes": {"names": ["own"]}, "repository": REPOSITORY, "options": {"bandwidthLimit": "1Mi"}}
    await town.at.put(ours("Backup", "slow", RED, {"selection": slow}), town.red)
    pod = await _mover(town, await _appeared(town, "slow"))

    spec = json.loads((await town.at.kubectl("get", "pod", pod.name, "-n", HOME, "-o", "json"))[1])["spec"]
    secrets, _ = await town.client.list(Secret)
    contents, _ = await town.client.list(VolumeSnapshotContent)
    ended = await town.world.backup_ended("slow", RED, LONG)

    assert ended.status.phase is BackupPhase.COMPLETED
    assert spec["automountServiceAccountToken"] is False
    assert spec["serviceAccountName"] == "tidemark-mover"
    assert {kind for volume in spec["volumes"] for kind in volume} == {
        "name", "secret", "emptyDir", "persistentVolumeClaim",
    }  # fmt: skip
    key = town.world.key_file.read_text().encode()
    stored = [s for s in secrets if any(key in v or b"testsecret" in v or b'"keys"' in v for v in s.data.values())]
    assert {s.namespace for s in stored} == {HOME}
    assert {s.name.partition("-")[0] for s in stored} == {"vault", "tm"}
    changing = {c.name for c in contents if MODE_CHANGE in c.metadata.annotations}
    assert changing
    assert all(name.startswith("tm-") for name in changing)


async def test_a_token_for_a_cbt_service_is_worth_nothing_to_the_api_server_and_none_of_its_own_is_sent(
    town: Town,
) -> None:
    """A service that asks for the API server's audience gets none, and the whole volume is read instead."""
    service = (await town.client.list(SnapshotMetadataService))[0][0]
    asked = ["create", "token", ACCOUNT, "-n", HOME, "--audience", service.spec.audience]
    token = (await town.at.kubectl(*asked))[1].strip()
    nobody = [
        "--kubeconfig=/dev/null",
        f"--server={town.at.cluster.url}",
        f"--certificate-authority={town.at.cluster.ca}",
    ]
    code, said = await town.at.kubectl(*nobody, f"--token={token}", "get", "volumesnapshots", "-A", ok=False)
    assert code != 0
    assert "must be logged in" in said or "Unauthorized" in said

    patch = {"spec": {"audience": ISSUER}}
    await town.client.merge_patch(SnapshotMetadataService, service.name, "", patch)
    try:
        ended = await town.backup("greedy", names=["own"])
    finally:
        back = {"spec": {"audience": service.spec.audience}}
        await town.client.merge_patch(SnapshotMetadataService, service.name, "", back)
    point = await town.at.point(RED, "greedy")
    assert ended.status.phase is BackupPhase.COMPLETED
    assert (point.status.mode, point.status.fallback_reason) == ("full", "TokenRefused")
    tokens = [r for r in await town.at.requests() if r.resource == "serviceaccounts/token"]
    assert tokens
    assert {r.where for r in tokens} == {f"{HOME}/{ACCOUNT}"}
    assert {tuple(r.body["spec"]["audiences"]) for r in tokens} == {(service.spec.audience,)}


async def test_in_all_of_this_nothing_was_denied_to_the_controller_and_nothing_written_that_is_not_listed(
    town: Town,
) -> None:
    """Whatever tenants try, the controller stays within the page on security."""
    made = await town.at.requests()
    assert audit.denied(made) == []
    assert audit.unlisted(made, audit.rows(audit.PAGE.read_text()), HOME) == []
    changed = [r for r in made if r.resource == "volumesnapshotcontents" and MODE_CHANGE in json.dumps(r.body)]
    assert changed
    assert all(r.name.startswith("tm-") for r in changed)


def _snapshot(name: str, uid: str, source: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {
            "name": name,
            "namespace": RED,
            "labels": {LABEL_POINT_UID: uid, LABEL_MANAGED_BY: MANAGED_BY},
        },
        "spec": {"source": source, "volumeSnapshotClassName": "sandbox"},
    }


def _user_of(*claims: str) -> dict[str, Any]:
    """Return a pod that uses claims for as long as it is let."""
    container = {
        "name": "user", "image": "tidemark", "command": ["sleep", "3600"],
        "volumeDevices": [{"name": name, "devicePath": f"/dev/{name}"} for name in claims],
    }  # fmt: skip
    volumes = [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in claims]
    spec = {"terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False, "volumes": volumes}
    metadata = {"name": "user", "namespace": RED}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec | {"containers": [container]}}


async def _appeared(town: Town, backup: str) -> RecoveryPoint:
    async with asyncio.timeout(LONG):
        while True:
            mine = [p for p in await town.world.points(RED) if p.spec.backup == backup]
            if mine:
                return mine[0]
            await asyncio.sleep(0.1)


async def _mover(town: Town, point: RecoveryPoint) -> Pod:
    async with asyncio.timeout(LONG):
        while True:
            pods, _ = await town.client.list(Pod, HOME, labels=f"{LABEL_POINT_UID}={point.uid}")
            if pods:
                return pods[0]
            await asyncio.sleep(0.1)
