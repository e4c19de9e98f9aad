"""Checks and preparations that every write goes through, whatever its kind.

Order as in Kubernetes: decode, unknown fields, names, defaults, system metadata, namespace lifecycle, validation.
"""

from __future__ import annotations

import uuid
from typing import Any

from orchestrator.sandbox.apiserver import names, strategy
from orchestrator.sandbox.apiserver.calls import Call
from orchestrator.sandbox.apiserver.defaults import set_builtin_defaults
from orchestrator.sandbox.apiserver.objects import Obj, metadata, name_of, now_text, random_suffix
from orchestrator.sandbox.apiserver.registry import Kind, object_meta
from orchestrator.sandbox.apiserver.schema import check_types, drop_nulls, drop_unknown, set_defaults
from orchestrator.sandbox.apiserver.status import (
    Cause,
    bad_request,
    conflict,
    forbidden,
    forbidden_field,
    invalid,
    invalid_value,
    not_found,
    required,
)
from orchestrator.sandbox.apiserver.store import Store
from orchestrator.sandbox.apiserver.validate import validate_object

_MAX_GENERATED = 63 - 5
#: Groups whose kinds are validated by the core rules; the others know only qualified names.
_CORE_GROUPS = {"", "apps", "batch", "rbac.authorization.k8s.io", "storage.k8s.io"}
_STANDARD_FINALIZERS = {"kubernetes", "orphan", "foregroundDeletion"}


def check_type(call: Call, obj: Obj, kind: Kind) -> None:
    """Refuse a body of another kind or version than the path; fill in what is missing where that is allowed."""
    version, name = obj.get("apiVersion"), obj.get("kind")
    if (kind.custom or call.info.verb == "patch") and not version and not name:
        if kind.custom and call.info.verb != "patch":
            raise bad_request("Object 'Kind' is missing in body")
        obj["apiVersion"], obj["kind"] = kind.api_version, kind.kind
        return
    obj.setdefault("apiVersion", kind.api_version)
    obj.setdefault("kind", kind.kind)
    version, name = obj["apiVersion"], obj["kind"]
    if version == kind.api_version and name == kind.kind:
        return
    group, _, short = str(version).rpartition("/")
    if "apply" in call.content_type:
        raise bad_request(f"invalid object type: {group}/{short}, Kind={name}")
    if kind.custom and name == kind.kind:
        raise bad_request(
            f"the API version in the data ({version}) does not match the expected API version ({kind.api_version})"
        )
    why = f'no kind "{name}" is registered for version "{version}"'
    raise bad_request(f'{name} in version "{short}" cannot be handled as a {kind.kind}: {why}')


def check_fields(call: Call, obj: Obj, kind: Kind) -> None:
    """Drop fields that the schema does not know; warn or refuse as `fieldValidation` says."""
    if not kind.custom and (problem := check_types(obj, kind.schema)):
        raise bad_request(f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: {problem}')
    unknown = drop_unknown(obj, kind.schema, object_meta())
    problems = [f'duplicate field "{d}"' for d in call.duplicates] + [f'unknown field "{u}"' for u in unknown]
    mode = call.field_validation
    if not problems or mode == "Ignore":
        return
    if mode == "Strict":
        if call.info.verb == "patch":
            text = f"strict decoding error: {', '.join(problems)}"
        else:
            prefix = f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}'
            text = f"{prefix}: strict decoding error: {', '.join(problems)}"
        raise bad_request(text)
    for problem in problems:
        call.warn(problem)


def check_place(call: Call, obj: Obj) -> None:
    """Make the object's namespace and name agree with the path."""
    meta = metadata(obj)
    if call.kind.namespaced:
        if call.kind.storage == "events" and not call.namespace:
            return
        if meta.get("namespace") not in {None, "", call.namespace}:
            raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
        meta["namespace"] = call.namespace
    else:
        meta.pop("namespace", None)
    if call.name and meta.get("name") not in {None, "", call.name}:
        raise bad_request(f"the name of the object ({meta['name']}) does not match the name on the URL ({call.name})")
    if call.name:
        meta["name"] = call.name


def stamp_new(kind: Kind, obj: Obj) -> None:
    """Give a new object its system metadata."""
    meta = metadata(obj)
    if not meta.get("name") and meta.get("generateName"):
        meta["name"] = str(meta["generateName"])[:_MAX_GENERATED] + random_suffix()
    meta["uid"] = str(uuid.uuid4())
    meta["creationTimestamp"] = now_text()
    for key in ("resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"):
        meta.pop(key, None)
    if strategy.has_generation(kind):
        meta["generation"] = 1
    _tidy(meta)


def _tidy(meta: Obj) -> None:
    for key in ("labels", "annotations", "finalizers", "ownerReferences", "managedFields"):
        if key in meta and not meta[key]:
            del meta[key]


def fill_in(kind: Kind, obj: Obj) -> None:
    """Apply the kind's defaults."""
    if kind.custom:
        drop_nulls(obj, kind.schema)
        set_defaults(obj, kind.schema)
    else:
        set_builtin_defaults(kind, obj)


def check_namespace(store: Store, call: Call, name: str) -> None:
    """Refuse to create in a namespace that is missing (404) or going (403)."""
    if not call.kind.namespaced or call.kind.storage == "namespaces":
        return
    found = store.get("namespaces", "", call.namespace)
    if found is None:
        raise not_found("namespaces", "", call.namespace)
    if found["metadata"].get("deletionTimestamp"):
        raise terminating(call, name)


def terminating(call: Call, name: str) -> Exception:
    namespace = call.namespace
    why = f"unable to create new content in namespace {namespace} because it is being terminated"
    cause = Cause("NamespaceTerminating", f"namespace {namespace} is being terminated", "metadata.namespace")
    return forbidden(call.kind.plural, call.kind.group, name, why, [cause])


