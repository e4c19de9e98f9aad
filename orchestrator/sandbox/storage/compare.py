"""What a snapshot holds, and where two snapshots differ, by block.

Ranges are int64 arrays of shape (n, 2): [first block, block behind the last), ascending, merged. A difference is real:
bytes are compared, holes read as zeros, so a discarded block that held data is reported and a block rewritten with the
same bytes is not. The cost follows what is allocated, not the size. Everything here blocks and runs in a thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from orchestrator.sandbox.storage.images import data_extents

Ranges = npt.NDArray[np.int64]
Work = Callable[[], Ranges]
_WINDOW = 1 << 20


def allocated(path: Path, size_bytes: int, block_bytes: int) -> Ranges:
    """Return the blocks of an image that were ever written (holes of the file were not)."""
    with path.open("rb") as image:
        return _blocks(data_extents(image.fileno(), size_bytes), block_bytes)


def changed(base: Path, target: Path, size_bytes: int, block_bytes: int) -> Ranges:
    """Return the blocks of `target`, up to `size_bytes`, whose bytes differ from those of `base`.

    A base that is shorter counts as followed by zeros.
    """
    with base.open("rb") as old, target.open("rb") as new:
        extents = [*data_extents(old.fileno(), size_bytes), *data_extents(new.fileno(), size_bytes)]
        candidates = _blocks(iter(sorted(extents)), block_bytes)
        found = [
            _differing(old.fileno(), new.fileno(), int(first), int(last), block_bytes) for first, last in candidates
        ]
    return merged_blocks(np.concatenate(found)) if found else np.empty((0, 2), np.int64)


def _blocks(extents: Iterator[tuple[int, int]], block_bytes: int) -> Ranges:
    """Round byte ranges (sorted by start) outwards to blocks and merge what touches."""
    merged: list[list[int]] = []
    for start, end in extents:
        first, last = start // block_bytes, -(-end // block_bytes)
        if merged and first <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], last)
        else:
            merged.append([first, last])
    return np.array(merged, np.int64).reshape(-1, 2)


def _differing(old: int, new: int, first: int, last: int, block_bytes: int) -> npt.NDArray[np.int64]:
    """Return the indices in [first, last) whose blocks differ."""
    step = min(max(_WINDOW // block_bytes, 1), last - first)
    # Reused: fresh buffers would cost a page fault for every 4 KiB read.
    before, after = np.empty(step * block_bytes, np.uint8), np.empty(step * block_bytes, np.uint8)
    found = []
    for at in range(first, last, step):
        count = min(step, last - at)
        mine, theirs = before[: count * block_bytes], after[: count * block_bytes]
        _read(old, mine, at * block_bytes)
        _read(new, theirs, at * block_bytes)
        if not np.array_equal(mine.view(np.uint64), theirs.view(np.uint64)):
            rows = mine.view(np.uint64) != theirs.view(np.uint64)
            found.append(np.flatnonzero(rows.reshape(count, -1).any(axis=1)).astype(np.int64) + at)
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _read(fd: int, into: npt.NDArray[np.uint8], at: int) -> None:
    """Fill a buffer from an offset; zeros behind the end of the file."""
    done = 0
    while done < len(into):
        step = os.preadv(fd, [into[done:].data], at + done)
        if step == 0:
            into[done:] = 0
            return
        done += step


def merged_blocks(indices: npt.NDArray[np.int64]) -> Ranges:
    """Merge ascending block indices to ranges."""
    if not len(indices):
        return np.empty((0, 2), np.int64)
    breaks = np.flatnonzero(np.diff(indices) != 1)
    firsts = indices[np.concatenate(([0], breaks + 1))]
    lasts = indices[np.concatenate((breaks, [len(indices) - 1]))] + 1
    return np.stack((firsts, lasts), axis=1)
