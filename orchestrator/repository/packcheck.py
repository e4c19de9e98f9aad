"""Check packs against what maps say about them: there, long enough, and (on request) every chunk as it must be."""

from __future__ import annotations

import asyncio
import functools
import random
import zlib
from collections.abc import Callable, Sequence, Set
from typing import NamedTuple

from orchestrator.repository.crypto import Bytes
from orchestrator.repository.damage import DamageIndex
from orchestrator.repository.errors import Damaged, ObjectMissing, UnsupportedFormat
from orchestrator.repository.layout import SLOT_UNIT, Kind, ObjectRef
from orchestrator.repository.pack import TRAILER, Entry, open_footer
from orchestrator.repository.packreader import PackReader, Sealed
from orchestrator.repository.relocation import open_relocation
from orchestrator.repository.secondlook import SecondLook
from orchestrator.repository.vault import Vault

READ_BYTES = 16 * 1024 * 1024
WHOLE_LIMIT = 64 * 1024 * 1024
"""A longer pack (none of ours is) is checked chunk by chunk, to bound memory."""
Pace = Callable[[int], float]
"""Told how many bytes are read next, says for how many seconds to wait before."""


class PackCheck(NamedTuple):
    """What is wrong with a pack. `slots` are the chunks that no reader gets; empty: none, or (`whole`) all of them."""

    what: str = ""
    slots: tuple[int, ...] = ()
    whole: bool = False
    bytes_read: int = 0
    chunks: int = 0


