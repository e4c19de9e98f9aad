"""What Kubernetes' parser of label selectors says about one that it can't read."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"\s*(==|!=|=|!|<|>|\(|\)|,|[^\s!=,()<>]+)")
_SIGNS = {"==", "!=", "=", "!", "<", ">", "(", ")", ",", ""}
_OPERATORS = {"in", "notin", "=", "==", "!=", "<", ">"}


class _Bad(Exception):
    """The text can't be read from here on."""


def selector_complaint(text: str) -> str:
    """Return the parser's complaint about a label selector, as a 400 carries it."""
    tokens = [*_TOKEN.findall(text), ""]
    try:
        while True:
            if tokens[0] in _SIGNS - {"!"}:
                return f"found '{tokens[0]}', expected: !, identifier, or 'end of string'"
            try:
                _requirement(tokens)
            except _Bad as error:
                return f"unable to parse requirement: {error}"
            found = tokens.pop(0)
            if found != ",":
                return f"found '{found}', expected: ',' or 'end of string'"
            if tokens[0] in _SIGNS - {"!"}:
                return f"found '{tokens[0]}', expected: identifier after ','"
    except IndexError:
        return f"unable to parse requirement: {text}"


def _requirement(tokens: list[str]) -> None:
    """Take one requirement off the front; raises _Bad."""
    negated = tokens[0] == "!"
    if negated:
        tokens.pop(0)
    if tokens[0] in _SIGNS:
        raise _Bad(f"found '{tokens[0]}', expected: identifier")
    tokens.pop(0)
    if negated or tokens[0] in {"", ","}:
        return
    operator = tokens.pop(0)
    if operator not in _OPERATORS:
        raise _Bad(f"found '{operator}', expected: in, notin, =, ==, !=, gt, lt")
    if operator in {"in", "notin"}:
        _values(tokens)
    elif tokens[0] not in _SIGNS:
        tokens.pop(0)
    elif tokens[0] not in {"", ","}:
        raise _Bad(f"found '{tokens[0]}', expected: identifier")


def _values(tokens: list[str]) -> None:
    found = tokens.pop(0)
    if found != "(":
        raise _Bad(f"found '{found}' expected: '('")
    if tokens[0] in _SIGNS - {",", ")"}:
        raise _Bad(f"found '{tokens[0]}', expected: ',', ')' or identifier")
    while (found := tokens.pop(0)) != ")":
        if found != "," and tokens[0] not in {",", ")"}:
            raise _Bad(f"found '{tokens[0]}', expected: ',' or ')'")
