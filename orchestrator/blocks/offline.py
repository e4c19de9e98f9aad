"""Recovery points of a file or device of this machine, without any cluster: `tidemark copy`, and the benchmarks.

The same plan, intent, engine and commit as in a mover; only what a controller would know of the volume is made up
here, from its path.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import uuid
from collections.abc import Iterable
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
from orchestrator.repository.crypto import sha256
from orchestrator.repository.errors import Damaged, PointCancelled, UnsupportedFormat
from orchestrator.repository.intent import Intent, put_intent
from orchestrator.repository.keys import NamespaceIdentity
from orchestrator.repository.layout import MAX_VOLUME, default_chunk_size
from orchestrator.repository.manifest import (
    Manifest,
    Mode,
    PointRecord,
    PointRef,
    list_lineage,
    list_points,
    manifest_key,
    next_sequence,
    open_manifest,
)
from orchestrator.repository.neighbours import neighbours
from orchestrator.repository.plan import Plan, VolumeTooLarge, put_plan
from orchestrator.repository.vault import Vault

log = logging.getLogger("tidemark.copy")

NAMESPACE = NamespaceIdentity(cluster_id="offline", uid="offline", name="offline")
"""Under which points without a cluster are kept."""
DRIVER = "file"
_POINT = re.compile(r"/[0-9]{12}-([^/]+)\Z")


class PointUnknown(Terminal):
    """No point of that id is in the repository."""

    reason: ClassVar[str] = "PointUnknown"
    remedy: ClassVar[str] = "List the points: tidemark restore --repository URL --key-file FILE --list."


class ExtentsMalformed(Terminal):
    """The list of changed ranges isn't one."""

    reason: ClassVar[str] = "ExtentsMalformed"
    remedy: ClassVar[str] = "Give lines of two numbers in bytes, `offset length`, inside the volume."


class Made(msgspec.Struct, frozen=True):
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
    return _the_one([key async for key in list_points(vault)], point_id)


def _the_one(keys: list[str], point_id: str) -> str:
    found = [key for key in keys if point_name(key).startswith(point_id)]
    if len(found) != 1:
        raise PointUnknown(f"{len(found)} points begin with {point_id!r}" if found else f"no point {point_id}")
    return found[0]


def point_name(key: str) -> str:
    """Return the point's id from its manifest's name."""
    match = _POINT.search(key)
    return match.group(1) if match else key.rpartition("/")[2]


async def newest(vault: Vault, lineage: str) -> PointRef | None:
    """Return the newest committed point of a volume."""
    return (await _newest_of(vault, await list_lineage(vault, lineage)))[0]


async def _newest_of(vault: Vault, keys: list[str]) -> tuple[PointRef | None, Manifest | None]:
    for key in sorted(keys, reverse=True):
        try:
            manifest, ref = await open_manifest(vault, key)
        except PointCancelled:
            continue
        except (Damaged, UnsupportedFormat) as error:
            # One damaged manifest must not end the protection of its volume: an older point serves as well.
            log.warning("a point is passed over: %s", ascii(str(error))[1:-1])
            continue
        return ref, manifest
    return None, None


async def _earlier(vault: Vault, lineage: str, base: str | None) -> tuple[list[str], PointRef | None, Manifest | None]:
    """Return the names of the points there are, and the one to build on: `base`, or the newest of the lineage."""
    if base is None:
        keys = await list_lineage(vault, lineage)
        return (keys, *(await _newest_of(vault, keys)))
    keys = [key async for key in list_points(vault)]
    named = [key for key in keys if point_name(key).startswith(base)]
    if len(named) > 1:
        # Names are no proof: one that anybody could put there must not make a point's own id ambiguous.
        named = [key for key in named if (await _newest_of(vault, [key]))[0] is not None]
    manifest, ref = await open_manifest(vault, _the_one(named, base))
    return keys, ref, manifest


def lineage_of(driver: str, volume_handle: str) -> str:
    """Return the name under which a volume's points are kept."""
    return sha256(f"{driver}\0".encode() + os.fsencode(volume_handle)).hex()[:32]


