"""The one door to where objects lie: a directory, S3, Google Cloud Storage, Azure Blob, or memory in tests.

Nothing is ever overwritten. What must never happen here: a create that lets a second writer through, an unclear
answer taken for success, a credential in a URL, a message or a repr.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Protocol
from urllib.parse import unquote, urlsplit

import msgspec

from orchestrator.repository.crypto import Bytes
from orchestrator.repository.errors import Damaged, StoreOptionUnknown
from orchestrator.repository.layout import MAX_OBJECT, MAX_SMALL, SMALL_PARTS

COALESCE_GAP = 256 * 1024
COALESCE_LIMIT = 64 * 1024 * 1024
"""A whole pack may come in one request: who reads bounds memory by asking for less."""


class ObjectInfo(msgspec.Struct, frozen=True):
    """An object as a listing shows it."""

    key: str
    size: int
    last_modified: datetime
    """By the store's own clock, aware, UTC."""


class Store(Protocol):
    """Objects by name, relative to the repository's root. All errors are of `orchestrator.repository.errors`."""

    url: str
    """Without credentials."""

    async def get(self, key: str) -> bytes:
        """Return a whole object; ObjectMissing, Damaged when it is larger than any of that name."""
        ...

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`, fewer only at the object's end; ObjectMissing."""
        ...

    async def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[Bytes]:
        """Return (start, length) pieces of one object, near ones fetched together; ObjectMissing.

        Pieces may be views of what came in one request: who keeps one keeps all of it.
        """
        ...

    async def put_new(self, key: str, data: Bytes) -> None:
        """Create an object. The same bytes there already are success, other bytes ObjectConflict.

        An unclear error is settled by reading back. `data` must not change until this returns.
        """
        ...

    async def head(self, key: str) -> ObjectInfo | None:
        """Return what a listing would show, None when there is no such object."""
        ...

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Yield the objects whose names start with `prefix` (which ends in `/`, or is empty)."""
        ...

    async def delete(self, key: str) -> None:
        """Delete an object; one that is missing is fine."""
        ...

    async def sweep_leftovers(self, older_than: datetime) -> int:
        """Delete what dead writers left that no listing shows; return how many."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


def check_size(key: str, size: int) -> None:
    """Raise Damaged for an object that is larger than any of that name, before it is read whole."""
    parts = key.split("/")
    part = parts[2] if parts[0] == "n" and len(parts) > 2 else parts[0]
    limit = MAX_SMALL if part in SMALL_PARTS else MAX_OBJECT
    if size > limit:
        raise Damaged(key, f"it has {size} bytes, and no such object has more than {limit}")


def coalesce(ranges: Sequence[tuple[int, int]], gap: int = COALESCE_GAP) -> list[tuple[int, int, list[int]]]:
    """Join (start, length) ranges less than `gap` bytes apart: (start, length, positions in `ranges`), ascending."""
    joined: list[tuple[int, int, list[int]]] = []
    first = end = 0
    members: list[int] = []
    for position in sorted(range(len(ranges)), key=ranges.__getitem__):
        start, length = ranges[position]
        stop = start + length
        if members and start <= end + gap and max(end, stop) - first <= COALESCE_LIMIT:
            end = max(end, stop)
            members.append(position)
            continue
        if members:
            joined.append((first, end - first, members))
        first, end, members = start, stop, [position]
    if members:
        joined.append((first, end - first, members))
    return joined


async def open_store(url: str, options: Mapping[str, str] | None = None) -> Store:
    """Open `file:///path`, `s3://bucket/prefix`, `gs://`, `az://container/prefix` or `memory://name` (tests).

    `options` are the credentials secret's entries; an unknown name is refused by name. Nothing is contacted or
    created. Raises StoreOptionUnknown.
    """
    parts = urlsplit(url)
    options = options or {}
    if parts.username or parts.password or parts.query or parts.fragment:
        raise StoreOptionUnknown("A repository's URL holds no credentials, query or fragment")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise StoreOptionUnknown(f"{url}: a directory is given as file:///absolute/path")
        if options:
            raise StoreOptionUnknown(f"A directory takes no option {', '.join(sorted(options))}")
        from orchestrator.repository.directory import DirectoryStore

        return DirectoryStore(unquote(parts.path))
    if parts.scheme in ("s3", "gs", "az", "memory"):
        from orchestrator.repository.cloud import open_cloud_store

        return open_cloud_store(parts.scheme, parts.netloc, unquote(parts.path).strip("/"), options)
    raise StoreOptionUnknown(f"{url}: the scheme must be file, s3, gs or az")


class CountingStore:
    """A store that counts its requests by verb, and the bytes that went up and down."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.url = inner.url
        self.requests: Counter[str] = Counter()
        self.bytes_read = 0
        self.bytes_written = 0

    async def get(self, key: str) -> bytes:
        """Count and pass on."""
        self.requests["get"] += 1
        data = await self.inner.get(key)
        self.bytes_read += len(data)
        return data

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """Count and pass on."""
        self.requests["get"] += 1
        data = await self.inner.get_range(key, start, length)
        self.bytes_read += len(data)
        return data

    async def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[Bytes]:
        """Count one request for each joined range, and pass on."""
        self.requests["get"] += len(coalesce(ranges))
        pieces = await self.inner.get_ranges(key, ranges)
        self.bytes_read += sum(map(len, pieces))
        return pieces

    async def put_new(self, key: str, data: Bytes) -> None:
        """Count and pass on."""
        self.requests["put"] += 1
        await self.inner.put_new(key, data)
        self.bytes_written += len(data)

    async def head(self, key: str) -> ObjectInfo | None:
        """Count and pass on."""
        self.requests["head"] += 1
        return await self.inner.head(key)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Count one request for each 1,000 names, and pass on."""
        count = 0
        async for found in self.inner.list(prefix):
            if count % 1000 == 0:
                self.requests["list"] += 1
            count += 1
            yield found
        if not count:
            self.requests["list"] += 1

    async def delete(self, key: str) -> None:
        """Count and pass on."""
        self.requests["delete"] += 1
        await self.inner.delete(key)

    async def sweep_leftovers(self, older_than: datetime) -> int:
        """Pass on."""
        return await self.inner.sweep_leftovers(older_than)

    async def close(self) -> None:
        """Pass on."""
        await self.inner.close()
