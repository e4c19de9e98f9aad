"""Which names Kubernetes accepts, and what it says about the others (k8s.io/apimachinery util/validation)."""

from __future__ import annotations

import re

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_DNS1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")

_SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    r"'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    "an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_DNS1035_TEXT = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, "
    "and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
    "'[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_QUALIFIED_TEXT = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)


def _too_long(limit: int) -> str:
    return f"must be no more than {limit} bytes"


def dns_subdomain(name: str) -> list[str]:
    problems = [_too_long(253)] if len(name) > 253 else []
    return problems if _SUBDOMAIN.fullmatch(name) else [*problems, _SUBDOMAIN_TEXT]


def dns_label(name: str) -> list[str]:
    problems = [_too_long(63)] if len(name) > 63 else []
    return problems if _LABEL.fullmatch(name) else [*problems, _LABEL_TEXT]


def dns1035_label(name: str) -> list[str]:
    problems = [_too_long(63)] if len(name) > 63 else []
    return problems if _DNS1035.fullmatch(name) else [*problems, _DNS1035_TEXT]


def path_segment(name: str) -> list[str]:
    """RBAC names: anything that can stand in a URL path."""
    if name in {".", ".."}:
        return [f"may not be '{name}'"]
    return [f"may not contain '{c}'" for c in "/%" if c in name]


def label_value(value: str) -> list[str]:
    problems = [_too_long(63)] if len(value) > 63 else []
    return problems if not value or _QUALIFIED.fullmatch(value) else [*problems, _VALUE_TEXT]


def qualified_name(name: str) -> list[str]:
    """Label keys, annotation keys, finalizers: `[prefix/]name`."""
    prefix, slash, rest = name.rpartition("/")
    problems = []
    if slash:
        if "/" in prefix:
            return [f"a valid label key must consist of {_QUALIFIED_TEXT.removeprefix('name part must consist of ')}"]
        problems += (
            ["prefix part must be non-empty"] if not prefix else [f"prefix part {p}" for p in dns_subdomain(prefix)]
        )
    if not rest:
        problems.append("name part must be non-empty")
    elif len(rest) > 63:
        problems.append("name part " + _too_long(63))
    if not _QUALIFIED.fullmatch(rest):
        problems.append(_QUALIFIED_TEXT)
    return problems
