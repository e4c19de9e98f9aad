"""The real cluster itself: volumes, pods, logs and credentials work before anything of ours is installed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from orchestrator.api.foreign.core import PersistentVolumeClaim, Pod
from tests.real.cluster import RealCluster
from tests.waiting import LONG

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1500)]

POD = """
apiVersion: v1
kind: Pod
metadata: {name: reader, namespace: ground}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  nodeSelector: {topology.kubernetes.io/zone: zone-b}
  containers:
  - name: reader
    image: tidemark
    command: [sh, -c, "echo the log is here; exit 0"]
    volumeDevices: [{name: disk, devicePath: /dev/disk}]
  volumes:
  - name: disk
    persistentVolumeClaim: {claimName: late}
"""
CLAIM = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: NAME, namespace: ground}
spec:
  accessModes: [ReadWriteOnce]
  volumeMode: Block
  storageClassName: CLASS
  resources: {requests: {storage: 8Mi}}
"""


async def eventually(met: Callable[[], bool], within_s: float = LONG) -> None:
    """Ask again until it is so."""
    end = time.monotonic() + within_s
    while not await asyncio.to_thread(met):
        assert time.monotonic() < end
        await asyncio.sleep(0.2)


async def test_a_pod_gets_its_volume_where_it_runs_and_its_log_comes_through_the_api_server(
    cluster: RealCluster,
) -> None:
    """A claim that waits for its consumer is made in the zone of the pod that names it; a real API server gets logs."""
    run = cluster.kubectl
    await asyncio.to_thread(run, "create", "namespace", "ground")
    try:
        claims = CLAIM.replace("NAME", "soon").replace("CLASS", "sandbox")
        claims += "---" + CLAIM.replace("NAME", "late").replace("CLASS", "sandbox-wffc")
        await asyncio.to_thread(run, "apply", "-f", "-", stdin=claims)
        await asyncio.to_thread(run, "apply", "-f", "-", stdin=POD)

        def ended() -> bool:
            return run("get", "pod", "reader", "-n", "ground", "-o", "jsonpath={.status.phase}").stdout == "Succeeded"

        await eventually(ended)
        assert "the log is here" in (await asyncio.to_thread(run, "logs", "reader", "-n", "ground")).stdout
        pod = await cluster.client.get(Pod, "reader", "ground")
        assert pod.spec.node_name == "sandbox-2"
        for name in ("soon", "late"):
            assert (await cluster.client.get(PersistentVolumeClaim, name, "ground")).bound
    finally:
        await asyncio.to_thread(run, "delete", "namespace", "ground", "--wait=true", "--timeout=300s")


async def test_credentials_are_those_of_the_user_and_no_more(cluster: RealCluster) -> None:
    """A person in no group that has rights may do nothing; who the server takes them for is who they are."""
    person = await asyncio.to_thread(cluster.kubeconfig_as, "ada", ["team-a", "team-b"])
    said = await asyncio.to_thread(lambda: cluster.kubectl("auth", "whoami", as_=person).stdout)
    assert "ada" in said
    assert "team-b" in said
    refused = await asyncio.to_thread(lambda: cluster.kubectl("get", "secrets", "-A", as_=person, ok=False))
    assert "forbidden" in refused.stderr


async def test_a_cluster_goes_on_after_a_restart_of_its_api_server_and_a_compaction(cluster: RealCluster) -> None:
    """What was there is there after it, and the storage makes volumes again."""
    run = cluster.kubectl
    await asyncio.to_thread(run, "create", "namespace", "ground-2")
    await cluster.compact_etcd()
    await cluster.restart_apiserver()
    claim = CLAIM.replace("NAME", "after").replace("CLASS", "sandbox").replace("ground", "ground-2")
    await asyncio.to_thread(run, "apply", "-f", "-", stdin=claim)

    def bound() -> bool:
        return "Bound" in run("get", "pvc", "after", "-n", "ground-2", "--no-headers").stdout

    await eventually(bound)
    await asyncio.to_thread(run, "delete", "namespace", "ground-2", "--wait=true", "--timeout=300s")
