"""Create, read, replace: names, namespaces, revisions, generations, bodies."""

from __future__ import annotations

from tests.contract.clusters import Cluster

MAPS = "/api/v1/namespaces/{}/configmaps"


def test_a_created_object_carries_system_metadata(cluster: Cluster, ns: str) -> None:
    made = cluster.post(MAPS.format(ns), {"metadata": {"name": "a"}, "data": {"k": "v"}})
    assert made.status == 201
    meta = made.body["metadata"]
    assert made.body["kind"] == "ConfigMap"
    assert made.body["apiVersion"] == "v1"
    assert meta["namespace"] == ns
    assert {"uid", "resourceVersion", "creationTimestamp", "managedFields"} <= set(meta)
    assert cluster.get(MAPS.format(ns) + "/a").ok() == made.body


def test_creating_a_name_twice_is_a_conflict_with_a_reason(cluster: Cluster, ns: str) -> None:
    cluster.post(MAPS.format(ns), {"metadata": {"name": "a"}}).ok()
    again = cluster.post(MAPS.format(ns), {"metadata": {"name": "a"}})
    assert again.status == 409
    assert again.body == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "reason": "AlreadyExists",
        "code": 409,
        "message": 'configmaps "a" already exists',
        "details": {"name": "a", "kind": "configmaps"},
    }


def test_what_is_not_there_is_not_found(cluster: Cluster, ns: str) -> None:
    missing = cluster.get(MAPS.format(ns) + "/none")
    assert missing.status == 404
    assert missing.body["message"] == 'configmaps "none" not found'
    assert missing.body["details"] == {"name": "none", "kind": "configmaps"}
    other = cluster.get(f"/apis/batch/v1/namespaces/{ns}/jobs/none")
    assert other.body["message"] == 'jobs.batch "none" not found'
    assert other.body["details"] == {"name": "none", "group": "batch", "kind": "jobs"}


def test_a_missing_namespace_is_named(cluster: Cluster) -> None:
    answer = cluster.post(MAPS.format("nowhere"), {"metadata": {"name": "a"}})
    assert answer.status == 404
    assert answer.message == 'namespaces "nowhere" not found'


def test_an_unknown_path_is_the_plain_not_found(cluster: Cluster, ns: str) -> None:
    for path in (f"/api/v1/namespaces/{ns}/gizmos", "/apis/no.such.group/v1/x"):
        assert cluster.get(path).status == 404


def test_a_bad_name_is_explained(cluster: Cluster, ns: str) -> None:
    answer = cluster.post(MAPS.format(ns), {"metadata": {"name": "Bad_Name"}})
    assert answer.status == 422
    assert answer.message == (
        'ConfigMap "Bad_Name" is invalid: metadata.name: Invalid value: "Bad_Name": a lowercase RFC 1123 subdomain '
        "must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric "
        "character (e.g. 'example.com', regex used for validation is "
        "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
    )
    assert answer.body["details"]["causes"][0]["field"] == "metadata.name"


def test_a_name_is_required(cluster: Cluster, ns: str) -> None:
    answer = cluster.post(MAPS.format(ns), {"metadata": {}})
    assert answer.status == 422
    assert answer.message == 'ConfigMap "" is invalid: metadata.name: Required value: name or generateName is required'


def test_generate_name_makes_a_fresh_name(cluster: Cluster, ns: str) -> None:
    names = {
        cluster.post(MAPS.format(ns), {"metadata": {"generateName": "x-"}}).ok()["metadata"]["name"] for _ in range(3)
    }
    assert len(names) == 3
    assert all(n.startswith("x-") and len(n) == 7 for n in names)


def test_another_namespace_in_the_body_is_refused(cluster: Cluster, ns: str) -> None:
    answer = cluster.post(MAPS.format(ns), {"metadata": {"name": "a", "namespace": "default"}})
    assert answer.status == 400
    assert answer.message == "the namespace of the provided object does not match the namespace sent on the request"


def test_another_name_in_the_body_is_refused(cluster: Cluster, ns: str) -> None:
    cluster.post(MAPS.format(ns), {"metadata": {"name": "a"}}).ok()
    answer = cluster.put(MAPS.format(ns) + "/a", {"metadata": {"name": "b"}})
    assert answer.status == 400
    assert answer.message == "the name of the object (b) does not match the name on the URL (a)"


def test_a_resource_version_on_create_is_refused(cluster: Cluster, ns: str) -> None:
    answer = cluster.post(MAPS.format(ns), {"metadata": {"name": "a", "resourceVersion": "1"}})
    assert answer.status == 500 or answer.status == 400
    assert "resourceVersion" in answer.message


