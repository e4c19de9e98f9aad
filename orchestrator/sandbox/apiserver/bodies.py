"""Request bodies in and answers out: JSON and YAML, content negotiation, limits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import yaml
from aiohttp import web

from orchestrator.sandbox.apiserver import protobuf
from orchestrator.sandbox.apiserver.json_text import complaint, summary
from orchestrator.sandbox.apiserver.objects import Obj
from orchestrator.sandbox.apiserver.status import ApiError, bad_request, not_acceptable, too_large, unsupported_media

LIMIT = 3 * 1024 * 1024
JSON, YAML = "application/json", "application/yaml"
_READ = (JSON, YAML)
_OFFERED = ("application/json", "application/yaml")
_encode = msgspec.json.Encoder().encode


class Accept(msgspec.Struct, frozen=True):
    """What a client wants back: JSON or YAML, and perhaps a Table, bare metadata or aggregated discovery."""

    yaml: bool = False
    shape: str = ""
    version: str = ""
    group: str = ""


def accepted(header: str) -> Accept:
    """Choose the first acceptable form; raises 406 when there is none (protobuf alone)."""
    if not header:
        return Accept()
    for part in header.split(","):
        media, *rest = (p.strip() for p in part.split(";"))
        parameters = dict(r.split("=", 1) for r in rest if "=" in r)
        if media in {JSON, "*/*", "application/*"}:
            shape = parameters.get("as", "")
            if shape and (shape, parameters.get("v")) not in _SHAPES:
                continue
            return Accept(False, shape, parameters.get("v", ""), parameters.get("g", ""))
        if media in {YAML, "application/x-yaml", "text/yaml"}:
            return Accept(True)
    raise not_acceptable(_OFFERED)


_SHAPES = {
    ("Table", "v1"), ("Table", "v1beta1"), ("PartialObjectMetadata", "v1"), ("PartialObjectMetadataList", "v1"),
    ("APIGroupDiscoveryList", "v2"),
}  # fmt: skip


async def read(request: web.BaseRequest) -> bytes:
    """Read a body within the limit."""
    parts, size = [], 0
    async for part in request.content.iter_any():
        size += len(part)
        if size > LIMIT:
            raise too_large(LIMIT)
        parts.append(part)
    return b"".join(parts)


def media_type(request: web.BaseRequest) -> str:
    return request.headers.get("Content-Type", "").split(";")[0].strip().lower()


def parse(body: bytes, media: str, *, binary: bool = False) -> Any:
    """Decode a body by its media type; 400 when it is malformed, 415 for another type (`binary`: protobuf too)."""
    if binary and media == protobuf.MEDIA:
        return protobuf.decode(body)
    if media in {"", JSON}:
        return parse_json(body)
    if media in {YAML, "application/x-yaml", "text/yaml"}:
        return parse_yaml(body)
    raise unsupported_media(_READ)


def parse_json(body: bytes, prefix: str = "couldn't get version/kind; json parse error") -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(f"{prefix}: {complaint(body)}") from error


def parse_object(body: bytes, media: str, kind: str, *, binary: bool) -> Obj:
    """Decode the body of an object of a kind; a JSON text that is none is quoted in the refusal."""
    try:
        return as_object(parse(body, media, binary=binary))
    except ApiError as error:
        if error.code != 400 or media not in {"", JSON}:
            raise
        unrecognized = f"the object provided is unrecognized (must be of type {kind})"
        raise bad_request(f"{unrecognized}: {error.message} ({summary(body)})") from error


class _Plain(yaml.SafeLoader):
    """Safe YAML without dates: Kubernetes reads them as text."""


_Plain.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for letter, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(body: bytes) -> Any:
    if body.lstrip()[:1] == b"{":
        try:
            return msgspec.json.decode(body)
        except msgspec.DecodeError:
            pass
    try:
        return yaml.load(body, Loader=_Plain)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise bad_request(f"error decoding YAML: {error}") from error


_TYPE_META = 'struct { APIVersion string "json:\\"apiVersion,omitempty\\""; Kind string "json:\\"kind,omitempty\\"" }'
_GO_KINDS = {str: "string", bool: "bool", int: "number", float: "number", list: "array"}


def as_object(value: Any, into: str = _TYPE_META, prefix: str = "couldn't get version/kind; json parse error") -> Obj:
    if not isinstance(value, dict):
        found = _GO_KINDS.get(type(value), "null")
        raise bad_request(f"{prefix}: json: cannot unmarshal {found} into Go value of type {into}")
    return value


def answer(body: Obj, accept: Accept, status: int = 200, warnings: Iterable[str] = ()) -> web.Response:
    """Encode an answer, with its warnings as headers."""
    if accept.yaml:
        payload, media = yaml.safe_dump(body, sort_keys=True).encode(), YAML
    else:
        payload, media = _encode(body) + b"\n", JSON
    if accept.shape == "APIGroupDiscoveryList":
        media = f"{JSON};g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    response = web.Response(body=payload, status=status, headers={"Content-Type": media})
    for warning in warnings:
        quoted = warning.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
        response.headers.add("Warning", f'299 - "{quoted}"')
    return response
