"""One compiled schema tree for builtin kinds (from Kubernetes' OpenAPI) and for CRDs (structural schemas).

Everything that must know the shape of an object walks these nodes: unknown fields, defaults, validation, strategic
merge, server-side apply, `kubectl explain`. A node is compiled once per kind and never changed afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from orchestrator.sandbox.apiserver.objects import clone
from orchestrator.sandbox.apiserver.timestamps import broken_time

_UNSET: Any = object()


class Node:
    """One place in a schema.

    `fields` are the declared properties, `values` the node for map values (None: not a free map). `opaque` accepts
    anything below and keeps it (RawExtension, FieldsV1, x-kubernetes-preserve-unknown-fields without structure).
    """

    __slots__ = (
        "deep_rules",
        "default",
        "embedded",
        "fields",
        "format",
        "has_defaults",
        "int_or_string",
        "items",
        "list_keys",
        "list_type",
        "map_type",
        "merge_key",
        "merge_strategy",
        "name",
        "nullable",
        "opaque",
        "preserve",
        "raw",
        "required",
        "rules",
        "type",
        "values",
    )  # fmt: skip

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw
        self.type: str = raw.get("type", "")
        self.format: str = raw.get("format", "")
        self.fields: dict[str, Node] = {}
        self.values: Node | None = None
        self.items: Node | None = None
        self.required: list[str] = list(raw.get("required", ()))
        self.preserve = bool(raw.get("x-kubernetes-preserve-unknown-fields"))
        self.embedded = bool(raw.get("x-kubernetes-embedded-resource"))
        self.int_or_string = bool(raw.get("x-kubernetes-int-or-string")) or self.format == "int-or-string"
        self.list_type: str = raw.get("x-kubernetes-list-type", "")
        self.list_keys: list[str] = list(raw.get("x-kubernetes-list-map-keys", ()))
        self.map_type: str = raw.get("x-kubernetes-map-type", "")
        self.merge_key: str = raw.get("x-kubernetes-patch-merge-key", "")
        self.merge_strategy: str = raw.get("x-kubernetes-patch-strategy", "")
        self.default: Any = raw.get("default", _UNSET)
        self.nullable = bool(raw.get("nullable"))
        self.opaque = False
        self.has_defaults = False
        self.rules: Any = None
        self.deep_rules = False
        self.name = ""

    @property
    def is_object(self) -> bool:
        return self.type == "object" or bool(self.fields) or self.values is not None

    @property
    def has_default(self) -> bool:
        return self.default is not _UNSET

    @property
    def atomic_map(self) -> bool:
        return self.map_type == "atomic"

    def child(self, name: str) -> Node | None:
        """Return the node of a property or map value; None when the schema says nothing about it."""
        return self.fields.get(name) or self.values


_PREFIX = "#/definitions/"
#: Definitions whose content has no schema of its own.
_OPAQUE = {
    "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1",
    "io.k8s.apimachinery.pkg.runtime.RawExtension",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON",
}
#: Unions that the definitions leave without a type: a schema, or a bool, or a list.
_UNIONS = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOr"


class Definitions:
    """Compile builtin definitions on demand; recursive ones refer to the node that is being built."""

    def __init__(self, raw: Mapping[str, Mapping[str, Any]]) -> None:
        self._raw = raw
        self._nodes: dict[str, Node] = {}

    def node(self, name: str) -> Node:
        if name not in self._nodes:
            raw = self._raw[name]
            node = self._nodes[name] = Node(raw)
            node.name = name.rsplit(".", 1)[-1]
            node.opaque = name in _OPAQUE or name.startswith(_UNIONS)
            self._fill(node, raw)
        return self._nodes[name]

    def _compile(self, raw: Mapping[str, Any]) -> Node:
        reference = raw.get("$ref")
        if not reference:
            node = Node(raw)
            self._fill(node, raw)
            return node
        name = str(reference).removeprefix(_PREFIX)
        target = self.node(name)
        extras = {k: v for k, v in raw.items() if k.startswith("x-kubernetes-")}
        if not extras:
            return target
        node = Node({**target.raw, **extras})
        node.opaque, node.name = target.opaque, target.name
        self._fill(node, target.raw)
        return node

    def _fill(self, node: Node, raw: Mapping[str, Any]) -> None:
        for name, sub in raw.get("properties", {}).items():
            node.fields[name] = self._compile(sub)
        extra = raw.get("additionalProperties")
        if isinstance(extra, Mapping):
            node.values = self._compile(extra)
        if "items" in raw:
            node.items = self._compile(raw["items"])
        if not node.fields and node.values is None and node.type == "object":
            node.opaque = True


def compile_structural(raw: Mapping[str, Any]) -> Node:
    """Compile a CRD's openAPIV3Schema (already known to be structural)."""
    node = Node(raw)
    for name, sub in (raw.get("properties") or {}).items():
        node.fields[name] = compile_structural(sub)
    extra = raw.get("additionalProperties")
    if isinstance(extra, Mapping):
        node.values = compile_structural(extra)
    elif extra is True:
        node.values = compile_structural({"x-kubernetes-preserve-unknown-fields": True})
    if isinstance(raw.get("items"), Mapping):
        node.items = compile_structural(raw["items"])
    below = [*node.fields.values(), *(n for n in (node.values, node.items) if n)]
    node.has_defaults = node.has_default or any(n.has_defaults for n in below)
    node.opaque = node.preserve and not below
    return node


