"""The fast encoder against the generated messages, and paging against a plain model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.sandbox.snapshotmetadata.core import Answer
from orchestrator.sandbox.snapshotmetadata.encoding import encode
from orchestrator.wire.snapshotmetadata import BlockMetadata, BlockMetadataType, GetMetadataDeltaResponse

pytestmark = pytest.mark.quick

numbers = st.one_of(st.integers(0, 2**63 - 1), st.sampled_from([0, 1, 127, 128, 2**32, 2**63 - 1]))


@settings(deadline=None)
@given(st.sampled_from([0, 1, 2]), numbers, st.lists(st.tuples(numbers, numbers), max_size=40))
def test_a_page_is_byte_for_byte_the_generated_message(kind: int, capacity: int, tuples: list[tuple[int, int]]) -> None:
    offsets = np.array([at for at, _ in tuples], np.int64)
    sizes = np.array([size for _, size in tuples], np.int64)
    oracle = GetMetadataDeltaResponse(
        block_metadata_type=BlockMetadataType(kind),
        volume_capacity_bytes=capacity,
        block_metadata=[BlockMetadata(byte_offset=at, size_bytes=size) for at, size in tuples],
    )

    assert encode(kind, capacity, (offsets, sizes)).SerializeToString() == bytes(oracle)


blocks = st.sets(st.integers(0, 60))


def answer(held: set[int], *, fixed: bool, capacity: int) -> Answer:
    from orchestrator.sandbox.storage.compare import merged_blocks

    return Answer(merged_blocks(np.array(sorted(held), np.int64)), 512, capacity, fixed)


@settings(deadline=None)
@given(blocks, st.booleans(), st.integers(0, 61 * 512), st.integers(0, 7))
def test_pages_hold_everything_behind_the_start_in_order_and_no_more_than_asked(
    held: set[int], fixed: bool, start: int, max_results: int
) -> None:
    capacity = 61 * 512 - 100
    pages = list(answer(held, fixed=fixed, capacity=capacity).pages(start, max_results))
    tuples = [(int(a), int(s)) for offsets, sizes in pages for a, s in zip(offsets, sizes, strict=True)]

    covered = {b for at, size in tuples for b in range(at // 512, -(-(at + size) // 512))}
    assert covered == {b for b in held if (b + 1) * 512 > start}
    assert all(size > 0 and at + size > min(start, capacity - 1) for at, size in tuples)
    assert all(a + s <= b for (a, s), (b, _) in itertools.pairwise(tuples))
    assert all(len(offsets) <= max_results for offsets, _ in pages if max_results)
    assert not fixed or {size for _, size in tuples} <= {512}
    assert fixed or all(at + size <= capacity for at, size in tuples)
    assert sum(len(offsets) for offsets, _ in pages) == answer(held, fixed=fixed, capacity=capacity).count(start)
