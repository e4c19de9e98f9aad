"""Lists in chunks, selectors, and watches: what arrives, from where on, and when it ends."""

from __future__ import annotations

import itertools
from typing import Any

from tests.contract.clusters import Cluster, Obj


def _maps(ns: str) -> str:
    return f"/api/v1/namespaces/{ns}/configmaps"


def _make(cluster: Cluster, ns: str, *names: str, **labels: str) -> list[Obj]:
    body: Any = {"labels": labels} if labels else {}
    return [cluster.post(_maps(ns), {"metadata": {"name": n, **body}}).ok() for n in names]


def _names(found: Obj) -> list[str]:
    return [o["metadata"]["name"] for o in found["items"] if o["metadata"]["name"] != "kube-root-ca.crt"]


def test_a_list_is_sorted_and_has_a_revision(cluster: Cluster, ns: str) -> None:
    _make(cluster, ns, "b", "a", "c")
    found = cluster.get(_maps(ns)).ok()
    assert (found["kind"], found["apiVersion"]) == ("ConfigMapList", "v1")
    assert _names(found) == ["a", "b", "c"]
    assert int(found["metadata"]["resourceVersion"]) > 0
    assert all("kind" not in o for o in found["items"])


def test_label_selectors_choose(cluster: Cluster, ns: str) -> None:
    _make(cluster, ns, "a", tier="web", env="dev")
    _make(cluster, ns, "b", tier="db")
    _make(cluster, ns, "c", env="prod")
    cases = {
        "tier=web": ["a"], "tier==web": ["a"], "tier!=web": ["b", "c"], "tier": ["a", "b"], "!tier": ["c"],
        "tier in (web,db)": ["a", "b"], "tier notin (web)": ["b", "c"], "tier=web,env=dev": ["a"], "tier=x": [],
    }  # fmt: skip
    for selector, expected in cases.items():
        assert _names(cluster.get(_maps(ns), labelSelector=selector).ok()) == expected, selector


def test_bad_selectors_are_refused(cluster: Cluster, ns: str) -> None:
    assert cluster.get(_maps(ns), labelSelector="a in b").status == 400
    wrong = cluster.get(_maps(ns), fieldSelector="spec.x=1")
    assert wrong.status == 400
    assert wrong.message == '"spec.x" is not a known field selector: only "metadata.name", "metadata.namespace"'
    pods = cluster.get(f"/api/v1/namespaces/{ns}/pods", fieldSelector="spec.x=1")
    assert pods.message == "field label not supported: spec.x"


def test_field_selectors_choose(cluster: Cluster, ns: str) -> None:
    _make(cluster, ns, "a", "b")
    assert _names(cluster.get(_maps(ns), fieldSelector="metadata.name=a").ok()) == ["a"]
    assert _names(cluster.get(_maps(ns), fieldSelector="metadata.name!=a").ok()) == ["b"]
    assert _names(cluster.get("/api/v1/configmaps", fieldSelector=f"metadata.namespace={ns}").ok()) == ["a", "b"]


