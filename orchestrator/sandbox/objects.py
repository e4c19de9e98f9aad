"""Read plain Kubernetes objects without tripping over what is absent.

Nothing here changes an object or talks to a server.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

Manifest = dict[str, Any]
"""An object as the API server's JSON says it."""
Key = tuple[str, str]
"""(namespace, name); the namespace is "" for cluster-scoped objects."""


def meta(obj: Manifest) -> Manifest:
    """Return metadata, empty if absent."""
    found: Manifest = obj.get("metadata") or {}
    return found


def name(obj: Manifest) -> str:
    """Return metadata.name."""
    return str(meta(obj).get("name", ""))


def namespace(obj: Manifest) -> str:
    """Return metadata.namespace ("" when cluster scoped)."""
    return str(meta(obj).get("namespace", ""))


def key(obj: Manifest) -> Key:
    """Return (namespace, name)."""
    return namespace(obj), name(obj)


def uid(obj: Manifest) -> str:
    """Return metadata.uid."""
    return str(meta(obj).get("uid", ""))


def version(obj: Manifest) -> int:
    """Return resourceVersion as a number; 0 if absent. Real API servers and ours count up."""
    return int(meta(obj).get("resourceVersion") or 0)


def deleting(obj: Manifest) -> bool:
    """Return whether deletion was asked for."""
    return bool(meta(obj).get("deletionTimestamp"))


def annotations_of(obj: Manifest) -> dict[str, str]:
    """Return the annotations, empty if absent."""
    return meta(obj).get("annotations") or {}


def labels(obj: Manifest) -> dict[str, str]:
    """Return the labels, empty if absent."""
    return meta(obj).get("labels") or {}


def finalizers(obj: Manifest) -> list[str]:
    """Return the finalizers, empty if absent."""
    return meta(obj).get("finalizers") or []


def spec(obj: Manifest) -> Manifest:
    """Return spec, empty if absent."""
    found: Manifest = obj.get("spec") or {}
    return found


def status(obj: Manifest) -> Manifest:
    """Return status, empty if absent."""
    found: Manifest = obj.get("status") or {}
    return found


def reference(obj: Manifest, *, api_version: str, kind: str) -> Manifest:
    """Return an ObjectReference to `obj`."""
    ref = {"apiVersion": api_version, "kind": kind, "name": name(obj), "uid": uid(obj)}
    if namespace(obj):
        ref["namespace"] = namespace(obj)
    if meta(obj).get("resourceVersion"):
        ref["resourceVersion"] = meta(obj)["resourceVersion"]
    return ref


def owner(obj: Manifest, *, controller: bool = True) -> Manifest | None:
    """Return the controlling owner reference, if there is one."""
    return next((o for o in meta(obj).get("ownerReferences") or [] if bool(o.get("controller")) == controller), None)


def timestamp(moment: datetime | None = None) -> str:
    """Return an instant (default: now) as metav1.Time prints it."""
    return (moment or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime:
    """Return an RFC 3339 instant, aware."""
    return datetime.fromisoformat(text)


def without(items: Iterable[str], *drop: str) -> list[str]:
    """Return `items` without those in `drop`, in order."""
    return [item for item in items if item not in drop]
