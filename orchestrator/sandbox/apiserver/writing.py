"""Create, update, patch and delete.

Each step from reading the old state to storing the new one runs without an await: it is atomic. Callers wait for the
journal before they answer.
"""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.sandbox.apiserver import admission, strategy
from orchestrator.sandbox.apiserver.calls import Call
from orchestrator.sandbox.apiserver.conversion import present, to_stored
from orchestrator.sandbox.apiserver.managed import Managers
from orchestrator.sandbox.apiserver.objects import Obj, clone, metadata, name_of, namespace_of
from orchestrator.sandbox.apiserver.reading import fetch, selection
from orchestrator.sandbox.apiserver.registry import Kind, Registry
from orchestrator.sandbox.apiserver.status import (
    already_exists,
    bad_request,
    conflict,
    forbidden,
    invalid,
    invalid_value,
    not_found,
    not_supported,
    required,
)
from orchestrator.sandbox.apiserver.store import Store

#: Told what was asked of a delete: may add finalizers or owners' rules. See gc.
Policy = str


class Writer:
    """The writes of every kind that is stored."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store, self._registry = store, registry
        self._managers = Managers()

    def stored_kind(self, kind: Kind) -> Kind:
        found = self._registry.by_storage(kind.storage)
        assert found is not None
        return found

    # create

    def create(self, call: Call, body: Obj, *, manager: str = "", operation: str = "Update") -> Obj:
        """Store a new object from a body that belongs to the caller; returns it as the call's version shows it."""
        kind = call.kind
        admission.check_type(call, body, kind)
        admission.check_fields(call, body, kind)
        admission.check_place(call, body)
        if metadata(body).get("resourceVersion"):
            raise bad_request("resourceVersion should not be set on objects to be created")
        if operation != "Apply":
            metadata(body).pop("managedFields", None)
        strategy.reset_status(kind, body)
        admission.stamp_new(kind, body)
        stored_kind = self.stored_kind(kind)
        hidden = strategy.unowned(kind, body)
        obj = to_stored(body, kind, stored_kind)
        admission.check_namespace(self._store, call, name_of(obj))
        admission.fill_in(stored_kind, obj)
        admission.validate(stored_kind, obj, None)
        name = name_of(obj)
        if self._store.get(kind.storage, namespace_of(obj), name) is not None:
            raise already_exists(kind.plural, kind.group, name)
        if operation != "Apply":
            self._managers.record(call, present(obj, kind), None, manager or call.manager, hidden)
        if not call.info.dry_run:
            self._store.put(kind.storage, obj)
        return present(obj, kind)

    # update

    def update(self, call: Call, body: Obj) -> Obj:
        """Replace an object, or its status through the status subresource."""
        admission.check_type(call, body, call.kind)
        admission.check_place(call, body)
        old = self._store.get(call.kind.storage, call.namespace, call.name)
        if old is None:
            if call.kind.storage in strategy.CREATE_ON_UPDATE and not call.info.subresource:
                return self.create(call, body)
            raise not_found(call.kind.plural, call.kind.group, call.name)
        admission.check_fields(call, body, call.kind)
        return self.replace(call, body, old)

    def change(self, call: Call, alter: Callable[[Obj], Obj]) -> Obj:
        """Apply a patch function to the object as the call's version shows it."""
        old = fetch(self._store, call)
        shown = present(old, call.kind)
        body = alter(shown)
        admission.check_type(call, body, call.kind)
        admission.check_place(call, body)
        admission.check_fields(call, body, call.kind)
        if not metadata(body).get("resourceVersion"):
            metadata(body)["resourceVersion"] = old["metadata"]["resourceVersion"]
        return self.replace(call, body, old)

    def apply(self, call: Call, config: Obj, *, force: bool) -> tuple[Obj, bool]:
        """Server-side apply; returns the object and whether it was created."""
        kind = call.kind
        manager = call.info.query.get("fieldManager", "")
        if not manager:
            cause = required("fieldManager", "is required for apply patch")
            raise invalid("PatchOptions", "meta.k8s.io", "", [cause])
        if not (config.get("apiVersion") and config.get("kind")):
            group, _, version = str(config.get("apiVersion") or "").rpartition("/")
            raise bad_request(f"invalid object type: {group}/{version}, Kind={config.get('kind') or ''}")
        admission.check_type(call, config, kind)
        admission.check_place(call, config)
        admission.check_fields(call, config, kind)
        if metadata(config).get("managedFields"):
            raise bad_request("metadata.managedFields must be nil")
        old = self._store.get(kind.storage, call.namespace, call.name)
        if old is None:
            if call.info.subresource:
                raise not_found(kind.plural, kind.group, call.name)
            empty = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {}}
            body = self._managers.apply(call, empty, config, manager=manager, force=force)
            return self.create(call, body, operation="Apply"), True
        uid = metadata(config).get("uid")
        if uid and uid != old["metadata"]["uid"]:
            why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {old['metadata']['uid']}"
            raise conflict(kind.plural, kind.group, call.name, why)
        wanted = metadata(config).get("resourceVersion")
        if wanted and wanted != old["metadata"]["resourceVersion"]:
            raise conflict(kind.plural, kind.group, call.name)
        merged = self._managers.apply(call, present(old, kind), config, manager=manager, force=force)
        return self.replace(call, merged, old, tracked=False), False

    def replace(self, call: Call, body: Obj, old: Obj, *, tracked: bool = True) -> Obj:
        """Store a new state over an old one; `tracked` records the caller as manager of what changed."""
        kind, stored_kind = call.kind, self.stored_kind(call.kind)
        new = clone(to_stored(body, kind, stored_kind))
        admission.keep_system_metadata(stored_kind, new, old)
        if call.info.subresource == "status":
            new = strategy.only_status(stored_kind, new, old)
        elif not call.info.subresource or call.info.subresource == "scale":
            strategy.keep_status(stored_kind, new, old)
        admission.fill_in(stored_kind, new)
        admission.validate(stored_kind, new, old, status_only=call.info.subresource == "status")
        if call.info.subresource != "status" and strategy.bumps_generation(stored_kind, new, old):
            new["metadata"] = {**new["metadata"], "generation": old["metadata"].get("generation", 0) + 1}
        if kind.storage == "persistentvolumeclaims" and not call.info.subresource:
            self._check_resize(new, old)
        if tracked:
            new["metadata"] = dict(new["metadata"])
            self._managers.record(call, present(new, kind), present(old, kind), call.manager)
        if admission.same(new, old):
            return present(old, kind)
        if call.info.dry_run:
            return present(new, kind)
        return present(self.settle(stored_kind, new), kind)

    def _check_resize(self, new: Obj, old: Obj) -> None:
        """Refuse to grow a claim whose class does not allow it."""
        before, after = ((o["spec"].get("resources") or {}).get("requests") or {} for o in (old, new))
        if before.get("storage") == after.get("storage"):
            return
        found = self._store.get("storageclasses.storage.k8s.io", "", str(old["spec"].get("storageClassName") or ""))
        if not (found and found.get("allowVolumeExpansion")):
            why = (
                "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must "
                "support resize"
            )
            raise forbidden("persistentvolumeclaims", "", name_of(old), why)

    def settle(self, kind: Kind, new: Obj) -> Obj:
        """Store a new state, or remove the object when it was only waiting for its finalizers."""
        meta = new["metadata"]
        waiting = bool(meta.get("finalizers")) or bool(kind.storage == "namespaces" and new["spec"].get("finalizers"))
        if meta.get("deletionTimestamp") and not waiting and not meta.get("deletionGracePeriodSeconds"):
            self._store.remove(kind.storage, namespace_of(new), name_of(new))
            return new
        return self._store.put(kind.storage, new)

    # delete

    def delete(self, call: Call, options: Obj) -> tuple[Obj, bool]:
        """Delete an object as the options say; returns its last state and whether it is gone now."""
        old = fetch(self._store, call)
        return self._delete(call, old, options)

    def _delete(self, call: Call, old: Obj, options: Obj) -> tuple[Obj, bool]:
        kind = self.stored_kind(call.kind)
        if kind.storage == "namespaces" and old["metadata"]["name"] in strategy.IMMORTAL:
            raise forbidden("namespaces", "", old["metadata"]["name"], "this namespace may not be deleted")
        self._check_preconditions(kind, old, options.get("preconditions") or {})
        new = {**old, "metadata": dict(old["metadata"])}
        if kind.storage in strategy.ORPHANS_BY_DEFAULT and not {"propagationPolicy", "orphanDependents"} & set(options):
            call.warn(_PODS_STAY)
        _set_propagation(kind, new, options)
        grace = _grace(kind, old, options)
        waiting = bool(new["metadata"].get("finalizers")) or bool(
            kind.storage == "namespaces" and old["spec"].get("finalizers")
        )
        dry = call.info.dry_run or options.get("dryRun") == ["All"]
        if not waiting and grace == 0:
            gone = old if dry else self._store.remove(kind.storage, namespace_of(old), name_of(old))
            return present(gone, call.kind), True
        already = old["metadata"].get("deletionTimestamp")
        if not already or grace < int(old["metadata"].get("deletionGracePeriodSeconds") or 0):
            new = strategy.mark_deleted(new, grace)
        if kind.storage == "namespaces":
            new["status"] = {**(new.get("status") or {}), "phase": "Terminating"}
        if new != old and not dry:
            new = self._store.put(kind.storage, clone(new))
        return present(new, call.kind), False

    @staticmethod
    def _check_preconditions(kind: Kind, old: Obj, wanted: Obj) -> None:
        meta = old["metadata"]
        uid, rv = wanted.get("uid"), wanted.get("resourceVersion")
        if uid is not None and uid != meta["uid"]:
            why = (
                f"the UID in the precondition ({uid}) does not match the UID in record ({meta['uid']}). "
                "The object might have been deleted and then recreated"
            )
            raise conflict(kind.kind, kind.group, meta["name"], why)
        if rv is not None and rv != meta["resourceVersion"]:
            why = (
                f"the ResourceVersion in the precondition ({rv}) does not match the ResourceVersion in record "
                f"({meta['resourceVersion']}). The object might have been modified"
            )
            raise conflict(kind.kind, kind.group, meta["name"], why)

    def finalize_namespace(self, call: Call, finalizers: list[str]) -> Obj:
        """Set a namespace's spec finalizers; a deleted one that has none left goes."""
        old = fetch(self._store, call)
        new = {**old, "spec": {**old["spec"], "finalizers": finalizers}}
        return new if new == old else self.settle(call.kind, clone(new))

    def delete_all(self, call: Call, options: Obj) -> list[Obj]:
        """Delete every object that the selectors choose; returns their last states."""
        matches = selection(call)
        chosen = [o for o in self._store.all(call.kind.storage, call.namespace) if matches(o)]
        return [self._delete(call, o, options)[0] for o in chosen]


