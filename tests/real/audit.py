"""What an account did, read from an API server's audit log, and held against what it may and what the docs say.

Three sources are compared, and no list of rights is written down a fourth time: the log (JSON lines of
`audit.k8s.io/v1` Events), the roles that are bound to the account, and the table in `docs/security.md`. What must never
happen here: a request that is overlooked because a line was not understood; a line that is no Event is an error.

    python -m tests.real.audit LOG --account NAMESPACE/NAME    # counts of any cluster's log, and what was denied
"""

from __future__ import annotations

import argparse
import fnmatch
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
HEADING = "## What the controller's roles allow, and why"
OWN = "own"
WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
_DECISION = "authorization.k8s.io/decision"


# The log


class _Ref(msgspec.Struct, rename="camel"):
    resource: str = ""
    namespace: str = ""
    name: str = ""
    api_group: str = ""
    subresource: str = ""


class _User(msgspec.Struct):
    username: str = ""


class _Status(msgspec.Struct):
    code: int = 0


class _Event(msgspec.Struct, rename="camel"):
    audit_id: str = msgspec.field(name="auditID")
    stage: str
    verb: str
    request_uri: str = msgspec.field(name="requestURI")
    user: _User
    request_received_timestamp: datetime
    object_ref: _Ref | None = None
    response_status: _Status | None = None
    annotations: dict[str, str] = {}
    request_object: Any = None


@dataclass(frozen=True, order=True)
class Request:
    """One request that the API server answered, or a watch that it still answers."""

    at: datetime
    user: str
    verb: str
    group: str
    resource: str
    """With its subresource: `pods/log`; "" for what is no resource (see `uri`)."""
    namespace: str
    name: str
    code: int
    forbidden: bool
    """The authorizer said no; a 403 without it was said by admission: a quota, a namespace that is going."""
    uri: str
    body: Any = field(default=None, compare=False, repr=False)
    """What was sent, as far as the server's policy writes it down."""

    @property
    def what(self) -> str:
        """Return group and resource in one word, as people write them."""
        return f"{self.resource}.{self.group}" if self.group else self.resource or self.uri.partition("?")[0]

    @property
    def where(self) -> str:
        """Return `namespace/name`, or the name of a cluster-scoped object."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


def events(lines: Iterable[bytes]) -> Iterator[_Event]:
    """Yield the last stage known of each request. A last line that is being written still is left out."""
    decoder, last = msgspec.json.Decoder(_Event), {}
    for line in lines:
        if line.endswith(b"\n") and line.strip():
            event = decoder.decode(line)
            before = last.get(event.audit_id)
            if before is None or before.stage != "ResponseComplete":
                last[event.audit_id] = event
    yield from last.values()


def account(namespace: str, name: str) -> str:
    """Return the user name of a ServiceAccount."""
    return f"system:serviceaccount:{namespace}:{name}"


def requests(lines: Iterable[bytes], *users: str) -> list[Request]:
    """Return the requests of these users (all, without any), by time."""
    return sorted(_request(event) for event in events(lines) if not users or event.user.username in users)


def _request(event: _Event) -> Request:
    ref = event.object_ref or _Ref()
    return Request(
        at=event.request_received_timestamp,
        user=event.user.username,
        verb=event.verb,
        group=ref.api_group,
        resource=f"{ref.resource}/{ref.subresource}" if ref.subresource else ref.resource,
        namespace=ref.namespace,
        name=ref.name,
        code=event.response_status.code if event.response_status else 0,
        forbidden=event.annotations.get(_DECISION) == "forbid",
        uri=event.request_uri,
        body=event.request_object,
    )


def denied(made: Iterable[Request]) -> list[Request]:
    """Return what was refused for want of a right, or of a valid credential."""
    return [r for r in made if r.forbidden or r.code == 401]


# What the account may


@dataclass(frozen=True, order=True)
class Grant:
    """One verb on one resource: what RBAC's rules come to when they are taken apart."""

    scope: str
    """A namespace, or "" for everywhere."""
    group: str
    resource: str
    verb: str
    only: str = ""
    """The one object's name that it is limited to."""

    def covers(self, made: Request) -> bool:
        """Return whether it is what allowed the request."""
        return (
            self.scope in ("", made.namespace)
            and (self.group, self.resource, self.verb) == (made.group, made.resource, made.verb)
            and self.only in ("", made.name)
        )


