"""The values that the API server fills in for builtin kinds (Kubernetes 1.36's defaulting functions and strategies)."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Callable
from typing import Any

from orchestrator.sandbox.apiserver.objects import Obj, clone, metadata, now_text, uid_of
from orchestrator.sandbox.apiserver.registry import Kind


def _default(obj: Any, **values: Any) -> None:
    for key, value in values.items():
        if obj.get(key) is None:
            obj[key] = clone(value)


def _section(obj: Obj, name: str) -> Obj:
    found = obj.get(name)
    if not isinstance(found, dict):
        found = obj[name] = {}
    return found


def _string_data(obj: Obj) -> None:
    plain = obj.pop("stringData", None)
    if plain:
        data = _section(obj, "data")
        for key, value in plain.items():
            data[key] = base64.b64encode(value.encode()).decode()
    _default(obj, type="Opaque")


def _namespace(obj: Obj) -> None:
    _default(_section(obj, "spec"), finalizers=["kubernetes"])
    _default(_section(obj, "status"), phase="Active")
    labels = _section(metadata(obj), "labels")
    labels["kubernetes.io/metadata.name"] = metadata(obj).get("name", "")


def _pvc_spec(spec: Obj) -> None:
    _default(spec, volumeMode="Filesystem")
    source, reference = spec.get("dataSource"), spec.get("dataSourceRef")
    if source and not reference:
        spec["dataSourceRef"] = clone(source)
    elif reference and not source and not reference.get("namespace"):
        spec["dataSource"] = clone(reference)


def _pvc(obj: Obj) -> None:
    _pvc_spec(_section(obj, "spec"))
    _default(_section(obj, "status"), phase="Pending")


def _pv(obj: Obj) -> None:
    _default(_section(obj, "spec"), persistentVolumeReclaimPolicy="Retain", volumeMode="Filesystem")
    _default(_section(obj, "status"), phase="Pending", lastPhaseTransitionTime=now_text())


def _storage_class(obj: Obj) -> None:
    _default(obj, reclaimPolicy="Delete", volumeBindingMode="Immediate")


def _attachment(obj: Obj) -> None:
    _default(_section(obj, "status"), attached=False)


def _csi_driver(obj: Obj) -> None:
    _default(
        _section(obj, "spec"),
        attachRequired=True, podInfoOnMount=False, storageCapacity=False, fsGroupPolicy="ReadWriteOnceWithFSType",
        volumeLifecycleModes=["Persistent"], requiresRepublish=False, seLinuxMount=False,
    )  # fmt: skip


def _container(container: Obj) -> None:
    image = str(container.get("image", ""))
    tag = image.rsplit("/", 1)[-1]
    latest = "@" not in tag and (":" not in tag or tag.endswith(":latest"))
    _default(
        container,
        terminationMessagePath="/dev/termination-log", terminationMessagePolicy="File", resources={},
        imagePullPolicy="Always" if latest else "IfNotPresent",
    )  # fmt: skip
    for port in container.get("ports") or []:
        _default(port, protocol="TCP")
    for variable in container.get("env") or []:
        reference = (variable.get("valueFrom") or {}).get("fieldRef")
        if reference:
            _default(reference, apiVersion="v1")
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        if container.get(probe):
            _default(container[probe], timeoutSeconds=1, periodSeconds=10, successThreshold=1, failureThreshold=3)


def pod_spec(spec: Obj) -> None:
    """Fill in a pod spec's defaults, in place."""
    _default(
        spec,
        restartPolicy="Always", terminationGracePeriodSeconds=30, dnsPolicy="ClusterFirst", securityContext={},
        schedulerName="default-scheduler",
    )  # fmt: skip
    for container in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
        if isinstance(container, dict):
            _container(container)
    if spec.get("serviceAccountName"):
        _default(spec, serviceAccount=spec["serviceAccountName"])
    elif spec.get("serviceAccount"):
        spec["serviceAccountName"] = spec["serviceAccount"]
    for volume in spec.get("volumes") or []:
        _volume(volume)


