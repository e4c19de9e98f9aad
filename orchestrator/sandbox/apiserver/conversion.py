"""Between what is stored and what a version shows: another apiVersion, or (Events) another shape."""

from __future__ import annotations

from orchestrator.sandbox.apiserver.objects import Obj
from orchestrator.sandbox.apiserver.registry import Kind

#: core/v1 Event field -> events.k8s.io/v1 field.
_EVENT_FIELDS = {
    "involvedObject": "regarding",
    "message": "note",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
    "reportingComponent": "reportingController",
}
_BACK = {v: k for k, v in _EVENT_FIELDS.items()}


def present(obj: Obj, kind: Kind) -> Obj:
    """Return a stored object as this version shows it (shallow: the parts are shared)."""
    if obj.get("apiVersion") == kind.api_version and obj.get("kind") == kind.kind:
        return obj
    if kind.storage == "events":
        obj = {_EVENT_FIELDS.get(k, k): v for k, v in obj.items()}
    return {**obj, "apiVersion": kind.api_version, "kind": kind.kind}


def to_stored(obj: Obj, kind: Kind, stored_as: Kind) -> Obj:
    """Return an object of this version as it is stored (shallow)."""
    if kind.storage == "events" and kind.group:
        obj = {_BACK.get(k, k): v for k, v in obj.items()}
    if obj.get("apiVersion") == stored_as.api_version:
        return obj
    return {**obj, "apiVersion": stored_as.api_version, "kind": stored_as.kind}
