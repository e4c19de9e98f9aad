"""A real API server's acceptance is the test of our CRDs."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.api.crd import definition
from orchestrator.api.tidemark import KINDS
from tests.api.real_apiserver import RealServer, find_tool, real_apiserver
from tests.waiting import SHORT

pytestmark = pytest.mark.real

GROUP = "/apis/tidemark.dev/v1alpha1"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    etcd, apiserver = find_tool("etcd"), find_tool("kube-apiserver")
    if etcd is None or apiserver is None:
        pytest.skip("needs etcd and kube-apiserver in KUBEBUILDER_ASSETS")
    with real_apiserver(etcd, apiserver, tmp_path_factory.mktemp("real")) as running:
        for kind in KINDS:
            status, answer = running.call("POST", DEFINITIONS, definition(kind))
            assert status == 201, answer["message"]
        for kind in KINDS:
            wait_established(running, f"{kind.RESOURCE.plural}.{kind.RESOURCE.group}")
        yield running


def wait_established(server: RealServer, name: str) -> None:
    deadline = time.monotonic() + SHORT
    while time.monotonic() < deadline:
        _, crd = server.call("GET", f"{DEFINITIONS}/{name}")
        conditions = {c["type"]: c["status"] for c in crd.get("status", {}).get("conditions", [])}
        if conditions.get("Established") == "True":
            return
        time.sleep(0.1)  # a real process: there is nothing to await
    raise AssertionError(f"{name} was not established: {conditions}")


def made(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "tidemark.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def collection(plural: str) -> str:
    return f"{GROUP}/{plural}" if plural == "backuprepositories" else f"{GROUP}/namespaces/default/{plural}"


REPOSITORY = {"url": "s3://bucket/prefix", "encryptionSecret": "key", "allowedNamespaces": ["*"]}

GOOD: list[tuple[str, str, dict[str, Any]]] = [
    ("backuppolicies", "BackupPolicy", {}),
    (
        "backuppolicies",
        "BackupPolicy",
        {
            "volumes": {"matchLabels": {"app": "db"}, "names": ["a"], "excludeNames": ["b"]},
            "schedule": {"cron": "30 2 * * *", "timeZone": "Europe/Oslo", "jitter": "10m"},
            "objective": {"rpo": "1h30m"},
            "retention": {"keepLast": 3, "daily": 7, "keepWithin": "2d", "snapshots": 2},
            "repository": "main",
            "options": {"parallelism": 8, "bandwidthLimit": "50Mi", "fullEvery": "30d", "chunkSize": "64Ki"},
            "suspend": True,
        },
    ),
    ("backups", "Backup", {"policy": "nightly", "slot": "2026-11-22T02:30:00Z"}),
    ("backups", "Backup", {"selection": {"options": {"chunkSize": "1Mi"}}}),
    ("backups", "Backup", {"selection": {}, "full": True, "expireAfter": "7d"}),
    (
        "recoverypoints",
        "RecoveryPoint",
        {"pvcName": "data", "pvcUid": "u", "policy": {"name": "nightly", "uid": "p"}, "options": {"parallelism": 4}},
    ),
    ("restores", "Restore", {"source": {"point": "p"}, "target": {"pvcName": "new"}}),
    ("restores", "Restore", {"source": {"backup": "b"}, "target": {"namePrefix": "old-"}}),
    ("restores", "Restore", {"source": {"repositoryPoint": {"repository": "main", "point": "id"}}}),
    ("backuprepositories", "BackupRepository", REPOSITORY | {"maintenance": {"schedule": {"every": "12h"}}}),
]

BAD: list[tuple[str, str, dict[str, Any], str]] = [
    ("backuppolicies", "BackupPolicy", {"schedule": {}}, "set exactly one of cron and every"),
    ("backuppolicies", "BackupPolicy", {"schedule": {"cron": "* * * * *", "every": "1h"}}, "exactly one of cron and"),
    ("backuppolicies", "BackupPolicy", {"objective": {"rpo": "soon"}}, "spec.objective.rpo"),
    ("backuppolicies", "BackupPolicy", {"retention": {"keepLast": -1}}, "should be greater than or equal to 0"),
    ("backuppolicies", "BackupPolicy", {"options": {"chunkSize": "128Ki"}}, 'supported values: "64Ki", "256Ki", "1Mi"'),
    ("backups", "Backup", {}, "set exactly one of policy"),
    ("backups", "Backup", {"policy": "a", "selection": {}}, "set exactly one of policy"),
    ("restores", "Restore", {"source": {}}, "set exactly one of point, pvc, backup and repositoryPoint"),
    ("restores", "Restore", {"source": {"point": "a", "backup": "b"}}, "set exactly one of point"),
    ("restores", "Restore", {"source": {"backup": "b"}, "target": {"pvcName": "x"}}, "target.pvcName can't name"),
    ("backuprepositories", "BackupRepository", REPOSITORY | {"url": "ftp://x"}, "spec.url"),
    ("backuprepositories", "BackupRepository", REPOSITORY | {"allowedNamespaces": []}, "spec.allowedNamespaces"),
    (
        "backuprepositories",
        "BackupRepository",
        REPOSITORY | {"maintenance": {"schedule": {}}},
        "set exactly one of cron and every",
    ),
]


def test_every_definition_is_structural_and_takes_its_names(server: RealServer) -> None:
    for kind in KINDS:
        _, crd = server.call("GET", f"{DEFINITIONS}/{kind.RESOURCE.plural}.{kind.RESOURCE.group}")
        conditions = {c["type"]: c for c in crd["status"]["conditions"]}
        assert conditions["NamesAccepted"]["status"] == "True"
        assert "NonStructuralSchema" not in conditions, conditions["NonStructuralSchema"]["message"]


@pytest.mark.parametrize(("plural", "kind", "spec"), GOOD)
def test_a_good_object_is_accepted_and_nothing_is_pruned_or_added(
    server: RealServer, plural: str, kind: str, spec: dict[str, Any]
) -> None:
    # when
    path = f"{collection(plural)}?fieldValidation=Strict"
    status, answer = server.call("POST", path, made(kind, "", spec) | {"metadata": {"generateName": "good-"}})
    # then
    assert status == 201, answer
    assert answer["spec"] == spec


@pytest.mark.parametrize(("plural", "kind", "spec", "message"), BAD)
def test_a_bad_object_is_refused_with_what_to_do(
    server: RealServer, plural: str, kind: str, spec: dict[str, Any], message: str
) -> None:
    status, answer = server.call("POST", collection(plural), made(kind, "bad", spec))
    assert status == 422
    assert message in answer["message"]


@pytest.mark.parametrize(
    ("plural", "kind", "spec", "switches"),
    [
        ("backups", "Backup", {"policy": "nightly"}, ["cancel"]),
        ("recoverypoints", "RecoveryPoint", {"pvcName": "data", "pvcUid": "u"}, ["prune", "cancel"]),
        ("restores", "Restore", {"source": {"point": "p"}}, ["cancel"]),
    ],
)
def test_a_spec_is_fixed_but_for_its_one_way_switches(
    server: RealServer, plural: str, kind: str, spec: dict[str, Any], switches: list[str]
) -> None:
    # given
    path = f"{collection(plural)}/fixed"
    status, _ = server.call("POST", collection(plural), made(kind, "fixed", spec))
    assert status == 201
    patch = "application/merge-patch+json"
    # when something else is changed
    changed = {"readBack": False} if kind == "Restore" else {"full": True}
    status, answer = server.call("PATCH", path, {"spec": changed}, patch)
    # then
    assert status == 422
    assert f"the spec of a {kind} is fixed" in answer["message"]
    for switch in switches:
        # then a switch goes on, once, and does not come back
        assert server.call("PATCH", path, {"spec": {switch: False}}, patch)[0] == 200
        assert server.call("PATCH", path, {"spec": {switch: True}}, patch)[0] == 200
        for back in (False, None):
            status, answer = server.call("PATCH", path, {"spec": {switch: back}}, patch)
            assert status == 422
            assert f"{switch} can't be taken back" in answer["message"]


def test_the_url_of_a_repository_is_fixed(server: RealServer) -> None:
    server.call("POST", collection("backuprepositories"), made("BackupRepository", "fixed", REPOSITORY))
    status, answer = server.call(
        "PATCH",
        f"{collection('backuprepositories')}/fixed",
        {"spec": {"url": "s3://elsewhere"}},
        "application/merge-patch+json",
    )
    assert status == 422
    assert "url is fixed" in answer["message"]


def test_a_status_is_written_only_through_its_subresource(server: RealServer) -> None:
    # given
    body = made("Backup", "status", {"policy": "nightly"})
    _, answer = server.call("POST", collection("backups"), copy.deepcopy(body) | {"status": {"phase": "Completed"}})
    assert "status" not in answer
    # when
    status, answer = server.call(
        "PATCH",
        f"{collection('backups')}/status/status",
        {"status": {"phase": "Running", "startTime": "2026-11-22T02:30:00Z", "conditions": []}},
        "application/merge-patch+json",
    )
    # then
    assert status == 200
    assert answer["status"]["phase"] == "Running"


def test_bytes_without_allocated_are_accepted(server: RealServer) -> None:
    """A rung that could not tell allocated from not leaves it out."""
    server.call("POST", collection("recoverypoints"), made("RecoveryPoint", "bytes", {"pvcName": "d", "pvcUid": "u"}))
    body = {"volume": 1, "read": 0, "uploaded": 0}
    status, answer = server.call(
        "PATCH",
        f"{collection('recoverypoints')}/bytes/status",
        {"status": {"bytes": body | {"allocated": None}}},
        "application/merge-patch+json",
    )
    assert status == 200, answer
    assert answer["status"]["bytes"] == body