def _volume(volume: Obj) -> None:
    for source in ("secret", "configMap", "downwardAPI", "projected"):
        if isinstance(volume.get(source), dict):
            _default(volume[source], defaultMode=420)
    for part in (volume.get("projected") or {}).get("sources") or []:
        if part.get("serviceAccountToken"):
            _default(part["serviceAccountToken"], expirationSeconds=3600)
    claim = (volume.get("ephemeral") or {}).get("volumeClaimTemplate")
    if claim:
        _pvc_spec(_section(claim, "spec"))
    if set(volume) == {"name"}:
        volume["emptyDir"] = {}


def _pod(obj: Obj) -> None:
    spec = _section(obj, "spec")
    pod_spec(spec)
    for container in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
        for key, value in (container["resources"].get("limits") or {}).items():
            _default(_section(container["resources"], "requests"), **{key: value})
    _default(
        spec, enableServiceLinks=True, serviceAccountName="default", preemptionPolicy="PreemptLowerPriority", priority=0
    )
    _default(spec, serviceAccount=spec["serviceAccountName"])
    tolerations = spec.setdefault("tolerations", [])
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        if not any(t.get("key") in {key, None} and t.get("effect") in {"NoExecute", None} for t in tolerations):
            tolerations.append({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300})
    _default(_section(obj, "status"), phase="Pending", qosClass=_quality(spec))


def _quality(spec: Obj) -> str:
    containers = [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]
    resources = [c.get("resources") or {} for c in containers]
    if not any(r.get("requests") or r.get("limits") for r in resources):
        return "BestEffort"
    full = all(
        {"cpu", "memory"} <= set(r.get("limits") or {}) and r.get("requests") == r.get("limits") for r in resources
    )
    return "Guaranteed" if full else "Burstable"


def _job(obj: Obj) -> None:
    spec = _section(obj, "spec")
    if spec.get("completions") is None and spec.get("parallelism") is None:
        spec["completions"] = 1
    _default(spec, parallelism=1, completionMode="NonIndexed", suspend=False, manualSelector=False)
    _default(spec, backoffLimit=2147483647 if spec.get("backoffLimitPerIndex") is not None else 6)
    _default(spec, podReplacementPolicy="Failed" if spec.get("podFailurePolicy") else "TerminatingOrFailed")
    template = _section(spec, "template")
    pod_spec(_section(template, "spec"))
    if not metadata(obj).get("labels") and template.get("metadata", {}).get("labels"):
        metadata(obj)["labels"] = clone(template["metadata"]["labels"])
    if not spec.get("manualSelector") and uid_of(obj):
        labels = _section(metadata(template), "labels")
        uid, name = uid_of(obj), metadata(obj)["name"]
        labels |= {"batch.kubernetes.io/controller-uid": uid, "controller-uid": uid}
        labels |= {"batch.kubernetes.io/job-name": name, "job-name": name}
        spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
    if spec.get("manualSelector") is False:
        spec["manualSelector"] = False
    obj["status"] = obj.get("status") or {}


def _cron_job(obj: Obj) -> None:
    spec = _section(obj, "spec")
    _default(spec, concurrencyPolicy="Allow", suspend=False, successfulJobsHistoryLimit=3, failedJobsHistoryLimit=1)
    job = _section(_section(spec, "jobTemplate"), "spec")
    pod_spec(_section(_section(job, "template"), "spec"))
    obj["status"] = obj.get("status") or {}


def _workload(obj: Obj) -> None:
    spec = _section(obj, "spec")
    _default(spec, replicas=1)
    pod_spec(_section(_section(spec, "template"), "spec"))
    obj["status"] = obj.get("status") or {}


