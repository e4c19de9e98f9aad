"""The reading of audit logs, on recorded lines; and the page on security against the chart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from tests.real import audit
from tests.real.audit import Grant, Request

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[2]
HOME = "tidemark-system"
US = audit.account(HOME, "tidemark-controller")


def line(**changes: Any) -> bytes:
    """Return a line as kube-apiserver 1.36 writes it."""
    ref = {"resource": "persistentvolumes", "apiVersion": "v1", **changes.pop("ref", {})}
    event = {
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": "Metadata",
        "auditID": "1",
        "stage": "ResponseComplete",
        "requestURI": "/api/v1/persistentvolumes?limit=500",
        "verb": "list",
        "user": {"username": US, "groups": ["system:serviceaccounts", "system:authenticated"]},
        "sourceIPs": ["127.0.0.1"],
        "objectRef": ref,
        "responseStatus": {"metadata": {}, "code": 200},
        "requestReceivedTimestamp": "2026-11-22T09:00:00.123456Z",
        "stageTimestamp": "2026-11-22T09:00:00.125000Z",
        "annotations": {"authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": "RBAC: allowed"},
        **changes,
    }
    return msgspec.json.encode(event) + b"\n"


def made(verb: str, resource: str, where: str = "", group: str = "", **more: Any) -> Request:
    """Return a request; `where` is namespace/name."""
    namespace, _, name = where.rpartition("/")
    uid = str(hash((verb, resource, where)))
    ref = {"resource": resource, "namespace": namespace, "name": name, "apiGroup": group}
    return audit.requests([line(verb=verb, ref=ref, auditID=uid, **more)])[0]


def test_a_request_is_counted_once_whatever_stages_of_it_were_written() -> None:
    watch = {"verb": "watch", "auditID": "2"}
    lines = [line(**watch, stage="ResponseStarted"), line(**watch), line(), line(auditID="3", verb="get")]
    found = audit.requests(lines)
    assert audit.counts(found) == {
        ("persistentvolumes", "watch"): 1,
        ("persistentvolumes", "list"): 1,
        ("persistentvolumes", "get"): 1,
    }


def test_others_requests_and_a_line_that_is_half_written_do_not_count() -> None:
    lines = [line(user={"username": "admin"}), line(auditID="2"), line(auditID="3")[:40]]
    assert len(audit.requests(lines, US)) == 1


def test_a_line_that_is_no_event_is_an_error() -> None:
    with pytest.raises(msgspec.ValidationError):
        audit.requests([b'{"kind":"Event"}\n'])


def test_a_denial_is_told_from_a_refusal_by_admission() -> None:
    forbid = {"authorization.k8s.io/decision": "forbid", "authorization.k8s.io/reason": ""}
    by_role = made("delete", "pods", "a/b", responseStatus={"code": 403}, annotations=forbid)
    by_quota = made("create", "pods", "a/b", responseStatus={"code": 403})
    no_token = made("get", "pods", "a/b", responseStatus={"code": 401}, annotations={})
    assert audit.denied([by_role, by_quota, no_token]) == [by_role, no_token]


def test_a_subresource_is_a_resource_of_its_own() -> None:
    ref = {"resource": "pods", "subresource": "log", "namespace": HOME, "name": "x"}
    found = audit.requests([line(verb="get", ref=ref)])[0]
    assert Grant(HOME, "", "pods/log", "get").covers(found)
    assert not Grant(HOME, "", "pods", "get").covers(found)


def test_a_right_is_used_where_it_holds_and_for_the_names_that_it_is_limited_to() -> None:
    lease = made("patch", "leases", f"{HOME}/tidemark-controller", "coordination.k8s.io")
    group = "coordination.k8s.io"
    right = Grant(HOME, group, "leases", "patch", "tidemark-controller")
    elsewhere = Grant("other", group, "leases", "patch")
    other_name = Grant(HOME, group, "leases", "patch", "another")
    assert audit.unused({right, elsewhere, other_name}, [lease]) == sorted([elsewhere, other_name])


def test_a_right_that_a_wider_one_covers_is_never_needed() -> None:
    wide, narrow = Grant("", "", "events", "list"), Grant(HOME, "", "events", "list")
    assert audit.unused({wide, narrow}, [made("list", "events", f"{HOME}/")] * 2) == [narrow]


def test_a_denied_request_uses_no_right() -> None:
    right = Grant("", "", "pods", "get")
    forbid = {"authorization.k8s.io/decision": "forbid"}
    assert audit.unused({right}, [made("get", "pods", "a/b", annotations=forbid)]) == [right]


def test_a_right_for_everywhere_that_was_needed_at_home_only_is_too_wide() -> None:
    deleting, creating = Grant("", "", "pods", "delete"), Grant("", "", "pods", "create")
    seen = [made("delete", "pods", f"{HOME}/x"), made("create", "pods", "a/x"), made("create", "pods", f"{HOME}/x")]
    assert audit.too_wide({deleting, creating}, seen, HOME) == [deleting]


def role(kind: str, namespace: str, *rules: dict[str, Any]) -> list[dict[str, Any]]:
    metadata = {"name": "r"} | ({"namespace": namespace} if namespace else {})
    subject = {"kind": "ServiceAccount", "namespace": HOME, "name": "tidemark-controller"}
    binding = {"kind": f"{kind}Binding", "metadata": metadata, "subjects": [subject]}
    ref = {"kind": kind, "name": "r"}
    return [{"kind": kind, "metadata": metadata, "rules": list(rules)}, {**binding, "roleRef": ref}]


def test_roles_come_apart_into_single_rights_of_the_account_that_they_are_bound_to() -> None:
    rule = {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]}
    limited = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"], "resourceNames": ["a", "b"]}
    documents = [*role("ClusterRole", "", rule), *role("Role", HOME, limited)]
    assert audit.grants(documents, HOME, "tidemark-controller") == {
        Grant("", "", "pods", "get"),
        Grant("", "", "pods", "list"),
        Grant("", "", "pods/log", "get"),
        Grant("", "", "pods/log", "list"),
        Grant(HOME, "", "secrets", "get", "a"),
        Grant(HOME, "", "secrets", "get", "b"),
    }
    assert audit.grants(documents, HOME, "tidemark-mover") == set()


def test_the_page_lists_exactly_the_rights_that_the_chart_gives() -> None:
    text = (ROOT / "charts/tidemark/templates/rbac-controller.yaml").read_text()
    text = re.sub(r"^\s*\{\{.*\}\}\s*$", "", text, flags=re.MULTILINE)
    documents = [d for d in yaml.safe_load_all(re.sub(r"\{\{.*?\}\}", HOME, text)) if d]
    given = audit.grants(documents, HOME, "tidemark-controller")
    assert len(given) > 50
    assert audit.documented(audit.rows(audit.PAGE.read_text()), HOME) == given


def test_each_write_that_the_page_allows_is_allowed_and_no_other() -> None:
    table = audit.rows(audit.PAGE.read_text())
    snapshots = "snapshot.storage.k8s.io"
    fine = [
        made("create", "volumesnapshots", "team/tidemark-1", snapshots),
        made("create", "volumesnapshots", f"{HOME}/tm-1", snapshots),
        made("delete", "persistentvolumeclaims", f"{HOME}/tm-1"),
        made("patch", "leases", f"{HOME}/tidemark-controller", "coordination.k8s.io"),
    ]
    bad = [
        made("create", "volumesnapshots", "team/other", snapshots),
        made("create", "volumesnapshots", "team/tm-1", snapshots),
        made("delete", "persistentvolumeclaims", "team/tm-1"),
        made("delete", "persistentvolumeclaims", f"{HOME}/data"),
        made("create", "secrets", f"{HOME}/vault-key"),
        made("update", "persistentvolumes", "pv"),
        made("patch", "leases", f"{HOME}/another", "coordination.k8s.io"),
    ]
    reads = [made("get", "secrets", "team/any"), made("list", "nodes")]
    assert audit.unlisted([*fine, *bad, *reads], table, HOME) == bad


def test_a_line_of_the_page_without_a_reason_is_refused() -> None:
    page = audit.PAGE.read_text().replace("a mover's progress |", " |")
    with pytest.raises(ValueError, match="pods/log"):
        audit.rows(page)