def test_chunks_continue_at_the_first_chunks_revision(cluster: Cluster, ns: str) -> None:
    path = f"/api/v1/namespaces/{ns}/secrets"
    for name in ("a", "b", "c", "d"):
        cluster.post(path, {"metadata": {"name": name}}).ok()
    first = cluster.get(path, limit=2).ok()
    assert _names(first) == ["a", "b"]
    cluster.delete(path + "/c").ok()
    cluster.post(path, {"metadata": {"name": "cc"}}).ok()
    rest = cluster.get(path, **{"limit": 2, "continue": first["metadata"]["continue"]}).ok()
    assert _names(rest) == ["c", "d"]
    assert rest["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert not rest["metadata"].get("continue")


def test_remaining_items_are_counted(cluster: Cluster, ns: str) -> None:
    for name in ("a", "b", "c"):
        cluster.post(f"/api/v1/namespaces/{ns}/secrets", {"metadata": {"name": name}}).ok()
    found = cluster.get(f"/api/v1/namespaces/{ns}/secrets", limit=1).ok()
    assert found["metadata"]["remainingItemCount"] == 2


def test_a_broken_continue_token_is_refused(cluster: Cluster, ns: str) -> None:
    assert cluster.get(_maps(ns), **{"limit": 1, "continue": "nonsense"}).status == 400


def test_a_list_at_an_exact_revision_shows_the_past(cluster: Cluster, ns: str) -> None:
    made = _make(cluster, ns, "a")[0]
    _make(cluster, ns, "b")
    rv = made["metadata"]["resourceVersion"]
    past = cluster.get(_maps(ns), resourceVersion=rv, resourceVersionMatch="Exact").ok()
    assert _names(past) == ["a"]
    assert past["metadata"]["resourceVersion"] == rv


def test_a_revision_from_the_future_times_out(cluster: Cluster, ns: str) -> None:
    answer = cluster.get(_maps(ns), resourceVersion="999999999999", resourceVersionMatch="NotOlderThan")
    assert answer.status == 504
    assert "Too large resource version" in answer.message
    assert answer.body["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"


def test_a_watch_from_a_list_sees_what_follows(cluster: Cluster, ns: str) -> None:
    rv = cluster.get(_maps(ns)).ok()["metadata"]["resourceVersion"]
    _make(cluster, ns, "a")
    cluster.patch(_maps(ns) + "/a", {"data": {"k": "v"}}).ok()
    cluster.delete(_maps(ns) + "/a").ok()
    with cluster.watch(_maps(ns), resourceVersion=rv) as events:
        seen = list(itertools.islice((e for e in events if e["object"]["metadata"]["name"] == "a"), 3))
    assert [e["type"] for e in seen] == ["ADDED", "MODIFIED", "DELETED"]
    revisions = [int(e["object"]["metadata"]["resourceVersion"]) for e in seen]
    assert revisions == sorted(set(revisions))


def test_a_watch_without_a_revision_starts_with_what_is_there(cluster: Cluster, ns: str) -> None:
    _make(cluster, ns, "a")
    with cluster.watch(_maps(ns), fieldSelector="metadata.name=a") as events:
        assert next(events)["type"] == "ADDED"
        cluster.patch(_maps(ns) + "/a", {"data": {"k": "v"}}).ok()
        assert next(events)["type"] == "MODIFIED"


def test_moving_in_and_out_of_a_selector_is_seen_as_coming_and_going(cluster: Cluster, ns: str) -> None:
    rv = _make(cluster, ns, "a")[0]["metadata"]["resourceVersion"]
    with cluster.watch(_maps(ns), resourceVersion=rv, labelSelector="on=yes") as events:
        cluster.patch(_maps(ns) + "/a", {"metadata": {"labels": {"on": "yes"}}}).ok()
        cluster.patch(_maps(ns) + "/a", {"data": {"k": "v"}}).ok()
        cluster.patch(_maps(ns) + "/a", {"metadata": {"labels": {"on": "no"}}}).ok()
        assert [next(events)["type"] for _ in range(3)] == ["ADDED", "MODIFIED", "DELETED"]


def test_a_watch_list_ends_its_first_part_with_a_bookmark(cluster: Cluster, ns: str) -> None:
    _make(cluster, ns, "a", "b", on="yes")
    query = {
        "sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true",
        "labelSelector": "on=yes",
    }  # fmt: skip
    with cluster.watch(_maps(ns), **query) as events:
        seen = [next(events) for _ in range(3)]
    assert [e["type"] for e in seen] == ["ADDED", "ADDED", "BOOKMARK"]
    last = seen[-1]["object"]
    assert last["metadata"]["annotations"]["k8s.io/initial-events-end"] == "true"
    assert last["kind"] == "ConfigMap"
    assert int(last["metadata"]["resourceVersion"]) > 0


def test_send_initial_events_needs_its_match(cluster: Cluster, ns: str) -> None:
    answer = cluster.get(_maps(ns), watch="true", sendInitialEvents="true")
    assert answer.status == 422
    assert "sendInitialEvents" in answer.message


def test_a_watch_ends_after_its_time(cluster: Cluster, ns: str) -> None:
    rv = cluster.get(_maps(ns)).ok()["metadata"]["resourceVersion"]
    with cluster.watch(_maps(ns), resourceVersion=rv, timeoutSeconds=1) as events:
        assert list(events) == []


def test_a_watch_of_one_name_sees_only_that(cluster: Cluster, ns: str) -> None:
    rv = _make(cluster, ns, "a")[0]["metadata"]["resourceVersion"]
    with cluster.watch(_maps(ns), resourceVersion=rv, fieldSelector="metadata.name=b") as events:
        _make(cluster, ns, "c", "b")
        assert next(events)["object"]["metadata"]["name"] == "b"


def test_a_watch_as_a_table_shows_rows(cluster: Cluster, ns: str) -> None:
    _make(cluster, ns, "a")
    accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}
    with cluster.watch(_maps(ns), headers=accept, fieldSelector="metadata.name=a") as events:
        shown = next(events)["object"]
    assert shown["kind"] == "Table"
    assert shown["rows"][0]["cells"][0] == "a"
    assert [c["name"] for c in shown["columnDefinitions"]] == ["Name", "Data", "Age"]


def test_a_list_as_a_table_shows_columns(cluster: Cluster, ns: str) -> None:
    _make(cluster, ns, "a")
    accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}
    found = cluster.get(_maps(ns), headers=accept, fieldSelector="metadata.name=a").ok()
    assert found["kind"] == "Table"
    assert found["rows"][0]["cells"][:2] == ["a", 0] or found["rows"][0]["cells"][:2] == ["a", "0"]
    assert found["rows"][0]["object"]["kind"] == "PartialObjectMetadata"


