"""Sealed documents: manifests, intents, plans, shards and the other small objects.

One header, one frame. Inside: a JSON document, and after it bytes (`tail`) where a document carries many.
"""

from __future__ import annotations

import struct
from typing import TypeVar

import msgspec

from orchestrator.repository.compression import compress, decompress
from orchestrator.repository.crypto import Bytes, Header, ObjectCipher
from orchestrator.repository.errors import Damaged
from orchestrator.repository.layout import MAX_OBJECT, SLOT_UNIT, Kind
from orchestrator.repository.vault import Vault

_FRAME = struct.Struct("<BI")
_LENGTH = struct.Struct("<I")
_KIND_AT = 9
_SMALL = 4 << 20
_LARGEST: dict[int, int] = dict.fromkeys(
    (Kind.MASTER_WRAP, Kind.NAMESPACE_KEYS, Kind.MANIFEST, Kind.CANCELLED, Kind.INTENT, Kind.REMOVING), _SMALL
)
"""Bytes that a document of a kind may unfold to: a mover that was taken over could pack a gigabyte of zeros into what
the controller, with little memory and everybody's backups, opens."""
T = TypeVar("T", bound=msgspec.Struct)


def seal_body(cipher: ObjectCipher, document: bytes, tail: Bytes = b"") -> bytes:
    """Return the whole object: header, then one frame with the document and its tail."""
    body = b"".join((_LENGTH.pack(len(document)), document, tail))
    codec, packed = compress(body)
    return cipher.header + cipher.seal(1, b"".join((_FRAME.pack(codec, len(body)), packed)))


def open_body(cipher: ObjectCipher, data: Bytes) -> tuple[bytes, bytes]:
    """Return (document, tail) of a sealed object; Damaged when it doesn't open."""
    frame = cipher.open(1, memoryview(data)[SLOT_UNIT:])
    try:
        codec, length = _FRAME.unpack_from(frame)
        if length > _LARGEST.get(cipher.header[_KIND_AT], MAX_OBJECT):
            raise ValueError("too long")
        body = decompress(codec, memoryview(frame)[_FRAME.size :], length)
        (split,) = _LENGTH.unpack_from(body)
        if len(body) != length or split > length - _LENGTH.size:
            raise ValueError("lengths don't agree")
    except (ValueError, struct.error) as error:
        raise Damaged(cipher.name, "its frame is malformed") from error
    view = bytes(body)
    return view[_LENGTH.size : _LENGTH.size + split], view[_LENGTH.size + split :]


def seal_record(vault: Vault, kind: Kind, name: str, value: msgspec.Struct, tail: Bytes = b"") -> bytes:
    """Return a new sealed object that holds `value` as JSON, and `tail`."""
    return seal_body(vault.new_cipher(kind, name), msgspec.json.encode(value), tail)


def open_record(vault: Vault, kind: Kind, name: str, data: Bytes, as_type: type[T]) -> tuple[T, bytes]:
    """Return (value, tail) of a sealed object; Damaged when it is anything else."""
    document, tail = open_body(vault.cipher(kind, name, data), data)
    try:
        return msgspec.json.decode(document, type=as_type), tail
    except msgspec.MsgspecError as error:
        raise Damaged(name, f"its document is malformed: {error}") from error


def kind_of(name: str, data: Bytes) -> int:
    """Return the kind that a header claims; opening proves it."""
    return Header.parse(name, data).kind
