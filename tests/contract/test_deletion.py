"""Deletion: finalizers, preconditions, owners, pods' grace, namespaces, collections."""

from __future__ import annotations

import pytest

from tests.contract.clusters import Cluster, Obj


def _maps(ns: str) -> str:
    return f"/api/v1/namespaces/{ns}/configmaps"


def _make(cluster: Cluster, ns: str, name: str, **meta: object) -> Obj:
    made: Obj = cluster.post(_maps(ns), {"metadata": {"name": name, **meta}}).ok()
    return made


def _owner(obj: Obj, **more: object) -> Obj:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": obj["metadata"]["name"],
        "uid": obj["metadata"]["uid"],
        **more,
    }


def test_a_delete_answers_with_a_status(cluster: Cluster, ns: str) -> None:
    made = _make(cluster, ns, "a")
    answer = cluster.delete(_maps(ns) + "/a").ok()
    assert answer == {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": {"name": "a", "kind": "configmaps", "uid": made["metadata"]["uid"]},
    }  # fmt: skip
    assert cluster.get(_maps(ns) + "/a").status == 404


def test_a_finalizer_holds_an_object_until_it_is_taken_off(cluster: Cluster, ns: str) -> None:
    _make(cluster, ns, "a", finalizers=["x.io/wait"])
    pending = cluster.delete(_maps(ns) + "/a")
    assert pending.status == 200
    assert pending.body["kind"] == "ConfigMap"
    assert pending.body["metadata"]["deletionTimestamp"]
    assert pending.body["metadata"]["deletionGracePeriodSeconds"] == 0
    refused = cluster.patch(_maps(ns) + "/a", {"metadata": {"finalizers": ["x.io/wait", "x.io/more"]}})
    assert refused.status == 422
    assert refused.message == (
        'ConfigMap "a" is invalid: metadata.finalizers: Forbidden: no new finalizers can be added if the object is '
        'being deleted, found new finalizers []string{"x.io/more"}'
    )
    gone = cluster.patch(_maps(ns) + "/a", {"metadata": {"finalizers": None}})
    assert gone.status == 200
    assert cluster.get(_maps(ns) + "/a").status == 404


def test_preconditions_protect_another_life_of_the_name(cluster: Cluster, ns: str) -> None:
    made = _make(cluster, ns, "a")
    uid = made["metadata"]["uid"]
    wrong = cluster.delete(_maps(ns) + "/a", {"preconditions": {"uid": "other"}})
    assert wrong.status == 409
    assert wrong.message == (
        'Operation cannot be fulfilled on ConfigMap "a": the UID in the precondition (other) does not match the UID '
        f"in record ({uid}). The object might have been deleted and then recreated"
    )
    cluster.patch(_maps(ns) + "/a", {"data": {"x": "1"}}).ok()
    stale = {"preconditions": {"uid": uid, "resourceVersion": made["metadata"]["resourceVersion"]}}
    assert cluster.delete(_maps(ns) + "/a", stale).status == 409
    assert cluster.delete(_maps(ns) + "/a", {"preconditions": {"uid": uid}}).status == 200


def test_deleting_what_is_not_there_is_not_found(cluster: Cluster, ns: str) -> None:
    assert cluster.delete(_maps(ns) + "/none").status == 404


def test_dependents_follow_their_owner(cluster: Cluster, ns: str) -> None:
    owner = _make(cluster, ns, "owner")
    _make(cluster, ns, "dependent", ownerReferences=[_owner(owner)])
    cluster.delete(_maps(ns) + "/owner").ok()
    cluster.eventually(lambda: cluster.get(_maps(ns) + "/dependent").status == 404)


def test_a_dependent_of_two_owners_stays_with_the_second(cluster: Cluster, ns: str) -> None:
    first, second = _make(cluster, ns, "first"), _make(cluster, ns, "second")
    _make(cluster, ns, "dependent", ownerReferences=[_owner(first), _owner(second)])
    cluster.delete(_maps(ns) + "/first").ok()

    def released() -> bool:
        found = cluster.get(_maps(ns) + "/dependent").ok()
        return [r["name"] for r in found["metadata"]["ownerReferences"]] == ["second"]

    cluster.eventually(released)


def test_an_owner_that_never_was_takes_the_dependent_with_it(cluster: Cluster, ns: str) -> None:
    ghost = {"apiVersion": "v1", "kind": "ConfigMap", "name": "ghost", "uid": "11111111-2222-3333-4444-555555555555"}
    _make(cluster, ns, "dependent", ownerReferences=[ghost])
    cluster.eventually(lambda: cluster.get(_maps(ns) + "/dependent").status == 404)


def test_an_owner_in_another_namespace_does_not_count(cluster: Cluster, ns: str) -> None:
    other = cluster.namespace()
    owner = _make(cluster, other, "owner")
    _make(cluster, ns, "dependent", ownerReferences=[_owner(owner)])
    cluster.eventually(lambda: cluster.get(_maps(ns) + "/dependent").status == 404)
    assert cluster.get(_maps(other) + "/owner").status == 200
    cluster.delete(f"/api/v1/namespaces/{other}")


def test_orphans_are_let_loose(cluster: Cluster, ns: str) -> None:
    owner = _make(cluster, ns, "owner")
    _make(cluster, ns, "dependent", ownerReferences=[_owner(owner)])
    cluster.delete(_maps(ns) + "/owner", {"propagationPolicy": "Orphan"}).ok()
    cluster.eventually(lambda: cluster.get(_maps(ns) + "/owner").status == 404)
    found = cluster.get(_maps(ns) + "/dependent").ok()
    assert not found["metadata"].get("ownerReferences")


