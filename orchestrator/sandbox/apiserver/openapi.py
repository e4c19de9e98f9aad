"""OpenAPI v3 (one document per group version) and v2 (one for all), from the builtin definitions and the CRDs."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from orchestrator.sandbox.apiserver import openapi_binary
from orchestrator.sandbox.apiserver.objects import Obj
from orchestrator.sandbox.apiserver.registry import META, Kind, Registry, builtin_document
from orchestrator.sandbox.apiserver.status import path_not_found

_V3 = "#/components/schemas/"
_V2 = "#/definitions/"
_LIST_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"
_PATCH_TYPES = (
    "application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json",
    "application/strategic-merge-patch+json",
)  # fmt: skip


def _path(group: str, version: str) -> str:
    return f"apis/{group}/{version}" if group else f"api/{version}"


def _definition(kind: Kind) -> str:
    if kind.definition:
        return kind.definition
    reverse = ".".join(reversed(kind.group.split(".")))
    return f"{reverse}.{kind.version}.{kind.kind}"


class OpenApi:
    """Build the documents on demand and keep them until the registry changes; called in threads, as it takes 0.1 s."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._cache: dict[str, tuple[int, bytes]] = {}

    def _cached(self, key: str, build: Any) -> bytes:
        revision = self._registry.revision
        found = self._cache.get(key)
        if found is None or found[0] != revision:
            built = build()
            found = (revision, built if isinstance(built, bytes) else msgspec.json.encode(built))
            self._cache[key] = found
        return found[1]

    def index(self) -> Obj:
        """Return the list of v3 documents, each with a hash of its content."""
        paths = {}
        for group, version in dict.fromkeys((k.group, k.version) for k in self._registry):
            body = self.v3(group, version)
            digest = hashlib.sha512(body).hexdigest().upper()
            path = _path(group, version)
            paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={digest}"}
        return {"paths": paths}

    def v3(self, group: str, version: str) -> bytes:
        return self._cached(f"{group}/{version}", lambda: self._build_v3(group, version))

    def v2(self) -> bytes:
        return self._cached("v2", self.build_v2)

    def v2_binary(self) -> bytes:
        return self._cached("v2 binary", lambda: openapi_binary.encode(self.build_v2()))

    def _kinds(self, group: str, version: str) -> list[Kind]:
        return [k for k in self._registry if (k.group, k.version) == (group, version)]

    def _build_v3(self, group: str, version: str) -> Obj:
        kinds = self._kinds(group, version)
        if not kinds:
            raise path_not_found()
        schemas = _with_references(self._schemas(kinds))
        paths: Obj = {}
        for kind in kinds:
            paths.update(_paths(kind, v3=True))
        info = {"title": "Kubernetes", "version": builtin_document()["version"]}
        body = {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": schemas}}
        rewritten: Obj = _rewrite(body)
        return rewritten

    def build_v2(self) -> Obj:
        kinds = list(self._registry)
        paths: Obj = {}
        for kind in kinds:
            paths.update(_paths(kind, v3=False))
        definitions = {**builtin_document()["definitions"], **self._schemas([k for k in kinds if k.custom])}
        info = {"title": "Kubernetes", "version": builtin_document()["version"]}
        return {"swagger": "2.0", "info": info, "paths": paths, "definitions": definitions}

    def _schemas(self, kinds: list[Kind]) -> Obj:
        found: Obj = {}
        for kind in kinds:
            name = _definition(kind)
            if kind.custom:
                found[name] = _custom_schema(kind)
                found[f"{name}List"] = _custom_list(kind, name)
            else:
                found[name] = builtin_document()["definitions"][name]
                if f"{name}List" in builtin_document()["definitions"]:
                    found[f"{name}List"] = builtin_document()["definitions"][f"{name}List"]
        return found


def _custom_schema(kind: Kind) -> Obj:
    version = next(v for v in kind.crd["spec"]["versions"] if v["name"] == kind.version)
    raw = dict((version.get("schema") or {}).get("openAPIV3Schema") or {})
    raw.setdefault("type", "object")
    standard = {
        "apiVersion": {"type": "string", "description": "Group and version that this object is written in."},
        "kind": {"type": "string", "description": "What this object is."},
        "metadata": {"$ref": _V2 + META, "description": "Name, namespace, labels and what the server adds."},
    }
    raw["properties"] = {**(raw.get("properties") or {}), **standard}
    raw["x-kubernetes-group-version-kind"] = [{"group": kind.group, "version": kind.version, "kind": kind.kind}]
    return raw


def _custom_list(kind: Kind, name: str) -> Obj:
    return {
        "description": f"{kind.lists} is a list of {kind.kind}",
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "items": {"type": "array", "items": {"$ref": _V2 + name}},
            "metadata": {"$ref": _V2 + _LIST_META},
        },
        "x-kubernetes-group-version-kind": [{"group": kind.group, "version": kind.version, "kind": kind.lists}],
    }


