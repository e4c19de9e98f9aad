"""Answers of the API server that are no objects of a kind: tokens, groups, resources."""

from __future__ import annotations

from datetime import datetime

import msgspec

from orchestrator.kube import errors
from orchestrator.kube.errors import Target


class _TokenSpec(msgspec.Struct):
    audiences: list[str] = []


class _TokenStatus(msgspec.Struct, rename="camel"):
    token: str
    expiration_timestamp: datetime

    def __repr__(self) -> str:
        """Hide the token."""
        return f"_TokenStatus(expires {self.expiration_timestamp})"


class TokenRequest(msgspec.Struct):
    """The server's answer to a TokenRequest: its audiences (defaults filled in) and the token."""

    status: _TokenStatus
    spec: _TokenSpec = msgspec.field(default_factory=_TokenSpec)


class _Version(msgspec.Struct):
    version: str


class _Group(msgspec.Struct):
    name: str
    versions: list[_Version] = []


class _Groups(msgspec.Struct):
    groups: list[_Group] = []


class _NamedResource(msgspec.Struct):
    name: str


class _Resources(msgspec.Struct):
    resources: list[_NamedResource] = []


_TOKEN_REQUEST = msgspec.json.Decoder(TokenRequest)
_GROUPS = msgspec.json.Decoder(_Groups)
_RESOURCES = msgspec.json.Decoder(_Resources)


def decode_token_request(body: bytes, target: Target) -> TokenRequest:
    """Return the answer to a TokenRequest; an error never quotes it."""
    try:
        return _TOKEN_REQUEST.decode(body)
    except msgspec.MsgspecError:
        raise errors.Undecodable(target, "the answer is not a TokenRequest") from None


def decode_groups(body: bytes, target: Target) -> dict[str, tuple[str, ...]]:
    """Return the versions of each API group."""
    try:
        groups = _GROUPS.decode(body).groups
    except msgspec.MsgspecError as error:
        raise errors.Unavailable(target, "the answer is not an APIGroupList") from error
    return {group.name: tuple(version.version for version in group.versions) for group in groups}


def decode_resources(body: bytes, target: Target) -> frozenset[str]:
    """Return the names of a group version's resources and subresources."""
    try:
        return frozenset(item.name for item in _RESOURCES.decode(body).resources)
    except msgspec.MsgspecError as error:
        raise errors.Unavailable(target, "the answer is not an APIResourceList") from error
