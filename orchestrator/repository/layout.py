"""Names of everything in a repository, and the numbers that the format fixes.

Every name is relative to the repository's root, so that a repository can be moved. A name is made here and nowhere
else: it is part of what seals the object. No name is made from content.
"""

from __future__ import annotations

import os
import re
import uuid
from enum import IntEnum
from typing import NamedTuple

FORMAT_VERSION = 1
SLOT_UNIT = 64
"""A frame starts at a multiple of this many bytes; its number is its slot and its nonce."""
LEAF_CHUNKS = 1024
FAN_OUT = 256
OVERLAY_LIMIT = 64
"""Changed entries that an inner page keeps for one leaf before that leaf is written anew."""
OVERLAY_MEAN = 11
"""The same, on the average of the page's leaves: beyond it all of them are written anew, with one joined read."""
PACK_TARGET = 52 * 1024 * 1024
MAX_OBJECT = 1 << 30
"""A slot number has 24 bits."""
MAX_SMALL = 8 << 20
"""Bytes of the largest object that keys, manifests and their like may be: whoever may put objects must not be able to
fill the memory of the controller, which opens those of everybody. Lists (shards, sweeps) may have MAX_OBJECT."""
MAX_VOLUME = 1 << 50
"""Bytes of the largest volume: who forges a manifest must not be able to send us through a map without end."""
CHUNK_SIZES = (64 * 1024, 256 * 1024, 1024 * 1024)
SMALL_CHUNKS_UP_TO = 1 << 42
"""Bytes of the largest volume that is cut in the smallest chunks unless its owner says otherwise: 2^26 of them."""

HEADER_KEY = "tidemark"
KEYS_PREFIX = "keys/"
NAMESPACES_PREFIX = "namespaces/"
LOCKS_PREFIX = "locks/"
PROBE_PREFIX = "probe/"
SMALL_PARTS = frozenset({"tidemark", "keys", "namespaces", "points", "removing"})
"""Objects that may have MAX_SMALL bytes, by the first part of their names, in a namespace by the third."""
OWN_PREFIXES = (KEYS_PREFIX, NAMESPACES_PREFIX, LOCKS_PREFIX, PROBE_PREFIX, "n/")

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}\Z")


def default_chunk_size(volume_size: int) -> int:
    """Return how finely a volume of so many bytes is cut at its first point when nobody says how."""
    return CHUNK_SIZES[0] if volume_size <= SMALL_CHUNKS_UP_TO else CHUNK_SIZES[1]


class Kind(IntEnum):
    """What an object is; part of its key derivation."""

    MASTER_WRAP = 1
    NAMESPACE_KEYS = 2
    PACK = 3
    MAP = 4
    MANIFEST = 5
    CANCELLED = 6
    INTENT = 7
    PLAN = 8
    SHARD = 9
    DAMAGED = 10
    RELOCATED = 11
    SWEEP = 12
    REMOVING = 13
    VERIFIED = 14
    COMPACTED = 15
    MOVES = 16
    RENEWED = 17
    LOCK = 19
    MOVED = 18


class ObjectRef(NamedTuple):
    """A pack or a map object: the intent that wrote it, and 128 random bits. 32 bytes on disk."""

    intent: bytes
    random: bytes

    @classmethod
    def new(cls, intent_id: str) -> ObjectRef:
        """Name a new object of an intent."""
        return cls(intent_bytes(intent_id), os.urandom(16))

    @classmethod
    def named(cls, intent_id: str, random: str) -> ObjectRef:
        """Read the last two parts of a name; ValueError when they are none of ours."""
        if len(random) != 32 or random != random.lower():
            raise ValueError(f"{random!r} is not 32 hex digits in lower case")
        return cls(intent_bytes(intent_id), bytes.fromhex(random))

    @classmethod
    def parse(cls, raw: bytes) -> ObjectRef:
        """Read 32 bytes."""
        return cls(raw[:16], raw[16:32])

    def to_bytes(self) -> bytes:
        """Write 32 bytes."""
        return self.intent + self.random

    @property
    def path(self) -> str:
        """Return `<intent>/<random>` as in names."""
        return f"{uuid.UUID(bytes=self.intent)}/{self.random.hex()}"


def intent_bytes(intent_id: str) -> bytes:
    """Return the 16 bytes of an intent id; ValueError unless it is a UUID in its usual lower-case form."""
    parsed = uuid.UUID(intent_id)
    if str(parsed) != intent_id:
        raise ValueError(f"intent id {intent_id!r} is not a UUID in lower-case form")
    return parsed.bytes


def plain(part: str) -> str:
    """Return `part` if it may be one part of a name, else ValueError."""
    if not _PLAIN.match(part):
        raise ValueError(f"{part!r} can't be part of an object's name")
    return part


