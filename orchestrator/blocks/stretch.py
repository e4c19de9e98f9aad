"""A long stretch of the chunk map in few bytes: what a restore looks at when it decides what to fetch together.

A point with a past has its chunks in the packs of many days, and the longer the stretch the more of a pack comes in one
request. So chunks lie here as records of 53 bytes, and become objects only when they are about to be fetched.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from typing import NamedTuple

from orchestrator.repository.layout import ObjectRef
from orchestrator.repository.pack import Entry

GROUP_CHUNKS = 8192
"""Chunks that are fetched together at most: objects of them cost more than the bytes where chunks are tiny."""
_RECORD = struct.Struct("<QIIIB32s")
_LOW = (1 << 32) - 1

Places = Callable[[ObjectRef, Sequence[Entry]], Sequence[tuple[ObjectRef, int]]]
"""Says in which pack, and at which slot, each chunk of a pack is today."""


class Wanted(NamedTuple):
    """A chunk, the slot where it is today, and the indexes where it belongs: equal chunks are stored once."""

    entry: Entry
    slot: int
    indexes: list[int]


class Stretch:
    """Chunks in the order of the map. Of one thread."""

    def __init__(self) -> None:
        self._records = bytearray()
        self._packs: dict[ObjectRef, int] = {}

    def __len__(self) -> int:
        return len(self._records) // _RECORD.size

    def add(self, chunks: Sequence[tuple[int, Entry]]) -> None:
        """Take (index, entry) of more chunks."""
        packs, records = self._packs, self._records
        for index, (chunk_id, pack, slot, length, codec) in chunks:
            number = packs.setdefault(pack, len(packs))
            records += _RECORD.pack(index, number, slot, length, codec, chunk_id)

    def gathered(self, places: Places) -> Iterator[list[Wanted]]:
        """Yield what to fetch from one pack, in the order of its slots, at most GROUP_CHUNKS at a time.

        Packs come in the order in which the map first needs what they have.
        """
        packs = list(self._packs)
        homes: dict[ObjectRef, int] = {}
        order: list[int] = []
        for number, slots in groupby(self._by_pack(), _pack):
            while some := list(islice(slots, GROUP_CHUNKS)):
                entries = [self._chunk(key, packs)[1] for key in some]
                for key, (home, slot) in zip(some, places(packs[number], entries), strict=True):
                    order.append(_key(homes.setdefault(home, len(homes)), slot, key & _LOW))
        order.sort()
        for _, slots in groupby(order, _pack):
            yield from self._pieces(slots, packs)

    def _pieces(self, keys: Iterator[int], packs: list[ObjectRef]) -> Iterator[list[Wanted]]:
        piece: list[Wanted] = []
        for key in keys:
            index, entry = self._chunk(key, packs)
            if piece and piece[-1].entry == entry:
                piece[-1].indexes.append(index)
                continue
            if len(piece) == GROUP_CHUNKS:
                yield piece
                piece = []
            piece.append(Wanted(entry, key >> 32 & _LOW, [index]))
        yield piece

    def _by_pack(self) -> list[int]:
        return sorted(
            _key(number, slot, position)
            for position, (_, number, slot, _, _, _) in enumerate(_RECORD.iter_unpack(self._records))
        )

    def _chunk(self, key: int, packs: list[ObjectRef]) -> tuple[int, Entry]:
        index, number, slot, length, codec, chunk_id = _RECORD.unpack_from(self._records, (key & _LOW) * _RECORD.size)
        return index, Entry(chunk_id, packs[number], slot, length, codec)


def _key(pack: int, slot: int, position: int) -> int:
    return pack << 64 | slot << 32 | position


def _pack(key: int) -> int:
    return key >> 64
