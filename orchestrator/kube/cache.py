"""What the API server has, kept here: one list and one watch per kind.

Readers get plain Structs without waiting. A reply to a write is learned at once, so that the next decision does not
rest on a state that we changed ourselves. What must never happen here: one bad object stopping the others, or a
deleted object coming back because an old reply arrived late.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar

from orchestrator.api.meta import K8sObject, ObjectMeta
from orchestrator.errors import Retryable, Terminal, TidemarkError
from orchestrator.kube import errors
from orchestrator.kube.client import Client
from orchestrator.kube.selector import Selector
from orchestrator.kube.wire import BadItem

log = logging.getLogger(__name__)

T = TypeVar("T", bound=K8sObject)
U = TypeVar("U", bound=K8sObject)

ObjectKey = tuple[str, str]
"""(namespace, name)."""
Handler = Callable[["T | None", "T | None"], None]

ABSENT_RETRY_S = 30.0
GRAVES = 4096
"""Deleted uids that are remembered, so that a late reply does not raise the dead."""


class Timing(NamedTuple):
    """How long a cache waits for what. Seconds."""

    watch_s: float = 300.0
    idle_s: float = 150.0
    """A real API server sends a bookmark a minute; silence beyond this is a stuck connection."""
    backoff_s: float = 0.5
    backoff_max_s: float = 30.0
    absent_s: float = ABSENT_RETRY_S
    stable_s: float = 5.0
    """A watch that lived this long starts the back-off anew."""


class CacheStats:
    """Counters since the start."""

    __slots__ = ("lists", "undecodable", "watch_failures", "watches")

    def __init__(self) -> None:
        """Start at zero."""
        self.lists = 0
        self.watches = 0
        self.watch_failures = 0
        self.undecodable = 0


def is_newer(version: str, than: str) -> bool:
    """Return whether a resourceVersion is newer: as integers where both are numeric, else by being different.

    Since Kubernetes 1.35 resourceVersions of one resource are documented as comparable integers, and every release
    and etcd-backed server before made them so. For a server with other versions the last word heard counts.
    """
    if version.isdigit() and than.isdigit():
        return int(version) > int(than)
    return version != than


class Cache(Generic[T]):
    """The objects of one kind. `run()` keeps it fresh; everything else is synchronous and of this loop."""

    def __init__(
        self,
        client: Client,
        kind: type[T],
        *,
        namespace: str = "",
        labels: str = "",
        indexers: Mapping[str, Callable[[T], Iterable[str]]] | None = None,
        optional: bool = False,
        timing: Timing = Timing(),  # noqa: B008 - immutable
    ) -> None:
        """Watch `kind`, in one namespace or all, limited to a label selector.

        `optional`: where the kind isn't installed the cache counts as synced, with nothing in it.
        """
        self.kind = kind
        self.namespace = namespace
        self.labels = labels
        self.optional = optional
        self.synced = asyncio.Event()
        self.absent = False
        """The kind is not installed."""
        self.problem = ""
        """Why it is not fresh, in words; "" when all is well."""
        self.stats = CacheStats()
        self.bad: dict[ObjectKey, str] = {}
        """Objects that don't fit our slice of the kind, with the reason; their last good version stays."""
        self._client = client
        self._selector = Selector.parse(labels)
        self._indexers = dict(indexers or {})
        self._timing = timing
        self._objects: dict[ObjectKey, T] = {}
        self._uids: dict[str, ObjectKey] = {}
        self._indices: dict[str, dict[str, set[ObjectKey]]] = {name: {} for name in self._indexers}
        self._handlers: list[Handler[T]] = []
        self._graves: OrderedDict[str, None] = OrderedDict()
        self._version = ""
        self._heard_at: float | None = None

    # Readers

    @property
    def age_s(self) -> float | None:
        """Return seconds since the server was last heard of, a bookmark included; None before the first list."""
        return None if self._heard_at is None else asyncio.get_running_loop().time() - self._heard_at

    def get(self, name: str, namespace: str = "") -> T | None:
        """Return the object, None when unknown."""
        return self._objects.get((namespace, name))

    def by_uid(self, uid: str) -> T | None:
        """Return the object of that uid, None when unknown."""
        key = self._uids.get(uid)
        return self._objects.get(key) if key is not None else None

    def by_index(self, index: str, key: str) -> list[T]:
        """Return the objects that the indexer `index` put under `key`, ordered by (namespace, name)."""
        return [self._objects[found] for found in sorted(self._indices[index].get(key, ()))]

    def all(self) -> list[T]:
        """Return every object, ordered by (namespace, name)."""
        return [self._objects[key] for key in sorted(self._objects)]

    def __len__(self) -> int:
        """Return how many objects are known."""
        return len(self._objects)

    def subscribe(self, handler: Handler[T]) -> None:
        """Have `handler(old, new)` called for every change, in order: (None, new), (old, new), (old, None).

        Called synchronously, so it must only enqueue. What is known already is told at once.
        """
        self._handlers.append(handler)
        for obj in self.all():
            handler(None, obj)

    # Writers

    def learn(self, obj: T) -> None:
        """Take the reply to a write, if it is newer than what is known and would be in this cache at all."""
        meta = obj.metadata
        if not meta.resource_version or not self._covers(meta):
            return
        known = self._objects.get((meta.namespace, meta.name))
        if known is None:
            passed = self._version.isdigit() and not is_newer(meta.resource_version, self._version)
            if meta.uid in self._graves or passed:
                # The watch is beyond this version already and the object is not there: it is deleted since.
                return
        elif not is_newer(meta.resource_version, known.metadata.resource_version):
            return
        self._put(obj)

    # The life of the cache

    async def run(self) -> None:
        """List, then watch, for ever; only cancelling ends it. Give it to a TaskGroup."""
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            try:
                await self._list()
                self.problem = ""
                await self._follow()
            except TidemarkError as error:
                if loop.time() - started > self._timing.stable_s:
                    failures = 0
                failures += 1
                await asyncio.sleep(self._after(error, failures))

    async def _list(self) -> None:
        listing = await self._client.listing(self.kind, self.namespace, labels=self.labels)
        self._heard_at = asyncio.get_running_loop().time()
        self.stats.lists += 1
        self.absent = False
        self._replace(listing.items, listing.bad, listing.resource_version)
        self.synced.set()

    async def _follow(self) -> None:
        """Watch from the version reached, again and again, until it is too old (Gone)."""
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            started, reached = loop.time(), self._version
            try:
                self.stats.watches += 1
                await self._watch_once()
                ended_early = loop.time() - started < 1.0 and reached == self._version
                failures = failures + 1 if ended_early else 0
            except errors.Gone:
                raise
            except Retryable as error:
                self.stats.watch_failures += 1
                failures = 1 if self._version != reached else failures + 1
                self.problem = str(error)
                log.info("watch of %s broke: %s", self.kind.RESOURCE.plural, error)
            if failures:
                await asyncio.sleep(self._pause(failures))

    async def _watch_once(self) -> None:
        events = self._client.watch(
            self.kind,
            self.namespace,
            resource_version=self._version,
            labels=self.labels,
            # Spread, so that twenty watches do not come back in the same second.
            timeout_s=self._timing.watch_s * random.uniform(1.0, 1.5),  # noqa: S311 - jitter
            idle_s=self._timing.idle_s,
        )
        async for event in events:
            self._heard_at = asyncio.get_running_loop().time()
            self.problem = ""
            if isinstance(event, BadItem):
                self._note_bad(event)
                self._version = event.metadata.resource_version or self._version
                continue
            if event.object is not None:
                if event.type == "DELETED":
                    self._deleted(event.object)
                else:
                    self._seen(event.object)
            self._version = event.resource_version or self._version

    def _after(self, error: TidemarkError, failures: int) -> float:
        """Note why the list or watch ended and return how long to wait before the next list."""
        self.problem = str(error)
        if isinstance(error, errors.NotFound):
            if not self.absent:
                log.info("%s is not installed; looking again each %g s", self._what(), self._timing.absent_s)
            self.absent = True
            self._replace([], [], "")
            if self.optional:
                self.synced.set()
            return self._timing.absent_s
        if isinstance(error, errors.Gone):
            return self._pause(1)
        if isinstance(error, Terminal):
            log.warning("cannot read %s: %s", self._what(), error.sentence())
            return self._timing.backoff_max_s
        log.info("cannot read %s: %s", self._what(), error)
        return self._pause(failures)

    def _pause(self, failures: int) -> float:
        longest = min(self._timing.backoff_max_s, self._timing.backoff_s * 2.0 ** min(failures - 1, 30))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter

    def _what(self) -> str:
        return f"{self.kind.RESOURCE.plural}.{self.kind.RESOURCE.group}".rstrip(".")

    # What was heard

    def _seen(self, obj: T) -> None:
        """Take an ADDED or MODIFIED event."""
        meta = obj.metadata
        key = (meta.namespace, meta.name)
        self.bad.pop(key, None)
        known = self._objects.get(key)
        if known is not None and known.metadata.resource_version != meta.resource_version:
            if not is_newer(meta.resource_version, known.metadata.resource_version):
                return  # we learned a later reply before the watch came by
        elif known is not None:
            return
        if meta.uid in self._graves and known is None:
            self._graves.pop(meta.uid)
        self._put(obj)

    def _deleted(self, obj: T) -> None:
        """Take a DELETED event; it means exactly the uid that it names."""
        meta = obj.metadata
        self.bad.pop((meta.namespace, meta.name), None)
        self._bury(meta.uid)
        known = self._objects.get((meta.namespace, meta.name))
        if known is not None and known.metadata.uid == meta.uid:
            self._remove((meta.namespace, meta.name))

    def _note_bad(self, item: BadItem) -> None:
        """Keep the last good version of an object that no longer fits; a deletion still counts."""
        meta = item.metadata
        key = (meta.namespace, meta.name)
        if item.type == "DELETED":
            self.bad.pop(key, None)
            self._bury(meta.uid)
            if key in self._objects and self._objects[key].metadata.uid == meta.uid:
                self._remove(key)
            return
        self.stats.undecodable += 1
        if key not in self.bad:
            log.warning("%s", item.error.sentence())
        self.bad[key] = str(item.error)

    def _replace(self, items: list[T], bad: list[BadItem], version: str) -> None:
        """Take a whole list: what is not in it is deleted, unless we learned it later than the list was made."""
        present = {(item.namespace, item.name) for item in items}
        doubtful = {(item.metadata.namespace, item.metadata.name) for item in bad}
        self.bad = {}
        for key in [key for key in self._objects if key not in present and key not in doubtful]:
            known = self._objects[key].metadata
            later = version.isdigit() and known.resource_version.isdigit()
            if later and is_newer(known.resource_version, version):
                continue
            self._bury(known.uid)
            self._remove(key)
        for unfit in bad:
            self._note_bad(unfit)
        self._version = version
        for item in items:
            self._seen(item)

    # The store itself

    def _put(self, obj: T) -> None:
        key = (obj.metadata.namespace, obj.metadata.name)
        old = self._objects.get(key)
        if old is not None and old.metadata.uid != obj.metadata.uid:
            # Deleted and made again behind our back: tell both.
            self._bury(old.metadata.uid)
            self._remove(key)
            old = None
        if old is not None:
            self._unindex(key, old)
        self._objects[key] = obj
        self._uids[obj.metadata.uid] = key
        for name, indexer in self._indexers.items():
            for value in indexer(obj):
                self._indices[name].setdefault(value, set()).add(key)
        self._tell(old, obj)

    def _remove(self, key: ObjectKey) -> None:
        old = self._objects.pop(key)
        self._uids.pop(old.metadata.uid, None)
        self._unindex(key, old)
        self._tell(old, None)

    def _unindex(self, key: ObjectKey, obj: T) -> None:
        for name, indexer in self._indexers.items():
            index = self._indices[name]
            for value in indexer(obj):
                index.get(value, set()).discard(key)
                if not index.get(value):
                    index.pop(value, None)

    def _bury(self, uid: str) -> None:
        self._graves[uid] = None
        while len(self._graves) > GRAVES:
            self._graves.popitem(last=False)

    def _covers(self, meta: ObjectMeta) -> bool:
        return (not self.namespace or meta.namespace == self.namespace) and self._selector.matches(meta.labels)

    def _tell(self, old: T | None, new: T | None) -> None:
        for handler in self._handlers:
            try:
                handler(old, new)
            except Exception:
                # A subscriber's mistake must not stop the watch that all others live from.
                log.exception("a subscriber of %s failed", self._what())