def with_metadata(node: Node, meta: Node) -> Node:
    """Give a CRD's root the fields that every object has; the schema may not say more about them."""
    declared = node.fields.get("metadata")
    node.fields.setdefault("apiVersion", Node({"type": "string"}))
    node.fields.setdefault("kind", Node({"type": "string"}))
    node.fields["metadata"] = meta
    if declared is not None:
        node.raw = {**node.raw, "x-metadata": declared.raw}
    return node


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def drop_unknown(value: Any, node: Node, meta: Node, path: str = "") -> list[str]:
    """Remove fields that the schema does not know, in place; return their paths (`spec.a[0].b`), in order."""
    if node.opaque and not node.embedded:
        return []
    gone: list[str] = []
    if isinstance(value, dict):
        for name in list(value):
            child = node.child(name)
            if node.embedded and child is None and name in {"apiVersion", "kind", "metadata"}:
                if name == "metadata":
                    gone += drop_unknown(value[name], meta, meta, join(path, name))
            elif child is not None:
                gone += drop_unknown(value[name], child, meta, join(path, name))
            elif not node.preserve and not node.opaque and (node.is_object or not node.type):
                del value[name]
                gone.append(join(path, name))
    elif isinstance(value, list) and node.items is not None:
        for index, item in enumerate(value):
            gone += drop_unknown(item, node.items, meta, f"{path}[{index}]")
    return gone


def set_defaults(value: Any, node: Node) -> None:
    """Fill in a CRD's defaults, in place; a null on a non-nullable field with a default counts as absent."""
    if not node.has_defaults:
        return
    if isinstance(value, dict):
        for name, child in node.fields.items():
            if child.has_default and (name not in value or (value[name] is None and not child.nullable)):
                value[name] = clone(child.default)
            if child.has_defaults and name in value:
                set_defaults(value[name], child)
        if node.values is not None and node.values.has_defaults:
            for name, item in value.items():
                if name not in node.fields:
                    set_defaults(item, node.values)
    elif isinstance(value, list) and node.items is not None:
        for item in value:
            set_defaults(item, node.items)


def drop_nulls(value: Any, node: Node) -> None:
    """Remove nulls of fields that are neither nullable nor defaulted, in place, as before any validation."""
    if isinstance(value, dict):
        for name in list(value):
            child = node.fields.get(name)
            if child is None:
                if node.values is not None:
                    drop_nulls(value[name], node.values)
            elif value[name] is None and not child.nullable and not child.has_default:
                del value[name]
            else:
                drop_nulls(value[name], child)
    elif isinstance(value, list) and node.items is not None:
        for item in value:
            drop_nulls(item, node.items)


_GO_TYPES = {"string": "string", "boolean": "bool", "integer": "int64", "number": "float64"}
_JSON_TYPES: dict[type, str] = {
    str: "string",
    bool: "bool",
    int: "number",
    float: "number",
    dict: "object",
    list: "array",
}


def check_types(value: Any, node: Node, struct: str = "", path: str = "") -> str:
    """Return what Go's decoder says about the first value of a wrong type in a builtin object; "" if all are right."""
    if node.name == "Quantity" and isinstance(value, str) and not is_quantity(value):
        return "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    if value is None or node.opaque or node.int_or_string or node.name in {"Quantity", "Duration"}:
        return ""
    if node.name in {"Time", "MicroTime"} and isinstance(value, str):
        return broken_time(value, micro=node.name == "MicroTime")
    if node.format == "byte" and isinstance(value, str) and (at := _broken_base64(value)) is not None:
        return f"illegal base64 data at input byte {at}"
    found = _JSON_TYPES[type(value)]
    wanted = "object" if node.is_object else node.type
    expected = {"array": "array", "object": "object", "string": "string", "boolean": "bool"}.get(wanted, "number")
    if wanted and found != expected:
        return f"json: cannot unmarshal {found} into Go struct field {struct}.{path} of type {_go_type(node)}"
    if isinstance(value, dict):
        inner = node.name or struct
        for name, item in value.items():
            child = node.child(name)
            below = path if node.values is not None and name not in node.fields else join(path, name)
            if child is not None and (problem := check_types(item, child, inner, below)):
                return problem
    elif isinstance(value, list) and node.items is not None:
        for item in value:
            if problem := check_types(item, node.items, struct, path):
                return problem
    return ""


_QUANTITY = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?\d+)?")
_BASE64 = re.compile(r"[A-Za-z0-9+/\r\n]*")


def is_quantity(text: str) -> bool:
    return _QUANTITY.fullmatch(text) is not None


def _broken_base64(text: str) -> int | None:
    """Return where a base64 text stops being one; None when it is whole."""
    found = _BASE64.match(text)
    end = found.end() if found else 0
    if end < len(text.rstrip("=")):
        return end
    return None if len(text.replace("\n", "").replace("\r", "")) % 4 == 0 else len(text)


def _go_type(node: Node) -> str:
    if node.type == "array" and node.items is not None:
        return f"[]{_go_type(node.items)}"
    if node.values is not None and not node.fields:
        return f"map[string]{_go_type(node.values)}"
    if node.format in {"int32", "int64"}:
        return node.format
    return _GO_TYPES.get(node.type) or f"v1.{node.name}"
