"""What an isolated container sees and may do: its security context, by a real process in a mount namespace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.sandbox.node.container import DEFAULT_CAPABILITIES, FAILED
from orchestrator.sandbox.node.isolation import Isolation, api_server, rights_of
from orchestrator.sandbox.node.mounts import NotPlayed

needs_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="a mount namespace and other users need root on Linux"
)
OURS: dict[str, Any] = {
    "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532},
}
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


class Node:
    """Runs one container after the other in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.isolation = Isolation.make(folder)
        self.termination = folder / "termination"
        self.volumes = {name: folder / name for name in ("account", "tmp", "config")}
        for at in self.volumes.values():
            at.mkdir()
        (self.volumes["account"] / "token").write_text("a token")
        self.volumes["tmp"].chmod(0o777)

    def run(self, pod: dict[str, Any], container: dict[str, Any], script: str) -> subprocess.CompletedProcess[str]:
        self.termination.write_bytes(b"")
        words = ["sh", "-c", script]
        command = self.isolation.command({"spec": pod}, container, self.volumes, self.termination, words)
        search = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        return subprocess.run(command, env={"PATH": search}, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@needs_root
def test_a_restricted_container_is_its_user_without_any_capability(node: Node) -> None:
    done = node.run(
        OURS, {"securityContext": RESTRICTED}, "id -u; id -g; grep -E 'Cap(Eff|Bnd)|NoNewPrivs' /proc/$$/status"
    )

    words = done.stdout.split()
    assert words[:2] == ["65532", "65532"]
    assert words[2:] == ["CapEff:", "0" * 16, "CapBnd:", "0" * 16, "NoNewPrivs:", "1"]


@needs_root
def test_root_that_drops_everything_can_t_read_what_is_of_another_user(node: Node) -> None:
    theirs = node.volumes["config"] / "secret"
    theirs.write_text("x")
    os.chown(theirs, 1234, 1234)
    theirs.chmod(0o600)
    container = {"volumeMounts": [{"name": "config", "mountPath": "/etc/theirs"}]}

    refused = node.run({}, {**container, "securityContext": RESTRICTED}, "id -u; cat /etc/theirs/secret")
    read = node.run({}, container, "cat /etc/theirs/secret")

    assert (refused.stdout, refused.returncode) == ("0\n", 1)
    assert "Permission denied" in refused.stderr
    assert read.stdout == "x"


@needs_root
def test_a_read_only_root_is_written_nowhere_but_in_its_volumes(node: Node) -> None:
    container = {
        "securityContext": RESTRICTED,
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "account", "mountPath": ACCOUNT, "readOnly": True},
        ],
    }
    places = f"/ /usr /etc /var/tmp /run {ACCOUNT}"
    done = node.run(
        OURS, container, f"for d in {places}; do touch $d/x && echo $d; done; touch /tmp/x; cat {ACCOUNT}/token"
    )

    assert done.stdout == "a token"
    assert (node.volumes["tmp"] / "x").exists()


@needs_root
def test_a_container_sees_nothing_of_the_machine_but_system_and_program(node: Node, tmp_path: Path) -> None:
    (tmp_path / "of-the-machine").write_text("x")

    done = node.run(
        {}, {}, f"ls /; test -e {tmp_path}/of-the-machine && echo seen; tidemark --version; touch /mine; ls /mine"
    )

    assert "seen" not in done.stdout
    assert "tidemark " in done.stdout
    assert not set(done.stdout.split()) & {"home", "mnt", "srv", "boot"}
    assert "/mine" in done.stdout
    assert not Path("/mine").exists()


@needs_root
def test_a_volume_over_a_folder_of_the_system_and_a_device_are_where_they_belong(node: Node) -> None:
    device = node.volumes["config"] / "disk.img"
    device.write_bytes(bytes(4096))
    container = {
        "volumeMounts": [{"name": "account", "mountPath": "/etc/tidemark/mover"}],
        "volumeDevices": [{"name": "disk", "devicePath": "/dev/tidemark-volume"}],
    }
    node.volumes["disk"] = device

    done = node.run({}, container, "cat /etc/tidemark/mover/token; ls /etc/passwd; printf tide > /dev/tidemark-volume")

    assert done.stdout == "a token/etc/passwd\n"
    assert device.read_bytes().startswith(b"tide")
    assert not Path("/etc/tidemark/mover").exists()


@needs_root
def test_a_message_reaches_the_node_whoever_wrote_it(node: Node) -> None:
    node.run(OURS, {"securityContext": RESTRICTED}, "printf last-words > /dev/termination-log")

    assert node.termination.read_text() == "last-words"


@needs_root
def test_a_program_that_is_not_there_is_told_in_the_log(node: Node, tmp_path: Path) -> None:
    command = node.isolation.command({"spec": {}}, {}, {}, tmp_path / "termination", ["no-such-program"])
    (tmp_path / "termination").touch()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == FAILED
    assert "No such file" in done.stderr


@needs_root
def test_a_program_below_a_mount_path_is_not_hidden_by_the_volume(node: Node, tmp_path: Path) -> None:
    """As a checkout in /tmp would be by the scratch volume of a mover."""
    program = tmp_path / "checkout" / "bin" / "program"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho it runs\n")
    program.chmod(0o755)
    container = {"volumeMounts": [{"name": "tmp", "mountPath": str(tmp_path)}]}
    command = node.isolation.command({"spec": {}}, container, node.volumes, tmp_path / "termination", [str(program)])
    (tmp_path / "termination").touch()
    given = json.loads(command[-1])
    given["image"].append(str(tmp_path / "checkout"))

    done = subprocess.run([*command[:-1], json.dumps(given)], capture_output=True, text=True, timeout=60, check=False)

    assert (done.stdout, done.returncode) == ("it runs\n", 0), done.stderr


@pytest.mark.quick
def test_the_containers_context_goes_before_the_pods() -> None:
    pod = {"spec": {"securityContext": {"runAsUser": 5, "runAsNonRoot": True, "fsGroup": 7, "supplementalGroups": [9]}}}

    own = rights_of(
        pod, {"securityContext": {"runAsUser": 6, "capabilities": {"drop": ["KILL"], "add": ["NET_ADMIN"]}}}
    )
    root = rights_of(pod, {"securityContext": {"runAsUser": 0}})

    assert (own.user, own.groups, own.must_not_be_root) == (6, (9, 7), False)
    assert set(own.capabilities) == {*DEFAULT_CAPABILITIES, "NET_ADMIN"} - {"KILL"}
    assert root.must_not_be_root


@pytest.mark.quick
def test_a_capability_that_nobody_knows_is_refused_by_name() -> None:
    with pytest.raises(NotPlayed, match="FLY"):
        rights_of({"spec": {}}, {"securityContext": {"capabilities": {"add": ["FLY"]}}})


@pytest.mark.quick
def test_pods_find_the_api_server_where_the_node_does() -> None:
    found = api_server("https://127.0.0.1:6443")

    assert found["KUBERNETES_SERVICE_HOST"] == "127.0.0.1"
    assert found["KUBERNETES_SERVICE_PORT"] == "6443"
