"""All objects, in memory, with one revision counter and a bounded history of changes for watches.

Everything here is synchronous and runs on the event loop, so a read-modify-write without an await is atomic. Objects
handed out are shared: whoever wants to change one clones it first.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from orchestrator.sandbox.apiserver.journal import Journal
from orchestrator.sandbox.apiserver.objects import Obj, name_of, namespace_of

_encode = msgspec.json.Encoder().encode
#: Revisions skipped at a start, so that none that a watcher saw before a crash is ever given out again.
RESTART_GAP = 1000
#: The row that keeps the revision of the last removal: no object carries it any more.
_COUNTER = ("", "", "revision")


class Change(NamedTuple):
    """One step in a table's history: `before` is None for a creation, `after` is None for a removal.

    `gone` is the last state of a removed object, with the revision of its removal.
    """

    rv: int
    before: Obj | None
    after: Obj | None
    gone: Obj | None = None


class Table:
    """The objects of one kind, sorted by namespace and name, and their recent history."""

    def __init__(self, floor: int, history: int) -> None:
        self.objects: dict[tuple[str, str], Obj] = {}
        self.keys: list[tuple[str, str]] = []
        self.changes: deque[Change] = deque()
        self.floor = floor
        self.history = history
        self.listeners: list[Callable[[Change], None]] = []

    def set(self, key: tuple[str, str], obj: Obj) -> None:
        if key not in self.objects:
            bisect.insort(self.keys, key)
        self.objects[key] = obj

    def drop(self, key: tuple[str, str]) -> None:
        del self.objects[key]
        del self.keys[bisect.bisect_left(self.keys, key)]

    def record(self, change: Change) -> None:
        self.changes.append(change)
        while len(self.changes) > self.history:
            self.floor = self.changes.popleft().rv
        for listener in list(self.listeners):
            listener(change)


class Store:
    """Tables by storage name. Every change gets the next revision, is journalled and told to listeners."""

    def __init__(self, journal: Journal, history: int = 4096) -> None:
        self._journal = journal
        self._history = history
        self._tables: dict[str, Table] = {}
        self._watchers: list[Callable[[str, Change], None]] = []
        self.rv = 0
        highest = int(journal.meta("rv") or b"0")
        for tab, ns, name, body in journal.rows():
            if tab == _COUNTER[0]:
                highest = max(highest, int(body))
                continue
            obj: Obj = msgspec.json.decode(body)
            highest = max(highest, int(obj["metadata"]["resourceVersion"]))
            self.table(tab).set((ns, name), obj)
        self.rv = highest + RESTART_GAP if highest else 1
        journal.set_meta("rv", str(self.rv).encode())
        for table in self._tables.values():
            table.floor = self.rv

    def table(self, storage: str) -> Table:
        if storage not in self._tables:
            self._tables[storage] = Table(self.rv, self._history)
        return self._tables[storage]

    def storages(self) -> list[str]:
        return list(self._tables)

    def on_change(self, watcher: Callable[[str, Change], None]) -> None:
        """Call with (storage, change) after every change, in order."""
        self._watchers.append(watcher)

    def get(self, storage: str, namespace: str, name: str) -> Obj | None:
        return self.table(storage).objects.get((namespace, name))

    def all(self, storage: str, namespace: str = "") -> list[Obj]:
        """Return the objects, sorted; of one namespace when it is given."""
        return list(self._walk(self.table(storage), namespace))

    @staticmethod
    def _walk(table: Table, namespace: str) -> Iterator[Obj]:
        if not namespace:
            yield from (table.objects[k] for k in table.keys)
            return
        start = bisect.bisect_left(table.keys, (namespace, ""))
        for key in table.keys[start:]:
            if key[0] != namespace:
                return
            yield table.objects[key]

    def all_at(self, storage: str, rv: int, namespace: str = "") -> list[Obj] | None:
        """Return the objects as they were at a revision; None when history does not reach back so far."""
        table = self.table(storage)
        if rv < table.floor:
            return None
        past: dict[tuple[str, str], Obj | None] = {}
        for change in reversed(table.changes):
            if change.rv <= rv:
                break
            shown = change.after or change.before
            assert shown is not None
            past[(namespace_of(shown), name_of(shown))] = change.before
        if not past:
            return self.all(storage, namespace)
        merged = {**table.objects, **past}
        return [o for k, o in sorted(merged.items()) if o is not None and (not namespace or k[0] == namespace)]

    def put(self, storage: str, obj: Obj) -> Obj:
        """Store an object (a new one or a new state) under the next revision; returns it."""
        self.rv += 1
        obj["metadata"]["resourceVersion"] = str(self.rv)
        key = (namespace_of(obj), name_of(obj))
        table = self.table(storage)
        before = table.objects.get(key)
        table.set(key, obj)
        self._journal.append((storage, *key, _encode(obj)))
        self._tell(storage, table, Change(self.rv, before, obj))
        return obj

    def remove(self, storage: str, namespace: str, name: str) -> Obj:
        """Remove an object; returns its last state, with the removal's revision."""
        table = self.table(storage)
        key = (namespace, name)
        before = table.objects[key]
        self.rv += 1
        gone = {**before, "metadata": {**before["metadata"], "resourceVersion": str(self.rv)}}
        table.drop(key)
        self._journal.append((storage, namespace, name, None))
        self._journal.append((*_COUNTER, str(self.rv).encode()))
        self._tell(storage, table, Change(self.rv, before, None, gone))
        return gone

    def _tell(self, storage: str, table: Table, change: Change) -> None:
        table.record(change)
        for watcher in self._watchers:
            watcher(storage, change)

    def forget_history(self, storage: str | None = None) -> None:
        """Drop the history, as a compaction does: watches and continues from before it get 410."""
        for name, table in self._tables.items():
            if storage in {None, name}:
                table.changes.clear()
                table.floor = self.rv

    async def flushed(self) -> None:
        await self._journal.flushed()
