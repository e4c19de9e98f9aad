"""A store with scripted faults: errors, lost answers, short reads, stale listings, and the death of the process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from enum import Enum

from orchestrator.repository.crypto import Bytes
from orchestrator.repository.errors import StoreUnavailable
from orchestrator.repository.store import ObjectInfo, Store


class Fault(Enum):
    """What happens to one request."""

    ERROR = "refused before anything happened"
    LOST = "carried out, but the answer is lost"
    SHORT = "a read returns half of the bytes"
    STALE = "a listing leaves out its newest object"
    CRASH = "the process dies before the request"
    CRASH_AFTER = "the process dies after the request"


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

    @classmethod
    def at(cls, inner: Store, number: int, fault: Fault) -> FaultyStore:
        """Fault exactly the `number`-th request (from 0)."""
        return cls(inner, lambda seen, _verb, _key: fault if seen == number else None)

    def _next(self, verb: str, key: str) -> Fault | None:
        if self.dead:
            raise ProcessDied
        number = len(self.requests)
        self.requests.append((verb, key))
        fault = self.script(number, verb, key) if self.script else None
        if fault is Fault.CRASH:
            self.dead = True
            raise ProcessDied
        if fault is Fault.ERROR:
            raise StoreUnavailable(self.url, "scripted fault")
        return fault

    def _after(self, fault: Fault | None) -> None:
        if fault is Fault.CRASH_AFTER:
            self.dead = True
            raise ProcessDied
        if fault is Fault.LOST:
            raise StoreUnavailable(self.url, "scripted fault: the answer is lost")

    async def get(self, key: str) -> bytes:
        fault = self._next("get", key)
        data = await self.inner.get(key)
        self._after(fault)
        return data[: len(data) // 2] if fault is Fault.SHORT else data

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        return (await self.get_ranges(key, [(start, length)]))[0]

    async def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        fault = self._next("get", key)
        pieces = await self.inner.get_ranges(key, ranges)
        self._after(fault)
        return [piece[: len(piece) // 2] for piece in pieces] if fault is Fault.SHORT else pieces

    async def put_new(self, key: str, data: Bytes) -> None:
        fault = self._next("put", key)
        await self.inner.put_new(key, data)
        self._after(fault)

    async def head(self, key: str) -> ObjectInfo | None:
        fault = self._next("head", key)
        found = await self.inner.head(key)
        self._after(fault)
        return found

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        fault = self._next("list", prefix)
        found = [info async for info in self.inner.list(prefix)]
        self._after(fault)
        if fault is Fault.STALE and found:
            found.remove(max(found, key=lambda info: info.last_modified))
        for info in found:
            yield info

    async def delete(self, key: str) -> None:
        fault = self._next("delete", key)
        await self.inner.delete(key)
        self._after(fault)

    async def sweep_leftovers(self, older_than: datetime) -> int:
        return await self.inner.sweep_leftovers(older_than)

    async def close(self) -> None:
        await self.inner.close()
