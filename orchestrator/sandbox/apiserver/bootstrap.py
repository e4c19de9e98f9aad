"""What a new cluster holds: its four namespaces, the API's own Service, and the usual cluster roles."""

from __future__ import annotations

import uuid

from orchestrator.sandbox.apiserver.objects import Obj, now_text
from orchestrator.sandbox.apiserver.store import Store

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
_RBAC = "rbac.authorization.k8s.io"
_READ = ["get", "list", "watch"]
_WRITE = ["create", "delete", "deletecollection", "patch", "update"]
_CONTENT = [
    "configmaps", "endpoints", "events", "persistentvolumeclaims", "pods", "pods/log", "pods/status", "services",
    "serviceaccounts",
]  # fmt: skip
_WORK = [
    (["apps"], ["deployments", "statefulsets", "replicasets", "daemonsets", "deployments/scale", "statefulsets/scale"]),
    (["batch"], ["jobs", "cronjobs", "jobs/status"]),
    (["networking.k8s.io"], ["networkpolicies"]),
    (["policy"], ["poddisruptionbudgets"]),
    (["coordination.k8s.io"], ["leases"]),
    (["events.k8s.io"], ["events"]),
]


def _meta(name: str, **more: object) -> Obj:
    return {"name": name, "uid": str(uuid.uuid4()), "creationTimestamp": now_text(), **more}


def seed(store: Store) -> None:
    """Create what is missing."""
    for name in NAMESPACES:
        if store.get("namespaces", "", name) is None:
            labels = {"kubernetes.io/metadata.name": name}
            body: Obj = {"apiVersion": "v1", "kind": "Namespace", "metadata": _meta(name, labels=labels)}
            store.put("namespaces", {**body, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
    for name, rules in _roles().items():
        _role(store, name, rules)
    _binding(store, "cluster-admin", "cluster-admin", "system:masters")
    _binding(store, "system:discovery", "system:discovery", "system:authenticated")
    _binding(store, "system:basic-user", "system:basic-user", "system:authenticated")
    _binding(store, "system:public-info-viewer", "system:public-info-viewer", "system:unauthenticated")


def _rule(groups: list[str], resources: list[str], verbs: list[str]) -> Obj:
    return {"apiGroups": groups, "resources": resources, "verbs": verbs}


def _roles() -> dict[str, list[Obj]]:
    view = [_rule([""], [*_CONTENT, "namespaces"], _READ), *(_rule(g, r, _READ) for g, r in _WORK)]
    writable = [r for r in _CONTENT if "/" not in r]
    edit = [
        _rule([""], ["secrets"], _READ),
        _rule([""], [*writable, "secrets"], _WRITE),
        *(_rule(g, r, _WRITE) for g, r in _WORK),
    ]
    admin = [_rule([_RBAC], ["roles", "rolebindings"], _READ + _WRITE)]
    paths = [
        "/api",
        "/api/*",
        "/apis",
        "/apis/*",
        "/healthz",
        "/livez",
        "/readyz",
        "/openapi",
        "/openapi/*",
        "/version",
        "/version/",
        "/.well-known/openid-configuration",
        "/openid/v1/jwks",
    ]
    reviews = ["selfsubjectaccessreviews", "selfsubjectrulesreviews"]
    return {
        "cluster-admin": [
            _rule(["*"], ["*"], ["*"]),
            {"nonResourceURLs": ["*"], "verbs": ["*"]},
        ],
        "view": view,
        "edit": view + edit,
        "admin": view + edit + admin,
        "system:discovery": [{"nonResourceURLs": paths, "verbs": ["get"]}],
        "system:public-info-viewer": [
            {"nonResourceURLs": ["/healthz", "/livez", "/readyz", "/version"], "verbs": ["get"]}
        ],
        "system:basic-user": [
            _rule(["authorization.k8s.io"], reviews, ["create"]),
            _rule(["authentication.k8s.io"], ["selfsubjectreviews"], ["create"]),
        ],
        "system:auth-delegator": [
            _rule(["authentication.k8s.io"], ["tokenreviews"], ["create"]),
            _rule(["authorization.k8s.io"], ["subjectaccessreviews"], ["create"]),
        ],
    }


def _role(store: Store, name: str, rules: list[Obj]) -> None:
    if store.get(f"clusterroles.{_RBAC}", "", name) is None:
        labels = {"kubernetes.io/bootstrapping": "rbac-defaults"}
        body = {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "ClusterRole",
            "metadata": _meta(name, labels=labels),
            "rules": rules,
        }
        store.put(f"clusterroles.{_RBAC}", body)


def _binding(store: Store, name: str, role: str, group: str) -> None:
    if store.get(f"clusterrolebindings.{_RBAC}", "", name) is None:
        labels = {"kubernetes.io/bootstrapping": "rbac-defaults"}
        body = {
            "apiVersion": f"{_RBAC}/v1", "kind": "ClusterRoleBinding", "metadata": _meta(name, labels=labels),
            "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": _RBAC, "kind": "Group", "name": group}],
        }  # fmt: skip
        store.put(f"clusterrolebindings.{_RBAC}", body)
