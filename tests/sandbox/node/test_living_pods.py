"""Pods that are meant to go on running: their probes are really asked, their tokens are bound to them and renewed."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.sandbox.cluster import Sandbox
from orchestrator.sandbox.kinds import CONFIG_MAP, EVENT, POD
from orchestrator.sandbox.node.mounts import fill, make_volumes
from orchestrator.sandbox.objects import Manifest, status, uid
from tests.api.real_apiserver import free_port
from tests.sandbox.cluster.world import World

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVER = """
import http.server, os, sys
class Answer(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Answer.asked += 1
        self.send_response(200 if Answer.asked < 3 else 500)
        self.end_headers()
    def log_message(self, *words): pass
http.server.HTTPServer((os.environ["POD_IP"], int(sys.argv[1])), Answer).serve_forever()
"""


def a_pod(at: str, container: Manifest, **more: Any) -> Manifest:
    body = {"containers": [{"name": "main", "image": "any", **container}], "terminationGracePeriodSeconds": 30, **more}
    return {"metadata": {"name": at, "namespace": "default"}, "spec": body}


async def test_a_container_that_fails_its_liveness_probe_is_started_again(world: World) -> None:
    port = free_port()
    asked = {"httpGet": {"path": "/", "port": port}, "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 20}
    container = {
        "command": ["python", "-c", SERVER, str(port)],
        "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "startupProbe": {**asked, "failureThreshold": 60},
        "livenessProbe": asked,
    }

    made = await world.api.create(POD, a_pod("mortal", container))
    pod = await world.until(POD, made, lambda seen: _container(seen).get("restartCount", 0) >= 1, timeout_s=60)

    assert _container(pod)["lastState"]["terminated"]["exitCode"] == 143, "asked to end, not killed"
    events, _ = await world.api.list(EVENT, "default")
    said = {(e["reason"], e["message"]) for e in events if e["involvedObject"].get("uid") == uid(pod)}
    assert ("Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 500") in said
    assert ("Killing", "Container main failed liveness probe, will be restarted") in said
    await world.api.delete(POD, pod, grace_s=0)


async def test_a_pod_is_ready_when_its_probe_says_so_and_not_before(world: World) -> None:
    port = free_port()
    container = {
        "command": ["sh", "-c", "sleep 60"],
        "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1},
    }

    made = await world.api.create(POD, a_pod("deaf", container))
    pod = await world.until(POD, made, lambda seen: status(seen).get("phase") == "Running", timeout_s=30)

    conditions = {c["type"]: c["status"] for c in status(pod)["conditions"]}
    assert conditions["Ready"] == "False"
    assert _container(pod)["started"]
    assert not _container(pod)["ready"]
    await world.api.delete(POD, pod, grace_s=0)


def _container(pod: Manifest) -> Manifest:
    found: Manifest = (status(pod).get("containerStatuses") or [{}])[0]
    return found


async def test_a_projected_volume_holds_a_token_of_this_pod_that_is_renewed_in_time(
    sandbox: Sandbox, world: World, tmp_path: Path
) -> None:
    await world.api.create(
        CONFIG_MAP, {"metadata": {"name": "root-ca", "namespace": "default"}, "data": {"ca.crt": "PEM"}}
    )
    sources = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 600, "audience": "somebody"}},
        {"configMap": {"name": "root-ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
    ]
    volume = {"name": "account", "projected": {"sources": sources, "defaultMode": 0o640}}
    # No node takes it: what a node makes of it is made by hand below.
    pod = await world.api.create(
        POD, a_pod("holder", {"command": ["true"]}, volumes=[volume], nodeSelector={"no": "where"})
    )

    made = await make_volumes(world.api, pod, tmp_path, {}, readable=True)

    folder = made.at["account"]
    token = (folder / "token").read_bytes()
    payload = json.loads(base64.urlsafe_b64decode(token.split(b".")[1] + b"=="))
    assert payload["aud"] == ["somebody"]
    assert payload["kubernetes.io"]["pod"]["uid"] == uid(pod)
    assert (folder / "ca.crt").read_text() == "PEM"
    assert (folder / "namespace").read_text() == "default"
    assert (folder / "token").stat().st_mode & 0o777 == 0o640
    assert made.renew_s == {"account": 480.0}, "when four fifths of its life are over"

    before = (folder / "token").stat().st_ino
    assert await fill(world.api, pod, volume, folder, readable=True) == 480.0
    assert (folder / "token").stat().st_ino != before, "a new file in the old one's place, never a half-written one"
    assert sorted(path.name for path in folder.iterdir()) == ["ca.crt", "namespace", "token"]
    await world.api.delete(POD, pod, grace_s=0)
