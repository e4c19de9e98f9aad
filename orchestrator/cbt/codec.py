"""Decode a streaming response straight into arrays, because at a hundred million ranges the decode is what takes long.

A response whose fields are all varints is one flat run of varints, nested messages included (tags and lengths are
varints too). So one scan for bytes below 0x80 finds every value's end, and the usual layout of a range (tag, length,
tag, offset, tag, size) is checked and read for thousands of ranges at once. Whatever isn't in that layout (a missing or
unknown field, another order, a negative number) goes field by field through the slow way, which is complete.

Judging the values is not for here (see `checks`): a decoder that mends what a server said hides a fault.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from orchestrator.cbt.errors import ContractViolation

_WINDOW = 64 * 1024
"""Bytes looked at together: small enough for the processor's cache."""
_GROUP = 6
"""Varints of one range in the usual layout."""
_FEW = 16
"""A window that gave fewer ranges than this was not worth its scan."""
_MOST_SLOW = 4096
_LEAST_ROWS, _MOST_ROWS = 64, 8192
"""Ranges looked at together when they are all alike; grows while they are."""
_PAD = 8
_U64 = (1 << 64) - 1

_KEEP = np.array([(1 << (8 * size)) - 1 for size in range(9)], dtype=np.uint64)
_7_BITS = np.uint64(0x7F7F7F7F7F7F7F7F)
# Lanes of 8 bits with 7 in use become lanes of 16 with 14, of 32 with 28, of 64 with 56.
_HALVES = [
    (np.uint64(0x007F007F007F007F), np.uint64(0x7F007F007F007F00), np.uint64(1)),
    (np.uint64(0x00003FFF00003FFF), np.uint64(0x3FFF00003FFF0000), np.uint64(2)),
    (np.uint64(0x000000000FFFFFFF), np.uint64(0x0FFFFFFF00000000), np.uint64(4)),
]

Int64s = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Message:
    """One response as it was on the wire, unjudged. `offsets` and `sizes` are equally long, in bytes."""

    block_type: int
    capacity: int
    offsets: Int64s
    sizes: Int64s

    def __len__(self) -> int:
        return int(self.offsets.shape[0])


def decode(data: bytes, driver: str = "") -> Message:
    """Return the message that `data` encodes; the last of a repeated scalar wins, unknown fields are skipped.

    Raises ContractViolation (id `wire`) for anything that isn't a protobuf message. Takes some 0.1 µs per range: call
    it in a thread for messages of more than about 200 KB.
    """
    return _Decoder(data, driver).message()


