"""What an earlier try stored is found again by chunk index, in little memory however much there is."""

from __future__ import annotations

import os
import random
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.repository.layout import ObjectRef
from orchestrator.repository.pack import Entry, FooterEntry
from orchestrator.repository.salvage import Salvage

pytestmark = pytest.mark.quick


def _made(packs: int, per_pack: int, seed: int = 1) -> tuple[Salvage, dict[int, set[Entry]]]:
    """Make packs that overlap as those of several readers do, some indexes in two of them."""
    numbers, found, wanted = random.Random(seed), Salvage(in_memory=20_000), dict[int, set[Entry]]()
    for number in range(packs):
        ref = ObjectRef(bytes(16), os.urandom(16))
        around = range(number * per_pack, (number + 3) * per_pack)
        entries = []
        for slot, index in enumerate(numbers.sample(around, per_pack)):
            entry = Entry(numbers.randbytes(32), ref, slot * 64 + 1, numbers.randrange(17, 1 << 22), slot % 3)
            entries.append(FooterEntry(index, entry.id, entry.slot, entry.length, entry.codec))
            wanted.setdefault(index, set()).add(entry)
        found.add(ref, entries)
    found.sort()
    return found, wanted


@pytest.mark.parametrize(("packs", "per_pack"), [(0, 1), (1, 1), (3, 7), (40, 50)])
def test_every_chunk_is_found_and_nothing_else(packs: int, per_pack: int) -> None:
    found, wanted = _made(packs, per_pack)
    assert len(found) == packs * per_pack
    for index in range((packs + 3) * per_pack + 2):
        entry = found.get(index)
        if index in wanted:
            assert entry in wanted[index]
        else:
            assert entry is None
    found.close()


def test_many_threads_may_ask_at_once() -> None:
    found, wanted = _made(60, 40)
    indexes = random.Random(2).sample(sorted(wanted), 1000)
    with ThreadPoolExecutor(4) as pool:
        for index, entry in zip(indexes, pool.map(found.get, indexes), strict=True):
            assert entry in wanted[index]
    found.close()


def test_memory_does_not_grow_with_the_chunks() -> None:
    lines = [FooterEntry(at, bytes(32), at, 1000, 1) for at in range(192)]
    warm = Salvage(in_memory=1)  # what is imported at first use is not what is measured
    warm.add(ObjectRef(bytes(16), bytes(16)), lines)
    warm.close()
    tracemalloc.start()
    try:
        before, found = tracemalloc.get_traced_memory()[0], Salvage(in_memory=1)
        for number in range(400):
            found.add(ObjectRef(bytes(16), number.to_bytes(16, "big")), lines)
        found.sort()
        assert found.get(191) is not None
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(found) == 400 * 192
    assert grown < 400 * 192 * 48 / 8
    found.close()
