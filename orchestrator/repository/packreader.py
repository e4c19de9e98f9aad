"""Read chunks out of packs: ranges joined, each chunk opened, decompressed and checked against its id.

A pack that is gone may have been compacted: its newest relocation record says where its chunks went, in one hop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.repository.compression import decompress
from orchestrator.repository.crypto import TAG, Bytes, ObjectCipher
from orchestrator.repository.errors import Damaged, ObjectMissing
from orchestrator.repository.layout import SLOT_UNIT, Kind, ObjectRef
from orchestrator.repository.pack import Entry
from orchestrator.repository.relocation import Relocation
from orchestrator.repository.store import coalesce
from orchestrator.repository.vault import Vault
from orchestrator.repository.whereabouts import Whereabouts

GAPS = (512 << 10, 1 << 20, 2 << 20, 4 << 20)
"""Two chunks of a pack that are so near may be fetched in one request."""
REQUEST_BYTES = 1 << 20
"""So many bytes between two chunks cost as much as one more request."""


class Sealed(NamedTuple):
    """A chunk as fetched, with what is needed to open it in any thread."""

    entry: Entry
    cipher: ObjectCipher
    slot: int
    data: Bytes


class PackReader:
    """Reads chunks of one namespace. `fetch` belongs to the loop; `open` may run in any thread."""

    def __init__(self, vault: Vault, chunk_size: int) -> None:
        self._vault = vault
        self._chunk_size = chunk_size
        self._ciphers: dict[ObjectRef, ObjectCipher] = {}
        self._moved = Whereabouts(vault)

    async def fetch(self, pack: ObjectRef, entries: Sequence[Entry]) -> list[Sealed]:
        """Fetch the sealed chunks of one pack (all entries name it), near ones in one request.

        The order of the answer is that of `entries`. A moved pack is followed. ObjectMissing when it is gone, Damaged.
        """
        relocation = self._moved.known(pack)
        if relocation is None or any(entry.slot not in relocation.moves for entry in entries):
            # A record that doesn't know all that lives lets no pack go: then the pack is there.
            try:
                return await self._fetch(pack, [(entry, entry.slot) for entry in entries])
            except ObjectMissing:
                relocation = await self._moved.find(pack)
                if relocation is None:
                    raise
        try:
            return await self._follow(relocation, entries)
        except ObjectMissing:
            # Read long ago: its target may have been compacted since, and a newer record says where to.
            newer = await self._moved.newest(pack)
            if newer is None or newer.generation == relocation.generation:
                raise
            return await self._follow(newer, entries)

    async def fetch_all(self, by_pack: Mapping[ObjectRef, Sequence[Entry]]) -> list[Sealed]:
        """Fetch the sealed chunks of several packs at once, in any order; raises as `fetch` does.

        What compaction brought into one pack from several comes together.
        """
        await self._moved.load()
        calls: list[Coroutine[Any, Any, list[Sealed]]] = []
        moved: dict[ObjectRef, list[tuple[Entry, int]]] = {}
        for pack, entries in by_pack.items():
            relocation = self._moved.known(pack)
            if relocation is None or any(entry.slot not in relocation.moves for entry in entries):
                calls.append(self.fetch(pack, entries))
                continue
            for entry in entries:
                target, slot = relocation.moves[entry.slot]
                moved.setdefault(target, []).append((entry, slot))
        calls += [self._fetch_moved(target, sorted(places, key=_place)) for target, places in moved.items()]
        found: list[Sealed] = []
        for one in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(one, BaseException):
                raise one
            found += one
        return found

    async def prepare(self) -> None:
        """Read where packs went, for who is going to read many: a listing, and a few objects if any were moved."""
        await self._moved.load()

    def places(self, pack: ObjectRef, entries: Sequence[Entry]) -> list[tuple[ObjectRef, int]]:
        """Return pack and slot of each chunk, as far as it is known that a pack was moved."""
        relocation = self._moved.known(pack)
        if relocation is None:
            return [(pack, entry.slot) for entry in entries]
        return [relocation.moves.get(entry.slot, (pack, entry.slot)) for entry in entries]

    @staticmethod
    def weight(places: Sequence[tuple[int, int]]) -> int:
        """Return how many bytes fetching chunks (slot, sealed length) of one pack puts into memory."""
        ranges = [(slot * SLOT_UNIT, length) for slot, length in places]
        return sum(size for _, size, _ in _joined(ranges))

    async def _fetch_moved(self, target: ObjectRef, places: Sequence[tuple[Entry, int]]) -> list[Sealed]:
        try:
            return await self._fetch(target, places)
        except ObjectMissing:
            by_pack: dict[ObjectRef, list[Entry]] = {}
            for entry, _ in places:
                by_pack.setdefault(entry.pack, []).append(entry)
            return [sealed for pack, entries in by_pack.items() for sealed in await self.fetch(pack, entries)]

    async def read(self, entry: Entry) -> Bytes:
        """Fetch and open one chunk."""
        (sealed,) = await self.fetch(entry.pack, [entry])
        return self.open(sealed)

    def open(self, sealed: Sealed, scratch: memoryview | None = None) -> Bytes:
        """Return a chunk's plaintext (at most chunk_size bytes), checked against its id; Damaged. Any thread.

        `scratch`: memory of the caller's thread to work in, chunk_size bytes; what is returned may lie there, and is
        true only until the next call with it.
        """
        entry, name = sealed.entry, sealed.cipher.name
        if len(sealed.data) != entry.length:
            raise Damaged(name, f"it ends inside the chunk at slot {sealed.slot}")
        packed: Bytes
        if scratch is None or entry.length - TAG > len(scratch):
            packed = sealed.cipher.open(sealed.slot, sealed.data)
        else:
            packed = sealed.cipher.open_into(sealed.slot, sealed.data, scratch)
        try:
            plain = decompress(entry.codec, packed, self._chunk_size)
        except ValueError as error:
            raise Damaged(name, f"the chunk at slot {sealed.slot} doesn't decompress") from error
        if self._vault.keys.chunk_id(plain) != entry.id:
            raise Damaged(name, f"the chunk at slot {sealed.slot} isn't the one that the map names")
        return plain

    async def _follow(self, relocation: Relocation, entries: Sequence[Entry]) -> list[Sealed]:
        wanted: dict[ObjectRef, list[tuple[int, Entry, int]]] = {}
        for position, entry in enumerate(entries):
            place = relocation.moves.get(entry.slot)
            if place is None:
                raise ObjectMissing(self._vault.names.pack(entry.pack))
            wanted.setdefault(place[0], []).append((position, entry, place[1]))
        found: dict[int, Sealed] = {}
        for target, places in wanted.items():
            pieces = await self._fetch(target, [(entry, slot) for _, entry, slot in places])
            for (position, _, _), piece in zip(places, pieces, strict=True):
                found[position] = piece
        return [found[position] for position in range(len(entries))]

    async def _fetch(self, pack: ObjectRef, places: Sequence[tuple[Entry, int]]) -> list[Sealed]:
        ranges = [(slot * SLOT_UNIT, entry.length) for entry, slot in places]
        pieces = await self._pieces(self._vault.names.pack(pack), ranges)
        cipher = self._ciphers.get(pack)
        if cipher is None and pieces:
            frames = [(slot, data) for (_, slot), data in zip(places, pieces, strict=True)]
            cipher, proven = self._vault.cipher_for(Kind.PACK, pack, frames)
            if len(self._ciphers) > 4096:
                self._ciphers.clear()
            if proven:
                self._ciphers[pack] = cipher
        return [Sealed(entry, cipher, slot, data) for (entry, slot), data in zip(places, pieces, strict=True) if cipher]

    async def _pieces(self, name: str, ranges: Sequence[tuple[int, int]]) -> Sequence[Bytes]:
        joined = _joined(ranges)
        whole = await self._vault.store.get_ranges(name, [(start, size) for start, size, _ in joined])
        return _cut(ranges, joined, whole)


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int, list[int]]]:
    """Join ranges of a pack that are near, and through more of what is dead if that is cheaper than more requests."""
    found = coalesce(ranges)
    best = _cost(found)
    for gap in GAPS if len(found) > 1 else ():
        joined = coalesce(ranges, gap)
        if _cost(joined) < best:
            best, found = _cost(joined), joined
    return found


def _cost(joined: Sequence[tuple[int, int, list[int]]]) -> int:
    return sum(size for _, size, _ in joined) + (len(joined) - 1) * REQUEST_BYTES


def _cut(
    ranges: Sequence[tuple[int, int]], joined: Sequence[tuple[int, int, list[int]]], whole: Sequence[Bytes]
) -> list[Bytes]:
    found: dict[int, Bytes] = {}
    for (start, _, members), data in zip(joined, whole, strict=True):
        view = memoryview(data)
        for position in members:
            first, length = ranges[position]
            found[position] = view[first - start : first - start + length]
    return [found[position] for position in range(len(ranges))]


def _place(place: tuple[Entry, int]) -> int:
    return place[1]
