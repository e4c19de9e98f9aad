"""The small kinds that a controller lives by: Leases, Events, and tokens bound to objects."""

from __future__ import annotations

import datetime

import pytest

from tests.contract.clusters import Cluster, Obj


def _leases(ns: str) -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{ns}/leases"


def _lease(**spec: object) -> Obj:
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}, "spec": spec}


def test_a_lease_keeps_microseconds_and_changes_hands_by_revision(cluster: Cluster, ns: str) -> None:
    at = "2026-01-02T03:04:05.678901Z"
    held = cluster.post(
        _leases(ns), _lease(holderIdentity="one", leaseDurationSeconds=15, renewTime=at, acquireTime=at)
    ).ok()
    assert held["spec"] == {"holderIdentity": "one", "leaseDurationSeconds": 15, "renewTime": at, "acquireTime": at}
    taken = {**held, "spec": {**held["spec"], "holderIdentity": "two", "leaseTransitions": 1}}
    cluster.put(_leases(ns) + "/l", taken).ok()
    late = cluster.put(_leases(ns) + "/l", held)
    assert (late.status, late.body["reason"]) == (409, "Conflict")
    assert "the object has been modified; please apply your changes to the latest version" in late.message
    assert cluster.get(_leases(ns) + "/l").ok()["spec"]["holderIdentity"] == "two"


def test_a_lease_that_makes_no_sense_is_refused(cluster: Cluster, ns: str) -> None:
    for field in ("leaseDurationSeconds", "leaseTransitions"):
        value = 0 if field == "leaseDurationSeconds" else -1
        answer = cluster.post(_leases(ns), _lease(holderIdentity="one", **{field: value}))
        assert (answer.status, answer.body["reason"]) == (422, "Invalid")
        assert f"spec.{field}: Invalid value: {value}" in answer.message


@pytest.mark.parametrize(
    ("at", "why"),
    [
        ("yesterday", 'cannot parse "yesterday" as "2006"'),
        ("2026-01-01T00:00:00Z", 'cannot parse "Z" as ".000000"'),
        ("2026-01-01T00:00:00.123Z", 'cannot parse ".123Z" as ".000000"'),
        ("2026-01-01 00:00:00.000000Z", 'cannot parse " 00:00:00.000000Z" as "T"'),
        ("2026-01-01T00:00:00.000000", 'cannot parse "" as "Z07:00"'),
        ("2026-13-01T00:00:00.000000Z", "month out of range"),
        ("2026-02-30T00:00:00.000000Z", "day out of range"),
    ],
)
def test_a_leases_times_have_exactly_six_digits(cluster: Cluster, ns: str, at: str, why: str) -> None:
    answer = cluster.post(_leases(ns), _lease(renewTime=at))
    assert (answer.status, answer.body["reason"]) == (400, "BadRequest")
    assert answer.message.startswith(f'Lease in version "v1" cannot be handled as a Lease: parsing time "{at}"')
    assert answer.message.endswith(why)


def test_other_times_are_read_as_rfc_3339(cluster: Cluster, ns: str) -> None:
    path = f"/api/v1/namespaces/{ns}/events"
    for n, (at, code) in enumerate(
        [("2026-01-01T00:00:00Z", 201), ("2026-01-01T00:00:00.5+02:00", 201), ("2026-01-01", 400), ("", 400)]
    ):
        answer = cluster.post(path, {**_event(ns, firstTimestamp=at), "metadata": {"name": f"e{n}"}})
        assert answer.status == code, (at, answer.body)


def _event(ns: str, **more: object) -> Obj:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": ns, "apiVersion": "v1"},
        "reason": "Tested", "message": "it works", "type": "Normal", "count": 1, "source": {"component": "suite"},
        "firstTimestamp": now, "lastTimestamp": now, **more,
    }  # fmt: skip


def test_events_are_chosen_by_what_they_are_about(cluster: Cluster, ns: str) -> None:
    path = f"/api/v1/namespaces/{ns}/events"
    cluster.post(path, _event(ns)).ok()
    cluster.post(path, {**_event(ns, type="Warning", reason="Other"), "metadata": {"name": "f"}}).ok()
    for selector, names in (
        ("involvedObject.kind=Pod,involvedObject.name=p", ["e", "f"]),
        ("type=Warning", ["f"]),
        ("reason=Tested,type!=Warning", ["e"]),
        ("involvedObject.name=q", []),
        (f"involvedObject.namespace={ns},source=suite", ["e", "f"]),
    ):
        found = cluster.get(path, fieldSelector=selector).ok()
        assert [o["metadata"]["name"] for o in found["items"]] == names, selector


def test_an_event_counts_on_by_patch(cluster: Cluster, ns: str) -> None:
    path = f"/api/v1/namespaces/{ns}/events"
    cluster.post(path, _event(ns)).ok()
    cluster.patch(path + "/e", {"count": 2, "message": "again"}, "strategic").ok()
    assert cluster.get(path + "/e").ok()["count"] == 2


def test_an_event_belongs_to_its_objects_namespace(cluster: Cluster, ns: str) -> None:
    about = {"kind": "Pod", "name": "p", "namespace": "elsewhere"}
    answer = cluster.post(f"/api/v1/namespaces/{ns}/events", _event(ns, involvedObject=about))
    assert (answer.status, answer.body["reason"]) == (422, "Invalid")
    assert 'involvedObject.namespace: Invalid value: "elsewhere": does not match event.namespace' in answer.message


def test_a_token_is_bound_only_to_what_is_there(cluster: Cluster, ns: str) -> None:
    path = f"/api/v1/namespaces/{ns}/serviceaccounts/default/token"
    secret = cluster.post(f"/api/v1/namespaces/{ns}/secrets", {"metadata": {"name": "s"}}).ok()

    def ask(**bound: str) -> tuple[int, str]:
        reference = {"apiVersion": "v1", "kind": "Secret", **bound}
        spec = {"audiences": ["a.example.com"], "expirationSeconds": 600, "boundObjectRef": reference}
        answer = cluster.post(path, {"spec": spec})
        return answer.status, answer.message

    assert ask(name="s", uid=secret["metadata"]["uid"])[0] == 201
    assert ask(name="absent")[0] == 404
    status, message = ask(name="s", uid="00000000-0000-0000-0000-000000000000")
    assert status == 409
    assert "the UID in the bound object reference" in message
    spec = {"boundObjectRef": {"apiVersion": "v1", "kind": "ConfigMap", "name": "s"}}
    assert cluster.post(path, {"spec": spec}).status == 400


def test_a_token_without_an_audience_is_for_the_api_server_itself(cluster: Cluster, ns: str) -> None:
    made = cluster.post(f"/api/v1/namespaces/{ns}/serviceaccounts/default/token", {"spec": {}}).ok()
    review = {"spec": {"token": made["status"]["token"]}}
    told = cluster.post("/apis/authentication.k8s.io/v1/tokenreviews", review).ok()["status"]
    assert told["authenticated"]
    assert told["audiences"] == made["spec"]["audiences"]
    assert told["user"]["groups"] == [
        "system:serviceaccounts", f"system:serviceaccounts:{ns}", "system:authenticated",
    ]  # fmt: skip
    who = cluster.get("/api/v1/namespaces", token=made["status"]["token"])
    assert who.status == 403
    assert f"system:serviceaccount:{ns}:default" in who.message
