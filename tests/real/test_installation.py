"""The chart as the installation: what a real API server takes, what helm's commands do, and what stays afterwards."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
import yaml

from orchestrator.api.mover import MoverConfig
from orchestrator.config import Settings
from orchestrator.volumes.job import MoverJob, build
from tests.charts.goldens import HERE as CHARTS
from tests.charts.goldens import VALUES, documents, only, render
from tests.real.cluster import RealCluster
from tests.real.installed import CHART, NAMESPACE, Installed
from tests.real.schemas import LOCATION, write_schemas
from tests.real.servers import tool
from tests.waiting import LONG, SHORT

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1500)]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def monitoring(cluster: RealCluster) -> AsyncIterator[None]:
    """The Prometheus operator's definitions, which the chart's options need."""
    folder = tool("kubeconform").parent / "monitoring-crds"
    await asyncio.to_thread(cluster.define, folder)
    yield
    await asyncio.to_thread(cluster.kubectl, "delete", "-f", str(folder))


async def kubectl(
    cluster: RealCluster, *args: str, stdin: str = "", ok: bool = True
) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(cluster.kubectl, *args, stdin=stdin, ok=ok)


# What an API server takes


@pytest.fixture(scope="module")
def schemas(cluster: RealCluster, monitoring: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schemas")
    write_schemas(cluster, folder, [found for values in VALUES for found in documents(values)])
    return folder


def kubeconform(schemas: Path, objects: str) -> dict[str, Any]:
    location = str(schemas / LOCATION)
    command = [str(tool("kubeconform")), "-strict", "-output", "json", "-summary", "-schema-location", location]
    done = subprocess.run(command, input=objects, capture_output=True, text=True, timeout=SHORT, check=False)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
async def test_every_object_of_the_chart_fits_the_servers_own_schemas(schemas: Path, values: Path) -> None:
    said = await asyncio.to_thread(kubeconform, schemas, render(values, whole=True))

    wrong = [found for found in said["resources"] if found["status"] != "statusValid"]
    assert wrong == []
    assert said["summary"]["valid"] == len(documents(values))


async def test_a_field_that_does_not_exist_is_found_in_any_kind(schemas: Path) -> None:
    whole = render(CHARTS / "values" / "everything.yaml", whole=True)
    for right, wrong in (
        ("readOnlyRootFilesystem:", "readonlyRootFilesystem:"),
        ("honorLabels:", "honourLabels:"),
        ("podSelector:", "podselector:"),
    ):
        assert right in whole
        said = await asyncio.to_thread(kubeconform, schemas, whole.replace(right, wrong))
        assert said["summary"]["invalid"] >= 1, wrong


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
async def test_the_server_takes_every_object_word_by_word(cluster: RealCluster, monitoring: None, values: Path) -> None:
    objects = render(values, whole=True).replace(f"namespace: {NAMESPACE}", "namespace: default")

    asked = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-"]
    done = await kubectl(cluster, *asked, stdin=objects)

    assert len(done.stdout.splitlines()) == len(documents(values))
    assert "Warning" not in done.stderr


# Pod security, by the server's own admission


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def home(cluster: RealCluster) -> AsyncIterator[str]:
    """A namespace as docs/operations.md makes the controller's."""
    async for name in _namespace(cluster, "chart-baseline", "baseline"):
        yield name


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def restricted(cluster: RealCluster) -> AsyncIterator[str]:
    async for name in _namespace(cluster, "chart-restricted", "restricted"):
        yield name


async def _namespace(cluster: RealCluster, name: str, level: str) -> AsyncIterator[str]:
    await kubectl(cluster, "create", "namespace", name)
    await kubectl(cluster, "label", "namespace", name, f"pod-security.kubernetes.io/enforce={level}")
    for account in ("tidemark-controller", "tidemark-mover"):
        await kubectl(cluster, "create", "serviceaccount", account, "-n", name)
    yield name
    await kubectl(cluster, "delete", "namespace", name, "--wait=false")


def mover_pod() -> dict[str, Any]:
    config = MoverConfig(task="backup", point="p", url="s3://b/p", keys="{}")
    job = build(MoverJob(name="tm-p", task="backup", config=config, device_pvc="tm-p"), Settings())
    return dict(job["spec"]["template"]["spec"])


def controller_pod(name: str) -> dict[str, Any]:
    return dict(only(documents(CHARTS / "values" / f"{name}.yaml"), "Deployment")["spec"]["template"]["spec"])


