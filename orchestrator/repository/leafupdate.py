"""What a shard says about each leaf it touched: the tail of a shard object, section 8 of the format."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from orchestrator.repository.layout import LEAF_CHUNKS, ObjectRef
from orchestrator.repository.pack import CODEC_SHIFT, LENGTH_MASK, Entry
from orchestrator.repository.page import Overlay, Ref

EMPTY, PAGE, OVERLAY, FRESH = 0, 1, 2, 3
_HEAD = struct.Struct("<IB")
_PAGE = struct.Struct("<32sII32s")
_COUNT = struct.Struct("<H")
_ENTRY = struct.Struct("<H32s32sII")


class LeafUpdate(NamedTuple):
    """A touched leaf: nothing, a new page (`ref`), a new overlay on the base's leaf, or (FRESH) one on no leaf."""

    leaf: int
    what: int
    ref: Ref | None = None
    overlay: tuple[tuple[int, Entry | None], ...] = ()


def encode_update(update: LeafUpdate) -> bytes:
    """Write one update."""
    head = _HEAD.pack(update.leaf, update.what)
    if update.what == PAGE and update.ref is not None:
        ref = update.ref
        return head + _PAGE.pack(ref.object.to_bytes(), ref.slot, ref.length, ref.digest)
    if update.what in (OVERLAY, FRESH):
        return b"".join((head, _COUNT.pack(len(update.overlay)), *map(_overlay_entry, update.overlay)))
    return head


def _overlay_entry(item: tuple[int, Entry | None]) -> bytes:
    index, entry = item
    if entry is None:
        return _ENTRY.pack(index, bytes(32), bytes(32), 0, 0)
    return _ENTRY.pack(index, entry.id, entry.pack.to_bytes(), entry.slot, entry.length | entry.codec << CODEC_SHIFT)


def decode_updates(tail: bytes) -> Iterator[LeafUpdate]:
    """Read updates; ValueError when they are malformed or not ascending."""
    at, last = 0, -1
    try:
        while at < len(tail):
            leaf, what = _HEAD.unpack_from(tail, at)
            at += _HEAD.size
            if leaf <= last or what > FRESH:
                raise ValueError("leaf updates are malformed")
            last = leaf
            if what == PAGE:
                raw, slot, length, digest = _PAGE.unpack_from(tail, at)
                at += _PAGE.size
                yield LeafUpdate(leaf, what, Ref(ObjectRef.parse(raw), slot, length, digest))
            elif what in (OVERLAY, FRESH):
                (count,) = _COUNT.unpack_from(tail, at)
                at += _COUNT.size
                yield LeafUpdate(leaf, what, None, tuple(_read_overlay(tail, at, count)))
                at += count * _ENTRY.size
            else:
                yield LeafUpdate(leaf, what)
    except struct.error as error:
        raise ValueError("leaf updates are cut short") from error


def _read_overlay(tail: bytes, at: int, count: int) -> Overlay:
    overlay: Overlay = []
    for start in range(at, at + count * _ENTRY.size, _ENTRY.size):
        index, chunk_id, pack, slot, packed = _ENTRY.unpack_from(tail, start)
        if index >= LEAF_CHUNKS:
            raise ValueError("an overlay entry lies outside its leaf")
        length = packed & LENGTH_MASK
        entry = Entry(chunk_id, ObjectRef.parse(pack), slot, length, packed >> CODEC_SHIFT) if length else None
        overlay.append((index, entry))
    return overlay