def test_a_stale_write_is_a_conflict(cluster: Cluster, ns: str) -> None:
    made = cluster.post(MAPS.format(ns), {"metadata": {"name": "a"}, "data": {"k": "1"}}).ok()
    cluster.put(MAPS.format(ns) + "/a", {**made, "data": {"k": "2"}}).ok()
    stale = cluster.put(MAPS.format(ns) + "/a", {**made, "data": {"k": "3"}})
    assert stale.status == 409
    assert stale.body["reason"] == "Conflict"
    assert stale.message == (
        'Operation cannot be fulfilled on configmaps "a": the object has been modified; please apply your changes to '
        "the latest version and try again"
    )
    assert cluster.get(MAPS.format(ns) + "/a").ok()["data"] == {"k": "2"}


def test_a_write_that_changes_nothing_keeps_the_revision(cluster: Cluster, ns: str) -> None:
    made = cluster.post(MAPS.format(ns), {"metadata": {"name": "a"}, "data": {"k": "1"}}).ok()
    same = cluster.put(MAPS.format(ns) + "/a", made).ok()
    assert same["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


def test_revisions_go_up_across_kinds(cluster: Cluster, ns: str) -> None:
    first = cluster.post(MAPS.format(ns), {"metadata": {"name": "a"}}).ok()
    second = cluster.post(f"/api/v1/namespaces/{ns}/secrets", {"metadata": {"name": "a"}}).ok()
    assert int(second["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])


def test_a_mistaken_uid_is_a_conflict(cluster: Cluster, ns: str) -> None:
    made = cluster.post(MAPS.format(ns), {"metadata": {"name": "a"}}).ok()
    body = {**made, "metadata": {**made["metadata"], "uid": "00000000-0000-0000-0000-000000000000"}}
    answer = cluster.put(MAPS.format(ns) + "/a", body)
    assert answer.status == 409
    assert "Precondition failed: UID in precondition" in answer.message


def test_dry_run_stores_nothing(cluster: Cluster, ns: str) -> None:
    made = cluster.post(MAPS.format(ns), {"metadata": {"name": "a"}}, dryRun="All")
    assert made.status == 201
    assert cluster.get(MAPS.format(ns) + "/a").status == 404


def test_a_field_of_the_wrong_type_is_a_bad_request(cluster: Cluster, ns: str) -> None:
    answer = cluster.post(MAPS.format(ns), {"metadata": {"name": True}})
    assert answer.status == 400
    assert "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.name of type string" in answer.message


def test_malformed_json_is_a_bad_request(cluster: Cluster, ns: str) -> None:
    answer = cluster.post(MAPS.format(ns), b'{"metadata": ')
    assert answer.status == 400
    assert answer.body["reason"] == "BadRequest"


def test_yaml_bodies_are_read(cluster: Cluster, ns: str) -> None:
    answer = cluster.post(
        MAPS.format(ns), b"metadata: {name: yam}\ndata: {when: '2026-01-01'}\n", media="application/yaml"
    )
    assert answer.status == 201
    assert answer.body["data"] == {"when": "2026-01-01"}


def test_an_unknown_media_type_is_refused(cluster: Cluster, ns: str) -> None:
    answer = cluster.post(MAPS.format(ns), b"x", media="text/plain")
    assert answer.status == 415
    assert answer.body["reason"] == "UnsupportedMediaType"


def test_protobuf_first_and_json_later_gives_json(cluster: Cluster, ns: str) -> None:
    accept = {"Accept": "application/com.example.unknown, application/json"}
    answer = cluster.get(MAPS.format(ns), headers=accept)
    assert answer.headers["content-type"] == "application/json"


def test_a_huge_body_is_refused(cluster: Cluster, ns: str) -> None:
    body = {"metadata": {"name": "a"}, "data": {"k": "x" * (4 * 1024 * 1024)}}
    answer = cluster.post(MAPS.format(ns), body)
    assert answer.status == 413
    assert answer.message == "Request entity too large: limit is 3145728"


def test_unknown_fields_are_warned_about_or_refused(cluster: Cluster, ns: str) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "lables": {}}, "dta": {}}
    warned = cluster.post(MAPS.format(ns), body, dryRun="All", fieldValidation="Warn")
    assert warned.status == 201
    assert sorted(warned.warnings) == ['299 - "unknown field \\"dta\\""', '299 - "unknown field \\"metadata.lables\\""']
    ignored = cluster.post(MAPS.format(ns), body, dryRun="All", fieldValidation="Ignore")
    assert not ignored.warnings
    strict = cluster.post(MAPS.format(ns), body, fieldValidation="Strict")
    assert strict.status == 400
    assert 'strict decoding error: unknown field "metadata.lables", unknown field "dta"' in strict.message


def test_secrets_take_plain_strings(cluster: Cluster, ns: str) -> None:
    made = cluster.post(f"/api/v1/namespaces/{ns}/secrets", {"metadata": {"name": "s"}, "stringData": {"a": "b"}}).ok()
    assert made["data"] == {"a": "Yg=="}
    assert made["type"] == "Opaque"
    assert "stringData" not in made


def test_the_status_is_written_only_through_its_subresource(cluster: Cluster, ns: str) -> None:
    path = f"/api/v1/namespaces/{ns}/persistentvolumeclaims"
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "x"}
    made = cluster.post(path, {"metadata": {"name": "p"}, "spec": spec, "status": {"phase": "Bound"}}).ok()
    assert made["status"] == {"phase": "Pending"}
    assert made["spec"]["volumeMode"] == "Filesystem"
    kept = cluster.put(path + "/p", {**made, "status": {"phase": "Lost"}}).ok()
    assert kept["status"] == {"phase": "Pending"}
    body = {**kept, "spec": {**spec, "storageClassName": "other"}, "status": {"phase": "Bound"}}
    written = cluster.put(path + "/p/status", body).ok()
    assert written["status"] == {"phase": "Bound"}
    assert written["spec"]["storageClassName"] == "x"


