"""Who is who and who may what: tokens, reviews, RBAC, and how a refusal reads."""

from __future__ import annotations

import base64
import json
import time
import uuid
from typing import Any

from tests.contract.clusters import Cluster, Obj

RBAC = "/apis/rbac.authorization.k8s.io/v1"
REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"


def _grant(cluster: Cluster, ns: str, user: str, *rules: Obj) -> None:
    name = f"r-{uuid.uuid4().hex[:6]}"
    cluster.post(f"{RBAC}/namespaces/{ns}/roles", {"metadata": {"name": name}, "rules": list(rules)}).ok()
    body = {
        "metadata": {"name": name},
        "subjects": [{"kind": "User", "name": user}],
        "roleRef": {"kind": "Role", "name": name},
    }
    cluster.post(f"{RBAC}/namespaces/{ns}/rolebindings", body).ok()


def _rule(resources: list[str], verbs: list[str], groups: list[str] | None = None, **more: Any) -> Obj:
    return {"apiGroups": groups or [""], "resources": resources, "verbs": verbs, **more}


def _token(cluster: Cluster, ns: str, name: str = "default", **spec: Any) -> Obj:
    path = f"/api/v1/namespaces/{ns}/serviceaccounts/{name}/token"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    found: Obj = cluster.post(path, body).ok()
    return found


def _claims(token: str) -> Obj:
    body = token.split(".")[1]
    claims: Obj = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return claims


def test_health_and_version_are_public(cluster: Cluster) -> None:
    for path in ("/healthz", "/readyz", "/livez"):
        answer = cluster.get(path, token="")
        assert (answer.status, answer.body) == (200, "ok")
    assert cluster.get("/version", token="").ok()["major"] == "1"


def test_a_wrong_token_is_unauthorized(cluster: Cluster) -> None:
    answer = cluster.get("/api/v1/namespaces", token="nobody")
    assert answer.status == 401
    assert answer.body["reason"] == "Unauthorized"


def test_strangers_are_forbidden_with_the_whole_sentence(cluster: Cluster, ns: str) -> None:
    anonymous = cluster.get(f"/api/v1/namespaces/{ns}/pods", token="")
    assert anonymous.status == 403
    assert anonymous.message == (
        'pods is forbidden: User "system:anonymous" cannot list resource "pods" '
        f'in API group "" in the namespace "{ns}"'
    )
    named = cluster.get(f"/apis/batch/v1/namespaces/{ns}/jobs/j", user="bob")
    assert named.message == (
        'jobs.batch "j" is forbidden: User "bob" cannot get resource "jobs" '
        f'in API group "batch" in the namespace "{ns}"'
    )
    assert named.body["details"] == {"name": "j", "group": "batch", "kind": "jobs"}
    wide = cluster.get("/api/v1/nodes", user="bob")
    assert (
        wide.message
        == 'nodes is forbidden: User "bob" cannot list resource "nodes" in API group "" at the cluster scope'
    )
    path = cluster.get("/metrics", user="bob")
    assert path.status == 403
    assert path.message == 'forbidden: User "bob" cannot get path "/metrics"'


def test_a_role_grants_what_it_names_and_no_more(cluster: Cluster, ns: str) -> None:
    user = f"u-{uuid.uuid4().hex[:6]}"
    _grant(
        cluster, ns, user, _rule(["configmaps"], ["get", "list"]), _rule(["secrets"], ["get"], resourceNames=["known"]),
        _rule(["pods/log"], ["get"]), _rule(["*"], ["list"], ["batch"]),
    )  # fmt: skip
    space = f"/api/v1/namespaces/{ns}"
    cases = {
        f"{space}/configmaps": 200,
        f"{space}/secrets": 403,
        f"{space}/secrets/known": 404,
        f"{space}/secrets/other": 403,
        f"{space}/pods/p/log": 404,
        f"{space}/pods/p": 403,
        f"/apis/batch/v1/namespaces/{ns}/cronjobs": 200,
        "/api/v1/configmaps": 403,
    }
    cluster.eventually(lambda: cluster.get(f"{space}/configmaps", user=user).status == 200)
    assert {path: cluster.get(path, user=user).status for path in cases} == cases
    refused = cluster.post(f"{space}/configmaps", {"metadata": {"name": "x"}}, user=user)
    assert refused.message == (
        f'configmaps is forbidden: User "{user}" cannot create resource "configmaps" '
        f'in API group "" in the namespace "{ns}"'
    )


