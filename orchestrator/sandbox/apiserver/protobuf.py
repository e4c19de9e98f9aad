"""Read builtin objects that clients send as protobuf, by the field numbers in `builtin/wire.json`.

Answers are always JSON: every client that sends protobuf accepts both. CRD objects have no protobuf form.
"""

from __future__ import annotations

import base64
import datetime as dt
import functools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.sandbox.apiserver.objects import Obj
from orchestrator.sandbox.apiserver.registry import definition_name
from orchestrator.sandbox.apiserver.status import ApiError, bad_request

MEDIA = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\0"
_META = "k8s.io.apimachinery.pkg.apis.meta.v1."
_SCHEMA = "k8s.io.apiextensions_apiserver.pkg.apis.apiextensions.v1."

#: number -> (JSON name, type, how): see cut_wire.
Message = dict[int, tuple[str, str, str]]


@functools.cache
def _messages() -> dict[str, Message]:
    path = Path(__file__).with_name("builtin") / "wire.json"
    raw: dict[str, dict[str, tuple[str, str, str]]] = msgspec.json.decode(path.read_bytes())
    return {name: {int(n): (f[0], f[1], f[2]) for n, f in fields.items()} for name, fields in raw.items()}


def decode(body: bytes) -> Obj:
    """Return the object in a protobuf body; raises 400 when it cannot be read."""
    if not body.startswith(_MAGIC):
        raise bad_request("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")
    try:
        api_version, kind, raw = "", "", b""
        for number, value in _fields(body[4:]):
            if number == 1:
                parts = dict(_fields(value))
                api_version, kind = parts.get(1, b"").decode(), parts.get(2, b"").decode()
            elif number == 2:
                raw = value
        obj = _message(raw, _root(api_version, kind))
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise bad_request("the protobuf body is cut off or malformed") from error
    return {"apiVersion": api_version, "kind": kind, **obj}


def _root(api_version: str, kind: str) -> str:
    group, _, version = api_version.rpartition("/")
    try:
        definition = definition_name(group, version, kind)
    except KeyError:
        if kind == "DeleteOptions":
            return f"{_META}DeleteOptions"
        raise ApiError(400, "BadRequest", f'no kind "{kind}" is registered for version "{api_version}"') from None
    return definition.replace("io.k8s.", "k8s.io.", 1).replace("-", "_")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
        elif wire == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise IndexError
            yield number, data[at : at + size]
            at += size
        else:
            width = 8 if wire == 1 else 4
            yield number, struct.unpack_from("<d" if wire == 1 else "<f", data, at)[0]
            at += width


def _message(data: bytes, name: str) -> Any:
    special = _SPECIAL.get(name)
    if special is not None:
        return special(data)
    known = _messages().get(name, {})
    result: Obj = {}
    for number, value in _fields(data):
        if number not in known:
            continue
        field, kind, how = known[number]
        if how == "m":
            key, item = _entry(value, kind)
            result.setdefault(field, {})[key] = item
        elif how == "r":
            result.setdefault(field, []).append(_value(value, kind))
        elif how == "i":
            result.update(_value(value, kind))
        else:
            shown = _value(value, kind)
            if how == "p" or shown not in ("", 0, False, None, {}, []):
                result[field] = shown
    return result


def _entry(data: bytes, kind: str) -> tuple[str, Any]:
    parts = dict(_fields(data))
    return parts.get(1, b"").decode(), _value(parts.get(2, b""), kind)


def _value(value: Any, kind: str) -> Any:
    match kind:
        case "string":
            return value.decode()
        case "bytes":
            return base64.b64encode(value).decode()
        case "bool":
            return bool(value)
        case "int32" | "int64":
            return value - (1 << 64) if value >= 1 << 63 else value
        case "uint32" | "uint64" | "double" | "float":
            return value
        case _:
            return _message(value, kind)


def _time(data: bytes) -> str | None:
    parts = dict(_fields(data))
    if not parts:
        return None
    seconds = _value(parts.get(1, 0), "int64")
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _micro_time(data: bytes) -> str | None:
    parts = dict(_fields(data))
    if not parts:
        return None
    moment = dt.datetime.fromtimestamp(_value(parts.get(1, 0), "int64"), dt.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{parts.get(2, 0) // 1000:06d}Z"


def _quantity(data: bytes) -> str:
    return str(dict(_fields(data)).get(1, b"0").decode())


def _int_or_string(data: bytes) -> int | str:
    parts = dict(_fields(data))
    if parts.get(1, 0) == 1:
        return str(parts.get(3, b"").decode())
    return int(_value(parts.get(2, 0), "int64"))


def _raw_json(data: bytes) -> Any:
    raw = dict(_fields(data)).get(1, b"")
    return msgspec.json.decode(raw) if raw else None


def _duration(data: bytes) -> str:
    return f"{_value(dict(_fields(data)).get(1, 0), 'int64') / 1e9:g}s"


def _items(data: bytes) -> list[str]:
    return [v.decode() for _, v in _fields(data)]


def _schema_or(number_of_other: int, other: str) -> Any:
    def read(data: bytes) -> Any:
        parts = dict(_fields(data))
        schema = f"{_SCHEMA}JSONSchemaProps"
        if other == "bool":
            return _message(parts[2], schema) if 2 in parts else bool(parts.get(1, 0))
        if 1 in parts:
            return _message(parts[1], schema)
        values = [v for n, v in _fields(data) if n == number_of_other]
        return [v.decode() for v in values] if other == "strings" else [_message(v, schema) for v in values]

    return read


_SPECIAL: dict[str, Any] = {
    f"{_META}Time": _time,
    f"{_META}MicroTime": _micro_time,
    f"{_META}FieldsV1": _raw_json,
    f"{_META}Duration": _duration,
    "k8s.io.apimachinery.pkg.api.resource.Quantity": _quantity,
    "k8s.io.apimachinery.pkg.util.intstr.IntOrString": _int_or_string,
    "k8s.io.apimachinery.pkg.runtime.RawExtension": _raw_json,
    "k8s.io.api.authentication.v1.ExtraValue": _items,
    "k8s.io.api.authorization.v1.ExtraValue": _items,
    f"{_SCHEMA}JSON": _raw_json,
    f"{_SCHEMA}JSONSchemaPropsOrBool": _schema_or(0, "bool"),
    f"{_SCHEMA}JSONSchemaPropsOrArray": _schema_or(2, "schemas"),
    f"{_SCHEMA}JSONSchemaPropsOrStringArray": _schema_or(2, "strings"),
}
