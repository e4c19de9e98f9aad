"""What the API server itself decides about builtin kinds: names, owners, what a status or a main write may touch.

Follows the strategies and defaulting functions of Kubernetes 1.36 for the kinds of this product's trade; the others
are stored as they come.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from orchestrator.sandbox.apiserver import names
from orchestrator.sandbox.apiserver.objects import Obj, time_text
from orchestrator.sandbox.apiserver.registry import Kind

#: Kinds whose spec changes count in metadata.generation.
GENERATED = {
    "deployments.apps",
    "statefulsets.apps",
    "replicasets.apps",
    "daemonsets.apps",
    "jobs.batch",
    "cronjobs.batch",
    "networkpolicies.networking.k8s.io",
    "poddisruptionbudgets.policy",
    "pods",
    "customresourcedefinitions.apiextensions.k8s.io",
}
#: Kinds that answer a delete with the object instead of a Status.
RETURNS_DELETED = {
    "csidrivers.storage.k8s.io",
    "storageclasses.storage.k8s.io",
    "volumeattachments.storage.k8s.io",
    "csinodes.storage.k8s.io",
    "resourcequotas",
    "persistentvolumes",
    "serviceaccounts",
    "persistentvolumeclaims",
    "namespaces",
    "pods",
    "services",
}
#: Builtin kinds that refuse an update without resourceVersion.
CONDITIONAL_ONLY = {
    "poddisruptionbudgets.policy", "csidrivers.storage.k8s.io", "csistoragecapacities.storage.k8s.io",
    "volumeattachments.storage.k8s.io", "csinodes.storage.k8s.io", "leases.coordination.k8s.io",
}  # fmt: skip
#: Kinds that a PUT to a name that is free creates.
CREATE_ON_UPDATE = {
    "roles.rbac.authorization.k8s.io", "clusterroles.rbac.authorization.k8s.io",
    "rolebindings.rbac.authorization.k8s.io", "clusterrolebindings.rbac.authorization.k8s.io",
    "leases.coordination.k8s.io", "limitranges", "events", "services", "endpoints",
}  # fmt: skip
#: Kinds whose dependents stay when a delete does not say otherwise (kept so for old clients).
ORPHANS_BY_DEFAULT = {"jobs.batch"}
#: What the server itself sets after the fields' owners are noted: nobody owns it unless it was sent.
UNOWNED: dict[str, tuple[tuple[str, ...], ...]] = {
    "namespaces": (("spec", "finalizers"),),
    "persistentvolumeclaims": (("spec", "dataSourceRef"), ("spec", "dataSource")),
    "pods": tuple(
        ("spec", n) for n in ("preemptionPolicy", "priority", "serviceAccount", "serviceAccountName", "tolerations")
    ),
    "jobs.batch": (("spec", "selector"), ("spec", "template", "metadata")),
    "services": tuple(("spec", n) for n in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy")),
}
#: Namespaces that cannot be deleted.
IMMORTAL = {"default", "kube-system", "kube-public"}

_LABEL_NAMED = {"namespaces", "statefulsets.apps"}
_PATH_NAMED = {s for s in CREATE_ON_UPDATE if s.endswith("rbac.authorization.k8s.io")}


def name_problems(kind: Kind, name: str) -> list[str]:
    """Return why a name is refused, in Kubernetes' words."""
    if kind.storage in _LABEL_NAMED:
        return names.dns_label(name)
    if kind.storage == "services":
        return names.dns1035_label(name)
    if kind.storage in _PATH_NAMED:
        return names.path_segment(name)
    if kind.storage == "cronjobs.batch" and len(name) > 52:
        return ["must be no more than 52 characters"]
    return names.dns_subdomain(name)


def unowned(kind: Kind, sent: Obj) -> set[tuple[str, ...]]:
    """Return the field prefixes of a new object that its creator does not own, as managed fields write them."""
    hidden: set[tuple[str, ...]] = {("f:status",)} if kind.has("status") and not kind.custom else set()
    for path in UNOWNED.get(kind.storage, ()):
        found: Any = sent
        for step in path:
            found = found.get(step) if isinstance(found, dict) else None
        if found is None:
            hidden.add(tuple(f"f:{step}" for step in path))
    return hidden


def reset_status(kind: Kind, obj: Obj) -> None:
    """Drop the status that a client sent with a create: the status subresource is the only way to write it."""
    if kind.has("status"):
        obj.pop("status", None)


def keep_status(kind: Kind, new: Obj, old: Obj) -> None:
    """Let a main update leave the status alone, in place."""
    if kind.has("status"):
        if "status" in old:
            new["status"] = old["status"]
        else:
            new.pop("status", None)


def only_status(kind: Kind, new: Obj, old: Obj) -> Obj:
    """Return the old object with the new status (and the metadata that a status write may change)."""
    result = dict(old)
    if "status" in new:
        result["status"] = new["status"]
    else:
        result.pop("status", None)
    meta = dict(old["metadata"])
    if not kind.custom:
        for key in ("labels", "annotations", "finalizers", "ownerReferences"):
            if key in new["metadata"]:
                meta[key] = new["metadata"][key]
            else:
                meta.pop(key, None)
    if "managedFields" in new["metadata"]:
        meta["managedFields"] = new["metadata"]["managedFields"]
    else:
        meta.pop("managedFields", None)
    result["metadata"] = meta
    return result


def bumps_generation(kind: Kind, new: Obj, old: Obj) -> bool:
    """Tell whether an update counts as a new generation."""
    if kind.custom:
        skipped = {"metadata", "status"} if kind.has("status") else {"metadata"}
        return {k: v for k, v in new.items() if k not in skipped} != {k: v for k, v in old.items() if k not in skipped}
    return kind.storage in GENERATED and new.get("spec") != old.get("spec")


def has_generation(kind: Kind) -> bool:
    return kind.custom or kind.storage in GENERATED


def mark_deleted(obj: Obj, grace_s: int) -> Obj:
    """Return the object with its deletion asked for: timestamp, grace period, next generation."""
    meta = dict(obj["metadata"])
    meta["deletionTimestamp"] = time_text(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=grace_s))
    meta["deletionGracePeriodSeconds"] = grace_s
    if meta.get("generation"):
        meta["generation"] += 1
    return {**obj, "metadata": meta}