def test_groups_and_service_accounts_are_bound(cluster: Cluster, ns: str) -> None:
    name = f"c-{uuid.uuid4().hex[:6]}"
    cluster.post(f"{RBAC}/clusterroles", {"metadata": {"name": name}, "rules": [_rule(["nodes"], ["list"])]}).ok()
    subjects = [
        {"kind": "Group", "name": "crew", "apiGroup": "rbac.authorization.k8s.io"},
        {"kind": "ServiceAccount", "name": "default", "namespace": ns},
    ]
    body = {"metadata": {"name": name}, "subjects": subjects, "roleRef": {"kind": "ClusterRole", "name": name}}
    cluster.post(f"{RBAC}/clusterrolebindings", body).ok()
    cluster.eventually(lambda: cluster.get("/api/v1/nodes", user="x", groups=("crew",)).status == 200)
    token = _token(cluster, ns)["status"]["token"]
    assert cluster.get("/api/v1/nodes", token=token).status == 200
    assert cluster.get("/api/v1/pods", token=token).status == 403
    cluster.delete(f"{RBAC}/clusterrolebindings/{name}")
    cluster.delete(f"{RBAC}/clusterroles/{name}")


def test_an_aggregated_role_has_the_rules_of_the_others(cluster: Cluster, ns: str) -> None:
    name, label = f"a-{uuid.uuid4().hex[:6]}", {f"agg-{uuid.uuid4().hex[:6]}": "yes"}
    selectors = {"clusterRoleSelectors": [{"matchLabels": label}]}
    cluster.post(f"{RBAC}/clusterroles", {"metadata": {"name": name}, "aggregationRule": selectors, "rules": []}).ok()
    part = {"metadata": {"name": f"{name}-part", "labels": label}, "rules": [_rule(["configmaps"], ["list"])]}
    cluster.post(f"{RBAC}/clusterroles", part).ok()
    binding = {
        "metadata": {"name": name},
        "subjects": [{"kind": "User", "name": name}],
        "roleRef": {"kind": "ClusterRole", "name": name},
    }
    cluster.post(f"{RBAC}/namespaces/{ns}/rolebindings", binding).ok()
    cluster.eventually(lambda: cluster.get(f"/api/v1/namespaces/{ns}/configmaps", user=name).status == 200)
    assert cluster.eventually(lambda: cluster.get(f"{RBAC}/clusterroles/{name}").ok().get("rules")) == part["rules"]


def test_a_binding_cannot_change_its_role(cluster: Cluster, ns: str) -> None:
    _grant(cluster, ns, "someone", _rule(["pods"], ["get"]))
    found = cluster.get(f"{RBAC}/namespaces/{ns}/rolebindings").ok()["items"][0]
    answer = cluster.patch(
        f"{RBAC}/namespaces/{ns}/rolebindings/{found['metadata']['name']}", {"roleRef": {"name": "other"}}
    )
    assert answer.status == 422
    assert "cannot change roleRef" in answer.message


def test_an_access_review_answers_for_others(cluster: Cluster, ns: str) -> None:
    user = f"u-{uuid.uuid4().hex[:6]}"
    _grant(cluster, ns, user, _rule(["configmaps"], ["get"]))

    def allowed(**attributes: str) -> bool:
        body = {"spec": {"user": user, "resourceAttributes": {"namespace": ns, "resource": "configmaps", **attributes}}}
        found = cluster.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", body).ok()
        return bool(found["status"]["allowed"])

    cluster.eventually(lambda: allowed(verb="get"))
    assert not allowed(verb="list")
    assert not allowed(verb="get", namespace="default")
    own = {"spec": {"resourceAttributes": {"verb": "delete", "resource": "nodes"}}}
    assert cluster.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", own).ok()["status"]["allowed"] is True
    other = cluster.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", own, user="bob").ok()
    assert other["status"]["allowed"] is False
    paths = {
        "spec": {
            "user": "bob",
            "groups": ["system:authenticated"],
            "nonResourceAttributes": {"verb": "get", "path": "/version"},
        }
    }
    assert cluster.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", paths).ok()["status"]["allowed"] is True


def test_a_rules_review_lists_what_one_may(cluster: Cluster, ns: str) -> None:
    user = f"u-{uuid.uuid4().hex[:6]}"
    _grant(cluster, ns, user, _rule(["configmaps"], ["get"]))
    body = {"spec": {"namespace": ns}}

    def mine() -> bool:
        found = cluster.post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", body, user=user).ok()["status"]
        return {"verbs": ["get"], "apiGroups": [""], "resources": ["configmaps"]} in found["resourceRules"]

    cluster.eventually(mine)


