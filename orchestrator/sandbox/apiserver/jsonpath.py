"""The small part of kubectl's JSONPath that printer columns use: fields, indexes, `[*]`, and simple filters."""

from __future__ import annotations

import functools
import re
from typing import Any

_STEP = re.compile(
    r"""\.?(?:
        (?P<field>[A-Za-z_$][-\w$]*)
      | \[\s*(?:(?P<index>-?\d+)|(?P<all>\*)|(?P<quoted>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
          |\?\(\s*@\.(?P<key>[\w.\-\\/]+)\s*(?P<op>==|!=)\s*(?P<value>'[^']*'|"[^"]*"|[\w.]+)\s*\))\s*\]
      | (?P<star>\*)
    )""",
    re.VERBOSE,
)
_ESCAPED = re.compile(r"\.((?:[\w\-/$]|\\\.)+)")

Step = tuple[str, Any]


@functools.lru_cache(maxsize=1024)
def parse(path: str) -> tuple[Step, ...]:
    """Compile a path like `.status.conditions[?(@.type=="Ready")].status`; raises ValueError."""
    text = path.strip().removeprefix("{").removesuffix("}").removeprefix("$")
    steps: list[Step] = []
    position = 0
    while position < len(text):
        escaped = _ESCAPED.match(text, position)
        if escaped and "\\." in escaped[1]:
            steps.append(("field", escaped[1].replace("\\.", ".")))
            position = escaped.end()
            continue
        found = _STEP.match(text, position)
        if not found or found.end() == position:
            raise ValueError(f"cannot read the JSONPath {path!r} at {text[position:]!r}")
        steps.append(_step(found))
        position = found.end()
    return tuple(steps)


def _step(found: re.Match[str]) -> Step:
    if found["field"]:
        return ("field", found["field"])
    if found["index"]:
        return ("index", int(found["index"]))
    if found["quoted"]:
        return ("field", found["quoted"][1:-1].replace("\\.", "."))
    if found["key"]:
        return ("filter", (tuple(found["key"].split(".")), found["op"], found["value"].strip("'\"")))
    return ("all", None)


def find(value: Any, path: str) -> list[Any]:
    """Return everything that a path finds."""
    found = [value]
    for kind, argument in parse(path):
        found = [item for v in found for item in _follow(v, kind, argument)]
    return found


def _follow(value: Any, kind: str, argument: Any) -> list[Any]:
    if kind == "field":
        return [value[argument]] if isinstance(value, dict) and argument in value else []
    if kind == "index":
        return [value[argument]] if isinstance(value, list) and -len(value) <= argument < len(value) else []
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if kind == "all":
        return list(items)
    keys, operator, wanted = argument
    return [i for i in items if (_text(i, keys) == wanted) is (operator == "==")]


def _text(value: Any, keys: tuple[str, ...]) -> str | None:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None else str(value)
