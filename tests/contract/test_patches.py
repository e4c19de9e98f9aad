"""JSON, merge and strategic patches, and server-side apply with its owners."""

from __future__ import annotations

from tests.contract.clusters import Cluster, Obj


def _maps(ns: str) -> str:
    return f"/api/v1/namespaces/{ns}/configmaps"


def _deployments(ns: str) -> str:
    return f"/apis/apps/v1/namespaces/{ns}/deployments"


def _deployment(**container: object) -> Obj:
    return {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "c", "image": "i:1", **container}]},
            },
        },
    }  # fmt: skip


def _owners(obj: Obj) -> dict[tuple[str, str], Obj]:
    return {(m["manager"], m["operation"]): m["fieldsV1"] for m in obj["metadata"].get("managedFields", [])}


def test_a_merge_patch_sets_and_removes(cluster: Cluster, ns: str) -> None:
    cluster.post(_maps(ns), {"metadata": {"name": "a"}, "data": {"x": "1", "y": "2"}}).ok()
    found = cluster.patch(_maps(ns) + "/a", {"data": {"x": None, "z": "3"}}).ok()
    assert found["data"] == {"y": "2", "z": "3"}


def test_a_json_patch_applies_in_order_or_not_at_all(cluster: Cluster, ns: str) -> None:
    cluster.post(_maps(ns), {"metadata": {"name": "a"}, "data": {"x": "1"}}).ok()
    steps = [
        {"op": "test", "path": "/data/x", "value": "1"}, {"op": "add", "path": "/data/y", "value": "2"},
        {"op": "move", "from": "/data/x", "path": "/data/z"},
    ]  # fmt: skip
    assert cluster.patch(_maps(ns) + "/a", steps, "json").ok()["data"] == {"y": "2", "z": "1"}
    failed = cluster.patch(_maps(ns) + "/a", [{"op": "test", "path": "/data/z", "value": "no"}], "json")
    assert failed.status == 422
    missing = cluster.patch(_maps(ns) + "/a", [{"op": "remove", "path": "/data/none"}], "json")
    assert missing.status == 422
    assert cluster.get(_maps(ns) + "/a").ok()["data"] == {"y": "2", "z": "1"}


def test_a_patch_with_a_revision_is_conditional(cluster: Cluster, ns: str) -> None:
    made = cluster.post(_maps(ns), {"metadata": {"name": "a"}}).ok()
    cluster.patch(_maps(ns) + "/a", {"data": {"x": "1"}}).ok()
    rv = made["metadata"]["resourceVersion"]
    stale = cluster.patch(_maps(ns) + "/a", {"metadata": {"resourceVersion": rv}, "data": {"x": "2"}})
    assert stale.status == 409


def test_a_strategic_patch_merges_lists_by_their_keys(cluster: Cluster, ns: str) -> None:
    cluster.post(_deployments(ns), _deployment(env=[{"name": "A", "value": "1"}])).ok()
    change = {"spec": {"template": {"spec": {"containers": [{"name": "c", "env": [{"name": "B", "value": "2"}]}]}}}}
    found = cluster.patch(_deployments(ns) + "/d", change, "strategic").ok()
    container = found["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "i:1"
    assert {e["name"]: e["value"] for e in container["env"]} == {"A": "1", "B": "2"}
    gone = {"spec": {"template": {"spec": {"containers": [{"name": "c", "env": [{"name": "A", "$patch": "delete"}]}]}}}}
    found = cluster.patch(_deployments(ns) + "/d", gone, "strategic").ok()
    assert [e["name"] for e in found["spec"]["template"]["spec"]["containers"][0]["env"]] == ["B"]


def test_finalizers_merge_as_a_set_in_strategic_patches(cluster: Cluster, ns: str) -> None:
    cluster.post(_maps(ns), {"metadata": {"name": "a", "finalizers": ["x.io/a"]}}).ok()
    found = cluster.patch(_maps(ns) + "/a", {"metadata": {"finalizers": ["x.io/b"]}}, "strategic").ok()
    assert sorted(found["metadata"]["finalizers"]) == ["x.io/a", "x.io/b"]
    remove = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["x.io/a", "x.io/b"]}}
    found = cluster.patch(_maps(ns) + "/a", remove, "strategic").ok()
    assert "finalizers" not in found["metadata"]


def test_apply_creates_and_owns(cluster: Cluster, ns: str) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "1"}}
    made = cluster.apply(_maps(ns) + "/a", body, "one")
    assert made.status == 201
    assert _owners(made.body) == {("one", "Apply"): {"f:data": {"f:x": {}}}}
    again = cluster.apply(_maps(ns) + "/a", body, "one")
    assert again.status == 200
    assert again.body["metadata"]["resourceVersion"] == made.body["metadata"]["resourceVersion"]


def test_apply_needs_a_manager(cluster: Cluster, ns: str) -> None:
    answer = cluster.patch(
        _maps(ns) + "/a", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}, "apply"
    )
    assert answer.status == 422
    assert answer.message == (
        'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch'
    )


def test_what_is_no_longer_applied_goes(cluster: Cluster, ns: str) -> None:
    base = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
    cluster.apply(_maps(ns) + "/a", {**base, "data": {"x": "1", "y": "2"}}, "one").ok()
    cluster.patch(_maps(ns) + "/a", {"data": {"z": "3"}}, fieldManager="other").ok()
    found = cluster.apply(_maps(ns) + "/a", {**base, "data": {"x": "1"}}, "one").ok()
    assert found["data"] == {"x": "1", "z": "3"}


