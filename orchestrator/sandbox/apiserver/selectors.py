"""Label and field selectors, as query parameters write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.sandbox.apiserver import names
from orchestrator.sandbox.apiserver.objects import Obj
from orchestrator.sandbox.apiserver.registry import Kind
from orchestrator.sandbox.apiserver.selector_text import selector_complaint
from orchestrator.sandbox.apiserver.status import bad_request

Predicate = Callable[[Obj], bool]

_SET = re.compile(r"^\s*(?P<key>[^\s!=,()]+)\s+(?P<op>in|notin)\s*\((?P<values>[^()]*)\)\s*$")
_PAIR = re.compile(r"^\s*(?P<key>[^\s!=,()<>]+)\s*(?P<op>==|!=|=|<|>)\s*(?P<value>[^\s,()]*)\s*$")
_EXISTS = re.compile(r"^\s*(?P<no>!?)\s*(?P<key>[^\s!=,()]+)\s*$")

#: Field labels beyond metadata.name and metadata.namespace (each kind's own, from its strategy).
_EVENT_FIELDS = (
    "involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid",
    "involvedObject.apiVersion", "involvedObject.resourceVersion", "involvedObject.fieldPath", "reason",
    "reportingComponent", "source", "type",
)  # fmt: skip
FIELDS: dict[str, tuple[str, ...]] = {
    "pods": (
        "spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork",
        "status.phase", "status.podIP", "status.podIPs", "status.nominatedNodeName",
    ),
    "events": _EVENT_FIELDS,
    "secrets": ("type",),
    "namespaces": ("status.phase",),
    "nodes": ("spec.unschedulable",),
    "jobs.batch": ("status.successful",),
    "replicasets.apps": ("status.replicas",),
    "services": ("spec.clusterIP", "spec.type"),
}  # fmt: skip


def parse_labels(text: str) -> Predicate:
    """Compile a label selector; raises 400 with the parser's complaint."""
    if text.rstrip().endswith(","):
        raise bad_request(selector_complaint(text))
    tests = [_requirement(part, text) for part in _split(text)]
    if not tests:
        return lambda obj: True

    def matches(obj: Obj) -> bool:
        labels = obj["metadata"].get("labels") or {}
        return all(test(labels) for test in tests)

    return matches


def _split(text: str) -> list[str]:
    parts, depth, current = [], 0, ""
    for letter in text:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += letter
    parts.append(current)
    return [p for p in parts if p.strip()] if text.strip() else []


def _requirement(part: str, whole: str) -> Callable[[Mapping[str, str]], bool]:
    if found := _SET.match(part):
        key, values = found["key"], {v.strip() for v in found["values"].split(",")}
        wanted = found["op"] == "in"
        _check(key, values)
        return (lambda m: m.get(key) in values and key in m) if wanted else (lambda m: m.get(key) not in values)
    if found := _PAIR.match(part):
        key, value = found["key"], found["value"]
        if found["op"] in "<>":
            return _compare(key, found["op"], value)
        _check(key, {value})
        if found["op"] == "!=":
            return lambda m: m.get(key) != value
        return lambda m: m.get(key) == value
    if found := _EXISTS.match(part):
        key = found["key"]
        _check(key, set())
        return (lambda m: key not in m) if found["no"] else (lambda m: key in m)
    raise bad_request(selector_complaint(whole))


def _compare(key: str, operator: str, value: str) -> Callable[[Mapping[str, str]], bool]:
    if not value.lstrip("-").isdigit():
        raise bad_request(
            f"values[0][{key}]: Invalid value: \"{value}\": for 'Gt', 'Lt' operators, the value must be an integer"
        )
    limit = int(value)

    def test(labels: Mapping[str, str]) -> bool:
        found = labels.get(key, "")
        return found.lstrip("-").isdigit() and (int(found) > limit if operator == ">" else int(found) < limit)

    return test


def _check(key: str, values: set[str]) -> None:
    problems = names.qualified_name(key)
    if problems:
        raise bad_request(f'unable to parse requirement: key: Invalid value: "{key}": {"; ".join(problems)}')
    for value in values:
        problems = names.label_value(value)
        if problems:
            raise bad_request(
                f'unable to parse requirement: values[0][{key}]: Invalid value: "{value}": {"; ".join(problems)}'
            )


def match_label_selector(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Tell whether a `LabelSelector` object (matchLabels, matchExpressions) selects the labels."""
    if selector is None:
        return False
    if any(labels.get(k) != v for k, v in (selector.get("matchLabels") or {}).items()):
        return False
    for wanted in selector.get("matchExpressions") or []:
        key, operator, values = wanted["key"], wanted["operator"], wanted.get("values") or []
        ok = {
            "In": key in labels and labels[key] in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[operator]
        if not ok:
            return False
    return True


def parse_fields(text: str, kind: Kind) -> Predicate:
    """Compile a field selector; raises 400 for a field that the kind does not offer."""
    tests: list[tuple[tuple[str, ...], str, bool]] = []
    offered = ("metadata.name", "metadata.namespace", *FIELDS.get(kind.storage, ()), *kind.selectable)
    for part in text.split(","):
        if not part.strip():
            continue
        found = re.match(r"^\s*(?P<key>[^=!]+?)\s*(?P<op>==|!=|=)(?P<value>.*)$", part)
        if not found:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{part}'")
        if found["key"] not in offered:
            if kind.custom or kind.storage in FIELDS:
                raise bad_request(f"field label not supported: {found['key']}")
            known = '"metadata.name", "metadata.namespace"'
            raise bad_request(f'"{found["key"]}" is not a known field selector: only {known}')
        tests.append((tuple(found["key"].split(".")), found["value"].strip(), found["op"] != "!="))

    def matches(obj: Obj) -> bool:
        return all((_value(obj, path) == value) is wanted for path, value, wanted in tests)

    return matches


def _value(obj: Obj, path: tuple[str, ...]) -> str:
    if path == ("source",):
        return str((obj.get("source") or {}).get("component") or obj.get("reportingComponent") or "")
    if path == ("status", "successful"):
        path = ("status", "succeeded")
    found: Any = obj
    for step in path:
        found = found.get(step) if isinstance(found, dict) else None
    if found is None:
        return {"unschedulable": "false", "hostNetwork": "false", "succeeded": "0", "replicas": "0"}.get(path[-1], "")
    return str(found).lower() if isinstance(found, bool) else str(found)
