"""Who owns which fields: `metadata.managedFields`, kept for every write, and server-side apply on top of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from orchestrator.sandbox.apiserver import fieldset
from orchestrator.sandbox.apiserver.calls import Call
from orchestrator.sandbox.apiserver.fieldset import Difference, FieldSet, Path
from orchestrator.sandbox.apiserver.objects import Obj, clone, metadata, now_text
from orchestrator.sandbox.apiserver.registry import Kind
from orchestrator.sandbox.apiserver.schema import Node
from orchestrator.sandbox.apiserver.status import Cause, apply_conflict

#: Fields that nobody owns.
_NOBODYS = {("f:apiVersion",), ("f:kind",), ("f:metadata",)} | {
    ("f:metadata", f"f:{name}")
    for name in (
        "name", "namespace", "creationTimestamp", "selfLink", "uid", "clusterName", "generation", "managedFields",
        "resourceVersion", "generateName", "deletionTimestamp", "deletionGracePeriodSeconds",
    )
}  # fmt: skip
#: Structs that always exist in a builtin object, so that nobody owns them as such.
_GIVEN = {
    ("f:spec",),
    ("f:status",),
    ("f:spec", "f:template"),
    ("f:spec", "f:template", "f:spec"),
    ("f:spec", "f:template", "f:metadata"),
    ("f:spec", "f:containers"),
    ("f:spec", "f:template", "f:spec", "f:containers"),
    ("f:roleRef",),
    ("f:spec", "f:resources"),
    ("f:spec", "f:names"),
    ("f:spec", "f:drivers"),
    ("f:spec", "f:source"),
    ("f:spec", "f:strategy"),
    ("f:involvedObject",),
    ("f:source",),
    ("f:regarding",),
    ("f:spec", "f:jobTemplate"),
    ("f:spec", "f:jobTemplate", "f:spec"),
    ("f:spec", "f:jobTemplate", "f:spec", "f:template"),
    ("f:spec", "f:jobTemplate", "f:spec", "f:template", "f:spec"),
    ("f:spec", "f:jobTemplate", "f:spec", "f:template", "f:spec", "f:containers"),
}


class Entry:
    """One manager's share, decoded."""

    def __init__(self, raw: Obj, fields: FieldSet) -> None:
        self.raw, self.fields = raw, fields

    @classmethod
    def read(cls, raw: Obj) -> Entry:
        return cls(raw, frozenset(fieldset.decode(raw.get("fieldsV1") or {})))

    @property
    def identity(self) -> tuple[str, str, str, str]:
        raw = self.raw
        return (raw.get("manager", ""), raw.get("operation", ""), raw.get("apiVersion", ""), raw.get("subresource", ""))

    @property
    def applied(self) -> bool:
        return self.raw.get("operation") == "Apply"

    def write(self) -> Obj:
        return {**self.raw, "fieldsV1": fieldset.encode(self.fields)}


def _read(obj: Obj) -> list[Entry]:
    return [Entry.read(raw) for raw in metadata(obj).get("managedFields") or []]


def _owned(paths: Iterable[Path], kind: Kind) -> FieldSet:
    found = {p for p in paths if p not in _NOBODYS and not (len(p) == 1 and p[0] == "f:metadata")}
    return frozenset(found if kind.custom else found - _GIVEN)


def _save(obj: Obj, entries: list[Entry]) -> None:
    kept = [e for e in entries if e.fields]
    kept.sort(key=lambda e: (not e.applied, e.raw.get("time", ""), e.raw.get("manager", "")))
    if kept:
        obj["metadata"]["managedFields"] = [e.write() for e in kept]
    else:
        obj["metadata"].pop("managedFields", None)


def _entry(manager: str, operation: str, call: Call, fields: FieldSet) -> Entry:
    raw: Obj = {
        "manager": manager,
        "operation": operation,
        "apiVersion": call.kind.api_version,
        "time": now_text(),
        "fieldsType": "FieldsV1",
    }
    if call.info.subresource:
        raw["subresource"] = call.info.subresource
    return Entry(raw, fields)


