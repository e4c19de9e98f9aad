"""Who wraps the repository key: the master key of a file or Secret, or a key service that never gives its key away.

The seam for a key service is `KeyWrapper`: two calls, made once when a repository is opened, made or rewrapped. What
must never happen here: a key in a message, or bytes unwrapped for another repository or under another name.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import msgspec

from orchestrator.repository.crypto import Header, ObjectCipher, SealingKey
from orchestrator.repository.errors import Damaged, WrongKey
from orchestrator.repository.keys import KEY_BYTES, MasterKey
from orchestrator.repository.layout import Kind
from orchestrator.repository.record import open_body, seal_body


@runtime_checkable
class KeyWrapper(Protocol):
    """Wraps the repository key (32 bytes) into the object `keys/<n>` and back."""

    async def wrap(self, repository_id: str, name: str, secret: bytes) -> bytes:
        """Return the object to put at `name`; both names must be bound to it. Raises Retryable errors of its own."""
        ...

    async def unwrap(self, repository_id: str, name: str, data: bytes) -> bytes:
        """Return what was wrapped. Raises WrongKey (another key's), Damaged (altered, misplaced)."""
        ...


class _RepositoryKey(msgspec.Struct, frozen=True, rename="camel"):
    repository_key: bytes


class MasterWrapper:
    """Wraps with a master key that we hold: a sealed document of kind 1."""

    __slots__ = ("_master",)

    def __init__(self, master: MasterKey) -> None:
        self._master = master

    async def wrap(self, repository_id: str, name: str, secret: bytes) -> bytes:
        """Seal a document."""
        cipher = ObjectCipher.new(self._master.sealing_key(bytes.fromhex(repository_id)), Kind.MASTER_WRAP, name)
        return seal_body(cipher, msgspec.json.encode(_RepositoryKey(secret)))

    async def unwrap(self, repository_id: str, name: str, data: bytes) -> bytes:
        """Open it; WrongKey and Damaged are told apart by the header's key check."""
        key = self._master.sealing_key(bytes.fromhex(repository_id))
        try:
            cipher = ObjectCipher.of(key, Kind.MASTER_WRAP, name, data)
        except WrongKey:
            if _opens(key, name, data):
                raise Damaged(name, "its header was altered") from None
            raise
        document = open_body(cipher, data)[0]
        try:
            return msgspec.json.decode(document, type=_RepositoryKey).repository_key
        except msgspec.MsgspecError:
            # Not `from`: the library's message may quote what it read, and this may be a key.
            raise Damaged(name, "its document is malformed") from None


def wrapper_of(master: MasterKey | KeyWrapper) -> KeyWrapper:
    """Return what wraps for a master key, or a key service as it is."""
    return MasterWrapper(master) if isinstance(master, MasterKey) else master


def checked(name: str, secret: bytes) -> bytes:
    """Return a repository key if it can be one; Damaged."""
    if len(secret) != KEY_BYTES:
        raise Damaged(name, "it holds no repository key")
    return secret


def _opens(key: SealingKey, name: str, data: bytes) -> bool:
    """Say whether this is the right key after all, under a header whose key check or epoch was altered."""
    header = Header.parse(name, data)
    try:
        open_body(ObjectCipher.known(key, Kind.MASTER_WRAP, name, header.object_id), data)
    except Damaged:
        return False
    return True