async def made(cluster: RealCluster, namespace: str, spec: dict[str, Any]) -> str:
    """Return "" if a Pod may be made there, else the server's words. None is made."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": namespace}, "spec": spec}
    asked = ["create", "--dry-run=server", "-f", "-"]
    done = await kubectl(cluster, *asked, stdin=json.dumps(pod), ok=False)
    return done.stderr if done.returncode else ""


@pytest.mark.parametrize("values", [path.stem for path in VALUES])
async def test_the_controller_runs_where_restricted_is_enforced(
    cluster: RealCluster, restricted: str, values: str
) -> None:
    spec = controller_pod(values)
    spec.pop("priorityClassName", None)  # of the cluster, and no matter of pod security
    assert await made(cluster, restricted, spec) == ""


async def test_a_mover_runs_where_baseline_is_enforced_and_nowhere_stricter(
    cluster: RealCluster, home: str, restricted: str
) -> None:
    """It opens a block device, which most runtimes give to root only; without that it would fit `restricted`."""
    assert await made(cluster, home, mover_pod()) == ""
    refused = await made(cluster, restricted, mover_pod())
    assert "runAsNonRoot" in refused
    for word in ("allowPrivilegeEscalation", "capabilities", "seccompProfile", "volumes"):
        assert word not in refused
    able = mover_pod()
    able["securityContext"] = {**able["securityContext"], "runAsUser": 65532, "runAsNonRoot": True}
    assert await made(cluster, restricted, able) == ""


GREEDY: dict[str, dict[str, Any]] = {
    "privileged": {"container": {"securityContext": {"privileged": True}}},
    "SYS_ADMIN": {"container": {"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}},
    "hostPath": {"volumes": [{"name": "host", "hostPath": {"path": "/"}}]},
    "host namespaces": {"hostNetwork": True},
    "seccompProfile": {"securityContext": {"seccompProfile": {"type": "Unconfined"}}},
}


@pytest.mark.parametrize("wish", GREEDY)
async def test_a_mover_that_asks_for_more_is_refused(cluster: RealCluster, home: str, wish: str) -> None:
    more = dict(GREEDY[wish])
    spec = mover_pod()
    spec["containers"] = [{**spec["containers"][0], **more.pop("container", {})}]
    spec["volumes"] = [*spec["volumes"], *more.pop("volumes", [])]

    refused = await made(cluster, home, {**spec, **more})

    assert 'violates PodSecurity "baseline' in refused
    assert wish in refused


# Install, upgrade, take over, uninstall


class Upgraded(NamedTuple):
    """A release that was upgraded, and the uids of what was there before."""

    release: Installed
    before: dict[str, str]


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart of an earlier release, with the definitions of then: one field less in each."""
    chart = tmp_path_factory.mktemp("chart") / "previous"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: tidemark\nversion: 0.0.1\n")
    shutil.copy(CHARTS / "previous" / "objects.yaml", chart / "templates" / "objects.yaml")
    shutil.copytree(CHART / "crds", chart / "crds")
    for path in (chart / "crds").iterdir():
        definition = yaml.safe_load(path.read_text())
        schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        schema["description"] = "As it was."
        path.write_text(yaml.safe_dump(definition))
    return chart


DATA = """
apiVersion: tidemark.dev/v1alpha1
kind: BackupRepository
metadata: {name: kept}
spec: {url: "s3://nowhere/kept", encryptionSecret: kept, allowedNamespaces: [chart-data]}
---
apiVersion: tidemark.dev/v1alpha1
kind: BackupPolicy
metadata: {name: kept, namespace: chart-data}
spec: {objective: {rpo: 4h}, retention: {keepLast: 3}, repository: kept, suspend: true}
---
apiVersion: tidemark.dev/v1alpha1
kind: RecoveryPoint
metadata: {name: kept, namespace: chart-data}
spec: {pvcName: gone, pvcUid: 11111111-2222-3333-4444-555555555555}
---
apiVersion: v1
kind: Secret
metadata: {name: kept, namespace: tidemark-system}
stringData: {master.key: "0000000000000000000000000000000000000000000000000000000000000000"}
"""
KEPT = {"backuprepository": "", "backuppolicy": "chart-data", "recoverypoint": "chart-data", "secret": NAMESPACE}
UPGRADE_CRDS = ("apply", "--server-side", "--force-conflicts", "-f", "charts/tidemark/crds/")


async def uids(cluster: RealCluster) -> dict[str, str]:
    """Return the uids of what must stay, and of the definitions."""
    found = {}
    for kind, where in KEPT.items():
        asked = ["get", kind, "kept", *(["-n", where] if where else []), "-o", "jsonpath={.metadata.uid}"]
        found[kind] = (await kubectl(cluster, *asked)).stdout
    said = await kubectl(
        cluster, "get", "crd", "-o", "jsonpath={range .items[*]}{.metadata.name}={.metadata.uid} {end}"
    )
    pairs = (entry.split("=") for entry in said.stdout.split())
    return found | {name: uid for name, uid in pairs if name.endswith("tidemark.dev")}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def upgraded(cluster: RealCluster, previous: Path) -> AsyncIterator[Upgraded]:
    """An earlier release with data of people and runs, upgraded to this checkout's chart; all goes at the end."""
    installed = Installed(cluster, {"controller": {"replicas": 1, "leaseDurationSeconds": 6}})
    try:
        await installed.install(previous, values=False)
        await kubectl(cluster, "create", "namespace", "chart-data")
        await kubectl(cluster, "apply", "-f", "-", stdin=DATA)
        before = await uids(cluster)
        # As docs/operations.md says: the definitions first, for helm never changes any.
        await kubectl(cluster, *UPGRADE_CRDS)
        await installed.upgrade()
        yield Upgraded(installed, before)
    finally:
        await installed.remove()
        for kind in ("backuppolicy", "recoverypoint"):
            gone = ["patch", kind, "kept", "-n", "chart-data", "--type=merge", '-p={"metadata":{"finalizers":null}}']
            await kubectl(cluster, *gone, ok=False)  # nobody is left who would take them off
            await kubectl(cluster, "delete", kind, "kept", "-n", "chart-data", "--ignore-not-found", "--wait=false")
        await kubectl(cluster, "delete", "backuprepository", "kept", "--ignore-not-found")
        await kubectl(cluster, "delete", "namespace", "chart-data", "--ignore-not-found", "--wait=false")


