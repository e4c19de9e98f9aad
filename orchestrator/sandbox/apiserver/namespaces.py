"""The life of a namespace: what it gets when it comes, and how it is emptied before it goes.

Also ends CustomResourceDefinitions: their instances go first, and the definition after them.
"""

from __future__ import annotations

import asyncio
import uuid

from orchestrator.sandbox.apiserver.calls import Call, User
from orchestrator.sandbox.apiserver.crds import CLEANUP, CRDS
from orchestrator.sandbox.apiserver.objects import Obj, now_text
from orchestrator.sandbox.apiserver.registry import Kind, Registry
from orchestrator.sandbox.apiserver.requests import RequestInfo
from orchestrator.sandbox.apiserver.store import Change, Store
from orchestrator.sandbox.apiserver.writing import Writer

_SYSTEM = User("system:apiserver", ("system:masters",))


def system_call(kind: Kind, verb: str, obj: Obj, subresource: str = "") -> Call:
    """Return a call that the server makes on itself."""
    meta = obj["metadata"]
    info = RequestInfo(
        path="", verb=verb, group=kind.group, version=kind.version, namespace=meta.get("namespace", ""),
        resource=kind.plural, name=meta["name"], subresource=subresource,
    )  # fmt: skip
    return Call(info, kind, _SYSTEM, "kube-controller-manager")


class Namespaces:
    """Give namespaces their default account and CA bundle; empty those that are being deleted."""

    def __init__(self, store: Store, registry: Registry, writer: Writer, ca_pem: bytes) -> None:
        self._store, self._registry, self._writer, self._ca = store, registry, writer, ca_pem.decode()
        self._wake = asyncio.Event()
        store.on_change(self._changed)

    def _changed(self, storage: str, change: Change) -> None:
        obj = change.after or change.before
        assert obj is not None
        if storage in {"namespaces", CRDS} or change.after is None:
            self._wake.set()

    async def run(self) -> None:
        """Settle namespaces and definitions whenever something changed that may matter to them."""
        while True:
            self._wake.clear()
            for namespace in self._store.all("namespaces"):
                if namespace["metadata"].get("deletionTimestamp"):
                    self._empty(namespace)
                else:
                    self._furnish(namespace["metadata"]["name"])
            for crd in self._store.all(CRDS):
                if crd["metadata"].get("deletionTimestamp"):
                    self._end(crd)
            await self._wake.wait()

    def _furnish(self, namespace: str) -> None:
        if self._store.get("serviceaccounts", namespace, "default") is None:
            self._put("serviceaccounts", "ServiceAccount", namespace, "default", {})
        if self._store.get("configmaps", namespace, "kube-root-ca.crt") is None:
            self._put("configmaps", "ConfigMap", namespace, "kube-root-ca.crt", {"data": {"ca.crt": self._ca}})

    def _put(self, storage: str, kind: str, namespace: str, name: str, content: Obj) -> None:
        meta = {"name": name, "namespace": namespace, "uid": str(uuid.uuid4()), "creationTimestamp": now_text()}
        self._store.put(storage, {"apiVersion": "v1", "kind": kind, "metadata": meta, **content})

    def _empty(self, namespace: Obj) -> None:
        """Delete what is in a namespace; let the namespace go when nothing is left."""
        name = namespace["metadata"]["name"]
        left: dict[str, int] = {}
        finalizers: dict[str, int] = {}
        for kind in self._contents():
            for obj in self._store.all(kind.storage, name):
                if not obj["metadata"].get("deletionTimestamp"):
                    self._writer.delete(system_call(kind, "delete", obj), {"propagationPolicy": "Background"})
            for obj in self._store.all(kind.storage, name):
                left[kind.qualified] = left.get(kind.qualified, 0) + 1
                for finalizer in obj["metadata"].get("finalizers") or []:
                    finalizers[finalizer] = finalizers.get(finalizer, 0) + 1
        current = self._store.get("namespaces", "", name)
        if current is None:
            return
        own = self._registry.find("", "v1", "namespaces")
        assert own is not None
        if not left:
            rest = [f for f in current["spec"].get("finalizers") or [] if f != "kubernetes"]
            self._writer.finalize_namespace(system_call(own, "update", current, "finalize"), rest)
            return
        self._report(current, left, finalizers)

    def _contents(self) -> list[Kind]:
        seen: dict[str, Kind] = {}
        for kind in self._registry:
            if kind.namespaced and "delete" in kind.verbs:
                seen.setdefault(kind.storage, kind)
        return list(seen.values())

    def _report(self, namespace: Obj, left: dict[str, int], finalizers: dict[str, int]) -> None:
        resources = ", ".join(f"{k} has {n} resource instances" for k, n in sorted(left.items()))
        waiting = ", ".join(f"{k} in {n} resource instances" for k, n in sorted(finalizers.items()))
        texts = [
            (
                "NamespaceDeletionDiscoveryFailure",
                False,
                "ResourcesDiscovered",
                "All resources successfully discovered",
            ),
            (
                "NamespaceDeletionGroupVersionParsingFailure",
                False,
                "ParsedGroupVersions",
                "All legacy kube types successfully parsed",
            ),
            (
                "NamespaceDeletionContentFailure",
                False,
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            ),
            ("NamespaceContentRemaining", True, "SomeResourcesRemain", f"Some resources are remaining: {resources}"),
            (
                "NamespaceFinalizersRemaining",
                bool(waiting),
                "SomeFinalizersRemain" if waiting else "ContentHasNoFinalizers",
                f"Some content in the namespace has finalizers remaining: {waiting}"
                if waiting
                else "All content-preserving finalizers finished",
            ),
        ]
        before = {c["type"]: c for c in (namespace.get("status") or {}).get("conditions") or []}
        conditions = []
        for kind, true, reason, message in texts:
            state = "True" if true else "False"
            since = (
                before[kind]["lastTransitionTime"] if kind in before and before[kind]["status"] == state else now_text()
            )
            conditions.append(
                {"type": kind, "status": state, "lastTransitionTime": since, "reason": reason, "message": message}
            )
        status = {"phase": "Terminating", "conditions": conditions}
        if status != namespace.get("status"):
            self._store.put("namespaces", {**namespace, "metadata": dict(namespace["metadata"]), "status": status})

    def _end(self, crd: Obj) -> None:
        """Delete a definition's instances, then let the definition go."""
        storage = crd["metadata"]["name"]
        kind = self._registry.by_storage(storage)
        if kind is not None:
            for obj in self._store.all(storage):
                if not obj["metadata"].get("deletionTimestamp"):
                    self._writer.delete(system_call(kind, "delete", obj), {})
        if self._store.all(storage):
            return
        rest = [f for f in crd["metadata"].get("finalizers") or [] if f != CLEANUP]
        if rest == crd["metadata"].get("finalizers"):
            return
        if not rest:
            self._store.remove(CRDS, "", storage)
            return
        self._store.put(CRDS, {**crd, "metadata": {**crd["metadata"], "finalizers": rest}})
