"""Other volumes' points of a namespace whose chunks a new point may refer to, when that is asked for.

A chunk of another point is as safe to refer to as one of the base: the intent names the point and its root, so that
maintenance keeps what it reaches, and the writer looks after putting the intent that the point is still there. What
must never happen here: a reference to a chunk of a point that the intent doesn't name, or that was gone by then.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import datetime

from orchestrator.repository.chunkmap import MapReader
from orchestrator.repository.damage import DamageIndex
from orchestrator.repository.errors import Damaged, ManifestMissing, ObjectMissing, PointCancelled, UnsupportedFormat
from orchestrator.repository.intent import Intent
from orchestrator.repository.manifest import MapRoot, PointRef, open_manifest
from orchestrator.repository.pack import Entry
from orchestrator.repository.vault import Vault

VOLUMES = 8
"""Other volumes that one point looks at: each costs reading its map."""
ENTRIES = 1_500_000
"""Chunks of other volumes that are remembered: half of the table, the point's own need the other half."""
WORTH = 64
"""A map is read if it has at most so many chunks for each chunk that may be stored."""
_UNREADABLE = (ManifestMissing, PointCancelled, Damaged, ObjectMissing, UnsupportedFormat)
_NAME = re.compile(r"/([^/]+)/(\d{12})-[^/]+\Z")


async def neighbours(vault: Vault, lineage: str, chunk_size: int, *, most: int = VOLUMES) -> dict[PointRef, MapRoot]:
    """Return the newest point, with its root, of at most `most` other volumes of the namespace with equal chunks.

    Of more volumes those whose points were made last. Those whose manifest can't be read are left out: this only saves
    room.
    """
    newest: dict[str, tuple[int, datetime, str]] = {}
    async for info in vault.store.list(vault.names.points):
        match = _NAME.search(info.key)
        if match is not None and match.group(1) != lineage:
            found = (int(match.group(2)), info.last_modified, info.key)
            newest[match.group(1)] = max(found, newest.get(match.group(1), found))
    chosen: dict[PointRef, MapRoot] = {}
    for _, key in sorted(((at, key) for _, at, key in newest.values()), reverse=True):
        if len(chosen) == most:
            break
        try:
            manifest, ref = await open_manifest(vault, key)
        except _UNREADABLE:
            continue
        if manifest.root.chunk_size == chunk_size:
            chosen[ref] = manifest.root
    return chosen


def worthwhile(intent: Intent, chunk_size: int, planned: int) -> list[tuple[PointRef, MapRoot]]:
    """Return the neighbours that an intent names whose maps are worth reading for `planned` chunks."""
    roots = dict(zip(intent.points, intent.roots, strict=True))
    found = [(ref, roots[ref]) for ref in intent.refers if roots[ref].chunk_size == chunk_size]
    return [(ref, root) for ref, root in found if chunks_of(root) <= planned * WORTH]


def chunks_of(root: MapRoot) -> int:
    """Return about how many chunks a map has that aren't holes."""
    return root.chunk_count if root.held is None else -(-root.held // root.chunk_size)


async def entries(vault: Vault, ref: PointRef, root: MapRoot, damage: DamageIndex) -> AsyncIterator[list[Entry]]:
    """Yield the sound chunks of a neighbour, a leaf at a time; nothing more once it can't be read.

    The intent must be put: that the manifest is still there now means that what it reaches stays.
    """
    try:
        await open_manifest(vault, ref.key, digest=ref.digest)
        async for batch in MapReader(vault, root, avoid=damage).batches():
            yield [entry for _, entry in batch if not damage.touches(entry)]
    except _UNREADABLE:
        return
