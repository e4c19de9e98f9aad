"""Strategic merge patch: lists merge by the keys that the builtin kinds' schemas name.

Follows k8s.io/apimachinery `util/strategicpatch`: `$patch: delete|replace|merge`, `$deleteFromPrimitiveList/x`,
`$setElementOrder/x`, `$retainKeys`.
"""

from __future__ import annotations

from typing import Any

from orchestrator.sandbox.apiserver.objects import Obj, clone
from orchestrator.sandbox.apiserver.schema import Node
from orchestrator.sandbox.apiserver.status import bad_request

_DELETE_FROM = "$deleteFromPrimitiveList/"
_ORDER = "$setElementOrder/"


def strategic_merge(target: Obj, patch: Obj, node: Node | None) -> Obj:
    """Return the target with a strategic merge patch applied; the arguments stay as they are."""
    directive = patch.get("$patch")
    if directive == "replace":
        return {k: clone(v) for k, v in patch.items() if k != "$patch"}
    if directive == "delete":
        return {}
    result = dict(target)
    if "$retainKeys" in patch:
        kept = set(patch["$retainKeys"])
        result = {k: v for k, v in result.items() if k in kept}
    for key, value in patch.items():
        if not key.startswith("$"):
            _merge_field(result, key, value, node.child(key) if node is not None else None, patch)
    for key, value in patch.items():
        if key.startswith(_DELETE_FROM):
            name = key.removeprefix(_DELETE_FROM)
            if isinstance(result.get(name), list):
                result[name] = [v for v in result[name] if v not in value]
    for key, value in patch.items():
        if key.startswith(_ORDER):
            _reorder(result, key.removeprefix(_ORDER), value, node)
    return result


def _merge_field(result: Obj, key: str, value: Any, node: Node | None, patch: Obj) -> None:
    if value is None:
        result.pop(key, None)
    elif isinstance(value, dict):
        before = result.get(key)
        if node is not None and node.opaque and not node.fields:
            node = None
        replaces = node is not None and "replace" in node.merge_strategy.split(",")
        if not isinstance(before, dict) or replaces:
            before = {}
        result[key] = strategic_merge(before, value, node)
    elif isinstance(value, list) and node is not None and "merge" in node.merge_strategy.split(","):
        before = result.get(key)
        result[key] = _merge_list(before if isinstance(before, list) else [], value, node)
    else:
        result[key] = clone(value)


def _merge_list(before: list[Any], patch: list[Any], node: Node) -> list[Any]:
    if not node.merge_key:
        return [*before, *(clone(v) for v in patch if v not in before)]
    key = node.merge_key
    if any(isinstance(v, dict) and v.get("$patch") == "replace" for v in patch):
        return [clone(v) for v in patch if not (isinstance(v, dict) and "$patch" in v)]
    result = [v for v in before if isinstance(v, dict)]
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {key}")
        same = [i for i, v in enumerate(result) if v.get(key) == item[key]]
        if item.get("$patch") == "delete":
            result = [v for v in result if v.get(key) != item[key]]
        elif same:
            result[same[0]] = strategic_merge(result[same[0]], item, node.items)
        else:
            result.append(strategic_merge({}, item, node.items))
    return result


def _reorder(result: Obj, name: str, order: list[Any], node: Node | None) -> None:
    """Sort a merged list: what the patch orders comes in its order, the rest keeps its relative place."""
    found = result.get(name)
    child = node.child(name) if node is not None else None
    if not isinstance(found, list) or child is None:
        return
    key = child.merge_key

    def identity(value: Any) -> Any:
        return value.get(key) if key and isinstance(value, dict) else value

    wanted = [identity(v) for v in order]
    ordered = [v for w in wanted for v in found if identity(v) == w]
    merged: list[Any] = []
    following = iter(ordered)
    pending = next(following, None)
    for index, value in enumerate(found):
        if identity(value) in wanted:
            continue
        while pending is not None and found.index(pending) < index:
            merged.append(pending)
            pending = next(following, None)
        merged.append(value)
    while pending is not None:
        merged.append(pending)
        pending = next(following, None)
    result[name] = merged
