"""The chart: values match their schema, arguments are those of the command, roles are as small as they may be."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from orchestrator.api.crd import files
from orchestrator.api.tidemark import KINDS
from orchestrator.app.kinds import KINDS as KEPT
from orchestrator.cli import controller
from tests.api.real_apiserver import find_tool, real_apiserver

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "tidemark"
ALL_ON = [
    "--set",
    "metrics.serviceMonitor.enabled=true,metrics.prometheusRule.enabled=true,metrics.dashboard.enabled=true",
    "--set",
    "imagePullSecrets[0].name=pull,controller.priorityClassName=high,controller.podLabels.a=b",
    "--set",
    "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.x=y,serviceAccounts.mover.annotations.role=r",
]


def schema_errors(value: Any, schema: dict[str, Any], top: dict[str, Any], path: str = "values") -> list[str]:
    """Check what our schema uses of draft 7; enough to see that the defaults match it."""
    if "$ref" in schema:
        schema = top["definitions"][schema["$ref"].rsplit("/", 1)[1]]
    if "enum" in schema:
        return [] if value in schema["enum"] else [f"{path}: {value!r} is none of {schema['enum']}"]
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    if not isinstance(value, kinds[schema["type"]]):
        return [f"{path}: {value!r} is no {schema['type']}"]
    errors = []
    if isinstance(value, dict) and "properties" in schema:
        errors += [f"{path}: {name} is missing" for name in schema.get("required", []) if name not in value]
        for name, inner in value.items():
            if name in schema["properties"]:
                errors += schema_errors(inner, schema["properties"][name], top, f"{path}.{name}")
            elif schema.get("additionalProperties") is False:
                errors.append(f"{path}: {name} is not known")
    if isinstance(value, int) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        errors.append(f"{path}: {value} is out of bounds")
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        errors.append(f"{path}: {value!r} does not match")
    return errors


@pytest.mark.quick
def test_the_default_values_match_their_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema_errors(yaml.safe_load((CHART / "values.yaml").read_text()), schema, schema) == []


@pytest.mark.quick
def test_the_schema_knows_every_default_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(schema["properties"]) - {"global"} == set(values)
    for name in ("image", "controller", "mover", "metrics", "networkPolicy", "rbac"):
        assert set(schema["properties"][name]["properties"]) == set(values[name])


@pytest.mark.quick
def test_the_crds_of_the_chart_are_what_the_structs_say() -> None:
    found = {path.name: path.read_text(encoding="utf-8") for path in (CHART / "crds").iterdir()}
    assert found == files(), "run `make gen` and commit the result"


@pytest.mark.quick
def test_the_controllers_arguments_are_those_of_the_command() -> None:
    command: Any = typer.main.get_command(controller.app)
    known = {option for parameter in command.params for option in parameter.opts}
    used = set(re.findall(r"^ +- (--[a-z-]+)", (CHART / "templates" / "deployment.yaml").read_text(), re.MULTILINE))
    assert len(used) > 8
    assert used <= known


def helm(*arguments: str) -> list[dict[str, Any]]:
    tool = find_tool("helm")
    if tool is None:
        pytest.skip("needs helm on PATH or in KUBEBUILDER_ASSETS")
    command = [tool, "template", "tm", CHART, "--namespace", "tidemark-system"]
    command += ["--kube-version", "1.36.0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def only(documents: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    found = [d for d in documents if d["kind"] == kind and name in ("", d["metadata"]["name"])]
    assert len(found) == 1, [d["metadata"]["name"] for d in found]
    return found[0]


@pytest.mark.real
@pytest.mark.parametrize("arguments", [[], ALL_ON])
def test_helm_renders_it(arguments: list[str]) -> None:
    documents = helm(*arguments)
    pod = only(documents, "Deployment")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["args"][0] == "controller"
    assert only(documents, "ServiceAccount", "tidemark-mover")["automountServiceAccountToken"] is False
    selector = only(documents, "Service")["spec"]["selector"]
    labels = only(documents, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert selector.items() <= labels.items()
    if arguments:
        assert labels["a"] == "b"
        assert only(documents, "PrometheusRule")["spec"]["groups"]
        assert json.loads(only(documents, "ConfigMap")["data"]["tidemark.json"])["uid"] == "tidemark"


@pytest.mark.real
def test_roles_are_as_small_as_they_may_be() -> None:
    documents = helm()
    cluster = only(documents, "ClusterRole", "tidemark-controller")["rules"]
    reachable = {resource for rule in cluster for resource in rule["resources"]}
    assert not reachable & {"secrets", "pods", "pods/exec", "jobs", "serviceaccounts/token", "*"}
    assert all("*" not in rule["verbs"] for rule in cluster)
    own = only(documents, "Role", "tidemark-controller")["rules"]
    tokens = [rule for rule in own if "serviceaccounts/token" in rule["resources"]]
    assert [rule["resourceNames"] for rule in tokens] == [["tidemark-controller"]]
    bound = {binding["subjects"][0]["name"] for binding in documents if binding["kind"].endswith("RoleBinding")}
    assert bound == {"tidemark-controller"}, "movers have no rights at all"


@pytest.mark.real
def test_tenants_read_points_and_write_no_status() -> None:
    edit = only(helm(), "ClusterRole", "tidemark-edit")["rules"]
    writable = {r for rule in edit if "create" in rule["verbs"] for r in rule["resources"]}
    assert writable == {"backuppolicies", "backups", "restores"}
    everything = {r for rule in edit for r in rule["resources"]}
    assert everything == {"backuppolicies", "backups", "restores", "recoverypoints"}


@pytest.mark.real
def test_a_wrong_value_is_refused_by_its_name() -> None:
    tool = find_tool("helm")
    if tool is None:
        pytest.skip("needs helm on PATH or in KUBEBUILDER_ASSETS")
    command = [tool, "template", "tm", CHART, "--set", "controller.logLevel=loud"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "logLevel" in done.stderr


@pytest.mark.quick
def test_every_kind_of_ours_is_in_the_controllers_role() -> None:
    text = (CHART / "templates" / "rbac-controller.yaml").read_text()
    for kind in KINDS:
        assert f"{kind.RESOURCE.plural}/status" in text


PATHS = {
    "ServiceAccount": "/api/v1/namespaces/tidemark-system/serviceaccounts",
    "Service": "/api/v1/namespaces/tidemark-system/services",
    "ConfigMap": "/api/v1/namespaces/tidemark-system/configmaps",
    "Deployment": "/apis/apps/v1/namespaces/tidemark-system/deployments",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/tidemark-system/poddisruptionbudgets",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/tidemark-system/networkpolicies",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/tidemark-system/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/tidemark-system/rolebindings",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
}

CONTROLLER = "system:serviceaccount:tidemark-system:tidemark-controller"
MAY = [
    (CONTROLLER, "patch", "tidemark.dev", "recoverypoints", "status", "shop", True),
    (CONTROLLER, "create", "snapshot.storage.k8s.io", "volumesnapshots", "", "shop", True),
    (CONTROLLER, "patch", "snapshot.storage.k8s.io", "volumesnapshotcontents", "", "", True),
    (CONTROLLER, "create", "", "persistentvolumeclaims", "", "shop", True),
    (CONTROLLER, "create", "batch", "jobs", "", "tidemark-system", True),
    (CONTROLLER, "create", "batch", "jobs", "", "shop", False),
    (CONTROLLER, "get", "", "secrets", "", "tidemark-system", True),
    (CONTROLLER, "list", "", "secrets", "", "tidemark-system", False),
    (CONTROLLER, "get", "", "secrets", "", "shop", False),
    (CONTROLLER, "list", "", "events", "", "tidemark-system", True),
    (CONTROLLER, "create", "", "pods", "exec", "shop", False),
    ("system:serviceaccount:tidemark-system:tidemark-mover", "get", "", "secrets", "", "tidemark-system", False),
]


@pytest.mark.real
def test_a_real_api_server_takes_every_object_and_gives_the_rights_meant(tmp_path: Path) -> None:
    etcd, apiserver = find_tool("etcd"), find_tool("kube-apiserver")
    if etcd is None or apiserver is None:
        pytest.skip("needs etcd and kube-apiserver in KUBEBUILDER_ASSETS")
    documents = helm("--set", "metrics.dashboard.enabled=true")
    with real_apiserver(etcd, apiserver, tmp_path) as server:
        assert server.call("POST", "/api/v1/namespaces", {"metadata": {"name": "tidemark-system"}})[0] == 201
        for document in documents:
            status, answer = server.call("POST", f"{PATHS[document['kind']]}?fieldValidation=Strict", document)
            assert status == 201, answer
        for user, verb, group, resource, sub, namespace, expected in MAY:
            where = {"namespace": namespace, "verb": verb, "group": group, "resource": resource, "subresource": sub}
            review = {"spec": {"user": user, "resourceAttributes": where}}
            _, answer = server.call("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
            assert answer["status"]["allowed"] is expected, where
        # a token of its own account, of no other
        for name, expected in (("tidemark-controller", True), ("tidemark-mover", False)):
            where = {"namespace": "tidemark-system", "verb": "create", "resource": "serviceaccounts", "name": name}
            review = {"spec": {"user": CONTROLLER, "resourceAttributes": where | {"subresource": "token"}}}
            _, answer = server.call("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
            assert answer["status"]["allowed"] is expected, name


def plain_rules(kind: str) -> list[dict[str, Any]]:
    """Return a role's rules from the template itself: they hold no template words."""
    text = (CHART / "templates" / "rbac-controller.yaml").read_text()
    lines = [line for line in text.splitlines() if "{{" not in line]
    roles = [d for d in yaml.safe_load_all("\n".join(lines)) if d and d["kind"] == kind]
    return [rule for role in roles for rule in role["rules"]]


@pytest.mark.quick
def test_the_controller_may_watch_whatever_it_caches() -> None:
    """Without one of them the controller waits for ever to be synced."""
    for row in KEPT:
        rules = plain_rules("Role" if row.ours_only else "ClusterRole")
        wanted = row.kind.RESOURCE
        verbs = {
            verb
            for rule in rules
            for verb in rule["verbs"]
            if wanted.group in rule["apiGroups"] and wanted.plural in rule["resources"]
        }
        assert verbs >= {"list", "watch"}, wanted