def _references(node: Any, found: set[str]) -> None:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            found.add(node["$ref"].rsplit("/", 1)[-1])
        for value in node.values():
            _references(value, found)
    elif isinstance(node, list):
        for value in node:
            _references(value, found)


def _with_references(schemas: Obj) -> Obj:
    """Add every definition that the schemas refer to."""
    builtin = builtin_document()["definitions"]
    pending, result = set(schemas), dict(schemas)
    pending.add("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions")
    while pending:
        name = pending.pop()
        if name not in result:
            result[name] = builtin[name]
        found: set[str] = set()
        _references(result[name], found)
        pending |= found - set(result)
    return result


def _rewrite(node: Any) -> Any:
    """Point references at v3's components."""
    if isinstance(node, dict):
        return {
            k: (v.replace(_V2, _V3) if k == "$ref" and isinstance(v, str) else _rewrite(v)) for k, v in node.items()
        }
    if isinstance(node, list):
        return [_rewrite(v) for v in node]
    return node


def _parameter(name: str, kind: str = "string", *, v3: bool) -> Obj:
    shape: Obj = {"schema": {"type": kind, "uniqueItems": True}} if v3 else {"type": kind, "uniqueItems": True}
    return {"name": name, "in": "query", **shape}


def _paths(kind: Kind, *, v3: bool) -> Obj:
    """Return the operations that clients look for: what can be written, and with which parameters."""
    base = "/" + _path(kind.group, kind.version)
    middle = "/namespaces/{namespace}" if kind.namespaced else ""
    collection = f"{base}{middle}/{kind.plural}"
    gvk = {"group": kind.group, "version": kind.version, "kind": kind.kind}
    reference = {"$ref": (_V3 if v3 else _V2) + _definition(kind)}
    writes = [_parameter(n, v3=v3) for n in ("dryRun", "fieldManager", "fieldValidation")]

    def operation(action: str, parameters: list[Obj]) -> Obj:
        content: Obj = {"schema": reference}
        answer: Obj = {"description": "OK", **({"content": {"application/json": content}} if v3 else content)}
        body: Obj = {
            "description": f"{action} {kind.kind}",
            "operationId": f"{action}{kind.group.title().replace('.', '')}{kind.version.title()}{kind.kind}",
            "parameters": parameters,
            "responses": {"200": answer},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk,
        }
        if not v3:
            body["produces"] = ["application/json", "application/yaml"]
            body["consumes"] = list(_patch_types(kind)) if action == "patch" else ["*/*"]
        return body

    item: Obj = {}
    whole: Obj = {}
    if "get" in kind.verbs:
        item["get"] = operation("get", [])
        whole["get"] = operation("list", [])
    if "create" in kind.verbs:
        whole["post"] = operation("post", writes)
    if "update" in kind.verbs:
        item["put"] = operation("put", writes)
        item["patch"] = operation("patch", [*writes, _parameter("force", "boolean", v3=v3)])
        if v3:
            item["patch"]["requestBody"] = {"content": {t: {"schema": {"type": "object"}} for t in _patch_types(kind)}}
        item["delete"] = operation("delete", [_parameter("dryRun", v3=v3)])
    paths = {collection: whole}
    if item:
        paths[f"{collection}/{{name}}"] = item
    return paths


def _patch_types(kind: Kind) -> tuple[str, ...]:
    return tuple(t for t in _PATCH_TYPES if not (kind.custom and "strategic" in t))
