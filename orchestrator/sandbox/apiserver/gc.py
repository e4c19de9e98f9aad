"""Owner references: dependents go with their last owner; foreground deletes wait; orphans are let loose."""

from __future__ import annotations

import asyncio

from orchestrator.sandbox.apiserver.namespaces import system_call
from orchestrator.sandbox.apiserver.objects import Obj, clone
from orchestrator.sandbox.apiserver.registry import Kind, Registry
from orchestrator.sandbox.apiserver.status import ApiError
from orchestrator.sandbox.apiserver.store import Change, Store
from orchestrator.sandbox.apiserver.writing import Writer

_FOREGROUND, _ORPHAN = "foregroundDeletion", "orphan"
#: (storage, namespace, name)
Place = tuple[str, str, str]


class Collector:
    """Follow all objects; act on those whose owners went or wait for their dependents."""

    def __init__(self, store: Store, registry: Registry, writer: Writer) -> None:
        self._store, self._registry, self._writer = store, registry, writer
        self._wake = asyncio.Event()
        self._dependents: dict[str, set[Place]] = {}
        self._pending: dict[Place, None] = {}
        for storage in store.storages():
            for obj in store.all(storage):
                self._index(storage, None, obj)
        store.on_change(self._changed)

    def _changed(self, storage: str, change: Change) -> None:
        self._index(storage, change.before, change.after)
        if change.after is None and change.before is not None:
            for place in self._dependents.get(change.before["metadata"]["uid"], ()):
                self._pending[place] = None
        if self._pending:
            self._wake.set()

    def _index(self, storage: str, before: Obj | None, after: Obj | None) -> None:
        obj = after or before
        assert obj is not None
        meta = obj["metadata"]
        place = (storage, meta.get("namespace", ""), meta["name"])
        old = {o["uid"] for o in (before or {}).get("metadata", {}).get("ownerReferences") or []}
        new = {o["uid"] for o in (after or {}).get("metadata", {}).get("ownerReferences") or []}
        for uid in old - new:
            self._dependents.get(uid, set()).discard(place)
            self._wake_owner(obj)
        for uid in new:
            self._dependents.setdefault(uid, set()).add(place)
        if new:
            self._pending[place] = None
        if (
            after is not None
            and set(meta.get("finalizers") or []) & {_FOREGROUND, _ORPHAN}
            and meta.get("deletionTimestamp")
        ):
            self._pending[place] = None
        if after is None:
            self._wake_owner(obj)

    def _wake_owner(self, obj: Obj) -> None:
        """Look again at the owners of something that changed: they may wait for it."""
        for owner in obj["metadata"].get("ownerReferences") or []:
            found = self._owner(owner, obj["metadata"].get("namespace", ""))
            if found is not None:
                kind, live = found
                self._pending[(kind.storage, live["metadata"].get("namespace", ""), live["metadata"]["name"])] = None

    async def run(self) -> None:
        """Settle what is pending, a few at a time, so that requests are answered meanwhile."""
        while True:
            self._wake.clear()
            while self._pending:
                for place in list(self._pending)[:100]:
                    del self._pending[place]
                    self._settle(place)
                await asyncio.sleep(0)
            await self._wake.wait()

    def _settle(self, place: Place) -> None:
        obj = self._store.get(*place)
        kind = self._registry.by_storage(place[0])
        if obj is None or kind is None:
            return
        meta = obj["metadata"]
        try:
            if meta.get("deletionTimestamp"):
                self._finish(kind, obj)
            elif meta.get("ownerReferences"):
                self._check_owners(kind, obj)
        except ApiError:
            self._pending.pop(place, None)

    def _owner(self, reference: Obj, namespace: str) -> tuple[Kind, Obj] | None:
        """Return a living owner; a namespaced one is looked for in the dependent's own namespace."""
        group, _, _ = str(reference.get("apiVersion", "")).rpartition("/")
        kind = self._registry.any_version(group, str(reference.get("kind", "")))
        if kind is None:
            return None
        found = self._store.get(kind.storage, namespace if kind.namespaced else "", str(reference.get("name", "")))
        if found is None or found["metadata"]["uid"] != reference.get("uid"):
            return None
        return kind, found

    def _known(self, reference: Obj) -> bool:
        """Tell whether the owner's kind is served at all: the collector does not judge what it cannot look up."""
        group, _, _ = str(reference.get("apiVersion", "")).rpartition("/")
        return self._registry.any_version(group, str(reference.get("kind", ""))) is not None

    def _check_owners(self, kind: Kind, obj: Obj) -> None:
        meta = obj["metadata"]
        owners = [(r, self._owner(r, meta.get("namespace", ""))) for r in meta["ownerReferences"]]
        if any(found is None and not self._known(r) for r, found in owners):
            return
        solid = [r for r, found in owners if found and not _is_foreground(found[1])]
        waiting = [r for r, found in owners if found and _is_foreground(found[1])]
        if solid:
            gone = [r for r, found in owners if found is None]
            if gone or waiting:
                self._set_owners(kind, obj, solid)
            return
        uid = {"preconditions": {"uid": meta["uid"]}}
        if waiting:
            blocks = any(r.get("blockOwnerDeletion") for r in waiting) and bool(self._dependents.get(meta["uid"]))
            policy = "Foreground" if blocks else "Background"
            self._writer.delete(system_call(kind, "delete", obj), {**uid, "propagationPolicy": policy})
            return
        self._writer.delete(system_call(kind, "delete", obj), {**uid, "propagationPolicy": "Background"})

    def _set_owners(self, kind: Kind, obj: Obj, owners: list[Obj]) -> None:
        meta = {**obj["metadata"], "ownerReferences": owners}
        if not owners:
            del meta["ownerReferences"]
        self._store.put(kind.storage, {**obj, "metadata": meta})

    def _finish(self, kind: Kind, obj: Obj) -> None:
        """Carry out what the finalizers of a deleted object stand for."""
        meta = obj["metadata"]
        finalizers = meta.get("finalizers") or []
        dependents = [
            (p, o) for p in self._dependents.get(meta["uid"], set()) if (o := self._store.get(*p)) is not None
        ]
        if _ORPHAN in finalizers:
            for place, dependent in dependents:
                owners = [r for r in dependent["metadata"]["ownerReferences"] if r["uid"] != meta["uid"]]
                found = self._registry.by_storage(place[0])
                if found is not None:
                    self._set_owners(found, dependent, owners)
            self._drop_finalizer(kind, obj, _ORPHAN)
        elif _FOREGROUND in finalizers:
            blocking = [
                o
                for _, o in dependents
                if any(
                    r["uid"] == meta["uid"] and r.get("blockOwnerDeletion") for r in o["metadata"]["ownerReferences"]
                )
            ]
            for place, dependent in dependents:
                if not dependent["metadata"].get("deletionTimestamp"):
                    self._pending[place] = None
            if not blocking:
                self._drop_finalizer(kind, obj, _FOREGROUND)

    def _drop_finalizer(self, kind: Kind, obj: Obj, finalizer: str) -> None:
        new: Obj = clone(obj)
        new["metadata"]["finalizers"] = [f for f in new["metadata"]["finalizers"] if f != finalizer]
        self._writer.settle(kind, new)


def _is_foreground(owner: Obj) -> bool:
    meta = owner["metadata"]
    return bool(meta.get("deletionTimestamp")) and _FOREGROUND in (meta.get("finalizers") or [])
