"""The columns of builtin kinds, as kube-apiserver prints them (kubernetes `printers/internalversion`)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import msgspec

from orchestrator.sandbox.apiserver.durations import age, human_duration
from orchestrator.sandbox.apiserver.objects import Obj, name_of, parse_time

_WIDE = 1
_MODES = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}


class Column(msgspec.Struct, frozen=True):
    """One column: its heading, what a cell shows, and kubectl's hints."""

    name: str
    cell: Callable[[Obj], Any]
    type: str = "string"
    format: str = ""
    priority: int = 0
    description: str = ""


NAME = Column("Name", name_of, description="Name must be unique within a namespace.", format="name")
AGE = Column("Age", lambda o: age(o["metadata"].get("creationTimestamp")))


def _at(*path: str, default: Any = "") -> Callable[[Obj], Any]:
    def cell(obj: Obj) -> Any:
        found: Any = obj
        for step in path:
            found = found.get(step) if isinstance(found, dict) else None
        return default if found is None else found

    return cell


def _modes(obj: Obj) -> str:
    found = (obj.get("status") or {}).get("accessModes") or (obj.get("spec") or {}).get("accessModes") or []
    return ",".join(_MODES.get(m, m) for m in found)


def _pvc_status(obj: Obj) -> str:
    if obj["metadata"].get("deletionTimestamp"):
        return "Terminating"
    return str((obj.get("status") or {}).get("phase", ""))


def _bound(shown: Callable[[Obj], Any]) -> Callable[[Obj], Any]:
    return lambda obj: shown(obj) if (obj.get("spec") or {}).get("volumeName") else ""


def _claim(obj: Obj) -> str:
    reference = (obj.get("spec") or {}).get("claimRef")
    return f"{reference.get('namespace', '')}/{reference.get('name', '')}" if reference else ""


def _pod_ready(obj: Obj) -> str:
    statuses = (obj.get("status") or {}).get("containerStatuses") or []
    return f"{sum(bool(s.get('ready')) for s in statuses)}/{len(obj['spec'].get('containers') or [])}"


def _pod_status(obj: Obj) -> str:
    status = obj.get("status") or {}
    shown = str(status.get("reason") or status.get("phase") or "")
    for container in reversed(status.get("containerStatuses") or []):
        state = container.get("state") or {}
        waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
        if waiting.get("reason"):
            shown = waiting["reason"]
        elif ended.get("reason"):
            shown = ended["reason"]
        elif "terminated" in state:
            shown = f"Signal:{ended['signal']}" if ended.get("signal") else f"ExitCode:{ended.get('exitCode', 0)}"
    if obj["metadata"].get("deletionTimestamp") and status.get("phase") not in {"Succeeded", "Failed"}:
        return "Terminating"
    return shown


def _restarts(obj: Obj) -> str:
    statuses = (obj.get("status") or {}).get("containerStatuses") or []
    return str(sum(int(s.get("restartCount") or 0) for s in statuses))


def _gates(obj: Obj) -> str:
    return "<none>"


def _job_status(obj: Obj) -> str:
    status = obj.get("status") or {}
    true = {c["type"] for c in status.get("conditions") or [] if c.get("status") == "True"}
    for condition, shown in (("Complete", "Complete"), ("Failed", "Failed")):
        if condition in true:
            return shown
    if obj["metadata"].get("deletionTimestamp"):
        return "Terminating"
    for condition in ("Suspended", "FailureTarget", "SuccessCriteriaMet"):
        if condition in true:
            return condition
    return "Running"


def _completions(obj: Obj) -> str:
    spec, done = obj["spec"], int((obj.get("status") or {}).get("succeeded") or 0)
    if spec.get("completions") is not None:
        return f"{done}/{spec['completions']}"
    parallel = int(spec.get("parallelism") or 0)
    return f"{done}/1 of {parallel}" if parallel > 1 else f"{done}/1"


def _job_duration(obj: Obj) -> str:
    status = obj.get("status") or {}
    start = status.get("startTime")
    if not start:
        return ""
    end = parse_time(status["completionTime"]) if status.get("completionTime") else dt.datetime.now(dt.UTC)
    return human_duration(int((end - parse_time(start)).total_seconds()))


def _containers(key: str) -> Callable[[Obj], str]:
    def cell(obj: Obj) -> str:
        spec = obj["spec"].get("template", {}).get("spec") or {}
        return ",".join(str(c.get(key, "")) for c in spec.get("containers") or [])

    return cell


