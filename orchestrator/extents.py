"""Byte ranges of a volume, and sets of its chunks.

`Extents` is what a CBT service reported, already checked. `ChunkSet` is what a copy plan is made of: one bit per
chunk, 8 MiB for 16 TiB at 256 KiB. Merging, healing and adding a tail are ORs; a shard is a slice. Reading more than
was reported is always safe, reading less never is: rounding goes outwards here and nowhere else.

numpy is imported only where a batch is added, because a mover (which only walks finished sets) must start fast.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Extents(msgspec.Struct, frozen=True):
    """A batch of checked ranges: ascending, not overlapping, none empty, inside the volume. Bytes, int64."""

    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.offsets.shape[0])

    @property
    def total_bytes(self) -> int:
        """Return the sum of the lengths."""
        return int(self.lengths.sum()) if len(self) else 0

    @property
    def end(self) -> int:
        """Return the end of the last range, 0 when there is none."""
        return int(self.offsets[-1] + self.lengths[-1]) if len(self) else 0


_LONG_RUN = 512
"""Chunks from which on a run is set by itself."""
_SLICE = 1 << 18
"""Chunks expanded at once: some 6 MiB of scratch memory."""


_BLOCK = 1 << 16
_EMPTY_BLOCK, _FULL_BLOCK = bytes(_BLOCK), b"\xff" * _BLOCK


class ChunkSet:
    """Which chunks of a volume: one bit per chunk, least significant bit first.

    What is beyond the last chunk ever added is never looked at: an almost empty set of a huge volume costs nothing.
    """

    __slots__ = ("_bits", "_end", "chunk_size", "volume_size")

    def __init__(self, volume_size: int, chunk_size: int, bits: bytes | bytearray | None = None) -> None:
        """Make an empty set, or one of `bits`: at most ceil(chunks/8) bytes; spare and missing bits are zero."""
        if chunk_size <= 0 or volume_size < 0:
            raise ValueError(f"no chunks of {chunk_size} bytes in {volume_size} bytes")
        self.volume_size = volume_size
        self.chunk_size = chunk_size
        size = (self.chunk_count + 7) // 8
        given = len(bits) if bits is not None else 0
        if given > size:
            raise ValueError(f"{given} bytes of bits for {self.chunk_count} chunks, expected {size}")
        if bits and given == size and self.chunk_count % 8 and bits[-1] >> (self.chunk_count % 8):
            raise ValueError("bits are set beyond the last chunk")
        # Fresh pages are zero without being written: a huge set costs memory only where something is added.
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._bits = bytearray(size) if size < _BLOCK else mmap.mmap(-1, size, flags=private)
        self._end = given
        """Bytes from here on are zero."""
        if bits:
            self._bits[:given] = bits

    @property
    def chunk_count(self) -> int:
        """Return how many chunks the volume has; the last may be short."""
        return -(-self.volume_size // self.chunk_size)

    def add(self, extents: Extents) -> None:
        """Add every chunk that a range touches (rounded outwards). Ranges must lie inside the volume.

        Costs what is added, wherever it lies: touching ranges are merged first, long runs are set by whole bytes,
        short ones in slices of bounded memory.
        """
        if not len(extents):
            return
        import numpy as np

        first = extents.offsets // self.chunk_size
        last = (extents.offsets + extents.lengths - 1) // self.chunk_size
        if int(first[0]) < 0 or int(last[-1]) >= self.chunk_count:
            raise ValueError("a range lies outside the volume")
        opens = np.flatnonzero(np.concatenate(([True], first[1:] > last[:-1] + 1)))
        starts, lengths = first[opens], np.append(last[opens[1:] - 1], last[-1]) - first[opens] + 1
        long = lengths > _LONG_RUN
        for start, length in zip(starts[long].tolist(), lengths[long].tolist(), strict=True):
            self.add_chunks(start, start + length)
        starts, lengths = starts[~long], lengths[~long]
        totals = np.cumsum(lengths)
        done = 0
        while done < len(starts):
            before = int(totals[done - 1]) if done else 0
            stop = max(int(np.searchsorted(totals, before + _SLICE, side="right")), done + 1)
            self._add_short(starts[done:stop], lengths[done:stop])
            done = stop

    def _add_short(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        """Set the bits of runs, ascending and apart, by expanding them to single chunks."""
        import numpy as np

        before = np.cumsum(lengths) - lengths
        index = np.arange(int(lengths.sum()), dtype=np.int64) + np.repeat(starts - before, lengths)
        byte, bit = index >> 3, np.left_shift(1, index & 7).astype(np.uint8)
        heads = np.flatnonzero(np.concatenate(([True], byte[1:] != byte[:-1])))
        view = np.frombuffer(self._bits, dtype=np.uint8)
        view[byte[heads]] |= np.bitwise_or.reduceat(bit, heads)
        self._end = max(self._end, int(byte[-1]) + 1)

    def add_range(self, offset: int, length: int) -> None:
        """Add every chunk that `[offset, offset + length)` touches, clipped to the volume."""
        end = min(offset + length, self.volume_size)
        offset = max(offset, 0)
        if end <= offset:
            return
        self.add_chunks(offset // self.chunk_size, (end - 1) // self.chunk_size + 1)

    def add_chunks(self, first: int, stop: int) -> None:
        """Add the chunks `first` to `stop - 1`."""
        if not 0 <= first <= stop <= self.chunk_count:
            raise ValueError(f"chunks {first} to {stop} of {self.chunk_count}")
        if first == stop:
            return
        lo, hi = first // 8, (stop - 1) // 8
        head, tail = 0xFF & (0xFF << (first % 8)), 0xFF >> (7 - (stop - 1) % 8)
        self._end = max(self._end, hi + 1)
        if lo == hi:
            self._bits[lo] |= head & tail
            return
        self._bits[lo] |= head
        self._bits[hi] |= tail
        self._bits[lo + 1 : hi] = b"\xff" * (hi - lo - 1)

    def __contains__(self, index: int) -> bool:
        return 0 <= index < self.chunk_count and bool(self._bits[index // 8] & (1 << (index % 8)))

    def __len__(self) -> int:
        pieces = (self._bits[at : min(at + _BLOCK, self._end)] for at in range(0, self._end, _BLOCK))
        return sum(int.from_bytes(piece, "little").bit_count() for piece in pieces if piece != _EMPTY_BLOCK)

    def __bool__(self) -> bool:
        return self._skip(0, self._end, 0x00) < self._end

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ChunkSet):
            return NotImplemented
        end = max(self._end, other._end)
        mine, others = (self.volume_size, self.chunk_size), (other.volume_size, other.chunk_size)
        return mine == others and self._bits[:end] == other._bits[:end]

    __hash__ = None  # type: ignore[assignment]  # mutable on purpose

    def __ior__(self, other: ChunkSet) -> ChunkSet:
        if (self.volume_size, self.chunk_size) != (other.volume_size, other.chunk_size):
            raise ValueError("sets of different volumes")
        end = max(self._end, other._end)
        merged = int.from_bytes(self._bits[:end], "little") | int.from_bytes(other._bits[:end], "little")
        self._bits[:end] = merged.to_bytes(end, "little")
        self._end = end
        return self

    def runs(self, first: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
        """Yield maximal runs `(first, stop)` of chunk indexes, ascending, within `[first, stop)`."""
        end = min(self.chunk_count if stop is None else stop, self.chunk_count, self._end * 8)
        index = first
        while True:
            index = self._next(index, end, wanted=True)
            if index >= end:
                return
            after = self._next(index, end, wanted=False)
            yield index, after
            index = after

    def _next(self, index: int, end: int, *, wanted: bool) -> int:
        bits, skip = self._bits, 0x00 if wanted else 0xFF
        while index < end:
            if index % 8 == 0 and bits[index // 8] == skip:
                index = self._skip(index // 8, (end + 7) // 8, skip) * 8
                continue
            if bool(bits[index // 8] & (1 << (index % 8))) == wanted:
                return index
            index += 1
        return end

    def _skip(self, byte: int, stop: int, value: int) -> int:
        """Return the first byte in `[byte, stop)` that isn't `value`, by blocks so that empty TiBs cost nothing."""
        same = _EMPTY_BLOCK if value == 0 else _FULL_BLOCK
        # Whole blocks are compared as memory (a memoryview would compare element by element), the last one stripped.
        while byte + len(same) <= stop and self._bits[byte : byte + len(same)] == same:
            byte += len(same)
        while byte < stop:
            piece = self._bits[byte : min(byte + len(same), stop)]
            rest = piece.lstrip(same[:1])
            if rest:
                return byte + len(piece) - len(rest)
            byte += len(piece)
        return stop

    @property
    def total_bytes(self) -> int:
        """Return how many bytes the chunks cover, the short last chunk counted short."""
        total = len(self) * self.chunk_size
        short = self.volume_size % self.chunk_size
        if short and (self.chunk_count - 1) in self:
            total -= self.chunk_size - short
        return total

    def to_bytes(self) -> bytes:
        """Return the bits, bytes without any at the end left out."""
        return bytes(self._bits[: self._end])
