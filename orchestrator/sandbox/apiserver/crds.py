"""CustomResourceDefinitions: turn a definition into served kinds, and keep its status true."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.sandbox.apiserver.cel_rules import compile_rules
from orchestrator.sandbox.apiserver.objects import Obj, clone, now_text
from orchestrator.sandbox.apiserver.registry import Kind, Registry, Subresource, object_meta
from orchestrator.sandbox.apiserver.schema import Node, compile_structural, with_metadata
from orchestrator.sandbox.apiserver.store import Change, Store

CRDS = "customresourcedefinitions.apiextensions.k8s.io"
CLEANUP = "customresourcecleanup.apiextensions.k8s.io"


def kinds_of(crd: Obj) -> list[Kind]:
    """Compile every served version of a definition."""
    return [_kind(crd, version) for version in crd["spec"]["versions"] if version.get("served")]


def _kind(crd: Obj, version: Obj) -> Kind:
    spec, wanted = crd["spec"], crd["spec"]["names"]
    subresources = version.get("subresources") or {}
    raw = (version.get("schema") or {}).get("openAPIV3Schema") or {"x-kubernetes-preserve-unknown-fields": True}
    return Kind(
        group=spec["group"],
        version=version["name"],
        kind=wanted["kind"],
        plural=wanted["plural"],
        singular=wanted.get("singular") or wanted["kind"].lower(),
        namespaced=spec["scope"] == "Namespaced",
        storage=crd["metadata"]["name"],
        schema=_schema(raw),
        short_names=tuple(wanted.get("shortNames") or ()),
        categories=tuple(wanted.get("categories") or ()),
        verbs=("delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"),
        subresources=tuple(_subresources(spec, version, subresources)),
        list_kind=wanted.get("listKind") or f"{wanted['kind']}List",
        crd=crd,
        columns=tuple(version.get("additionalPrinterColumns") or ()),
        storage_version=bool(version.get("storage")),
        warning=_warning(crd, version),
        scale=subresources.get("scale"),
        selectable=tuple(f["jsonPath"].removeprefix(".") for f in version.get("selectableFields") or ()),
    )


def _schema(raw: Mapping[str, Any]) -> Node:
    node = with_metadata(compile_structural(raw), object_meta())
    compile_rules(node)
    return node


def _subresources(spec: Obj, version: Obj, found: Mapping[str, Any]) -> list[Subresource]:
    verbs = ("get", "patch", "update")
    result = []
    if found.get("status") is not None:
        result.append(Subresource("status", verbs, spec["group"], version["name"], spec["names"]["kind"]))
    if found.get("scale") is not None:
        result.append(Subresource("scale", verbs, "autoscaling", "v1", "Scale"))
    return result


def _warning(crd: Obj, version: Obj) -> str:
    if not version.get("deprecated"):
        return ""
    spec = crd["spec"]
    return (
        version.get("deprecationWarning") or f"{spec['group']}/{version['name']} {spec['names']['kind']} is deprecated"
    )


def _condition(kind: str, status: str, reason: str, message: str) -> Obj:
    return {"type": kind, "status": status, "lastTransitionTime": now_text(), "reason": reason, "message": message}


class Definitions:
    """Watch the definitions' table and serve what it says."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store, self._registry = store, registry
        for crd in store.all(CRDS):
            if _established(crd):
                registry.replace(crd["metadata"]["name"], kinds_of(crd))
        store.on_change(self._changed)

    def _changed(self, storage: str, change: Change) -> None:
        if storage != CRDS:
            return
        if change.after is None:
            assert change.before is not None
            self._registry.replace(change.before["metadata"]["name"], [])
            return
        if (
            change.before is None
            or change.before.get("spec") != change.after.get("spec")
            or not _established(change.after)
        ):
            self._accept(change.after)

    def _accept(self, crd: Obj) -> None:
        """Set the status of a new or changed definition, and serve it when its names are free."""
        taken = self._taken(crd)
        status = clone(crd.get("status") or {})
        stored = status.get("storedVersions") or []
        current = [v["name"] for v in crd["spec"]["versions"] if v.get("storage")]
        if taken:
            conditions = [
                _condition("NamesAccepted", "False", taken[0], taken[1]),
                _condition("Established", "False", "NotAccepted", "not all names are accepted"),
            ]
            accepted: Obj = {"plural": "", "kind": ""}
        else:
            conditions = [
                _condition("NamesAccepted", "True", "NoConflicts", "no conflicts found"),
                _condition("Established", "True", "InitialNamesAccepted", "the initial names have been accepted"),
            ]
            accepted = clone(crd["spec"]["names"])
        before = {c["type"]: c for c in status.get("conditions") or []}
        conditions = [
            before[c["type"]] if c["type"] in before and before[c["type"]]["status"] == c["status"] else c
            for c in conditions
        ]
        new = {
            "conditions": [c for t, c in before.items() if t not in {"NamesAccepted", "Established"}] + conditions,
            "acceptedNames": accepted,
            "storedVersions": [*stored, *(v for v in current if v not in stored)],
        }
        meta = dict(crd["metadata"])
        meta["finalizers"] = list(dict.fromkeys([*(meta.get("finalizers") or []), CLEANUP]))
        settled = {**crd, "metadata": meta, "status": new}
        if not taken:
            self._registry.replace(crd["metadata"]["name"], kinds_of(settled))
        if new != crd.get("status") or meta != crd["metadata"]:
            self._store.put(CRDS, settled)

    def _taken(self, crd: Obj) -> tuple[str, str] | None:
        wanted, name = crd["spec"]["names"], crd["metadata"]["name"]
        for other in self._store.all(CRDS):
            if other["metadata"]["name"] == name or other["spec"]["group"] != crd["spec"]["group"]:
                continue
            found = (other.get("status") or {}).get("acceptedNames") or {}
            if wanted["kind"] in {found.get("kind"), found.get("listKind")}:
                return "KindConflict", f'"{wanted["kind"]}" is already in use'
            clash = {wanted.get("singular"), *(wanted.get("shortNames") or [])} & {
                found.get("plural"), found.get("singular"), *(found.get("shortNames") or []),
            } - {None}  # fmt: skip
            if clash:
                return "ShortNamesConflict", f'"{min(map(str, clash))}" is already in use'
        return None


def _established(crd: Obj) -> bool:
    conditions = (crd.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)