def master_wrap(number: int) -> str:
    """Name the repository key as wrapped for the `number`-th master key."""
    return f"{KEYS_PREFIX}{number:08d}"


def lock_promise(number: int) -> str:
    """Name what the repository says about object lock; the highest number counts."""
    return f"{LOCKS_PREFIX}{number:08d}"


def namespace_keys(namespace_id: str, epoch: int) -> str:
    """Name one epoch of a namespace's keys."""
    return f"{NAMESPACES_PREFIX}{plain(namespace_id)}/{epoch:08d}"


class Names:
    """Names under one namespace's prefix."""

    __slots__ = ("prefix",)

    def __init__(self, namespace_id: str) -> None:
        self.prefix = f"n/{plain(namespace_id)}/"

    @property
    def packs(self) -> str:
        """Return the prefix of all packs."""
        return f"{self.prefix}packs/"

    @property
    def maps(self) -> str:
        """Return the prefix of all map objects."""
        return f"{self.prefix}maps/"

    @property
    def points(self) -> str:
        """Return the prefix of all manifests."""
        return f"{self.prefix}points/"

    @property
    def removing(self) -> str:
        """Return the prefix of the records of points that are being removed."""
        return f"{self.prefix}removing/"

    @property
    def intents(self) -> str:
        """Return the prefix of all intents."""
        return f"{self.prefix}intents/"

    @property
    def damaged(self) -> str:
        """Return the prefix of all damage records."""
        return f"{self.prefix}damaged/"

    @property
    def verified(self) -> str:
        """Return the prefix of the results of scheduled verifications."""
        return f"{self.prefix}verified/"

    @property
    def sweeps(self) -> str:
        """Return the prefix of the candidates that maintenance wrote down."""
        return f"{self.prefix}sweeps/"

    @property
    def relocated(self) -> str:
        """Return the prefix of the relocation records."""
        return f"{self.prefix}relocated/"

    def pack(self, ref: ObjectRef) -> str:
        """Name a pack."""
        return self.packs + ref.path

    def map(self, ref: ObjectRef) -> str:
        """Name a map object."""
        return self.maps + ref.path

    @property
    def compacted(self) -> str:
        """Return the prefix of the commits of compactions."""
        return f"{self.prefix}compacted/"

    def compaction(self, intent_id: str) -> str:
        """Name the object that commits a compaction, or says that it was cancelled."""
        return f"{self.compacted}{intent_folder(intent_id)}"

    @property
    def renewed(self) -> str:
        """Return the prefix of the records that the lock of what lives was renewed."""
        return f"{self.prefix}renewed/"

    @property
    def moved(self) -> str:
        """Return the prefix of the objects that hold copies of many relocation records."""
        return f"{self.prefix}moved/"

    def moves(self, intent_id: str) -> str:
        """Name what a compaction is going to say about the packs that it moved."""
        return f"{self.intents}{intent_folder(intent_id)}/moves"

    def relocations(self, ref: ObjectRef) -> str:
        """Return the prefix of the records that say where a pack's chunks went; the highest generation counts."""
        return f"{self.relocated}{ref.path}/"

    def relocation(self, ref: ObjectRef, generation: int = 1) -> str:
        """Name one generation of the record that says where a pack's chunks went."""
        return f"{self.relocations(ref)}{generation:06d}"

    def lineage(self, lineage: str) -> str:
        """Return the prefix of one volume's manifests."""
        return f"{self.points}{plain(lineage)}/"

    def point(self, lineage: str, sequence: int, point_id: str) -> str:
        """Name a manifest; names of one lineage sort by sequence."""
        if not 0 <= sequence < 10**12:
            raise ValueError(f"sequence {sequence} is out of range")
        return f"{self.lineage(lineage)}{sequence:012d}-{plain(point_id)}"

    def removal(self, manifest: str) -> str:
        """Name the record that a point is being removed."""
        return self.removing + manifest.removeprefix(self.points)

    def intent(self, intent_id: str) -> str:
        """Name an intent."""
        return f"{self.intents}{intent_folder(intent_id)}/intent"

    def plan(self, intent_id: str) -> str:
        """Name an intent's copy plan."""
        return f"{self.intents}{intent_folder(intent_id)}/plan"

    def shards(self, intent_id: str) -> str:
        """Return the prefix of an intent's finished shards."""
        return f"{self.intents}{intent_folder(intent_id)}/shards/"

    def shard(self, intent_id: str, number: int) -> str:
        """Name a finished shard."""
        return f"{self.shards(intent_id)}{number:06d}"


def intent_folder(intent_id: str) -> str:
    """Return the intent id as a part of names, checked."""
    intent_bytes(intent_id)
    return intent_id
