"""The whole repository: who holds the master key opens it, and opens vaults for namespaces.

What must never happen here: a new key over data of an old one, or anything written where a stranger's files are.
"""

from __future__ import annotations

import contextlib
import os
import re
from datetime import datetime, timedelta
from typing import TypeVar

import msgspec

from orchestrator.clock import Clock, SystemClock
from orchestrator.repository.crypto import ObjectCipher, SealingKey
from orchestrator.repository.errors import (
    Damaged,
    KeysDamaged,
    NamespaceMissing,
    NotARepository,
    ObjectConflict,
    ObjectMissing,
    RepositoryMissing,
    UnsupportedFormat,
    WrongKey,
)
from orchestrator.repository.keys import KEY_BYTES, MasterKey, NamespaceIdentity, NamespaceKeys, namespace_id
from orchestrator.repository.layout import (
    FORMAT_VERSION,
    HEADER_KEY,
    KEYS_PREFIX,
    LOCKS_PREFIX,
    NAMESPACES_PREFIX,
    PROBE_PREFIX,
    Kind,
    lock_promise,
    master_wrap,
    namespace_keys,
)
from orchestrator.repository.lock import LockMode, ObjectLock
from orchestrator.repository.probe import probe_conditional_put
from orchestrator.repository.record import open_body, seal_body
from orchestrator.repository.store import Store
from orchestrator.repository.vault import Vault as Vault
from orchestrator.repository.wrapping import KeyWrapper, checked, wrapper_of

FORMAT_NAME = "tidemark-repository"
LAST_NUMBER = 99_999_999
_NUMBER = re.compile(r"[0-9]{8}")
_EPOCH = re.compile(NAMESPACES_PREFIX + r"([0-9a-f]{32})/[0-9]{8}")
T = TypeVar("T", bound=msgspec.Struct)


class _Mark(msgspec.Struct, frozen=True):
    format: str
    version: int
    id: str
    created: datetime


