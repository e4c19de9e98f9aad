"""Compact packs that are mostly dead, or small and many: what lives in them goes into new ones, under the newest key.

A compaction is a writer like any other: it announces an intent, writes packs under it and commits by one object
(`moves.py`). Map entries are not touched; readers that miss an old pack follow its relocation record. The old pack goes
in a later run, when a fresh mark has proved that the record knows all that lives. What must never happen here: a pack
deleted, a chunk moved that did not open.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from orchestrator.fence import Fence
from orchestrator.repository.census import Census
from orchestrator.repository.crypto import Bytes, ObjectCipher
from orchestrator.repository.errors import Damaged, ObjectMissing, UnsupportedFormat
from orchestrator.repository.following import Following
from orchestrator.repository.intent import Intent
from orchestrator.repository.layout import PACK_TARGET, SLOT_UNIT, Kind, ObjectRef
from orchestrator.repository.liveness import LENGTH_SHIFT, length_of, slot_of
from orchestrator.repository.moves import Promise, commit_compaction, put_moves, settle
from orchestrator.repository.pack import LENGTH_MASK, FooterEntry, PackBuilder, open_footer, read_footer
from orchestrator.repository.partitions import COUNT
from orchestrator.repository.record import seal_record
from orchestrator.repository.relocation import Moves, open_relocation
from orchestrator.repository.vault import Vault

if TYPE_CHECKING:
    from orchestrator.repository.liveness import Words

RUN_CHUNKS = 1_000_000
"""Chunks that one run moves at most (256 GiB at 256 KiB): what waits is in memory. The next run goes on."""
BATCH_CHUNKS = 20_000
"""Chunks of one compaction: so much work at most is lost when it is cut off."""
SMALL_SHARE = 32
"""A pack is small if it has less than this part of what packs aim at (1.5 MiB)."""
SMALL_COUNT = 16
"""So many small packs are brought together. What comes out is rarely small, so that a chunk is moved for that once."""
READ_BYTES = 8 * 1024 * 1024
WHOLE_BYTES = 4 * 1024 * 1024
_PLACE = 6


class Choice(msgspec.Struct, frozen=True):
    """A pack to compact."""

    pack: ObjectRef
    size: int
    places: bytes
    """6 bytes for each chunk that lives: slot, sealed length, codec."""
    sources: tuple[tuple[ObjectRef, int], ...]
    """Old packs whose records point here, with the record's generation; maps name the pack itself: (it, 0)."""

    @property
    def count(self) -> int:
        """Return how many chunks live in it."""
        return len(self.places) // _PLACE

    def slots(self) -> list[tuple[int, int]]:
        """Return (slot, sealed length) of what lives, ascending."""
        words = (int.from_bytes(self.places[at : at + _PLACE], "little") for at in range(0, len(self.places), _PLACE))
        return sorted((slot_of(word), length_of(word)) for word in words)


