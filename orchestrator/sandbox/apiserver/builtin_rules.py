"""The validation of builtin kinds: what is required, and what may not change."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from orchestrator.sandbox.apiserver.objects import Obj
from orchestrator.sandbox.apiserver.registry import Kind
from orchestrator.sandbox.apiserver.status import Cause, forbidden_field, invalid_value, not_supported, required

_MODES = ("ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")
_KEY = re.compile(r"[-._a-zA-Z0-9]+")


def builtin_causes(kind: Kind, obj: Obj, old: Obj | None, *, status_only: bool = False) -> list[Cause]:
    """Return what is wrong with a builtin object."""
    rule = _RULES.get(kind.storage)
    if rule is None or status_only:
        return []
    return rule(obj, old)


def _immutable(path: str, new: Any, old: Any) -> list[Cause]:
    return [] if new == old else [invalid_value(path, new, "field is immutable")]


def _keys(obj: Obj, *fields: str) -> list[Cause]:
    causes = []
    for field in fields:
        for key in obj.get(field) or {}:
            if not _KEY.fullmatch(key) or len(key) > 253:
                detail = (
                    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or "
                    "'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
                )
                causes.append(invalid_value(f"{field}[{key}]", key, detail))
    return causes


def _frozen_data(obj: Obj, old: Obj | None, *fields: str) -> list[Cause]:
    if old is None or not old.get("immutable"):
        return []
    causes = []
    if not obj.get("immutable"):
        causes.append(forbidden_field("immutable", "field is immutable when `immutable` is set"))
    changed = [f for f in fields if (obj.get(f) or {}) != (old.get(f) or {})]
    return causes + [forbidden_field(f, "field is immutable when `immutable` is set") for f in changed]


def _secret(obj: Obj, old: Obj | None) -> list[Cause]:
    causes = _keys(obj, "data") + _frozen_data(obj, old, "data")
    if old is not None:
        causes += _immutable("type", obj.get("type"), old.get("type"))
    return causes


def _config_map(obj: Obj, old: Obj | None) -> list[Cause]:
    return _keys(obj, "data", "binaryData") + _frozen_data(obj, old, "data", "binaryData")


def _modes(spec: Obj, detail: str = "") -> list[Cause]:
    modes = spec.get("accessModes") or []
    if not modes:
        return [required("spec.accessModes", detail)]
    return [not_supported("spec.accessModes", m, _MODES) for m in modes if m not in _MODES]


def _pvc(obj: Obj, old: Obj | None) -> list[Cause]:
    spec = obj.get("spec") or {}
    requests = (spec.get("resources") or {}).get("requests") or {}
    causes = _modes(spec, "at least 1 access mode is required")
    if "storage" not in requests:
        causes.append(required("spec.resources[storage]"))
    if spec.get("volumeMode") not in {"Block", "Filesystem"}:
        causes.append(not_supported("spec.volumeMode", spec.get("volumeMode"), ("Block", "Filesystem")))
    if old is not None and spec != old["spec"]:
        causes += _pvc_change(spec, old["spec"], (old.get("status") or {}).get("phase"))
    return causes


_PVC_FIXED = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"


def _pvc_change(new: Obj, old: Obj, phase: Any) -> list[Cause]:
    free = {"resources", "volumeAttributesClassName"}
    if not old.get("volumeName"):
        free |= {"volumeName"}
    if old.get("storageClassName") is None:
        free |= {"storageClassName"}
    if {k: v for k, v in new.items() if k not in free} != {k: v for k, v in old.items() if k not in free}:
        return [forbidden_field("spec", _PVC_FIXED)]
    if new.get("resources") != old.get("resources"):
        if phase != "Bound":
            return [forbidden_field("spec", _PVC_FIXED)]
        before, after = (bytes_of(str(s["resources"]["requests"].get("storage", "0"))) for s in (old, new))
        if after < before:
            return [forbidden_field("spec.resources.requests.storage", "field can not be less than status.capacity")]
    return []


_UNITS = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "P": 10**15,
    "E": 10**18,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "Pi": 2**50,
    "Ei": 2**60,
    "m": 1e-3,
    "u": 1e-6,
    "n": 1e-9,
}


def bytes_of(quantity: str) -> float:
    """Return a quantity's value; raises ValueError."""
    found = re.fullmatch(r"([+-]?[\d.]+)([a-zA-Z]*)", quantity)
    if found and found[2] in _UNITS:
        return float(found[1]) * _UNITS[found[2]]
    return float(quantity)