def test_a_claim_cannot_change_its_class(cluster: Cluster, ns: str) -> None:
    path = f"/api/v1/namespaces/{ns}/persistentvolumeclaims"
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "x"}
    cluster.post(path, {"metadata": {"name": "p"}, "spec": spec}).ok()
    answer = cluster.patch(path + "/p", {"spec": {"storageClassName": "y"}})
    assert answer.status == 422
    assert answer.message.startswith(
        'PersistentVolumeClaim "p" is invalid: spec: Forbidden: spec is immutable after creation'
    )


def test_a_claim_needs_modes_and_a_size(cluster: Cluster, ns: str) -> None:
    answer = cluster.post(f"/api/v1/namespaces/{ns}/persistentvolumeclaims", {"metadata": {"name": "p"}, "spec": {}})
    assert answer.status == 422
    assert answer.message == (
        'PersistentVolumeClaim "p" is invalid: [spec.accessModes: Required value: at least 1 access mode is required, '
        "spec.resources[storage]: Required value]"
    )


def test_a_job_gets_its_selector_and_defaults(cluster: Cluster, ns: str) -> None:
    template = {"spec": {"containers": [{"name": "c", "image": "i"}], "restartPolicy": "Never"}}
    made = cluster.post(
        f"/apis/batch/v1/namespaces/{ns}/jobs", {"metadata": {"name": "j"}, "spec": {"template": template}}
    ).ok()
    uid, spec = made["metadata"]["uid"], made["spec"]
    assert spec["selector"] == {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
    assert spec["template"]["metadata"]["labels"] == {
        "batch.kubernetes.io/controller-uid": uid,
        "controller-uid": uid,
        "batch.kubernetes.io/job-name": "j",
        "job-name": "j",
    }
    assert (spec["backoffLimit"], spec["completions"], spec["parallelism"], spec["completionMode"]) == (
        6,
        1,
        1,
        "NonIndexed",
    )
    assert made["metadata"]["generation"] == 1
    changed = cluster.patch(f"/apis/batch/v1/namespaces/{ns}/jobs/j", {"spec": {"parallelism": 2}}).ok()
    assert changed["metadata"]["generation"] == 2
    refused = cluster.patch(
        f"/apis/batch/v1/namespaces/{ns}/jobs/j", {"spec": {"template": {"spec": {"hostname": "x"}}}}
    )
    assert refused.status == 422
    assert "spec.template: Invalid value" in refused.message
    assert "field is immutable" in refused.message


def test_events_are_the_same_in_both_groups(cluster: Cluster, ns: str) -> None:
    body = {
        "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "namespace": ns, "name": "p"}, "reason": "R",
        "message": "m", "type": "Normal", "source": {"component": "c"}, "count": 2,
    }  # fmt: skip
    cluster.post(f"/api/v1/namespaces/{ns}/events", body).ok()
    other = cluster.get(f"/apis/events.k8s.io/v1/namespaces/{ns}/events/e").ok()
    assert other["note"] == "m"
    assert other["regarding"] == {"kind": "Pod", "namespace": ns, "name": "p"}
    assert other["deprecatedCount"] == 2
    found = cluster.get(f"/api/v1/namespaces/{ns}/events", fieldSelector="involvedObject.name=p").ok()
    assert [e["metadata"]["name"] for e in found["items"]] == ["e"]


def test_a_new_namespace_is_furnished(cluster: Cluster, ns: str) -> None:
    found = cluster.get(f"/api/v1/namespaces/{ns}").ok()
    assert found["spec"] == {"finalizers": ["kubernetes"]}
    assert found["status"] == {"phase": "Active"}
    assert found["metadata"]["labels"] == {"kubernetes.io/metadata.name": ns}
    bundle = cluster.eventually(lambda: cluster.get(MAPS.format(ns) + "/kube-root-ca.crt").body.get("data"))
    assert bundle["ca.crt"].startswith("-----BEGIN CERTIFICATE-----")


def test_a_claim_grows_only_where_its_class_allows_it(cluster: Cluster, ns: str) -> None:
    name, path = f"c-{ns}", f"/api/v1/namespaces/{ns}/persistentvolumeclaims"
    classes = "/apis/storage.k8s.io/v1/storageclasses"
    cluster.post(classes, {"metadata": {"name": name}, "provisioner": "p"}).ok()
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": name}
    cluster.post(path, {"metadata": {"name": "p"}, "spec": spec}).ok()
    cluster.patch(path + "/p/status", {"status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}}).ok()
    larger = {"spec": {"resources": {"requests": {"storage": "2Gi"}}}}
    refused = cluster.patch(path + "/p", larger)
    assert refused.status == 403
    assert "only dynamically provisioned pvc can be resized" in refused.message
    cluster.patch(classes + f"/{name}", {"allowVolumeExpansion": True}).ok()
    grown = cluster.eventually(lambda: (a := cluster.patch(path + "/p", larger)).status == 200 and a.body)
    assert grown["spec"]["resources"]["requests"]["storage"] == "2Gi"
    cluster.delete(classes + f"/{name}")


def test_what_is_no_quantity_and_no_base64_is_a_bad_request(cluster: Cluster, ns: str) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "big"}}}
    answer = cluster.post(f"/api/v1/namespaces/{ns}/persistentvolumeclaims", {"metadata": {"name": "p"}, "spec": spec})
    assert answer.status == 400
    assert "quantities must match the regular expression" in answer.message
    answer = cluster.post(f"/api/v1/namespaces/{ns}/secrets", {"metadata": {"name": "s"}, "data": {"a": "!!"}})
    assert answer.status == 400
    assert "illegal base64 data at input byte 0" in answer.message


