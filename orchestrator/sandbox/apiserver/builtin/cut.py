"""Cut the builtin kinds that the sandbox serves out of a Kubernetes source tree into `kinds.json`.

Run as `python -m orchestrator.sandbox.apiserver.builtin.cut SOURCE_TREE VERSION`, where SOURCE_TREE is the unpacked
module `k8s.io/kubernetes` (it holds `api/openapi-spec/swagger.json` and `api/discovery/aggregated_v2.json`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: group/version -> plurals that are served.
SERVED = {
    "v1": "namespaces pods secrets configmaps services serviceaccounts persistentvolumeclaims persistentvolumes events "
    "nodes endpoints resourcequotas limitranges",
    "apps/v1": "deployments statefulsets replicasets daemonsets",
    "batch/v1": "jobs cronjobs",
    "storage.k8s.io/v1": "storageclasses csidrivers csinodes volumeattachments csistoragecapacities",
    "coordination.k8s.io/v1": "leases",
    "events.k8s.io/v1": "events",
    "rbac.authorization.k8s.io/v1": "roles clusterroles rolebindings clusterrolebindings",
    "apiextensions.k8s.io/v1": "customresourcedefinitions",
    "authentication.k8s.io/v1": "tokenreviews selfsubjectreviews",
    "authorization.k8s.io/v1": "subjectaccessreviews selfsubjectaccessreviews selfsubjectrulesreviews "
    "localsubjectaccessreviews",
    "policy/v1": "poddisruptionbudgets",
    "networking.k8s.io/v1": "networkpolicies",
    "scheduling.k8s.io/v1": "priorityclasses",
}
#: Subresources that the sandbox answers; the others are left out of discovery.
SUBRESOURCES = {"status", "scale", "finalize", "token", "log", "exec", "binding", "eviction"}
#: Definitions that are needed although no served list or kind refers to them.
EXTRA = (
    "io.k8s.api.autoscaling.v1.Scale",
    "io.k8s.api.authentication.v1.TokenRequest",
    "io.k8s.api.core.v1.Binding",
    "io.k8s.api.policy.v1.Eviction",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
    "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Patch",
    "io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent",
)


def cut(tree: Path, version: str) -> dict[str, Any]:
    """Return discovery groups and schema definitions of the served kinds."""
    groups = json.loads((tree / "api/discovery/aggregated_v2.json").read_text())["items"]
    core = json.loads((tree / "api/discovery/api__v1.json").read_text())
    definitions = json.loads((tree / "api/openapi-spec/swagger.json").read_text())["definitions"]
    kept_groups = [_group(g) for g in [_core_group(core), *groups]]
    kept_groups = [g for g in kept_groups if g["versions"]]
    wanted = {(g["name"], v["version"], r["kind"]) for g in kept_groups for v in g["versions"] for r in v["resources"]}
    names = [n for n, d in definitions.items() if _is_wanted(d, wanted)]
    return {
        "version": version,
        "groups": kept_groups,
        "definitions": {n: definitions[n] for n in sorted(_closure(definitions, [*names, *EXTRA]))},
    }


def _core_group(core: dict[str, Any]) -> dict[str, Any]:
    """Give the legacy group, which the aggregated file leaves out, the same shape as the others."""
    resources: dict[str, dict[str, Any]] = {}
    for entry in core["resources"]:
        plural, _, sub = entry["name"].partition("/")
        kind = {"kind": entry["kind"], "group": entry.get("group", ""), "version": entry.get("version", "")}
        if sub:
            subs = resources[plural].setdefault("subresources", [])
            subs.append({"subresource": sub, "responseKind": kind, "verbs": entry["verbs"]})
        else:
            resources[plural] = {
                "resource": plural,
                "singularResource": entry["singularName"],
                "scope": "Namespaced" if entry["namespaced"] else "Cluster",
                "responseKind": kind,
                "verbs": entry["verbs"],
                **{k: entry[k] for k in ("shortNames", "categories") if k in entry},
            }
    return {"metadata": {"name": ""}, "versions": [{"version": "v1", "resources": list(resources.values())}]}


def _group(group: dict[str, Any]) -> dict[str, Any]:
    name = group["metadata"].get("name", "")
    versions = []
    for version in group["versions"]:
        key = f"{name}/{version['version']}" if name else version["version"]
        served = SERVED.get(key, "").split()
        resources = [_resource(r) for r in version["resources"] if r["resource"] in served]
        if resources:
            versions.append({"version": version["version"], "resources": resources})
    return {"name": name, "versions": versions}


def _resource(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "plural": entry["resource"],
        "singular": entry["singularResource"],
        "kind": entry["responseKind"]["kind"],
        "namespaced": entry["scope"] == "Namespaced",
        "short_names": entry.get("shortNames", []),
        "categories": entry.get("categories", []),
        "verbs": entry["verbs"],
        "subresources": [
            {
                "name": s["subresource"],
                "verbs": s["verbs"],
                **{k: s["responseKind"][k] for k in ("group", "version", "kind")},
            }
            for s in entry.get("subresources", [])
            if s["subresource"] in SUBRESOURCES
        ],
    }


def _is_wanted(definition: dict[str, Any], wanted: set[tuple[str, str, str]]) -> bool:
    gvks = definition.get("x-kubernetes-group-version-kind", [])
    return len(gvks) == 1 and any(
        (g["group"], g["version"], k) in wanted for g in gvks for k in (g["kind"], g["kind"].removesuffix("List"))
    )


def _closure(definitions: dict[str, Any], names: list[str]) -> set[str]:
    seen: set[str] = set()
    while names:
        name = names.pop()
        if name not in seen:
            seen.add(name)
            names.extend(_references(definitions[name]))
    return seen


def _references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        reference = node.get("$ref")
        if isinstance(reference, str):
            yield reference.rsplit("/", 1)[-1]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def without_words(node: Any) -> Any:
    """Return a schema without its descriptions: the shapes are facts, the sentences are their authors'."""
    if isinstance(node, dict):
        return {k: without_words(v) for k, v in node.items() if not (k == "description" and isinstance(v, str))}
    return [without_words(value) for value in node] if isinstance(node, list) else node


def render(document: dict[str, Any]) -> str:
    """Write one definition per line, so that a new release shows as a readable diff."""
    groups = ",\n".join(json.dumps(g, sort_keys=True) for g in document["groups"])
    definitions = ",\n".join(
        f"{json.dumps(n)}: {json.dumps(without_words(d), sort_keys=True)}" for n, d in document["definitions"].items()
    )
    head = json.dumps(document["version"])
    return f'{{"version": {head},\n"groups": [\n{groups}\n],\n"definitions": {{\n{definitions}\n}}}}\n'


if __name__ == "__main__":
    target = Path(__file__).with_name("kinds.json")
    target.write_text(render(cut(Path(sys.argv[1]), sys.argv[2])))