def shown(path: str) -> str:
    """Return a path as text that can be stored and printed: bytes that are no UTF-8 become `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


async def make_point(
    vault: Vault,
    path: Path,
    *,
    base: str | None = None,
    extents: Iterable[str] | None = None,
    chunk_size: int | None = None,
    options: CopyOptions | None = None,
    tallies: Tallies | None = None,
    across: bool = False,
) -> Made:
    """Copy a file or device and commit the point; with `across`, chunks of other volumes are not stored again.

    With `base` (a point's id) and `extents` a delta. Without a base, `extents` is all that is allocated: what they
    leave out is zero in the point. Without extents what is allocated is found and read. Both are compared with the
    base, or with the newest point of the same path. Raises PointUnknown, ExtentsMalformed, whatever `backup` raises.
    """
    handle = await asyncio.to_thread(os.path.realpath, path)
    lineage = lineage_of(DRIVER, handle)
    keys, parent, parent_manifest = await _earlier(vault, lineage, base)
    if parent_manifest is not None:
        lineage = parent_manifest.record.lineage
        chunk_size = chunk_size or parent_manifest.root.chunk_size
    delta = base is not None and extents is not None
    chunks = await asyncio.to_thread(_planned, path, extents, chunk_size)
    if delta and parent_manifest is not None:
        add_resized(chunks, parent_manifest.root.volume_size)
    own = [key for key in keys if key.startswith(vault.names.lineage(lineage))]
    sequence = next_sequence(own, 0 if parent_manifest is None else parent_manifest.record.sequence)
    record = _record(vault, handle, lineage, sequence, chunks, "delta" if delta else "allocated", parent)
    known = await neighbours(vault, lineage, chunks.chunk_size) if across else {}
    refers = tuple(known)
    if parent is not None and parent_manifest is not None:
        known[parent] = parent_manifest.root
    intent = Intent(
        id=record.point_id,
        base=parent if delta else None,
        compare=None if delta else parent,
        manifest_key=manifest_key(vault, record),
        lineage=lineage,
        created=record.snapshot_time,
        refers=refers,
    )
    intent = await put_intent(vault, intent, roots=known)
    plan = Plan(
        record=record, base=intent.base, compare=intent.compare, mode=record.actual_mode, bits=chunks.to_bytes()
    )
    plan = await put_plan(vault, record.point_id, plan)
    ended = await backup(vault, record.point_id, path, options=options, tallies=tallies, intent=intent, plan=plan)
    ref = ended if isinstance(ended, PointRef) else ended.point
    assert ref is not None, "a plan with one shard is committed by its only copier"
    manifest, _ = await open_manifest(vault, ref.key, digest=ref.digest)
    return Made(ref, manifest, chunks.total_bytes)


def _planned(path: Path, extents: Iterable[str] | None, chunk_size: int | None) -> ChunkSet:
    with Source.open(path) as source:
        if source.size > MAX_VOLUME:  # before a bit for each chunk of it is asked of memory
            raise VolumeTooLarge(source.size)
        chunks = ChunkSet(source.size, chunk_size or default_chunk_size(source.size))
        if extents is not None:
            parse_extents(extents, chunks)
        else:
            for offset, length in source.allocated():
                chunks.add_range(offset, length)
    return chunks


def _record(
    vault: Vault, handle: str, lineage: str, sequence: int, chunks: ChunkSet, mode: Mode, parent: PointRef | None
) -> PointRecord:
    now = datetime.now(UTC)
    handle = shown(handle)
    name = Path(handle).name
    return PointRecord(
        point_id=str(uuid.uuid4()),
        point_name=f"{name}-{now:%Y%m%d-%H%M%S}",
        lineage=lineage,
        sequence=sequence,
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
        evidence={"host": os.uname().nodename},
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
        "chunkSize": made.manifest.root.chunk_size,
        "stats": msgspec.to_builtins(made.manifest.stats),
        "planned": made.planned_bytes,
        "threadSeconds": {stage: round(seconds, 4) for stage, seconds in tallies.sum().seconds.items()},
    }