_SOURCES = (
    "csi",
    "hostPath",
    "local",
    "nfs",
    "iscsi",
    "fc",
    "awsElasticBlockStore",
    "gcePersistentDisk",
    "rbd",
    "cephfs",
)


def _pv(obj: Obj, old: Obj | None) -> list[Cause]:
    spec = obj.get("spec") or {}
    capacity = spec.get("capacity") or {}
    causes = _modes(spec)
    if not capacity:
        causes.append(required("spec.capacity"))
    if set(capacity) != {"storage"}:
        causes.append(not_supported("spec.capacity", capacity or None, ("storage",)))
    sources = [s for s in _SOURCES if spec.get(s)]
    if not sources:
        causes.append(required("spec", "must specify a volume type"))
    causes += [forbidden_field(f"spec.{s}", "may not specify more than 1 volume type") for s in sources[1:]]
    if spec.get("csi"):
        causes += [required(f"spec.csi.{k}") for k in ("driver", "volumeHandle") if not spec["csi"].get(k)]
    if spec.get("persistentVolumeReclaimPolicy") not in {"Retain", "Delete", "Recycle"}:
        allowed = ("Delete", "Recycle", "Retain")
        causes.append(
            not_supported("spec.persistentVolumeReclaimPolicy", spec["persistentVolumeReclaimPolicy"], allowed)
        )
    if old is not None:
        if any(spec.get(s) != old["spec"].get(s) for s in _SOURCES):
            detail = "spec.persistentvolumesource is immutable after creation"
            causes.append(forbidden_field("spec.persistentvolumesource", detail))
        causes += _immutable("spec.volumeMode", spec.get("volumeMode"), old["spec"].get("volumeMode"))
    return causes


def _storage_class(obj: Obj, old: Obj | None) -> list[Cause]:
    causes = [] if obj.get("provisioner") else [required("provisioner")]
    if old is not None:
        for field in ("parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"):
            causes += _immutable(field, obj.get(field), old.get(field))
    return causes


def _attachment(obj: Obj, old: Obj | None) -> list[Cause]:
    return [] if old is None else _immutable("spec", obj.get("spec"), old.get("spec"))


def _role(obj: Obj, old: Obj | None) -> list[Cause]:
    causes = []
    for index, rule in enumerate(obj.get("rules") or []):
        path = f"rules[{index}]"
        if not rule.get("verbs"):
            causes.append(required(f"{path}.verbs", "verbs must contain at least one value"))
        if rule.get("nonResourceURLs"):
            continue
        if not rule.get("apiGroups"):
            causes.append(required(f"{path}.apiGroups", "resource rules must supply at least one api group"))
        if not rule.get("resources"):
            causes.append(required(f"{path}.resources", "resource rules must supply at least one resource"))
    return causes


def _containers(spec: Obj, path: str) -> list[Cause]:
    containers = spec.get("containers") or []
    causes = [] if containers else [required(f"{path}.containers")]
    for index, container in enumerate(containers):
        here = f"{path}.containers[{index}]"
        causes += [required(f"{here}.{k}") for k in ("name", "image") if not container.get(k)]
    volumes = {v.get("name") for v in spec.get("volumes") or []}
    for index, container in enumerate(containers):
        for field in ("volumeMounts", "volumeDevices"):
            for number, mount in enumerate(container.get(field) or []):
                if mount.get("name") not in volumes:
                    where = f"{path}.containers[{index}].{field}[{number}].name"
                    causes.append(Cause("FieldValueNotFound", f'Not found: "{mount.get("name")}"', where))
    return causes


_POD_FREE = {"activeDeadlineSeconds", "tolerations", "containers", "initContainers", "schedulingGates", "nodeSelector"}


def _pod(obj: Obj, old: Obj | None) -> list[Cause]:
    spec = obj.get("spec") or {}
    causes = _containers(spec, "spec")
    if old is not None and spec != old["spec"]:
        before = {k: v for k, v in old["spec"].items() if k not in _POD_FREE}
        after = {k: v for k, v in spec.items() if k not in _POD_FREE}
        images = [
            [{k: v for k, v in c.items() if k != "image"} for c in s.get("containers") or []]
            for s in (spec, old["spec"])
        ]
        if before != after or images[0] != images[1]:
            detail = (
                "pod updates may not change fields other than `spec.containers[*].image`,"
                "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to "
                "existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was "
                "previously negative)"
            )
            causes.append(forbidden_field("spec", detail))
    return causes


