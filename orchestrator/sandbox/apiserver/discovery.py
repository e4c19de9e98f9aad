"""What this API serves, in the plain and in the aggregated form."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

from orchestrator.sandbox.apiserver.objects import Obj
from orchestrator.sandbox.apiserver.registry import Kind, Registry, Subresource, builtin_document
from orchestrator.sandbox.apiserver.status import UnknownPath, path_not_found

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


class Discovery:
    """Documents for /api, /apis and below; /version."""

    def __init__(self, registry: Registry, address: str) -> None:
        self._registry, self._address = registry, address

    def version(self) -> Obj:
        text = str(builtin_document()["version"])
        major, minor = text.removeprefix("v").split(".")[:2]
        return {
            "major": major, "minor": minor, "gitVersion": text, "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "gc", "platform": "linux/amd64",
            "emulationMajor": major, "emulationMinor": minor, "minCompatibilityMajor": major,
            "minCompatibilityMinor": str(int(minor) - 1),
        }  # fmt: skip

    def _versions(self) -> dict[str, dict[str, list[Kind]]]:
        found: dict[str, dict[str, list[Kind]]] = {}
        for kind in self._registry:
            found.setdefault(kind.group, {}).setdefault(kind.version, []).append(kind)
        return {g: {v: vs[v] for v in sorted(vs, key=_priority)} for g, vs in found.items()}

    def api(self) -> Obj:
        return {
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": self._address}],
        }

    def groups(self) -> Obj:
        listed = [self._group(g, list(vs)) for g, vs in self._versions().items() if g]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}

    @staticmethod
    def _group(name: str, versions: list[str]) -> Obj:
        shown = [{"groupVersion": f"{name}/{v}", "version": v} for v in versions]
        return {"name": name, "versions": shown, "preferredVersion": shown[0]}

    def group(self, name: str) -> Obj:
        versions = self._versions().get(name)
        if not versions:
            raise UnknownPath
        return {"kind": "APIGroup", "apiVersion": "v1", **self._group(name, list(versions))}

    def resources(self, group: str, version: str) -> Obj:
        kinds = self._versions().get(group, {}).get(version)
        if group not in self._versions():
            raise UnknownPath
        if kinds is None:
            raise path_not_found()
        listed: list[Obj] = []
        for kind in kinds:
            listed.append(self._resource(kind))
            listed += [self._subresource(kind, s) for s in kind.subresources]
        body: Obj = {"kind": "APIResourceList"}
        if group:
            body["apiVersion"] = "v1"
        body["groupVersion"] = f"{group}/{version}" if group else version
        body["resources"] = listed
        return body

    @staticmethod
    def _resource(kind: Kind) -> Obj:
        entry: Obj = {
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind,
            "verbs": list(kind.verbs),
        }  # fmt: skip
        if kind.short_names:
            entry["shortNames"] = list(kind.short_names)
        if kind.categories:
            entry["categories"] = list(kind.categories)
        if "list" in kind.verbs:
            digest = hashlib.sha256(f"{kind.api_version}/{kind.kind}".encode()).digest()
            entry["storageVersionHash"] = base64.b64encode(digest[:8]).decode()
        return entry

    @staticmethod
    def _subresource(kind: Kind, sub: Subresource) -> Obj:
        entry: Obj = {
            "name": f"{kind.plural}/{sub.name}", "singularName": "", "namespaced": kind.namespaced,
            "kind": sub.kind or kind.kind, "verbs": list(sub.verbs),
        }  # fmt: skip
        if (sub.group or sub.version) and (sub.group, sub.version) != (kind.group, kind.version):
            entry |= {"group": sub.group, "version": sub.version}
        return entry

    def aggregated(self, *, core: bool) -> Obj:
        """Return APIGroupDiscoveryList of the legacy group (`/api`) or of all others (`/apis`)."""
        items = []
        for group, versions in self._versions().items():
            if core is not (group == ""):
                continue
            shown: list[Any] = [
                {"version": v, "resources": [self._aggregated(k) for k in kinds], "freshness": "Current"}
                for v, kinds in versions.items()
            ]
            meta: Obj = {"name": group, "creationTimestamp": None} if group else {"creationTimestamp": None}
            items.append({"metadata": meta, "versions": shown})
        return {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}

    @staticmethod
    def _aggregated(kind: Kind) -> Obj:
        entry: Obj = {
            "resource": kind.plural,
            "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "singularResource": kind.singular,
            "verbs": list(kind.verbs),
        }
        if kind.short_names:
            entry["shortNames"] = list(kind.short_names)
        if kind.categories:
            entry["categories"] = list(kind.categories)
        subs = [
            {
                "subresource": s.name,
                "responseKind": {
                    "group": s.group if s.version else kind.group,
                    "version": s.version or kind.version,
                    "kind": s.kind or kind.kind,
                },
                "verbs": list(s.verbs),
            }
            for s in kind.subresources
        ]
        if subs:
            entry["subresources"] = subs
        return entry


def _priority(version: str) -> tuple[int, int, int, str]:
    """Sort versions as Kubernetes does: v2, v1, v1beta2, v1beta1, v1alpha1, then the rest by name."""
    found = re.fullmatch(r"v(\d+)(?:(alpha|beta)(\d+))?", version)
    if not found:
        return (3, 0, 0, version)
    level = {None: 0, "beta": 1, "alpha": 2}[found[2]]
    return (level, -int(found[1]), -int(found[3] or 0), version)