class _NamespaceEpoch(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    cluster_id: str
    uid: str
    name: str
    epoch: int
    data_key: bytes
    chunk_id_key: bytes


class _Lock(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What is promised from then on; without `retention` nothing is."""

    at: datetime
    retention: float | None = None
    """Seconds, as `renew_every`."""
    renew_every: float | None = None
    mode: LockMode = "COMPLIANCE"

    def lock(self) -> ObjectLock | None:
        """Return it as a store takes it; LockUnsupported when the durations make none."""
        if self.retention is None or self.renew_every is None:
            return None
        return ObjectLock(timedelta(seconds=self.retention), timedelta(seconds=self.renew_every), self.mode)


class Repository:
    """An opened repository. Holds the repository key; `repr` says only its id."""

    __slots__ = ("_key", "id", "store")

    def __init__(self, store: Store, repository_id: str, key: SealingKey) -> None:
        """Use `open` or `open_or_create`."""
        self.store, self.id, self._key = store, repository_id, key

    def __repr__(self) -> str:
        return f"Repository({self.store.url!r}, id={self.id!r})"

    @classmethod
    async def open(cls, store: Store, master: MasterKey | KeyWrapper) -> Repository:
        """Open one that exists. Raises RepositoryMissing, NotARepository, WrongKey, UnsupportedFormat, Damaged."""
        mark = await _read_mark(store)
        if mark is None:
            if await _numbers(store, KEYS_PREFIX):
                raise KeysDamaged(HEADER_KEY, "the object that says which repository this is is gone")
            stranger = await _stranger(store)
            if stranger is not None:
                raise NotARepository(store.url, f"it holds {stranger}")
            raise RepositoryMissing(store.url)
        numbers = await _numbers(store, KEYS_PREFIX)
        if not numbers:
            if await _any(store, "n/") or await _any(store, NAMESPACES_PREFIX):
                raise KeysDamaged(KEYS_PREFIX, "the repository's wrapped keys are gone")
            raise RepositoryMissing(store.url)
        return cls(store, mark.id, await _unwrap_newest(store, mark.id, numbers, wrapper_of(master)))

    @classmethod
    async def open_or_create(
        cls, store: Store, master: MasterKey | KeyWrapper, *, clock: Clock | None = None
    ) -> Repository:
        """Open, or make a new one where nothing is; proves conditional put first. Also ConditionalPutMissing.

        Two that do it at once end up with one repository; cut off anywhere, the next call goes on.
        """
        try:
            return await cls.open(store, master)
        except RepositoryMissing:
            await probe_conditional_put(store)
        mark = _Mark(FORMAT_NAME, FORMAT_VERSION, os.urandom(16).hex(), (clock or SystemClock()).now())
        await _put_or_adopt(store, HEADER_KEY, msgspec.json.encode(mark))
        found = await _read_mark(store)
        if found is None:
            raise ObjectMissing(HEADER_KEY)
        await _put_wrap(store, found.id, 0, wrapper_of(master), os.urandom(KEY_BYTES))
        return await cls.open(store, master)

    async def vault(self, namespace: NamespaceIdentity, *, create: bool = False) -> Vault:
        """Return a namespace's vault; NamespaceMissing unless `create`."""
        ns = namespace_id(self._key.secret, namespace)
        prefix = f"{NAMESPACES_PREFIX}{ns}/"
        epochs = [namespace_keys(ns, number) for number in await _numbers(self.store, prefix)]
        if not epochs and await _any(self.store, f"n/{ns}/"):
            # Another writer may have made the namespace since the first look.
            epochs = [namespace_keys(ns, number) for number in await _numbers(self.store, prefix)]
            if not epochs:
                raise KeysDamaged(prefix, f"the keys of namespace {namespace.name} are gone, and its data is there")
        if not epochs:
            if not create:
                raise NamespaceMissing(namespace.name, namespace.uid)
            epochs = [namespace_keys(ns, 1)]
            await self._put_epoch(epochs[0], namespace, 1, os.urandom(KEY_BYTES))
        opened = [await self._open_epoch(key) for key in sorted(epochs)]
        newest = opened[-1]
        identity = NamespaceIdentity(newest.cluster_id, newest.uid, newest.name)
        data_keys = {epoch.epoch: epoch.data_key for epoch in opened}
        return Vault(self.store, NamespaceKeys(self.id, ns, identity, newest.epoch, data_keys, newest.chunk_id_key))

    async def namespaces(self) -> list[NamespaceIdentity]:
        """Return every namespace that has keys here, by name. KeysDamaged when there is data and none has keys."""
        found: dict[str, NamespaceIdentity] = {}
        async for info in self.store.list(NAMESPACES_PREFIX):
            named = _EPOCH.fullmatch(info.key)
            if named is not None and named.group(1) not in found:
                epoch = await self._open_epoch(info.key)
                found[named.group(1)] = NamespaceIdentity(epoch.cluster_id, epoch.uid, epoch.name)
        if not found and await _any(self.store, "n/") and not await _any(self.store, NAMESPACES_PREFIX):
            raise KeysDamaged(NAMESPACES_PREFIX, "the keys of all namespaces are gone, and their data is there")
        return sorted(found.values(), key=lambda identity: (identity.name, identity.uid))

    async def rewrap(self, new: MasterKey | KeyWrapper) -> int:
        """Wrap the same repository key with another master key; that one opens it from now on. Returns its number."""
        number, wrapper = max(await _numbers(self.store, KEYS_PREFIX), default=0) + 1, wrapper_of(new)
        if number > LAST_NUMBER:
            raise KeysDamaged(master_wrap(LAST_NUMBER), "no number is left after it")
        await _put_wrap(self.store, self.id, number, wrapper, self._key.secret)
        opened = await _unwrap(self.store, self.id, number, wrapper)
        if opened.secret != self._key.secret:
            raise Damaged(master_wrap(number), "another key was wrapped at the same time")
        return number

    async def rotate(self, namespace: NamespaceIdentity) -> Vault:
        """Give a namespace a new data key: what is written from now on is sealed with it. NamespaceMissing.

        Old objects keep their key until they expire or are compacted. Writers that know only older keys may go on;
        two that rotate at once make one or two epochs, and either is fine.
        """
        known = (await self.vault(namespace)).keys
        name = namespace_keys(known.namespace_id, known.current_epoch + 1)
        await self._put_epoch(name, known.namespace, known.current_epoch + 1, known.chunk_id_key)
        return await self.vault(namespace)

    async def lock(self) -> ObjectLock | None:
        """Return the object lock that this repository says is promised; every writer keeps it. Damaged."""
        number = await self._newest_lock()
        return None if number is None else await self._open_lock(number)

    async def promise(self, lock: ObjectLock | None, *, clock: Clock | None = None) -> bool:
        """Say that a lock is promised from now on (or none); False when that is what it says already.

        A name is taken once and the highest number counts: of two that differ at the same time one is asked again.
        """
        while True:
            newest = await self._newest_lock()
            # One that doesn't open says nothing; what is put now counts from then on.
            with contextlib.suppress(Damaged):
                if lock == (None if newest is None else await self._open_lock(newest)):
                    return False
            if newest == LAST_NUMBER:
                raise Damaged(lock_promise(newest), "no number is left after it")
            name = lock_promise(0 if newest is None else newest + 1)
            value = _Lock(at=(clock or SystemClock()).now())
            if lock is not None:
                seconds = lock.retention.total_seconds(), lock.renew_every.total_seconds()
                value = _Lock(at=value.at, retention=seconds[0], renew_every=seconds[1], mode=lock.mode)
            cipher = ObjectCipher.new(self._key, Kind.LOCK, name)
            try:
                await self.store.put_new(name, seal_body(cipher, msgspec.json.encode(value)))
            except ObjectConflict:
                continue
            return True

    async def _newest_lock(self) -> int | None:
        return max(await _numbers(self.store, LOCKS_PREFIX), default=None)

    async def _open_lock(self, number: int) -> ObjectLock | None:
        name = lock_promise(number)
        data = await self.store.get(name)
        try:
            cipher = ObjectCipher.of(self._key, Kind.LOCK, name, data)
        except WrongKey as error:
            raise Damaged(name, "it was sealed with another key, or its header was altered") from error
        return _decode(name, open_body(cipher, data)[0], _Lock).lock()

    async def _put_epoch(self, name: str, namespace: NamespaceIdentity, epoch: int, chunk_id_key: bytes) -> None:
        value = _NamespaceEpoch(
            cluster_id=namespace.cluster_id,
            uid=namespace.uid,
            name=namespace.name,
            epoch=epoch,
            data_key=os.urandom(KEY_BYTES),
            chunk_id_key=chunk_id_key,
        )
        cipher = ObjectCipher.new(self._key, Kind.NAMESPACE_KEYS, name)
        await _put_or_adopt(self.store, name, seal_body(cipher, msgspec.json.encode(value)))

    async def _open_epoch(self, name: str) -> _NamespaceEpoch:
        data = await self.store.get(name)
        try:
            cipher = ObjectCipher.of(self._key, Kind.NAMESPACE_KEYS, name, data)
        except WrongKey as error:
            raise KeysDamaged(name, "it was sealed with another key, or its header was altered") from error
        except Damaged as error:
            raise KeysDamaged(name, error.what) from error
        try:
            value = _decode(name, open_body(cipher, data)[0], _NamespaceEpoch)
        except Damaged as error:
            raise KeysDamaged(name, error.what) from None
        if namespace_keys(name.split("/")[1], value.epoch) != name:
            raise KeysDamaged(name, "it holds another epoch")
        return value


def _decode(name: str, document: bytes, as_type: type[T]) -> T:
    try:
        return msgspec.json.decode(document, type=as_type)
    except msgspec.MsgspecError:
        # Not `from`: the library's message may quote what it read, and this may be a key.
        raise Damaged(name, "its document is malformed") from None


async def _read_mark(store: Store) -> _Mark | None:
    try:
        data = await store.get(HEADER_KEY)
    except ObjectMissing:
        return None
    try:
        mark = msgspec.json.decode(data, type=_Mark)
        if mark.format != FORMAT_NAME or len(bytes.fromhex(mark.id)) != 16:
            raise ValueError(mark.format)
    except (msgspec.MsgspecError, ValueError) as error:
        raise NotARepository(store.url, f"its object {HEADER_KEY!r} is something else") from error
    if mark.version != FORMAT_VERSION:
        raise UnsupportedFormat(HEADER_KEY, f"format version {mark.version}")
    return mark


async def _stranger(store: Store) -> str | None:
    """Return the name of something that isn't a left-over of our own first steps, None when there is nothing."""
    async for found in store.list(""):
        if not found.key.startswith(PROBE_PREFIX):
            return found.key
    return None


async def _any(store: Store, prefix: str) -> bool:
    async for _ in store.list(prefix):
        return True
    return False


async def _numbers(store: Store, prefix: str) -> list[int]:
    """Return the numbers of `<prefix><8 digits>`, ascending; what else somebody put there is none of ours."""
    rests = [found.key.removeprefix(prefix) async for found in store.list(prefix)]
    return sorted(int(rest) for rest in rests if _NUMBER.fullmatch(rest))


async def _put_or_adopt(store: Store, key: str, data: bytes) -> None:
    try:
        await store.put_new(key, data)
    except ObjectConflict:
        # Somebody was first: what is there counts, and the caller reads it.
        return


async def _put_wrap(store: Store, repository_id: str, number: int, wrapper: KeyWrapper, secret: bytes) -> None:
    name = master_wrap(number)
    await _put_or_adopt(store, name, await wrapper.wrap(repository_id, name, secret))


async def _unwrap_newest(store: Store, repository_id: str, numbers: list[int], wrapper: KeyWrapper) -> SealingKey:
    """Open the newest wrap, and no other: an older one may be of a master key that was retired."""
    try:
        return await _unwrap(store, repository_id, numbers[-1], wrapper)
    except Damaged as error:
        raise KeysDamaged(error.key, error.what) from error


async def _unwrap(store: Store, repository_id: str, number: int, wrapper: KeyWrapper) -> SealingKey:
    """Open `keys/<n>`; WrongKey, Damaged."""
    name = master_wrap(number)
    data = await store.get(name)
    try:
        secret = await wrapper.unwrap(repository_id, name, data)
    except WrongKey:
        raise WrongKey(f"the repository at {store.url}") from None
    return SealingKey(checked(name, secret), 0, bytes.fromhex(repository_id))
