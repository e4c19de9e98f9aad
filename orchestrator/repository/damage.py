"""What verify found damaged: planners read those chunks again, writers never refer to them.

A record names an object and the slots in it, or the whole object; that points inherit it later needs no new record.
"""

from __future__ import annotations

import asyncio
import functools
import os
import struct
from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from orchestrator.repository.errors import Damaged, ManifestMissing, ObjectMissing, PointCancelled, UnsupportedFormat
from orchestrator.repository.layout import FAN_OUT, LEAF_CHUNKS, Kind, ObjectRef
from orchestrator.repository.manifest import Manifest, PointRef, open_manifest
from orchestrator.repository.pack import Entry
from orchestrator.repository.record import open_record, seal_record
from orchestrator.repository.secondlook import SecondLook
from orchestrator.repository.vault import Vault

if TYPE_CHECKING:
    from orchestrator.repository.chunkmap import MapReader
    from orchestrator.repository.page import Inner


class DamageRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One damaged or missing object. Its slots are in the tail; none: the whole object."""

    kind: Literal["pack", "map"]
    object: str
    """64 hex digits of ObjectRef."""
    what: str
    found: datetime
    points: tuple[str, ...] = ()
    """Manifest names of the points hurt when it was found."""


class DamageIndex:
    """Every damaged slot and page that is on record, in memory (empty in a sound repository)."""

    __slots__ = ("broken", "maps", "names", "packs")

    def __init__(self) -> None:
        self.packs: dict[ObjectRef, frozenset[int] | None] = {}
        """None: the whole pack."""
        self.maps: dict[ObjectRef, frozenset[int] | None] = {}
        self.names: dict[str, ObjectRef] = {}
        """Record names and what each is about."""
        self.broken: list[str] = []
        """Records that can't be read: verify finds anew what they said."""

    def add(self, kind: str, ref: ObjectRef, slots: Iterable[int]) -> None:
        """Add damaged slots of an object; none given: the whole object."""
        table, fresh = (self.packs if kind == "pack" else self.maps), frozenset(slots)
        known = table.get(ref, frozenset())
        table[ref] = None if known is None or not fresh else known | fresh

    def touches(self, entry: Entry) -> bool:
        """Say whether a chunk is damaged."""
        if entry.pack not in self.packs:
            return False
        slots = self.packs[entry.pack]
        return slots is None or entry.slot in slots

    def touches_page(self, ref: ObjectRef, slot: int) -> bool:
        """Say whether a page is damaged."""
        if ref not in self.maps:
            return False
        slots = self.maps[ref]
        return slots is None or slot in slots

    def __bool__(self) -> bool:
        return bool(self.packs or self.maps)


async def put_damage(vault: Vault, record: DamageRecord, slots: Iterable[int]) -> str:
    """Write a damage record and return its name."""
    name = vault.names.damaged + os.urandom(16).hex()
    tail = b"".join(struct.pack("<I", slot) for slot in sorted(set(slots)))
    await vault.store.put_new(name, seal_record(vault, Kind.DAMAGED, name, record, tail))
    return name


async def load_damage(vault: Vault, again: SecondLook | None = None) -> DamageIndex:
    """Read all damage records; one listing when there are none. `again`: told of those that opened only then."""
    index, again = DamageIndex(), again or SecondLook()
    async for found in vault.store.list(vault.names.damaged):
        try:
            record, tail = await again.at(functools.partial(_open, vault, found.key))
            ref = ObjectRef.parse(bytes.fromhex(record.object))
            slots = [slot for (slot,) in struct.iter_unpack("<I", tail)]
        except ObjectMissing:
            continue
        except (Damaged, UnsupportedFormat, ValueError, struct.error):
            # Of another format too: it only says what to read again, and the next verification says that anew.
            index.broken.append(found.key)
            continue
        index.names[found.key] = ref
        index.add(record.kind, ref, slots)
    return index


async def _open(vault: Vault, name: str) -> tuple[DamageRecord, bytes]:
    return open_record(vault, Kind.DAMAGED, name, await vault.store.get(name), DamageRecord)


LOOK_S = 45.0
"""Seconds that may go into finding what the damage on record hurts of one point: its whole map is read for that."""


class BaseCheck(NamedTuple):
    """Whether a point can be a base, and what must be read again if it is."""

    usable: bool
    why: str = ""
    heal: tuple[tuple[int, int], ...] = ()
    """Runs [first, stop) of damaged chunk indexes: add them to what is read."""


async def check_base(
    vault: Vault, ref: PointRef, *, manifest: Manifest | None = None, within_s: float = LOOK_S
) -> BaseCheck:
    """Open manifest (unless the caller just did) and root page and look at the damage records.

    Never raises for damage.

    Damage to chunks or leaves leaves a base usable, with `heal`; damage to an inner page doesn't. Where finding out
    takes longer than `within_s` the base isn't used: its next heir would wait for ever otherwise.
    """
    from orchestrator.repository.chunkmap import MapReader

    try:
        if manifest is None:
            manifest, _ = await open_manifest(vault, ref.key, digest=ref.digest)
        await MapReader(vault, manifest.root).check_root()
        damage = await load_damage(vault)
        async with asyncio.timeout(within_s):
            heal = [run async for run in damaged_runs(vault, manifest, damage)] if damage else []
    except TimeoutError:
        return BaseCheck(False, f"finding what is damaged in {ref.key} takes too long")
    except (Damaged, ObjectMissing, ManifestMissing, PointCancelled, UnsupportedFormat) as error:
        return BaseCheck(False, str(error))
    return BaseCheck(True, heal=tuple(_joined(heal)))


async def damaged_runs(vault: Vault, manifest: Manifest, damage: DamageIndex) -> AsyncIterator[tuple[int, int]]:
    """Yield runs [first, stop) of a point's chunks that are damaged, ascending.

    Reads leaves that may be touched, many at once. Raises Damaged for a damaged inner page.
    """
    from orchestrator.repository.chunkmap import MapReader

    reader, count = MapReader(vault, manifest.root), manifest.root.chunk_count
    async for node, page, number in _ahead(reader, damage, count):
        base = (node * FAN_OUT + number) * LEAF_CHUNKS
        stop = min(base + LEAF_CHUNKS, count)
        overlay = dict(page.overlay(number))
        ref = page.child(number)
        bad: set[int] = {at for at, entry in overlay.items() if entry is not None and damage.touches(entry)}
        if ref is not None and damage.touches_page(ref.object, ref.slot):
            bad.update(set(range(stop - base)) - set(overlay))
        elif ref is not None:
            leaf = (await reader.leaves([ref]))[ref]
            if any(pack in damage.packs for pack in leaf.packs):
                bad.update(at for at, e in leaf.chunks() if at not in overlay and damage.touches(e))
        for at in sorted(bad):
            yield base + at, base + at + 1


async def _ahead(reader: MapReader, damage: DamageIndex, count: int) -> AsyncIterator[tuple[int, Inner, int]]:
    """Yield (level-1 page's number, page, leaf in it), ascending, the leaves of each batch fetched before."""
    from orchestrator.repository.chunkmap import BATCH_LEAVES

    async for node, page in reader.level1(0, -(-count // LEAF_CHUNKS)):
        numbers = list(page.numbers())
        for start in range(0, len(numbers), BATCH_LEAVES):
            some = numbers[start : start + BATCH_LEAVES]
            refs = [ref for n in some if (ref := page.child(n)) is not None]
            await reader.leaves([ref for ref in refs if not damage.touches_page(ref.object, ref.slot)])
            for number in some:
                yield node, page, number


def _joined(runs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for first, stop in runs:
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((first, stop))
    return joined
