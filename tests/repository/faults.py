"""A store with scripted faults: errors, lost and late answers, torn uploads, stale listings, its client's death."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum

from orchestrator.repository.crypto import Bytes
from orchestrator.repository.errors import ObjectConflict, ObjectMissing, StoreUnavailable
from orchestrator.repository.store import ObjectInfo, Store


class Fault(Enum):
    """What happens to one request."""

    ERROR = "refused before anything happened"
    LOST = "carried out, but the answer is lost"
    SHORT = "a read returns half of the bytes"
    STALE = "a listing leaves out its newest object"
    CRASH = "the process dies before the request"
    CRASH_AFTER = "the process dies after the request"
    LATE = "no answer in time; a write is carried out all the same, much later"
    TORN = "an upload is cut off, and half of the object stands under its name"
    SLOW = "everybody else goes first"


DEATHS = (Fault.CRASH, Fault.CRASH_AFTER)
HONEST = (Fault.ERROR, Fault.LOST, *DEATHS)
"""Faults of a store that keeps its promises, and deaths of its client."""


_ONLY = {
    Fault.LOST: ("put", "delete"),
    Fault.LATE: ("put", "delete"),
    Fault.CRASH_AFTER: ("put", "delete"),
    Fault.TORN: ("put",),
    Fault.SHORT: ("get",),
    Fault.STALE: ("list",),
}


def differs(kind: Fault, verb: str) -> bool:
    """Say whether a fault at such a request is another case than ERROR or CRASH there: a lost read is a failed one."""
    return verb in _ONLY.get(kind, (verb,))


class ProcessDied(BaseException):
    """Raised for CRASH: no `except Exception` may catch it, as none would run in a process that is gone."""


Script = Callable[[int, str, str], Fault | None]
"""(number of the request from 0, verb, key or prefix) -> fault."""


class FaultyStore:
    """Wraps a store. `requests` holds every (verb, key) so far; after a crash every request dies."""

    def __init__(self, inner: Store, script: Script | None = None) -> None:
        self.inner = inner
        self.url = inner.url
        self.script = script
        self.requests: list[tuple[str, str]] = []
        self.dead = False
        self._late: list[Callable[[], Awaitable[None]]] = []

    @classmethod
    def at(cls, inner: Store, number: int, fault: Fault) -> FaultyStore:
        """Fault exactly the `number`-th request (from 0)."""
        return cls(inner, lambda seen, _verb, _key: fault if seen == number else None)

    async def settle(self) -> None:
        """Carry out now what came too late."""
        late, self._late = self._late, []
        for write in late:
            try:
                await write()
            except ObjectConflict:
                continue

    async def _next(self, verb: str, key: str, write: Callable[[], Awaitable[None]] | None = None) -> Fault | None:
        if self.dead:
            raise ProcessDied
        number = len(self.requests)
        self.requests.append((verb, key))
        fault = self.script(number, verb, key) if self.script else None
        if fault is Fault.CRASH:
            self.dead = True
            raise ProcessDied
        if fault is Fault.LATE and write is not None:
            self._late.append(write)
        if fault in (Fault.ERROR, Fault.LATE):
            raise StoreUnavailable(self.url, "scripted fault")
        if fault is Fault.SLOW:
            for _ in range(200):
                await asyncio.sleep(0)
        return fault

    def _after(self, fault: Fault | None) -> None:
        if fault is Fault.CRASH_AFTER:
            self.dead = True
            raise ProcessDied
        if fault is Fault.LOST:
            raise StoreUnavailable(self.url, "scripted fault: the answer is lost")

    async def get(self, key: str) -> bytes:
        fault = await self._next("get", key)
        data = await self.inner.get(key)
        self._after(fault)
        return data[: len(data) // 2] if fault is Fault.SHORT else data

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        return (await self.get_ranges(key, [(start, length)]))[0]

    async def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        fault = await self._next("get", key)
        pieces = await self.inner.get_ranges(key, ranges)
        self._after(fault)
        return [piece[: len(piece) // 2] for piece in pieces] if fault is Fault.SHORT else pieces

    async def put_new(self, key: str, data: Bytes) -> None:
        whole = bytes(data)
        fault = await self._next("put", key, lambda: self.inner.put_new(key, whole))
        if fault is Fault.TORN:
            await self.inner.put_new(key, whole[: len(whole) // 2])
            raise StoreUnavailable(self.url, "scripted fault: the upload is cut off")
        await self.inner.put_new(key, data)
        self._after(fault)

    async def head(self, key: str) -> ObjectInfo | None:
        fault = await self._next("head", key)
        found = await self.inner.head(key)
        self._after(fault)
        return found

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        fault = await self._next("list", prefix)
        found = [info async for info in self.inner.list(prefix)]
        self._after(fault)
        if fault is Fault.STALE and found:
            found.remove(max(found, key=lambda info: info.last_modified))
        for info in found:
            yield info

    async def delete(self, key: str) -> None:
        fault = await self._next("delete", key, lambda: self.inner.delete(key))
        await self.inner.delete(key)
        self._after(fault)

    async def sweep_leftovers(self, older_than: datetime) -> int:
        return await self.inner.sweep_leftovers(older_than)

    async def close(self) -> None:
        await self.inner.close()


class Shelf:
    """A store in memory whose clock a test sets; `copy` makes another one with the same objects."""

    def __init__(self, objects: Mapping[str, tuple[bytes, datetime]] | None = None) -> None:
        self.url = "memory://shelf"
        self.objects: dict[str, tuple[bytes, datetime]] = dict(objects or {})
        self.now = max((when for _, when in self.objects.values()), default=datetime(2026, 1, 1, tzinfo=UTC))

    def copy(self) -> Shelf:
        """Return an equal store that goes its own way."""
        return Shelf(self.objects)

    def plain(self) -> dict[str, bytes]:
        """Return name -> bytes."""
        return {key: data for key, (data, _) in self.objects.items()}

    def replace(self, key: str, data: bytes) -> None:
        """Alter an object, as no honest store would."""
        self.objects[key] = (data, self.objects[key][1])

    def _data(self, key: str) -> bytes:
        if key not in self.objects:
            raise ObjectMissing(key)
        return self.objects[key][0]

    async def get(self, key: str) -> bytes:
        return self._data(key)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        return self._data(key)[start : start + length]

    async def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        data = self._data(key)
        return [data[start : start + length] for start, length in ranges]

    async def put_new(self, key: str, data: Bytes) -> None:
        self.now += timedelta(milliseconds=1)
        if self.objects.setdefault(key, (bytes(data), self.now))[0] != data:
            raise ObjectConflict(key)

    async def head(self, key: str) -> ObjectInfo | None:
        return self._info(key) if key in self.objects else None

    def _info(self, key: str) -> ObjectInfo:
        data, when = self.objects[key]
        return ObjectInfo(key, len(data), when)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        for info in self._infos(prefix):
            yield info

    def _infos(self, prefix: str) -> Iterator[ObjectInfo]:
        return iter([self._info(key) for key in sorted(self.objects) if key.startswith(prefix)])

    async def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    async def sweep_leftovers(self, older_than: datetime) -> int:
        return 0

    async def close(self) -> None:
        """Keep everything."""
