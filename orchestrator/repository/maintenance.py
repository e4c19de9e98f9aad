"""Sweep what nothing reaches any more and compact what is mostly dead, without locks and without trusting a clock.

Two runs delete an object: one writes it down as a candidate, a later one (after the grace time, which is for readers
only) finds it still unreached by a mark of its own. What is unreached stays unreached, so a sweep that was stopped
for a week and goes on deletes nothing that lives. What must never happen here: a delete without the fence asked, or
of anything under a live intent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from orchestrator.fence import Fence
from orchestrator.repository.census import MAP, OBJECT, PACK, READERS, RELOCATION, Census, Expired
from orchestrator.repository.compaction import Choice, Compaction, choose, compact
from orchestrator.repository.damage import load_damage
from orchestrator.repository.errors import Damaged, ObjectMissing, UnsupportedFormat
from orchestrator.repository.following import Following
from orchestrator.repository.indexing import IndexWork, write_index
from orchestrator.repository.layout import PACK_TARGET, Kind, ObjectRef
from orchestrator.repository.look import look
from orchestrator.repository.manifest import PointRef
from orchestrator.repository.moves import open_moves, settle
from orchestrator.repository.parallel import in_parallel
from orchestrator.repository.partitions import COUNT, Partitions
from orchestrator.repository.point import cancel, remove
from orchestrator.repository.record import open_record, seal_record
from orchestrator.repository.vault import Vault

RUN_LIMIT = 500_000
"""Objects that one run deletes or writes down at most, to bound memory; the next run goes on."""


class _SweepDocument(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    created: datetime
    packs: int
    maps: int | None = None
    """None: all that follow the packs."""


class SweepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a sweep will do and why; nothing has changed yet."""

    now: datetime
    grace: timedelta
    points: int
    pages: int
    live_intents: int
    deletions: bytes
    """Objects unreached now and in a run older than the grace time (records of `census.OBJECT`)."""
    deletion_bytes: int
    candidates: bytes
    """Objects unreached now for the first time."""
    candidate_bytes: int
    waiting: int
    """Objects written down less than the grace time ago."""
    expired: tuple[Expired, ...]
    removals: tuple[str, ...]
    """Manifests whose removal was cut off."""
    tidy: tuple[str, ...]
    """Plans and shards of committed points, intents of ended ones, sweep, damage and relocation records about nothing
    or superseded, in order."""
    unsettled: tuple[str, ...] = ()
    """Committed compactions whose relocation records may not all be there."""
    compact: tuple[Choice, ...] = ()
    """Packs under half alive, and small ones when there are many."""
    index: IndexWork = IndexWork()
    """Copies of relocation records to write."""
    blind: bool = False
    """An intent, or what it builds on, can't be read: it is ended, and nothing is deleted in this run."""

    @property
    def deletion_count(self) -> int:
        """Return how many objects will be deleted."""
        return len(self.deletions) // OBJECT.size

    @property
    def candidate_count(self) -> int:
        """Return how many objects will be written down."""
        return len(self.candidates) // OBJECT.size

    def sentence(self) -> str:
        """Say in one line what will happen and why."""
        if self.blind:
            return (
                "an unfinished backup, or what it builds on, can't be read: "
                f"end {len(self.expired)} intents, delete nothing in this run"
            )
        return (
            f"{self.points} points and {self.live_intents} live intents reach {self.pages} pages; "
            f"delete {self.deletion_count} objects ({self.deletion_bytes} bytes) unreached for {self.grace}, "
            f"write down {self.candidate_count} ({self.candidate_bytes} bytes), {self.waiting} wait, "
            f"end {len(self.expired)} intents, tidy {len(self.tidy)} records, compact {len(self.compact)} packs "
            f"({sum(choice.size for choice in self.compact)} bytes)"
        )


