"""What Go's decoder says about JSON texts: what is malformed, and which fields are given twice."""

from __future__ import annotations

import json
from typing import Any

_SHOWN = 30
"""So many bytes of a text that is no object are shown in the refusal."""
_AFTER = {
    "Expecting property name enclosed in double quotes": "looking for beginning of object key string",
    "Expecting value": "looking for beginning of value",
    "Expecting ':' delimiter": "after object key",
    "Expecting ',' delimiter": "after object key:value pair",
    "Extra data": "after top-level value",
    "Illegal trailing comma before end of object": "looking for beginning of object key string",
    "Illegal trailing comma before end of array": "looking for beginning of value",
}


def complaint(raw: bytes) -> str:
    """Return what is wrong with a text that is no JSON."""
    text = raw.decode(errors="replace")
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        at = error.pos
        if error.msg.startswith("Illegal trailing comma"):  # newer Pythons point at the comma
            at += 1
        at += len(text[at:]) - len(text[at:].lstrip())
        if at >= len(text) or error.msg.startswith("Unterminated"):
            return "unexpected end of JSON input"
        return f"invalid character {text[at]!r} {_AFTER.get(error.msg, 'in string literal')}"
    return "unexpected end of JSON input"


def summary(raw: bytes) -> str:
    """Return the beginning of a body as the API server quotes it: text if it looks like an object, else hex."""
    if not raw:
        return "<empty>"
    shown = raw[:_SHOWN]
    return (shown.decode(errors="replace") if raw[:1] == b"{" else shown.hex()) + (" ..." if len(raw) > _SHOWN else "")


class _Pairs(list[tuple[str, Any]]):
    """An object with its fields as they were written, the doubled ones too."""


def duplicates(raw: bytes) -> list[str]:
    """Return the paths of fields that are given more than once, in the order in which a reader meets them."""
    doubled = False

    def keep(pairs: list[tuple[str, Any]]) -> _Pairs:
        nonlocal doubled
        doubled = doubled or len({key for key, _ in pairs}) != len(pairs)
        return _Pairs(pairs)

    found = json.loads(raw, object_pairs_hook=keep)
    paths: list[str] = []
    if doubled:
        _walk(found, "", paths)
    return paths


def _walk(value: Any, path: str, paths: list[str]) -> None:
    if isinstance(value, _Pairs):
        seen = set()
        for key, item in value:
            below = f"{path}.{key}" if path else key
            if key in seen and below not in paths:
                paths.append(below)
            seen.add(key)
            _walk(item, below, paths)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _walk(item, f"{path}[{index}]", paths)