def test_another_owners_field_is_a_conflict_until_forced(cluster: Cluster, ns: str) -> None:
    base = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
    cluster.apply(_maps(ns) + "/a", {**base, "data": {"x": "1", "y": "1"}}, "one").ok()
    answer = cluster.apply(_maps(ns) + "/a", {**base, "data": {"x": "2"}}, "two")
    assert answer.status == 409
    assert answer.message == 'Apply failed with 1 conflict: conflict with "one": .data.x'
    assert answer.body["details"]["causes"] == [
        {"reason": "FieldManagerConflict", "message": 'conflict with "one"', "field": ".data.x"}
    ]
    both = cluster.apply(_maps(ns) + "/a", {**base, "data": {"x": "2", "y": "2"}}, "two")
    assert both.message == 'Apply failed with 2 conflicts: conflicts with "one":\n- .data.x\n- .data.y'
    forced = cluster.apply(_maps(ns) + "/a", {**base, "data": {"x": "2"}}, "two", force=True).ok()
    assert forced["data"] == {"x": "2", "y": "1"}
    assert _owners(forced) == {("one", "Apply"): {"f:data": {"f:y": {}}}, ("two", "Apply"): {"f:data": {"f:x": {}}}}


def test_equal_values_are_owned_together(cluster: Cluster, ns: str) -> None:
    base = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "1"}}
    cluster.apply(_maps(ns) + "/a", base, "one").ok()
    found = cluster.apply(_maps(ns) + "/a", base, "two").ok()
    assert set(_owners(found)) == {("one", "Apply"), ("two", "Apply")}
    empty = {k: v for k, v in base.items() if k != "data"}
    found = cluster.apply(_maps(ns) + "/a", empty, "one").ok()
    assert found["data"] == {"x": "1"}


def test_an_update_takes_the_fields_it_changes(cluster: Cluster, ns: str) -> None:
    base = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "1"}}
    cluster.apply(_maps(ns) + "/a", base, "one").ok()
    found = cluster.patch(_maps(ns) + "/a", {"data": {"x": "2"}}, fieldManager="two").ok()
    assert _owners(found) == {("two", "Update"): {"f:data": {"f:x": {}}}}
    answer = cluster.apply(_maps(ns) + "/a", base, "one")
    assert answer.status == 409
    assert answer.message.startswith('Apply failed with 1 conflict: conflict with "two" using v1')


def test_a_create_is_owned_by_its_manager(cluster: Cluster, ns: str) -> None:
    body = {"metadata": {"name": "a", "labels": {"l": "1"}}, "data": {"x": "1"}}
    made = cluster.post(_maps(ns), body, fieldManager="maker").ok()
    owners = _owners(made)
    assert owners == {
        ("maker", "Update"): {"f:data": {".": {}, "f:x": {}}, "f:metadata": {"f:labels": {".": {}, "f:l": {}}}}
    }
    entry = made["metadata"]["managedFields"][0]
    assert (entry["apiVersion"], entry["fieldsType"]) == ("v1", "FieldsV1")


def test_the_manager_is_the_user_agents_first_word(cluster: Cluster, ns: str) -> None:
    made = cluster.post(_maps(ns), {"metadata": {"name": "a"}, "data": {"x": "1"}}).ok()
    assert set(_owners(made)) == {("contract", "Update")}


def test_containers_are_owned_by_name(cluster: Cluster, ns: str) -> None:
    made = cluster.apply(_deployments(ns) + "/d", _deployment(), "one").ok()
    fields = _owners(made)[("one", "Apply")]
    assert fields["f:spec"]["f:template"]["f:spec"] == {
        "f:containers": {'k:{"name":"c"}': {".": {}, "f:image": {}, "f:name": {}}}
    }
    other = _deployment()
    other["spec"] = {"template": {"spec": {"containers": [{"name": "side", "image": "s"}]}}}
    both = cluster.apply(_deployments(ns) + "/d", other, "two").ok()
    assert [c["name"] for c in both["spec"]["template"]["spec"]["containers"]] == ["c", "side"]
    other["spec"] = {}
    back = cluster.apply(_deployments(ns) + "/d", other, "two").ok()
    assert [c["name"] for c in back["spec"]["template"]["spec"]["containers"]] == ["c"]


def test_status_is_applied_through_its_subresource(cluster: Cluster, ns: str) -> None:
    path = f"/api/v1/namespaces/{ns}/persistentvolumeclaims"
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    cluster.post(path, {"metadata": {"name": "p"}, "spec": spec}).ok()
    body = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "p"},
        "status": {"phase": "Bound"},
    }
    found = cluster.apply(path + "/p/status", body, "one", force=True).ok()
    assert found["status"] == {"phase": "Bound"}
    entry = next(m for m in found["metadata"]["managedFields"] if m["manager"] == "one")
    assert entry["subresource"] == "status"
    assert entry["fieldsV1"] == {"f:status": {"f:phase": {}}}


def test_an_apply_of_managed_fields_is_refused(cluster: Cluster, ns: str) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "managedFields": [{"manager": "x"}]}}
    answer = cluster.apply(_maps(ns) + "/a", body, "one")
    assert answer.status == 400
    assert "metadata.managedFields must be nil" in answer.message


def test_managed_fields_can_be_cleared(cluster: Cluster, ns: str) -> None:
    cluster.post(_maps(ns), {"metadata": {"name": "a"}, "data": {"x": "1"}}).ok()
    found = cluster.patch(_maps(ns) + "/a", {"metadata": {"managedFields": [{}]}}).ok()
    assert not found["metadata"].get("managedFields")
