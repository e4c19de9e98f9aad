"""What a directory keeps: everything that was acknowledged, whatever happened to the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.contract.clusters import Cluster
from tests.sandbox.apiserver.conftest import serving
from tests.waiting import SHORT

MAPS = "/api/v1/namespaces/default/configmaps"


def _start(directory: Path) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-m", "orchestrator.sandbox.apiserver", "--dir", str(directory)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert b"serving at" in process.stdout.readline()
    return process


def _kill(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait(SHORT)
    assert process.stdout is not None
    process.stdout.close()


def test_a_killed_server_comes_back_with_all_that_it_acknowledged(tmp_path: Path) -> None:
    process = _start(tmp_path)
    cluster = Cluster(tmp_path / "kubeconfig", "sandbox")
    system = cluster.get("/api/v1/namespaces/kube-system").ok()["metadata"]["uid"]
    made = {f"m{i}": cluster.post(MAPS, {"metadata": {"name": f"m{i}"}, "data": {"i": str(i)}}).ok() for i in range(20)}
    cluster.delete(MAPS + "/m3").ok()
    changed = cluster.patch(MAPS + "/m4", {"data": {"i": "changed"}}).ok()
    token = cluster.post("/api/v1/namespaces/default/serviceaccounts/default/token", {"spec": {}}).ok()
    _kill(process)
    cluster.close()
    before = (tmp_path / "kubeconfig").read_text()

    process = _start(tmp_path)
    try:
        assert (tmp_path / "kubeconfig").read_text() == before
        found = {o["metadata"]["name"]: o for o in cluster.get(MAPS).ok()["items"]}
        assert "m3" not in found
        assert found["m4"]["data"] == {"i": "changed"}
        assert {n: found[n]["metadata"]["uid"] for n in made if n != "m3"} == {
            n: o["metadata"]["uid"] for n, o in made.items() if n != "m3"
        }
        assert cluster.get("/api/v1/namespaces/kube-system").ok()["metadata"]["uid"] == system
        later = cluster.post(MAPS, {"metadata": {"name": "later"}}).ok()
        assert int(later["metadata"]["resourceVersion"]) > int(changed["metadata"]["resourceVersion"])
        review = {"spec": {"token": token["status"]["token"]}}
        answer = cluster.post("/apis/authentication.k8s.io/v1/tokenreviews", review).ok()
        assert answer["status"]["authenticated"] is True
        with cluster.watch(MAPS, resourceVersion=changed["metadata"]["resourceVersion"]) as events:
            assert next(events)["object"]["code"] == 410
    finally:
        _kill(process)
        cluster.close()


async def test_definitions_survive_and_given_ones_are_brought_up_to_date(tmp_path: Path) -> None:
    def definition(maximum: int) -> dict[str, Any]:
        schema = {"type": "object", "properties": {"size": {"type": "integer", "maximum": maximum}}}
        version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
        names = {"kind": "Box", "plural": "boxes"}
        spec = {"group": "x.io", "scope": "Cluster", "names": names, "versions": [version]}
        return {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": "boxes.x.io"},
            "spec": spec,
        }

    box = {"apiVersion": "x.io/v1", "kind": "Box", "metadata": {"name": "b"}, "size": 5}
    async with serving(tmp_path, crd_manifests=[definition(5)]) as client:
        await client.made("/apis/x.io/v1/boxes", box)
        refused, _ = await client.call("POST", "/apis/x.io/v1/boxes", {**box, "metadata": {"name": "c"}, "size": 6})
        assert refused == 422
    async with serving(tmp_path) as client:
        assert (await client.call("GET", "/apis/x.io/v1/boxes/b"))[1]["size"] == 5
    async with serving(tmp_path, crd_manifests=[definition(6)]) as client:
        await client.made("/apis/x.io/v1/boxes", {**box, "metadata": {"name": "c"}, "size": 6})
        assert len((await client.call("GET", "/apis/x.io/v1/boxes"))[1]["items"]) == 2


def test_the_program_ends_clean_on_a_signal(tmp_path: Path) -> None:
    process = _start(tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.wait(SHORT) == 0
    assert process.stdout is not None
    process.stdout.close()
    assert (tmp_path / "kubeconfig").stat().st_mode & 0o077 == 0


async def test_a_watch_ends_with_the_server_and_is_not_cut_off(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        watch = {"watch": "true", "resourceVersion": str(client.server.store.rv)}
        async with client.session.get(client.server.url + MAPS, params=watch) as response:
            client.running.cancel()
            assert await response.read() == b"", "what is cut off raises"


async def test_revisions_go_up_even_if_only_removals_came_last(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        store = client.server.store
        for number in range(3000):
            name = f"m{number}"
            store.put("configmaps", {"metadata": {"name": name, "namespace": "default", "uid": name}})
        for number in range(3000):
            store.remove("configmaps", "default", f"m{number}")
        last = store.rv
    async with serving(tmp_path) as client:
        assert client.server.store.rv > last
