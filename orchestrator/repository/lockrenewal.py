"""Renew the lock of what lives, once per period: that is what turns a retention into a promise.

A record `renewed/<seconds since 1970>` says when a renewal that came to its end was begun; one that is cut off starts
again. What nothing reaches isn't renewed, so its lock runs out and the bucket's lifecycle rule can free its space.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from orchestrator.fence import Fence
from orchestrator.repository.census import MAP, OBJECT, PACK, RELOCATED, Census
from orchestrator.repository.errors import Damaged, ObjectMissing
from orchestrator.repository.following import Following
from orchestrator.repository.layout import HEADER_KEY, KEYS_PREFIX, LOCKS_PREFIX, NAMESPACES_PREFIX, Kind, ObjectRef
from orchestrator.repository.lock import LockedStore, ObjectLock, locked
from orchestrator.repository.look import look
from orchestrator.repository.maintenance import reached
from orchestrator.repository.parallel import in_parallel
from orchestrator.repository.partitions import COUNT
from orchestrator.repository.record import open_record, seal_record
from orchestrator.repository.vault import Vault

AT_ONCE = 16


class Renewal(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A renewal that came to its end."""

    begun: datetime
    until: datetime
    objects: int


async def last_renewed(vault: Vault, lock: ObjectLock | None = None) -> datetime | None:
    """Return when the last renewal that ended was begun; one listing, and a read.

    With `lock`, None when that one was for a shorter retention: the promise was made longer since, and isn't kept yet.
    """
    newest = max([info.key async for info in vault.store.list(vault.names.renewed)], default=None)
    if newest is None or lock is None:
        return None if newest is None else _begun(newest)
    try:
        data = await vault.store.get(newest)
        renewal, _ = open_record(vault, Kind.RENEWED, newest, data, Renewal)
    except (Damaged, ObjectMissing):
        return None  # a renewal too many does no harm
    return renewal.begun if renewal.until - renewal.begun >= lock.retention else None


def due(lock: ObjectLock, last: datetime | None, now: datetime) -> bool:
    """Say whether to renew in this run: a bit early, since the next run may be a day away."""
    return last is None or now - last >= lock.renew_every - min(timedelta(days=1), lock.renew_every / 4)


async def renew_if_due(vault: Vault, fence: Fence, *, now: datetime) -> Renewal | None:
    """Renew once per period; None when it isn't due, or nothing is promised. Raises as `renew`."""
    store = locked(vault.store)
    if store is None or not due(store.lock, await last_renewed(vault, store.lock), now):
        return None
    return await renew(vault, fence, now=now)


async def renew(vault: Vault, fence: Fence, *, now: datetime) -> Renewal:
    """Extend the retention of everything that lives in a namespace; its store is a LockedStore.

    Raises SweepBlocked when what says what is alive can't be read, SweepOvertaken, and the store's errors.
    """
    store = locked(vault.store)
    if store is None:
        raise TypeError("this store was opened without object lock")
    until, count = store.lock.until(now), 0
    with tempfile.TemporaryDirectory(prefix="tidemark-renew-") as name:
        # No intent is too old here: a renewal ends nothing.
        census, following = await look(vault, Path(name), now=now, before=now, intent_age=timedelta(days=36500))
        batch: list[str] = []
        async for key in _living(vault, census, following):
            batch.append(key)
            if len(batch) == AT_ONCE * 8:
                count += await _renew_some(store, batch, until, fence)
                batch = []
        count += await _renew_some(store, batch, until, fence)
    renewal = Renewal(begun=now, until=until, objects=count)
    older = [info.key async for info in store.list(vault.names.renewed)]
    key = f"{vault.names.renewed}{int(now.timestamp()):012d}"
    await store.put_new(key, seal_record(vault, Kind.RENEWED, key, renewal))
    for old in older:
        fence.check()
        if old != key:
            await store.delete(old)
    return renewal


async def _renew_some(store: LockedStore, keys: list[str], until: datetime, fence: Fence) -> int:
    renewed, limit = 0, asyncio.Semaphore(AT_ONCE)

    async def one(key: str) -> None:
        nonlocal renewed
        async with limit:
            try:
                await store.renew(key, until)
            except ObjectMissing:
                return  # swept or removed since it was listed
        renewed += 1

    fence.check()
    await in_parallel([one(key) for key in keys])
    return renewed


async def _living(vault: Vault, census: Census, following: Following) -> AsyncIterator[str]:
    """Yield the names of all that lives: of the repository, of its points, of their pages and packs."""
    yield HEADER_KEY
    for prefix in (KEYS_PREFIX, LOCKS_PREFIX, f"{NAMESPACES_PREFIX}{vault.namespace_id}/", vault.names.points):
        async for info in vault.store.list(prefix):
            yield info.key
    for number in range(COUNT):
        for key in await asyncio.to_thread(_in_file, vault, census, following, number):
            yield key


def _in_file(vault: Vault, census: Census, following: Following, number: int) -> list[str]:
    return list(_names(vault, census, following, number))


def _names(vault: Vault, census: Census, following: Following, number: int) -> Iterator[str]:
    named = set(census.marking.packs.records(number))
    marked = reached(census, following, number, named)
    for record in census.listed.records(number):
        kind, raw, _ = OBJECT.unpack(record)
        ref = ObjectRef.parse(raw)
        if kind in (PACK, MAP) and (record[:33] in marked or ref.intent in census.live):
            yield vault.names.pack(ref) if kind == PACK else vault.names.map(ref)
    for raw, generation, _ in map(RELOCATED.unpack, census.relocated.records(number)):
        if raw in named:
            yield vault.names.relocation(ObjectRef.parse(raw), generation)


def _begun(key: str) -> datetime:
    text = key.rpartition("/")[2]
    return datetime.fromtimestamp(int(text) if text.isdecimal() else 0, UTC)
