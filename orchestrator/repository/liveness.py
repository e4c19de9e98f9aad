"""Which chunks of which packs are alive: (pack, slot) of every distinct map entry, in files on disk.

A large repository has more entries than memory holds, so they lie in files by pack as 16 bytes each: the first 8 of
the pack's random bits, and slot, sealed length and codec. Should two packs ever share those 8 bytes, each counts as
holding the other's chunks: more is alive then, never less. numpy is imported here only when a mark runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.repository.layout import ObjectRef
from orchestrator.repository.pack import LENGTH_MASK
from orchestrator.repository.page import Inner, Leaf, Ref
from orchestrator.repository.partitions import COUNT, Partitions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Words = NDArray[np.uint64]

RECORD = 16
LENGTH_SHIFT = 24
SLOT_MASK = (1 << 24) - 1
FOLD_BYTES = 8 * 1024 * 1024
"""A file is rid of its duplicates when it has grown by so much, and to twice what was left of it the last time."""
GATHERED = 65_536
"""Records (1 MiB) that are spread over the files at once."""
SLICE_BYTES = 4 * 1024 * 1024
"""So much of a file is sorted at once."""
BLOCK_BYTES = 1024 * 1024
"""So much of it is read at once."""


def place(slot: int, length: int, codec: int = 0) -> int:
    """Return the second half of a record."""
    return slot | (length | codec << 22) << LENGTH_SHIFT


def slot_of(place_: int) -> int:
    """Return the slot of a record's second half."""
    return place_ & SLOT_MASK


def length_of(place_: int) -> int:
    """Return the sealed length of a record's second half."""
    return place_ >> LENGTH_SHIFT & LENGTH_MASK


class LiveChunks:
    """Collects entries from pages (`leaf` and `inner` are what a mark calls), or one by one; then read by file."""

    def __init__(self, folder: Path, name: str) -> None:
        self._files = Partitions(folder, name, RECORD, 0)
        self._folded = [0] * COUNT
        self._gathered: list[Words] = []
        self._count = 0

    def leaf(self, _: Ref, page: Leaf) -> None:
        """Add a leaf's entries."""
        self._take(page.rows(), [("id", "V32"), ("word", "<u8")], page.packs)

    def inner(self, _: Ref, page: Inner) -> None:
        """Add the overlay entries of an inner page of level 1."""
        if page.level == 1:
            self._take(page.rows(), [("index", "<u2"), ("id", "V32"), ("word", "<u8")], page.packs)

    def add_many(self, packs: list[ObjectRef], places: Words) -> None:
        """Add chunks: the pack and the place of each."""
        import numpy as np

        if len(places):
            records = np.empty((len(places), 2), dtype="<u8")
            records[:, 0] = np.frombuffer(b"".join(pack.random[:8] for pack in packs), dtype="<u8")
            records[:, 1] = places
            self._gather(records)

    def _take(self, rows: memoryview, columns: list[tuple[str, str]], packs: list[ObjectRef]) -> None:
        import numpy as np

        words = np.frombuffer(rows, dtype=np.dtype(columns))["word"]
        words = words[words != 0]  # a hole in an overlay
        if not len(words):
            return
        keys = np.frombuffer(b"".join(pack.random[:8] for pack in packs), dtype="<u8")
        numbers = words & 0xFFFF
        if int(numbers.max()) >= len(keys):
            raise ValueError("an entry names a pack that isn't in the page's table")
        records = np.empty((len(words), 2), dtype="<u8")
        records[:, 0] = keys[numbers]
        records[:, 1] = words >> np.uint64(16)
        self._gather(records)

    def _gather(self, records: Words) -> None:
        self._gathered.append(records)
        self._count += len(records)
        if self._count >= GATHERED:
            self._spread()

    def _spread(self) -> None:
        """Put what was gathered into the files."""
        import numpy as np

        if not self._gathered:
            return
        records = np.concatenate(self._gathered)
        self._gathered, self._count = [], 0
        file = (records[:, 0] % np.uint64(COUNT)).astype(np.uint8)
        order = np.argsort(file, kind="stable")  # a byte each: one pass
        records = records[order]
        bounds = np.searchsorted(file[order], np.arange(COUNT + 1))
        for number in range(COUNT):
            if bounds[number] < bounds[number + 1]:
                self._files.add_many(number, records[bounds[number] : bounds[number + 1]].tobytes())
                self._fold(number)

    def _fold(self, number: int) -> None:
        """Drop duplicates when a file has grown a lot: every point's inner pages repeat what the last one's say."""
        if self._files.length(number) < max(FOLD_BYTES, 2 * self._folded[number]):
            return
        self._files.replace(number, (records.tobytes() for records in self._slices(number)))
        self._folded[number] = self._files.length(number)

    def _slices(self, number: int) -> Iterator[Words]:
        """Yield the records of one file, shape (n, 2), by pack and slot, all of one pack in one slice.

        Each once, if its slot is named with one length only: of what a forger made, more may be left.
        """
        import numpy as np

        parts = max(1, -(-self._files.length(number) // SLICE_BYTES))
        for part in range(parts):
            some = []
            for block in self._files.blocks(number, BLOCK_BYTES):
                records = np.frombuffer(block, dtype="<u8").reshape(-1, 2)
                # By bits that don't choose the file.
                some.append(
                    records[(records[:, 0] >> np.uint64(8)) % np.uint64(parts) == part] if parts > 1 else records
                )
            if some:
                yield _distinct(np.concatenate(some))

    def packs(self, number: int) -> Iterator[tuple[bytes, Words]]:
        """Yield (first 8 random bytes of the pack, its places) for every pack of one file, each once."""
        import numpy as np

        self._spread()
        for records in self._slices(number):
            if not len(records):
                continue
            starts = np.flatnonzero(np.r_[True, records[1:, 0] != records[:-1, 0]])
            for first, stop in zip(starts, [*starts[1:], len(records)], strict=True):
                yield records[first, 0].tobytes(), records[first:stop, 1]


def _distinct(records: Words) -> Words:
    """Return records by pack and slot, without duplicates. Two plain sorts take a quarter of one by both."""
    import numpy as np

    if not len(records):
        return records
    records = records[np.argsort(records[:, 0])]
    group = np.zeros(len(records), dtype=np.uint64)
    np.cumsum(records[1:, 0] != records[:-1, 0], out=group[1:])
    group <<= np.uint64(LENGTH_SHIFT)
    group |= records[:, 1] & np.uint64(SLOT_MASK)
    records = records[np.argsort(group)]
    fresh = np.ones(len(records), dtype=bool)
    fresh[1:] = (records[1:, 0] != records[:-1, 0]) | (records[1:, 1] != records[:-1, 1])
    return records[fresh]
