"""The real kubectl, on both servers: what people type."""

from __future__ import annotations

import json
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contract import clusters
from tests.contract.clusters import Cluster
from tests.contract.test_custom_resources import DEFINITIONS, SPEC, STATUS, install
from tests.waiting import LONG, SHORT

# A machine without kubectl runs its hermetic tests all the same.
pytestmark = [] if clusters.find_kubectl() else [pytest.mark.real]


@pytest.fixture(scope="module")
def group(cluster: Cluster) -> Iterator[str]:
    columns = [{"name": "Size", "type": "integer", "jsonPath": ".spec.size", "description": "How big."}]
    spec = {**SPEC, "description": "What is wanted."}
    name = install(cluster, {"spec": spec, "status": STATUS}, additionalPrinterColumns=columns)
    yield name
    cluster.delete(f"{DEFINITIONS}/gadgets.{name}")


def _gadget(group: str, size: int = 3, **spec: object) -> str:
    body = {"apiVersion": f"{group}/v1", "kind": "Gadget", "metadata": {"name": "g"}, "spec": {"size": size, **spec}}
    return json.dumps(body)


def test_apply_create_change_and_leave_alone(cluster: Cluster, ns: str, group: str) -> None:
    apply = ("-n", ns, "apply", "-f", "-")
    assert cluster.kubectl(*apply, stdin=_gadget(group)).stdout.strip() == f"gadget.{group}/g created"
    assert cluster.kubectl(*apply, stdin=_gadget(group)).stdout.strip() == f"gadget.{group}/g unchanged"
    assert cluster.kubectl(*apply, stdin=_gadget(group, 4)).stdout.strip() == f"gadget.{group}/g configured"
    shown = cluster.kubectl("-n", ns, "get", f"gadgets.{group}").stdout.split("\n")
    assert shown[0].split() == ["NAME", "SIZE"]
    assert shown[1].split() == ["g", "4"]
    deployment = {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}},
        },
    }  # fmt: skip
    cluster.kubectl(*apply, stdin=json.dumps(deployment))
    deployment["spec"]["template"]["spec"]["containers"].append({"name": "side", "image": "s:1"})  # type: ignore[index]
    assert "configured" in cluster.kubectl(*apply, stdin=json.dumps(deployment)).stdout
    found = json.loads(cluster.kubectl("-n", ns, "get", "deployment", "d", "-o", "json").stdout)
    assert [c["name"] for c in found["spec"]["template"]["spec"]["containers"]] == ["c", "side"]


def test_server_side_apply_and_its_conflicts(cluster: Cluster, ns: str, group: str) -> None:
    apply = ("-n", ns, "apply", "--server-side", "-f", "-")
    assert "serverside-applied" in cluster.kubectl(*apply, "--field-manager=one", stdin=_gadget(group)).stdout
    clash = cluster.kubectl(*apply, "--field-manager=two", stdin=_gadget(group, 4), ok=False)
    assert clash.returncode == 1
    assert 'Apply failed with 1 conflict: conflict with "one": .spec.size' in clash.stderr
    assert (
        "serverside-applied"
        in cluster.kubectl(*apply, "--field-manager=two", "--force-conflicts", stdin=_gadget(group, 4)).stdout
    )


def test_a_bad_object_is_rejected_with_its_reasons(cluster: Cluster, ns: str, group: str) -> None:
    wrong = cluster.kubectl("-n", ns, "apply", "-f", "-", stdin=_gadget(group, 30, mode="x"), ok=False)
    assert wrong.returncode == 1
    assert 'The Gadget "g" is invalid:' in wrong.stderr
    assert "* spec.size: Invalid value: 30: spec.size in body should be less than or equal to 10" in wrong.stderr
    assert '* spec.mode: Unsupported value: "x": supported values: "fast", "slow"' in wrong.stderr
    unknown = cluster.kubectl("-n", ns, "apply", "-f", "-", stdin=_gadget(group, unknown=1), ok=False)
    assert 'unknown field "spec.unknown"' in unknown.stderr


