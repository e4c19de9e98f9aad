"""Cut the protobuf field numbers of the builtin kinds out of Kubernetes' sources into `wire.json`.

Typed clients (kubectl create, the CSI sidecars) send builtin kinds as protobuf and do not fall back to JSON. Run as
`python -m orchestrator.sandbox.apiserver.builtin.cut_wire MODULES`, where MODULES is the folder with the unpacked
modules `api@...`, `apimachinery@...` and `apiextensions-apiserver@...`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from orchestrator.sandbox.apiserver.registry import builtin_document

_MESSAGE = re.compile(r"^message (\w+) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^  (optional|repeated|map<\w+, ([.\w]+)>) ?([.\w]+)? (\w+) = (\d+);", re.MULTILINE)
_STRUCT = re.compile(r"^type (\w+) struct \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_TAG = re.compile(r'^\s+(?:\w+\s+)?(\S+)\s+`json:"([^",]*)([^"]*)"[^`]*protobuf:"[^"]*name=(\w+)', re.MULTILINE)
_SCALARS = {"string", "bytes", "bool", "int32", "int64", "uint32", "uint64", "double", "float"}

#: number -> [JSON name, type, how]: how is "" for a plain field, "p" pointer, "r" repeated, "m" map, "i" inlined.
Message = dict[str, list[str]]


def cut(modules: Path) -> dict[str, Message]:
    """Return every message that the served kinds need."""
    found: dict[str, Message] = {}
    for path in sorted(modules.glob("api*@*/**/generated.proto")):
        found.update(_read(path))
    return {name: found[name] for name in sorted(_closure(found, _roots()))}


def wire_name(definition: str) -> str:
    """Return the message of an OpenAPI definition."""
    return definition.replace("io.k8s.", "k8s.io.", 1).replace("-", "_")


def _roots() -> list[str]:
    roots = [
        wire_name(n) for n, d in builtin_document()["definitions"].items() if "x-kubernetes-group-version-kind" in d
    ]
    return [r for r in roots if not r.endswith("List")]


def _read(path: Path) -> dict[str, Message]:
    text = path.read_text()
    package = re.search(r"^package ([\w.]+);", text, re.MULTILINE)
    assert package is not None
    tags = _tags(path.parent)
    messages = {}
    for name, body in _MESSAGE.findall(text):
        fields: Message = {}
        for label, value_type, kind, field, number in _FIELD.findall(body):
            pointer, shown, inline = tags.get((name, field), (False, field, False))
            how = "m" if value_type else "r" if label == "repeated" else "i" if inline else "p" if pointer else ""
            fields[number] = [shown or field, _full(value_type or kind, package[1]), how]
        messages[f"{package[1]}.{name}"] = fields
    return messages


def _tags(folder: Path) -> dict[tuple[str, str], tuple[bool, str, bool]]:
    """Return (struct, protobuf name) -> (is a pointer, JSON name, is inlined)."""
    found = {}
    for source in folder.glob("*.go"):
        if source.name.startswith(("generated", "zz_")):
            continue
        for struct, body in _STRUCT.findall(source.read_text()):
            for kind, shown, rest, field in _TAG.findall(body):
                found[(struct, field)] = (kind.startswith("*"), shown, "inline" in rest and not shown)
    return found


def _full(kind: str, package: str) -> str:
    if kind in _SCALARS:
        return kind
    return kind.removeprefix(".") if kind.startswith(".") else f"{package}.{kind}"


def _closure(found: dict[str, Message], roots: list[str]) -> set[str]:
    seen: set[str] = set()
    while roots:
        name = roots.pop()
        if name in found and name not in seen:
            seen.add(name)
            roots.extend(kind for _, kind, _ in found[name].values())
    return seen


if __name__ == "__main__":
    messages = cut(Path(sys.argv[1]))
    lines = ",\n".join(f"{json.dumps(n)}: {json.dumps(m)}" for n, m in messages.items())
    Path(__file__).with_name("wire.json").write_text(f"{{\n{lines}\n}}\n")