_PODS_STAY = (
    "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set "
    "propagationPolicy=Orphan to suppress this warning"
)


def _set_propagation(kind: Kind, new: Obj, options: Obj) -> None:
    """Turn the propagation policy into the finalizer that stands for it."""
    policy = options.get("propagationPolicy") or ("Orphan" if kind.storage in strategy.ORPHANS_BY_DEFAULT else "")
    if options.get("orphanDependents") is not None and options.get("propagationPolicy"):
        detail = "orphanDependents and deletionPropagation cannot be both set"
        cause = invalid_value("propagationPolicy", options["propagationPolicy"], detail)
        raise invalid("DeleteOptions", "meta.k8s.io", "", [cause])
    if options.get("orphanDependents") is not None:
        policy = "Orphan" if options["orphanDependents"] else "Background"
    if policy not in {"", "Background", "Foreground", "Orphan"}:
        allowed = ("Foreground", "Background", "Orphan", "nil")
        cause = not_supported("propagationPolicy", policy, allowed)
        raise invalid("DeleteOptions", "meta.k8s.io", "", [cause])
    found = list(new["metadata"].get("finalizers") or [])
    if policy:
        found = [f for f in found if f not in {"orphan", "foregroundDeletion"}]
    if policy == "Orphan":
        found.append("orphan")
    elif policy == "Foreground":
        found.append("foregroundDeletion")
    if found:
        new["metadata"]["finalizers"] = found
    else:
        new["metadata"].pop("finalizers", None)


def _grace(kind: Kind, old: Obj, options: Obj) -> int:
    """Return how long the object is left to its node: only Pods that run somewhere get any time."""
    if kind.storage != "pods":
        return 0
    asked = options.get("gracePeriodSeconds")
    spec, phase = old.get("spec") or {}, (old.get("status") or {}).get("phase")
    if not spec.get("nodeName") or phase in {"Succeeded", "Failed"}:
        return 0
    grace = int(spec.get("terminationGracePeriodSeconds", 30) if asked is None else asked)
    before = old["metadata"].get("deletionGracePeriodSeconds")
    if before is not None and asked is None:
        return int(before)
    return max(grace, 0)