class _Decoder:
    """One pass over one message."""

    def __init__(self, data: bytes, driver: str) -> None:
        self.data = data
        self.driver = driver
        self.block_type = 0
        self.capacity = 0
        self.rows = _LEAST_ROWS
        self.parts: list[tuple[Int64s, Int64s]] = []
        self.offsets: list[int] = []
        self.sizes: list[int] = []
        padded = np.frombuffer(data + bytes(_PAD), dtype=np.uint8)
        self.bytes = padded
        # Every 8 bytes from every position, without a copy.
        self.words = np.ndarray((len(data) + 1,), dtype="<u8", buffer=padded, strides=(1,))

    def message(self) -> Message:
        pos, end = 0, len(self.data)
        slow, patience = 0, _FEW
        while pos < end:
            if slow == 0 and self._looks_usual(pos):
                pos, count = self._fast(pos)
                if count < _FEW:
                    slow, patience = patience, min(patience * 4, _MOST_SLOW)
                else:
                    patience = _FEW
                continue
            pos = self._field(pos, end)
            slow = max(0, slow - 1)
        self._flush()
        if not self.parts:
            empty = np.empty(0, dtype=np.int64)
            return Message(self.block_type, self.capacity, empty, empty)
        offsets, sizes = zip(*self.parts, strict=True)
        if len(self.parts) == 1:
            return Message(self.block_type, self.capacity, offsets[0], sizes[0])
        return Message(self.block_type, self.capacity, np.concatenate(offsets), np.concatenate(sizes))

    def _looks_usual(self, pos: int) -> bool:
        head = self.data[pos : pos + 3]
        return len(head) == 3 and head[0] == 0x1A and head[2] == 0x08

    def _fast(self, pos: int) -> tuple[int, int]:
        """Read ranges in the usual layout from `pos` on; return the position after them and their number (may be 0)."""
        count = self._alike(pos)
        if count:
            return pos + count * (self.data[pos + 1] + 2), count
        window = self.bytes[pos : min(pos + _WINDOW, len(self.data))]
        stops = np.flatnonzero(window < 0x80)
        count = len(stops) // _GROUP
        if count == 0:
            return self._one_slow(pos)
        ends = stops[: count * _GROUP].reshape(count, _GROUP)
        offset_end, size_end = ends[:, 3], ends[:, 5]
        start = np.empty(count, dtype=np.int64)
        start[0] = 0
        np.add(size_end[:-1], 1, out=start[1:])
        offset_len = offset_end - start
        offset_len -= 2
        size_len = size_end - offset_end
        size_len -= 1
        good = window[start] == 0x1A
        good &= window[start + 1] == size_end - start - 1
        good &= window[start + 2] == 0x08
        good &= window[offset_end + 1] == 0x10
        # Longer varints are negative or above 2^56; the slow way reads them.
        good &= offset_len <= _PAD
        good &= size_len <= _PAD
        if not good.all():
            count = int(good.argmin())
            if count == 0:
                return self._one_slow(pos)
        words = self.words[pos:]
        offsets = _join(words[start[:count] + 3] & _KEEP[offset_len[:count]])
        sizes = _join(words[offset_end[:count] + 2] & _KEEP[size_len[:count]])
        self._flush()
        self.parts.append((offsets, sizes))
        return pos + int(size_end[count - 1]) + 1, count

    def _alike(self, pos: int) -> int:
        """Read ranges whose numbers are all as long as those of the first; return how many there were, 0 if too few.

        That is a table with fixed columns, as blocks of one size make it: no search for the ends is needed.
        """
        data, width = self.data, self.data[pos + 1] + 2
        rows = min((len(data) - pos) // width, self.rows)
        if rows < _FEW or any(
            data[at] != 0x1A or data[at + 1] + 2 != width for at in range(pos, pos + 8 * width, width)
        ):
            return 0
        long = 1
        while data[pos + 2 + long] >= 0x80:
            long += 1
        short = width - 4 - long
        if long > _PAD - 1 or not 0 < short <= _PAD:
            return 0
        head = self._column(pos, width, rows)
        offset = self._column(pos + 3, width, rows)
        size = self._column(pos + 4 + long, width, rows)
        good = head & np.uint64(0xFFFFFF) == np.uint64(0x08_00_1A | width - 2 << 8)
        # All bytes of a number but the last have their top bit; the tag of the size follows the offset.
        good &= offset & np.uint64(_tops(long) | 0xFF << 8 * long) == np.uint64(_tops(long - 1) | 0x10 << 8 * long)
        good &= size & np.uint64(_tops(short)) == np.uint64(_tops(short - 1))
        if good.all():
            self.rows = min(self.rows * 4, _MOST_ROWS)
        else:
            rows, self.rows = int(good.argmin()), _LEAST_ROWS
            if rows < _FEW:
                return 0
        self._flush()
        size = size[:rows] & _KEEP[short]
        alike = bool((size == size[0]).all())  # blocks of one size: read one
        sizes = np.full(rows, _join(size[:1])[0], dtype=np.int64) if alike else _join(size)
        self.parts.append((_join(offset[:rows] & _KEEP[long]), sizes))
        return rows

    def _column(self, pos: int, width: int, rows: int) -> NDArray[np.uint64]:
        """Return the 8 bytes at `pos` and at every `width` bytes after it."""
        return self.words[pos : pos + (rows - 1) * width + 1 : width].copy()

    def _one_slow(self, pos: int) -> tuple[int, int]:
        return self._field(pos, len(self.data)), 0

    def _flush(self) -> None:
        if self.offsets:
            self.parts.append((np.array(self.offsets, dtype=np.int64), np.array(self.sizes, dtype=np.int64)))
            self.offsets, self.sizes = [], []

    def _field(self, pos: int, end: int) -> int:
        """Read one field of the response at `pos`; return the position after it."""
        tag, pos = self._varint(pos, end)
        if tag == 0x1A:
            length, pos = self._varint(pos, end)
            if length > end - pos:
                self._malformed("a range runs past the end of the message")
            self._range(pos, pos + length)
            return pos + length
        if tag == 0x08:
            value, pos = self._varint(pos, end)
            self.block_type = _signed(value)
            return pos
        if tag == 0x10:
            value, pos = self._varint(pos, end)
            self.capacity = _signed(value)
            return pos
        return self._skip(tag, pos, end)

    def _range(self, pos: int, end: int) -> None:
        offset = size = 0
        while pos < end:
            tag, pos = self._varint(pos, end)
            if tag == 0x08:
                value, pos = self._varint(pos, end)
                offset = _signed(value)
            elif tag == 0x10:
                value, pos = self._varint(pos, end)
                size = _signed(value)
            else:
                pos = self._skip(tag, pos, end)
        self.offsets.append(offset)
        self.sizes.append(size)

    def _varint(self, pos: int, end: int) -> tuple[int, int]:
        """Read a varint of at most ten bytes; what is above 64 bits is cut off, as every protobuf decoder does."""
        data, value, shift = self.data, 0, 0
        while pos < end:
            byte = data[pos]
            pos += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & _U64, pos
            shift += 7
            if shift > 63:
                self._malformed("a number has more than ten bytes")
        return self._malformed("a number runs past the end of its message")

    def _skip(self, tag: int, pos: int, end: int) -> int:
        """Step over a field that we don't know, or that has another wire type than it should."""
        number, wire_type = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            self._malformed(f"field number {number}")
        if wire_type == 0:
            return self._varint(pos, end)[1]
        if wire_type == 1:
            after = pos + 8
        elif wire_type == 2:
            length, pos = self._varint(pos, end)
            after = pos + length
        elif wire_type == 5:
            after = pos + 4
        else:
            self._malformed(f"wire type {wire_type}")
        if after > end:
            self._malformed("an unknown field runs past the end of its message")
        return after

    def _malformed(self, detail: str) -> NoReturn:
        raise ContractViolation(self.driver, "wire", "a response is a protobuf message", detail)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _tops(count: int) -> int:
    """Return the top bits of the lowest `count` bytes."""
    return 0x8080808080808080 & (1 << 8 * count) - 1


def _join(words: NDArray[np.uint64]) -> Int64s:
    """Join the seven low bits of each byte of little-endian `words`: varints of at most 8 bytes, the rest zero."""
    x = words & _7_BITS
    for low, high, shift in _HALVES:
        upper = x & high
        upper >>= shift
        x &= low
        x |= upper
    return x.view(np.int64)
