"""JSON schemas for kubeconform, made from what a real API server says of its own kinds, CRDs included.

kubeconform would download schemas; those of the server at hand are truer anyway.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.real.cluster import RealCluster

LOCATION = "{{ .Group }}_{{ .ResourceAPIVersion }}_{{ .ResourceKind }}.json"
"""Names of the files, as kubeconform's `-schema-location` spells them; kinds in lower case."""


def write_schemas(cluster: RealCluster, folder: Path, objects: Iterable[dict[str, Any]]) -> None:
    """Write one file for each kind among `objects`."""
    wanted: dict[str, set[str]] = {}
    for found in objects:
        wanted.setdefault(found["apiVersion"], set()).add(found["kind"])
    for api_version, kinds in wanted.items():
        path = f"apis/{api_version}" if "/" in api_version else f"api/{api_version}"
        schemas = json.loads(cluster.kubectl("get", "--raw", f"/openapi/v3/{path}").stdout)["components"]["schemas"]
        strict = {name: _strict(schema) for name, schema in schemas.items()}
        group, _, version = api_version.rpartition("/")
        for name, schema in schemas.items():
            for at in schema.get("x-kubernetes-group-version-kind", []):
                if at["kind"] in kinds and (at["group"], at["version"]) == (group, version):
                    parts = {part: strict[part] for part in _used(name, strict)}
                    # kubeconform takes the version for the group where there is none.
                    file = folder / f"{group or version}_{version}_{at['kind'].lower()}.json"
                    file.write_text(json.dumps({**strict[name], "components": {"schemas": parts}}))


def _used(name: str, schemas: dict[str, Any]) -> set[str]:
    """Return the schemas that one refers to, directly or not."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        text = json.dumps(schemas[waiting.pop()])
        for part in text.split('"#/components/schemas/')[1:]:
            at = part.partition('"')[0]
            if at not in found:
                found.add(at)
                waiting.append(at)
    return found


def _strict(schema: Any) -> Any:
    """Return a schema under which an unknown field is an error."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: _strict(part) for name, part in schema.items() if name not in {"default", "format"}}
    keeps = schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema and not keeps:
        made["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made
