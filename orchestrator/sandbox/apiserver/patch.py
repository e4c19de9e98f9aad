"""JSON patch (RFC 6902) and JSON merge patch (RFC 7386)."""

from __future__ import annotations

from typing import Any

from orchestrator.sandbox.apiserver.objects import Obj, clone
from orchestrator.sandbox.apiserver.status import ApiError, bad_request


def merge_patch(target: Any, patch: Any) -> Any:
    """Return the target with a merge patch applied; the arguments stay as they are."""
    if not isinstance(patch, dict):
        return clone(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def json_patch(target: Obj, operations: object) -> Obj:
    """Return a copy of the target with the operations applied; raises 400 or 422 as the API does."""
    if not isinstance(operations, list):
        raise bad_request(
            "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp"
        )
    document: Any = clone(target)
    for operation in operations:
        if not isinstance(operation, dict):
            raise bad_request(
                "error decoding patch: json: cannot unmarshal value into Go value of type jsonpatch.Operation"
            )
        document = _apply(document, operation)
    if not isinstance(document, dict):
        raise bad_request("the patched document is not an object")
    return document


def _failed(detail: str) -> ApiError:
    """Refuse without the reason, as the real server does; the detail is for whoever debugs the sandbox."""
    error = ApiError(422, "Invalid", "the server rejected our request due to an error in our request", {})
    error.add_note(detail)
    return error


def _apply(document: Any, operation: Obj) -> Any:
    kind, path = operation.get("op"), str(operation.get("path", ""))
    if kind == "add":
        return _add(document, path, clone(operation.get("value")))
    if kind == "remove":
        _take(document, path, "remove")
        return document
    if kind == "replace":
        if not path:
            return clone(operation.get("value"))
        parent, key = _parent(document, path, "replace")
        _read(parent, key, path, "replace")
        parent[key] = clone(operation.get("value"))
        return document
    if kind == "move":
        return _add(document, path, _take(document, str(operation.get("from", "")), "move"))
    if kind == "copy":
        parent, key = _parent(document, str(operation.get("from", "")), "copy")
        return _add(document, path, clone(_read(parent, key, path, "copy")))
    if kind == "test":
        _test(document, path, operation.get("value"))
        return document
    raise _failed(f"Unexpected kind: {kind}")


def _keys(path: str) -> list[str]:
    return [p.replace("~1", "/").replace("~0", "~") for p in path.split("/")[1:]]


def _parent(document: Any, path: str, operation: str) -> tuple[Any, Any]:
    keys = _keys(path)
    if not keys:
        raise _failed(f"{operation} operation does not apply: doc is missing path: {path!r}")
    node = document
    for key in keys[:-1]:
        node = _read(node, _index(node, key), path, operation)
    return node, _index(node, keys[-1])


def _index(node: Any, key: str) -> Any:
    if isinstance(node, list) and key != "-" and key.lstrip("-").isdigit():
        return int(key)
    return key


def _read(node: Any, key: Any, path: str, operation: str) -> Any:
    if isinstance(node, dict) and key in node:
        return node[key]
    if isinstance(node, list) and isinstance(key, int) and -len(node) <= key < len(node):
        return node[key]
    what = "missing key" if isinstance(node, dict) else "missing path"
    raise _failed(
        f"{operation} operation does not apply: doc is missing {what.removeprefix('missing ')}: {path}: missing value"
    )


def _add(document: Any, path: str, value: Any) -> Any:
    if not path:
        return value
    parent, key = _parent(document, path, "add")
    if isinstance(parent, list):
        if key == "-":
            parent.append(value)
        elif isinstance(key, int) and 0 <= key <= len(parent):
            parent.insert(key, value)
        else:
            raise _failed(f"add operation does not apply: doc is missing path: {path}: invalid index referenced")
    elif isinstance(parent, dict):
        parent[key] = value
    else:
        raise _failed(f'add operation does not apply: doc is missing path: "{path}": missing value')
    return document


def _take(document: Any, path: str, operation: str) -> Any:
    parent, key = _parent(document, path, operation)
    value = _read(parent, key, path, operation)
    del parent[key]
    return value


def _test(document: Any, path: str, wanted: Any) -> None:
    keys, found = _keys(path), document
    for key in keys:
        index = _index(found, key)
        inside = (isinstance(found, dict) and index in found) or (
            isinstance(found, list) and isinstance(index, int) and index < len(found)
        )
        found = found[index] if inside else None
    if found != wanted or type(found) is not type(wanted):
        raise _failed(f"testing value {path} failed: test failed")