async def test_an_upgrade_from_an_earlier_release_keeps_definitions_and_data(
    cluster: RealCluster, upgraded: Upgraded
) -> None:
    assert len(upgraded.before) == len(KEPT) + 5
    assert await uids(cluster) == upgraded.before
    definition = await kubectl(cluster, "get", "crd", "backuppolicies.tidemark.dev", "-o", "yaml")
    assert "As it was." not in definition.stdout
    assert (await upgraded.release.get("/readyz"))[0] == 200


async def test_the_upgrades_words_are_those_of_the_documentation() -> None:
    page = (CHART.parents[1] / "docs" / "operations.md").read_text()
    assert f"kubectl {' '.join(UPGRADE_CRDS)}" in page


async def test_the_controller_runs_as_rendered(cluster: RealCluster, upgraded: Upgraded) -> None:
    [pod] = await upgraded.release.pods()
    [record] = json.loads((cluster.data / "pods" / pod["metadata"]["uid"] / "processes.json").read_text())["processes"]
    seen = Path("/proc") / str(record["pid"])
    status = dict(line.split(":\t", 1) for line in (seen / "status").read_text().splitlines() if ":\t" in line)
    environment = (seen / "environ").read_bytes().decode().split("\0")
    words = (seen / "cmdline").read_bytes().decode().split("\0")

    assert status["Uid"].split() == ["65532"] * 4
    assert int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"].strip() == "1"
    assert f"POD_UID={pod['metadata']['uid']}" in environment
    assert not [entry for entry in environment if entry.startswith("KUBECONFIG=")]
    assert f"--namespace={NAMESPACE}" in words, "the reference to the environment is resolved"
    assert not (seen / "root" / "tmp").samefile("/tmp")

    token = (seen / "root/var/run/secrets/kubernetes.io/serviceaccount/token").read_text()
    payload = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert payload["kubernetes.io"]["pod"]["uid"] == pod["metadata"]["uid"]
    assert payload["sub"] == f"system:serviceaccount:{NAMESPACE}:tidemark-controller"
    assert payload["exp"] - payload["iat"] <= 3607 or payload["kubernetes.io"].get("warnafter")


async def test_a_changed_value_rolls_the_deployment(upgraded: Upgraded) -> None:
    before = {pod["metadata"]["uid"] for pod in await upgraded.release.pods()}

    await upgraded.release.upgrade({"controller": {"logLevel": "debug", "replicas": 2}})

    after = await upgraded.release.pods()
    assert len(after) == 2
    assert not before & {pod["metadata"]["uid"] for pod in after}
    assert all("--log-level=debug" in pod["spec"]["containers"][0]["args"] for pod in after)


async def test_of_two_replicas_one_works_and_the_other_takes_over(upgraded: Upgraded) -> None:
    release = upgraded.release
    if len(await release.pods()) != 2:
        await release.upgrade({"controller": {"replicas": 2}})
    first = await _until(release.leader)
    nodes = {pod["spec"]["nodeName"] for pod in await release.pods()}

    assert len(nodes) == 2, "not both on one node"
    assert await release.kill(first) == 1

    async def another() -> str:
        found = await release.leader()
        return found if found != first else ""

    second = await _until(another)
    assert second

    async def restarted() -> str:
        return (
            "yes"
            if {p["metadata"]["name"]: _restarts(p) for p in await release.pods()} == {first: 1, second: 0}
            else ""
        )

    await _until(restarted)


async def test_an_uninstall_leaves_definitions_and_data_alone(cluster: RealCluster, upgraded: Upgraded) -> None:
    await upgraded.release.uninstall()

    assert await upgraded.release.pods() == []
    assert await uids(cluster) == upgraded.before

    # And a later installation finds them.
    upgraded.release.values["controller"]["replicas"] = 0
    await upgraded.release.install()
    assert await uids(cluster) == upgraded.before


def _restarts(pod: dict[str, Any]) -> int:
    return int(pod["status"]["containerStatuses"][0]["restartCount"])


async def _until(seen: Callable[[], Awaitable[str]], within_s: float = LONG) -> str:
    """Ask until the answer is not empty: what another process does has no signal to wait for."""
    async with asyncio.timeout(within_s):
        while not (found := await seen()):
            await asyncio.sleep(0.3)
    return found
