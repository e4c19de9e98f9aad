"""One namespace's keys and prefix: what every function of this room that touches a point takes.

A mover has a `Vault` and never a `Repository`: it can't reach another namespace's keys.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import msgspec

from orchestrator.repository.crypto import Bytes, Header, ObjectCipher
from orchestrator.repository.errors import Damaged, KeysOutdated
from orchestrator.repository.keys import NamespaceIdentity, NamespaceKeys
from orchestrator.repository.layout import Kind, Names, ObjectRef
from orchestrator.repository.store import Store

TRIED_FRAMES = 8
"""Frames of an object that are opened at most to find out which key sealed it."""


class Vault(msgspec.Struct, frozen=True):
    """A namespace's part of a repository. Cheap; holds keys, so `repr` says only whose."""

    store: Store
    keys: NamespaceKeys
    final: bool = False
    """These are all the epochs there are (the repository was asked): who names another one lies."""
    names: Names = Names("none")
    """Of the keys' namespace; whatever is given is not taken."""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "names", Names(self.keys.namespace_id))

    def __repr__(self) -> str:
        return f"Vault(store={self.store!r})"

    @classmethod
    def from_mover(cls, store: Store, keys: NamespaceKeys) -> Vault:
        """Make a vault from what a mover was given."""
        return cls(store, keys)

    @property
    def repository_id(self) -> str:
        """Return the repository's id, 32 hex digits."""
        return self.keys.repository_id

    @property
    def namespace_id(self) -> str:
        """Return the namespace's id in this repository, 32 hex digits."""
        return self.keys.namespace_id

    @property
    def namespace(self) -> NamespaceIdentity:
        """Return whose points these are."""
        return self.keys.namespace

    def new_cipher(self, kind: Kind, name: str, ref: ObjectRef | None = None) -> ObjectCipher:
        """Start a new object under the current epoch; a pack's or map object's id is the random part of its name."""
        return ObjectCipher.new(self.keys.current, kind, name, ref.random if ref else None)

    def cipher_for(self, kind: Kind, ref: ObjectRef, frames: Sequence[tuple[int, Bytes]]) -> tuple[ObjectCipher, bool]:
        """Open a pack or map object without its header; with several epochs, the one that opens one of its frames.

        `frames`: slots, and what lies there. As a part of an object may be damaged, some that are far apart are tried.
        When none opens it is the newest epoch, and False: opening a frame then says Damaged.
        """
        name = self.names.pack(ref) if kind is Kind.PACK else self.names.map(ref)
        epochs = sorted(self.keys.data_keys, reverse=True)
        ciphers = [ObjectCipher.known(self.keys.epoch(number), kind, name, ref.random) for number in epochs]
        if len(ciphers) == 1:
            return ciphers[0], True
        for slot, sealed in frames[:: -(-len(frames) // TRIED_FRAMES) or 1]:
            for cipher in ciphers:
                with contextlib.suppress(Damaged):
                    cipher.open(slot, sealed)
                    return cipher, True
        return ciphers[0], False

    def cipher(self, kind: Kind, name: str, head: Bytes) -> ObjectCipher:
        """Open an object that exists, from its first 64 bytes, under the epoch it names."""
        header = Header.parse(name, head)
        if header.epoch not in self.keys.data_keys:
            known = {self.keys.epoch(number).check for number in self.keys.data_keys}
            if not self.final and header.epoch > self.keys.current_epoch and header.check not in known:
                # Nothing is wrong with it: taking it for damaged would have verify blame a point that is sound.
                raise KeysOutdated(name, header.epoch)
            raise Damaged(name, f"it names key epoch {header.epoch}, which this namespace doesn't have")
        key = self.keys.epoch(header.epoch)
        if header.check != key.check:
            raise Damaged(name, "it was sealed with another key, or its header was altered")
        return ObjectCipher.of(key, kind, name, head)