def validate(kind: Kind, obj: Obj, old: Obj | None, *, status_only: bool = False) -> None:
    """Raise 422 with everything that is wrong with an object."""
    causes = [] if status_only else _metadata_causes(kind, obj, old)
    causes += validate_object(kind, obj, old, status_only=status_only)
    if causes:
        raise invalid(kind.kind, kind.group, name_of(obj), causes)


def _metadata_causes(kind: Kind, obj: Obj, old: Obj | None) -> list[Cause]:
    meta, causes = metadata(obj), []
    if old is None:
        name = meta.get("name")
        if prefix := str(meta.get("generateName") or ""):
            whole = f"{prefix[:-2]}a" if len(prefix) > 1 and prefix.endswith("-") else prefix
            problems = strategy.name_problems(kind, whole)
            causes += [invalid_value("metadata.generateName", prefix, p) for p in problems]
        if not name:
            causes.append(required("metadata.name", "name or generateName is required"))
        else:
            causes += [invalid_value("metadata.name", name, p) for p in strategy.name_problems(kind, str(name))]
    for key, value in (meta.get("labels") or {}).items():
        causes += [invalid_value("metadata.labels", key, p) for p in names.qualified_name(str(key))]
        causes += [invalid_value("metadata.labels", value, p) for p in names.label_value(str(value))]
    for key in meta.get("annotations") or {}:
        causes += [invalid_value("metadata.annotations", key, p) for p in names.qualified_name(str(key).lower())]
    if sum(len(k) + len(str(v)) for k, v in (meta.get("annotations") or {}).items()) > 262_144:
        causes.append(Cause("FieldValueTooLong", "Too long: may not be more than 262144 bytes", "metadata.annotations"))
    for finalizer in meta.get("finalizers") or []:
        causes += [invalid_value("metadata.finalizers", finalizer, p) for p in names.qualified_name(str(finalizer))]
    if kind.group in _CORE_GROUPS and not kind.custom:
        causes += _short_finalizers(meta)
    causes += _owner_causes(meta)
    if old is not None:
        causes += _update_causes(meta, old["metadata"])
    return causes


def _short_finalizers(meta: Obj) -> list[Cause]:
    """Kubernetes' own kinds take only its own finalizers without a domain."""
    detail = "name is neither a standard finalizer name nor is it fully qualified"
    return [
        invalid_value(f"metadata.finalizers[{index}]", name, detail)
        for index, name in enumerate(meta.get("finalizers") or [])
        if "/" not in str(name) and name not in _STANDARD_FINALIZERS
    ]


def _owner_causes(meta: Obj) -> list[Cause]:
    causes, controllers = [], 0
    for owner in meta.get("ownerReferences") or []:
        for key in ("apiVersion", "kind", "name", "uid"):
            text = "version must not be empty" if key == "apiVersion" else "must not be empty"
            causes += [invalid_value(f"metadata.ownerReferences.{key}", "", text)] if not owner.get(key) else []
        controllers += bool(owner.get("controller"))
    if controllers > 1:
        detail = "Only one reference can have Controller set to true"
        causes.append(invalid_value("metadata.ownerReferences", meta["ownerReferences"], detail))
    return causes


def _update_causes(meta: Obj, old: Obj) -> list[Cause]:
    fixed = ("name", "namespace", "uid", "creationTimestamp")
    changed = [k for k in fixed if meta.get(k) != old.get(k)]
    causes = [invalid_value(f"metadata.{k}", meta.get(k, ""), "field is immutable") for k in changed]
    if old.get("deletionTimestamp"):
        extra = [f for f in meta.get("finalizers") or [] if f not in (old.get("finalizers") or [])]
        if extra:
            listed = ", ".join(f'"{f}"' for f in extra)
            rule = "no new finalizers can be added if the object is being deleted"
            detail = f"{rule}, found new finalizers []string{{{listed}}}"
            causes.append(forbidden_field("metadata.finalizers", detail))
    return causes


def keep_system_metadata(kind: Kind, new: Obj, old: Obj) -> None:
    """Carry over what a client may not change, and refuse stale or mistaken writes."""
    meta, before = metadata(new), old["metadata"]
    if meta.get("uid") and meta["uid"] != before["uid"]:
        why = f"Precondition failed: UID in precondition: {meta['uid']}, UID in object meta: {before['uid']}"
        raise conflict(kind.plural, kind.group, name_of(old), why)
    wanted = meta.get("resourceVersion")
    if not wanted and (kind.custom or kind.storage in strategy.CONDITIONAL_ONLY):
        cause = invalid_value("metadata.resourceVersion", 0, "must be specified for an update")
        raise invalid(kind.plural, kind.group, name_of(old), [cause])
    if wanted and wanted not in {before["resourceVersion"], "0"}:
        if not str(wanted).isdigit():
            raise bad_request(
                f'resourceVersion: Invalid value: "{wanted}": strconv.ParseUint: parsing "{wanted}": invalid syntax'
            )
        raise conflict(kind.plural, kind.group, name_of(old))
    for key in (
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
    ):
        if key in before:
            meta[key] = before[key]
        else:
            meta.pop(key, None)
    meta["resourceVersion"] = before["resourceVersion"]
    _tidy(meta)


def same(new: Any, old: Any) -> bool:
    """Tell whether a write changes nothing: equal but for managed fields' times."""
    return bool(_without_managers(new) == _without_managers(old))


def _without_managers(obj: Obj) -> Obj:
    meta = dict(obj["metadata"])
    managers = meta.pop("managedFields", None) or []
    shown = [{k: v for k, v in m.items() if k != "time"} for m in managers]
    return {**obj, "metadata": {**meta, "managers": shown}}
