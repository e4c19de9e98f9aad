"""OpenAPI v2 in protobuf, as kubectl up to 1.27 insists on: gnostic's `openapi.v2.Document`, written by hand.

Only what our document contains is encoded. Field numbers are those of gnostic-models `openapiv2/OpenAPIv2.proto`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from orchestrator.sandbox.apiserver.objects import Obj

#: What clients ask for, and (as `@` cannot stand in a media type) what the answer is called.
MEDIA = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
ANSWER = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
_VERBS = {"get": 2, "put": 3, "post": 4, "delete": 5, "patch": 8}
_TEXTS = {"$ref": 1, "format": 2, "title": 3, "description": 4, "pattern": 13}
_DOUBLES = {"multipleOf": 6, "maximum": 7, "minimum": 9}
_COUNTS = {"maxLength": 11, "minLength": 12, "maxItems": 14, "minItems": 15, "maxProperties": 17, "minProperties": 18}
#: What a v2 schema cannot say about these, so that clients do not refuse valid objects.
_UNTYPED = ("type", "items", "properties", "additionalProperties", "required")


def encode(document: Mapping[str, Any]) -> bytes:
    """Return a v2 document (as `OpenApi.build_v2` makes it) in protobuf."""
    info = document["info"]
    paths = (_block(2, _text(1, name) + _block(2, _path(item))) for name, item in document["paths"].items())
    definitions = (_block(1, _named_schema(n, d)) for n, d in document["definitions"].items())
    return (
        _text(1, document["swagger"])
        + _block(2, _text(1, info["title"]) + _text(2, info["version"]))
        + _block(8, b"".join(paths))
        + _block(9, b"".join(definitions))
    )


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _block(number: int, body: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _text(number: int, text: str) -> bytes:
    return _block(number, text.encode())


def _texts(number: int, values: Iterable[str]) -> bytes:
    return b"".join(_text(number, v) for v in values)


def _whole(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _double(number: int, value: float) -> bytes:
    return _varint(number << 3 | 1) + struct.pack("<d", value)


def _any(value: Any) -> bytes:
    return _text(2, yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10_000))


#: libyaml's writer where it is there: a whole document has some thousand small values.
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def _extensions(number: int, raw: Mapping[str, Any]) -> bytes:
    found = ((k, v) for k, v in raw.items() if k.startswith("x-"))
    return b"".join(_block(number, _text(1, k) + _block(2, _any(v))) for k, v in found)


def _path(item: Mapping[str, Any]) -> bytes:
    return b"".join(_block(_VERBS[verb], _operation(operation)) for verb, operation in item.items())


def _operation(raw: Mapping[str, Any]) -> bytes:
    responses = b"".join(
        _block(1, _text(1, code) + _block(2, _block(1, _response(answer)))) for code, answer in raw["responses"].items()
    )
    parameters = (_block(8, _block(1, _block(2, _block(3, _query(p))))) for p in raw["parameters"])
    return (
        _text(3, raw["description"])
        + _text(5, raw["operationId"])
        + _texts(6, raw["produces"])
        + _texts(7, raw["consumes"])
        + b"".join(parameters)
        + _block(9, responses)
        + _extensions(13, raw)
    )


def _response(raw: Mapping[str, Any]) -> bytes:
    return _text(1, raw["description"]) + _block(2, _block(1, _schema(raw["schema"])))


def _query(raw: Mapping[str, Any]) -> bytes:
    return _text(2, "query") + _text(4, raw["name"]) + _text(6, raw["type"]) + _whole(20, 1)


def _named_schema(name: str, raw: Mapping[str, Any]) -> bytes:
    return _text(1, name) + _block(2, _schema(raw))


def _schema(raw: Mapping[str, Any]) -> bytes:
    if raw.get("nullable") or raw.get("x-kubernetes-preserve-unknown-fields"):
        raw = {k: v for k, v in raw.items() if k not in _UNTYPED}
    out = b"".join(_text(n, str(raw[k])) for k, n in _TEXTS.items() if raw.get(k))
    out += b"".join(_double(n, float(raw[k])) for k, n in _DOUBLES.items() if k in raw)
    out += b"".join(_whole(n, int(raw[k])) for k, n in _COUNTS.items() if k in raw)
    out += _texts(19, raw.get("required") or ())
    out += b"".join(_block(20, _any(v)) for v in raw.get("enum") or ())
    if "default" in raw:
        out += _block(5, _any(raw["default"]))
    extra = raw.get("additionalProperties")
    if isinstance(extra, Mapping):
        out += _block(21, _block(1, _schema(extra)))
    if raw.get("type"):
        out += _block(22, _text(1, raw["type"]))
    if isinstance(raw.get("items"), Mapping):
        out += _block(23, _block(1, _schema(raw["items"])))
    properties: Obj = raw.get("properties") or {}
    if properties:
        out += _block(25, b"".join(_block(1, _named_schema(n, s)) for n, s in properties.items()))
    return out + _extensions(31, raw)