def grants(documents: Iterable[Mapping[str, Any]], namespace: str, name: str) -> set[Grant]:
    """Return what the roles among the documents, bound to that account by bindings among them, allow."""
    kinds = ("Role", "ClusterRole")
    roles, found = {}, set()
    documents = list(documents)
    for document in documents:
        if document["kind"] in kinds:
            metadata = document["metadata"]
            home = metadata.get("namespace", "") if document["kind"] == "Role" else ""
            roles[document["kind"], home, metadata["name"]] = document.get("rules") or []
    for document in documents:
        if document["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        subjects = document.get("subjects") or []
        if not any((s["kind"], s.get("namespace"), s["name"]) == ("ServiceAccount", namespace, name) for s in subjects):
            continue
        scope = document["metadata"].get("namespace", "") if document["kind"] == "RoleBinding" else ""
        ref = document["roleRef"]
        found |= set(_apart(roles[ref["kind"], scope if ref["kind"] == "Role" else "", ref["name"]], scope))
    return found


def _apart(rules: Sequence[Mapping[str, Any]], scope: str) -> Iterator[Grant]:
    for rule in rules:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    for only in rule.get("resourceNames") or [""]:
                        yield Grant(scope, group, resource, verb, only)


def unused(may: Iterable[Grant], made: Iterable[Request]) -> list[Grant]:
    """Return the rights that no request needed. One that another, wider one covers is never needed."""
    left = set(may)
    for request in made:
        fitting = [g for g in left if g.covers(request)] if not request.forbidden else []
        if fitting and not any(g.covers(request) for g in may if g.scope == "" and g not in left):
            left.discard(min(fitting))
    return sorted(left)


def too_wide(may: Iterable[Grant], made: Sequence[Request], home: str) -> list[Grant]:
    """Return the rights that hold everywhere, though they were needed in `home` only: a Role's would do."""
    found = []
    for grant in may:
        where = {r.namespace for r in made if grant.covers(r)}
        if grant.scope == "" and where == {home}:
            found.append(grant)
    return sorted(found)


# What the docs say


@dataclass(frozen=True)
class Row:
    """One line of the table in docs/security.md: a rule with what it may write and why."""

    group: str
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    own: bool
    """In the controller's own namespace only."""
    objects: tuple[str, ...]
    """Patterns of `namespace/name`, or of the name of a cluster-scoped object."""
    only: tuple[str, ...]
    why: str

    def lists(self, made: Request, home: str) -> bool:
        """Return whether the request is one that the line speaks of."""
        if made.group != self.group or made.resource not in self.resources or made.verb not in self.verbs:
            return False
        if self.own and made.namespace != home:
            return False
        where = made.where.replace(f"{home}/", f"{OWN}/", 1) if made.namespace == home else made.where
        patterns = self.objects + tuple(f"{OWN}/{name}" if self.own else name for name in self.only)
        return any(
            pattern.count("/") == where.count("/") and fnmatch.fnmatchcase(where, pattern) for pattern in patterns
        )


def rows(page: str) -> list[Row]:
    """Return the table's lines. Raises ValueError for one that is not understood, or without a reason."""
    table = page.split(HEADING, 1)[1].split("\n## ", 1)[0]
    found = []
    for line in re.findall(r"^\|(.*)\|$", table, re.MULTILINE)[2:]:
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) != 6 or cells[3] not in ("cluster", "own namespace") or not cells[5]:
            raise ValueError(f"not understood: {line}")
        group, resources, verbs, where, objects, why = cells
        names = tuple(re.findall(r"`([^`]+)`", objects))
        only = objects.startswith("only ")
        found.append(
            Row(
                group=group,
                resources=tuple(resources.split(", ")),
                verbs=tuple(verbs.split(", ")),
                own=where == "own namespace",
                objects=() if only else names,
                only=names if only else (),
                why=why,
            )
        )
    return found


def documented(table: Iterable[Row], home: str) -> set[Grant]:
    """Return the rights that the table speaks of."""
    return {
        Grant(home if row.own else "", row.group, resource, verb, only)
        for row in table
        for resource in row.resources
        for verb in row.verbs
        for only in row.only or ("",)
    }


def unlisted(made: Iterable[Request], table: Sequence[Row], home: str) -> list[Request]:
    """Return the writes that the table does not speak of."""
    return [r for r in made if r.verb in WRITES and r.resource and not any(row.lists(r, home) for row in table)]


# Counts


def counts(made: Iterable[Request]) -> Counter[tuple[str, str]]:
    """Return how often which verb was used on what."""
    return Counter((request.what, request.verb) for request in made)


def report(made: Sequence[Request]) -> str:
    """Return a table of requests by resource, verb, namespace and answer."""
    lines = ["| requests | verb | resource | namespace | answer |", "|---:|---|---|---|---|"]
    total = Counter((r.what, r.verb, r.namespace or "-", r.code) for r in made)
    for (what, verb, namespace, code), times in sorted(total.items()):
        lines.append(f"| {times} | {verb} | {what} | {namespace} | {code or 'open'} |")
    return "\n".join(lines)


def main() -> int:
    """Print the counts of one account, and what it was denied; 1 if anything was."""
    parser = argparse.ArgumentParser(description="Count an account's requests in an API server's audit log.")
    parser.add_argument("log", type=Path)
    parser.add_argument("--account", required=True, metavar="NAMESPACE/NAME")
    chosen = parser.parse_args()
    with chosen.log.open("rb") as lines:
        made = requests(lines, account(*chosen.account.split("/", 1)))
    sys.stdout.write(report(made) + "\n")
    refused = denied(made)
    for request in refused:
        sys.stdout.write(f"denied: {request.verb} {request.what} {request.where}\n")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
