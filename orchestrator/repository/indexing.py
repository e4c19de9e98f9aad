"""Keep the copies of relocation records (`movedindex`) near what the records say, for maintenance and for readers.

A run reads what copies there are, uses them for packs that are gone, and writes copies of the records that it had to
read one by one. Objects whose copies are mostly of no use any more, and many small ones, are written anew together.
What must never happen here: something deleted other than such an object, or work that a run can't do without.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from orchestrator.fence import Fence
from orchestrator.repository.errors import Damaged, ObjectMissing, UnsupportedFormat
from orchestrator.repository.layout import ObjectRef
from orchestrator.repository.movedindex import TARGET_BYTES, Copy, copy_of, name_of, open_index, put_index
from orchestrator.repository.parallel import in_parallel
from orchestrator.repository.partitions import COUNT
from orchestrator.repository.relocation import open_generation
from orchestrator.repository.vault import Vault

NAME = 36
_HEAD = struct.Struct("<II")
"""Number of the object that holds it, bytes."""
SMALL = 8
"""So many small objects become one."""
RUN_RECORDS = 20_000
"""Records that one run copies at most; the next run goes on."""
RUN_OBJECTS = 16
"""Objects that one run writes anew at most."""
READERS = 8


class IndexWork(msgspec.Struct, frozen=True):
    """Which copies to write; nothing has changed yet."""

    records: bytes = b""
    """Pack and generation (36 bytes each) of what the new objects are to hold."""
    stale: tuple[str, ...] = ()
    """Objects that go once those are there."""

    @property
    def count(self) -> int:
        """Return how many records are copied."""
        return len(self.records) // NAME


class _Object(msgspec.Struct):
    name: str
    bytes: int
    records: int
    used: int = 0


class Index:
    """What copies there are, in files by the old pack's random bits, as marks have them."""

    def __init__(self, vault: Vault, folder: Path) -> None:
        self._vault, self._folder = vault, folder
        self._objects: list[_Object] = []
        self._broken: list[str] = []
        self._numbers: set[int] = set()
        self._new = bytearray()
        self._kept: dict[int, bytearray] = {}

    async def load(self) -> None:
        """Read every object, one after the other; what doesn't open is left out, and replaced."""
        async for info in self._vault.store.list(self._vault.names.moved):
            try:
                found = await open_index(self._vault, info.key)
            except ObjectMissing:
                continue
            except (Damaged, UnsupportedFormat):
                self._broken.append(info.key)
                continue
            self._objects.append(_Object(info.key, sum(len(copy.raw) for copy in found), len(found)))
            await asyncio.to_thread(self._spread, len(self._objects) - 1, found)

    def _spread(self, number: int, found: Sequence[Copy]) -> None:
        files: dict[int, list[bytes]] = {}
        for copy in found:
            files.setdefault(copy.pack.random[0] % COUNT, []).append(_HEAD.pack(number, len(copy.raw)) + copy.raw)
        for file, parts in files.items():
            with self._path(file).open("ab") as out:
                out.write(b"".join(parts))
            self._numbers.add(file)

    def take(self, file: int, newest: dict[bytes, int]) -> dict[ObjectRef, Copy]:
        """Return the copies of one file that are of the newest generation (old pack -> generation)."""
        found: dict[ObjectRef, Copy] = {}
        for number, copy in self._read(file):
            pack = copy.pack
            if newest.get(pack.to_bytes()) == copy.generation and pack not in found:
                found[pack] = copy
                self._objects[number].used += 1
                self._kept.setdefault(number, bytearray()).extend(copy.name)
        return found

    def _read(self, file: int) -> Iterator[tuple[int, Copy]]:
        if file not in self._numbers:
            return
        with self._path(file).open("rb") as source:
            while head := source.read(_HEAD.size):
                number, length = _HEAD.unpack(head)
                raw = source.read(length)
                yield number, Copy(ObjectRef.parse(raw[:32]), int.from_bytes(raw[32:36], "little"), raw)

    def lacks(self, pack: ObjectRef, generation: int) -> None:
        """Say that this record had to be read by itself."""
        if len(self._new) < RUN_RECORDS * NAME:
            self._new += name_of(pack, generation)

    def work(self) -> IndexWork:
        """Choose what to write: little by little, so that a run costs what changed since the last."""
        small = [at for at, one in enumerate(self._objects) if one.bytes * 2 < TARGET_BYTES]
        chosen = {at for at, one in enumerate(self._objects) if one.used * 2 < one.records}
        if len(small) >= SMALL:
            chosen |= set(small)
        again = sorted(chosen, key=lambda at: self._objects[at].bytes)[:RUN_OBJECTS]
        records = bytes(self._new) + b"".join(bytes(self._kept.get(at, b"")) for at in again)
        return IndexWork(records, (*(self._objects[at].name for at in again), *self._broken))

    def _path(self, file: int) -> Path:
        return self._folder / f"index-{file:02d}"


async def write_index(vault: Vault, work: IndexWork, fence: Fence, *, now: datetime) -> int:
    """Put the new objects, then delete those that they replace; return how many records were copied.

    Idempotent, by anyone, cut off anywhere: two copies of a record are the same, and none is made up for by reading.
    """
    wanted = {work.records[at : at + NAME] for at in range(0, len(work.records), NAME)}
    writer = _Writer(vault, fence, now)
    for name in work.stale:
        try:
            found = await open_index(vault, name)
        except (ObjectMissing, Damaged, UnsupportedFormat):
            continue  # its records are read one by one in the next run
        for copy in found:
            if copy.name in wanted:
                wanted.remove(copy.name)
                await writer.add(copy.raw)
    rest = sorted(wanted)
    for start in range(0, len(rest), READERS * 8):
        for raw in await _read(vault, rest[start : start + READERS * 8]):
            await writer.add(raw)
    await writer.put()
    for name in work.stale:
        fence.check()
        await vault.store.delete(name)
    return writer.count


async def _read(vault: Vault, names: Sequence[bytes]) -> list[bytes]:
    found: list[bytes] = []
    limit = asyncio.Semaphore(READERS)

    async def one(name: bytes) -> None:
        async with limit:
            try:
                record = await open_generation(vault, ObjectRef.parse(name), int.from_bytes(name[32:], "little"))
            except (Damaged, UnsupportedFormat):
                return  # whoever needs it says so
        if record is not None:
            found.append(copy_of(record))

    await in_parallel([one(name) for name in names])
    return found


class _Writer:
    def __init__(self, vault: Vault, fence: Fence, now: datetime) -> None:
        self._vault, self._fence, self._now = vault, fence, now
        self._parts: list[bytes] = []
        self._size = self.count = 0

    async def add(self, raw: bytes) -> None:
        """Take one copy; put an object when it is full."""
        self._parts.append(raw)
        self._size += len(raw)
        self.count += 1
        if self._size >= TARGET_BYTES:
            await self.put()

    async def put(self) -> None:
        """Put what waits."""
        if self._parts:
            self._fence.check()
            await put_index(self._vault, self._parts, self._now)
        self._parts, self._size = [], 0
