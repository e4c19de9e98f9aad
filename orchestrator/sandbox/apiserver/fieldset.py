"""Sets of fields: which parts of an object someone owns (FieldsV1), as paths of elements.

An element is written as FieldsV1 writes it: `f:name`, `k:{"name":"x"}` (an item of a list with keys), `v:"x"` (a member
of a set). The rules are those of sigs.k8s.io/structured-merge-diff.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from orchestrator.sandbox.apiserver.objects import Obj
from orchestrator.sandbox.apiserver.schema import Node

Path = tuple[str, ...]
FieldSet = frozenset[Path]

_ABSENT: Any = object()


def is_atomic_list(node: Node | None) -> bool:
    return node is None or node.list_type not in {"map", "set"}


def is_atomic_map(node: Node | None) -> bool:
    return node is not None and node.map_type == "atomic"


def element_of(item: Any, node: Node) -> str:
    """Return the element that stands for a list item."""
    if node.list_type == "map" and isinstance(item, dict):
        key: Obj = {}
        for name in sorted(node.list_keys):
            child = node.items.fields.get(name) if node.items is not None else None
            value = item.get(name, child.default if child is not None and child.has_default else _ABSENT)
            if value is not _ABSENT:
                key[name] = value
        return "k:" + msgspec.json.encode(key).decode()
    return "v:" + msgspec.json.encode(item).decode()


def owned(value: Any, node: Node | None, path: Path = ()) -> Iterator[Path]:
    """Yield the paths that an applied configuration owns."""
    if isinstance(value, dict) and not is_atomic_map(node):
        for name, item in value.items():
            below = (*path, f"f:{name}")
            child = node.child(name) if node is not None else None
            yield from owned(item, child, below)
            declared = node is not None and name in node.fields
            if item is None or item == {} or not declared:
                yield below
    elif isinstance(value, list) and not is_atomic_list(node):
        assert node is not None
        for item in value:
            below = (*path, element_of(item, node))
            yield below
            if isinstance(item, dict):
                yield from owned(item, node.items, below)
    elif path:
        yield path


class Difference:
    """What two states of an object differ in, as three field sets."""

    def __init__(self, old: Any, new: Any, node: Node | None) -> None:
        self.added: set[Path] = set()
        self.modified: set[Path] = set()
        self.removed: set[Path] = set()
        self._walk(old, new, node, ())

    def _walk(self, old: Any, new: Any, node: Node | None, path: Path) -> None:
        if old is not _ABSENT and new is not _ABSENT and old == new and type(old) is type(new):
            return
        maps = [v for v in (old, new) if isinstance(v, dict)]
        lists = [v for v in (old, new) if isinstance(v, list)]
        present = [v for v in (old, new) if v is not _ABSENT and v is not None]
        if maps and len(maps) == len(present) and not is_atomic_map(node) and any(maps):
            self._maps(old, new, node, path)
        elif lists and len(lists) == len(present) and not is_atomic_list(node) and any(lists):
            assert node is not None
            self._lists(old, new, node, path)
        else:
            self._leaf(old, new, path)
            return
        if old is _ABSENT and path:
            self.added.add(path)
        elif new is _ABSENT and path:
            self.removed.add(path)

    def _leaf(self, old: Any, new: Any, path: Path) -> None:
        if old is _ABSENT:
            self.added.add(path)
        elif new is _ABSENT:
            self.removed.add(path)
        else:
            self.modified.add(path)

    def _maps(self, old: Any, new: Any, node: Node | None, path: Path) -> None:
        before, after = old if isinstance(old, dict) else {}, new if isinstance(new, dict) else {}
        for name in {**before, **after}:
            child = node.child(name) if node is not None else None
            self._walk(before.get(name, _ABSENT), after.get(name, _ABSENT), child, (*path, f"f:{name}"))

    def _lists(self, old: Any, new: Any, node: Node, path: Path) -> None:
        before = {element_of(i, node): i for i in (old if isinstance(old, list) else [])}
        after = {element_of(i, node): i for i in (new if isinstance(new, list) else [])}
        for element in {**before, **after}:
            self._walk(before.get(element, _ABSENT), after.get(element, _ABSENT), node.items, (*path, element))


def encode(fields: FieldSet) -> Obj:
    """Return a set as FieldsV1; `.` marks a path that is a member itself and has members below."""
    root: Obj = {}
    for path in sorted(fields):
        here = root
        for element in path:
            here = here.setdefault(element, {})
        here["."] = {}
    return _without_lonely_dots(root)


def _without_lonely_dots(node: Obj) -> Obj:
    return {k: ({} if set(v) == {"."} else _without_lonely_dots(v)) if v else v for k, v in node.items()}


def decode(encoded: Obj, path: Path = ()) -> Iterator[Path]:
    """Yield the members of a FieldsV1 set."""
    if not encoded and path:
        yield path
    for element, below in encoded.items():
        if element == ".":
            yield path
        else:
            yield from decode(below, (*path, element))


def show(path: Path) -> str:
    """Write a path as conflict messages do: `.spec.containers[name="x"].image`."""
    text = ""
    for element in path:
        kind, _, rest = element.partition(":")
        if kind == "f":
            text += f".{rest}"
        elif kind == "k":
            pairs = msgspec.json.decode(rest).items()
            text += "[" + ",".join(f"{k}={msgspec.json.encode(v).decode()}" for k, v in pairs) + "]"
        else:
            text += f"[={rest}]"
    return text


def remove_paths(value: Any, node: Node | None, paths: set[Path], here: Path = ()) -> Any:
    """Return the value without the members of `paths` (whole items and fields), and without what became empty."""
    if isinstance(value, dict) and not is_atomic_map(node):
        kept = {}
        for name, item in value.items():
            below = (*here, f"f:{name}")
            if below not in paths:
                child = node.child(name) if node is not None else None
                kept[name] = remove_paths(item, child, paths, below)
        return kept
    if isinstance(value, list) and not is_atomic_list(node):
        assert node is not None
        pairs = [(i, (*here, element_of(i, node))) for i in value]
        return [remove_paths(i, node.items, paths, p) for i, p in pairs if p not in paths]
    return value


def merge(live: Any, config: Any, node: Node | None) -> Any:
    """Lay a configuration over a live value: maps and keyed lists merge, everything else is replaced."""
    if isinstance(live, dict) and isinstance(config, dict) and not is_atomic_map(node):
        result = dict(live)
        for name, item in config.items():
            child = node.child(name) if node is not None else None
            result[name] = merge(live[name], item, child) if name in live else item
        return result
    if isinstance(live, list) and isinstance(config, list) and not is_atomic_list(node):
        assert node is not None
        wanted = {element_of(i, node): i for i in config}
        present = {element_of(i, node): i for i in live}
        if node.list_type == "set":
            return [*live, *(i for e, i in wanted.items() if e not in present)]
        return _merge_keyed(present, wanted, node)
    return config


def _merge_keyed(present: dict[str, Any], wanted: dict[str, Any], node: Node) -> list[Any]:
    """Merge in the live order, with the configuration's order among its own items."""

    def merged(element: str) -> Any:
        return merge(present[element], wanted[element], node.items) if element in present else wanted[element]

    result: list[Any] = []
    remaining = list(wanted)
    for element in present:
        if element not in wanted:
            result.append(present[element])
        elif element in remaining:
            upto = remaining.index(element) + 1
            result += [merged(e) for e in remaining[:upto]]
            del remaining[:upto]
    return result + [merged(e) for e in remaining]