_VOLUME = "StorageClass VolumeAttributesClass"
COLUMNS = {
    "/api/v1/pods": "Name Ready Status Restarts Age IP Node|Nominated Node|Readiness Gates",
    "/api/v1/persistentvolumeclaims": f"Name Status Volume Capacity|Access Modes|{_VOLUME} Age VolumeMode",
    "/api/v1/persistentvolumes": "Name Capacity|Access Modes|Reclaim Policy|Status Claim "
    f"{_VOLUME} Reason Age VolumeMode",
    "/apis/batch/v1/jobs": "Name Status Completions Duration Age Containers Images Selector",
    "/api/v1/events": "Last Seen|Type Reason Object Subobject Source Message|First Seen|Count Name",
    "/api/v1/namespaces": "Name Status Age",
    "/api/v1/secrets": "Name Type Data Age",
    "/apis/coordination.k8s.io/v1/leases": "Name Holder Age",
    "/apis/storage.k8s.io/v1/storageclasses": "Name Provisioner ReclaimPolicy VolumeBindingMode "
    "AllowVolumeExpansion Age",
    "/api/v1/nodes": "Name Status Roles Age Version Internal-IP External-IP OS-Image Kernel-Version Container-Runtime",
    "/api/v1/serviceaccounts": "Name Age",
    "/apis/storage.k8s.io/v1/volumeattachments": "Name Attacher PV Node Attached Age",
    "/apis/storage.k8s.io/v1/csidrivers": "Name AttachRequired PodInfoOnMount StorageCapacity TokenRequests "
    "RequiresRepublish Modes Age",
}


def test_builtin_kinds_have_kubernetes_columns(cluster: Cluster) -> None:
    accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}
    found = {p: " ".join(c["name"] for c in cluster.get(p, headers=accept).ok()["columnDefinitions"]) for p in COLUMNS}
    assert found == {p: c.replace("|", " ") for p, c in COLUMNS.items()}


def test_bare_metadata_can_be_listed(cluster: Cluster, ns: str) -> None:
    _make(cluster, ns, "a")
    accept = {"Accept": "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"}
    found = cluster.get(_maps(ns), headers=accept).ok()
    assert found["kind"] == "PartialObjectMetadataList"
    assert "data" not in found["items"][0]
