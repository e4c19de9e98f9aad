"""Many relocation records in few objects, so that following them costs what changed and not what exists.

A `moved/<random>` object holds copies of records of `relocated/`, which are written once: a copy is the record. It is
a shortcut and nothing hangs on it: who finds none, or one that doesn't open, reads the records. What must never happen
here: a copy believed where a listing shows a newer generation, or a pack deleted by what a copy says.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from orchestrator.repository.errors import Damaged
from orchestrator.repository.layout import Kind, ObjectRef
from orchestrator.repository.liveness import SLOT_MASK
from orchestrator.repository.record import open_record, seal_record
from orchestrator.repository.relocation import Moves, Relocation
from orchestrator.repository.vault import Vault

if TYPE_CHECKING:
    from orchestrator.repository.liveness import Words

_HEAD = struct.Struct("<32sIHI")
"""Old pack, generation, targets, moves; then 32 bytes for each target and 10 for each move."""
_MOVE = struct.Struct("<IHI")
TARGET_BYTES = 4 * 1024 * 1024
"""Of one object, before compression."""


class MovedDocument(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The JSON of such an object; the copies are the tail."""

    created: datetime
    records: int


class Copy(NamedTuple):
    """One record, still as bytes: a repository has many, and a reader needs few."""

    pack: ObjectRef
    generation: int
    raw: bytes
    """The whole copy, its head included."""

    @property
    def name(self) -> bytes:
        """Return pack and generation, which tell a record from all others: 36 bytes."""
        return name_of(self.pack, self.generation)

    def open(self) -> Relocation:
        """Decode it."""
        _, _, count, _ = _HEAD.unpack_from(self.raw)
        start = _HEAD.size + 32 * count
        targets = tuple(ObjectRef.parse(self.raw[at : at + 32]) for at in range(_HEAD.size, start, 32))
        moves: Moves = {old: (targets[number], new) for old, number, new in _MOVE.iter_unpack(self.raw[start:])}
        return Relocation(self.pack, targets, moves, self.generation)

    def follow(self, places: Words) -> tuple[list[ObjectRef], Words, bool]:
        """Return for places in the old pack: targets, their places there, and whether the record knows all of them."""
        import numpy as np

        _, _, count, _ = _HEAD.unpack_from(self.raw)
        start = _HEAD.size + 32 * count
        targets = [ObjectRef.parse(self.raw[at : at + 32]) for at in range(_HEAD.size, start, 32)]
        moves = np.frombuffer(self.raw[start:], dtype=[("old", "<u4"), ("number", "<u2"), ("new", "<u4")])
        moves = moves[np.argsort(moves["old"], kind="stable")]
        slots = places & np.uint64(SLOT_MASK)
        at = np.searchsorted(moves["old"], slots)
        known = at < len(moves)
        known[known] = moves["old"][at[known]] == slots[known]
        went = moves[at[known]]
        words = (places[known] & ~np.uint64(SLOT_MASK)) | went["new"].astype("<u8")
        return [targets[number] for number in went["number"].tolist()], words, bool(known.all())


def name_of(pack: ObjectRef, generation: int) -> bytes:
    """Return what tells a record from all others: 36 bytes."""
    return pack.to_bytes() + generation.to_bytes(4, "little")


def copy_of(record: Relocation) -> bytes:
    """Encode a record's copy."""
    number = {target: position for position, target in enumerate(record.targets)}
    head = _HEAD.pack(record.pack.to_bytes(), record.generation, len(number), len(record.moves))
    targets = b"".join(target.to_bytes() for target in number)
    moves = (_MOVE.pack(old, number[target], new) for old, (target, new) in sorted(record.moves.items()))
    return b"".join((head, targets, *moves))


def copies(name: str, tail: bytes) -> Iterator[Copy]:
    """Yield what an object holds; Damaged when it is malformed."""
    at = 0
    while at < len(tail):
        if at + _HEAD.size > len(tail):
            raise Damaged(name, "a record's copy is cut short")
        pack, generation, targets, moves = _HEAD.unpack_from(tail, at)
        start = at + _HEAD.size + 32 * targets
        stop = start + _MOVE.size * moves
        if stop > len(tail) or any(number >= targets for _, number, _ in _MOVE.iter_unpack(tail[start:stop])):
            raise Damaged(name, "a record's copy is malformed")
        yield Copy(ObjectRef.parse(pack), generation, tail[at:stop])
        at = stop


async def open_index(vault: Vault, name: str) -> list[Copy]:
    """Read an object; ObjectMissing (another one took its place), Damaged."""
    data = await vault.store.get(name)

    def decode() -> list[Copy]:
        document, tail = open_record(vault, Kind.MOVED, name, data, MovedDocument)
        found = list(copies(name, tail))
        if len(found) != document.records:
            raise Damaged(name, "it holds another number of records than it says")
        return found

    return await asyncio.to_thread(decode)


async def put_index(vault: Vault, some: Sequence[bytes], now: datetime) -> str:
    """Put copies into a new object; return its name."""
    name = vault.names.moved + os.urandom(16).hex()
    document = MovedDocument(created=now, records=len(some))
    await vault.store.put_new(name, seal_record(vault, Kind.MOVED, name, document, b"".join(some)))
    return name
