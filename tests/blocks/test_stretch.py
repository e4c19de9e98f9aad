"""What a restore fetches together: every chunk once, from where it is today, in few requests."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from orchestrator.blocks.stretch import GROUP_CHUNKS, Stretch, Wanted
from orchestrator.repository.layout import ObjectRef
from orchestrator.repository.pack import Entry

pytestmark = pytest.mark.quick


def _pack(number: int) -> ObjectRef:
    return ObjectRef(bytes(16), number.to_bytes(16, "big"))


def _entry(pack: int, slot: int) -> Entry:
    return Entry((pack << 32 | slot).to_bytes(32, "big"), _pack(pack), slot, 64 + slot % 7, slot % 2)


def _stay(pack: ObjectRef, entries: Sequence[Entry]) -> list[tuple[ObjectRef, int]]:
    return [(pack, entry.slot) for entry in entries]


def _as_map(gathered: list[list[Wanted]]) -> list[tuple[int, Entry]]:
    return sorted((index, chunk.entry) for some in gathered for chunk in some for index in chunk.indexes)


def test_every_chunk_comes_out_once_pack_by_pack_in_the_order_of_slots() -> None:
    # given a map in leaves, its chunks scattered over nine packs, many of them equal
    source = random.Random(1)
    chunks = [(index, _entry(source.randrange(9), source.randrange(400))) for index in range(0, 20_000, 3)]
    stretch = Stretch()
    for start in range(0, len(chunks), 1000):
        stretch.add(chunks[start : start + 1000])
    assert len(stretch) == len(chunks)
    # when it is gathered
    gathered = list(stretch.gathered(_stay))
    # then nothing is lost or there twice, and each pack comes in one piece, its slots ascending
    assert _as_map(gathered) == chunks
    assert [[chunk.slot for chunk in some] == sorted({chunk.slot for chunk in some}) for some in gathered] == [True] * 9
    assert [some[0].entry.pack for some in gathered] == list(dict.fromkeys(entry.pack for _, entry in chunks))


def test_what_was_brought_together_comes_together() -> None:
    # given chunks of twenty packs, which compaction moved into two, but for one that nobody knows of
    home = {pack: _pack(100 + pack % 2) for pack in range(19)}

    def places(pack: ObjectRef, entries: Sequence[Entry]) -> list[tuple[ObjectRef, int]]:
        number = int.from_bytes(pack.random, "big")
        return [(home.get(number, pack), entry.slot + 50 * number) for entry in entries]

    chunks = [(20 * slot + pack, _entry(pack, slot)) for slot in range(50) for pack in range(20)]
    stretch = Stretch()
    stretch.add(chunks)
    # when they are gathered
    gathered = list(stretch.gathered(places))
    # then it is three packs that are asked, with the slots of today
    assert len(gathered) == 3
    assert _as_map(gathered) == chunks
    assert all(chunk.slot == chunk.entry.slot + 50 * chunk.entry.pack.random[-1] for some in gathered for chunk in some)


def test_a_pack_of_very_many_chunks_comes_in_pieces() -> None:
    chunks = [(index, _entry(0, index)) for index in range(2 * GROUP_CHUNKS + 5)]
    stretch = Stretch()
    stretch.add(chunks)
    gathered = list(stretch.gathered(_stay))
    assert [len(some) for some in gathered] == [GROUP_CHUNKS, GROUP_CHUNKS, 5]
    assert _as_map(gathered) == chunks


def test_two_entries_for_one_slot_are_both_asked_for() -> None:
    """Of a map that contradicts itself: each is checked by itself when it is opened, none is passed over."""
    honest, other = _entry(3, 7), _entry(3, 7)._replace(id=bytes(32))
    chunks = [(0, honest), (1, other), (2, honest)]
    stretch = Stretch()
    stretch.add(chunks)
    assert _as_map(list(stretch.gathered(_stay))) == chunks
