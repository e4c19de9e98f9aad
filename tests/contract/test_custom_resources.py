"""CustomResourceDefinitions: what they serve, validate, default and prune, and how they end."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.clusters import Cluster, Obj

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def definition(group: str, schema: Obj, **version: Any) -> Obj:
    served = {
        "name": "v1", "served": True, "storage": True, "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": {"type": "object", "properties": schema}}, **version,
    }  # fmt: skip
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"gadgets.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "versions": [served],
            "names": {"kind": "Gadget", "plural": "gadgets", "shortNames": ["gd"], "categories": ["gear"]},
        },
    }


SPEC: Obj = {
    "type": "object",
    "required": ["size"],
    "properties": {
        "size": {"type": "integer", "minimum": 1, "maximum": 10},
        "mode": {"type": "string", "enum": ["fast", "slow"], "default": "fast"},
        "title": {"type": "string", "maxLength": 5, "minLength": 2, "pattern": "^[a-z]+$"},
        "when": {"type": "string", "format": "date-time"},
        "items": {"type": "array", "maxItems": 2, "items": {"type": "string"}},
        "flag": {"type": "boolean"},
        "ratio": {"type": "number"},
        "port": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "template": {
            "type": "object",
            "x-kubernetes-embedded-resource": True,
            "x-kubernetes-preserve-unknown-fields": True,
        },
        "parts": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "size": {"type": "integer", "default": 7}},
            },
        },
        "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "nested": {"type": "object", "default": {}, "properties": {"depth": {"type": "integer", "default": 3}}},
        "maybe": {"type": "string", "nullable": True},
    },
}
STATUS: Obj = {
    "type": "object",
    "properties": {"phase": {"type": "string"}, "count": {"type": "integer", "maximum": 5}},
}


def install(cluster: Cluster, schema: Obj, **version: Any) -> str:
    group = f"g{uuid.uuid4().hex[:8]}.example.com"
    cluster.post(DEFINITIONS, definition(group, schema, **version)).ok()
    cluster.eventually(lambda: cluster.get(f"/apis/{group}/v1/gadgets").status == 200)
    return group


@pytest.fixture(scope="module")
def group(cluster: Cluster) -> Iterator[str]:
    """A definition with most of what a schema can say."""
    columns = [
        {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
        {"name": "Mode", "type": "string", "jsonPath": ".spec.mode", "priority": 1},
        {"name": "When", "type": "date", "jsonPath": ".spec.when"},
    ]
    name = install(cluster, {"spec": SPEC, "status": STATUS}, additionalPrinterColumns=columns)
    yield name
    cluster.delete(f"{DEFINITIONS}/gadgets.{name}")


def _path(group: str, ns: str) -> str:
    return f"/apis/{group}/v1/namespaces/{ns}/gadgets"


def _gadget(group: str, name: str = "a", **spec: Any) -> Obj:
    return {"apiVersion": f"{group}/v1", "kind": "Gadget", "metadata": {"name": name}, "spec": {"size": 1, **spec}}


def test_a_definition_becomes_established(cluster: Cluster, group: str) -> None:
    found = cluster.get(f"{DEFINITIONS}/gadgets.{group}").ok()
    conditions = {c["type"]: c for c in found["status"]["conditions"]}
    assert (conditions["NamesAccepted"]["status"], conditions["NamesAccepted"]["reason"]) == ("True", "NoConflicts")
    assert (conditions["Established"]["status"], conditions["Established"]["reason"]) == (
        "True",
        "InitialNamesAccepted",
    )
    assert found["status"]["storedVersions"] == ["v1"]
    assert found["status"]["acceptedNames"]["listKind"] == "GadgetList"
    assert found["spec"]["names"]["singular"] == "gadget"


def test_its_kind_is_discovered(cluster: Cluster, group: str) -> None:
    cluster.eventually(lambda: cluster.get(f"/apis/{group}/v1").status == 200)
    found = {r["name"]: r for r in cluster.get(f"/apis/{group}/v1").ok()["resources"]}
    assert found["gadgets"]["shortNames"] == ["gd"]
    assert found["gadgets"]["categories"] == ["gear"]
    assert found["gadgets"]["namespaced"] is True
    assert sorted(found["gadgets"]["verbs"]) == [
        "create", "delete", "deletecollection", "get", "list", "patch", "update", "watch",
    ]  # fmt: skip
    assert sorted(found["gadgets/status"]["verbs"]) == ["get", "patch", "update"]


def test_defaults_are_filled_in(cluster: Cluster, ns: str, group: str) -> None:
    made = cluster.post(_path(group, ns), _gadget(group, parts=[{"name": "x"}])).ok()
    assert made["spec"] == {"size": 1, "mode": "fast", "parts": [{"name": "x", "size": 7}], "nested": {"depth": 3}}
    assert made["metadata"]["generation"] == 1


def test_unknown_fields_are_pruned_where_nothing_preserves_them(cluster: Cluster, ns: str, group: str) -> None:
    body = _gadget(group, extra=1, free={"any": {"thing": 1}}, labels={"k": "v"})
    made = cluster.post(_path(group, ns), body, fieldValidation="Ignore").ok()
    assert "extra" not in made["spec"]
    assert made["spec"]["free"] == {"any": {"thing": 1}}
    assert made["spec"]["labels"] == {"k": "v"}
    strict = cluster.post(_path(group, ns), _gadget(group, "b", extra=1), fieldValidation="Strict")
    assert strict.status == 400
    assert strict.message == (
        'Gadget in version "v1" cannot be handled as a Gadget: strict decoding error: unknown field "spec.extra"'
    )
    warned = cluster.post(_path(group, ns), _gadget(group, "b", extra=1))
    assert warned.warnings == ['299 - "unknown field \\"spec.extra\\""']


MESSAGES = [
    ({"size": 11}, "spec.size: Invalid value: 11: spec.size in body should be less than or equal to 10"),
    ({"size": 0}, "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"),
    ({"size": "x"}, 'spec.size: Invalid value: "string": spec.size in body must be of type integer: "string"'),
    ({"size": None}, "spec.size: Required value"),
    (
        {"size": 1.5},
        (
            '[spec.size: Invalid value: "number": spec.size in body must be of type integer: "number", '
            '<nil>: Invalid value: "": '
            "Checked value must be of type integer (default format) in spec.size]"
        ),
    ),
    ({"mode": "x"}, 'spec.mode: Unsupported value: "x": supported values: "fast", "slow"'),
    ({"title": "abcdef"}, "spec.title: Too long: may not be more than 5 bytes"),
    ({"title": "a"}, 'spec.title: Invalid value: "a": spec.title in body should be at least 2 chars long'),
    ({"title": "AB"}, "spec.title: Invalid value: \"AB\": spec.title in body should match '^[a-z]+$'"),
    ({"when": "soon"}, 'spec.when: Invalid value: "soon": spec.when in body must be of type date-time: "soon"'),
    ({"items": ["a", "b", "c"]}, "spec.items: Too many: 3: must have at most 2 items"),
    (
        {"items": [1]},
        'spec.items[0]: Invalid value: "integer": spec.items[0] in body must be of type string: "integer"',
    ),
    ({"flag": "yes"}, 'spec.flag: Invalid value: "string": spec.flag in body must be of type boolean: "string"'),
    ({"parts": [{"name": "x"}, {"name": "x"}]}, 'spec.parts[1]: Duplicate value: {"name":"x"}'),
    ({"parts": [{}]}, "spec.parts[0].name: Required value"),
    ({"tags": ["x", "x"]}, 'spec.tags[1]: Duplicate value: "x"'),
    (
        {"labels": {"k": 1}},
        'spec.labels.k: Invalid value: "integer": spec.labels.k in body must be of type string: "integer"',
    ),
    (
        {"port": True},
        (
            '[spec.port: Invalid value: "boolean": spec.port in body must be of type integer,string: "boolean", '
            '<nil>: Invalid value: "": "spec.port" must validate at least one schema (anyOf), '
            'spec.port: Invalid value: "boolean": spec.port in body must be of '
            'type integer: "boolean"]'
        ),
    ),
]


@pytest.mark.parametrize(("spec", "message"), MESSAGES)
def test_a_schema_violation_is_explained(cluster: Cluster, ns: str, group: str, spec: Obj, message: str) -> None:
    answer = cluster.post(_path(group, ns), _gadget(group, **spec))
    assert answer.status == 422
    assert answer.message == f'Gadget.{group} "a" is invalid: {message}'
    assert answer.body["details"]["kind"] == "Gadget"
    assert answer.body["details"]["group"] == group


def test_allowed_values_pass(cluster: Cluster, ns: str, group: str) -> None:
    spec = {
        "size": 10, "port": "http", "ratio": 1, "when": "2026-01-02T03:04:05Z", "tags": ["a", "b"], "maybe": None,
        "template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "anything": 1},
    }  # fmt: skip
    made = cluster.post(_path(group, ns), _gadget(group, **spec)).ok()
    assert made["spec"]["port"] == "http"
    assert made["spec"]["maybe"] is None
    assert made["spec"]["template"]["anything"] == 1


def test_generation_counts_spec_changes_only(cluster: Cluster, ns: str, group: str) -> None:
    cluster.post(_path(group, ns), _gadget(group)).ok()
    path = _path(group, ns) + "/a"
    assert cluster.patch(path, {"spec": {"size": 2}}).ok()["metadata"]["generation"] == 2
    assert cluster.patch(path, {"metadata": {"labels": {"l": "1"}}}).ok()["metadata"]["generation"] == 2
    assert cluster.patch(path + "/status", {"status": {"phase": "x"}}).ok()["metadata"]["generation"] == 2


def test_status_and_spec_are_written_apart(cluster: Cluster, ns: str, group: str) -> None:
    made = cluster.post(_path(group, ns), {**_gadget(group), "status": {"phase": "early"}}).ok()
    assert "status" not in made
    path = _path(group, ns) + "/a"
    both = {"spec": {"size": 5}, "status": {"phase": "x"}, "metadata": {"labels": {"l": "1"}}}
    found = cluster.patch(path + "/status", both).ok()
    assert (found["spec"]["size"], found["status"], found["metadata"].get("labels")) == (1, {"phase": "x"}, None)
    found = cluster.patch(path, {"spec": {"size": 5}, "status": {"phase": "y"}}).ok()
    assert (found["spec"]["size"], found["status"]) == (5, {"phase": "x"})
    wrong = cluster.patch(path + "/status", {"status": {"count": 6}})
    assert wrong.status == 422
    assert "status.count: Invalid value: 6: count in body should be less than or equal to 5" in wrong.message


def test_an_update_needs_a_revision(cluster: Cluster, ns: str, group: str) -> None:
    cluster.post(_path(group, ns), _gadget(group)).ok()
    answer = cluster.put(_path(group, ns) + "/a", _gadget(group, size=2))
    assert answer.status == 422
    assert answer.message == (
        f'gadgets.{group} "a" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update'
    )


def test_strategic_patches_are_for_builtin_kinds(cluster: Cluster, ns: str, group: str) -> None:
    cluster.post(_path(group, ns), _gadget(group)).ok()
    answer = cluster.patch(_path(group, ns) + "/a", {"spec": {"size": 2}}, "strategic")
    assert answer.status == 415
    assert answer.body["reason"] == "UnsupportedMediaType"


def test_apply_owns_list_items_by_their_keys(cluster: Cluster, ns: str, group: str) -> None:
    path = _path(group, ns) + "/a"
    first = cluster.apply(path, _gadget(group, parts=[{"name": "x", "size": 1}]), "one").ok()
    fields = first["metadata"]["managedFields"][0]["fieldsV1"]
    assert fields["f:spec"]["f:parts"] == {'k:{"name":"x"}': {".": {}, "f:name": {}, "f:size": {}}}
    body = {**_gadget(group), "spec": {"parts": [{"name": "y", "size": 2}]}}
    both = cluster.apply(path, body, "two").ok()
    assert [p["name"] for p in both["spec"]["parts"]] == ["x", "y"]
    clash = cluster.apply(path, {**_gadget(group), "spec": {"parts": [{"name": "x", "size": 2}]}}, "two")
    assert clash.message == 'Apply failed with 1 conflict: conflict with "one": .spec.parts[name="x"].size'


def test_columns_are_those_of_the_definition(cluster: Cluster, ns: str, group: str) -> None:
    cluster.post(_path(group, ns), _gadget(group, size=4)).ok()
    accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}
    found = cluster.get(_path(group, ns), headers=accept).ok()
    assert [(c["name"], c["type"], c["priority"]) for c in found["columnDefinitions"]] == [
        ("Name", "string", 0), ("Size", "integer", 0), ("Mode", "string", 1), ("When", "date", 0),
    ]  # fmt: skip
    assert found["rows"][0]["cells"] == ["a", 4, "fast", None]


# rules

RULED: Obj = {
    "type": "object",
    "x-kubernetes-validations": [
        {"rule": "!has(self.low) || !has(self.high) || self.low <= self.high", "message": "low must not be above high"},
        {
            "rule": "!has(self.every) || duration(self.every) >= duration('1m')",
            "messageExpression": "'every is ' + self.every",
        },
        {
            "rule": "!has(self.a) || !has(self.b)",
            "message": "a or b",
            "reason": "FieldValueForbidden",
            "fieldPath": ".b",
        },
        {"rule": "has(oldSelf.kind) == has(self.kind)", "message": "kind cannot come or go"},
    ],
    "properties": {
        "low": {"type": "integer"},
        "high": {"type": "integer"},
        "a": {"type": "string"},
        "b": {"type": "string"},
        "every": {"type": "string", "maxLength": 10},
        "kind": {
            "type": "string",
            "maxLength": 10,
            "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "kind is immutable"}],
        },
        "names": {
            "type": "array",
            "maxItems": 5,
            "items": {"type": "string", "maxLength": 10},
            "x-kubernetes-validations": [{"rule": "self.all(n, n.matches('^[a-z]+$'))"}],
        },
        "size": {
            "type": "string",
            "maxLength": 10,
            "x-kubernetes-validations": [{"rule": "quantity(self).isGreaterThan(quantity('1Gi'))"}],
        },
    },
}


@pytest.fixture(scope="module")
def ruled(cluster: Cluster) -> Iterator[str]:
    name = install(cluster, {"spec": RULED})
    yield name
    cluster.delete(f"{DEFINITIONS}/gadgets.{name}")


RULE_MESSAGES = [
    ({"low": 2, "high": 1}, "spec: Invalid value: low must not be above high"),
    ({"every": "1s"}, "spec: Invalid value: every is 1s"),
    ({"a": "x", "b": "x"}, "spec.b: Forbidden: a or b"),
    ({"names": ["A"]}, "spec.names: Invalid value: failed rule: self.all(n, n.matches('^[a-z]+$'))"),
    ({"size": "1Mi"}, "spec.size: Invalid value: \"1Mi\": failed rule: quantity(self).isGreaterThan(quantity('1Gi'))"),
]


@pytest.mark.parametrize(("spec", "message"), RULE_MESSAGES)
def test_a_broken_rule_is_explained(cluster: Cluster, ns: str, ruled: str, spec: Obj, message: str) -> None:
    body = {"apiVersion": f"{ruled}/v1", "kind": "Gadget", "metadata": {"name": "a"}, "spec": spec}
    answer = cluster.post(_path(ruled, ns), body)
    assert answer.status == 422
    assert answer.message == f'Gadget.{ruled} "a" is invalid: {message}'


def test_rules_that_hold_let_pass_and_transitions_look_back(cluster: Cluster, ns: str, ruled: str) -> None:
    spec = {"low": 1, "high": 2, "every": "1h30m", "kind": "x", "names": ["ab"], "size": "2Gi"}
    body = {"apiVersion": f"{ruled}/v1", "kind": "Gadget", "metadata": {"name": "a"}, "spec": spec}
    cluster.post(_path(ruled, ns), body).ok()
    path = _path(ruled, ns) + "/a"
    assert cluster.patch(path, {"spec": {"low": 2}}).status == 200
    changed = cluster.patch(path, {"spec": {"kind": "y"}})
    assert changed.message.endswith('spec.kind: Invalid value: "y": kind is immutable')
    gone = cluster.patch(path, {"spec": {"kind": None}})
    assert "kind cannot come or go" in gone.message


def test_a_rule_that_cannot_be_read_is_refused(cluster: Cluster) -> None:
    spec = {
        "type": "object",
        "x-kubernetes-validations": [{"rule": "self.a &&& 1"}],
        "properties": {"a": {"type": "string"}},
    }
    answer = cluster.post(DEFINITIONS, definition("bad.example.com", {"spec": spec}))
    assert answer.status == 422
    assert "x-kubernetes-validations[0].rule: Invalid value" in answer.message
    assert "compilation failed" in answer.message


def test_a_misnamed_definition_is_refused(cluster: Cluster) -> None:
    body = definition("bad.example.com", {})
    body["metadata"]["name"] = "other.bad.example.com"
    answer = cluster.post(DEFINITIONS, body)
    assert answer.status == 422
    assert (
        'metadata.name: Invalid value: "other.bad.example.com": must be spec.names.plural+"."+spec.group'
        in answer.message
    )


def test_a_schema_without_types_is_refused(cluster: Cluster) -> None:
    answer = cluster.post(
        DEFINITIONS, definition("bad.example.com", {"spec": {"properties": {"a": {"type": "string"}}}})
    )
    assert answer.status == 422
    assert (
        "spec.validation.openAPIV3Schema.properties[spec].type: Required value: must not be empty for specified "
        "object fields" in answer.message
    )


def test_deleting_a_definition_deletes_its_objects(cluster: Cluster, ns: str) -> None:
    group = install(cluster, {"spec": SPEC})
    held = _gadget(group, "held")
    held["metadata"]["finalizers"] = ["x.io/wait"]
    cluster.post(_path(group, ns), held).ok()
    cluster.post(_path(group, ns), _gadget(group, "free")).ok()
    cluster.delete(f"{DEFINITIONS}/gadgets.{group}").ok()
    cluster.eventually(lambda: cluster.get(_path(group, ns) + "/free").status == 404)
    assert cluster.get(_path(group, ns) + "/held").ok()["metadata"]["deletionTimestamp"]
    assert cluster.get(f"{DEFINITIONS}/gadgets.{group}").status == 200
    cluster.patch(_path(group, ns) + "/held", {"metadata": {"finalizers": None}})
    cluster.eventually(lambda: cluster.get(f"{DEFINITIONS}/gadgets.{group}").status == 404)
    cluster.eventually(lambda: cluster.get(_path(group, ns)).status == 404)


def test_the_scale_subresource_reads_and_writes_replicas(cluster: Cluster, ns: str) -> None:
    replicas = {"type": "object", "properties": {"replicas": {"type": "integer"}}}
    scale = {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}
    group = install(cluster, {"spec": replicas, "status": replicas}, subresources={"status": {}, "scale": scale})
    body = {"apiVersion": f"{group}/v1", "kind": "Gadget", "metadata": {"name": "a"}, "spec": {"replicas": 2}}
    cluster.post(_path(group, ns), body).ok()
    found = cluster.get(_path(group, ns) + "/a/scale").ok()
    assert (found["kind"], found["apiVersion"], found["spec"]) == ("Scale", "autoscaling/v1", {"replicas": 2})
    cluster.patch(_path(group, ns) + "/a/scale", {"spec": {"replicas": 5}}).ok()
    assert cluster.get(_path(group, ns) + "/a").ok()["spec"]["replicas"] == 5
    cluster.delete(f"{DEFINITIONS}/gadgets.{group}")