def test_a_foreground_delete_waits_for_blocking_dependents(cluster: Cluster, ns: str) -> None:
    owner = _make(cluster, ns, "owner")
    _make(cluster, ns, "dependent", finalizers=["x.io/wait"], ownerReferences=[_owner(owner, blockOwnerDeletion=True)])
    pending = cluster.delete(_maps(ns) + "/owner", {"propagationPolicy": "Foreground"}).ok()
    assert pending["metadata"]["finalizers"] == ["foregroundDeletion"]
    cluster.eventually(lambda: cluster.get(_maps(ns) + "/dependent").ok()["metadata"].get("deletionTimestamp"))
    assert cluster.get(_maps(ns) + "/owner").status == 200
    cluster.patch(_maps(ns) + "/dependent", {"metadata": {"finalizers": None}}).ok()
    cluster.eventually(lambda: cluster.get(_maps(ns) + "/owner").status == 404)


def test_a_pod_without_a_node_goes_at_once(cluster: Cluster, ns: str) -> None:
    path = f"/api/v1/namespaces/{ns}/pods"
    cluster.post(path, {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}).ok()
    assert cluster.delete(path + "/p").status == 200
    assert cluster.get(path + "/p").status == 404


def test_a_running_pod_is_left_to_its_node(cluster: Cluster, ns: str) -> None:
    path = f"/api/v1/namespaces/{ns}/pods"
    spec = {"containers": [{"name": "c", "image": "i"}], "nodeName": "n1"}
    cluster.post(path, {"metadata": {"name": "p"}, "spec": spec}).ok()
    pending = cluster.delete(path + "/p").ok()
    assert pending["metadata"]["deletionGracePeriodSeconds"] == 30
    assert pending["metadata"]["deletionTimestamp"] > pending["metadata"]["creationTimestamp"]
    assert cluster.get(path + "/p").status == 200
    shorter = cluster.delete(path + "/p", {"gracePeriodSeconds": 5}).ok()
    assert shorter["metadata"]["deletionGracePeriodSeconds"] == 5
    cluster.delete(path + "/p", {"gracePeriodSeconds": 0}).ok()
    assert cluster.get(path + "/p").status == 404


def test_a_collection_is_deleted_by_selector(cluster: Cluster, ns: str) -> None:
    _make(cluster, ns, "a", labels={"go": "yes"})
    _make(cluster, ns, "b")
    answer = cluster.delete(_maps(ns), labelSelector="go=yes")
    assert answer.status == 200
    assert cluster.get(_maps(ns) + "/a").status == 404
    assert cluster.get(_maps(ns) + "/b").status == 200


def test_a_namespace_goes_with_its_contents_and_waits_for_finalizers(cluster: Cluster) -> None:
    ns = cluster.namespace()
    _make(cluster, ns, "plain")
    _make(cluster, ns, "held", finalizers=["x.io/wait"])
    cluster.delete(f"/api/v1/namespaces/{ns}").ok()

    def remaining() -> bool:
        found = cluster.get(f"/api/v1/namespaces/{ns}").ok()
        conditions = {c["type"]: c for c in found["status"].get("conditions", [])}
        assert found["status"]["phase"] == "Terminating"
        held = conditions.get("NamespaceFinalizersRemaining")
        return held is not None and held["status"] == "True" and "x.io/wait in 1 resource instances" in held["message"]

    cluster.eventually(remaining)
    cluster.eventually(lambda: cluster.get(_maps(ns) + "/plain").status == 404)
    refused = cluster.post(_maps(ns), {"metadata": {"name": "late"}})
    assert refused.status == 403
    assert refused.message == (
        f'configmaps "late" is forbidden: unable to create new content in namespace {ns} because it is being terminated'
    )
    assert refused.body["details"]["causes"][0] == {
        "reason": "NamespaceTerminating",
        "message": f"namespace {ns} is being terminated",
        "field": "metadata.namespace",
    }
    cluster.patch(_maps(ns) + "/held", {"metadata": {"finalizers": None}}).ok()
    cluster.eventually(lambda: cluster.get(f"/api/v1/namespaces/{ns}").status == 404)


@pytest.mark.parametrize("name", ["default", "kube-system"])
def test_the_systems_namespaces_cannot_be_deleted(cluster: Cluster, name: str) -> None:
    answer = cluster.delete(f"/api/v1/namespaces/{name}", dryRun="All")
    assert answer.status == 403
    assert answer.message == f'namespaces "{name}" is forbidden: this namespace may not be deleted'


def test_a_jobs_pods_stay_unless_the_delete_says_otherwise(cluster: Cluster, ns: str) -> None:
    path = f"/apis/batch/v1/namespaces/{ns}/jobs"
    template = {"spec": {"containers": [{"name": "c", "image": "i"}], "restartPolicy": "Never"}}
    for name in ("kept", "swept"):
        job = cluster.post(path, {"metadata": {"name": name}, "spec": {"template": template}}).ok()
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job["metadata"]["uid"]}
        _make(cluster, ns, f"child-of-{name}", ownerReferences=[owner])
    answer = cluster.delete(path + "/kept")
    assert "child pods are preserved by default" in answer.warnings[0]
    cluster.delete(path + "/swept", {"propagationPolicy": "Background"}).ok()
    cluster.eventually(lambda: cluster.get(_maps(ns) + "/child-of-swept").status == 404)
    cluster.eventually(lambda: cluster.get(path + "/kept").status == 404)
    assert "ownerReferences" not in cluster.get(_maps(ns) + "/child-of-kept").ok()["metadata"]
