"""Copy one shard of a planned recovery point from a volume into the repository, and commit the point.

Reads only the plan's chunks, with many threads, in flat memory; the event loop serves the store. Killed at any line
and started again it finds the packs of its earlier tries and copies the rest. Nothing is committed before everything
that it needs is in the store.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

import msgspec

from orchestrator.blocks.copying import Reader, Result, Shop, Work
from orchestrator.blocks.crew import Channel, Crew, Sequence
from orchestrator.blocks.equal import EqualChunks, Place, record
from orchestrator.blocks.errors import PlanMismatch
from orchestrator.blocks.others import Others
from orchestrator.blocks.plan import add_resized
from orchestrator.blocks.source import Source
from orchestrator.blocks.tally import Tallies
from orchestrator.blocks.throttle import Throttle
from orchestrator.blocks.units import UNIT_BYTES, Unit, cut
from orchestrator.errors import MESSAGE_LIMIT, TidemarkError
from orchestrator.extents import ChunkSet
from orchestrator.repository import neighbours
from orchestrator.repository.chunkmap import MapReader
from orchestrator.repository.damage import DamageIndex, load_damage
from orchestrator.repository.ending import outcome
from orchestrator.repository.errors import Damaged, ObjectMissing, ShardsMissing, UnsupportedFormat
from orchestrator.repository.intent import Intent, open_intent
from orchestrator.repository.layout import LEAF_CHUNKS, PACK_TARGET, ObjectRef, intent_bytes
from orchestrator.repository.manifest import PointRef, PointStats
from orchestrator.repository.mapbuilder import ShardBuilder
from orchestrator.repository.pack import Entry, read_footer
from orchestrator.repository.packwriter import PackWriter
from orchestrator.repository.plan import Plan, open_plan, shard_range
from orchestrator.repository.point import commit_planned, existing_point
from orchestrator.repository.salvage import Salvage, salvage
from orchestrator.repository.shard import Shard, open_shard, put_shard
from orchestrator.repository.vault import Vault

log = logging.getLogger("tidemark.mover")

READ_BYTES = 64 << 20
"""Bytes of the volume that all readers together have in hand; with many readers each takes smaller units."""
LOOKUP_CHUNKS = 1024
"""Chunks whose base entries are looked up at once: few requests, bounded memory."""


class CopyOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How hard to work."""

    readers: int = 4
    bandwidth_limit: int | None = None
    """Bytes per second read from the volume; the pods of a point in several shards share it."""
    iops_limit: int | None = None
    """Reads of at most 256 KiB per second, shared likewise."""
    equal_chunks: bool = True
    """Store equal chunks of the point once."""
    pack_bytes: int = PACK_TARGET


class Copied(msgspec.Struct, frozen=True):
    """What a backup came to."""

    shard: Shard
    point: PointRef | None
    """None: other shards aren't finished yet; whoever finishes the last one commits."""


async def backup(
    vault: Vault,
    intent_id: str,
    device: str | Path,
    *,
    shard: int = 0,
    options: CopyOptions | None = None,
    tallies: Tallies | None = None,
    intent: Intent | None = None,
    plan: Plan | None = None,
) -> Copied | PointRef:
    """Copy a shard, then commit the point if it was the last. A point committed already is returned at once.

    `intent`, `plan`: what is stored, when the caller has just put or read it. Cancelling stops in bounded time and
    leaves what is stored for the next try. Raises what the store, the device or the repository has against it, as one
    typed error; PointCancelled when the point was ended meanwhile, however long ago.
    """
    try:
        intent = intent or await open_intent(vault, intent_id)
        return await _backup(vault, intent, device, shard, options or CopyOptions(), tallies or Tallies(), plan)
    except (Damaged, ObjectMissing, UnsupportedFormat):
        # Whoever was stopped for long finds things gone that its point no longer needs, or that nobody needs any more.
        done = await outcome(vault, intent_id, intent.manifest_key if intent else None)
        if done is None:
            raise
        return done


async def _backup(
    vault: Vault,
    intent: Intent,
    device: str | Path,
    shard: int,
    options: CopyOptions,
    tallies: Tallies,
    plan: Plan | None,
) -> Copied | PointRef:
    intent_id = intent.id
    finished = await open_shard(vault, intent_id, shard)
    if plan is None:
        plan = await open_plan(vault, intent_id)
    if finished is not None or plan.chunks():
        # With nothing to read there is nothing to save by looking: the put of the manifest says it.
        done = await existing_point(vault, intent.manifest_key)
        if done is not None:
            return done
    if finished is None:
        finished = await copy_shard(vault, intent, plan, device, shard, options, tallies)
    with suppress(ShardsMissing):
        return Copied(finished, await commit_planned(vault, intent, plan, shard=finished))
    # The others aren't finished yet, or their records were tidied away after the end.
    return await existing_point(vault, intent.manifest_key) or Copied(finished, None)


