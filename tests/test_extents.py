"""What a chunk set promises: rounding outwards, and never losing a chunk."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.extents import ChunkSet, Extents

pytestmark = pytest.mark.quick


@st.composite
def volumes(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, int]]]:
    chunk = draw(st.sampled_from([1, 7, 512, 4096]))
    size = draw(st.integers(1, chunk * 70))
    cuts = sorted(draw(st.sets(st.integers(0, size), max_size=20)))
    return size, chunk, [(a, b - a) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]


@given(volumes())
def test_every_touched_chunk_is_in_the_set_and_no_other(volume: tuple[int, int, list[tuple[int, int]]]) -> None:
    size, chunk, ranges = volume
    expected = {i for offset, length in ranges for i in range(offset // chunk, (offset + length - 1) // chunk + 1)}

    batch, one_by_one = ChunkSet(size, chunk), ChunkSet(size, chunk)
    batch.add(
        Extents(np.array([r[0] for r in ranges], dtype=np.int64), np.array([r[1] for r in ranges], dtype=np.int64))
    )
    for offset, length in ranges:
        one_by_one.add_range(offset, length)

    assert {i for first, stop in batch.runs() for i in range(first, stop)} == expected
    assert batch == one_by_one
    assert len(batch) == len(expected)
    assert all(i in batch for i in expected)
    assert batch.total_bytes == sum(min(chunk, size - i * chunk) for i in expected)
    assert ChunkSet(size, chunk, bytearray(batch.to_bytes())) == batch


def test_a_range_outside_the_volume_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        ChunkSet(100, 10).add(Extents(np.array([95]), np.array([10])))


def test_bits_beyond_the_last_chunk_are_refused() -> None:
    with pytest.raises(ValueError, match="beyond"):
        ChunkSet(30, 10, bytearray([0b1000]))


def test_runs_can_be_sliced_into_shards() -> None:
    chunks = ChunkSet(1000, 10)
    chunks.add_chunks(3, 50)
    assert list(chunks.runs(0, 20)) + list(chunks.runs(20, 100)) == [(3, 20), (20, 50)]


def test_an_empty_16_tib_set_is_walked_at_once() -> None:
    chunks = ChunkSet(16 << 40, 256 << 10)
    chunks.add_chunks(chunks.chunk_count - 1, chunks.chunk_count)
    assert list(chunks.runs()) == [(chunks.chunk_count - 1, chunks.chunk_count)]


def test_what_is_left_out_of_the_bits_is_not_in_the_set() -> None:
    """A plan of a huge volume without changes has no bytes, and is looked through at once."""
    empty, first = ChunkSet(16 << 40, 256 << 10), ChunkSet(16 << 40, 256 << 10)
    first.add_chunks(3, 5)
    assert empty.to_bytes() == b""
    assert not ChunkSet(16 << 40, 256 << 10, b"")
    assert first.to_bytes() == b"\x18"
    again = ChunkSet(16 << 40, 256 << 10, first.to_bytes())
    assert (again == first, list(again.runs()), len(again), bool(again)) == (True, [(3, 5)], 2, True)
    assert ChunkSet(16 << 40, 256 << 10, b"\x18" + bytes(1000)) == first
    again |= empty
    empty |= first
    assert again == empty == first
    with pytest.raises(ValueError, match="expected"):
        ChunkSet(30, 10, b"\0\0")


def test_two_ranges_far_apart_cost_no_memory_in_between() -> None:
    import tracemalloc

    chunks = ChunkSet(16 << 40, 256 << 10)
    tracemalloc.start()
    chunks.add(Extents(np.array([0, (16 << 40) - 1]), np.array([1, 1])))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert list(chunks.runs()) == [(0, 1), (chunks.chunk_count - 1, chunks.chunk_count)]
    assert peak < 1 << 20


def test_long_runs_and_many_short_ones_are_all_there() -> None:
    offsets = np.concatenate((np.arange(0, 1 << 20, 3), [2 << 20]))
    lengths = np.concatenate((np.ones(len(offsets) - 1, dtype=np.int64), [5000]))
    chunks = ChunkSet(3 << 20, 1)
    chunks.add(Extents(offsets, lengths))
    assert len(chunks) == len(offsets) - 1 + 5000
    assert list(chunks.runs(2 << 20)) == [(2 << 20, (2 << 20) + 5000)]