class SweepResult(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a sweep did."""

    deleted_objects: int = 0
    deleted_bytes: int = 0
    candidates: int = 0
    cancelled_intents: int = 0
    tidied: int = 0
    compacted: Compaction = Compaction()


class Usage(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a namespace holds."""

    bytes: int = 0
    objects: int = 0
    points: int = 0
    """Manifests, and what stands for removed ones."""


async def plan_sweep(
    vault: Vault,
    *,
    now: datetime,
    grace: timedelta,
    intent_age: timedelta,
    compact: bool = True,
    end_intents: Collection[str] = (),
    pack_size: int = PACK_TARGET,
) -> SweepPlan:
    """Find what nothing reaches, and packs that are mostly dead, or small, without changing anything.

    `end_intents` are ended whatever their age; a person says so of one that blocks sweeping (docs/operations.md).
    Uses a temporary folder; memory stays bounded. Raises SweepBlocked when something that says what is alive can't be
    read, SweepOvertaken, and the store's Retryable errors.
    """
    with tempfile.TemporaryDirectory(prefix="tidemark-sweep-") as name:
        census, following = await look(
            vault, Path(name), now=now, before=now - grace, intent_age=intent_age, end=end_intents
        )
        if census.blind:
            return _blind(census, now, grace)
        written = _Written(vault, Path(name))
        await written.load(now - grace)
        damage = await load_damage(vault)
        found = await asyncio.to_thread(_compare, census, following, written, set(damage.names.values()))
        chosen = (
            await asyncio.to_thread(choose, census, following, set(damage.packs), pack_size=pack_size)
            if compact
            else []
        )
    forgotten = [name for name, ref in damage.names.items() if ref not in found.known]
    tidy = [*_tidy_intents(vault, census, now - grace), *_tidy_compactions(vault, census), *following.superseded]
    tidy += [*written.finished(), *forgotten, *damage.broken, *census.abandoned]
    return SweepPlan(
        now=now,
        grace=grace,
        points=census.points,
        pages=census.marking.pages,
        live_intents=len(census.live),
        deletions=bytes(found.deletions),
        deletion_bytes=found.deletion_bytes,
        candidates=bytes(found.candidates),
        candidate_bytes=found.candidate_bytes,
        waiting=found.waiting,
        expired=tuple(census.expired),
        removals=tuple(census.removing.values()),
        tidy=tuple(tidy),
        unsettled=tuple(census.unsettled),
        compact=tuple(chosen),
        index=following.index_work(),
    )


def _blind(census: Census, now: datetime, grace: timedelta) -> SweepPlan:
    return SweepPlan(
        now=now,
        grace=grace,
        points=census.points,
        pages=census.marking.pages,
        live_intents=len(census.live),
        deletions=b"",
        deletion_bytes=0,
        candidates=b"",
        candidate_bytes=0,
        waiting=0,
        expired=tuple(census.expired),
        removals=(),
        tidy=(),
        blind=True,
    )


async def sweep(vault: Vault, plan: SweepPlan, fence: Fence, *, pack_size: int = PACK_TARGET) -> SweepResult:
    """Carry a plan out; may be cut off anywhere, by anything, and started again with a new plan. Raises LeaseStale.

    Deletes before it compacts: a store that is nearly full has room for the new packs then.
    """
    ended = 0
    for intent_id in plan.unsettled:
        with contextlib.suppress(ObjectMissing):  # settled since
            await settle(vault, intent_id, await open_moves(vault, intent_id), fence)
    for key in plan.removals:
        await remove(vault, PointRef(key, ""), fence)
    for expired in plan.expired:
        fence.check()
        ended += await cancel(vault, expired.manifest_key, expired.intent_id, why="the intent was never finished")
    if plan.candidates:
        fence.check()
        await _write_down(vault, plan)
    count = size = 0
    records = [OBJECT.unpack_from(plan.deletions, at) for at in range(0, len(plan.deletions), OBJECT.size)]
    for start in range(0, len(records), READERS):
        some = records[start : start + READERS]
        await in_parallel([_delete_object(vault, fence, kind, ObjectRef.parse(raw)) for kind, raw, _ in some])
        count, size = count + len(some), size + sum(length for _, _, length in some)
    for key in plan.tidy:
        await _delete(vault, fence, key)
    await write_index(vault, plan.index, fence, now=plan.now)
    await vault.store.sweep_leftovers(plan.now - max(plan.grace, timedelta(hours=1)))
    return SweepResult(
        deleted_objects=count,
        deleted_bytes=size,
        candidates=plan.candidate_count,
        cancelled_intents=ended,
        tidied=len(plan.tidy),
        compacted=await compact(vault, plan.compact, fence, now=plan.now, pack_size=pack_size),
    )


async def usage(vault: Vault) -> Usage:
    """Return bytes and objects of the namespace, and how many points' names are taken."""
    size = objects = points = 0
    async for info in vault.store.list(vault.names.prefix):
        size, objects = size + info.size, objects + 1
        points += info.key.startswith(vault.names.points)
    return Usage(bytes=size, objects=objects, points=points)


async def _delete(vault: Vault, fence: Fence, key: str) -> None:
    fence.check()
    await vault.store.delete(key)


async def _delete_object(vault: Vault, fence: Fence, kind: int, ref: ObjectRef) -> None:
    if kind != RELOCATION:
        await _delete(vault, fence, vault.names.pack(ref) if kind == PACK else vault.names.map(ref))
        return
    for key in [info.key async for info in vault.store.list(vault.names.relocations(ref))]:
        await _delete(vault, fence, key)


async def _write_down(vault: Vault, plan: SweepPlan) -> None:
    by_kind: dict[int, list[bytes]] = {PACK: [], MAP: [], RELOCATION: []}
    for at in range(0, len(plan.candidates), OBJECT.size):
        kind, raw, _ = OBJECT.unpack_from(plan.candidates, at)
        by_kind[kind].append(raw)
    name = vault.names.sweeps + os.urandom(16).hex()
    document = _SweepDocument(created=plan.now, packs=len(by_kind[PACK]), maps=len(by_kind[MAP]))
    tail = b"".join(raw for raws in by_kind.values() for raw in raws)
    await vault.store.put_new(name, seal_record(vault, Kind.SWEEP, name, document, tail))


def _tidy_intents(vault: Vault, census: Census, before: datetime) -> list[str]:
    """Choose what may go of intents that aren't live; the intent itself last, and only when cancelled and empty."""
    keys: list[str] = []
    for intent_id, infos in census.folders.items():
        own = vault.names.intent(intent_id)
        raw = ObjectRef.new(intent_id).intent
        gone = intent_id in census.cancelled and raw not in census.with_objects
        keys.extend(info.key for info in infos if info.key != own and (gone or info.last_modified < before))
        if gone and any(info.key == own for info in infos):
            keys.append(own)
    return keys


def _tidy_compactions(vault: Vault, census: Census) -> list[str]:
    """Choose what may go of committed compactions: all, when none of their packs is left and all was told.

    What was cancelled stays for good: without it, one that was stopped since could still commit.
    """
    keys: list[str] = []
    for intent_id in census.compacted - set(census.unsettled):
        if ObjectRef.new(intent_id).intent not in census.with_objects:
            keys.extend(info.key for info in census.compactions.get(intent_id, ()))
            keys.append(vault.names.compaction(intent_id))
    return keys


class _Written:
    """What earlier runs wrote down: kind, reference, number of the record (37 bytes each)."""

    SIZE = 37

    def __init__(self, vault: Vault, folder: Path) -> None:
        self._vault = vault
        self.old = Partitions(folder, "old", self.SIZE, 17)
        self.young = Partitions(folder, "young", self.SIZE, 17)
        self.names: list[str] = []
        self.remaining: list[int] = []
        self._broken: list[str] = []

    async def load(self, before: datetime) -> None:
        """Read all sweep records; those written before `before` count for deletion."""
        async for info in self._vault.store.list(self._vault.names.sweeps):
            try:
                data = await self._vault.store.get(info.key)
                document, tail = open_record(self._vault, Kind.SWEEP, info.key, data, _SweepDocument)
            except ObjectMissing:
                continue
            except (Damaged, UnsupportedFormat):
                # It only ever allows a delete: without it the grace time starts again.
                self._broken.append(info.key)
                continue
            number = len(self.names).to_bytes(4, "little")
            self.names.append(info.key)
            self.remaining.append(0)
            table = self.old if info.last_modified <= before else self.young
            for position, at in enumerate(range(0, len(tail), 32)):
                table.add(bytes((_kind(document, position),)) + tail[at : at + 32] + number)

    def finished(self) -> list[str]:
        """Return the records none of whose objects exist any more, and those that can't be read."""
        return [name for name, left in zip(self.names, self.remaining, strict=True) if not left] + self._broken


def _kind(document: _SweepDocument, position: int) -> int:
    if position < document.packs:
        return PACK
    return MAP if document.maps is None or position < document.packs + document.maps else RELOCATION


class _Found:
    """What the comparison of listed, marked and written-down objects gave."""

    def __init__(self) -> None:
        self.deletions, self.candidates = bytearray(), bytearray()
        self.deletion_bytes = self.candidate_bytes = self.waiting = 0
        self.known: set[ObjectRef] = set()

    def delete(self, record: bytes, size: int) -> None:
        """Choose an object for deletion, within the run's limit."""
        if len(self.deletions) < RUN_LIMIT * OBJECT.size:
            self.deletions += record
            self.deletion_bytes += size

    def write_down(self, record: bytes, size: int) -> None:
        """Choose an object as a candidate, within the run's limit."""
        if len(self.candidates) < RUN_LIMIT * OBJECT.size:
            self.candidates += record
            self.candidate_bytes += size


def _compare(census: Census, following: Following, written: _Written, damaged: set[ObjectRef]) -> _Found:
    """Go through the files side by side: an object, its mark and its record all lie in files of the same number."""
    found = _Found()
    for number in range(COUNT):
        named = set(census.marking.packs.records(number))
        marked = reached(census, following, number, named)
        old = _numbers(written.old, number)
        young = _numbers(written.young, number)
        for record in dict.fromkeys(census.listed.records(number)):
            name, size = record[:33], OBJECT.unpack(record)[2]
            for position in (*old.get(name, ()), *young.get(name, ())):
                written.remaining[position] += 1
            if damaged and ObjectRef.parse(name[1:]) in damaged:
                found.known.add(ObjectRef.parse(name[1:]))
            if name in marked or (name[0] != RELOCATION and name[1:17] in census.live):
                continue
            if name in old:
                found.delete(record, size)
            elif name in young:
                found.waiting += 1
            else:
                found.write_down(record, size)
        if damaged:
            found.known |= damaged & {ObjectRef.parse(raw) for raw in named}
            found.known |= damaged & {ObjectRef.parse(name[1:]) for name in marked}
    return found


def reached(census: Census, following: Following, number: int, named: set[bytes]) -> set[bytes]:
    """Return the objects of one file that must stay: what maps name, and the packs that it was moved to.

    A record of where chunks went stays as long as a map names the pack that it is about.
    """
    packs = (named - following.gone(number)) | following.sources(number).keys()
    packs |= set(census.promised.records(number))
    marked = {bytes((PACK,)) + raw for raw in packs}
    marked |= {bytes((MAP,)) + raw for raw in census.marking.maps.records(number)}
    return marked | {bytes((RELOCATION,)) + raw for raw in named}


def _numbers(table: Partitions, number: int) -> dict[bytes, Sequence[int]]:
    records: dict[bytes, list[int]] = {}
    for record in table.records(number):
        records.setdefault(record[:33], []).append(int.from_bytes(record[33:], "little"))
    return dict(records)