def test_what_a_class_and_a_volume_are_cannot_change(cluster: Cluster, ns: str) -> None:
    name = f"c-{ns}"
    cluster.post("/apis/storage.k8s.io/v1/storageclasses", {"metadata": {"name": name}, "provisioner": "p"}).ok()
    answer = cluster.patch(f"/apis/storage.k8s.io/v1/storageclasses/{name}", {"parameters": {"a": "b"}})
    assert answer.message.endswith('is invalid: parameters: Invalid value: {"a":"b"}: field is immutable')
    cluster.delete(f"/apis/storage.k8s.io/v1/storageclasses/{name}")
    spec = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"],
        "csi": {"driver": "d", "volumeHandle": "h"},
    }
    made = cluster.post("/api/v1/persistentvolumes", {"metadata": {"name": f"v-{ns}"}, "spec": spec}).ok()
    assert made["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
    answer = cluster.patch(f"/api/v1/persistentvolumes/v-{ns}", {"spec": {"csi": {"volumeHandle": "other"}}})
    assert answer.status == 422
    assert "spec.persistentvolumesource is immutable after creation" in answer.message
    changed = cluster.patch(f"/api/v1/persistentvolumes/v-{ns}", {"spec": {"persistentVolumeReclaimPolicy": "Delete"}})
    assert changed.status == 200
    cluster.patch(f"/api/v1/persistentvolumes/v-{ns}", {"metadata": {"finalizers": None}})
    cluster.delete(f"/api/v1/persistentvolumes/v-{ns}")


def test_warnings_come_with_refusals_too(cluster: Cluster, ns: str) -> None:
    answer = cluster.post(MAPS.format(ns), {"metadata": {"name": "Bad"}, "dta": {}})
    assert answer.status == 422
    assert answer.warnings == ['299 - "unknown field \\"dta\\""']