async def copy_shard(
    vault: Vault, intent: Intent, plan: Plan, device: str | Path, number: int, options: CopyOptions, tallies: Tallies
) -> Shard:
    """Copy one shard and put its record; return the record that counts (another pod's, if that was first)."""
    started = time.perf_counter()
    if not 0 <= number < plan.shards:
        raise PlanMismatch(f"shard {number} of a plan with {plan.shards}")
    with Source.open(device, expected_size=plan.record.volume_size) as source:
        try:
            copier = await _Copier.prepare(vault, intent, plan, source, number, options, tallies)
            tallies.new().add_seconds("open", time.perf_counter() - started)
            shard = await copier.copy()
        except _EarlierUnreadable as error:
            if await existing_point(vault, intent.manifest_key) is not None:
                raise error.cause from error  # committed by another, and the earlier point was swept since
            log.warning("the earlier point can't be read, so it is done without it: %s", error.cause)
            tallies.restart()
            copier = await _Copier.prepare(vault, intent, plan, source, number, options, tallies, without=error.cause)
            shard = await copier.copy()
    return await put_shard(vault, intent.id, shard)


class _EarlierUnreadable(Exception):
    """The map of the base, or of the point to compare with, is damaged or gone. Never leaves this module."""

    def __init__(self, cause: TidemarkError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@contextmanager
def _reading_earlier() -> Iterator[None]:
    """Tell damage of the earlier point's map from all other errors: the copy can do without it."""
    try:
        yield
    except (Damaged, ObjectMissing, UnsupportedFormat) as error:
        raise _EarlierUnreadable(error) from error


def planned_in(chunks: ChunkSet, first: int, stop: int) -> tuple[int, int]:
    """Return how many chunks of `[first, stop)` are planned, and their bytes, in one walk."""
    count = end = 0
    for start, end in chunks.runs(first, stop):
        count += end - start
    return count, count * chunks.chunk_size - max(end * chunks.chunk_size - chunks.volume_size, 0)


class _Copier:
    """One shard on its way."""

    def __init__(
        self,
        vault: Vault,
        plan: Plan,
        chunks: ChunkSet,
        source: Source,
        number: int,
        options: CopyOptions,
        tallies: Tallies,
        known: MapReader | None,
        found: Salvage,
        planned: tuple[int, int],
        without: TidemarkError | None,
        others: Others,
    ) -> None:
        record = plan.record
        self._vault, self._plan, self._chunks, self._known, self._found = vault, plan, chunks, known, found
        self._tallies, self._options, self._number = tallies, options, number
        self._first, self._stop = shard_range(chunks.chunk_count, plan.shards, number)
        self._loop = asyncio.get_running_loop()
        self._tally = tallies.new()
        self._without, self._others = without, others
        self._inherits = plan.mode == "delta" and without is None
        self._reused: list[int] = []
        """Chunks that an earlier try stored, of which the base was not asked yet."""
        self._says_all = plan.mode == "delta"
        self._uncounted = False
        """Whether what the base held somewhere could not be read."""
        self._builder = ShardBuilder(
            vault,
            record.point_id,
            volume_size=record.volume_size,
            chunk_size=record.chunk_size,
            base=known if self._inherits else None,
            number=number,
            shards=plan.shards,
        )
        tallies.total_bytes = planned[1]
        self._packs = PackWriter(vault, record.point_id, self._loop, target=options.pack_bytes)
        self._crew = Crew("the backup")
        self._map_turn = asyncio.Lock()
        self._abort: Future[None] | None = None
        window = options.readers * 4
        unit_bytes = max(record.chunk_size, min(UNIT_BYTES, READ_BYTES // options.readers))
        self._units = -(-planned[0] // (unit_bytes // record.chunk_size))
        """Units of work at most: what an earlier try stored needs none."""
        self._shop = Shop(
            source=source,
            chunk_size=record.chunk_size,
            keys=vault.keys,
            throttle=Throttle(
                options.bandwidth_limit and options.bandwidth_limit / plan.shards,
                options.iops_limit and options.iops_limit / plan.shards,
                wait=self._crew.pause,
            ),
            equal=EqualChunks(planned[0] + others.count, self._recall) if options.equal_chunks else None,
            packs=self._packs,
            todo=Channel(self._crew, window),
            done=Sequence(self._crew, window),
            unit_bytes=unit_bytes,
            skip_same=self._inherits and known is not None and known.root.volume_size == record.volume_size,
        )

    @classmethod
    async def prepare(
        cls,
        vault: Vault,
        intent: Intent,
        plan: Plan,
        source: Source,
        number: int,
        options: CopyOptions,
        tallies: Tallies,
        *,
        without: TidemarkError | None = None,
    ) -> _Copier:
        """Open what the intent builds on, and find what earlier tries left.

        `without`: why it can't be read. A delta then reads everything, the other rungs compare with nothing.
        """
        known, root, chunks = None, None, plan.chunks()
        ref = intent.base if plan.mode == "delta" else intent.compare
        if plan.mode == "delta" and ref is None:
            raise PlanMismatch("a delta without a base")
        if without is not None:
            if plan.mode == "delta":
                chunks.add_chunks(0, chunks.chunk_count)
        elif ref is not None:
            # The intent keeps the base's map alive, even when its manifest was pruned since.
            root = intent.roots[intent.points.index(ref)]
            if root.chunk_size != plan.record.chunk_size:
                if plan.mode == "delta":
                    raise PlanMismatch("a delta in another chunk size than its base")
                root = None
            elif plan.mode == "delta":
                add_resized(chunks, root.volume_size)
        shard = shard_range(chunks.chunk_count, plan.shards, number)
        planned = await asyncio.to_thread(planned_in, chunks, *shard)
        # Who reads nothing refers to nothing anew, and no earlier try can have stored anything.
        found = await salvage(vault, plan.record.point_id) if planned[0] else Salvage()
        worthwhile = neighbours.worthwhile(intent, plan.record.chunk_size, planned[0]) if options.equal_chunks else []
        damage = await load_damage(vault) if planned[0] and (root or worthwhile) else DamageIndex()
        if root is not None:
            with _reading_earlier():
                known = MapReader(vault, root, avoid=damage)
        others = Others(worthwhile, damage)
        return cls(vault, plan, chunks, source, number, options, tallies, known, found, planned, without, others)

    async def copy(self) -> Shard:
        """Run the threads, wait for the last uploads, and return the finished shard, not put yet."""
        started = time.perf_counter()
        if len(self._found) and self._shop.equal is not None:
            await asyncio.to_thread(self._remember_salvaged, self._shop.equal)
        if self._shop.equal is not None and self._others.points:
            with self._tally.stage("others"):
                await self._others.remember(self._vault, self._shop.equal)
        self._crew.add("feeder", self._feed)
        self._crew.add("mapper", self._map)
        for number in range(min(self._options.readers, self._units)):
            self._crew.add(f"reader-{number}", Reader(self._shop, self._tallies.new()).run)
        self._crew.watch(self._stop_uploads)
        try:
            await self._crew.run()
            with self._tally.stage("upload"):
                await self._packs.finish()
        except BaseException:  # cancelled or failed: no upload may outlive this call
            with suppress(asyncio.CancelledError):
                await self._packs.abort()
            raise
        between = time.perf_counter()
        self._tally.add_seconds("copy", between - started)
        with self._tally.stage("map"), _reading_earlier():
            shard = await self._builder.finish(self._stats())
        seconds = {**shard.stats.seconds, "commit": round(time.perf_counter() - between, 6)}
        shard = msgspec.structs.replace(shard, stats=msgspec.structs.replace(shard.stats, seconds=seconds))
        shard = msgspec.structs.replace(shard, uncounted=self._uncounted)
        if self._says_all and self._without is not None:
            message = f"The base can't be read, so the whole volume was read instead: {self._without}"
            shard = msgspec.structs.replace(shard, fallback="BaseIncomplete", message=message[:MESSAGE_LIMIT])
        return shard

    def _stop_uploads(self) -> None:
        self._abort = asyncio.run_coroutine_threadsafe(self._packs.abort(), self._loop)

    def _feed(self) -> None:
        """Hand out units with what the base has there. Runs in its own thread."""
        runs = self._chunks.runs(self._first, self._stop)
        units = cut(runs, self._chunks.chunk_size, unit_bytes=self._shop.unit_bytes, skip=self._salvaged)
        count = 0
        while batch := list(self._batch(units)):
            known: dict[int, Entry] = {}
            if self._known is not None:
                with self._tally.stage("lookup"):
                    known = self._crew.call(self._lookup([i for unit in batch for i in unit.indexes()]))
                self._forget_base([i for unit in batch for i in unit.indexes()], known)
            for unit in batch:
                self._shop.done.admit(unit.number)
                self._shop.todo.put(Work(unit, [known.get(index) for index in unit.indexes()]))
            count += len(batch)
        self._forget_base([], {})
        self._shop.todo.close()
        self._shop.done.end(count)

    def _forget_base(self, indexes: list[int], known: dict[int, Entry]) -> None:
        """Count what the base held in chunks that are settled anew as no longer held."""
        if not self._inherits or self._known is None:
            return
        reused, self._reused = self._reused, []
        missing = indexes if self._known.avoid else []  # what is known as damaged counted all the same
        asked = [*reused, *(i for i in missing if i not in known)]
        before = self._crew.call(self._lookup_harmed(asked)) if asked else {}
        size, volume_size = self._chunks.chunk_size, self._known.root.volume_size
        for index in (*before, *(i for i in indexes if i in known)):
            self._tally.held -= min(size, volume_size - index * size)

    async def _lookup(self, indexes: list[int]) -> dict[int, Entry]:
        assert self._known is not None
        async with self._map_turn:  # a map reader is used by one task at a time
            with _reading_earlier():
                return await self._known.lookup(indexes)

    async def _lookup_harmed(self, indexes: list[int]) -> dict[int, Entry]:
        """Return what the base has there, damaged or not; a page known as damaged says nothing, and that is noted."""
        assert self._known is not None
        if not self._known.avoid:
            return await self._lookup(indexes)
        try:
            return await MapReader(self._vault, self._known.root).lookup(indexes)
        except (Damaged, ObjectMissing, UnsupportedFormat):
            self._uncounted = True
            return {}

    async def _flush(self, below: int) -> None:
        async with self._map_turn:
            with _reading_earlier():
                await self._builder.flush_below(below)

    def _batch(self, units: Iterator[Unit]) -> Iterator[Unit]:
        most = 1 if self._known is None else max(1, LOOKUP_CHUNKS * self._chunks.chunk_size // self._shop.unit_bytes)
        return islice(units, most)

    def _salvaged(self, index: int) -> bool:
        """Say whether an earlier try stored this chunk; if so it goes into the map now."""
        entry = self._found.get(index)
        if entry is None:
            return False
        self._set(index, entry)
        self._tally.chunks_reused += 1
        self._reused.append(index)
        length = min(self._chunks.chunk_size, self._chunks.volume_size - index * self._chunks.chunk_size)
        self._tally.done += length
        self._tally.held += length
        self._tally.changed += length
        return True

    def _remember_salvaged(self, equal: EqualChunks) -> None:
        for first, stop in self._chunks.runs(self._first, self._stop):
            for index in range(first, stop):
                entry = self._found.get(index)
                if entry is not None:
                    equal.add(entry)

    def _map(self) -> None:
        """Put results into the map in order of index, and write pages that are complete. Runs in its own thread."""
        flushed = self._first
        while (done := self._shop.done.take()) is not None:
            after, results = done
            for index, result in results:
                entry = self._settled(result)
                if entry is not None:
                    self._set(index, entry)
                elif self._says_all:  # the map of the other rungs starts empty and has a hole there already
                    self._builder.clear(index)
            if after // LEAF_CHUNKS > flushed // LEAF_CHUNKS:
                with self._tally.stage("map"):
                    self._crew.call(self._flush(after))
                flushed = after

    def _settled(self, result: Result) -> Entry | None:
        if not isinstance(result, Place):
            return result
        while result.entry is None:  # another thread is sealing the first copy this very moment
            self._crew.pause(0.0005)
        return result.entry

    def _set(self, index: int, entry: Entry) -> None:
        self._builder.set(index, entry.id, entry.pack, entry.slot, entry.length, entry.codec)

    def _recall(self, ref: ObjectRef) -> bytes | None:
        """Return the records of a pack; None while it is still on its way, none of a neighbour's that can't be read.

        What is wrong with another volume's pack must not stop this one's backup, nor be asked for at every chunk: a
        chunk without a record is stored once more. A pack of this point is another matter: the point refers to it
        already.
        """
        return self._crew.call(self._read_records(ref))

    async def _read_records(self, ref: ObjectRef) -> bytes | None:
        own = ref.intent == intent_bytes(self._plan.record.point_id)
        info = await self._vault.store.head(self._vault.names.pack(ref))
        if info is None:
            return None if own else b""
        try:
            footer = await read_footer(self._vault, ref, info.size)
        except (Damaged, ObjectMissing, UnsupportedFormat):
            if own:
                raise
            return b""
        return b"".join(record(one.slot, one.id, one.length, one.codec) for one in footer)

    def _stats(self) -> PointStats:
        total, plan = self._tallies.sum(), self._plan
        return PointStats(
            volume=plan.record.volume_size,
            allocated=total.held,
            changed=total.changed,
            read=total.read,
            uploaded=self._packs.bytes,
            chunks_read=total.chunks_read,
            chunks_zero=total.chunks_zero,
            chunks_reused=total.chunks_reused,
            chunks_stored=total.chunks_stored,
            packs=self._packs.packs,
            seconds={stage: round(seconds, 6) for stage, seconds in total.seconds.items()},
        )
