"""Put a page of ranges on the wire without a Python loop per range.

A response of 4,096 ranges takes the generated messages some 40 ms, which would block every other part of the
sandbox's loop. The bytes are those of the generated message (a test compares them): field 1 varint, field 2
varint, field 3 a length-delimited tuple; zero values are left out.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from orchestrator.sandbox.snapshotmetadata.core import Page

_LONGEST = 10
_FEW_RUNS = 16
_BOUNDS = np.array([0 if step == 0 else 1 << (7 * step) for step in range(9)], np.int64).clip(1)
"""Values from `_BOUNDS[n]` on take more than n bytes; a value below 1 takes none."""
Bytes = npt.NDArray[np.uint8]


class Encoded:
    """A response that is bytes already; grpclib's codec asks it for them."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's own name, called by grpclib
        """Return the message's bytes."""
        return self.data


def encode(kind: int, capacity_bytes: int, page: Page) -> Encoded:
    """Return a GetMetadata...Response (both have one layout) as bytes."""
    head = bytearray()
    if kind:
        head += b"\x08" + _varint(kind)
    if capacity_bytes:
        head += b"\x10" + _varint(capacity_bytes)
    return Encoded(bytes(head) + _tuples(*page))


def _varint(value: int) -> bytes:
    out = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tuples(offsets: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> bytes:
    """Write `1A len [08 offset] [10 size]` for each pair."""
    if not len(offsets):
        return b""
    of_offsets, of_sizes = _lengths(offsets), _lengths(sizes)
    ends = np.flatnonzero((np.diff(of_offsets) != 0) | (np.diff(of_sizes) != 0)) + 1
    if len(ends) > len(offsets) // _FEW_RUNS:
        return _mixed(offsets, sizes, of_offsets, of_sizes)
    edges = [0, *ends.tolist(), len(offsets)]
    return b"".join(
        _alike(offsets[first:last], sizes[first:last], int(of_offsets[first]), int(of_sizes[first]))
        for first, last in itertools.pairwise(edges)
    )


def _alike(offsets: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], of_offset: int, of_size: int) -> bytes:
    """Write tuples whose varints have the same lengths: rows of one width, filled column by column."""
    inner = (of_offset + 1 if of_offset else 0) + (of_size + 1 if of_size else 0)
    rows: Bytes = np.empty((len(offsets), 2 + inner), np.uint8)
    rows[:, 0] = 0x1A
    rows[:, 1] = inner
    column = 2
    for tag, values, length in ((0x08, offsets, of_offset), (0x10, sizes, of_size)):
        if length:
            rows[:, column] = tag
            for step in range(length):
                more = 0x80 if step + 1 < length else 0
                rows[:, column + 1 + step] = ((values >> (7 * step)) & 0x7F) | more
            column += length + 1
    return rows.tobytes()


def _mixed(
    offsets: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    of_offsets: npt.NDArray[np.int64],
    of_sizes: npt.NDArray[np.int64],
) -> bytes:
    """Write tuples of any lengths."""
    inner = np.where(of_offsets > 0, of_offsets + 1, 0) + np.where(of_sizes > 0, of_sizes + 1, 0)
    starts = np.concatenate(([0], np.cumsum(inner + 2)))
    out: Bytes = np.zeros(int(starts[-1]), np.uint8)
    at = starts[:-1].copy()
    out[at] = 0x1A
    out[at + 1] = inner  # at most 22: one byte
    at += 2
    for tag, values, lengths in ((0x08, offsets, of_offsets), (0x10, sizes, of_sizes)):
        there = lengths > 0
        out[at[there]] = tag
        _write(out, at + 1, values.astype(np.uint64), lengths)
        at += np.where(there, lengths + 1, 0)
    return out.tobytes()


def _lengths(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the varint length of each value; 0 for the value 0, which is not on the wire."""
    return np.searchsorted(_BOUNDS, values, side="right").astype(np.int64)


def _write(
    out: Bytes, at: npt.NDArray[np.int64], values: npt.NDArray[np.uint64], lengths: npt.NDArray[np.int64]
) -> None:
    for step in range(_LONGEST):
        rows = lengths > step
        if not rows.any():
            return
        low = (values[rows] >> np.uint64(7 * step)) & np.uint64(0x7F)
        more = np.where(lengths[rows] > step + 1, 0x80, 0)
        out[at[rows] + step] = low.astype(np.uint8) | more.astype(np.uint8)