def _selector(obj: Obj) -> str:
    labels = (obj["spec"].get("selector") or {}).get("matchLabels") or {}
    return ",".join(f"{k}={v}" for k, v in sorted(labels.items())) or "<none>"


def _event_seen(obj: Obj) -> str:
    series = obj.get("series") or {}
    return age(
        series.get("lastObservedTime") or obj.get("lastTimestamp") or obj.get("eventTime") or obj.get("firstTimestamp")
    )


def _event_first(obj: Obj) -> str:
    return age(obj.get("firstTimestamp") or obj.get("eventTime"))


def _event_object(obj: Obj) -> str:
    about = obj.get("involvedObject") or obj.get("regarding") or {}
    return f"{str(about.get('kind', '')).lower()}/{about.get('name', '')}"


def _event_source(obj: Obj) -> str:
    source = obj.get("source") or {}
    parts = [
        source.get("component") or obj.get("reportingComponent") or "",
        source.get("host") or obj.get("reportingInstance") or "",
    ]
    return ", ".join(p for p in parts if p)


def _node_status(obj: Obj) -> str:
    conditions = (obj.get("status") or {}).get("conditions") or []
    ready = next((c.get("status") for c in conditions if c.get("type") == "Ready"), None)
    shown = {"True": "Ready", None: "Unknown"}.get(ready, "NotReady")
    return shown + (",SchedulingDisabled" if obj.get("spec", {}).get("unschedulable") else "")


def _node_address(kind: str) -> Callable[[Obj], str]:
    def cell(obj: Obj) -> str:
        addresses = (obj.get("status") or {}).get("addresses") or []
        return next((str(a.get("address")) for a in addresses if a.get("type") == kind), "<none>")

    return cell


def _ports(obj: Obj) -> str:
    return ",".join(f"{p.get('port')}/{p.get('protocol', 'TCP')}" for p in obj["spec"].get("ports") or []) or "<none>"


def _role(obj: Obj) -> str:
    return f"{obj['roleRef'].get('kind')}/{obj['roleRef'].get('name')}"


def _is_default(obj: Obj) -> str:
    notes = obj["metadata"].get("annotations") or {}
    default = notes.get("storageclass.kubernetes.io/is-default-class") == "true"
    return f"{name_of(obj)} (default)" if default else name_of(obj)


_VOLUME_MODE = Column("VolumeMode", _at("spec", "volumeMode", default="<unset>"), priority=_WIDE)
_CLASS = _at("spec", "storageClassName")

