"""What a scheduled verification found, as one sealed object: a termination message is too small, and only a hint.

The controller names the run, the mover puts its result under that name, the controller reads it and takes it away. The
name is part of the seal: an older run's result can't be put in its place. What must never happen here: "nothing found"
told of a run that did not end.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from orchestrator.repository.blame import HurtPoint
from orchestrator.repository.errors import ObjectConflict, ObjectMissing
from orchestrator.repository.layout import Kind, plain
from orchestrator.repository.record import open_record, seal_record
from orchestrator.repository.vault import Vault
from orchestrator.repository.verify import VerifyReport

HURT_LIMIT = 10_000
"""Hurt points told by name; their number is told in any case."""


class VerifyResult(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What one run saw of one namespace. Times are the mover's clock's."""

    begun: datetime
    ended: datetime
    share: float
    points: int
    pages: int
    chunks: int
    bytes_read: int
    damaged_objects: int
    damaged_chunks: int
    """Lost chunks, summed over the points."""
    damaged_points: int
    hurt: tuple[HurtPoint, ...] = ()
    """At most HURT_LIMIT of them."""
    digests: dict[str, str] = {}
    """Of each manifest that opened."""


def result_of(report: VerifyReport, *, begun: datetime, ended: datetime, share: float) -> VerifyResult:
    """Return a report as the result of a run."""
    return VerifyResult(
        begun=begun,
        ended=ended,
        share=share,
        points=report.points,
        pages=report.pages,
        chunks=report.chunks,
        bytes_read=report.bytes_read,
        damaged_objects=len(report.findings),
        damaged_chunks=sum(point.chunks for point in report.hurt),
        damaged_points=len(report.hurt),
        hurt=report.hurt[:HURT_LIMIT],
        digests=report.digests,
    )


async def put_result(vault: Vault, run: str, result: VerifyResult) -> None:
    """Write a run's result down. Of two pods of one run the first wins; the other's is as good."""
    name = vault.names.verified + plain(run)
    try:
        await vault.store.put_new(name, seal_record(vault, Kind.VERIFIED, name, result))
    except ObjectConflict:
        return


async def open_result(vault: Vault, run: str) -> VerifyResult | None:
    """Return what a run found, None when it left no word. Raises Damaged."""
    name = vault.names.verified + plain(run)
    try:
        data = await vault.store.get(name)
    except ObjectMissing:
        return None
    return open_record(vault, Kind.VERIFIED, name, data, VerifyResult)[0]


async def forget_results(vault: Vault) -> int:
    """Delete every result that lies there; return how many. Only for who has read the one that counts."""
    names = [info.key async for info in vault.store.list(vault.names.verified)]
    for name in names:
        await vault.store.delete(name)
    return len(names)
