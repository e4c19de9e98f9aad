"""The manifest: the one object whose appearance commits a recovery point.

What must never happen here: a manifest read and believed that isn't exactly what its writer sealed under that name.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from typing import Any, Literal

import msgspec

from orchestrator.repository.crypto import digest as digest_of
from orchestrator.repository.errors import Damaged, ManifestMissing, NotAsKept, ObjectMissing, PointCancelled
from orchestrator.repository.keys import NamespaceIdentity
from orchestrator.repository.layout import CHUNK_SIZES, MAX_VOLUME, Kind
from orchestrator.repository.record import kind_of, open_record
from orchestrator.repository.vault import Vault

Mode = Literal["delta", "allocated", "full"]
_SEQUENCE = re.compile(r"/([0-9]{12})-[^/]+\Z")


class PointRef(msgspec.Struct, frozen=True, rename="camel"):
    """A committed point: its manifest's name and the digest of that object. What a RecoveryPoint's status keeps."""

    key: str
    digest: str
    """BLAKE3 of the sealed object, 64 hex digits."""


class PageRef(msgspec.Struct, frozen=True, rename="camel"):
    """A page of the chunk map: the map object, where in it, and the digest of the sealed page."""

    object: str
    """32 bytes of ObjectRef as hex."""
    slot: int
    length: int
    digest: str


class MapRoot(msgspec.Struct, frozen=True, rename="camel"):
    """A whole chunk map. `page` is None when every chunk is a hole."""

    volume_size: int
    chunk_size: int
    levels: int
    """Inner levels above the leaves, at least 1."""
    page: PageRef | None = None
    held: int | None = None
    """Bytes of the volume in chunks that aren't holes; None where it could not be found out."""

    @property
    def chunk_count(self) -> int:
        """Return how many chunks the volume has; the last may be short."""
        return -(-self.volume_size // self.chunk_size)


class PointRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Everything known before the copy, and all that is needed to make the PVC again (cbt-contract 4.5)."""

    point_id: str
    """Uid of the RecoveryPoint; also the intent's id."""
    point_name: str
    lineage: str
    """Hex digest of driver and volume handle: one volume's points."""
    sequence: int
    """Orders the points of a lineage."""
    namespace: NamespaceIdentity
    pvc_name: str
    pvc_uid: str
    pvc_labels: dict[str, str] = {}
    pvc_annotations: dict[str, str] = {}
    pvc_spec: dict[str, Any] = {}
    pv_name: str = ""
    pv_spec: dict[str, Any] = {}
    volume_mode: str = "Filesystem"
    policy_name: str | None = None
    policy_uid: str | None = None
    backup_name: str | None = None
    slot: datetime | None = None
    on_demand: bool = False
    expires: datetime | None = None
    snapshot_time: datetime
    snapshot_time_ns: int
    driver: str
    volume_handle: str
    snapshot_handle: str
    base_id: str
    """The id by which the next delta names this point's snapshot."""
    base_id_source: str = "handle"
    snapshot: dict[str, Any] = {}
    """Names, uids and annotations of VolumeSnapshot and content, class, parameters hash, policy, size, mode."""
    service_revision: str = ""
    requested_mode: Mode
    actual_mode: Mode
    reason: str | None = None
    message: str | None = None
    parent: PointRef | None = None
    parent_base_id: str | None = None
    evidence: dict[str, Any] = {}
    volume_size: int
    """Bytes, as planned."""
    chunk_size: int


class PointStats(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What the copy cost. Bytes of the volume unless said otherwise."""

    volume: int = 0
    allocated: int = 0
    """Of chunks that the point holds and that aren't holes. Of a delta's shard: how many more than its base."""
    changed: int = 0
    read: int = 0
    uploaded: int = 0
    """Bytes put into the store: packs and map pages."""
    chunks_read: int = 0
    chunks_zero: int = 0
    chunks_reused: int = 0
    chunks_stored: int = 0
    packs: int = 0
    map_bytes: int = 0
    seconds: dict[str, float] = {}
    """By stage."""

    def plus(self, other: PointStats) -> PointStats:
        """Return the sums of two shards' figures; seconds by stage are added, volume is the larger."""
        fields = {
            name: getattr(self, name) + getattr(other, name)
            for name in self.__struct_fields__
            if name not in ("seconds", "volume")
        }
        stages = dict(self.seconds)
        for stage, seconds in other.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
        return PointStats(**fields, volume=max(self.volume, other.volume), seconds=stages)


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A recovery point, whole."""

    record: PointRecord
    root: MapRoot
    stats: PointStats
    created: datetime
    writer: str
    """Name and version of the program that committed."""


class Cancelled(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What stands at a manifest's name when the point was ended or removed: nobody can commit there any more."""

    intent_id: str
    why: str
    at: datetime


def manifest_key(vault: Vault, record: PointRecord) -> str:
    """Return the name that a point commits to."""
    return vault.names.point(record.lineage, record.sequence, record.point_id)


async def open_manifest(vault: Vault, key: str, *, digest: str | None = None) -> tuple[Manifest, PointRef]:
    """Read a point's manifest.

    With `digest` (from memory outside the bucket) a rolled-back or forged manifest is found too. Raises
    ManifestMissing, PointCancelled, Damaged.
    """
    try:
        data = await vault.store.get(key)
    except ObjectMissing as error:
        raise ManifestMissing(key) from error
    seen = digest_of(data)
    if kind_of(key, data) == Kind.CANCELLED:
        open_record(vault, Kind.CANCELLED, key, data, Cancelled)
        raise PointCancelled(key)
    if digest is not None and seen != digest:
        raise NotAsKept(key, "its digest isn't the one expected")
    manifest, _ = open_record(vault, Kind.MANIFEST, key, data, Manifest)
    check_root(key, manifest.root)
    return manifest, PointRef(key, seen)


def check_root(key: str, root: MapRoot) -> None:
    """Raise Damaged for a root that no map can have: not even who holds a namespace's key may occupy others with it."""
    sound = 0 < root.chunk_size <= CHUNK_SIZES[-1] and 0 <= root.volume_size <= MAX_VOLUME
    if not sound or root.chunk_count > MAX_VOLUME // CHUNK_SIZES[0]:
        raise Damaged(key, f"its root tells of {root.volume_size} bytes in chunks of {root.chunk_size}")


async def list_points(vault: Vault) -> AsyncIterator[str]:
    """Yield the names of all manifests (and of what was cancelled) of the namespace, in no promised order."""
    async for found in vault.store.list(vault.names.points):
        yield found.key


def sequence_in(key: str) -> int:
    """Return a point's number in its lineage from its manifest's name; 0 when that is none of ours."""
    match = _SEQUENCE.search(key)
    return int(match.group(1)) if match else 0


def next_sequence(keys: Iterable[str], authentic: int) -> int:
    """Return the number of a lineage's next point: after those in its names (`keys`), as far as these can be true.

    `authentic` is the highest number known from elsewhere than a name. A name is no proof: who may write into the store
    could put 999999999999 there, and no number would be left. So only such numbers count that one point after the
    other could have come to.
    """
    numbers = [sequence_in(key) for key in keys]
    return 1 + max([authentic, *(number for number in numbers if number <= authentic + len(numbers))])


async def list_lineage(vault: Vault, lineage: str) -> list[str]:
    """Return the names of one volume's manifests (and of what was cancelled), by sequence."""
    return sorted([found.key async for found in vault.store.list(vault.names.lineage(lineage))])