def test_get_in_its_forms(cluster: Cluster, ns: str, group: str) -> None:
    cluster.kubectl("-n", ns, "create", "-f", "-", stdin=_gadget(group))
    assert cluster.kubectl("-n", ns, "get", f"gadgets.{group}", "-o", "name").stdout.strip() == f"gadget.{group}/g"
    path = "jsonpath={.spec.size}"
    assert cluster.kubectl("-n", ns, "get", f"gadgets.{group}", "g", "-o", path).stdout == "3"
    columns = "custom-columns=N:.metadata.name,M:.spec.mode"
    assert cluster.kubectl("-n", ns, "get", f"gadgets.{group}", "-o", columns).stdout.split() == ["N", "M", "g", "fast"]
    assert "mode: fast" in cluster.kubectl("-n", ns, "get", f"gadgets.{group}", "-o", "yaml").stdout
    assert "NODE" not in cluster.kubectl("-n", ns, "get", "cm", "-o", "wide").stdout
    missing = cluster.kubectl("-n", ns, "get", f"gadgets.{group}", "none", ok=False)
    assert missing.stderr.strip() == f'Error from server (NotFound): gadgets.{group} "none" not found'


def test_describe_and_explain(cluster: Cluster, ns: str, group: str) -> None:
    cluster.kubectl("-n", ns, "create", "-f", "-", stdin=_gadget(group))
    described = cluster.kubectl("-n", ns, "describe", f"gadgets.{group}", "g").stdout
    assert "Size:" in described
    assert "Kind:         Gadget" in described
    cluster.eventually(
        lambda: "What is wanted." in cluster.kubectl("explain", f"gadgets.{group}.spec", ok=False).stdout
    )
    assert "size\t<integer> -required-" in cluster.kubectl("explain", f"gadgets.{group}.spec").stdout
    assert "accessModes" in cluster.kubectl("explain", "pvc.spec").stdout


def test_patch_label_annotate_replace(cluster: Cluster, ns: str, group: str) -> None:
    cluster.kubectl("-n", ns, "create", "-f", "-", stdin=_gadget(group))
    kind = f"gadgets.{group}"
    cluster.kubectl("-n", ns, "patch", kind, "g", "--type=merge", "-p", '{"spec":{"size":5}}')
    cluster.kubectl(
        "-n", ns, "patch", kind, "g", "--type=json", "-p", '[{"op":"replace","path":"/spec/mode","value":"slow"}]'
    )
    cluster.kubectl("-n", ns, "label", kind, "g", "a=b")
    cluster.kubectl("-n", ns, "annotate", kind, "g", "c=d")
    found = json.loads(cluster.kubectl("-n", ns, "get", kind, "g", "-o", "json").stdout)
    assert (found["spec"]["size"], found["spec"]["mode"]) == (5, "slow")
    assert (found["metadata"]["labels"], found["metadata"]["annotations"]["c"]) == ({"a": "b"}, "d")
    found["spec"]["size"] = 6
    cluster.kubectl("-n", ns, "replace", "-f", "-", stdin=json.dumps(found))
    assert cluster.kubectl("-n", ns, "get", kind, "-l", "a=b", "-o", "jsonpath={.items[0].spec.size}").stdout == "6"


def test_wait_for_conditions_values_and_deletion(cluster: Cluster, ns: str, group: str) -> None:
    cluster.kubectl("wait", "--for=condition=Established", f"crd/gadgets.{group}", "--timeout=60s")
    cluster.kubectl("-n", ns, "create", "-f", "-", stdin=_gadget(group))
    binary = clusters.find_kubectl()
    assert binary is not None
    arguments = ["--kubeconfig", str(cluster.kubeconfig), "-n", ns, "wait", f"gadgets.{group}/g", "--timeout=60s"]
    with subprocess.Popen(
        [binary, *arguments, "--for=jsonpath={.status.phase}=Done"], stdout=subprocess.PIPE
    ) as waiting:
        cluster.patch(f"/apis/{group}/v1/namespaces/{ns}/gadgets/g/status", {"status": {"phase": "Done"}}).ok()
        assert waiting.wait(SHORT) == 0
    with subprocess.Popen([binary, *arguments, "--for=delete"], stdout=subprocess.PIPE) as waiting:
        cluster.delete(f"/apis/{group}/v1/namespaces/{ns}/gadgets/g").ok()
        assert waiting.wait(SHORT) == 0


