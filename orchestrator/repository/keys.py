"""Keys: one master key outside, one repository key wrapped by it, two keys per namespace wrapped by that.

A mover gets `NamespaceKeys` of its own namespace and nothing else. What must never happen here: a key in a repr, a
log line or an exception.
"""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path

import msgspec
from blake3 import blake3

from orchestrator.repository.crypto import Bytes, SealingKey, derive
from orchestrator.repository.errors import KeyMalformed

KEY_BYTES = 32
_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")


class MasterKey:
    """The key that the installation's owner keeps. 256 bits; `repr` says nothing."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise KeyMalformed(f"A master key has {KEY_BYTES} bytes, not {len(secret)}")
        self._secret = secret

    @classmethod
    def generate(cls) -> MasterKey:
        """Make a new random one."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def from_bytes(cls, data: bytes) -> MasterKey:
        """Read 32 raw bytes, or 64 hex digits, or base64 of 32 bytes (white space around text is ignored)."""
        if len(data) == KEY_BYTES:
            return cls(data)
        text = data.strip()
        if len(text) == 2 * KEY_BYTES and _HEX_DIGITS.issuperset(text):
            return cls(bytes.fromhex(text.decode()))
        try:
            decoded = base64.b64decode(text.replace(b"-", b"+").replace(b"_", b"/"), validate=True)
        except (binascii.Error, ValueError):
            decoded = b""
        if len(decoded) != KEY_BYTES:
            raise KeyMalformed("This is neither 32 bytes, nor 64 hex digits, nor base64 of 32 bytes")
        return cls(decoded)

    @classmethod
    def from_file(cls, path: str | Path) -> MasterKey:
        """Read a key file; KeyMalformed also when it can't be read."""
        try:
            return cls.from_bytes(Path(path).read_bytes())
        except KeyMalformed:
            raise KeyMalformed(f"{path} holds neither 32 bytes, nor 64 hex digits, nor base64 of 32 bytes") from None
        except OSError as error:
            raise KeyMalformed(f"The key file {path} can't be read: {error.strerror}") from error

    def to_hex(self) -> str:
        """Return 64 hex digits, for writing a new key file."""
        return self._secret.hex()

    def sealing_key(self, repository: bytes) -> SealingKey:
        """Return the key that wraps the repository key."""
        return SealingKey(self._secret, 0, repository)

    def __repr__(self) -> str:
        return "MasterKey(...)"

    def __reduce__(self) -> str:
        raise TypeError("a master key is not pickled")


class NamespaceIdentity(msgspec.Struct, frozen=True):
    """Which namespace of which cluster: a namespace made again under its name is another one."""

    cluster_id: str
    """Uid of the cluster's kube-system namespace."""
    uid: str
    name: str


class _NamespaceKeysJson(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    version: int
    repository_id: str
    namespace_id: str
    cluster_id: str
    uid: str
    name: str
    current_epoch: int
    data_keys: dict[str, bytes]
    chunk_id_key: bytes


class NamespaceKeys(msgspec.Struct, frozen=True):
    """All that a mover may know of one namespace: its data keys by epoch, and its chunk-id key."""

    repository_id: str
    namespace_id: str
    namespace: NamespaceIdentity
    current_epoch: int
    data_keys: dict[int, bytes]
    chunk_id_key: bytes
    _sealing: dict[int, SealingKey] = {}  # every instance gets one of its own
    """Made from the others; whatever is given is not taken."""

    def __post_init__(self) -> None:
        repository = bytes.fromhex(self.repository_id)
        sealing = {epoch: SealingKey(secret, epoch, repository) for epoch, secret in self.data_keys.items()}
        msgspec.structs.force_setattr(self, "_sealing", sealing)

    def epoch(self, number: int) -> SealingKey:
        """Return the data key of an epoch in `data_keys`."""
        return self._sealing[number]

    @property
    def current(self) -> SealingKey:
        """Return the data key that new objects are sealed with."""
        return self._sealing[self.current_epoch]

    def chunk_id(self, data: Bytes) -> bytes:
        """Return the 32-byte id of a chunk's plaintext: BLAKE3 keyed with the namespace's chunk-id key."""
        return blake3(data, key=self.chunk_id_key).digest()

    def to_json(self) -> bytes:
        """Return the keys as JSON, for the one Secret that a mover gets."""
        return msgspec.json.encode(
            _NamespaceKeysJson(
                1,
                self.repository_id,
                self.namespace_id,
                self.namespace.cluster_id,
                self.namespace.uid,
                self.namespace.name,
                self.current_epoch,
                {str(epoch): key for epoch, key in self.data_keys.items()},
                self.chunk_id_key,
            )
        )

    @classmethod
    def from_json(cls, data: bytes | str) -> NamespaceKeys:
        """Read what `to_json` wrote; KeyMalformed otherwise, without quoting any of it."""
        try:
            raw = msgspec.json.decode(data, type=_NamespaceKeysJson)
            keys = {int(epoch): key for epoch, key in raw.data_keys.items()}
            bytes.fromhex(raw.repository_id)
        except (msgspec.MsgspecError, ValueError):
            raise KeyMalformed("These are not a namespace's keys") from None
        lengths = {len(key) for key in (*keys.values(), raw.chunk_id_key)}
        if raw.version != 1 or raw.current_epoch not in keys or lengths != {KEY_BYTES}:
            raise KeyMalformed("These are not a namespace's keys")
        identity = NamespaceIdentity(raw.cluster_id, raw.uid, raw.name)
        return cls(raw.repository_id, raw.namespace_id, identity, raw.current_epoch, keys, raw.chunk_id_key)

    def __repr__(self) -> str:
        return f"NamespaceKeys(namespace={self.namespace.name!r}, epoch={self.current_epoch}, ...)"


def namespace_id(repository_key: bytes, namespace: NamespaceIdentity) -> str:
    """Return the 32 hex digits under which a namespace's objects lie; says nothing about its name without the key."""
    key = derive(repository_key, b"tidemark/1/namespace-id")
    text = f"{namespace.cluster_id}\0{namespace.uid}".encode()
    return blake3(text, key=key).hexdigest()[:32]
