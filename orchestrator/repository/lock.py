"""Object lock: objects that nobody can delete for a while, as a promise that maintenance renews.

Packs, pages, manifests, relocation records and keys are put with a retention of `retention`; maintenance renews what
still lives once per `renew_every`. So what lives can't be deleted for at least the difference, whatever credential
leaks. S3 only. Such a bucket keeps versions, and some stores refuse to create an object where a deleted one left its
marker: so a point is removed by putting its *cancelled* record over the manifest, not by delete and create. What must
never happen here: a lock that is asked for and silently not there, anything but that record put over something.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal, Protocol

import msgspec

from orchestrator.clock import Clock, SystemClock
from orchestrator.errors import Terminal
from orchestrator.repository.crypto import Bytes
from orchestrator.repository.errors import Damaged, ObjectConflict, ObjectMissing, StoreUnavailable
from orchestrator.repository.layout import HEADER_KEY, KEYS_PREFIX, LOCKS_PREFIX, NAMESPACES_PREFIX
from orchestrator.repository.store import CountingStore, ObjectInfo, Store, open_store

LockMode = Literal["COMPLIANCE", "GOVERNANCE"]
_LOCKED = re.compile(r"n/[0-9a-f]+/(packs|maps|points|relocated)/")
PUT_ATTEMPTS = 3
SKEW = timedelta(minutes=15)
"""By so much may our clock be behind the store's, which counts: S3 refuses requests whose clock is off by more."""


class LockUnsupported(Terminal):
    """Object lock was asked for where there is none."""

    reason = "LockUnsupported"
    remedy = "Object lock needs s3:// and a bucket made with object lock; leave objectLock out for other stores."

    def __init__(self, url: str, what: str) -> None:
        super().__init__(f"Store {url} has no object lock: {what}")


class ObjectLock(msgspec.Struct, frozen=True):
    """What is asked for."""

    retention: timedelta
    renew_every: timedelta
    mode: LockMode = "COMPLIANCE"

    def __post_init__(self) -> None:
        if not timedelta(0) < self.renew_every < self.retention:
            raise LockUnsupported("(any)", "renewEvery must be shorter than retention, and both above zero")

    @property
    def promise(self) -> timedelta:
        """Return for how long at least what lives can't be deleted."""
        return self.retention - self.renew_every

    def until(self, now: datetime) -> datetime:
        """Return until when what is put or renewed now is kept; whole seconds, since some stores round down."""
        return (now + self.retention + SKEW).replace(microsecond=0) + timedelta(seconds=1)


class LockClient(Protocol):
    """The few calls that a lock needs beside the store's. Errors are of `orchestrator.repository.errors`."""

    async def put_locked(self, key: str, data: Bytes, mode: LockMode, until: datetime) -> bool:
        """Create an object; False when the name is taken. StoreUnavailable when the answer is unclear."""
        ...

    async def put_over(self, key: str, data: Bytes, mode: LockMode, until: datetime) -> None:
        """Put an object over whatever is at its name. StoreUnavailable when the answer is unclear."""
        ...

    async def renew(self, key: str, mode: LockMode, until: datetime) -> None:
        """Keep an object until then; ObjectMissing."""
        ...

    async def problems(self) -> list[str]:
        """Say what is wrong with the bucket: versions, lock, lifecycle."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class UnclearPromise:
    """Stands for a lock client where the promise can't be read: reading goes on, putting what is to last is refused."""

    def __init__(self, error: Damaged) -> None:
        self._key, self._what = error.key, error.what

    async def put_locked(self, key: str, data: Bytes, mode: LockMode, until: datetime) -> bool:
        """Raise Damaged."""
        raise Damaged(self._key, self._what)

    async def put_over(self, key: str, data: Bytes, mode: LockMode, until: datetime) -> None:
        """Raise Damaged."""
        raise Damaged(self._key, self._what)

    async def renew(self, key: str, mode: LockMode, until: datetime) -> None:
        """Raise Damaged."""
        raise Damaged(self._key, self._what)

    async def problems(self) -> list[str]:
        """Say what is wrong."""
        return [self._what]

    async def close(self) -> None:
        """Do nothing: no connection is held."""


def past_unclear(store: Store) -> Store:
    """Return the store behind an `UnclearPromise`, else the store as it is: for who makes the promise anew."""
    found = locked(store)
    return found.inner if found is not None and isinstance(found.client, UnclearPromise) else store