def test_watch_shows_changes(cluster: Cluster, ns: str, group: str) -> None:
    binary = clusters.find_kubectl()
    assert binary is not None
    arguments = ["--kubeconfig", str(cluster.kubeconfig), "-n", ns, "get", f"gadgets.{group}", "-w", "--no-headers"]
    with subprocess.Popen([binary, *arguments], stdout=subprocess.PIPE, text=True) as watching:
        try:
            cluster.kubectl("-n", ns, "create", "-f", "-", stdin=_gadget(group))
            assert watching.stdout is not None
            assert watching.stdout.readline().split() == ["g", "3"]
            cluster.kubectl("-n", ns, "patch", f"gadgets.{group}", "g", "--type=merge", "-p", '{"spec":{"size":8}}')
            assert watching.stdout.readline().split() == ["g", "8"]
        finally:
            watching.terminate()


def test_imperative_commands(cluster: Cluster, ns: str) -> None:
    cluster.kubectl("-n", ns, "create", "configmap", "c", "--from-literal=a=b")
    cluster.kubectl("-n", ns, "create", "secret", "generic", "s", "--from-literal=a=b")
    cluster.kubectl("-n", ns, "create", "serviceaccount", "robot")
    cluster.kubectl("-n", ns, "create", "job", "j", "--image=i", "--", "true")
    assert cluster.get(f"/api/v1/namespaces/{ns}/configmaps/c").ok()["data"] == {"a": "b"}
    assert cluster.get(f"/api/v1/namespaces/{ns}/secrets/s").ok()["data"] == {"a": "Yg=="}
    job = cluster.get(f"/apis/batch/v1/namespaces/{ns}/jobs/j").ok()
    assert job["spec"]["template"]["spec"]["containers"][0]["command"] == ["true"]
    token = cluster.kubectl("-n", ns, "create", "token", "robot", "--audience=us").stdout.strip()
    assert len(token.split(".")) == 3
    assert "j " in cluster.kubectl("-n", ns, "get", "jobs").stdout
    cluster.kubectl("-n", ns, "delete", "job", "j", "--timeout=60s")
    assert cluster.kubectl("-n", ns, "delete", "configmap", "c").stdout.strip().startswith('configmap "c" deleted')


def test_questions_about_rights(cluster: Cluster, ns: str) -> None:
    assert cluster.kubectl("auth", "can-i", "create", "pods").stdout.strip() == "yes"
    assert cluster.kubectl("-n", ns, "auth", "can-i", "create", "pods", "--as", "bob", ok=False).stdout.strip() == "no"
    assert "*.*" in cluster.kubectl("-n", ns, "auth", "can-i", "--list").stdout
    refused = cluster.kubectl("-n", ns, "get", "pods", "--as", "bob", ok=False)
    assert 'User "bob" cannot list resource "pods"' in refused.stderr


def test_the_kinds_are_listed(cluster: Cluster, group: str) -> None:
    wide = cluster.kubectl("api-resources", "--no-headers", "-o", "wide").stdout
    rows = {line.split()[0]: line for line in wide.splitlines()}
    assert "persistentvolumeclaims" in rows
    assert "pvc" in rows["persistentvolumeclaims"]
    assert f"{group}/v1" in wide
    assert "storage.k8s.io/v1" in cluster.kubectl("api-versions").stdout.split()
    gear = cluster.kubectl("get", "gear", "-A", ok=False)
    assert gear.returncode == 0 or "No resources found" in gear.stderr


