"""Write a status: the smallest merge patch, only if something changed, never over somebody else's newer write.

Every noun's controller writes through here. What must never happen here: a status written from an old view (the
patch carries the resourceVersion it was computed from, so that is a Conflict) or a write that changes nothing.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from orchestrator.api.meta import K8sObject
from orchestrator.controllers.base import Context

T = TypeVar("T", bound=K8sObject)


def difference(old: Any, new: Any) -> dict[str, Any]:
    """Return the JSON merge patch (RFC 7396) that turns `old` into `new`, both Structs of one class; {} if equal."""
    return _merge(msgspec.to_builtins(old), msgspec.to_builtins(new))


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    patch: dict[str, Any] = dict.fromkeys(old.keys() - new.keys())
    for key, value in new.items():
        before = old.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            inner = _merge(before, value)
            if inner:
                patch[key] = inner
        elif key not in old or before != value:
            patch[key] = value
    return patch


async def patch_status(context: Context, obj: T, new_status: Any) -> T:
    """Make `new_status` the object's status and return the object as stored; nothing is sent when nothing changed.

    Raises Conflict when the object changed since `obj` was read: reconcile it again soon.
    """
    change = difference(obj.status, new_status)  # type: ignore[attr-defined]  # every kind of ours has one
    if not change:
        return obj
    body = {"metadata": {"resourceVersion": obj.metadata.resource_version}, "status": change}
    stored = await context.client.merge_patch(type(obj), obj.name, obj.namespace, body, subresource="status")
    context.caches.learn(stored)
    return stored
