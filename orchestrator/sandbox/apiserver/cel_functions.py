"""The functions that CEL rules may call: CEL's own and those of Kubernetes (k8s.io/apiserver `cel/library`)."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import itertools
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import ParseResult, parse_qs, urlparse
from zoneinfo import ZoneInfo

import re2  # type: ignore[import-untyped]

from orchestrator.sandbox.apiserver.builtin_rules import bytes_of


class CelError(Exception):
    """An expression that has no value."""


class Quantity(float):
    """A resource quantity's value."""


_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration(text: Any) -> dt.timedelta:
    """Read a Go duration."""
    if isinstance(text, dt.timedelta):
        return text
    body = text.lstrip("+-")
    if body != "0" and (not body or _DURATION.sub("", body)):
        raise CelError(f"duration parse error: {text!r}")
    seconds = sum(float(n) * _SECONDS[u] for n, u in _DURATION.findall(body))
    return dt.timedelta(seconds=-seconds if text.startswith("-") else seconds)


def timestamp(text: Any) -> dt.datetime:
    if isinstance(text, dt.datetime):
        return text
    try:
        return dt.datetime.fromisoformat(text).astimezone(dt.UTC)
    except ValueError as error:
        raise CelError(f"timestamp parse error: {text!r}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def equal(left: Any, right: Any) -> bool:
    """Compare as CEL does: numbers across types, everything else only within its type."""
    if _is_number(left) and _is_number(right):
        return bool(left == right)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(equal(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(v, right[k]) for k, v in left.items())
    return type(left) is type(right) and bool(left == right)


def compare(left: Any, right: Any) -> int:
    if not (_is_number(left) and _is_number(right)) and type(left) is not type(right):
        raise CelError("no such overload")
    if isinstance(left, list | dict) or left is None:
        raise CelError("no such overload")
    return int(left > right) - int(left < right)


def add(left: Any, right: Any) -> Any:
    if isinstance(left, dt.datetime | dt.timedelta) and isinstance(right, dt.datetime | dt.timedelta):
        return left + right  # type: ignore[operator]
    if type(left) is not type(right) or isinstance(left, bool | dict) or left is None:
        raise CelError("no such overload")
    return left + right


def size(value: Any) -> int:
    if not isinstance(value, str | list | dict | bytes):
        raise CelError("no such overload")
    return len(value)


def matches(text: str, pattern: str) -> bool:
    try:
        return bool(re2.search(pattern, text))
    except re2.error as error:
        raise CelError(f"error parsing regexp: {error}") from error


def _to_int(value: Any) -> int:
    try:
        if isinstance(value, dt.datetime):
            return int(value.timestamp())
        return int(value)
    except (TypeError, ValueError) as error:
        raise CelError(f"type conversion error from {value!r} to int") from error


def _to_double(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise CelError(f"type conversion error from {value!r} to double") from error


def _to_string(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dt.datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, dt.timedelta):
        return f"{value.total_seconds():g}s"
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in {"true", "false"}:
        return bool(value == "true")
    raise CelError(f"type conversion error from {value!r} to bool")


def type_of(value: Any) -> str:
    if value is None:
        return "null_type"
    kinds: list[tuple[type, str]] = [
        (bool, "bool"),
        (Quantity, "kubernetes.Quantity"),
        (int, "int"),
        (float, "double"),
        (str, "string"),
        (bytes, "bytes"),
        (list, "list"),
        (dict, "map"),
        (dt.datetime, "google.protobuf.Timestamp"),
        (dt.timedelta, "google.protobuf.Duration"),
    ]
    return next((name for kind, name in kinds if isinstance(value, kind)), "dyn")


def quantity(text: str) -> Quantity:
    try:
        return Quantity(bytes_of(text))
    except ValueError as error:
        raise CelError("quantities must match the regular expression") from error


def _succeeds(function: Callable[[Any], Any]) -> Callable[[Any], bool]:
    def test(value: Any) -> bool:
        try:
            function(value)
        except (CelError, ValueError):
            return False
        return True

    return test


def url(text: str) -> ParseResult:
    found = urlparse(text)
    if not (found.scheme and (found.netloc or found.path.startswith("/"))) and not text.startswith("/"):
        raise CelError(f"URL parse error during conversion from string: {text!r}")
    return found


def ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise CelError(f"IP Address {text!r} parse error") from error


def cidr(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise CelError(f"network address parse error: {text!r}") from error


def _format(template: str, arguments: list[Any]) -> str:
    values = iter(arguments)

    def one(found: re.Match[str]) -> str:
        if found[0] == "%%":
            return "%"
        value = next(values)
        match found[2]:
            case "d":
                return str(value)
            case "f" | "e":
                return f"{float(value):{found[1] or '.6'}{found[2]}}"
            case "x" | "X" | "o" | "b":
                return format(value, found[2])
            case _:
                pass
        return _to_string(value) if not isinstance(value, list) else "[" + ", ".join(map(_to_string, value)) + "]"

    return re.sub(r"%%|%(\.\d+)?([sdfexXob])", one, template)


def _substring(text: str, start: int, end: int | None = None) -> str:
    stop = len(text) if end is None else end
    if not 0 <= start <= stop <= len(text):
        raise CelError(f"index out of range: {start}")
    return text[start:stop]


def _find(text: str, pattern: str) -> str:
    found = re2.search(pattern, text)
    return str(found.group(0)) if found else ""


def _find_all(text: str, pattern: str, limit: int = -1) -> list[str]:
    found = [str(m.group(0)) for m in re2.finditer(pattern, text)]
    return found if limit < 0 else found[:limit]


def _sum(values: list[Any]) -> Any:
    total: Any = None
    for value in values:
        total = value if total is None else add(total, value)
    return 0 if total is None else total


def _extreme(pick: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    def work(values: list[Any]) -> Any:
        if not values:
            raise CelError("min or max called on an empty list")
        return pick(values)

    return work


def _is_sorted(values: list[Any]) -> bool:
    return all(compare(a, b) <= 0 for a, b in itertools.pairwise(values))


def _index_of(container: Any, item: Any) -> int:
    if isinstance(container, str):
        return container.find(item)
    return next((i for i, v in enumerate(container) if equal(v, item)), -1)


def _last_index_of(container: Any, item: Any) -> int:
    if isinstance(container, str):
        return container.rfind(item)
    return next((i for i in reversed(range(len(container))) if equal(container[i], item)), -1)


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    return text.replace(old, new, count)


def _split(text: str, separator: str, limit: int = -1) -> list[str]:
    if not separator:
        return list(text)
    return text.split(separator, limit - 1 if limit > 0 else -1)


def _field(name: str) -> Callable[..., int]:
    """Return an accessor of timestamps (in a time zone) and of durations."""

    def work(value: Any, zone: str = "UTC") -> int:
        if isinstance(value, dt.timedelta):
            seconds = value.total_seconds()
            divisors = {"getHours": 3600.0, "getMinutes": 60.0, "getSeconds": 1.0, "getMilliseconds": 0.001}
            return int(seconds / divisors[name])
        moment = value.astimezone(ZoneInfo(zone))
        return int(_MOMENT[name](moment))

    return work


_MOMENT: dict[str, Callable[[dt.datetime], int]] = {
    "getFullYear": lambda t: t.year, "getMonth": lambda t: t.month - 1, "getDate": lambda t: t.day,
    "getDayOfMonth": lambda t: t.day - 1, "getDayOfWeek": lambda t: (t.weekday() + 1) % 7,
    "getDayOfYear": lambda t: t.timetuple().tm_yday - 1, "getHours": lambda t: t.hour, "getMinutes": lambda t: t.minute,
    "getSeconds": lambda t: t.second, "getMilliseconds": lambda t: t.microsecond // 1000,
}  # fmt: skip

CONSTANTS: dict[str, Any] = {
    "int": "int",
    "uint": "uint",
    "double": "double",
    "bool": "bool",
    "string": "string",
    "bytes": "bytes",
    "list": "list",
    "map": "map",
    "null_type": "null_type",
}

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "size": size,
    "matches": matches,
    "int": _to_int,
    "uint": _to_int,
    "double": _to_double,
    "string": _to_string,
    "bool": _to_bool,
    "bytes": lambda v: v if isinstance(v, bytes) else v.encode(),
    "duration": duration,
    "timestamp": timestamp,
    "type": type_of,
    "dyn": lambda v: v,
    "quantity": quantity,
    "isQuantity": _succeeds(quantity),
    "url": url,
    "isURL": _succeeds(url),
    "ip": ip,
    "isIP": _succeeds(ip),
    "cidr": cidr,
    "isCIDR": _succeeds(cidr),
}

METHODS: dict[str, Callable[..., Any]] = {
    "size": size, "matches": matches, "contains": lambda t, s: s in t, "startsWith": lambda t, s: t.startswith(s),
    "endsWith": lambda t, s: t.endswith(s), "lowerAscii": lambda t: t.lower(), "upperAscii": lambda t: t.upper(),
    "trim": lambda t: t.strip(), "split": _split, "replace": _replace, "substring": _substring, "format": _format,
    "charAt": lambda t, i: _substring(t, i, min(i + 1, len(t))), "indexOf": _index_of, "lastIndexOf": _last_index_of,
    "join": lambda v, s="": s.join(v), "find": _find, "findAll": _find_all, "sum": _sum, "min": _extreme(min),
    "max": _extreme(max), "isSorted": _is_sorted, "reverse": lambda v: v[::-1], "sort": sorted,
    "isGreaterThan": lambda a, b: a > b, "isLessThan": lambda a, b: a < b, "compareTo": lambda a, b: (a > b) - (a < b),
    "asInteger": _to_int, "asApproximateFloat": float, "isInteger": lambda q: float(q).is_integer(),
    "sign": lambda q: (q > 0) - (q < 0), "add": lambda a, b: Quantity(a + b), "sub": lambda a, b: Quantity(a - b),
    "getScheme": lambda u: u.scheme, "getHost": lambda u: u.netloc, "getHostname": lambda u: u.hostname or "",
    "getPort": lambda u: str(u.port or ""), "getEscapedPath": lambda u: u.path, "getQuery": lambda u: parse_qs(u.query),
    "family": lambda a: a.version, "isLoopback": lambda a: a.is_loopback, "containsIP": lambda c, a: ip(str(a)) in c,
    **{name: _field(name) for name in _MOMENT},
}  # fmt: skip


def from_format(value: Any, wanted: str) -> Any:
    """Return a string of a schema format as CEL sees it."""
    try:
        match wanted:
            case "date-time":
                return timestamp(value)
            case "date":
                return timestamp(value + "T00:00:00Z")
            case "duration":
                return duration(value)
            case "byte":
                return base64.b64decode(value)
            case _:
                return value
    except (CelError, ValueError):
        return value
    return value
