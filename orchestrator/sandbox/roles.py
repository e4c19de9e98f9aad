"""Mirrors of what the API server holds, and roles that react to them.

A `Mirror` lists and watches one kind. A `Role` reconciles keys: one pass per key at a time, again with back-off when it
failed. A `Part` (storage, node, metadata) owns both in one TaskGroup. There is no other memory: kill a part at any
line, and the next pass after a restart carries on.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Protocol

from orchestrator.api.meta import Resource
from orchestrator.errors import TidemarkError
from orchestrator.sandbox.api import Api, ApiError, Conflict, Expired, NotFound
from orchestrator.sandbox.objects import Key, Manifest, key, uid, version

log = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 10.0
_CONFLICT_RETRY_S = 0.02
_PARALLEL = 16

Listener = Callable[[Manifest, bool], None]
"""Called with the object and whether it is gone."""


class Mirror:
    """The objects of one kind as last seen, kept by list and watch."""

    def __init__(self, api: Api, resource: Resource, in_namespace: str = "") -> None:
        self._api = api
        self._namespace = in_namespace
        self.resource = resource
        self.synced = asyncio.Event()
        self._objects: dict[Key, Manifest] = {}
        self._gone: deque[str] = deque(maxlen=2048)
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Call `listener` on every change from now on; it must not block."""
        self._listeners.append(listener)

    def get(self, in_namespace: str, at: str) -> Manifest | None:
        """Return the object of that key, if there."""
        return self._objects.get((in_namespace, at))

    def at(self, at: Key) -> Manifest | None:
        """Return the object of that key, if there."""
        return self._objects.get(at)

    def __iter__(self) -> Iterator[Manifest]:
        return iter(list(self._objects.values()))

    def saw(self, obj: Manifest) -> Manifest:
        """Take in the answer to a write at once, if newer; without this the next pass decides on stale state."""
        held = self._objects.get(key(obj))
        if uid(obj) in self._gone or (held is not None and version(held) >= version(obj)):
            return obj
        self._objects[key(obj)] = obj
        self._tell(obj, gone=False)
        return obj

    def _drop(self, obj: Manifest) -> None:
        self._gone.append(uid(obj))
        held = self._objects.get(key(obj))
        if held is not None and uid(held) == uid(obj):
            del self._objects[key(obj)]
        self._tell(obj, gone=True)

    def _tell(self, obj: Manifest, *, gone: bool) -> None:
        for listener in self._listeners:
            listener(obj, gone)

    async def run(self) -> None:
        """List, then watch, for ever; list again when the watch is too old or broken."""
        delay = _FIRST_RETRY_S
        while True:
            try:
                since = await self._relist()
                self.synced.set()
                delay = _FIRST_RETRY_S
                await self._follow(since)
            except NotFound:
                delay = _FIRST_RETRY_S  # a CRD that is not served yet
            except ApiError as err:
                log.debug("mirror of %s: %s", self.resource.plural, err)
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LAST_RETRY_S)

    async def _relist(self) -> str:
        items, since = await self._api.list(self.resource, self._namespace)
        listed = {uid(item) for item in items}
        for item in items:
            self.saw(item)
        for held in list(self._objects.values()):
            if uid(held) not in listed and version(held) <= int(since):
                self._drop(held)
        return since

    async def _follow(self, since: str) -> None:
        while True:
            try:
                async for event in self._api.watch(self.resource, since, self._namespace):
                    obj = event["object"]
                    since = str(obj["metadata"]["resourceVersion"])
                    if event["type"] == "DELETED":
                        self._drop(obj)
                    elif event["type"] != "BOOKMARK":
                        self.saw(obj)
            except Expired:
                return


class Role(ABC):
    """One controller: reconciles keys, each by one pass at a time, several keys side by side."""

    name: str = "role"

    def __init__(self) -> None:
        self._due: dict[Key, float] = {}
        self._busy: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._wake = asyncio.Event()

    @abstractmethod
    async def reconcile(self, at: Key) -> float | None:
        """Make one pass; return seconds until the next one is wanted, or None to wait for a change."""

    def want(self, at: Key, after_s: float = 0.0) -> None:
        """Ask for a pass, now or later; the earliest wish counts."""
        when = asyncio.get_running_loop().time() + after_s
        if self._due.get(at, when + 1) > when:
            self._due[at] = when
            self._wake.set()

    async def run(self) -> None:
        """Reconcile for ever."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            while True:
                now = loop.time()
                ready = [at for at, when in self._due.items() if when <= now and at not in self._busy]
                for at in ready[: _PARALLEL - len(self._busy)]:
                    del self._due[at]
                    self._busy.add(at)
                    tasks.create_task(self._pass(at), name=f"{self.name} {at[0]}/{at[1]}")
                waiting = [when for at, when in self._due.items() if at not in self._busy]
                self._wake.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(min(waiting) if waiting and len(self._busy) < _PARALLEL else None):
                        await self._wake.wait()

    async def _pass(self, at: Key) -> None:
        try:
            again = await self.reconcile(at)
        except (Conflict, NotFound) as err:  # overtaken by another writer: look again
            log.debug("%s %s/%s: %s", self.name, at[0], at[1], err)
            self.want(at, _CONFLICT_RETRY_S if isinstance(err, Conflict) else _FIRST_RETRY_S)
        except (TidemarkError, OSError) as err:
            failures = self._failures[at] = min(self._failures.get(at, 0) + 1, 16)
            log.info("%s %s/%s: %s", self.name, at[0], at[1], err)
            self.want(at, min(_FIRST_RETRY_S * 2**failures, _LAST_RETRY_S))
        except Exception:  # one malformed object of one tenant must not end the whole cluster
            log.exception("%s %s/%s", self.name, *at)
            self.want(at, _LAST_RETRY_S)
        else:
            self._failures.pop(at, None)
            if again is not None:
                self.want(at, again)
        finally:
            self._busy.discard(at)
            self._wake.set()


class Runnable(Protocol):
    """What a part runs beside its mirrors: a role, a listener."""

    name: str

    async def run(self) -> None:
        """Run until cancelled."""


class Part(ABC):
    """A program of the sandbox: its mirrors and roles under one TaskGroup."""

    name: str = "part"

    def __init__(self, api: Api) -> None:
        self.api = api
        self.ready = asyncio.Event()
        self._mirrors: dict[Resource, Mirror] = {}

    def mirror(self, resource: Resource, in_namespace: str = "") -> Mirror:
        """Return the one mirror of a kind; roles of a part share it."""
        return self._mirrors.setdefault(resource, Mirror(self.api, resource, in_namespace))

    @abstractmethod
    async def setup(self) -> list[Runnable]:
        """Create what the part needs in the cluster and return its roles, wired to mirrors."""

    async def begin(self) -> None:  # noqa: B027 - most parts find nothing of an earlier life
        """Do what must be done before the part counts as ready; the mirrors are in step by then."""

    async def teardown(self) -> None:  # noqa: B027 - most parts leave nothing to end
        """End what the part started outside of this process's tasks."""

    async def run(self) -> None:
        """Run until cancelled."""
        try:
            roles = await self.setup()
            async with asyncio.TaskGroup() as tasks:
                for mirror in self._mirrors.values():
                    tasks.create_task(mirror.run(), name=f"{self.name} mirror {mirror.resource.plural}")
                for mirror in self._mirrors.values():
                    await mirror.synced.wait()
                await self.begin()
                for role in roles:
                    tasks.create_task(role.run(), name=f"{self.name} {role.name}")
                self.ready.set()
        finally:
            await self.teardown()
