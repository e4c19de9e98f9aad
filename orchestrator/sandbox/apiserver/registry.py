"""Which kinds this API serves: the builtin ones from Kubernetes' own discovery, and those that CRDs add and remove."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.sandbox.apiserver.schema import Definitions, Node
from orchestrator.sandbox.apiserver.status import qualified

META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


class Subresource(msgspec.Struct, frozen=True):
    """A subresource as discovery tells it; group/version/kind are those of its body."""

    name: str
    verbs: tuple[str, ...]
    group: str = ""
    version: str = ""
    kind: str = ""


class Kind(msgspec.Struct, frozen=True, eq=False):
    """One served kind in one version.

    `storage` names the table its objects are in: several versions of a CRD share one, and core and events.k8s.io
    Events do. `crd` is the definition object of custom kinds.
    """

    group: str
    version: str
    kind: str
    plural: str
    singular: str
    namespaced: bool
    storage: str
    schema: Node
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    subresources: tuple[Subresource, ...] = ()
    list_kind: str = ""
    definition: str = ""
    crd: Any = None
    columns: tuple[Any, ...] = ()
    storage_version: bool = True
    warning: str = ""
    scale: Any = None
    selectable: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def lists(self) -> str:
        return self.list_kind or f"{self.kind}List"

    @property
    def custom(self) -> bool:
        return self.crd is not None

    @property
    def qualified(self) -> str:
        return qualified(self.plural, self.group)

    def has(self, subresource: str) -> bool:
        return any(s.name == subresource for s in self.subresources)


@functools.cache
def builtin_document() -> Mapping[str, Any]:
    """Return what was cut out of a Kubernetes release; shared, never changed."""
    path = Path(__file__).with_name("builtin") / "kinds.json"
    document: Mapping[str, Any] = msgspec.json.decode(path.read_bytes())
    return document


@functools.cache
def definitions() -> Definitions:
    return Definitions(builtin_document()["definitions"])


@functools.cache
def object_meta() -> Node:
    return definitions().node(META)


@functools.cache
def _names() -> dict[tuple[str, str, str], str]:
    found: dict[tuple[str, str, str], str] = {}
    for name, raw in builtin_document()["definitions"].items():
        for gvk in raw.get("x-kubernetes-group-version-kind", ()):
            found.setdefault((gvk["group"], gvk["version"], gvk["kind"]), name)
    return found


def definition_name(group: str, version: str, kind: str) -> str:
    """Return the OpenAPI definition of a builtin kind; KeyError when there is none."""
    return _names()[(group, version, kind)]


def builtin_kinds() -> list[Kind]:
    """Build every builtin kind, in discovery order."""
    kinds = []
    for group in builtin_document()["groups"]:
        for version in group["versions"]:
            kinds += [_builtin(group["name"], version["version"], entry) for entry in version["resources"]]
    return kinds


def _builtin(group: str, version: str, entry: Mapping[str, Any]) -> Kind:
    definition = definition_name(group, version, entry["kind"])
    storage = "events" if entry["plural"] == "events" else qualified(entry["plural"], group)
    return Kind(
        group=group,
        version=version,
        kind=entry["kind"],
        plural=entry["plural"],
        singular=entry["singular"],
        namespaced=entry["namespaced"],
        storage=storage,
        schema=definitions().node(definition),
        short_names=tuple(entry["short_names"]),
        categories=tuple(entry["categories"]),
        verbs=tuple(entry["verbs"]),
        subresources=tuple(msgspec.convert(s, Subresource) for s in entry["subresources"]),
        definition=definition,
    )


class Registry:
    """The served kinds, by group, version and plural. `revision` counts changes, for caches of documents."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str, str], Kind] = {}
        self.revision = 0
        for kind in builtin_kinds():
            self._kinds[(kind.group, kind.version, kind.plural)] = kind

    def find(self, group: str, version: str, plural: str) -> Kind | None:
        return self._kinds.get((group, version, plural))

    def by_kind(self, group: str, version: str, kind: str) -> Kind | None:
        return next((k for k in self if (k.group, k.version, k.kind) == (group, version, kind)), None)

    def any_version(self, group: str, kind: str) -> Kind | None:
        return next((k for k in self if (k.group, k.kind) == (group, kind)), None)

    def by_storage(self, storage: str) -> Kind | None:
        """Return the kind that objects of a table are stored as."""
        return next((k for k in self if k.storage == storage and k.storage_version), None)

    def serves(self, group: str) -> bool:
        """Tell whether anything of a group is served."""
        return any(kind.group == group for kind in self)

    def __iter__(self) -> Any:
        return iter(list(self._kinds.values()))

    def replace(self, storage: str, kinds: Iterable[Kind]) -> None:
        """Serve these versions of a custom kind, and no others of it."""
        self._kinds = {k: v for k, v in self._kinds.items() if v.storage != storage}
        for kind in kinds:
            self._kinds[(kind.group, kind.version, kind.plural)] = kind
        self.revision += 1
