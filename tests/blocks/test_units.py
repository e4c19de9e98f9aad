"""A plan is cut into units that name all of its chunks and no others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.blocks.units import cut
from orchestrator.extents import ChunkSet

pytestmark = pytest.mark.quick
KIB = 1024


@given(st.sets(st.integers(0, 999)), st.sets(st.integers(0, 999)), st.integers(1, 40))
def test_units_name_each_planned_chunk_once_in_order(planned: set[int], there: set[int], size: int) -> None:
    chunks = ChunkSet(1000 * 64 * KIB, 64 * KIB)
    for index in planned:
        chunks.add_chunks(index, index + 1)
    units = list(cut(chunks.runs(), 64 * KIB, unit_bytes=size * 64 * KIB, skip=there.__contains__))
    assert [index for unit in units for index in unit.indexes()] == sorted(planned - there)
    assert [unit.number for unit in units] == list(range(len(units)))
    assert all(unit.count == size for unit in units[:-1])
