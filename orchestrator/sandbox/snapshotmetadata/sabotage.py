"""What the faults do to a call: refuse it, or bend its stream of messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from grpclib import GRPCError
from grpclib.const import Status

from orchestrator.sandbox.faults import Faults
from orchestrator.sandbox.snapshotmetadata.core import UNKNOWN, Answer, Page
from orchestrator.sandbox.snapshotmetadata.encoding import Encoded, encode

_REFUSALS = (
    ("cbt-unimplemented", Status.UNIMPLEMENTED, False),
    ("cbt-delta-unimplemented", Status.UNIMPLEMENTED, True),
    ("cbt-unavailable", Status.UNAVAILABLE, False),
    ("cbt-internal", Status.INTERNAL, False),
    ("cbt-base-not-found", Status.NOT_FOUND, True),
    ("cbt-precondition", Status.FAILED_PRECONDITION, True),
)
_CUT_SHORTEST = 3
_CUT_WAIT_S = 5.0
_EMPTY: Page = (np.empty(0, np.int64), np.empty(0, np.int64))


class CutHere(Exception):
    """The connection is to be cut now."""


def refuse(faults: Faults, *, delta: bool) -> None:
    """Raise the GRPCError of a fault that makes the driver refuse the call."""
    for fault, status, delta_only in _REFUSALS:
        if faults.on(fault) and (delta or not delta_only):
            raise GRPCError(status, f"refused by the sandbox's fault {fault}")


async def send(stream: Any, parts: AsyncIterator[Encoded]) -> None:
    """Send the messages, and cut the connection where they say so (what was sent before still arrives)."""
    try:
        async for part in parts:
            await stream.send_message(part)
    except CutHere:
        stream._stream._transport.close()
        # The lost connection cancels this handler: it never comes to sending a status.
        await asyncio.sleep(_CUT_WAIT_S)


async def messages(answer: Answer, start: int, max_results: int, faults: Faults) -> AsyncIterator[Encoded]:
    """Yield an answer's messages, bent by the faults that are on. Raises CutHere where the connection breaks."""
    total = answer.count(start)
    limit = _limit(total, faults)
    step = max_results
    if limit is not None or faults.on("cbt-capacity-flip") or faults.on("cbt-slow"):
        step = min(max(total // 4, 1), max_results or total or 1)
    sent = number = 0
    for page in answer.pages(start, step):
        offsets, sizes = page
        if limit is not None and sent + len(offsets) > limit:
            offsets, sizes = offsets[: limit - sent], sizes[: limit - sent]
        if number and faults.on("cbt-slow"):
            await asyncio.sleep(faults.number("cbt-slow"))
        if len(offsets):
            yield _bent(answer, number, (offsets, sizes), faults)
        sent, number = sent + len(offsets), number + 1
        if faults.on("cbt-paging"):
            return
        if limit is not None and sent >= limit:
            break
        await asyncio.sleep(0)
    if faults.on("cbt-cut-midstream") and sent < total:
        raise CutHere
    if number == 1 and faults.on("cbt-capacity-flip"):
        yield encode(answer.kind, answer.capacity_bytes + answer.block_bytes, _EMPTY)


def _limit(total: int, faults: Faults) -> int | None:
    """Return after how many tuples the stream ends too early, if it does."""
    if faults.on("cbt-truncated-ok"):
        # At least one: a stream that ends OK and empty says "nothing more", which no client could doubt.
        return max(total // 2, 1)
    if faults.on("cbt-cut-midstream") and total > _CUT_SHORTEST:
        return -(-total // 2)
    return None


def _bent(answer: Answer, number: int, page: Page, faults: Faults) -> Encoded:
    offsets, sizes = page
    kind = UNKNOWN if faults.on("cbt-type-unknown") else answer.kind
    capacity = answer.capacity_bytes
    if number % 2 and faults.on("cbt-capacity-flip"):
        capacity += answer.block_bytes
    if number == 0 and len(offsets) > 1:
        if faults.on("cbt-out-of-order"):
            order = np.arange(len(offsets))
            order[[0, 1]] = 1, 0
            offsets, sizes = offsets[order], sizes[order]
        if faults.on("cbt-overlap"):
            sizes = sizes.copy()
            sizes[0] = offsets[1] + answer.block_bytes - offsets[0]
    return encode(kind, capacity, (offsets, sizes))
