"""Take a request's path and query apart, the way Kubernetes does (apiserver `request.RequestInfo`)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from orchestrator.sandbox.apiserver.status import bad_request

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete", "GET": "get", "HEAD": "get"}


class RequestInfo(msgspec.Struct, frozen=True):
    """What is asked. `resource` is empty for paths that are no resource (discovery, health)."""

    path: str
    verb: str
    query: Mapping[str, str] = {}
    group: str = ""
    version: str = ""
    namespace: str = ""
    resource: str = ""
    name: str = ""
    subresource: str = ""

    def flag(self, name: str) -> bool:
        return self.query.get(name, "").lower() in {"true", "1"}

    @property
    def dry_run(self) -> bool:
        value = self.query.get("dryRun", "")
        if value not in {"", "All"}:
            raise bad_request(f'dryRun: Unsupported value: "{value}": supported values: "All"')
        return value == "All"

    def number(self, name: str) -> int | None:
        """Return an integer parameter; None when absent, 400 when it is no number."""
        text = self.query.get(name, "")
        if not text:
            return None
        try:
            return int(text)
        except ValueError:
            raise bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax') from None


def parse(method: str, path: str, query: Mapping[str, str]) -> RequestInfo:
    """Return the request's meaning; unknown shapes come back as non-resource requests."""
    parts = [p for p in path.split("/") if p]
    plain = RequestInfo(path=path, verb=method.lower(), query=query)
    if len(parts) >= 3 and parts[0] == "api":
        group, version, rest = "", parts[1], parts[2:]
    elif len(parts) >= 4 and parts[0] == "apis":
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return plain
    namespace = ""
    if rest[0] == "namespaces" and len(rest) >= 2:
        namespace = rest[1]
        if len(rest) > 2 and not (rest[2] in {"status", "finalize"} and len(rest) == 3):
            rest = rest[2:]
    verb = _VERBS.get(method, "")
    name = rest[1] if len(rest) > 1 else ""
    if verb == "get" and not name:
        verb = "watch" if query.get("watch", "").lower() in {"true", "1"} else "list"
    elif verb == "delete" and not name:
        verb = "deletecollection"
    elif verb == "get" and query.get("watch", "").lower() in {"true", "1"}:
        verb = "watch"
    return RequestInfo(
        path=path,
        verb=verb,
        query=query,
        group=group,
        version=version,
        namespace=namespace,
        resource=rest[0],
        name=name,
        subresource="/".join(rest[2:]),
    )
