"""Validate objects: structural schemas of CRDs in full, builtin kinds by the few rules that matter here."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import ipaddress
import re
from typing import Any

import re2  # type: ignore[import-untyped]

from orchestrator.sandbox.apiserver.builtin_rules import builtin_causes
from orchestrator.sandbox.apiserver.cel_rules import absent, by_key, check_rules, key_of
from orchestrator.sandbox.apiserver.crd_rules import crd_causes
from orchestrator.sandbox.apiserver.objects import Obj
from orchestrator.sandbox.apiserver.registry import Kind
from orchestrator.sandbox.apiserver.schema import Node, compile_structural, join
from orchestrator.sandbox.apiserver.status import (
    Cause,
    duplicate,
    invalid_value,
    not_supported,
    required,
    too_long,
    too_many,
    type_invalid,
)


def validate_object(kind: Kind, obj: Obj, old: Obj | None, *, status_only: bool = False) -> list[Cause]:
    """Return what is wrong with an object's content."""
    if kind.storage == "customresourcedefinitions.apiextensions.k8s.io":
        return [] if status_only else crd_causes(obj, old)
    if not kind.custom:
        return builtin_causes(kind, obj, old, status_only=status_only)
    causes: list[Cause] = []
    if status_only:
        causes = _status_causes(kind.schema.fields.get("status"), obj, old or {})
    else:
        _check(obj, kind.schema, "", causes, NONE if old is None else old)
    if any(c.reason in _BLOCKING for c in causes):
        if kind.schema.deep_rules:
            causes.append(Cause("FieldValueInvalid", f"Invalid value: null: {_NOT_CHECKED}", "<nil>"))
        return causes
    if status_only:
        child = kind.schema.fields.get("status")
        if child is not None and "status" in obj:
            causes += check_rules(obj["status"], (old or {}).get("status", NONE), child, "status")
        return causes
    return causes + check_rules(obj, NONE if old is None else old, kind.schema)


def _status_causes(node: Node | None, obj: Obj, old: Obj) -> list[Cause]:
    """Check a status by itself: its messages name fields relative to it, as the real server's do."""
    found: list[Cause] = []
    if node is not None and "status" in obj:
        _check(obj["status"], node, "", found, old.get("status", NONE))
    return [c._replace(field=f"status.{c.field}".rstrip(".")) if c.field != "<nil>" else c for c in found]


NONE = absent()
_BLOCKING = {"FieldValueRequired", "FieldValueTooLong", "FieldValueTooMany", "FieldValueTypeInvalid"}
_NOT_CHECKED = (
    "some validation rules were not checked because the object was invalid; correct the existing errors to complete "
    "validation"
)


_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if value is None:
        return "null"
    names = {dict: "object", list: "array", str: "string", int: "integer", float: "number"}
    return names[type(value)]


def _fits(value: Any, wanted: str) -> bool:
    if isinstance(value, bool):
        return wanted == "boolean"
    if wanted == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES.get(wanted, (object,)))


def _check(value: Any, node: Node, path: str, causes: list[Cause], old: Any = NONE) -> None:
    """Collect what is wrong with a value; what an update leaves as it was is not judged again (ratcheting)."""
    if (value is None and node.nullable) or (path and old is not NONE and old == value):
        return
    if node.int_or_string:
        if not isinstance(value, int | str) or isinstance(value, bool):
            causes.append(_wrong_type(path, value, "integer,string"))
            _check_unions(value, node, path, causes)
            return
    elif node.type and not _fits(value, node.type):
        causes.append(_wrong_type(path, value, node.type))
        if node.type == "integer" and isinstance(value, float):
            detail = f'Invalid value: "": Checked value must be of type integer (default format) in {path}'
            causes.append(Cause("FieldValueInvalid", detail, "<nil>"))
        return
    _check_values(value, node, path, causes)
    if isinstance(value, dict):
        _check_map(value, node, path, causes, old)
    elif isinstance(value, list):
        _check_list(value, node, path, causes, old)


def _wrong_type(path: str, value: Any, wanted: str) -> Cause:
    shown = path or "<nil>"
    return type_invalid(path, _type_of(value), f'{shown} in body must be of type {wanted}: "{_type_of(value)}"')


def _check_map(value: Obj, node: Node, path: str, causes: list[Cause], old: Any) -> None:
    raw = node.raw
    before = old if isinstance(old, dict) else {}
    causes += [required(join(path, name)) for name in node.required if name not in value]
    if "maxProperties" in raw and len(value) > raw["maxProperties"]:
        causes.append(too_many(path, len(value), raw["maxProperties"]))
    if len(value) < raw.get("minProperties", 0):
        causes.append(
            invalid_value(path, value, f"{path} in body should have at least {raw['minProperties']} properties")
        )
    if node.embedded:
        missing = [n for n in ("apiVersion", "kind") if not value.get(n)]
        causes += [required(join(path, n), "must not be empty") for n in missing]
    for name, item in value.items():
        child = node.fields.get(name)
        if child is not None:
            if path or name != "metadata":
                _check(item, child, join(path, name), causes, before.get(name, NONE))
        elif node.values is not None:
            _check(item, node.values, join(path, name), causes, before.get(name, NONE))