def test_one_can_ask_who_one_is(cluster: Cluster) -> None:
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    found = cluster.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", body, user="bob", groups=("crew",)).ok()
    assert found["status"]["userInfo"]["username"] == "bob"
    assert found["status"]["userInfo"]["groups"] == ["crew", "system:authenticated"]


def test_a_requested_token_has_kubernetes_claims(cluster: Cluster, ns: str) -> None:
    found = _token(cluster, ns, audiences=["us"], expirationSeconds=700)
    claims = _claims(found["status"]["token"])
    assert claims["aud"] == ["us"]
    assert claims["iss"] == "https://kubernetes.default.svc.cluster.local"
    assert claims["sub"] == f"system:serviceaccount:{ns}:default"
    assert abs(claims["exp"] - time.time() - 700) < 30
    assert claims["kubernetes.io"]["namespace"] == ns
    assert claims["kubernetes.io"]["serviceaccount"]["name"] == "default"
    assert found["status"]["expirationTimestamp"].endswith("Z")


def test_a_token_review_checks_the_audience(cluster: Cluster, ns: str) -> None:
    token = _token(cluster, ns, audiences=["us", "them"])["status"]["token"]
    good = cluster.post(REVIEWS, {"spec": {"token": token, "audiences": ["us"]}}).ok()["status"]
    assert good["authenticated"] is True
    assert good["audiences"] == ["us"]
    assert good["user"]["username"] == f"system:serviceaccount:{ns}:default"
    assert good["user"]["groups"] == [
        "system:serviceaccounts", f"system:serviceaccounts:{ns}", "system:authenticated",
    ]  # fmt: skip
    bad = cluster.post(REVIEWS, {"spec": {"token": token, "audiences": ["others"]}}).ok()["status"]
    assert not bad.get("authenticated")
    assert bad["error"]
    assert not cluster.post(REVIEWS, {"spec": {"token": "junk"}}).ok()["status"].get("authenticated")
    assert cluster.get("/version", token=token).status == 401


def test_a_short_token_is_refused(cluster: Cluster, ns: str) -> None:
    body = {"spec": {"expirationSeconds": 10}}
    answer = cluster.post(f"/api/v1/namespaces/{ns}/serviceaccounts/default/token", body)
    assert answer.status == 422
    assert (
        "spec.expirationSeconds: Invalid value: 10: may not specify a duration less than 10 minutes" in answer.message
    )


def test_a_bound_token_dies_with_its_pod(cluster: Cluster, ns: str) -> None:
    path = f"/api/v1/namespaces/{ns}/pods"
    spec = {"containers": [{"name": "c", "image": "i"}], "serviceAccountName": "default"}
    pod = cluster.post(path, {"metadata": {"name": "p"}, "spec": spec}).ok()
    bound = {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": pod["metadata"]["uid"]}
    token = _token(cluster, ns, boundObjectRef=bound)["status"]["token"]
    assert _claims(token)["kubernetes.io"]["pod"] == {"name": "p", "uid": pod["metadata"]["uid"]}
    good = cluster.post(REVIEWS, {"spec": {"token": token}}).ok()["status"]
    assert good["authenticated"] is True
    assert good["user"]["extra"]["authentication.kubernetes.io/pod-name"] == ["p"]
    cluster.delete(path + "/p").ok()
    cluster.eventually(
        lambda: not cluster.post(REVIEWS, {"spec": {"token": token}}).ok()["status"].get("authenticated")
    )


def test_a_token_dies_with_its_account(cluster: Cluster, ns: str) -> None:
    cluster.post(f"/api/v1/namespaces/{ns}/serviceaccounts", {"metadata": {"name": "robot"}}).ok()
    token = _token(cluster, ns, "robot")["status"]["token"]
    assert cluster.post(REVIEWS, {"spec": {"token": token}}).ok()["status"]["authenticated"] is True
    cluster.delete(f"/api/v1/namespaces/{ns}/serviceaccounts/robot").ok()
    cluster.eventually(
        lambda: not cluster.post(REVIEWS, {"spec": {"token": token}}).ok()["status"].get("authenticated")
    )


def test_a_token_for_nobody_is_not_found(cluster: Cluster, ns: str) -> None:
    answer = cluster.post(f"/api/v1/namespaces/{ns}/serviceaccounts/none/token", {"spec": {}})
    assert answer.status == 404
    assert answer.message == 'serviceaccounts "none" not found'


def test_the_signing_key_is_published(cluster: Cluster) -> None:
    keys = cluster.get("/openid/v1/jwks", headers={"Accept": "*/*"}).ok()["keys"]
    assert keys
    assert keys[0]["use"] == "sig"