class Managers:
    """Keep `metadata.managedFields` of written objects; all methods change only the new object's metadata."""

    def record(self, call: Call, new: Obj, old: Obj | None, manager: str, hidden: Collection[Path] = ()) -> None:
        """Make the manager own what an ordinary write changed (but for `hidden` parts), and take it from the others."""
        kind = call.kind
        entries = _read(old) if old is not None else []
        if old is not None and metadata(new).get("managedFields") in ([], [{}]):
            new["metadata"].pop("managedFields", None)
            return
        before = old if old is not None else {"apiVersion": new["apiVersion"], "kind": new["kind"], "metadata": {}}
        diff = Difference(_bare(before), _bare(new), kind.schema)
        seen = {p for p in diff.added | diff.modified if not any(p[: len(h)] == h for h in hidden)}
        changed = _owned(seen, kind)
        removed = set(diff.removed)
        if not changed and not removed:
            _save(new, entries)
            return
        mine = _entry(manager, "Update", call, frozenset())
        for entry in entries:
            entry.fields -= removed
            if entry.identity == mine.identity:
                mine.fields = entry.fields
            else:
                entry.fields -= frozenset(diff.modified) | frozenset(diff.added)
        entries = [e for e in entries if e.identity != mine.identity]
        mine.fields |= changed
        _save(new, [*entries, mine])

    def apply(self, call: Call, live: Obj, config: Obj, *, manager: str, force: bool) -> Obj:
        """Return the live object with an applied configuration; raises 409 on other managers' fields."""
        kind, schema = call.kind, call.kind.schema
        entries = _read(live)
        bare_live, bare_config = _bare(live), _bare(config)
        mine = _entry(manager, "Apply", call, _owned(fieldset.owned(bare_config, schema), kind))
        last = next((e.fields for e in entries if e.identity == mine.identity), frozenset())
        others = [e for e in entries if e.identity != mine.identity]
        merged = fieldset.merge(bare_live, bare_config, schema)
        merged = _prune(merged, schema, last - mine.fields, [*others, mine])
        diff = Difference(bare_live, merged, schema)
        touched = frozenset(diff.modified | diff.added)
        conflicts = [(e, sorted(e.fields & touched)) for e in others if e.fields & touched]
        if conflicts and not force:
            raise _conflict(conflicts)
        for entry in others:
            entry.fields = entry.fields - touched - frozenset(diff.removed)
        result: Obj = clone(merged)
        result["metadata"] = {**live["metadata"], **result.get("metadata", {})}
        for name in ("labels", "annotations", "finalizers", "ownerReferences"):
            if name not in merged.get("metadata", {}):
                result["metadata"].pop(name, None)
        previous = next((e for e in entries if e.identity == mine.identity), None)
        if previous is not None and previous.fields == mine.fields and not touched and not diff.removed:
            mine = previous
        _save(result, [*others, mine])
        return result


def _bare(obj: Obj) -> Obj:
    """Return the object without managed fields and without metadata that is the system's."""
    hidden = {p[1].removeprefix("f:") for p in _NOBODYS if len(p) == 2}
    meta = {k: v for k, v in (obj.get("metadata") or {}).items() if k not in hidden}
    return {**obj, "metadata": meta}


def _prune(merged: Obj, schema: Node, dropped: FieldSet, holders: list[Entry]) -> Obj:
    """Remove what the manager applied before, applies no longer, and nobody else owns."""
    held: set[Path] = set()
    for holder in holders:
        for path in holder.fields:
            held.update(path[:i] for i in range(1, len(path) + 1))
    gone = {p for p in dropped if p not in held}
    if not gone:
        return merged
    pruned: Obj = fieldset.remove_paths(merged, schema, gone)
    emptied = {p[:i] for p in gone for i in range(1, len(p)) if p[:i] not in held}
    return _drop_empty(pruned, emptied)


def _drop_empty(value: Obj, candidates: set[Path]) -> Obj:
    """Remove maps and lists that pruning emptied and that nobody owns."""
    for path in sorted(candidates, key=len, reverse=True):
        here: object = value
        for element in path[:-1]:
            here = here.get(element.removeprefix("f:")) if isinstance(here, dict) and element.startswith("f:") else None
        name = path[-1].removeprefix("f:")
        if isinstance(here, dict) and here.get(name) in ({}, []):
            del here[name]
    return value


def _conflict(conflicts: list[tuple[Entry, list[Path]]]) -> Exception:
    causes, texts = [], []
    for entry, paths in sorted(conflicts, key=lambda c: c[0].raw.get("manager", "")):
        shown = _show_manager(entry)
        texts.append(f"conflicts with {shown}:")
        for path in paths:
            causes.append(Cause("FieldManagerConflict", f"conflict with {shown}", fieldset.show(path)))
            texts.append(f"- {fieldset.show(path)}")
    if len(causes) == 1:
        return apply_conflict(f"Apply failed with 1 conflict: {causes[0].message}: {causes[0].field}", causes)
    joined = "\n".join(texts)
    return apply_conflict(f"Apply failed with {len(causes)} conflicts: {joined}", causes)


def _show_manager(entry: Entry) -> str:
    text = f'"{entry.raw.get("manager", "")}"'
    if entry.raw.get("subresource"):
        text += f' with subresource "{entry.raw["subresource"]}"'
    if not entry.applied:
        text += f" using {entry.raw.get('apiVersion', '')}"
        if entry.raw.get("time"):
            text += f" at {entry.raw['time']}"
    return text
