"""What the chart renders: as reviewed, linted, and safe whatever the values.

Tests marked `real` render with helm; all others read the goldens, so that they need no tool.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api.mover import MoverConfig
from orchestrator.config import Settings
from orchestrator.volumes.job import MoverJob, build
from tests.charts.goldens import CHART, HERE, VALUES, documents, golden, helm, only, render

RENEW = "renew it with `.venv/bin/python -m tests.charts.goldens`, look at the difference and commit it"
NAMES = [values.stem for values in VALUES]


def values_of(name: str) -> Path:
    return HERE / "values" / f"{name}.yaml"


@pytest.mark.real
@pytest.mark.parametrize("name", NAMES)
def test_the_chart_renders_what_was_reviewed(name: str) -> None:
    assert render(values_of(name)) == golden(values_of(name)).read_text(), RENEW


@pytest.mark.real
@pytest.mark.parametrize("name", NAMES)
def test_the_linter_has_nothing_to_say(name: str) -> None:
    command = [helm(), "lint", "--strict", str(CHART), "--kube-version", "1.36.0", "--values", str(values_of(name))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


WRONG = [
    ("controller.replica=2", "replica"),
    ("controller.replicas=two", "replicas"),
    ("mover.memory=lots", "memory"),
    ("image.digest=sha256:short", "digest"),
    ("controler.replicas=2", "controler"),
    ("metrics.serviceMonitor.enable=true", "enable"),
    ("podDisruptionBudget.minAvailable=1", "minAvailable"),
    ("metrics.port=80", "port"),
]


@pytest.mark.real
@pytest.mark.parametrize(("wrong", "word"), WRONG)
def test_a_slip_of_the_pen_is_refused_by_its_name(wrong: str, word: str) -> None:
    command = [helm(), "template", "tm", str(CHART), "--kube-version", "1.36.0", "--set", wrong]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "values don't meet the specifications of the schema" in done.stderr
    assert word in done.stderr


@pytest.mark.quick
def test_every_values_file_has_its_golden_and_no_golden_is_left_over() -> None:
    assert {path.name for path in (HERE / "goldens").iterdir()} == {values.name for values in VALUES}


def pods(name: str) -> list[dict[str, Any]]:
    return [
        d["spec"]["template"] for d in documents(values_of(name)) if d["kind"] in {"Deployment", "Job", "DaemonSet"}
    ]


@pytest.mark.quick
@pytest.mark.parametrize("name", NAMES)
def test_no_pod_of_the_chart_asks_for_more_than_restricted(name: str) -> None:
    for pod in pods(name):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert all("hostPath" not in volume for volume in spec["volumes"])
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container)


@pytest.mark.quick
@pytest.mark.parametrize("name", NAMES)
def test_what_selects_the_controllers_pods_finds_them(name: str) -> None:
    objects = documents(values_of(name))
    [pod] = pods(name)
    labels = pod["metadata"]["labels"].items()
    assert only(objects, "Deployment")["spec"]["selector"]["matchLabels"].items() <= labels
    assert only(objects, "Service")["spec"]["selector"].items() <= labels
    for found in objects:
        if found["kind"] == "PodDisruptionBudget":
            assert found["spec"]["selector"]["matchLabels"].items() <= labels
        if found["kind"] == "ServiceMonitor":
            wanted = found["spec"]["selector"]["matchLabels"].items()
            assert wanted <= only(objects, "Service")["metadata"]["labels"].items()


@pytest.mark.quick
def test_a_mover_falls_under_its_network_policy_and_not_under_the_controllers() -> None:
    objects = documents(values_of("default"))
    config = MoverConfig(task="backup", point="p", url="file:///r", keys="{}")
    job = build(MoverJob(name="tm-x", task="backup", config=config), Settings())
    labels = job["spec"]["template"]["metadata"]["labels"]
    mover = only(objects, "NetworkPolicy", "tidemark-mover")["spec"]
    own = only(objects, "NetworkPolicy", "tidemark-controller")["spec"]
    assert [e["key"] for e in mover["podSelector"]["matchExpressions"] if e["operator"] == "Exists"] == [
        key for key in labels if key == "tidemark.dev/task"
    ]
    assert mover["ingress"] == []
    assert not own["podSelector"]["matchLabels"].items() <= labels.items()


@pytest.mark.quick
def test_a_disruption_budget_never_blocks_a_drain() -> None:
    budget = only(documents(values_of("ha")), "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert "minAvailable" not in budget
    assert not [d for d in documents(values_of("minimal")) if d["kind"] == "PodDisruptionBudget"]


@pytest.mark.quick
def test_everything_is_in_the_releases_namespace_or_of_the_cluster() -> None:
    cluster_wide = {"ClusterRole", "ClusterRoleBinding"}
    for name in NAMES:
        for found in documents(values_of(name)):
            where = found["metadata"].get("namespace")
            assert where == (None if found["kind"] in cluster_wide else "tidemark-system"), found["metadata"]["name"]
