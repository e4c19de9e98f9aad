"""A store in memory that can fail, crash or lie at any of its requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime

from orchestrator.repository.crypto import Bytes
from orchestrator.repository.errors import ObjectConflict, ObjectMissing
from orchestrator.repository.store import ObjectInfo

Fault = Callable[[int, str, str], None]
"""Called with (request number, verb, key) before each request; raises to fail it."""


class MemoryStore:
    """Objects in a dict. `lost_reply`: the numbers of puts that succeed but raise all the same."""

    def __init__(self) -> None:
        self.url = "memory://test"
        self.objects: dict[str, bytes] = {}
        self.requests = 0
        self.before: Fault | None = None
        self.after: Fault | None = None

    def _note(self, verb: str, key: str) -> int:
        self.requests += 1
        number = self.requests
        if self.before is not None:
            self.before(number, verb, key)
        return number

    def _done(self, number: int, verb: str, key: str) -> None:
        if self.after is not None:
            self.after(number, verb, key)

    async def get(self, key: str) -> bytes:
        self._note("get", key)
        if key not in self.objects:
            raise ObjectMissing(key)
        return self.objects[key]

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        return (await self.get(key))[start : start + length]

    async def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        data = await self.get(key)
        return [data[start : start + length] for start, length in ranges]

    async def put_new(self, key: str, data: Bytes) -> None:
        number = self._note("put", key)
        if self.objects.setdefault(key, bytes(data)) != data:
            raise ObjectConflict(key)
        self._done(number, "put", key)

    async def head(self, key: str) -> ObjectInfo | None:
        self._note("head", key)
        data = self.objects.get(key)
        return None if data is None else ObjectInfo(key, len(data), datetime(2026, 3, 1, tzinfo=UTC))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        self._note("list", prefix)
        for key in sorted(self.objects):
            if key.startswith(prefix):
                yield ObjectInfo(key, len(self.objects[key]), datetime(2026, 3, 1, tzinfo=UTC))

    async def delete(self, key: str) -> None:
        self._note("delete", key)
        self.objects.pop(key, None)

    async def close(self) -> None:
        """Keep everything."""
