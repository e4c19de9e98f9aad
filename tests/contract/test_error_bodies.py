"""The words of refusals: clients show them, and some decide by them."""

from __future__ import annotations

import pytest

from tests.contract.clusters import Cluster

UNRECOGNIZED = (
    "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: "
)


REJECTED = "the server rejected our request due to an error in our request"


def _maps(ns: str) -> str:
    return f"/api/v1/namespaces/{ns}/configmaps"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"{bad", "invalid character 'b' looking for beginning of object key string ({bad)"),
        (b"{", "unexpected end of JSON input ({)"),
        (b'{"a" 1}', "invalid character '1' after object key ({\"a\" 1})"),
        (b'{"a":1,}', "invalid character '}' looking for beginning of object key string ({\"a\":1,})"),
        (b"[1", "unexpected end of JSON input (5b31)"),
        (b'{"a":1} x', "invalid character 'x' after top-level value ({\"a\":1} x)"),
        (b'"x"', 'json: cannot unmarshal string into Go value of type struct { APIVersion string "json:\\"apiVersion,'),
    ],
)
def test_a_body_that_is_no_object_is_quoted(cluster: Cluster, ns: str, text: bytes, why: str) -> None:
    answer = cluster.post(_maps(ns), text)
    assert (answer.status, answer.body["reason"]) == (400, "BadRequest")
    assert answer.message.startswith(UNRECOGNIZED + why)


@pytest.mark.parametrize(
    ("kind", "body", "code", "message"),
    [
        ("merge", b"{", 400, "error decoding patch: unexpected end of JSON input"),
        ("merge", [1], 400,
         "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}"),
        ("json", {"op": "remove"}, 400,
         "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp"),
        ("json", [{"op": "remove", "path": "/nope"}], 422, REJECTED),
        ("json", [{"op": "turn", "path": "/data"}], 422, REJECTED),
        ("apply", {"kind": "ConfigMap"}, 400, "invalid object type: /, Kind=ConfigMap"),
        ("apply", {"apiVersion": "v1"}, 400, "invalid object type: /v1, Kind="),
    ],
)  # fmt: skip
def test_a_patch_that_cannot_be_applied_is_refused(
    cluster: Cluster, ns: str, kind: str, body: object, code: int, message: str
) -> None:
    cluster.post(_maps(ns), {"metadata": {"name": "a"}}).ok()
    more = {"fieldManager": "one"} if kind == "apply" else {}
    answer = cluster.patch(_maps(ns) + "/a", body, kind, **more)
    assert (answer.status, answer.message) == (code, message)


def test_a_patch_of_no_patch_type_is_an_unsupported_medium(cluster: Cluster, ns: str) -> None:
    cluster.post(_maps(ns), {"metadata": {"name": "a"}}).ok()
    answer = cluster.request("PATCH", _maps(ns) + "/a", {})
    assert (answer.status, answer.body["reason"]) == (415, "UnsupportedMediaType")
    assert answer.message == "415: Unsupported Media Type"


def test_fields_given_twice_are_told(cluster: Cluster, ns: str) -> None:
    body = b'{"metadata":{"name":"d"},"data":{"a":"1","a":"2"}}'
    strict = cluster.post(_maps(ns), body, fieldValidation="Strict")
    assert strict.status == 400
    assert strict.message.endswith('strict decoding error: duplicate field "data.a"')
    warned = cluster.post(_maps(ns), body, fieldValidation="Warn")
    assert warned.ok()["data"] == {"a": "2"}
    assert warned.warnings == ['299 - "duplicate field \\"data.a\\""']
    ignored = cluster.put(_maps(ns) + "/d", body, fieldValidation="Ignore")
    assert (ignored.status, ignored.warnings) == (200, [])


@pytest.mark.parametrize(
    ("selector", "why"),
    [
        ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
        ("a in b", "unable to parse requirement: found 'b' expected: '('"),
        ("a notin (", "unable to parse requirement: found '', expected: ',', ')' or identifier"),
        ("a=b,", "found '', expected: identifier after ','"),
        ("=b", "found '=', expected: !, identifier, or 'end of string'"),
        ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
        ("!", "unable to parse requirement: found '', expected: identifier"),
    ],
)
def test_a_selector_that_cannot_be_read_is_explained(cluster: Cluster, ns: str, selector: str, why: str) -> None:
    answer = cluster.get(_maps(ns), labelSelector=selector)
    assert (answer.status, answer.message) == (400, why)


