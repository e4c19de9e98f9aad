"""Recovery points of a file or device of this machine, without any cluster: `tidemark copy`, and the benchmarks.

The same plan, intent, engine and commit as in a mover; only what a controller would know of the volume is made up
here, from its path.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import msgspec

from orchestrator.blocks.backup import CopyOptions, backup
from orchestrator.blocks.plan import add_resized
from orchestrator.blocks.source import Source
from orchestrator.blocks.tally import Tallies
from orchestrator.errors import Terminal
from orchestrator.extents import ChunkSet
from orchestrator.repository.errors import PointCancelled
from orchestrator.repository.intent import Intent, put_intent
from orchestrator.repository.keys import NamespaceIdentity
from orchestrator.repository.manifest import (
    Manifest,
    Mode,
    PointRecord,
    PointRef,
    list_lineage,
    list_points,
    manifest_key,
    open_manifest,
)
from orchestrator.repository.plan import Plan, put_plan
from orchestrator.repository.vault import Vault

NAMESPACE = NamespaceIdentity(cluster_id="offline", uid="offline", name="offline")
"""Under which points without a cluster are kept."""
DRIVER = "file"
DEFAULT_CHUNK_SIZE = 256 * 1024
_SEQUENCE = re.compile(r"/(\d{12})-([^/]+)\Z")


class PointUnknown(Terminal):
    """No point of that id is in the repository."""

    reason: ClassVar[str] = "PointUnknown"
    remedy: ClassVar[str] = "List the points: tidemark restore --repository URL --key-file FILE --list."


class ExtentsMalformed(Terminal):
    """The list of changed ranges isn't one."""

    reason: ClassVar[str] = "ExtentsMalformed"
    remedy: ClassVar[str] = "Give lines of two numbers in bytes, `offset length`, inside the volume."


@dataclass(frozen=True, slots=True)
class Made:
    """A committed point and what was planned for it."""

    ref: PointRef
    manifest: Manifest
    planned_bytes: int


def parse_extents(lines: Iterable[str], chunks: ChunkSet) -> None:
    """Add the ranges of `offset length` lines to `chunks`; empty lines and those starting with # count for nothing."""
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        try:
            offset, length = map(int, parts)
        except ValueError:
            raise ExtentsMalformed(f"line {number} is not `offset length`") from None
        if offset < 0 or length <= 0 or offset + length > chunks.volume_size:
            raise ExtentsMalformed(f"line {number} is not a range inside {chunks.volume_size} bytes")
        chunks.add_range(offset, length)


async def find_point(vault: Vault, point_id: str) -> str:
    """Return the manifest's name of the point with this id (or a unique start of it); PointUnknown."""
    found = [key async for key in list_points(vault) if point_name(key).startswith(point_id)]
    if len(found) != 1:
        raise PointUnknown(f"{len(found)} points begin with {point_id}" if found else f"no point {point_id}")
    return found[0]


def point_name(key: str) -> str:
    """Return the point's id from its manifest's name."""
    match = _SEQUENCE.search(key)
    return match.group(2) if match else key.rpartition("/")[2]


async def newest(vault: Vault, lineage: str) -> PointRef | None:
    """Return the newest committed point of a volume."""
    for key in reversed(await list_lineage(vault, lineage)):
        try:
            return (await open_manifest(vault, key))[1]
        except PointCancelled:
            continue
    return None


def lineage_of(driver: str, volume_handle: str) -> str:
    """Return the name under which a volume's points are kept."""
    return hashlib.sha256(f"{driver}\0{volume_handle}".encode()).hexdigest()[:32]