class Compaction(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What compacting did."""

    packs: int = 0
    """Packs whose chunks were moved."""
    written: int = 0
    """Bytes of new packs."""
    freed: int = 0
    """Bytes of the old packs, which go in a later run."""
    unreadable: int = 0
    """Packs left alone because something in them did not open."""


def choose(
    census: Census, following: Following, damaged: set[ObjectRef], *, pack_size: int = PACK_TARGET
) -> list[Choice]:
    """Choose packs that are under half alive, and small ones when there are many: a restore takes a request for each.

    Packs of live intents, and damaged ones, are left alone.
    """
    chosen = _Chosen(pack_size // SMALL_SHARE)
    for number in range(COUNT):
        sizes = {raw: size for raw, size in following.sizes(number) if raw[:16] not in census.live}
        gone, sources = following.gone(number), following.sources(number)
        named = set(census.marking.packs.records(number)) & sizes.keys() - gone
        by_key: dict[bytes, list[bytes]] = {}
        for raw in named | (sources.keys() & sizes.keys()):
            if ObjectRef.parse(raw) not in damaged:
                by_key.setdefault(raw[16:24], []).append(raw)
        if not by_key:
            continue
        moved = {key: places for key, places in following.moved.packs(number) if key in by_key}
        direct = ((key, places) for key, places in census.chunks.packs(number) if key in by_key)
        for key, places in _union(moved, direct, {raw[16:24] for raw in named}):
            for raw in by_key[key]:
                own = ((ObjectRef.parse(raw), 0),) if raw in named else ()
                chosen.look(ObjectRef.parse(raw), sizes[raw], places, (*own, *sources.get(raw, ())))
    return chosen.all()


class _Chosen:
    """Packs to compact, as many as one run moves."""

    def __init__(self, small: int) -> None:
        self._small = small
        self._dying: list[Choice] = []
        self._tiny: list[Choice] = []
        self._room = self._tiny_room = RUN_CHUNKS

    def look(self, pack: ObjectRef, size: int, places: Words, sources: tuple[tuple[ObjectRef, int], ...]) -> None:
        """Take a pack, or leave it."""
        import numpy as np

        lengths = places >> np.uint64(LENGTH_SHIFT) & np.uint64(LENGTH_MASK)
        alive = int((-(-lengths.astype(np.int64) // SLOT_UNIT)).sum()) * SLOT_UNIT
        dying = alive * 2 < size
        if not dying and size >= self._small:
            return
        # The low six bytes of each word say it all.
        kept = np.ascontiguousarray(places).astype("<u8").view(np.uint8).reshape(-1, 8)[:, :_PLACE].tobytes()
        if dying and len(places) <= self._room:
            self._room -= len(places)
            self._dying.append(Choice(pack, size, kept, sources))
        elif not dying and len(places) <= self._tiny_room:
            self._tiny_room -= len(places)
            self._tiny.append(Choice(pack, size, kept, sources))

    def all(self) -> list[Choice]:
        """Return them: small ones only if they are many, and as far as the dying ones leave room."""
        chosen = self._dying
        if len(self._tiny) >= SMALL_COUNT:
            for choice in self._tiny:
                if choice.count <= self._room:
                    self._room -= choice.count
                    chosen.append(choice)
        return chosen


def _union(
    moved: dict[bytes, Words], direct: Iterator[tuple[bytes, Words]], named: set[bytes]
) -> Iterator[tuple[bytes, Words]]:
    import numpy as np

    for key, places in direct:
        if key in named:
            other = moved.pop(key, None)
            yield key, places if other is None else np.union1d(places, other)
    yield from moved.items()


async def compact(
    vault: Vault, choices: Sequence[Choice], fence: Fence, *, now: datetime, pack_size: int = PACK_TARGET
) -> Compaction:
    """Move what lives in the chosen packs; may be cut off anywhere. Raises LeaseStale, the store's Retryable errors."""
    total = Compaction()
    batch: list[Choice] = []
    count = 0
    for position, choice in enumerate(choices):
        batch.append(choice)
        count += choice.count
        if count >= BATCH_CHUNKS or position == len(choices) - 1:
            done = await _Batch(vault, fence, now, pack_size).run(batch)
            total = Compaction(
                packs=total.packs + done.packs,
                written=total.written + done.written,
                freed=total.freed + done.freed,
                unreadable=total.unreadable + done.unreadable,
            )
            batch, count = [], 0
    return total


class _Batch:
    """One compaction: an intent, its packs, its commit."""

    def __init__(self, vault: Vault, fence: Fence, now: datetime, pack_size: int) -> None:
        self._vault, self._fence, self._now, self._pack_size = vault, fence, now, pack_size
        self._id = str(uuid.uuid4())
        self._buffer: bytearray | None = None
        self._pack: PackBuilder | None = None
        self._places: dict[ObjectRef, Moves] = {}
        self._written = self._unreadable = 0

    async def run(self, choices: Sequence[Choice]) -> Compaction:
        """Copy, commit, settle."""
        vault = self._vault
        name = vault.names.intent(self._id)
        intent = Intent(id=self._id, manifest_key=vault.names.compaction(self._id), lineage="", created=self._now)
        self._fence.check()
        await vault.store.put_new(name, seal_record(vault, Kind.INTENT, name, intent))
        moved = [choice for choice in choices if await self._copy(choice)]
        await self._put_pack()
        promises = await self._promises(moved)
        if not promises:
            # Nothing was told to anybody: the intent ends by its age, and takes what was written with it.
            return Compaction(unreadable=self._unreadable, written=self._written)
        self._fence.check()
        await put_moves(vault, self._id, promises)
        if not await commit_compaction(vault, self._id, packs=len(promises), now=self._now):
            return Compaction(unreadable=self._unreadable, written=self._written)
        await settle(vault, self._id, promises, self._fence)
        return Compaction(
            packs=len(moved),
            written=self._written,
            freed=sum(choice.size for choice in moved),
            unreadable=self._unreadable,
        )

    async def _copy(self, choice: Choice) -> bool:
        """Copy a pack's live chunks; False (and none of them counts) when one doesn't open or the pack is gone."""
        vault, places = self._vault, Moves()
        if choice.sources[0][0] == choice.pack and await open_relocation(vault, choice.pack) is not None:
            # Another run moved it since the plan was made.
            return False
        try:
            async for part in _parts(vault, choice):
                plain = await asyncio.to_thread(part.open)
                for line, data in zip(part.lines, plain, strict=True):
                    places[line.slot] = await self._add(line, data)
        except ObjectMissing:
            return False
        except (Damaged, UnsupportedFormat):
            self._unreadable += 1
            return False
        self._places[choice.pack] = places
        return True

    async def _add(self, line: FooterEntry, data: bytes) -> tuple[ObjectRef, int]:
        while True:
            if self._pack is None:
                self._buffer = self._buffer or bytearray(self._pack_size)
                self._pack = PackBuilder(self._vault, self._id, self._buffer)
            placed = self._pack.add(line.chunk, line.id, data, line.codec)
            if placed is not None:
                return placed.pack, placed.slot
            await self._put_pack()

    async def _put_pack(self) -> None:
        if self._pack is None or not self._pack.count:
            return
        data = self._pack.finish()
        self._fence.check()
        await self._vault.store.put_new(self._pack.name, data)
        self._written += len(data)
        self._pack = None

    async def _promises(self, moved: Sequence[Choice]) -> list[Promise]:
        """Say for every old pack that maps name where its chunks are from now on."""
        promises: list[Promise] = []
        own = {choice.pack for choice in moved if choice.sources[0][0] == choice.pack}
        for old in dict.fromkeys(old for choice in moved for old, _ in choice.sources):
            if old in own:
                promises.append(Promise(old, 1, self._places[old]))
                continue
            known = await open_relocation(self._vault, old)
            if known is None:
                continue
            # What is dead stays in the record, pointing where it was: nothing that an older one knew is ever left out.
            moves = {slot: self._places.get(to[0], {}).get(to[1], to) for slot, to in known.moves.items()}
            if moves != known.moves:
                promises.append(Promise(old, known.generation + 1, moves))
        return promises


class _Part:
    """Some of a pack's live chunks, as fetched."""

    def __init__(self, cipher: ObjectCipher, lines: Sequence[FooterEntry], pieces: Sequence[Bytes]) -> None:
        self._cipher, self.lines, self._pieces = cipher, lines, pieces

    def open(self) -> list[bytes]:
        """Return the compressed chunks; Damaged. CPU work."""
        return [self._cipher.open(line.slot, piece) for line, piece in zip(self.lines, self._pieces, strict=True)]


async def _parts(vault: Vault, choice: Choice) -> AsyncIterator[_Part]:
    """Fetch a pack's live chunks, some MiB at once; a small pack whole. Raises ObjectMissing, Damaged."""
    name = vault.names.pack(choice.pack)
    whole: memoryview | None = None
    if choice.size <= WHOLE_BYTES:
        whole = memoryview(await vault.store.get(name))
        head, footer = bytes(whole[:SLOT_UNIT]), open_footer(vault, choice.pack, whole)
    else:
        head = await vault.store.get_range(name, 0, SLOT_UNIT)
        footer = await read_footer(vault, choice.pack, choice.size)
    cipher = vault.cipher(Kind.PACK, name, head)
    known = {line.slot: line for line in footer}
    lines: list[FooterEntry] = []
    for slot, length in choice.slots():
        line = known.get(slot)
        if line is None or line.length != length:
            raise Damaged(name, f"its footer doesn't know the chunk at slot {slot}")
        lines.append(line)
    for group in _groups(lines):
        ranges = [(line.slot * SLOT_UNIT, line.length) for line in group]
        if whole is not None:
            yield _Part(cipher, group, [whole[start : start + length] for start, length in ranges])
        else:
            yield _Part(cipher, group, await vault.store.get_ranges(name, ranges))


def _groups(lines: Sequence[FooterEntry]) -> Iterator[list[FooterEntry]]:
    """Cut into parts that span some MiB of the pack at most: near chunks are fetched with what is between them."""
    group: list[FooterEntry] = []
    for line in lines:
        if group and (line.slot - group[0].slot) * SLOT_UNIT + line.length > READ_BYTES:
            yield group
            group = []
        group.append(line)
    if group:
        yield group
