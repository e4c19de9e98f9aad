"""Pages of the chunk map as bytes: leaves with one entry per chunk that isn't a hole, inner pages above them.

A leaf carries the table of the packs it uses. An inner page of level 1 also carries, for each leaf, the few entries
that changed since that leaf was written (its overlay): scattered changes then cost 42 bytes each, not a leaf.
What must never happen here: a page that decodes to something its writer didn't mean; malformed is ValueError.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from orchestrator.repository.layout import FAN_OUT, LEAF_CHUNKS, ObjectRef
from orchestrator.repository.manifest import PageRef
from orchestrator.repository.pack import LENGTH_MASK, Entry

LEAF, INNER = 1, 2
NO_OBJECT = 0xFFFF
_LEAF_HEAD = struct.Struct("<BBHHH")
_LEAF_PACK = struct.Struct("<32sH")
_ENTRY = struct.Struct("<32sQ")
_INNER_HEAD = struct.Struct("<BBHHHI")
_CHILD = struct.Struct("<HHII32s")
_OVERLAY = struct.Struct("<H32sQ")
_BITMAP = LEAF_CHUNKS // 8
_LENGTH_SHIFT, _SLOT_SHIFT, _CODEC_SHIFT = 40, 16, 62

Overlay = list[tuple[int, Entry | None]]
"""(chunk number inside the leaf, entry or None for a hole), ascending."""


class Ref(NamedTuple):
    """A page: the map object it is in, its slot and sealed length, and the digest of the sealed page."""

    object: ObjectRef
    slot: int
    length: int
    digest: bytes

    @classmethod
    def of(cls, page: PageRef) -> Ref:
        """Read a reference from a manifest; ValueError when it is malformed."""
        raw, digest = bytes.fromhex(page.object), bytes.fromhex(page.digest)
        if len(raw) != 32 or len(digest) != 32:
            raise ValueError("a page reference is malformed")
        return cls(ObjectRef.parse(raw), page.slot, page.length, digest)

    def to_page(self) -> PageRef:
        """Write a reference for a manifest."""
        return PageRef(self.object.to_bytes().hex(), self.slot, self.length, self.digest.hex())


def _word(number: int, entry: Entry) -> int:
    return number | entry.slot << _SLOT_SHIFT | entry.length << _LENGTH_SHIFT | entry.codec << _CODEC_SHIFT


def _entry(chunk_id: bytes, word: int, packs: Sequence[ObjectRef]) -> Entry:
    number = word & 0xFFFF
    if number >= len(packs):
        raise ValueError("an entry names a pack that isn't in the page's table")
    return Entry(
        chunk_id,
        packs[number],
        word >> _SLOT_SHIFT & 0xFFFFFF,
        word >> _LENGTH_SHIFT & LENGTH_MASK,
        word >> _CODEC_SHIFT,
    )


def _table(raw: bytes, start: int, count: int) -> list[ObjectRef]:
    if start + 32 * count > len(raw):
        raise ValueError("a table is cut short")
    return [ObjectRef.parse(raw[at : at + 32]) for at in range(start, start + 32 * count, 32)]


def encode_leaf(entries: Mapping[int, Entry]) -> bytes:
    """Write a leaf from chunk number inside the leaf -> entry."""
    order = sorted(entries)
    numbers: dict[ObjectRef, int] = {}
    uses: list[int] = []
    words = bytearray(len(order) * _ENTRY.size)
    present = 0
    for position, index in enumerate(order):
        entry = entries[index]
        number = numbers.setdefault(entry.pack, len(numbers))
        if number == len(uses):
            uses.append(0)
        uses[number] += 1
        present |= 1 << index
        _ENTRY.pack_into(words, position * _ENTRY.size, entry.id, _word(number, entry))
    table = b"".join(_LEAF_PACK.pack(pack.to_bytes(), uses[number]) for pack, number in numbers.items())
    head = _LEAF_HEAD.pack(LEAF, 0, len(order), len(numbers), 0)
    return b"".join((head, table, present.to_bytes(_BITMAP, "little"), words))


class Leaf:
    """A decoded leaf: entries are made when asked for."""

    __slots__ = ("_bits", "_entries", "_raw", "packs", "uses")

    def __init__(self, raw: bytes) -> None:
        """Read a leaf; ValueError when it is malformed."""
        try:
            kind, zero, count, packs, reserved = _LEAF_HEAD.unpack_from(raw)
            table = list(_LEAF_PACK.iter_unpack(raw[_LEAF_HEAD.size : _LEAF_HEAD.size + packs * _LEAF_PACK.size]))
        except struct.error as error:
            raise ValueError("a leaf is cut short") from error
        at = _LEAF_HEAD.size + packs * _LEAF_PACK.size
        self._bits = int.from_bytes(raw[at : at + _BITMAP], "little")
        self._entries = at + _BITMAP
        if (kind, zero, reserved) != (LEAF, 0, 0) or len(table) != packs or self._bits.bit_count() != count:
            raise ValueError("not a leaf")
        if len(raw) != self._entries + count * _ENTRY.size:
            raise ValueError("a leaf's length is wrong")
        self._raw = raw
        self.packs = [ObjectRef.parse(ref) for ref, _ in table]
        self.uses = [uses for _, uses in table]

    def get(self, index: int) -> Entry | None:
        """Return the entry of a chunk number inside the leaf, None for a hole."""
        bit = 1 << index
        if not self._bits & bit:
            return None
        rank = (self._bits & (bit - 1)).bit_count()
        chunk_id, word = _ENTRY.unpack_from(self._raw, self._entries + rank * _ENTRY.size)
        return _entry(chunk_id, word, self.packs)

    def rows(self) -> memoryview:
        """Return the entries as they are written: 40 bytes each, for whoever goes through many at once."""
        return memoryview(self._raw)[self._entries :]

    def chunks(self) -> Iterator[tuple[int, Entry]]:
        """Yield (chunk number inside the leaf, entry), ascending."""
        bits = self._bits
        for chunk_id, word in _ENTRY.iter_unpack(self._raw[self._entries :]):
            low = bits & -bits
            yield low.bit_length() - 1, _entry(chunk_id, word, self.packs)
            bits ^= low


def encode_inner(level: int, children: Sequence[tuple[Ref | None, Overlay]]) -> bytes:
    """Write an inner page; children may only have overlays at level 1."""
    objects: dict[ObjectRef, int] = {}
    packs: dict[ObjectRef, int] = {}
    rows, overlays = [], []
    for ref, overlay in children:
        number = NO_OBJECT if ref is None else objects.setdefault(ref.object, len(objects))
        rows.append(
            _CHILD.pack(number, len(overlay), 0, 0, bytes(32))
            if ref is None
            else _CHILD.pack(number, len(overlay), ref.slot, ref.length, ref.digest)
        )
        for index, entry in overlay:
            if entry is None:
                overlays.append(_OVERLAY.pack(index, bytes(32), 0))
                continue
            pack = packs.setdefault(entry.pack, len(packs))
            overlays.append(_OVERLAY.pack(index, entry.id, _word(pack, entry)))
    head = _INNER_HEAD.pack(INNER, level, len(rows), len(objects), len(packs), len(overlays))
    tables = [ref.to_bytes() for ref in (*objects, *packs)]
    return b"".join((head, *tables, *rows, *overlays))


class Inner:
    """A decoded inner page."""

    __slots__ = ("_first", "_objects", "_packs", "_raw", "_rows", "_tables", "count", "level")

    def __init__(self, raw: bytes, level: int) -> None:
        """Read an inner page that must be of `level`; ValueError when it is malformed."""
        try:
            kind, seen, self.count, objects, packs, overlays = _INNER_HEAD.unpack_from(raw)
        except struct.error as error:
            raise ValueError("an inner page is cut short") from error
        if kind != INNER or seen != level or self.count > FAN_OUT or (overlays and level != 1):
            raise ValueError(f"not an inner page of level {level}")
        self._tables = (objects, packs)
        # Decoded when asked for: a mark goes through many pages, and through the bytes of their tables only.
        self._objects: list[ObjectRef] | None = None
        self._packs: list[ObjectRef] | None = None
        at = _INNER_HEAD.size + 32 * (objects + packs)
        after = at + self.count * _CHILD.size
        if len(raw) != after + overlays * _OVERLAY.size:
            raise ValueError("an inner page's length is wrong")
        self._rows = list(_CHILD.iter_unpack(raw[at:after]))
        self.level = level
        self._raw = raw
        self._first = list(accumulate((row[1] * _OVERLAY.size for row in self._rows), initial=after))
        if self._first[-1] != len(raw):
            raise ValueError("overlay counts don't agree")

    def child(self, number: int) -> Ref | None:
        """Return the reference to a child, None when it has no page."""
        if number >= self.count:
            return None
        position, _, slot, length, digest = self._rows[number]
        if position == NO_OBJECT:
            return None
        if self._objects is None:
            self._objects = _table(self._raw, _INNER_HEAD.size, self._tables[0])
        if position >= len(self._objects):
            raise ValueError("a child names an object that isn't in the page's table")
        return Ref(self._objects[position], slot, length, digest)

    def children(self) -> list[bytes]:
        """Return the references as they are written, 72 bytes each: object (32), slot, length, digest. ValueError."""
        raw, at, size = self._raw, _INNER_HEAD.size, _CHILD.size
        objects = [raw[start : start + 32] for start in range(at, at + 32 * self._tables[0], 32)]
        starts = range(self._first[0] - self.count * size, self._first[0], size)
        try:
            return [
                objects[row[0]] + raw[start + 4 : start + size]
                for row, start in zip(self._rows, starts, strict=True)
                if row[0] != NO_OBJECT
            ]
        except IndexError as error:
            raise ValueError("a child names an object that isn't in the page's table") from error

    def overlay(self, number: int) -> Overlay:
        """Return a leaf's overlay."""
        if number >= self.count:
            return []
        rows = _OVERLAY.iter_unpack(self._raw[self._first[number] : self._first[number + 1]])
        packs = self.packs
        return [(index, _entry(chunk_id, word, packs) if word else None) for index, chunk_id, word in rows]

    def rows(self) -> memoryview:
        """Return all overlay entries as they are written: 42 bytes each, holes included."""
        return memoryview(self._raw)[self._first[0] : self._first[-1]]

    def numbers(self) -> Iterable[int]:
        """Yield the children that have a page or an overlay."""
        return (at for at, row in enumerate(self._rows) if row[0] != NO_OBJECT or row[1])

    @property
    def packs(self) -> list[ObjectRef]:
        """Return the packs that overlay entries use."""
        if self._packs is None:
            self._packs = _table(self._raw, _INNER_HEAD.size + 32 * self._tables[0], self._tables[1])
        return self._packs


def levels_for(chunk_count: int) -> int:
    """Return how many inner levels a map of so many chunks has."""
    levels, covered = 1, LEAF_CHUNKS * FAN_OUT
    while covered < chunk_count:
        levels, covered = levels + 1, covered * FAN_OUT
    return levels