class Caches:
    """All caches of the process, by kind."""

    def __init__(self) -> None:
        """Start empty; `app` fills it from its table of kinds."""
        self._caches: dict[type[K8sObject], Cache[K8sObject]] = {}

    def add(self, cache: Cache[U]) -> Cache[U]:
        """Take a cache in; one per kind."""
        if cache.kind in self._caches:
            raise ValueError(f"{cache.kind.__name__} has a cache already")
        self._caches[cache.kind] = cache  # type: ignore[assignment]
        return cache

    def of(self, kind: type[U]) -> Cache[U]:
        """Return the kind's cache; raises LookupError when `app` has none."""
        try:
            return self._caches[kind]  # type: ignore[return-value]
        except KeyError:
            raise LookupError(f"no cache for {kind.__name__}") from None

    def __iter__(self) -> Iterator[Cache[K8sObject]]:
        """Iterate over all caches."""
        return iter(self._caches.values())

    def learn(self, obj: K8sObject) -> None:
        """Hand the reply to a write to its kind's cache, if there is one (a Client's `on_reply` hook)."""
        cache = self._caches.get(type(obj))
        if cache is not None:
            cache.learn(obj)

    def unsynced(self) -> list[str]:
        """Return the kinds that are not synced yet, with the reason where known."""
        waiting = (cache for cache in self._caches.values() if not cache.synced.is_set())
        return [
            f"{cache.kind.__name__}: {cache.problem}" if cache.problem else cache.kind.__name__ for cache in waiting
        ]

    async def wait_synced(self) -> None:
        """Wait until every cache is synced."""
        for cache in self._caches.values():
            await cache.synced.wait()
