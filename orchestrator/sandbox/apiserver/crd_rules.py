"""What makes a CustomResourceDefinition acceptable: names, versions, structural schemas, rules that compile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.sandbox.apiserver import names
from orchestrator.sandbox.apiserver.cel_rules import syntax_problems
from orchestrator.sandbox.apiserver.objects import Obj
from orchestrator.sandbox.apiserver.status import Cause, forbidden_field, invalid_value, not_supported, required

_TYPES = ("array", "boolean", "integer", "number", "object", "string")


def crd_causes(obj: Obj, old: Obj | None) -> list[Cause]:
    """Return what is wrong with a definition."""
    spec = obj.get("spec") or {}
    wanted, group = spec.get("names") or {}, str(spec.get("group") or "")
    causes = []
    expected = f"{wanted.get('plural', '')}.{group}"
    if obj["metadata"].get("name") != expected:
        causes.append(
            invalid_value("metadata.name", obj["metadata"].get("name"), 'must be spec.names.plural+"."+spec.group')
        )
    if not group:
        causes.append(required("spec.group"))
    elif len(group.split(".")) < 2:
        causes.append(invalid_value("spec.group", group, "should be a domain with at least one dot"))
    if spec.get("scope") not in {"Cluster", "Namespaced"}:
        causes.append(
            required("spec.scope")
            if not spec.get("scope")
            else not_supported("spec.scope", spec["scope"], ("Cluster", "Namespaced"))
        )
    causes += _names(wanted)
    causes += _versions(spec.get("versions") or [])
    if old is not None:
        causes += _unchanged(spec, old["spec"])
    return causes


def _names(wanted: Obj) -> list[Cause]:
    causes = []
    for key in ("plural", "singular", "kind", "listKind"):
        value = str(wanted.get(key) or "")
        if not value:
            causes.append(required(f"spec.names.{key}"))
        else:
            causes += [invalid_value(f"spec.names.{key}", value, p) for p in names.dns1035_label(value.lower())]
    for index, short in enumerate(wanted.get("shortNames") or []):
        causes += [invalid_value(f"spec.names.shortNames[{index}]", short, p) for p in names.dns1035_label(short)]
    if wanted.get("kind") and wanted.get("kind") == wanted.get("listKind"):
        causes.append(invalid_value("spec.names.listKind", wanted["listKind"], "kind and listKind may not be the same"))
    return causes


def _versions(versions: list[Obj]) -> list[Cause]:
    causes: list[Cause] = []
    # The real server keeps a schema that all versions share at the top, and its messages name that place.
    shared = all(v.get("schema") == versions[0].get("schema") for v in versions)
    if sum(bool(v.get("storage")) for v in versions) != 1:
        causes.append(
            invalid_value("spec.versions", versions, "must have exactly one version marked as storage version")
        )
    for index, version in enumerate(versions):
        path = f"spec.versions[{index}]"
        causes += [
            invalid_value(f"{path}.name", version.get("name"), p)
            for p in names.dns1035_label(str(version.get("name", "")))
        ]
        raw = (version.get("schema") or {}).get("openAPIV3Schema")
        if raw is None:
            causes.append(required(f"{path}.schema.openAPIV3Schema", "schemas are required"))
            continue
        where = "spec.validation.openAPIV3Schema" if shared else f"{path}.schema.openAPIV3Schema"
        if raw.get("type") != "object":
            causes.append(
                required(f"{where}.type", "must not be empty at the root")
                if not raw.get("type")
                else invalid_value(f"{where}.type", raw["type"], "must be object at the root")
            )
        causes += _structural(raw, where) + syntax_problems(raw, where)
    return causes


def _structural(raw: Mapping[str, Any], path: str) -> list[Cause]:
    """Check what makes a schema structural: a type everywhere, no references, items for arrays."""
    causes: list[Cause] = []
    free = raw.get("x-kubernetes-int-or-string") or raw.get("x-kubernetes-preserve-unknown-fields")
    kind = raw.get("type")
    if not kind and not free:
        causes.append(required(f"{path}.type", "must not be empty for specified object fields"))
    elif kind and kind not in _TYPES:
        causes.append(not_supported(f"{path}.type", kind, _TYPES))
    if "$ref" in raw:
        causes.append(forbidden_field(f"{path}.$ref", "$ref is not supported"))
    if kind == "array" and not isinstance(raw.get("items"), Mapping):
        causes.append(required(f"{path}.items", "must be specified"))
    if raw.get("properties") and raw.get("additionalProperties"):
        causes.append(
            forbidden_field(f"{path}.additionalProperties", "additionalProperties and properties are mutual exclusive")
        )
    if raw.get("uniqueItems"):
        causes.append(
            forbidden_field(
                f"{path}.uniqueItems",
                "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            )
        )
    if raw.get("x-kubernetes-list-type") == "map" and not raw.get("x-kubernetes-list-map-keys"):
        causes.append(
            required(f"{path}.x-kubernetes-list-map-keys", "must not be empty if x-kubernetes-list-type is map")
        )
    for name, sub in (raw.get("properties") or {}).items():
        if path.endswith("openAPIV3Schema") and name == "metadata":
            continue
        causes += _structural(sub, f"{path}.properties[{name}]")
    for key in ("items", "additionalProperties"):
        if isinstance(raw.get(key), Mapping):
            causes += _structural(raw[key], f"{path}.{key}")
    return causes


def _unchanged(new: Obj, old: Obj) -> list[Cause]:
    pairs = [(f"spec.{k}", new.get(k), old.get(k)) for k in ("group", "scope")]
    pairs += [(f"spec.names.{k}", new["names"].get(k), old["names"].get(k)) for k in ("kind", "plural")]
    return [invalid_value(path, after, "field is immutable") for path, after, before in pairs if after != before]
