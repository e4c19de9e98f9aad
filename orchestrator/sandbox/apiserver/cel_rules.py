"""x-kubernetes-validations: the rules of a schema, compiled with it and run over objects."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from orchestrator.sandbox.apiserver.cel import CelSyntaxError, Program, compile_rule
from orchestrator.sandbox.apiserver.cel_functions import CelError, from_format
from orchestrator.sandbox.apiserver.schema import Node, join
from orchestrator.sandbox.apiserver.status import Cause, show

_CEL_FORMATS = {"date-time", "date", "duration", "byte"}
_ABSENT: Any = object()


class Rule(msgspec.Struct, frozen=True):
    """One compiled rule; `transition` rules look at the old value too."""

    text: str
    program: Program
    message: str = ""
    expression: Program | None = None
    reason: str = "FieldValueInvalid"
    field: str = ""
    transition: bool = False
    optional_old: bool = False


def compile_rules(node: Node) -> None:
    """Compile every rule in a schema tree, once; raises CelSyntaxError."""
    raw = node.raw.get("x-kubernetes-validations") or []
    node.rules = [_rule(r) for r in raw]
    below = [*node.fields.values(), *(n for n in (node.values, node.items) if n is not None)]
    for child in below:
        if child.rules is None:
            compile_rules(child)
    node.deep_rules = bool(node.rules) or any(c.deep_rules for c in below)


def _rule(raw: Mapping[str, Any]) -> Rule:
    text = str(raw["rule"])
    expression = raw.get("messageExpression")
    return Rule(
        text=text,
        program=compile_rule(text),
        message=str(raw.get("message") or ""),
        expression=compile_rule(str(expression)) if expression else None,
        reason=str(raw.get("reason") or "FieldValueInvalid"),
        field=str(raw.get("fieldPath") or ""),
        transition=re.search(r"\boldSelf\b", text) is not None,
        optional_old=bool(raw.get("optionalOldSelf")),
    )


def syntax_problems(raw: Mapping[str, Any], path: str) -> list[Cause]:
    """Return the rules of a raw schema that cannot be compiled."""
    causes = []
    for index, rule in enumerate(raw.get("x-kubernetes-validations") or []):
        for key in ("rule", "messageExpression"):
            if rule.get(key):
                try:
                    compile_rule(str(rule[key]))
                except CelSyntaxError as error:
                    where = f"{path}.x-kubernetes-validations[{index}].{key}"
                    causes.append(
                        Cause(
                            "FieldValueInvalid", f"Invalid value: {show(rule[key])}: compilation failed: {error}", where
                        )
                    )
    for name, sub in (raw.get("properties") or {}).items():
        causes += syntax_problems(sub, f"{path}.properties[{name}]")
    for key in ("items", "additionalProperties"):
        if isinstance(raw.get(key), Mapping):
            causes += syntax_problems(raw[key], f"{path}.{key}")
    return causes


def check_rules(value: Any, old: Any, node: Node, path: str = "") -> list[Cause]:
    """Run the rules of a node and of all below; `old` is the value before an update, or absent."""
    if not node.deep_rules or value is None:
        return []
    causes = _own(value, old, node, path)
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        for name, item in value.items():
            child = node.child(name)
            if child is not None and child.deep_rules:
                below = join(path, name) if name in node.fields else f"{path}[{name}]"
                causes += check_rules(item, before.get(name, _ABSENT), child, below)
    elif isinstance(value, list) and node.items is not None and node.items.deep_rules:
        earlier = by_key(old, node)
        for index, item in enumerate(value):
            causes += check_rules(item, earlier.get(key_of(item, node), _ABSENT), node.items, f"{path}[{index}]")
    return causes


def absent() -> Any:
    """Return the value that stands for "there was none before"."""
    return _ABSENT


def key_of(item: Any, node: Node) -> Any:
    if node.list_type == "map" and isinstance(item, dict):
        return tuple(str(item.get(k)) for k in node.list_keys)
    return None


def by_key(old: Any, node: Node) -> dict[Any, Any]:
    if node.list_type != "map" or not isinstance(old, list):
        return {}
    return {key_of(i, node): i for i in old}


def _own(value: Any, old: Any, node: Node, path: str) -> list[Cause]:
    if not node.rules or (old is not _ABSENT and old == value and not any(r.transition for r in node.rules)):
        return []
    env: dict[str, Any] = {"self": to_cel(value, node)}
    if old is not _ABSENT and old is not None:
        env["oldSelf"] = to_cel(old, node)
    causes = []
    for rule in node.rules:
        if rule.transition and "oldSelf" not in env:
            continue
        cause = _run(rule, env, node, path)
        if cause is not None:
            causes.append(cause)
    return causes


def _run(rule: Rule, env: Mapping[str, Any], node: Node, path: str) -> Cause | None:
    where = path + rule.field if rule.field else path
    value = env["self"] if isinstance(env["self"], bool | int | float | str) else None
    shown = "" if value is None or node.is_object else f"{show(value)}: "
    try:
        if rule.program(env) is True:
            return None
    except CelError as error:
        named = rule.message or rule.text
        return Cause("FieldValueInvalid", f"Invalid value: {shown}{error} evaluating rule: {named}", where)
    message = _message(rule, env)
    match rule.reason:
        case "FieldValueRequired":
            return Cause(rule.reason, f"Required value: {message}", where)
        case "FieldValueForbidden":
            return Cause(rule.reason, f"Forbidden: {message}", where)
        case "FieldValueDuplicate":
            return Cause(rule.reason, f"Duplicate value: {shown.removesuffix(': ')}", where)
        case _:
            return Cause("FieldValueInvalid", f"Invalid value: {shown}{message}", where)


def _message(rule: Rule, env: Mapping[str, Any]) -> str:
    if rule.expression is not None:
        try:
            found = rule.expression(env)
        except CelError:
            found = None
        if isinstance(found, str) and found.strip() and "\n" not in found:
            return found
    return rule.message or f"failed rule: {rule.text}"


def to_cel(value: Any, node: Node | None) -> Any:
    """Return a value as CEL sees it: times, durations and bytes typed by their formats."""
    if node is None:
        return value
    if isinstance(value, str):
        return from_format(value, node.format) if node.format in _CEL_FORMATS else value
    if isinstance(value, dict):
        return {k: to_cel(v, node.child(k)) for k, v in value.items()}
    if isinstance(value, list) and node.items is not None:
        return [to_cel(v, node.items) for v in value]
    if isinstance(value, int) and not isinstance(value, bool) and node.type == "number":
        return float(value)
    return value