def _check_list(value: list[Any], node: Node, path: str, causes: list[Cause], old: Any) -> None:
    raw = node.raw
    if "maxItems" in raw and len(value) > raw["maxItems"]:
        causes.append(too_many(path, len(value), raw["maxItems"]))
    if len(value) < raw.get("minItems", 0):
        causes.append(invalid_value(path, value, f"{path} in body should have at least {raw['minItems']} items"))
    if node.items is not None:
        earlier = by_key(old, node)
        for index, item in enumerate(value):
            _check(item, node.items, f"{path}[{index}]", causes, earlier.get(key_of(item, node), NONE))
    if node.list_type in {"map", "set"}:
        _check_unique(value, node, path, causes)


def _check_unique(value: list[Any], node: Node, path: str, causes: list[Cause]) -> None:
    seen: list[Any] = []
    for index, item in enumerate(value):
        shown = (
            {k: item[k] for k in node.list_keys if k in item}
            if node.list_type == "map" and isinstance(item, dict)
            else item
        )
        if shown in seen:
            causes.append(duplicate(f"{path}[{index}]", shown))
        seen.append(shown)


def _check_values(value: Any, node: Node, path: str, causes: list[Cause]) -> None:
    raw = node.raw
    if "enum" in raw and value not in raw["enum"]:
        causes.append(not_supported(path, value, raw["enum"]))
    if isinstance(value, str):
        _check_text(value, node, path, causes)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _check_number(value, node, path, causes)
    _check_unions(value, node, path, causes)


def _check_unions(value: Any, node: Node, path: str, causes: list[Cause]) -> None:
    raw = node.raw
    for part in raw.get("allOf") or []:
        _check(value, _sub(part), path, causes)
    if raw.get("anyOf") and not any(_passes(value, p, path) for p in raw["anyOf"]):
        causes.append(_union(f'"{path}" must validate at least one schema (anyOf)'))
        _check(value, _sub(raw["anyOf"][0]), path, causes)
    if raw.get("oneOf") and (passed := sum(_passes(value, p, path) for p in raw["oneOf"])) != 1:
        found = f"Found {passed} valid alternatives" if passed else "Found none valid"
        causes.append(_union(f'"{path}" must validate one and only one schema (oneOf). {found}'))
    if raw.get("not") and _passes(value, raw["not"], path):
        causes.append(_union(f'"{path}" must not validate the schema (not)'))


def _union(text: str) -> Cause:
    return Cause("FieldValueInvalid", f'Invalid value: "": {text}', "<nil>")


def _sub(raw: Any) -> Node:
    return compile_structural(raw)


def _passes(value: Any, raw: Any, path: str) -> bool:
    causes: list[Cause] = []
    _check(value, _sub(raw), path, causes)
    return not causes


def _check_text(value: str, node: Node, path: str, causes: list[Cause]) -> None:
    raw = node.raw
    if "maxLength" in raw and len(value) > raw["maxLength"]:
        causes.append(too_long(path, raw["maxLength"]))
    if len(value) < raw.get("minLength", 0):
        limit = raw["minLength"]
        causes.append(invalid_value(path, value, f"{path} in body should be at least {limit} chars long"))
    pattern = raw.get("pattern")
    if pattern and not re2.search(pattern, value):
        causes.append(invalid_value(path, value, f"{path} in body should match '{pattern}'"))
    if node.format and not _well_formed(value, node.format):
        detail = f'{path} in body must be of type {node.format}: "{value}"'
        causes.append(invalid_value(path, value, detail))


def _check_number(value: float, node: Node, path: str, causes: list[Cause]) -> None:
    raw = node.raw
    limit = raw.get("maximum")
    if limit is not None and (value >= limit if raw.get("exclusiveMaximum") else value > limit):
        than = "less than" if raw.get("exclusiveMaximum") else "less than or equal to"
        causes.append(invalid_value(path, value, f"{path} in body should be {than} {_number(limit)}"))
    limit = raw.get("minimum")
    if limit is not None and (value <= limit if raw.get("exclusiveMinimum") else value < limit):
        than = "greater than" if raw.get("exclusiveMinimum") else "greater than or equal to"
        causes.append(invalid_value(path, value, f"{path} in body should be {than} {_number(limit)}"))
    step = raw.get("multipleOf")
    if step and abs(value / step - round(value / step)) > 1e-9:
        causes.append(invalid_value(path, value, f"{path} in body should be a multiple of {_number(step)}"))
    if node.format == "int32" and not -(2**31) <= value < 2**31:
        causes.append(invalid_value(path, value, f"{path} in body must be of type int32: {_number(value)}"))


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)


_DURATION = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)((\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h))*|0")


def _well_formed(value: str, wanted: str) -> bool:
    """Check the formats that API servers check; others are only remarks."""
    try:
        match wanted:
            case "date-time" | "datetime":
                return bool(re.match(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d", value)) and bool(
                    dt.datetime.fromisoformat(value)
                )
            case "date":
                return bool(dt.date.fromisoformat(value))
            case "duration":
                return bool(_DURATION.fullmatch(value))
            case "byte":
                return base64.b64decode(value, validate=True) is not None
            case "ipv4":
                return bool(ipaddress.IPv4Address(value))
            case "ipv6":
                return bool(ipaddress.IPv6Address(value))
            case "cidr":
                return bool(ipaddress.ip_network(value, strict=False))
            case "uuid":
                return bool(re.fullmatch(r"(?i)[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}", value))
            case "email":
                return bool(re.fullmatch(r"[^@\s]+@[^@\s]+", value))
            case _:
                return True
    except (ValueError, binascii.Error):
        return False
