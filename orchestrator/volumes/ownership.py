"""Whose an object is: made by us for one recovery point or restore, or a stranger's under the name that we wanted.

Names are deterministic, so AlreadyExists is the usual answer after a crash. It is believed only when the labels name
our work, the caller finds in the spec what it would have written, and we are among those who wrote the object. Labels
come along with any copy of an object; the API server's record of managers does not, though a client chooses its name in
there. So whoever sets out to deceive gets no further than to an object that is what ours would have been.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from orchestrator.api.meta import K8sObject, ObjectMeta
from orchestrator.api.tidemark.fields import (
    LABEL_MANAGED_BY,
    LABEL_POINT_UID,
    LABEL_REPOSITORY_UID,
    LABEL_RESTORE_UID,
    MANAGED_BY,
)
from orchestrator.errors import Retryable, Terminal
from orchestrator.kube.client import Client
from orchestrator.kube.errors import AlreadyExists

T = TypeVar("T", bound=K8sObject)

OWNER_LABELS = (LABEL_POINT_UID, LABEL_RESTORE_UID, LABEL_REPOSITORY_UID)


class NameTaken(Terminal):
    """A stranger's object has the name that our object would have."""

    reason = "NameTaken"
    remedy = "Remove or rename that object; Tidemark adopts nothing that it did not make."

    def __init__(self, kind: str, namespace: str, name: str, what: str = "it was not made by Tidemark") -> None:
        where = f"{namespace}/{name}" if namespace else name
        super().__init__(f"{kind} {where} is there already and {what}")


class StillGoing(Retryable):
    """An older object of ours is still being deleted under the name."""

    reason = "StillDeleting"
    remedy = "It goes on when the old object is gone."

    def __init__(self, kind: str, namespace: str, name: str) -> None:
        where = f"{namespace}/{name}" if namespace else name
        super().__init__(f"{kind} {where} is still being deleted")


def owner_of(labels: Mapping[str, str]) -> tuple[str, str] | None:
    """Return (label, uid) of the work that labels name, None when they name none of ours."""
    if labels.get(LABEL_MANAGED_BY) != MANAGED_BY:
        return None
    return next(((label, labels[label]) for label in OWNER_LABELS if labels.get(label)), None)


def is_ours(obj: K8sObject, labels: Mapping[str, str]) -> bool:
    """Return whether the object names the same work as `labels`."""
    wanted = owner_of(labels)
    return wanted is not None and owner_of(obj.metadata.labels) == wanted


class _Manager(msgspec.Struct, frozen=True):
    manager: str = ""


class _ManagedMeta(ObjectMeta, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    managed_fields: tuple[_Manager, ...] = ()


class _Managed(K8sObject, frozen=True, kw_only=True):
    metadata: _ManagedMeta = _ManagedMeta()


@functools.cache
def _managed(kind: type[K8sObject]) -> type[_Managed]:
    return type(f"Managed{kind.__name__}", (_Managed,), {"RESOURCE": kind.RESOURCE})


async def written_by_us(client: Client, kind: type[K8sObject], name: str, namespace: str) -> bool:
    """Return whether our field manager wrote the object; a server that keeps no such record is taken as saying so."""
    found = await client.find(_managed(kind), name, namespace)
    managers = {entry.manager for entry in found.metadata.managed_fields} if found is not None else set()
    return not managers or client.field_manager in managers


async def create_ours(
    client: Client, kind: type[T], manifest: Mapping[str, Any], fits: Callable[[T], str] = lambda _: ""
) -> T:
    """Create the object, or return ours that is there already; idempotent.

    `fits` looks at an object that is there and returns "" or what makes it a stranger's. Raises NameTaken, StillGoing.
    """
    metadata = manifest["metadata"]
    name, namespace = metadata["name"], metadata.get("namespace", "")
    try:
        return await client.create_raw(kind.RESOURCE, manifest, kind)
    except AlreadyExists:
        there = await client.find(kind, name, namespace)
    if there is None:
        raise StillGoing(kind.RESOURCE.kind, namespace, name)
    if not is_ours(there, metadata.get("labels", {})):
        raise NameTaken(kind.RESOURCE.kind, namespace, name)
    if wrong := fits(there):
        raise NameTaken(kind.RESOURCE.kind, namespace, name, wrong)
    if not await written_by_us(client, kind, name, namespace):
        raise NameTaken(kind.RESOURCE.kind, namespace, name, "somebody else wrote it in our name")
    if there.deleting:
        raise StillGoing(kind.RESOURCE.kind, namespace, name)
    return there