def _deployment(obj: Obj) -> None:
    _workload(obj)
    spec = obj["spec"]
    _default(spec, revisionHistoryLimit=10, progressDeadlineSeconds=600, strategy={"type": "RollingUpdate"})
    if spec["strategy"].get("type") == "RollingUpdate":
        _default(_section(spec["strategy"], "rollingUpdate"), maxUnavailable="25%", maxSurge="25%")


def _stateful_set(obj: Obj) -> None:
    _workload(obj)
    spec = obj["spec"]
    _default(
        spec,
        podManagementPolicy="OrderedReady", revisionHistoryLimit=10,
        updateStrategy={"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
        persistentVolumeClaimRetentionPolicy={"whenDeleted": "Retain", "whenScaled": "Retain"},
    )  # fmt: skip
    for template in spec.get("volumeClaimTemplates") or []:
        _default(template, apiVersion="v1", kind="PersistentVolumeClaim")
        _pvc_spec(_section(template, "spec"))
        _default(_section(template, "status"), phase="Pending")


def _service(obj: Obj) -> None:
    spec = _section(obj, "spec")
    _default(spec, type="ClusterIP", sessionAffinity="None", internalTrafficPolicy="Cluster")
    for port in spec.get("ports") or []:
        _default(port, protocol="TCP", targetPort=port.get("port"))
    if spec["type"] != "ExternalName":
        _default(spec, clusterIP=_address(uid_of(obj)), ipFamilies=["IPv4"], ipFamilyPolicy="SingleStack")
        _default(spec, clusterIPs=[spec["clusterIP"]])
    _default(_section(obj, "status"), loadBalancer={})


def _address(seed: str) -> str:
    number = int(seed.replace("-", "")[:8] or "1", 16) % 65_000 + 10
    return str(ipaddress.IPv4Address("10.96.0.0") + number)


def _role_binding(obj: Obj) -> None:
    for subject in obj.get("subjects") or []:
        group = "" if subject.get("kind") == "ServiceAccount" else "rbac.authorization.k8s.io"
        if group:
            _default(subject, apiGroup=group)
    _default(_section(obj, "roleRef"), apiGroup="rbac.authorization.k8s.io")


def _crd(obj: Obj) -> None:
    spec = _section(obj, "spec")
    wanted = _section(spec, "names")
    _default(wanted, singular=str(wanted.get("kind", "")).lower(), listKind=f"{wanted.get('kind', '')}List")
    _default(spec, conversion={"strategy": "None"})
    stored = [v.get("name") for v in spec.get("versions") or [] if v.get("storage")]
    _default(_section(obj, "status"), acceptedNames={"plural": "", "kind": ""}, storedVersions=stored)


def _event(obj: Obj) -> None:
    meta = metadata(obj)
    meta.setdefault("namespace", "default")


_DEFAULTS: dict[str, Callable[[Obj], None]] = {
    "secrets": _string_data,
    "namespaces": _namespace,
    "persistentvolumeclaims": _pvc,
    "persistentvolumes": _pv,
    "storageclasses.storage.k8s.io": _storage_class,
    "csidrivers.storage.k8s.io": _csi_driver,
    "volumeattachments.storage.k8s.io": _attachment,
    "pods": _pod,
    "jobs.batch": _job,
    "cronjobs.batch": _cron_job,
    "deployments.apps": _deployment,
    "statefulsets.apps": _stateful_set,
    "replicasets.apps": _workload,
    "daemonsets.apps": _workload,
    "services": _service,
    "rolebindings.rbac.authorization.k8s.io": _role_binding,
    "clusterrolebindings.rbac.authorization.k8s.io": _role_binding,
    "customresourcedefinitions.apiextensions.k8s.io": _crd,
    "events": _event,
}


def set_builtin_defaults(kind: Kind, obj: Obj) -> None:
    """Fill in what the API server fills in, in place; harmless to repeat."""
    fill = _DEFAULTS.get(kind.storage)
    if fill is not None and not kind.custom:
        fill(obj)
