"""Equal chunks are found in fixed memory, and never mistaken."""

from __future__ import annotations

import hashlib

import pytest

from orchestrator.blocks import equal
from orchestrator.blocks.equal import EqualChunks, Place, record

pytestmark = pytest.mark.quick


def chunk_id(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(8, "big")).digest()


def test_a_chunk_stored_once_is_found_again_and_a_new_one_is_not() -> None:
    table = EqualChunks(1000)
    for number in range(1000):
        place, mine = table.claim(chunk_id(number))
        assert mine
        table.settle(chunk_id(number), pack=number // 100, slot=number % 100)
        assert (place.pack, place.slot) == (number // 100, number % 100)
    assert all(table.claim(chunk_id(n)) == (Place(n // 100, n % 100), False) for n in range(1000))
    assert table.claim(chunk_id(1000))[1]


def test_a_chunk_being_stored_by_another_thread_is_waited_for_and_not_stored_twice() -> None:
    # given one thread that has claimed a chunk and not stored it yet
    table = EqualChunks(10)
    first, mine = table.claim(chunk_id(1))
    # when a second one meets the same content
    second, also_mine = table.claim(chunk_id(1))
    # then it gets the same place, which settles with the first
    assert mine
    assert not also_mine
    assert second.pack == -1
    table.settle(chunk_id(1), 7, 3)
    assert (second.pack, second.slot) == (first.pack, first.slot) == (7, 3)


def test_two_ids_that_agree_only_in_part_are_different_chunks() -> None:
    # given a stored chunk, and another whose id differs in its last byte only
    table = EqualChunks(10)
    known = bytes(range(32))
    table.claim(known)
    table.settle(known, 0, 0)
    lookalike = known[:-1] + b"\xff"
    # when the second is looked up, then it is no hit
    assert table.claim(lookalike)[1]


def test_ids_dropped_from_memory_are_confirmed_from_the_packs_footer(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a table that keeps the ids of one pack only
    monkeypatch.setattr(equal, "IDS_BYTES", 1)
    footers = {pack: b"".join(record(slot, chunk_id(pack * 10 + slot)) for slot in range(10)) for pack in range(3)}
    asked: list[int] = []

    def recall(pack: int) -> bytes | None:
        asked.append(pack)
        return footers.get(pack)

    table = EqualChunks(100, recall)
    for pack in footers:
        for slot in range(10):
            table.add(chunk_id(pack * 10 + slot), pack, slot)
    # when a chunk of an old pack comes again
    found = table.claim(chunk_id(5))
    # then it is found, by asking for that footer
    assert found == (Place(0, 5), False)
    assert asked == [0]


def test_memory_stays_what_it_is_at_any_number_of_chunks() -> None:
    assert len(EqualChunks(1 << 26)._table) == equal.TABLE_BYTES
    assert len(EqualChunks(1)._table) <= 16384