async def make_point(
    vault: Vault,
    path: Path,
    *,
    base: str | None = None,
    extents: Iterable[str] | None = None,
    chunk_size: int | None = None,
    options: CopyOptions | None = None,
    tallies: Tallies | None = None,
) -> Made:
    """Copy a file or device and commit the point.

    With `base` (a point's id) and `extents` a delta; without extents what is allocated is read, and compared with the
    base, or with the newest point of the same path. Raises PointUnknown, ExtentsMalformed, whatever `backup` raises.
    """
    handle = await asyncio.to_thread(os.path.realpath, path)
    lineage = lineage_of(DRIVER, handle)
    parent = None
    if base is not None:
        _, parent = await open_manifest(vault, await find_point(vault, base))
    else:
        parent = await newest(vault, lineage)
    parent_manifest = (await open_manifest(vault, parent.key, digest=parent.digest))[0] if parent else None
    if parent_manifest is not None:
        lineage = parent_manifest.record.lineage
        chunk_size = chunk_size or parent_manifest.root.chunk_size
    delta = base is not None and extents is not None
    chunks = await asyncio.to_thread(_planned, path, extents, chunk_size or DEFAULT_CHUNK_SIZE)
    if delta and parent_manifest is not None:
        add_resized(chunks, parent_manifest.root.volume_size)
    record = await _record(vault, handle, lineage, chunks, "delta" if delta else "allocated", parent)
    intent = Intent(
        id=record.point_id,
        base=parent if delta else None,
        compare=None if delta else parent,
        manifest_key=manifest_key(vault, record),
        lineage=lineage,
        created=record.snapshot_time,
    )
    await put_intent(vault, intent)
    plan = Plan(
        record=record, base=intent.base, compare=intent.compare, mode=record.actual_mode, bits=chunks.to_bytes()
    )
    await put_plan(vault, record.point_id, plan)
    ended = await backup(vault, record.point_id, path, options=options, tallies=tallies)
    ref = ended if isinstance(ended, PointRef) else ended.point
    assert ref is not None, "a plan with one shard is committed by its only copier"
    manifest, _ = await open_manifest(vault, ref.key, digest=ref.digest)
    return Made(ref, manifest, chunks.total_bytes)


def _planned(path: Path, extents: Iterable[str] | None, chunk_size: int) -> ChunkSet:
    with Source.open(path) as source:
        chunks = ChunkSet(source.size, chunk_size)
        if extents is not None:
            parse_extents(extents, chunks)
        else:
            for offset, length in source.allocated():
                chunks.add_range(offset, length)
    return chunks


async def _record(
    vault: Vault, handle: str, lineage: str, chunks: ChunkSet, mode: Mode, parent: PointRef | None
) -> PointRecord:
    keys = await list_lineage(vault, lineage)
    last = _SEQUENCE.search(keys[-1]) if keys else None
    now = datetime.now(UTC)
    name = Path(handle).name
    return PointRecord(
        point_id=str(uuid.uuid4()),
        point_name=f"{name}-{now:%Y%m%d-%H%M%S}",
        lineage=lineage,
        sequence=int(last.group(1)) + 1 if last else 1,
        namespace=vault.namespace,
        pvc_name=name,
        pvc_uid=lineage,
        volume_mode="Block",
        on_demand=True,
        snapshot_time=now,
        snapshot_time_ns=int(now.timestamp() * 1e9),
        driver=DRIVER,
        volume_handle=handle,
        snapshot_handle=f"{handle}@{now.isoformat()}",
        base_id="",
        base_id_source="none",
        requested_mode=mode,
        actual_mode=mode,
        parent=parent,
        evidence={"host": platform.node()},
        volume_size=chunks.volume_size,
        chunk_size=chunks.chunk_size,
    )


def as_json(made: Made, tallies: Tallies) -> dict[str, object]:
    """Return what a script may want to know of a point, as plain values."""
    return {
        "point": made.manifest.record.point_id,
        "manifest": made.ref.key,
        "digest": made.ref.digest,
        "mode": made.manifest.record.actual_mode,
        "stats": msgspec.to_builtins(made.manifest.stats),
        "planned": made.planned_bytes,
        "threadSeconds": {stage: round(seconds, 4) for stage, seconds in tallies.sum().seconds.items()},
    }