def test_an_unknown_group_is_no_status_but_plain_text(cluster: Cluster) -> None:
    for path in ("/apis/nope.example.com", "/apis/nope.example.com/v1", "/apis/nope.example.com/v1/things", "/nope"):
        answer = cluster.get(path)
        assert (answer.status, answer.body) == (404, "404 page not found\n")
    for path in ("/apis/batch/v9", "/apis/batch/v9/jobs", "/apis/batch/v1/nope"):
        assert cluster.get(path).body["reason"] == "NotFound"


def test_a_finalizer_without_a_domain_must_be_kubernetes_own(cluster: Cluster, ns: str) -> None:
    answer = cluster.post(_maps(ns), {"metadata": {"name": "f", "finalizers": ["nope"]}})
    detail = 'Invalid value: "nope": name is neither a standard finalizer name nor is it fully qualified'
    assert answer.message == f'ConfigMap "f" is invalid: metadata.finalizers[0]: {detail}'
    made = cluster.post(_maps(ns), {"metadata": {"name": "f", "finalizers": ["orphan", "example.com/x"]}}).ok()
    assert made["metadata"]["finalizers"] == ["orphan", "example.com/x"]
    cluster.patch(_maps(ns) + "/f", {"metadata": {"finalizers": None}}).ok()


def test_a_bad_prefix_and_the_bad_name_made_of_it_are_both_told(cluster: Cluster, ns: str) -> None:
    answer = cluster.post(_maps(ns), {"metadata": {"generateName": "Bad_"}})
    assert answer.status == 422
    assert [c["field"] for c in answer.body["details"]["causes"]] == ["metadata.generateName", "metadata.name"]
    assert cluster.post(_maps(ns), {"metadata": {"generateName": "ends-with-"}}).status == 201


def test_an_owner_must_be_named_whole(cluster: Cluster, ns: str) -> None:
    answer = cluster.post(_maps(ns), {"metadata": {"name": "o", "ownerReferences": [{"kind": "X"}]}})
    fields = [c["field"] for c in answer.body["details"]["causes"]]
    assert fields == [f"metadata.ownerReferences.{f}" for f in ("apiVersion", "name", "uid")]


def test_two_ways_of_propagation_at_once_are_refused(cluster: Cluster, ns: str) -> None:
    cluster.post(_maps(ns), {"metadata": {"name": "a"}}).ok()
    answer = cluster.delete(_maps(ns) + "/a", {"propagationPolicy": "Orphan", "orphanDependents": True})
    assert answer.status == 422
    assert "orphanDependents and deletionPropagation cannot be both set" in answer.message


def test_reviews_without_a_question_are_refused(cluster: Cluster) -> None:
    access = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    answer = cluster.post(access, {"spec": {}})
    assert [c["field"] for c in answer.body["details"]["causes"]] == ["spec.resourceAttributes", "spec.user"]
    assert answer.message.startswith(
        '.authorization.k8s.io "" is invalid: [spec.resourceAttributes: Invalid value: null'
    )
    token = cluster.post("/apis/authentication.k8s.io/v1/tokenreviews", {"spec": {}})
    assert (token.status, token.message) == (400, "token is required for TokenReview in authentication")


def test_a_token_lives_neither_too_short_nor_too_long(cluster: Cluster, ns: str) -> None:
    path = f"/api/v1/namespaces/{ns}/serviceaccounts/default/token"
    for seconds, limit in ((599, "less than 10 minutes"), (2**32 + 1, "larger than 2^32 seconds")):
        answer = cluster.post(path, {"spec": {"expirationSeconds": seconds}})
        start = 'TokenRequest.authentication.k8s.io "" is invalid: spec.expirationSeconds: '
        assert answer.message == f"{start}Invalid value: {seconds}: may not specify a duration {limit}"
