"""What a server says of a past that it no longer knows, and how a client gets going again."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator

import pytest

from tests.contract.clusters import Cluster
from tests.contract.test_custom_resources import DEFINITIONS, SPEC, STATUS, install


@pytest.fixture(scope="module")
def group(cluster: Cluster) -> Iterator[str]:
    """A kind of its own: no revision from before it was made is known of it."""
    name = install(cluster, {"spec": SPEC, "status": STATUS})
    yield name
    cluster.delete(f"{DEFINITIONS}/gadgets.{name}")


def _make(cluster: Cluster, ns: str, group: str, *names: str) -> str:
    path = f"/apis/{group}/v1/namespaces/{ns}/gadgets"
    for name in names:
        body = {"apiVersion": f"{group}/v1", "kind": "Gadget", "metadata": {"name": name}, "spec": {"size": 3}}
        cluster.post(path, body).ok()
    return path


def test_a_watch_from_too_long_ago_is_told_so_and_a_new_list_goes_on(cluster: Cluster, ns: str, group: str) -> None:
    path = _make(cluster, ns, group, "a")
    with cluster.watch(path, resourceVersion="1") as events:
        told = list(events)
    assert [e["type"] for e in told] == ["ERROR"]
    status = told[0]["object"]
    assert (status["kind"], status["code"], status["reason"]) == ("Status", 410, "Expired")
    assert status["message"].startswith("too old resource version: 1 (")
    rv = cluster.get(path).ok()["metadata"]["resourceVersion"]
    _make(cluster, ns, group, "b")
    with cluster.watch(path, resourceVersion=rv) as events:
        assert next(events)["object"]["metadata"]["name"] == "b"


def test_a_list_at_a_forgotten_revision_is_gone(cluster: Cluster, ns: str, group: str) -> None:
    path = _make(cluster, ns, group, "a")
    cluster.compact()
    answer = cluster.get(path, resourceVersion="1", resourceVersionMatch="Exact")
    assert (answer.status, answer.body["reason"]) == (410, "Expired")
    assert answer.message.startswith("The resourceVersion for the provided list is too old")


def test_a_chunk_that_comes_too_late_is_gone_with_a_way_to_go_on(cluster: Cluster, ns: str, group: str) -> None:
    path = _make(cluster, ns, group, "a", "b", "c")
    first = cluster.get(path, limit=1).ok()
    token = json.loads(_decoded(first["metadata"]["continue"]))
    late = base64.urlsafe_b64encode(json.dumps({**token, "rv": 1}).encode()).decode().rstrip("=")
    cluster.compact()
    answer = cluster.get(path, **{"limit": 1, "continue": late})
    assert (answer.status, answer.body["reason"]) == (410, "Expired")
    assert "The provided continue parameter is too old to display a consistent list result" in answer.message
    # The answer's own token goes on, at the present.
    rest = cluster.get(path, **{"limit": 5, "continue": answer.body["metadata"]["continue"]}).ok()
    assert [o["metadata"]["name"] for o in rest["items"]] == ["b", "c"]
    assert int(rest["metadata"]["resourceVersion"]) >= int(first["metadata"]["resourceVersion"])


def test_a_bookmark_comes_before_a_watch_ends(cluster: Cluster, ns: str, group: str) -> None:
    path = _make(cluster, ns, group, "a")
    rv = cluster.get(path).ok()["metadata"]["resourceVersion"]
    other = cluster.post(f"/api/v1/namespaces/{ns}/configmaps", {"metadata": {"name": "elsewhere"}}).ok()
    last = int(_make_late(cluster, ns, group))
    # It comes two seconds before the end; in the first seconds of a watch a real server's timer may miss it.
    seconds = "4" if cluster.kind == "sandbox" else "8"
    asked = {"resourceVersion": rv, "allowWatchBookmarks": "true", "timeoutSeconds": seconds}
    with cluster.watch(path, timeout=30, **asked) as events:
        seen = list(itertools.islice(events, 20))
    marks = [e["object"] for e in seen if e["type"] == "BOOKMARK"]
    assert marks, seen
    assert set(marks[-1]) <= {"kind", "apiVersion", "metadata", "spec"}
    assert marks[-1]["kind"] == "Gadget"
    assert int(marks[-1]["metadata"]["resourceVersion"]) >= last > int(other["metadata"]["resourceVersion"])


def test_without_being_asked_no_bookmark_comes(cluster: Cluster, ns: str, group: str) -> None:
    path = _make(cluster, ns, group, "a")
    rv = cluster.get(path).ok()["metadata"]["resourceVersion"]
    with cluster.watch(path, resourceVersion=rv, timeoutSeconds="3") as events:
        assert list(events) == []


def _make_late(cluster: Cluster, ns: str, group: str) -> str:
    path = _make(cluster, ns, group, "late")
    return str(cluster.get(f"{path}/late").ok()["metadata"]["resourceVersion"])


def _decoded(token: str) -> bytes:
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