def _job(obj: Obj, old: Obj | None) -> list[Cause]:
    spec = obj.get("spec") or {}
    template = (spec.get("template") or {}).get("spec") or {}
    causes = _containers(template, "spec.template.spec")
    if template.get("restartPolicy") not in {"OnFailure", "Never"}:
        detail = ("OnFailure", "Never")
        causes.append(
            Cause(
                "FieldValueRequired",
                'Required value: valid values: "OnFailure", "Never"',
                "spec.template.spec.restartPolicy",
            )
            if template.get("restartPolicy") in {None, "", "Always"}
            else not_supported("spec.template.spec.restartPolicy", template["restartPolicy"], detail)
        )
    if spec.get("completionMode") == "Indexed" and spec.get("completions") is None:
        causes.append(required("spec.completions", "when completion mode is Indexed"))
    for field in ("parallelism", "completions", "backoffLimit"):
        if (spec.get(field) or 0) < 0:
            causes.append(invalid_value(f"spec.{field}", spec[field], "must be greater than or equal to 0"))
    if old is not None:
        before = old["spec"]
        for field in (
            "completions",
            "selector",
            "template",
            "completionMode",
            "podFailurePolicy",
            "backoffLimitPerIndex",
        ):
            if field == "template" and before.get("suspend"):
                continue
            if field == "completions" and spec.get("completionMode") == "Indexed":
                continue
            causes += _immutable(f"spec.{field}", spec.get(field), before.get(field))
    return causes


def _workload(obj: Obj, old: Obj | None) -> list[Cause]:
    spec = obj.get("spec") or {}
    causes = _containers((spec.get("template") or {}).get("spec") or {}, "spec.template.spec")
    if not spec.get("selector"):
        causes.insert(0, required("spec.selector"))
    elif old is not None:
        causes += _immutable("spec.selector", spec["selector"], old["spec"].get("selector"))
    return causes


def _role_binding(obj: Obj, old: Obj | None) -> list[Cause]:
    reference = obj.get("roleRef") or {}
    causes = [] if reference.get("name") else [required("roleRef.name")]
    if reference.get("kind") not in {"Role", "ClusterRole"}:
        causes.append(not_supported("roleRef.kind", reference.get("kind", ""), ("ClusterRole", "Role")))
    if old is not None and reference != old.get("roleRef"):
        causes.append(invalid_value("roleRef", reference, "cannot change roleRef"))
    return causes


def _lease(obj: Obj, old: Obj | None) -> list[Cause]:
    spec, causes = obj.get("spec") or {}, []
    seconds = spec.get("leaseDurationSeconds")
    if seconds is not None and seconds <= 0:
        causes.append(invalid_value("spec.leaseDurationSeconds", seconds, "must be greater than 0"))
    if (spec.get("leaseTransitions") or 0) < 0:
        causes.append(
            invalid_value("spec.leaseTransitions", spec["leaseTransitions"], "must be greater than or equal to 0")
        )
    return causes


def _event(obj: Obj, old: Obj | None) -> list[Cause]:
    about = (obj.get("involvedObject") or {}).get("namespace") or "default"
    found = obj["metadata"].get("namespace", "")
    if old is None and found != about and not (about == "default" and found in {"default", "kube-system"}):
        return [invalid_value("involvedObject.namespace", (obj.get("involvedObject") or {}).get("namespace", ""),
                              "does not match event.namespace")]  # fmt: skip
    return []


_RULES: dict[str, Callable[[Obj, Obj | None], list[Cause]]] = {
    "secrets": _secret,
    "configmaps": _config_map,
    "persistentvolumeclaims": _pvc,
    "persistentvolumes": _pv,
    "storageclasses.storage.k8s.io": _storage_class,
    "volumeattachments.storage.k8s.io": _attachment,
    "roles.rbac.authorization.k8s.io": _role,
    "clusterroles.rbac.authorization.k8s.io": _role,
    "pods": _pod,
    "jobs.batch": _job,
    "deployments.apps": _workload,
    "statefulsets.apps": _workload,
    "replicasets.apps": _workload,
    "daemonsets.apps": _workload,
    "rolebindings.rbac.authorization.k8s.io": _role_binding,
    "clusterrolebindings.rbac.authorization.k8s.io": _role_binding,
    "leases.coordination.k8s.io": _lease,
    "events": _event,
}