class Sample:
    """Which chunks are read: a share of them, and whatever is on record as damaged."""

    def __init__(
        self,
        share: float,
        turn: int | None = None,
        doubted: DamageIndex | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """`share`: 0 looks at presence and size only, 1 reads every byte, between: that share of the chunks.

        With `turn` the share is 1/n, and n turns one after the other take every chunk once.
        """
        self.share, self._turn = share, turn
        self._turns = max(1, round(1 / share)) if share > 0 else 0
        self._doubted = doubted or DamageIndex()
        # Which chunks a sample takes is no secret.
        self._rng = rng or random.Random()  # noqa: S311

    def takes(self, entry: Entry) -> bool:
        """Say whether a chunk is to be read."""
        if self.share >= 1 or self._doubted.touches(entry):
            return True
        if self._turn is None or not self._turns:
            return self._rng.random() < self.share
        place = zlib.crc32(entry.slot.to_bytes(4, "little"), zlib.crc32(entry.pack.random))
        return place % self._turns == self._turn % self._turns


class PackChecker:
    """Checks packs; several checks may be under way at once."""

    def __init__(
        self, vault: Vault, sample: Sample, chunk_limit: int, pace: Pace | None = None, again: SecondLook | None = None
    ) -> None:
        """Check packs of a vault. `again`: told what opened at its second reading only."""
        self._vault, self._sample, self._pace, self._again = vault, sample, pace, again or SecondLook()
        self._chunk_limit, self._reader = chunk_limit, PackReader(vault, chunk_limit)
        self.targets: set[ObjectRef] = set()
        """Packs that moved chunks went to, where every byte is to be read: `check_target` reads what no map names."""

    def weight(self, size: int | None) -> int:
        """Return the most bytes of a pack that `check` has in memory at once. `size` as there."""
        if self._sample.share <= 0:
            return 0  # what is on record as damaged is read all the same: few chunks
        return size if self._sample.share >= 1 and size is not None and size <= WHOLE_LIMIT else READ_BYTES

    async def check(self, ref: ObjectRef, entries: Sequence[Entry], size: int | None) -> PackCheck:
        """Check what maps name in a pack. `size` is as listed, None when the pack isn't there."""
        if size is None:
            return await self._gone(ref, entries)
        beyond = tuple(e.slot for e in entries if e.slot * SLOT_UNIT + e.length > size)
        if beyond:
            checked = await self._chunks([e for e in self._taken(entries) if e.slot not in beyond])
            return checked._replace(what=f"it is truncated at {size} bytes", slots=(*beyond, *checked.slots))
        if self._sample.share >= 1 and size <= WHOLE_LIMIT:
            try:
                return await self._whole(ref, entries, size)
            except ObjectMissing:
                # Compacted, or deleted, since it was seen.
                return await self._gone(ref, entries, asked=True)
        return await self._chunks(self._taken(entries))

    async def _gone(self, ref: ObjectRef, entries: Sequence[Entry], *, asked: bool = False) -> PackCheck:
        """Check a pack that isn't there: its chunks may have been moved, and who can't read where to has lost them.

        `asked`: the store was asked for the pack itself. A listing may be behind, and what it leaves out isn't missing.
        """
        try:
            moved = await self._again.at(functools.partial(open_relocation, self._vault, ref))
        except (Damaged, UnsupportedFormat, ObjectMissing) as error:
            return PackCheck(f"it was moved, and the record of it can't be read: {error}", whole=True)
        if moved is None:
            info = None if asked else await self._vault.store.head(self._vault.names.pack(ref))
            if info is not None:
                return await self.check(ref, entries, info.size)
            return PackCheck("it is missing", whole=True)
        if self._sample.share >= 1:
            self.targets.update(moved.targets)
        return await self._chunks(self._taken(entries))

    async def check_target(self, ref: ObjectRef) -> PackCheck:
        """Check header, footer, padding and every chunk of a pack that compaction wrote."""
        name = self._vault.names.pack(ref)
        info = await self._vault.store.head(name)
        try:
            if info is None:
                raise ObjectMissing(name)
            if info.size > WHOLE_LIMIT:
                return PackCheck(f"it has {info.size} bytes, which is more than compaction writes", whole=True)
            what = await asyncio.to_thread(self._rest, ref, await self._read(name, info.size))
            return PackCheck(await self._rest_again(ref, info.size) if what else "", bytes_read=info.size)
        except ObjectMissing:
            return PackCheck()  # chunks that live in it were found missing already

    def _taken(self, entries: Sequence[Entry]) -> list[Entry]:
        return [entry for entry in entries if self._sample.takes(entry)]

    async def _chunks(self, entries: Sequence[Entry]) -> PackCheck:
        bad: list[int] = []
        read, what = 0, ""
        start = 0
        while start < len(entries):
            stop, size = start, 0
            while stop < len(entries) and size < READ_BYTES:
                size += entries[stop].length
                stop += 1
            failed = await self._slice(entries[start:stop])
            bad.extend(slot for slot, _ in failed)
            what = what or next((text for _, text in failed), "")
            read, start = read + size, stop
        return PackCheck(what, tuple(bad), bytes_read=read, chunks=len(entries))

    async def _slice(self, entries: Sequence[Entry]) -> list[tuple[int, str]]:
        """Return (slot, what) of the chunks that don't open; each of them was read twice."""
        await self.wait(sum(entry.length for entry in entries))
        try:
            # What fails here is the record that says where the pack went: chunks are opened below.
            sealed = await self._again.at(functools.partial(self._reader.fetch, entries[0].pack, entries))
        except (Damaged, ObjectMissing, UnsupportedFormat) as error:
            return [(entry.slot, str(error)) for entry in entries]
        doubtful = await asyncio.to_thread(self._open_all, sealed)
        if doubtful:
            # The old one may keep what it concluded from the wrong bytes: which epoch's key the pack was sealed with.
            self._reader = PackReader(self._vault, self._chunk_limit)
        failed = []
        for entry, name in doubtful:
            try:
                await self._reader.read(entry)
            except (Damaged, ObjectMissing, UnsupportedFormat) as error:
                failed.append((entry.slot, str(error) if isinstance(error, ObjectMissing) else error.what))
            else:
                self._again.opened(name)
        return failed

    def _open_all(self, sealed: Sequence[Sealed]) -> list[tuple[Entry, str]]:
        """Return the chunks that don't open, each with the name of the pack that it was read from."""
        doubtful = []
        for piece in sealed:
            try:
                self._reader.open(piece)
            except Damaged:
                doubtful.append((piece.entry, piece.cipher.name))
        return doubtful

    async def _whole(self, ref: ObjectRef, entries: Sequence[Entry], size: int) -> PackCheck:
        """Read every byte of a pack: chunks that maps name, header, footer, other chunks and padding."""
        data = await self._read(self._vault.names.pack(ref), size)
        frames = [(entry.slot, _frame(data, entry)) for entry in entries]
        cipher, _ = self._vault.cipher_for(Kind.PACK, ref, frames)
        sealed = [Sealed(entry, cipher, slot, frame) for entry, (slot, frame) in zip(entries, frames, strict=True)]
        doubtful = [entry for entry, _ in await asyncio.to_thread(self._open_all, sealed)]
        if doubtful:
            checked = await self._chunks(doubtful)
            if checked.slots:
                return checked._replace(bytes_read=size, chunks=len(entries))
        what = await asyncio.to_thread(self._rest, ref, data, set(entries) - set(doubtful))
        if what:
            del data, sealed, frames  # what is read again takes their place
            what = await self._rest_again(ref, size)
        return PackCheck(what, bytes_read=size, chunks=len(entries))

    async def _rest_again(self, ref: ObjectRef, size: int) -> str:
        """Read a pack once more; return what is wrong with it then too: a read cut short is no damage."""
        name = self._vault.names.pack(ref)
        what = await asyncio.to_thread(self._rest, ref, await self._read(name, size))
        if not what:
            self._again.opened(name)
        return what

    async def _read(self, name: str, size: int) -> Bytes:
        """Return a whole pack. As a range, which stores don't copy."""
        await self.wait(size)
        (data,) = await self._vault.store.get_ranges(name, [(0, size)])
        return memoryview(data)

    async def wait(self, size: int) -> None:
        """Wait until so many bytes may be read."""
        if self._pace is not None:
            await asyncio.sleep(self._pace(size))

    def _rest(self, ref: ObjectRef, data: Bytes, opened: Set[Entry] = frozenset()) -> str:
        """Check what no map names, and so wasn't `opened` yet; return what is wrong."""
        name = self._vault.names.pack(ref)
        try:
            cipher = self._vault.cipher(Kind.PACK, name, data)
            if cipher.header[16:32] != ref.random:
                raise Damaged(name, "its id isn't the one in its name")
            end = SLOT_UNIT
            for line in open_footer(self._vault, ref, data):
                start = line.slot * SLOT_UNIT
                if any(data[end:start]):
                    raise Damaged(name, f"the padding before slot {line.slot} is not zero")
                entry = Entry(line.id, ref, line.slot, line.length, line.codec)
                if entry not in opened:
                    self._reader.open(Sealed(entry, cipher, line.slot, _frame(data, entry)))
                end = start + line.length
            footer = TRAILER.unpack_from(data, len(data) - TRAILER.size)[0] * SLOT_UNIT
            if any(data[end:footer]):
                raise Damaged(name, "the padding before its footer is not zero")
        except (Damaged, UnsupportedFormat) as error:
            return error.what
        return ""


def _frame(data: Bytes, entry: Entry) -> Bytes:
    return data[entry.slot * SLOT_UNIT : entry.slot * SLOT_UNIT + entry.length]
