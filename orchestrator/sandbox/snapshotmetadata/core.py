"""Answers about snapshots, straight from the images; both sides of the service share them.

Offsets and sizes are bytes in int64 arrays. Checks and codes are those of cbt-contract 2.1; a partial last block is
reported whole when ranges have a fixed length (it overhangs the volume), clipped when they vary.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator

import msgspec
import numpy as np
import numpy.typing as npt
from grpclib import GRPCError
from grpclib.const import Status

from orchestrator.sandbox.faults import Faults
from orchestrator.sandbox.storage import compare
from orchestrator.sandbox.storage.images import BadHandle, ImageStore, NoSuchSnapshot, SnapshotRecord

Offsets = npt.NDArray[np.int64]
Page = tuple[Offsets, Offsets]

UNKNOWN, FIXED_LENGTH, VARIABLE_LENGTH = 0, 1, 2
DEFAULT_PAGE = 4096
LARGEST_PAGE = 16384
"""Tuples of one message whatever is asked: fewer than asked is always allowed, and a message stays below 4 MiB."""
_ID_LIMIT = 128
_SECTOR = 512
_CACHED_ANSWERS = 64


class Answer(msgspec.Struct, frozen=True):
    """What one call reports, before paging."""

    ranges: compare.Ranges
    block_bytes: int
    capacity_bytes: int
    fixed: bool

    @property
    def kind(self) -> int:
        """Return the BlockMetadataType as a number."""
        return FIXED_LENGTH if self.fixed else VARIABLE_LENGTH

    def count(self, start: int) -> int:
        """Return how many tuples end behind `start`."""
        ranges = self._from(start)
        return int((ranges[:, 1] - ranges[:, 0]).sum()) if self.fixed else len(ranges)

    def pages(self, start: int, max_results: int) -> Iterator[Page]:
        """Yield offsets and sizes, at most `max_results` at a time (0: as we like), of tuples that end behind `start`.

        `start` is rounded down to a block: the first tuple may begin before it, never end at or before it (G6).
        """
        step = min(max_results or DEFAULT_PAGE, LARGEST_PAGE)
        ranges = self._from(start)
        if not self.fixed:
            for at in range(0, len(ranges), step):
                part = ranges[at : at + step] * self.block_bytes
                yield part[:, 0], np.minimum(part[:, 1], self.capacity_bytes) - part[:, 0]
            return
        before = np.concatenate(([0], np.cumsum(ranges[:, 1] - ranges[:, 0])))
        for at in range(0, int(before[-1]), step):
            index = np.arange(at, min(at + step, int(before[-1])), dtype=np.int64)
            row = np.searchsorted(before, index, side="right") - 1
            offsets = (ranges[row, 0] + index - before[row]) * self.block_bytes
            yield offsets, np.full(len(offsets), self.block_bytes, np.int64)

    def _from(self, start: int) -> compare.Ranges:
        block = start // self.block_bytes
        ranges = self.ranges[self.ranges[:, 1] > block]
        if len(ranges) and ranges[0, 0] < block:
            ranges = ranges.copy()
            ranges[0, 0] = block
        return ranges


class Metadata:
    """The driver's knowledge: allocated and changed blocks of its snapshots."""

    def __init__(self, images: ImageStore, faults: Faults, *, block_bytes: int = 65536, fixed: bool = False) -> None:
        self._images = images
        self._faults = faults
        self._block_bytes = block_bytes
        self._fixed = fixed
        self._found: OrderedDict[tuple[str, str, int], compare.Ranges] = OrderedDict()

    async def allocated(self, handle: str, start: int, max_results: int) -> Answer:
        """Return what a snapshot holds. Raises GRPCError."""
        target = await self._record(handle, "snapshot")
        _check(start, max_results, target)
        path, block = self._images.snapshot_path(handle), self._granularity()
        return await self._answer(
            ("", handle, block), target, lambda: compare.allocated(path, target.size_bytes, block)
        )

    async def delta(self, base_handle: str, handle: str, start: int, max_results: int) -> Answer:
        """Return where a snapshot differs from an older one of its volume. Raises GRPCError."""
        base = await self._record(base_handle, "base snapshot")
        target = await self._record(handle, "target snapshot")
        _check(start, max_results, target)
        if base.volume_handle != target.volume_handle:
            raise GRPCError(Status.INVALID_ARGUMENT, "base and target are snapshots of different volumes")
        if base.created_ns > target.created_ns:
            raise GRPCError(Status.INVALID_ARGUMENT, "the base snapshot is newer than the target")
        old, new, block = (
            self._images.snapshot_path(base_handle),
            self._images.snapshot_path(handle),
            self._granularity(),
        )
        return await self._answer(
            (base_handle, handle, block), target, lambda: compare.changed(old, new, target.size_bytes, block)
        )

    def _granularity(self) -> int:
        wanted = int(self._faults.number("cbt-block-size", self._block_bytes))
        return max(wanted // _SECTOR, 1) * _SECTOR

    async def _record(self, handle: str, what: str) -> SnapshotRecord:
        if not handle or len(handle.encode()) > _ID_LIMIT:
            raise GRPCError(Status.INVALID_ARGUMENT, f"the {what} id is empty or longer than {_ID_LIMIT} bytes")
        try:
            return await asyncio.to_thread(self._images.snapshot, handle)
        except NoSuchSnapshot as err:
            raise GRPCError(Status.NOT_FOUND, f"{what} {handle} does not exist") from err

    async def _answer(self, cached: tuple[str, str, int], target: SnapshotRecord, work: compare.Work) -> Answer:
        ranges = self._found.get(cached)
        if ranges is None:
            try:
                ranges = await asyncio.to_thread(work)
            except (FileNotFoundError, BadHandle) as err:
                raise GRPCError(Status.NOT_FOUND, "a snapshot was destroyed meanwhile") from err
            self._found[cached] = ranges
            if len(self._found) > _CACHED_ANSWERS:
                self._found.popitem(last=False)
        kind = self._faults.text("cbt-block-type")
        fixed = self._fixed if kind is None else kind.upper() == "FIXED_LENGTH"
        return Answer(ranges, cached[2], target.size_bytes, fixed)


def _check(start: int, max_results: int, target: SnapshotRecord) -> None:
    if max_results < 0:
        raise GRPCError(Status.INVALID_ARGUMENT, "max_results is negative")
    if not 0 <= start <= target.size_bytes:
        raise GRPCError(Status.OUT_OF_RANGE, f"starting_offset {start} is outside of the {target.size_bytes} bytes")
