"""The doctor at three in the morning: what is well, what is weak, what is broken, and what it could not look at."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from orchestrator.api.foreign.cluster import ClusterRole, ClusterRoleBinding, LeaseObject
from orchestrator.api.foreign.core import Namespace, PersistentVolumeClaim, Pod, Secret, StorageClass
from orchestrator.api.foreign.snapshot import SnapshotMetadataService, VolumeSnapshotClass
from orchestrator.api.meta import K8sObject, Resource
from orchestrator.api.tidemark import Backup, BackupPolicy, BackupRepository, RecoveryPoint, Restore
from orchestrator.clock import SystemClock
from orchestrator.config import Settings
from orchestrator.demo import install
from orchestrator.doctor import Finding, Verdict, examine
from orchestrator.doctor.checks import run_check
from orchestrator.doctor.cluster import api_server, definitions
from orchestrator.doctor.controller import controller, permissions
from orchestrator.doctor.finding import Check, Place
from orchestrator.doctor.repositories import repositories
from orchestrator.doctor.storage import drivers
from orchestrator.doctor.work import backups, leftovers, policies
from orchestrator.kube.client import Client
from orchestrator.kube.transport import Transport
from tests.cli.clusters import SETTINGS, Cluster, install_all, serving

ROOT = Path(__file__).parents[2]
HOME = SETTINGS.namespace
OK, WARNING, FAILED = Verdict.OK, Verdict.WARNING, Verdict.FAILED
CHART_LABELS = {"app.kubernetes.io/name": "tidemark", "app.kubernetes.io/component": "controller"}


class Role(K8sObject, frozen=True, kw_only=True):
    RESOURCE = Resource("rbac.authorization.k8s.io", "v1", "Role", "roles", namespaced=True)


class RoleBinding(K8sObject, frozen=True, kw_only=True):
    RESOURCE = Resource("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", namespaced=True)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with serving(tmp_path_factory.mktemp("installed")) as running:
        running.do(install_all)
        yield running


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """The same cluster for all, as it was after the installation."""
    MADE.clear()
    yield shared
    shared.do(_clean)


MADE: list[tuple[type[K8sObject], str, str]] = []


async def _clean(client: Client) -> None:
    for kind, name, namespace in reversed(MADE):
        if kind is Namespace:
            labels = {"pod-security.kubernetes.io/enforce": None}
            await client.merge_patch(Namespace, name, "", {"metadata": {"labels": labels}})
            continue
        found = await client.find(kind, name, namespace)
        if found is not None:
            if found.metadata.finalizers:
                await client.merge_patch(kind, name, namespace, {"metadata": {"finalizers": None}})
            await client.delete(kind, name, namespace, uid=found.uid, grace_s=0)
    await install.grant_cbt(client, SETTINGS)


def finds(cluster: Cluster, check: Check, *, now: datetime | None = None) -> list[Finding]:
    """Run one check as the admin."""

    async def look(client: Client) -> list[Finding]:
        here = now or datetime.now(UTC)
        return (await run_check(check, Place(client, SETTINGS, here, here, "v1.30.0")))[0]

    return cluster.do(look)


def told(found: list[Finding], verdict: Verdict) -> str:
    """Return all messages and remedies of one verdict; each that is not well has a remedy."""
    assert all(finding.remedy for finding in found if finding.verdict is not OK)
    return "\n".join(f"{one.message} -> {one.remedy}" for one in found if one.verdict is verdict)


def make(cluster: Cluster, kind: type[K8sObject], name: str, namespace: str = "", **body: Any) -> None:
    """Apply an object, and its status if one is given."""
    metadata = {"name": name, **({"namespace": namespace} if namespace else {}), **body.pop("metadata", {})}
    status = body.pop("status", None)
    MADE.append((kind, name, namespace))

    async def act(client: Client) -> None:
        await client.apply(kind, {"metadata": metadata, **body})
        if status is not None:
            await client.merge_patch(kind, name, namespace, {"status": status}, subresource="status")

    cluster.do(act)


# The cluster


def test_kinds_and_namespace_that_are_there_are_well(cluster: Cluster) -> None:
    assert [f.verdict for f in [*finds(cluster, api_server), *finds(cluster, definitions)]] == [OK, OK]


def test_a_home_where_no_mover_may_start_is_told(cluster: Cluster) -> None:
    make(cluster, Namespace, HOME, metadata={"labels": {"pod-security.kubernetes.io/enforce": "restricted"}})
    assert "no mover can start" in told(finds(cluster, api_server), FAILED)


def test_who_may_not_look_is_told_so_for_every_check_and_nothing_breaks(cluster: Cluster) -> None:
    async def look() -> list[Finding]:
        transport = await Transport.open(cluster.kubeconfig("nobody"))
        async with Client(transport) as client:
            return await examine(client, SETTINGS, SystemClock(), transport)

    found = asyncio.run(look())
    assert {f.check for f in found if "could not look any further" in f.message} == {
        "api-server", "definitions", "controller", "permissions", "drivers", "repositories", "policies", "backups",
        "leftovers",
    }  # fmt: skip
    assert FAILED not in {f.verdict for f in found}


@pytest.mark.parametrize(
    ("ahead_s", "asked", "verdict", "said"),
    [
        (0, True, OK, "agree about the time"),
        (40, True, WARNING, "s ahead of the API server's"),
        (-40, True, WARNING, "s behind the API server's"),
        (0, False, WARNING, "could not look: the API server said no time"),
    ],
)
def test_a_clock_that_is_off_is_told(cluster: Cluster, ahead_s: int, asked: bool, verdict: Verdict, said: str) -> None:
    class Off(SystemClock):
        def now(self) -> datetime:
            return super().now() + timedelta(seconds=ahead_s)

    async def look() -> list[Finding]:
        transport = await Transport.open(cluster.kubeconfig())
        async with Client(transport) as client:
            return await examine(client, SETTINGS, Off(), transport if asked else None)

    mine = [finding for finding in asyncio.run(look()) if finding.check == "clocks"]
    assert said in told(mine, verdict)


# The controller


@pytest.mark.parametrize(
    ("age_s", "verdict", "said"),
    [
        (5, OK, "pod-1 leads"),
        (300, FAILED, "no controller has led since"),
        (-60, WARNING, "renews the lease with a clock"),
    ],
)
def test_the_lease_tells_whether_a_controller_leads(cluster: Cluster, age_s: int, verdict: Verdict, said: str) -> None:
    assert "no controller has ever held the lease" in told(finds(cluster, controller), FAILED)
    renewed = (datetime.now(UTC) - timedelta(seconds=age_s)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    make(cluster, LeaseObject, "tidemark-controller", HOME, spec={"holderIdentity": "pod-1", "renewTime": renewed})
    assert said in told(finds(cluster, controller), verdict)


def _pod(cluster: Cluster, **state: Any) -> None:
    container = {"name": "controller", "image": "tidemark"}
    statuses = [{"name": "controller", "image": "", "imageID": "", "ready": False, "restartCount": 9, "state": state}]
    metadata, status = {"labels": CHART_LABELS}, {"containerStatuses": statuses}
    make(
        cluster, Pod, "controller-1", HOME, metadata=metadata, spec={"containers": [container]}, status=status
    )  # fmt: skip


def test_a_pod_that_does_not_run_is_told(cluster: Cluster) -> None:
    _pod(cluster, waiting={"reason": "CrashLoopBackOff", "message": "back-off 5m"})
    said = told(finds(cluster, controller), FAILED)
    assert "pod controller-1 does not run: CrashLoopBackOff: back-off 5m" in said
    assert "--previous" in said


def _chart_roles(change: Callable[[str], str] = lambda text: text) -> list[dict[str, Any]]:
    text = (ROOT / "charts/tidemark/templates/rbac-controller.yaml").read_text()
    text = re.sub(r"\{\{- include [^}]*\}\}", "{}", text).replace("{{ .Release.Namespace }}", HOME)
    return [role for role in yaml.safe_load_all(change(text)) if role]


def _grant(cluster: Cluster, roles: list[dict[str, Any]]) -> None:
    kinds = {"ClusterRole": ClusterRole, "ClusterRoleBinding": ClusterRoleBinding, "Role": Role}
    for role in roles:
        kind: type[K8sObject] = kinds.get(role["kind"], RoleBinding)
        MADE.append((kind, role["metadata"]["name"], role["metadata"].get("namespace", "")))
        cluster.do(lambda client, kind=kind, role=role: client.apply(kind, role))  # type: ignore[misc]


def test_the_charts_roles_allow_all_that_the_doctor_asks_about(cluster: Cluster) -> None:
    _grant(cluster, _chart_roles())
    found = finds(cluster, permissions)
    assert [f.verdict for f in found] == [OK], found


def test_a_right_that_is_cut_is_named_with_what_it_costs(cluster: Cluster) -> None:
    # given the chart's roles without Secrets and without the token, and a pod that runs as the account
    def cut(text: str) -> str:
        assert "resources: [secrets]" in text
        return text.replace("resources: [secrets]", "resources: [configmaps]").replace("serviceaccounts/token", "x")

    _grant(cluster, _chart_roles(cut))
    _pod(cluster, running={})
    said = told(finds(cluster, permissions), FAILED)
    assert f"may not get secrets in {HOME}: repositories can't be opened" in said
    assert f"may not create serviceaccounts/token in {HOME}: CBT services can't be asked" in said
    assert "volumesnapshots" not in said


def test_an_account_that_nobody_runs_as_is_no_failure_but_its_cbt_right_counts(cluster: Cluster) -> None:
    found = finds(cluster, permissions)
    assert "rights that a controller needs" in told(found, WARNING)
    assert told(found, FAILED) == ""
    cluster.do(lambda client: _forget(client, ClusterRoleBinding, "tidemark-cbt-client"))
    assert "may not get volumesnapshots in every namespace" in told(finds(cluster, permissions), FAILED)


async def _forget(client: Client, kind: type[K8sObject], name: str) -> None:
    await client.delete(kind, name, uid=(await client.get(kind, name)).uid)


# Storage


def _driver(cluster: Cluster, driver: str = "csi.test", snapshot_classes: tuple[bool, ...] = (True,)) -> None:
    make(cluster, StorageClass, "fast", provisioner=driver)
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "fast"}
    make(cluster, PersistentVolumeClaim, "data", "default", spec=spec)
    for number, default in enumerate(snapshot_classes):
        annotations = {"snapshot.storage.kubernetes.io/is-default-class": "true"} if default else {}
        make(
            cluster, VolumeSnapshotClass, f"class-{number}", metadata={"annotations": annotations}, driver=driver,
            deletionPolicy="Delete",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ((), "Make one, if the driver can snapshot"),
        ((True, True), "only default"),
        ((False, False), "only default"),
    ],
)
def test_a_snapshot_class_that_is_not_there_or_not_clear_is_told(
    cluster: Cluster, classes: tuple[bool, ...], said: str
) -> None:
    _driver(cluster, snapshot_classes=classes)
    found = told(finds(cluster, drivers), WARNING)
    assert "csi.test: " in found
    assert said in found


def _service(cluster: Cluster, address: str, ca: bytes, audience: str = "cbt") -> list[Finding]:
    import base64

    spec = {"address": address, "audience": audience, "caCert": base64.b64encode(ca).decode()}
    make(cluster, SnapshotMetadataService, "csi.test", spec=spec)
    return finds(cluster, drivers)


def test_without_a_metadata_service_volumes_are_read_whole(cluster: Cluster) -> None:
    _driver(cluster)
    assert "volumes are read whole" in told(finds(cluster, drivers), WARNING)


@pytest.mark.parametrize(
    ("names", "host", "strange", "verdict", "said"),
    [
        (["localhost"], "localhost", False, OK, "tells what changed"),
        (["127.0.0.1"], "127.0.0.1", False, OK, "tells what changed"),
        (["sidecar.example"], "localhost", False, FAILED, "subject alternative name DNS:localhost"),
        (["localhost"], "127.0.0.1", False, FAILED, "subject alternative name IP:127.0.0.1"),
        (["localhost"], "localhost", True, FAILED, "is not trusted"),
    ],
)
def test_a_service_is_judged_by_its_certificate(
    cluster: Cluster, names: list[str], host: str, strange: bool, verdict: Verdict, said: str
) -> None:
    ca, other = trustme.CA(), trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["h2"])
    ca.issue_cert(*names).configure_cert(context)
    _driver(cluster)

    async def look(client: Client) -> list[Finding]:
        def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=context)
        async with server:
            address = f"{host}:{server.sockets[0].getsockname()[1]}"
            spec = {
                "address": address,
                "audience": "cbt",
                "caCert": _base64((other if strange else ca).cert_pem.bytes()),
            }
            MADE.append((SnapshotMetadataService, "csi.test", ""))
            await client.apply(SnapshotMetadataService, {"metadata": {"name": "csi.test"}, "spec": spec})
            now = datetime.now(UTC)
            return (await run_check(drivers, Place(client, SETTINGS, now, now, "v1.30.0")))[0]

    found = cluster.do(look)
    assert said in told(found, verdict)
    assert len(found) == 1


def _base64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("address", "audience", "verdict", "said"),
    [
        ("nowhere", "cbt", FAILED, "address is not host:port"),
        ("localhost:1", "", FAILED, "names no audience"),
        ("127.0.0.1:1", "cbt", WARNING, "can't be reached from here"),
        ("sidecar.kube-system.svc:443", "cbt", WARNING, "could not look: sidecar.kube-system.svc is a name inside"),
    ],
)
def test_a_service_that_can_not_be_asked_is_told(
    cluster: Cluster, address: str, audience: str, verdict: Verdict, said: str
) -> None:
    _driver(cluster)
    found = told(_service(cluster, address, trustme.CA().cert_pem.bytes(), audience), verdict)
    assert said in found
    assert verdict is FAILED or "kubectl exec" in found


def test_a_bundle_that_is_none_is_told(cluster: Cluster) -> None:
    _driver(cluster)
    assert "holds no PEM certificate" in told(_service(cluster, "localhost:1", b"nonsense"), FAILED)


# Repositories


def _repository(cluster: Cluster, url: str = "s3://bucket/x", **status: Any) -> None:
    spec = {"url": url, "encryptionSecret": "key", "credentialsSecret": "store", "allowedNamespaces": ["*"]}
    make(cluster, BackupRepository, "vault", spec=spec, status=status)


GOOD_KEY = "5e" * 32
PAIR = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "hunter2hunter2"}


def test_a_repository_with_whole_secrets_is_well(cluster: Cluster) -> None:
    _repository(cluster, ready="True", lastChecked=datetime.now(UTC).isoformat())
    make(cluster, Secret, "key", HOME, stringData={"master.key": GOOD_KEY})
    make(cluster, Secret, "store", HOME, stringData=PAIR)
    assert [(f.verdict, f.message) for f in finds(cluster, repositories)] == [(OK, "vault is ready")]


@pytest.mark.parametrize(
    ("key", "store", "said"),
    [
        (None, PAIR, f"Secret {HOME}/key is missing"),
        ({"other": GOOD_KEY}, PAIR, f"Secret {HOME}/key has no entry master.key"),
        ({"master.key": "tooshort"}, PAIR, "neither 32 bytes"),
        ({"master.key": GOOD_KEY}, None, f"Secret {HOME}/store is missing"),
        ({"master.key": GOOD_KEY}, {"access_key_id": "AKIDEXAMPLE"}, "access_key_id without secret_access_key"),
        ({"master.key": GOOD_KEY}, PAIR | {"password": "hunter2hunter2"}, "takes no option password"),
        ({"master.key": GOOD_KEY}, PAIR | {"region": ""}, "empty: region"),
    ],
)
def test_a_secret_that_is_not_whole_is_told_and_never_shown(
    cluster: Cluster, key: dict[str, str] | None, store: dict[str, str] | None, said: str
) -> None:
    _repository(cluster)
    for name, data in (("key", key), ("store", store)):
        if data is not None:
            make(cluster, Secret, name, HOME, stringData=data)
    found = finds(cluster, repositories)
    assert said in told(found, FAILED)
    assert not re.search("hunter2|5e5e|AKID|tooshort", str(found))


def _verified(cluster: Cluster, condition: dict[str, Any] | None, **status: Any) -> list[Finding]:
    """Let a ready repository have been verified."""
    make(cluster, Secret, "key", HOME, stringData={"master.key": GOOD_KEY})
    make(cluster, Secret, "store", HOME, stringData=PAIR)
    now = datetime.now(UTC).isoformat()
    conditions = [{"type": "Verified", "lastTransitionTime": now, **condition}] if condition else []
    _repository(cluster, ready="True", lastChecked=now, conditions=conditions, **status)
    return finds(cluster, repositories)


def test_a_repository_with_damage_is_told_with_what_hurts(cluster: Cluster) -> None:
    damage = {"status": "False", "reason": "Damaged", "message": "1 damaged objects hurt 2 points. Hurt: shop/db-1."}
    found = _verified(cluster, damage, lastVerified=datetime.now(UTC).isoformat())
    assert "shop/db-1" in told(found, FAILED)


def test_a_verification_that_failed_is_a_warning(cluster: Cluster) -> None:
    found = _verified(cluster, {"status": "False", "reason": "VerificationFailed", "message": "1 namespaces"})
    assert "1 namespaces" in told(found, WARNING)


def test_a_good_verification_is_told_with_its_time(cluster: Cluster) -> None:
    good = {"status": "True", "reason": "Verified", "message": ""}
    found = _verified(cluster, good, lastVerified=datetime.now(UTC).isoformat())
    assert [f.verdict for f in found] == [OK, OK]
    assert "was verified at" in found[1].message


def test_a_repository_that_was_ready_long_ago_is_no_longer_well(cluster: Cluster) -> None:
    _repository(cluster, ready="True", lastChecked="2026-03-01T00:00:00Z")
    assert "was ready when it was last looked at" in told(finds(cluster, repositories), WARNING)
    held = {"type": "Ready", "status": "False", "reason": "WrongKey", "message": "another key"}
    _repository(cluster, ready="False", conditions=[held])
    assert "vault is not ready: WrongKey: another key" in told(finds(cluster, repositories), FAILED)


def test_a_lock_that_was_not_renewed_and_a_bucket_out_of_sight_are_told(cluster: Cluster) -> None:
    make(cluster, Secret, "key", HOME, stringData={"master.key": GOOD_KEY})
    make(cluster, Secret, "store", HOME, stringData=PAIR | {"endpoint": "http://127.0.0.1:9", "region": "us-east-1"})
    spec = {"url": "s3://bucket/x", "encryptionSecret": "key", "credentialsSecret": "store", "allowedNamespaces": ["*"]}
    spec["objectLock"] = {"retention": "30d", "renewEvery": "7d"}
    status = {"ready": "True", "lastChecked": _ago(minutes=1), "objectLock": {"undeletableFor": "23d", "kept": "False"}}
    make(cluster, BackupRepository, "vault", spec=spec, status=status)
    found = finds(cluster, repositories)
    assert "was not renewed within 7d" in told(found, WARNING)
    assert "could not look at its bucket" in told(found, WARNING)
    assert "hunter2" not in str(found)


# The work


def _ago(**time: float) -> str:
    return (datetime.now(UTC) - timedelta(**time)).isoformat()


@pytest.mark.parametrize(
    ("spec", "status", "verdict", "said"),
    [
        ({}, {"volumes": 2, "protected": 2, "oldestPointTime": _ago(minutes=5)}, OK, "2 claims within the RPO of 1h"),
        (
            {},
            {"volumes": 2, "protected": 2, "oldestPointTime": _ago(hours=3), "worst": [{"pvc": "db"}]},
            FAILED,
            "(db)",
        ),
        ({}, {"volumes": 2, "protected": 1}, WARNING, "1 of 2 claims have no point yet"),
        ({}, {"volumes": 0}, WARNING, "selects no claim"),
        ({"suspend": True}, {"volumes": 1}, WARNING, "is suspended"),
        ({}, {"observedGeneration": 0, "volumes": 1}, WARNING, "no controller has looked at it as it is now"),
        (
            {},
            {"conditions": [{"type": "ScheduleValid", "status": "False", "reason": "BadSchedule", "message": "never"}]},
            FAILED,
            "BadSchedule: never",
        ),
    ],
)
def test_a_policy_is_judged_by_what_it_promises(
    cluster: Cluster, spec: dict[str, Any], status: dict[str, Any], verdict: Verdict, said: str
) -> None:
    assert "nothing is protected" in told(finds(cluster, policies), WARNING)
    status = {"observedGeneration": 1, **status}
    make(cluster, BackupPolicy, "hourly", "default", spec={"objective": {"rpo": "1h"}, **spec}, status=status)
    assert said in told(finds(cluster, policies), verdict)


def test_a_newest_backup_that_failed_and_a_delta_that_was_none_are_told(cluster: Cluster) -> None:
    old = {"phase": "Failed", "reason": "Old", "completionTime": _ago(hours=5)}
    make(cluster, Backup, "a-1", "default", spec={"policy": "a"}, status=old)
    good = {"phase": "Completed", "completionTime": _ago(hours=1)}
    make(cluster, Backup, "a-2", "default", spec={"policy": "a"}, status=good)
    assert finds(cluster, backups)[-1].verdict is OK
    wrong = {"phase": "Failed", "reason": "SnapshotFailed", "message": "no space", "completionTime": _ago(hours=1)}
    make(cluster, Backup, "b-1", "default", spec={"policy": "b"}, status=wrong)
    full = {"phase": "Completed", "requestedMode": "delta", "mode": "full", "fallbackReason": "DriverUnavailable"}
    make(cluster, RecoveryPoint, "p", "default", spec={"pvcName": "db", "pvcUid": "u", "backup": "b-1"}, status=full)
    found = finds(cluster, backups)
    assert "default/b-1: SnapshotFailed: no space" in told(found, FAILED)
    assert "Old" not in told(found, FAILED)
    assert "DriverUnavailable (default/db)" in told(found, WARNING)


def test_what_is_stuck_or_left_behind_is_told(cluster: Cluster) -> None:
    assert "nothing stuck or left behind" in told(finds(cluster, leftovers), OK)
    held = {"type": "Progressing", "status": "False", "reason": "QuotaExceeded", "message": "no room"}
    status = {"phase": "Filling", "startTime": _ago(hours=3), "conditions": [held]}
    make(cluster, Restore, "back", "default", spec={"source": {"point": "p"}}, status=status)
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    make(cluster, PersistentVolumeClaim, "tm-x", HOME, metadata={"labels": {"tidemark.dev/point-uid": "x"}}, spec=spec)
    said = told(finds(cluster, leftovers), WARNING)
    assert "restore default/back is Filling" in said
    assert "QuotaExceeded: no room" in said
    assert "1 objects belong to no point or restore: PersistentVolumeClaim tm-x" in said


def test_an_installation_under_another_name_is_looked_for_there(cluster: Cluster) -> None:
    async def look(client: Client) -> list[Finding]:
        return await examine(client, Settings(namespace="elsewhere"), SystemClock())

    assert "there is no namespace elsewhere" in told(cluster.do(look), FAILED)
