"""Judge what one stream says, batch by batch, against the rules that a server owes (X1 to X8; X9 is the channel's).

The reference sidecar checks nothing: ranges out of order, negative sizes and three capacities in one stream were seen
to pass through it. A broken rule raises ContractViolation; what is lawful but outside the device is clipped or dropped
and counted. Nothing here waits or does I/O, so that a big batch can be judged in a thread.
"""

from __future__ import annotations

import numpy as np

from orchestrator.cbt.codec import Int64s, Message
from orchestrator.cbt.errors import ContractViolation
from orchestrator.extents import Extents

FIXED_LENGTH = 1
VARIABLE_LENGTH = 2
INT64_MAX = (1 << 63) - 1
SECTOR = 512
_BYTES_PER_RANGE = 64
_SPARE_BYTES = 64 * 1024 * 1024

RULES = {
    "X1": "a range has a size of at least 1, an offset of at least 0 and an end below 2^63",
    "X2": "ranges ascend and never overlap, and the first ends after the starting offset",
    "X3": "the block type is FIXED_LENGTH or VARIABLE_LENGTH, and constant",
    "X4": "the capacity is above 0 and constant",
    "X5": "FIXED_LENGTH ranges have one size; only the last may be shorter, at the end of the volume",
    "X8": "a stream has no more ranges than the volume has sectors",
}


class Checks:
    """What one stream has shown so far.

    One instance per call: rules hold within a stream, and only type and capacity are compared across calls (R4), by the
    caller. All offsets in bytes.
    """

    def __init__(self, driver: str, *, start: int, size_bytes: int, max_results: int) -> None:
        """Expect ranges from `start` on, on a device of `size_bytes`, at most `max_results` (0: any) per message."""
        self.driver = driver
        self.start = start
        self.size_bytes = size_bytes
        self.max_results = max_results
        self.block_type: int | None = None
        self.capacity: int | None = None
        self.last_end = start
        self.messages = 0
        self.tuples = 0
        self.clipped = 0
        self.dropped = 0
        self.oversized = 0
        self.smallest = INT64_MAX
        self.wire_bytes = 0
        self._fixed: int | None = None
        self._final_end: int | None = None
        self._most = -(-size_bytes // SECTOR) + 1

    def accept(self, message: Message, wire_bytes: int) -> Extents:
        """Return the lawful ranges of `message`, clipped to [start, size_bytes); raise ContractViolation otherwise."""
        self.messages += 1
        self.wire_bytes += wire_bytes
        if self.wire_bytes > self._most * _BYTES_PER_RANGE + _SPARE_BYTES:
            self._broken("X8", f"{self.wire_bytes} bytes on the wire for a volume of {self.size_bytes}")
        offsets, sizes = message.offsets, message.sizes
        if not len(message) and message.block_type == 0 and message.capacity == 0:
            return Extents(offsets, sizes)  # says nothing at all, which a server may do at any time
        self._check_constants(message)
        if not len(message):
            return Extents(offsets, sizes)
        if self.max_results and len(message) > self.max_results:
            self.oversized += 1
        self.tuples += len(message)
        if self.tuples > self._most:
            self._broken("X8", f"{self.tuples} ranges for a volume of {self.size_bytes} bytes")
        self._check_values(offsets, sizes)
        ends = offsets + sizes
        self._check_order(offsets, ends)
        self._check_fixed(sizes, ends, message.capacity)
        first = self.last_end == self.start
        self.last_end = int(ends[-1])
        self.smallest = min(self.smallest, int(sizes.min()))
        return self._clip(offsets, ends, first=first)

    def _check_constants(self, message: Message) -> None:
        if message.block_type not in (FIXED_LENGTH, VARIABLE_LENGTH):
            self._broken("X3", f"type {message.block_type}")
        if self.block_type is not None and message.block_type != self.block_type:
            self._broken("X3", f"type {message.block_type} after {self.block_type}")
        if message.capacity <= 0:
            self._broken("X4", f"capacity {message.capacity}")
        if self.capacity is not None and message.capacity != self.capacity:
            self._broken("X4", f"capacity {message.capacity} after {self.capacity}")
        self.block_type, self.capacity = message.block_type, message.capacity

    def _check_values(self, offsets: Int64s, sizes: Int64s) -> None:
        bad = sizes < 1
        bad |= offsets < 0
        # Sizes below 1 are bad already; for the rest the difference can't overflow.
        bad |= offsets > INT64_MAX - np.maximum(sizes, 0)
        if bad.any():
            at = int(bad.argmax())
            self._broken("X1", f"offset {offsets[at]}, size {sizes[at]}")

    def _check_order(self, offsets: Int64s, ends: Int64s) -> None:
        if self.last_end == self.start:
            # The first range of a stream may start before the starting offset, but must end after it.
            if int(ends[0]) <= self.start:
                self._broken("X2", f"the first range ends at {ends[0]}, asked from {self.start}")
        elif int(offsets[0]) < self.last_end:
            self._broken("X2", f"offset {offsets[0]} after the end {self.last_end}")
        bad = offsets[1:] < ends[:-1]
        if bad.any():
            at = int(bad.argmax())
            self._broken("X2", f"offset {offsets[at + 1]} after the end {ends[at]}")

    def _check_fixed(self, sizes: Int64s, ends: Int64s, capacity: int) -> None:
        if self._final_end is not None:
            self._broken("X5", f"a range follows the short one that ends at {self._final_end}")
        if self.block_type != FIXED_LENGTH:
            return
        if self._fixed is None:
            self._fixed = int(sizes[0])
        odd = sizes != self._fixed
        if not odd.any():
            return
        at = int(odd.argmax())
        if at != len(sizes) - 1 or int(sizes[at]) > self._fixed or int(ends[at]) != capacity:
            self._broken("X5", f"size {sizes[at]} at the end {ends[at]}, others {self._fixed}, capacity {capacity}")
        self._final_end = int(ends[at])

    def _clip(self, offsets: Int64s, ends: Int64s, *, first: bool) -> Extents:
        inside = len(offsets)
        if self.last_end > self.size_bytes:
            inside = int(np.searchsorted(offsets, self.size_bytes, side="left"))
            self.dropped += len(offsets) - inside
            offsets, ends = offsets[:inside], ends[:inside]
            if inside and int(ends[-1]) > self.size_bytes:
                ends = ends.copy()
                ends[-1] = self.size_bytes
                self.clipped += 1
        if first and inside and int(offsets[0]) < self.start:
            offsets = offsets.copy()
            offsets[0] = self.start
        return Extents(offsets, ends - offsets)

    def _broken(self, rule: str, detail: str) -> None:
        raise ContractViolation(self.driver, rule, RULES[rule], detail)
