"""How a session comes about: from a pod's account, from a plugin, and without the library's model classes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator.api.foreign.core import Namespace
from orchestrator.kube import transport
from orchestrator.kube.client import Client
from orchestrator.kube.errors import NotConfigured
from orchestrator.sandbox.apiserver.server import ApiServer
from tests.kube.fakes import TOKEN, FakeApi, write_kubeconfig


async def test_in_a_pod_the_mounted_account_is_used_and_a_rotated_token_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ApiServer(tmp_path / "state")
    ready = asyncio.Event()
    serving = asyncio.create_task(server.run(ready))
    await asyncio.wait_for(ready.wait(), 20)
    token, ca = tmp_path / "token", tmp_path / "ca.crt"
    token.write_text(server.token_for("admin", ("system:masters",)))
    ca.write_bytes(server.ca_pem)
    transport._load()
    pod = sys.modules["kubernetes_asyncio.config.incluster_config"]
    monkeypatch.setattr(pod, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(pod, "SERVICE_CERT_FILENAME", str(ca))
    host, port = server.url.removeprefix("https://").split(":")
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    monkeypatch.setattr(pod, "TOKEN_REFRESH_PERIOD", pod.TOKEN_REFRESH_PERIOD * 0)
    try:
        async with await Client.connect() as client:
            assert (await client.get(Namespace, "kube-system")).uid
            rotated = server.token_for("other", ("system:masters",))
            token.write_text(rotated)
            assert await client.bearer() == rotated
            token.write_text("")
            assert await client.bearer() == rotated, "an empty file in mid-rotation is no end"
            assert (await client.get(Namespace, "kube-system")).uid
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def test_a_plugins_token_is_used_and_one_that_breaks_later_is_no_end(
    api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = tmp_path / "plugin"
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": TOKEN}}
    plugin.write_text("#!/bin/sh\necho '" + json.dumps(credential) + "'\n")
    plugin.chmod(0o700)
    path = write_kubeconfig(tmp_path, api.url)
    config = yaml.safe_load(path.read_text())
    entry = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "interactiveMode": "Never"}
    config["users"][0]["user"] = {"exec": entry}
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setattr(transport, "REFRESH_S", 0.0)

    async with await Client.connect(kubeconfig=str(path)) as client:
        api.put({"metadata": {"name": "kube-system"}}, "namespaces")
        assert (await client.get(Namespace, "kube-system")).name == "kube-system"
        plugin.write_text("#!/bin/sh\nexit 1\n")
        assert (await client.get(Namespace, "kube-system")).name == "kube-system"


async def test_nothing_to_connect_with_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    with pytest.raises(NotConfigured, match="no kubeconfig"):
        await Client.connect()


async def test_a_kubeconfig_that_is_not_one_is_a_clear_error(tmp_path: Path) -> None:
    for number, text in enumerate(("", "not: a kubeconfig", "[1, 2]", "{{{", "a: [", "\x00")):
        path = tmp_path / str(number)
        path.write_text(text)
        with pytest.raises(NotConfigured):
            await Client.connect(kubeconfig=str(path))


def test_the_model_classes_are_never_imported_and_the_whole_library_stays_usable() -> None:
    script = (
        "import sys; from orchestrator.kube import transport; transport._load(); transport._load();"
        "assert not [m for m in sys.modules if m.startswith('kubernetes_asyncio.client.models')];"
        "assert 'kubernetes_asyncio' not in sys.modules"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=root, check=True, timeout=60)