UNCLEAR = ObjectLock(timedelta(days=2), timedelta(days=1))
"""What an `UnclearPromise` is asked for, and refuses."""


def is_locked(key: str) -> bool:
    """Say whether an object of this name is put with a retention: all that a restore needs."""
    ours = key.startswith((KEYS_PREFIX, NAMESPACES_PREFIX, LOCKS_PREFIX))
    return key == HEADER_KEY or ours or bool(_LOCKED.match(key))


class LockedStore:
    """A store whose lasting objects are put with a retention."""

    def __init__(self, inner: Store, client: LockClient, lock: ObjectLock, clock: Clock | None = None) -> None:
        self.inner, self.client, self.lock = inner, client, lock
        self.url = inner.url
        self._clock = clock or SystemClock()

    async def put_new(self, key: str, data: Bytes) -> None:
        """Create an object, with a retention where it is to last; settled by reading back as any other."""
        if not is_locked(key):
            await self.inner.put_new(key, data)
            return
        for attempt in range(PUT_ATTEMPTS):
            try:
                if await self.client.put_locked(key, data, self.lock.mode, self.lock.until(self._clock.now())):
                    return
            except StoreUnavailable:
                if await self._settled(key, data):
                    return
                if attempt == PUT_ATTEMPTS - 1:
                    raise
                continue
            if await self._settled(key, data):
                return
        raise StoreUnavailable(self.url, "a name was taken and held nothing")

    async def put_over(self, key: str, data: Bytes) -> None:
        """Put an object over whatever is at its name, with a retention; idempotent. StoreUnavailable.

        Only for the record that ends a name for good: whoever comes first or late, that record stands there then. What
        stood there becomes a version that lives as long as its own lock, and nothing can be created at that name again.
        """
        await self.client.put_over(key, data, self.lock.mode, self.lock.until(self._clock.now()))

    async def _settled(self, key: str, data: Bytes) -> bool:
        try:
            found = await self.inner.get(key)
        except ObjectMissing:
            return False
        if memoryview(found) != memoryview(data):
            raise ObjectConflict(key)
        return True

    async def renew(self, key: str, until: datetime) -> None:
        """Keep an object until then; ObjectMissing."""
        await self.client.renew(key, self.lock.mode, until)

    async def get(self, key: str) -> bytes:
        """Pass on."""
        return await self.inner.get(key)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """Pass on."""
        return await self.inner.get_range(key, start, length)

    async def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[Bytes]:
        """Pass on."""
        return await self.inner.get_ranges(key, ranges)

    async def head(self, key: str) -> ObjectInfo | None:
        """Pass on."""
        return await self.inner.head(key)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Pass on."""
        async for found in self.inner.list(prefix):
            yield found

    async def delete(self, key: str) -> None:
        """Pass on: in a bucket with versions this only hides the object, and its lock holds."""
        await self.inner.delete(key)

    async def sweep_leftovers(self, older_than: datetime) -> int:
        """Pass on."""
        return await self.inner.sweep_leftovers(older_than)

    async def close(self) -> None:
        """Close both."""
        await self.client.close()
        await self.inner.close()


async def open_locked_store(url: str, options: Mapping[str, str] | None, lock: ObjectLock | None) -> Store:
    """Open a store, with object lock where asked for; LockUnsupported for anything but S3."""
    if lock is None:
        return await open_store(url, options)
    only_s3(url)
    return with_lock(await open_store(url, options), url, options, lock)


def only_s3(url: str) -> None:
    """Raise LockUnsupported for a store of another type."""
    scheme = url.partition(":")[0]
    if scheme != "s3":
        raise LockUnsupported(f"{scheme}:", f"it is of type {scheme}, and only s3 is supported")


def with_lock(store: Store, url: str, options: Mapping[str, str] | None, lock: ObjectLock) -> LockedStore:
    """Return an S3 store with object lock. Contacts nobody; StoreOptionUnknown."""
    from orchestrator.repository.lockclient import S3LockClient

    return LockedStore(store, S3LockClient(url, dict(options or {})), lock)


def locked(store: Store) -> LockedStore | None:
    """Return the store that puts with a lock, also behind one that counts; None when there is no lock."""
    while isinstance(store, CountingStore):
        store = store.inner
    return store if isinstance(store, LockedStore) else None
