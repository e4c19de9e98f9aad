"""Packs: one object with many sealed chunks and a sealed footer that says what they are.

A pack is built in memory because a conditional create is one PUT. Many threads may add to one pack: a place is taken
under the lock, sealing happens outside it.
"""

from __future__ import annotations

import mmap
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from orchestrator.repository.crypto import TAG, Bytes
from orchestrator.repository.errors import Damaged
from orchestrator.repository.layout import MAX_OBJECT, PACK_TARGET, SLOT_UNIT, Kind, ObjectRef
from orchestrator.repository.vault import Vault

CODEC_SHIFT = 22
LENGTH_MASK = (1 << CODEC_SHIFT) - 1
"""A chunk's sealed length has 22 bits; the two above name its codec."""
FOOTER_ENTRY = struct.Struct("<Q32sII")
TRAILER = struct.Struct("<II8s")
MAX_FOOTER = 64 << 20
"""Bytes of the largest footer that is read: 1.4 million chunks."""
TRAILER_MAGIC = b"TMFOOTER"
_PADDING = bytes(SLOT_UNIT)


class Entry(NamedTuple):
    """Where a chunk is and what it must be."""

    id: bytes
    """Keyed BLAKE3 of the plaintext, 32 bytes."""
    pack: ObjectRef
    slot: int
    length: int
    """Sealed bytes."""
    codec: int


class Packed(NamedTuple):
    """A chunk about to be sealed: where it belongs, what it is, and its bytes as `codec` left them."""

    chunk: int
    id: bytes
    data: Bytes
    codec: int


class FooterEntry(NamedTuple):
    """One line of a pack's footer."""

    chunk: int
    id: bytes
    slot: int
    length: int
    codec: int


def slots_of(length: int) -> int:
    """Return how many slot units a frame of `length` bytes takes."""
    return -(-length // SLOT_UNIT)


class PackBuilder:
    """One pack in the making. `add` may be called from many threads; `finish` by one, once nobody adds."""

    def __init__(self, vault: Vault, intent_id: str, buffer: bytearray | mmap.mmap | None = None) -> None:
        """Start a pack; `buffer` is reused memory of the pack's full size (PACK_TARGET by default)."""
        self.ref = ObjectRef.new(intent_id)
        self.name = vault.names.pack(self.ref)
        self._cipher = vault.new_cipher(Kind.PACK, self.name, self.ref)
        self._buffer = bytearray(PACK_TARGET) if buffer is None else buffer
        if not SLOT_UNIT * 16 <= len(self._buffer) <= MAX_OBJECT:
            raise ValueError(f"a pack of {len(self._buffer)} bytes")
        self._view = memoryview(self._buffer)
        self._view[:SLOT_UNIT] = self._cipher.header
        self._next = 1
        self._footer = bytearray()
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """Return how many chunks are in."""
        return len(self._footer) // FOOTER_ENTRY.size

    def add(self, index: int, chunk_id: bytes, data: Bytes, codec: int) -> Entry | None:
        """Seal one chunk (already compressed by `codec`); None when it doesn't fit any more."""
        return next(iter(self.add_all([Packed(index, chunk_id, data, codec)])), None)

    def add_all(self, chunks: Sequence[Packed]) -> list[Entry]:
        """Seal chunks in their order, as many as fit, and say where they are."""
        entries = self._reserve(chunks)
        view, seal_into = self._view, self._cipher.seal_into
        for chunk, (_, _, slot, length, _) in zip(chunks, entries, strict=False):
            start = slot * SLOT_UNIT
            end = start + length
            seal_into(slot, chunk.data, view[start:end])
            # Reused memory: what an earlier pack left between two frames must not go into this one.
            rest = -length % SLOT_UNIT
            view[end : end + rest] = _PADDING[:rest]
        return entries

    def _reserve(self, chunks: Sequence[Packed]) -> list[Entry]:
        """Take places for as many chunks as fit."""
        longest = max(len(chunk.data) for chunk in chunks)
        if longest + TAG > LENGTH_MASK:
            raise ValueError(f"a chunk of {longest} bytes")
        entries = []
        with self._lock:
            for index, chunk_id, data, codec in chunks:
                length = len(data) + TAG
                slot, after = self._next, self._next + slots_of(length)
                footer = len(self._footer) + FOOTER_ENTRY.size + TAG
                if (after + slots_of(footer)) * SLOT_UNIT + TRAILER.size > len(self._buffer):
                    break
                self._next = after
                self._footer += FOOTER_ENTRY.pack(index, chunk_id, slot, length | codec << CODEC_SHIFT)
                entries.append(Entry(chunk_id, self.ref, slot, length, codec))
        return entries

    def finish(self) -> memoryview:
        """Seal the footer and return the object's bytes (a view of the buffer)."""
        slot, length = self._next, len(self._footer) + TAG
        start = slot * SLOT_UNIT
        self._cipher.seal_into(slot, self._footer, self._view[start : start + length], footer=True)
        end = start + length
        TRAILER.pack_into(self._buffer, end, slot, length, TRAILER_MAGIC)
        return self._view[: end + TRAILER.size]


async def read_footer(vault: Vault, ref: ObjectRef, size: int) -> list[FooterEntry]:
    """Read what a pack of `size` bytes holds; ObjectMissing, Damaged. Two or three small requests."""
    name = vault.names.pack(ref)
    head = await vault.store.get_range(name, 0, SLOT_UNIT)
    guess = min(size, 16 * 1024)
    tail = await vault.store.get_range(name, size - guess, guess)
    slot, length = _trailer(name, tail, size)
    start = slot * SLOT_UNIT
    if start < size - guess:
        sealed = await vault.store.get_range(name, start, length)
    else:
        offset = start - (size - guess)
        sealed = tail[offset : offset + length]
    cipher = vault.cipher(Kind.PACK, name, head)
    return list(_footer_entries(name, cipher.open(slot, sealed, footer=True)))


def open_footer(vault: Vault, ref: ObjectRef, data: Bytes) -> list[FooterEntry]:
    """Return what a whole pack in memory holds; Damaged."""
    name = vault.names.pack(ref)
    slot, length = _trailer(name, data, len(data))
    start = slot * SLOT_UNIT
    sealed = memoryview(data)[start : start + length]
    return list(_footer_entries(name, vault.cipher(Kind.PACK, name, data).open(slot, sealed, footer=True)))


def _trailer(name: str, tail: Bytes, size: int) -> tuple[int, int]:
    if len(tail) < TRAILER.size:
        raise Damaged(name, "it is truncated")
    slot, length, magic = TRAILER.unpack(tail[-TRAILER.size :])
    # Nothing seals these 16 bytes: whoever may put objects must not have us read more than a footer can be.
    if magic != TRAILER_MAGIC or slot * SLOT_UNIT + length + TRAILER.size != size or length > MAX_FOOTER:
        raise Damaged(name, "it doesn't end with a footer of its own")
    return slot, length


def _footer_entries(name: str, plain: bytes) -> Iterator[FooterEntry]:
    if len(plain) % FOOTER_ENTRY.size:
        raise Damaged(name, "its footer is malformed")
    for index, chunk_id, slot, packed in FOOTER_ENTRY.iter_unpack(plain):
        yield FooterEntry(index, chunk_id, slot, packed & LENGTH_MASK, packed >> CODEC_SHIFT)
