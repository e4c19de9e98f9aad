"""Watch: everything that happens to a kind's objects from one revision on, as one JSON line per event.

An object that moves into a selector is ADDED and one that moves out is DELETED, whatever really happened to it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import msgspec

from orchestrator.sandbox.apiserver.calls import Call
from orchestrator.sandbox.apiserver.conversion import present
from orchestrator.sandbox.apiserver.objects import Obj
from orchestrator.sandbox.apiserver.reading import reached, revision, selection
from orchestrator.sandbox.apiserver.selectors import Predicate
from orchestrator.sandbox.apiserver.status import ApiError, expired, forbidden_field, invalid
from orchestrator.sandbox.apiserver.store import Change, Store

_encode = msgspec.json.Encoder().encode
#: A watcher that is this many events behind is cut off, as the watch cache does.
_MAX_BEHIND = 10_000
#: Turns an object into what goes out: itself, or a Table with one row.
Render = Callable[[Obj], Obj]


class Watch:
    """One watch request; iterate `lines()` for the response body."""

    def __init__(self, store: Store, call: Call, render: Render, bookmark_every_s: float = 60.0) -> None:
        self._table = store.table(call.kind.storage)
        self._store, self._call, self._render = store, call, render
        self._matches: Predicate = selection(call)
        self._pending: deque[Change] = deque()
        self._arrived = asyncio.Event()
        self._every_s = bookmark_every_s
        self._bookmarks = call.info.flag("allowWatchBookmarks")
        self._rv = store.rv
        self._over = False

    def end(self) -> None:
        """End the stream now, as if its time were over: what a server does that shuts down."""
        self._over = True
        self._arrived.set()

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """Yield encoded events until the watch's time is over."""
        asked = self._call.info.number("timeoutSeconds")
        deadline = time.monotonic() + (asked or random.uniform(1800, 3600))  # noqa: S311 - spreads load only
        try:
            await self._subscribe()
            for line in self._first():
                yield line
            async for line in self._live(deadline):
                yield line
        except ApiError as error:
            yield self._event("ERROR", error.status())
        finally:
            if self._take in self._table.listeners:
                self._table.listeners.remove(self._take)

    async def _subscribe(self) -> None:
        wanted = revision(self._call)
        if wanted:
            await reached(self._store, wanted)
            if wanted < self._table.floor:
                raise expired(f"too old resource version: {wanted} ({self._table.floor})")
        self._table.listeners.append(self._take)
        self._rv = self._store.rv

    def _take(self, change: Change) -> None:
        if len(self._pending) >= _MAX_BEHIND:
            self._over = True
        else:
            self._pending.append(change)
        self._arrived.set()

    def _first(self) -> list[bytes]:
        """Return the state at the start, or the history since the asked revision."""
        wanted = revision(self._call)
        initial = self._call.info.query.get("sendInitialEvents", "").lower()
        lines: list[bytes] = []
        if initial == "true" or (not initial and not wanted):
            found = self._store.all(self._call.kind.storage, self._call.namespace)
            lines = [self._event("ADDED", self._shown(o)) for o in found if self._matches(o)]
            if initial == "true":
                annotation = {"k8s.io/initial-events-end": "true"}
                lines.append(self._event("BOOKMARK", self._bookmark(annotation)))
            return lines
        if wanted:
            since = [c for c in self._table.changes if c.rv > wanted]
            return [line for c in since for line in self._translate(c)]
        return lines

    async def _live(self, deadline: float) -> AsyncIterator[bytes]:
        mark = self._next_mark(time.monotonic(), deadline)
        while (now := time.monotonic()) < deadline and not self._over:
            self._arrived.clear()
            batch: list[bytes] = []
            while self._pending:
                change = self._pending.popleft()
                self._rv = change.rv
                batch += self._translate(change)
            if now >= mark:
                self._rv = max(self._rv, self._store.rv)
                batch.append(self._event("BOOKMARK", self._bookmark(None)))
                mark = self._next_mark(now, deadline)
            if batch:
                yield b"".join(batch)
            else:
                await self._sleep(min(deadline, mark) - now)

    def _next_mark(self, now: float, deadline: float) -> float:
        """Return when the next bookmark is due: regularly, and shortly before the end; never without being asked."""
        last = deadline - 2.0
        if not self._bookmarks or now >= last:
            return float("inf")
        return min(now + self._every_s, last)

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._arrived.wait()
        except TimeoutError:
            return

    def _translate(self, change: Change) -> list[bytes]:
        before = change.before is not None and self._matches(change.before)
        after = change.after is not None and self._matches(change.after)
        if after and change.after is not None:
            return [self._event("MODIFIED" if before else "ADDED", self._shown(change.after))]
        if before and change.before is not None:
            last = change.gone
            if last is None:
                rv = str(change.rv)
                last = {**change.before, "metadata": {**change.before["metadata"], "resourceVersion": rv}}
            return [self._event("DELETED", self._shown(last))]
        return []

    def _shown(self, obj: Obj) -> Obj:
        return self._render(present(obj, self._call.kind))

    def _bookmark(self, annotations: dict[str, str] | None) -> Obj:
        kind = self._call.kind
        meta: Obj = {"resourceVersion": str(self._rv)}
        if annotations:
            meta["annotations"] = annotations
        return {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": meta}

    @staticmethod
    def _event(verb: str, obj: Obj) -> bytes:
        return _encode({"type": verb, "object": obj}) + b"\n"


def check_watch(call: Call) -> None:
    """Refuse combinations that the API refuses before a stream starts."""
    query = call.info.query
    initial = query.get("sendInitialEvents", "")
    match = query.get("resourceVersionMatch", "")
    if initial and match != "NotOlderThan":
        raise _invalid("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")
    if match and not initial:
        raise _invalid("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided")
    if initial.lower() == "true" and not call.info.flag("allowWatchBookmarks"):
        raise _invalid("sendInitialEvents requires setting allowWatchBookmarks to true", "allowWatchBookmarks")
    revision(call)
    selection(call)


def _invalid(detail: str, field: str = "resourceVersionMatch") -> ApiError:
    return invalid("ListOptions", "meta.k8s.io", "", [forbidden_field(field, detail)])