def test_events_are_shown(cluster: Cluster, ns: str) -> None:
    body = {
        "metadata": {"name": f"e.{uuid.uuid4().hex[:6]}"},
        "involvedObject": {"kind": "Pod", "namespace": ns, "name": "p"},
        "reason": "Tested",
        "message": "it works",
        "type": "Normal",
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "firstTimestamp": "2026-01-01T00:00:00Z",
        "count": 1,
    }
    cluster.post(f"/api/v1/namespaces/{ns}/events", body).ok()
    shown = cluster.kubectl("-n", ns, "get", "events").stdout
    assert "Tested" in shown
    assert "pod/p" in shown
    assert "it works" in shown


def test_a_namespace_is_deleted_and_waited_for(cluster: Cluster) -> None:
    ns = cluster.namespace()
    cluster.kubectl("-n", ns, "create", "configmap", "c")
    done = cluster.kubectl("delete", "namespace", ns, "--timeout=200s")
    assert f'namespace "{ns}" deleted' in done.stdout


OLDER = [f"kubectl.{version}" for version in ("1.20", "1.27", "1.28", "1.29")]
"""What an older client is called; `make real-tools` takes one from Debian's package."""


@pytest.fixture
def older(cluster: Cluster, ns: str) -> Callable[..., str]:
    """Run an older kubectl in the test's namespace; returns all that it prints."""
    binary = clusters.find_kubectl()
    assert binary is not None
    beside = str(Path(binary).parent)
    found = next((b for b in (shutil.which(name, path=beside) for name in OLDER) if b), None)
    if found is None:
        pytest.skip("needs an older kubectl beside the one in use (make real-tools)")

    def run(*arguments: str, stdin: str = "") -> str:
        command = [found, "--kubeconfig", str(cluster.kubeconfig), "-n", ns, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=LONG, check=False)
        return done.stdout + done.stderr

    return run


def test_an_older_kubectl_works_as_well(older: Callable[..., str], group: str) -> None:
    assert "created" in older("apply", "-f", "-", stdin=_gadget(group))
    assert "configured" in older("apply", "-f", "-", stdin=_gadget(group, 5))
    refused = older("apply", "-f", "-", stdin=_gadget(group, unknown=1))
    assert "unknown field" in refused
    assert '"spec.unknown"' in refused or '"unknown"' in refused  # before 1.25 the client itself looked
    assert "What is wanted." in older("explain", "gadgets.spec", f"--api-version={group}/v1")


@pytest.mark.real  # a dozen starts of an old program: too slow for the hermetic run
def test_an_older_kubectl_shows_changes_and_deletes(older: Callable[..., str], group: str) -> None:
    older("apply", "-f", "-", stdin=_gadget(group))
    assert older("get", f"gadgets.{group}").split() == ["NAME", "SIZE", "g", "3"]
    assert "labeled" in older("label", f"gadgets.{group}", "g", "a=b")
    assert "g" in older("get", f"gadgets.{group}", "-l", "a=b", "-o", "name")
    assert "patched" in older("patch", f"gadgets.{group}", "g", "--type=merge", "-p", '{"spec":{"size":4}}')
    described = older("describe", f"gadgets.{group}", "g")
    assert "Size:" in described
    assert "Events:" in described
    assert "serverside-applied" in older("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=_gadget(group))
    assert "deleted" in older("delete", f"gadgets.{group}", "g", "--wait=true")
    assert "NotFound" in older("get", f"gadgets.{group}", "g")
    assert older("auth", "can-i", "create", "pods").strip() == "yes"
    assert "gadgets" in older("api-resources", f"--api-group={group}")
    assert "created" in older("create", "configmap", "c", "--from-literal=a=b")
    assert older("get", "configmap", "c", "-o", "jsonpath={.data.a}") == "b"
