"""Equal chunks are found in fixed memory, and never mistaken."""

from __future__ import annotations

import hashlib

import pytest

from orchestrator.blocks import equal
from orchestrator.blocks.equal import EqualChunks, Place, record
from orchestrator.repository.layout import ObjectRef
from orchestrator.repository.pack import Entry

pytestmark = pytest.mark.quick


def chunk_id(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(8, "big")).digest()


def pack(number: int) -> ObjectRef:
    return ObjectRef(bytes(16), number.to_bytes(16, "big"))


def entry(number: int) -> Entry:
    return Entry(chunk_id(number), pack(number // 10), 1 + number % 10 * 7, 400 + number, number % 2)


def test_a_chunk_stored_once_is_found_again_and_a_new_one_is_not() -> None:
    table = EqualChunks(1000)
    for number in range(1000):
        place, mine = table.claim(chunk_id(number))
        assert mine
        table.settle_all([entry(number)])
        assert place.entry == entry(number)
    assert all(table.claim(chunk_id(n)) == (Place(entry(n)), False) for n in range(1000))
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
    assert second.entry is None
    table.settle_all([entry(1)])
    assert first.entry == second.entry == entry(1)


def test_of_many_chunks_claimed_at_once_each_is_stored_once() -> None:
    # given a chunk that is stored, and one that another thread is storing
    table = EqualChunks(10)
    table.claim(chunk_id(1))
    table.settle_all([entry(1)])
    elsewhere, _ = table.claim(chunk_id(2))
    # when these and two new ones come together, each of them twice, and a lookalike of the first
    lookalike = chunk_id(1)[:-1] + bytes((chunk_id(1)[-1] ^ 1,))
    wanted = [chunk_id(n) for n in (3, 1, 2, 4, 3, 1, 2, 4)] + [lookalike] * 2
    places = table.claim_all(wanted)
    # then those that nobody stores are the caller's, once, and all the others have a place
    assert [at for at, place in enumerate(places) if place is None] == [0, 3, 8]
    assert places[1] == places[5] == Place(entry(1))
    assert places[2] is places[6] is elsewhere
    # and what the caller stores settles the second of each
    table.settle_all([entry(3), entry(4)])
    assert (places[4], places[7]) == (Place(entry(3)), Place(entry(4)))
    assert places[9] == Place(None)


def test_two_ids_that_agree_only_in_part_are_different_chunks() -> None:
    # given a stored chunk, and another whose id differs in its last byte only
    table = EqualChunks(10)
    table.claim(chunk_id(5))
    table.settle_all([entry(5)])
    lookalike = chunk_id(5)[:-1] + bytes((chunk_id(5)[-1] ^ 1,))
    # when the second is looked up, then it is no hit
    assert table.claim(lookalike)[1]


def test_ids_dropped_from_memory_are_confirmed_from_the_packs_footer(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a table that keeps the ids of one pack only
    monkeypatch.setattr(equal, "IDS_BYTES", 1)
    asked: list[ObjectRef] = []

    def recall(ref: ObjectRef) -> bytes | None:
        asked.append(ref)
        here = [entry(number) for number in range(30) if entry(number).pack == ref]
        return b"".join(record(one.slot, one.id, one.length, one.codec) for one in here)

    table = EqualChunks(100, recall)
    for number in range(30):
        table.add(entry(number))
    # when a chunk of an old pack comes again
    found = table.claim(chunk_id(5))
    # then it is found, by asking for that footer
    assert found == (Place(entry(5)), False)
    assert asked == [pack(0)]


def test_a_chunk_that_other_points_have_a_thousand_times_drives_no_other_out() -> None:
    # given a point with 100 chunks, and points of two volumes that have one chunk each, many times over, in a table
    # sized for all of them
    table = EqualChunks(100 + 2 * 1000)
    table.add_all(entry(number) for number in range(100))
    for number in (1000, 2000):
        common = entry(number)
        table.add_all([common] * 1000)
        table.add_all([common._replace(pack=pack(number))] * 1000)  # another point's copy of it
    # when all of them come again, then each is found
    wanted = [*range(100), 1000, 2000]
    places = table.claim_all([chunk_id(number) for number in wanted])
    assert [place and place.entry for place in places] == [entry(number) for number in wanted]


def test_memory_stays_what_it_is_at_any_number_of_chunks() -> None:
    assert len(EqualChunks(1 << 26)._table) == equal.TABLE_BYTES
    assert len(EqualChunks(1)._table) <= 16384
