"""Server-side Tables: the columns that `kubectl get` shows."""

from __future__ import annotations

from typing import Any

import msgspec

from orchestrator.sandbox.apiserver.durations import age
from orchestrator.sandbox.apiserver.jsonpath import find
from orchestrator.sandbox.apiserver.objects import Obj
from orchestrator.sandbox.apiserver.registry import Kind
from orchestrator.sandbox.apiserver.table_columns import BUILTIN_COLUMNS, NAME, Column

_CREATED = Column("Created At", lambda o: o["metadata"].get("creationTimestamp"), type="date")


def columns_of(kind: Kind) -> list[Column]:
    """Return a kind's columns."""
    if kind.custom:
        custom = [_custom(c) for c in kind.columns]
        return [NAME, *(custom or [Column("Age", lambda o: o["metadata"].get("creationTimestamp"), type="date")])]
    if kind.storage in BUILTIN_COLUMNS:
        return BUILTIN_COLUMNS[kind.storage]
    return [NAME, _CREATED]


def _custom(raw: Obj) -> Column:
    path, wanted = str(raw["jsonPath"]), str(raw.get("type", "string"))

    def cell(obj: Obj) -> Any:
        found = find(obj, path)
        if not found:
            return None
        return _cell(found, wanted)

    return Column(
        str(raw["name"]), cell, type=wanted, format=str(raw.get("format", "")), priority=int(raw.get("priority", 0)),
        description=str(raw.get("description", f"Custom resource definition column (in JSONPath format): {path}")),
    )  # fmt: skip


def _cell(found: list[Any], wanted: str) -> Any:
    first = found[0]
    if first is None:
        return None
    match wanted:
        case "integer":
            return int(first) if isinstance(first, int | float) and not isinstance(first, bool) else None
        case "number":
            return first if isinstance(first, int | float) and not isinstance(first, bool) else None
        case "boolean":
            return first if isinstance(first, bool) else None
        case "date":
            return age(first) if isinstance(first, str) else None
        case _:
            return ",".join(_text(f) for f in found) if len(found) > 1 else _text(first)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return msgspec.json.encode(value).decode() if isinstance(value, dict | list) else str(value)


class Tables:
    """Make Tables of one kind, in one of their versions, with what the client wants of the objects in the rows."""

    def __init__(self, kind: Kind, version: str, include: str) -> None:
        self._kind, self._version, self._include = kind, version, include or "Metadata"
        self._columns = columns_of(kind)
        self._first = True

    def table(self, items: list[Obj], meta: Obj) -> Obj:
        body: Obj = {"kind": "Table", "apiVersion": f"meta.k8s.io/{self._version}", "metadata": meta}
        body["columnDefinitions"] = [self._definition(c) for c in self._columns]
        body["rows"] = [self._row(o) for o in items]
        return body

    def event(self, obj: Obj) -> Obj:
        """Return a watch event's Table; only the first one carries the column definitions."""
        body = self.table([obj], {"resourceVersion": obj["metadata"].get("resourceVersion", "")})
        if not self._first:
            body["columnDefinitions"] = None
        self._first = False
        return body

    @staticmethod
    def _definition(column: Column) -> Obj:
        return {
            "name": column.name, "type": column.type, "format": column.format, "description": column.description,
            "priority": column.priority,
        }  # fmt: skip

    def _row(self, obj: Obj) -> Obj:
        row: Obj = {"cells": [c.cell(obj) for c in self._columns]}
        if self._include == "Object":
            row["object"] = obj
        elif self._include != "None":
            version = f"meta.k8s.io/{self._version}"
            row["object"] = {"kind": "PartialObjectMetadata", "apiVersion": version, "metadata": obj["metadata"]}
        return row