BUILTIN_COLUMNS: dict[str, list[Column]] = {
    "namespaces": [NAME, Column("Status", _at("status", "phase")), AGE],
    "pods": [
        NAME,
        Column("Ready", _pod_ready),
        Column("Status", _pod_status),
        Column("Restarts", _restarts),
        AGE,
        Column("IP", _at("status", "podIP", default="<none>"), priority=_WIDE),
        Column("Node", _at("spec", "nodeName", default="<none>"), priority=_WIDE),
        Column("Nominated Node", _at("status", "nominatedNodeName", default="<none>"), priority=_WIDE),
        Column("Readiness Gates", _gates, priority=_WIDE),
    ],
    "persistentvolumeclaims": [
        NAME,
        Column("Status", _pvc_status),
        Column("Volume", _at("spec", "volumeName")),
        Column("Capacity", _bound(_at("status", "capacity", "storage"))),
        Column("Access Modes", _bound(_modes)),
        Column("StorageClass", _CLASS),
        Column("VolumeAttributesClass", _at("spec", "volumeAttributesClassName", default="<unset>")),
        AGE,
        _VOLUME_MODE,
    ],
    "persistentvolumes": [
        NAME,
        Column("Capacity", _at("spec", "capacity", "storage")),
        Column("Access Modes", _modes),
        Column("Reclaim Policy", _at("spec", "persistentVolumeReclaimPolicy")),
        Column("Status", _pvc_status),
        Column("Claim", _claim),
        Column("StorageClass", _CLASS),
        Column("VolumeAttributesClass", _at("spec", "volumeAttributesClassName", default="<unset>")),
        Column("Reason", _at("status", "reason")),
        AGE,
        _VOLUME_MODE,
    ],
    "jobs.batch": [
        NAME,
        Column("Status", _job_status),
        Column("Completions", _completions),
        Column("Duration", _job_duration),
        AGE,
        Column("Containers", _containers("name"), priority=_WIDE),
        Column("Images", _containers("image"), priority=_WIDE),
        Column("Selector", _selector, priority=_WIDE),
    ],
    "cronjobs.batch": [
        NAME,
        Column("Schedule", _at("spec", "schedule")),
        Column("Timezone", _at("spec", "timeZone", default="<none>")),
        Column("Suspend", lambda o: str(bool(o["spec"].get("suspend")))),
        Column("Active", lambda o: len((o.get("status") or {}).get("active") or []), type="integer"),
        Column(
            "Last Schedule", lambda o: age(t) if (t := (o.get("status") or {}).get("lastScheduleTime")) else "<none>"
        ),
        AGE,
    ],
    "events": [
        Column("Last Seen", _event_seen),
        Column("Type", _at("type")),
        Column("Reason", _at("reason")),
        Column("Object", _event_object),
        Column("Subobject", _at("involvedObject", "fieldPath"), priority=_WIDE),
        Column("Source", _event_source, priority=_WIDE),
        Column("Message", lambda o: str(o.get("message") or o.get("note") or "").strip()),
        Column("First Seen", _event_first, priority=_WIDE),
        Column("Count", lambda o: o.get("count") or (o.get("series") or {}).get("count") or 1, priority=_WIDE),
        Column("Name", name_of, priority=_WIDE, format="name"),
    ],
    "secrets": [
        NAME,
        Column("Type", _at("type")),
        Column("Data", lambda o: len(o.get("data") or {}), type="string"),
        AGE,
    ],
    "configmaps": [
        NAME,
        Column("Data", lambda o: len(o.get("data") or {}) + len(o.get("binaryData") or {}), type="string"),
        AGE,
    ],
    "serviceaccounts": [NAME, AGE],
    "services": [
        NAME,
        Column("Type", _at("spec", "type")),
        Column("Cluster-IP", _at("spec", "clusterIP", default="<none>")),
        Column("External-IP", lambda o: "<none>"),
        Column("Port(s)", _ports),
        AGE,
    ],
    "nodes": [
        NAME,
        Column("Status", _node_status),
        Column("Roles", lambda o: "<none>"),
        AGE,
        Column("Version", _at("status", "nodeInfo", "kubeletVersion")),
        Column("Internal-IP", _node_address("InternalIP"), priority=_WIDE),
        Column("External-IP", _node_address("ExternalIP"), priority=_WIDE),
        Column("OS-Image", _at("status", "nodeInfo", "osImage", default="<unknown>"), priority=_WIDE),
        Column("Kernel-Version", _at("status", "nodeInfo", "kernelVersion", default="<unknown>"), priority=_WIDE),
        Column(
            "Container-Runtime",
            _at("status", "nodeInfo", "containerRuntimeVersion", default="<unknown>"),
            priority=_WIDE,
        ),
    ],
    "leases.coordination.k8s.io": [NAME, Column("Holder", _at("spec", "holderIdentity")), AGE],
    "storageclasses.storage.k8s.io": [
        Column("Name", _is_default, format="name"),
        Column("Provisioner", _at("provisioner")),
        Column("ReclaimPolicy", _at("reclaimPolicy")),
        Column("VolumeBindingMode", _at("volumeBindingMode")),
        Column("AllowVolumeExpansion", lambda o: bool(o.get("allowVolumeExpansion"))),
        AGE,
    ],
    "volumeattachments.storage.k8s.io": [
        NAME,
        Column("Attacher", _at("spec", "attacher")),
        Column("PV", _at("spec", "source", "persistentVolumeName")),
        Column("Node", _at("spec", "nodeName")),
        Column("Attached", _at("status", "attached", default=False), type="boolean"),
        AGE,
    ],
    "csidrivers.storage.k8s.io": [
        NAME,
        Column("AttachRequired", _at("spec", "attachRequired", default=True), type="boolean"),
        Column("PodInfoOnMount", _at("spec", "podInfoOnMount", default=False), type="boolean"),
        Column("StorageCapacity", _at("spec", "storageCapacity", default=False), type="boolean"),
        Column(
            "TokenRequests",
            lambda o: ",".join(t.get("audience", "") for t in o["spec"].get("tokenRequests") or []) or "<unset>",
        ),
        Column("RequiresRepublish", _at("spec", "requiresRepublish", default=False), type="boolean"),
        Column("Modes", lambda o: ",".join(o["spec"].get("volumeLifecycleModes") or [])),
        AGE,
    ],
    "csinodes.storage.k8s.io": [
        NAME,
        Column("Drivers", lambda o: len(o["spec"].get("drivers") or []), type="integer"),
        AGE,
    ],
    "rolebindings.rbac.authorization.k8s.io": [NAME, Column("Role", _role), AGE],
    "clusterrolebindings.rbac.authorization.k8s.io": [NAME, Column("Role", _role), AGE],
}
