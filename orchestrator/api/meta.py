"""What every Kubernetes object has: its resource, its metadata, conditions.

A Struct class names its `RESOURCE`; `kube/` builds paths from it and decodes straight into the class. Unknown fields
are dropped while decoding (managedFields above all), which keeps the cache small.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, NamedTuple

import msgspec
from msgspec import Meta


class Resource(NamedTuple):
    """Where a kind lives on an API server."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool

    @property
    def api_version(self) -> str:
        """Return `group/version`, or `version` for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Return the URL path of a collection (no name) or an object."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        scope = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        tail = "".join(f"/{part}" for part in (name, subresource) if part)
        return f"{root}{scope}/{self.plural}{tail}"


class OwnerReference(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A link by which the garbage collector deletes: only inside one namespace, only for transient objects."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool = False
    block_owner_deletion: bool = False


class ObjectMeta(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The slice of metadata that we read and write."""

    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: tuple[str, ...] = ()
    owner_references: tuple[OwnerReference, ...] = ()


class K8sObject(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Base of every object class. Subclasses set `RESOURCE`."""

    RESOURCE: ClassVar[Resource]

    metadata: ObjectMeta = ObjectMeta()

    @property
    def name(self) -> str:
        """Return metadata.name."""
        return self.metadata.name

    @property
    def namespace(self) -> str:
        """Return metadata.namespace ("" when cluster scoped)."""
        return self.metadata.namespace

    @property
    def uid(self) -> str:
        """Return metadata.uid."""
        return self.metadata.uid

    @property
    def deleting(self) -> bool:
        """Return whether somebody asked for its deletion."""
        return self.metadata.deletion_timestamp is not None

    def to_manifest(self) -> dict[str, Any]:
        """Return the object as JSON-able data with apiVersion and kind, defaults left out."""
        body: dict[str, Any] = {"apiVersion": self.RESOURCE.api_version, "kind": self.RESOURCE.kind}
        body.update(msgspec.to_builtins(self))
        return body


class Condition(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One observation about an object, in the ecosystem's form."""

    type: Annotated[str, Meta(max_length=64, description="What is observed, in CamelCase.")]
    status: Annotated[str, Meta(pattern="^(True|False|Unknown)$", max_length=7, description="True, False or Unknown.")]
    reason: Annotated[str, Meta(max_length=64, description="Why, in CamelCase; the runbook's anchor.")] = ""
    message: Annotated[str, Meta(max_length=512, description="What happened and what to do.")] = ""
    last_transition_time: Annotated[datetime | None, Meta(description="When the status last changed.")] = None
    observed_generation: Annotated[int, Meta(ge=0, description="The generation of the spec it speaks of.")] = 0


def condition(conditions: tuple[Condition, ...], type_: str) -> Condition | None:
    """Return the condition of that type, if there."""
    return next((c for c in conditions if c.type == type_), None)


def with_condition(conditions: tuple[Condition, ...], new: Condition, now: datetime) -> tuple[Condition, ...]:
    """Return `conditions` with `new` in place of its type; the transition time moves only if the status does."""
    old = condition(conditions, new.type)
    moved = old is None or old.status != new.status or old.last_transition_time is None
    stamp = now.replace(microsecond=0) if moved else (old.last_transition_time if old else now)
    kept = tuple(c for c in conditions if c.type != new.type)
    return (*kept, msgspec.structs.replace(new, last_transition_time=stamp))
