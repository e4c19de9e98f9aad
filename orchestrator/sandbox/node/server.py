"""The nodes as one program: which of its roles run, for how many nodes, with which labels."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import secrets
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.api.meta import Resource
from orchestrator.errors import Terminal
from orchestrator.sandbox.api import AlreadyExists, Api, ApiError, Conflict
from orchestrator.sandbox.faults import NAMESPACE, Faults
from orchestrator.sandbox.kinds import CONFIG_MAP, CSI_NODE, DRIVER, NODE, SECRET
from orchestrator.sandbox.kinds import NAMESPACE as NAMESPACES
from orchestrator.sandbox.node.attach import AttachDetach, Attacher
from orchestrator.sandbox.node.isolation import Isolation
from orchestrator.sandbox.node.jobs import JobController
from orchestrator.sandbox.node.kubelet import ADDRESS, Kubelet
from orchestrator.sandbox.node.logserver import LogServer
from orchestrator.sandbox.node.scheduler import Scheduler
from orchestrator.sandbox.objects import Manifest, name, timestamp
from orchestrator.sandbox.roles import Part, Runnable
from orchestrator.sandbox.storage.provisioner import ZONE

log = logging.getLogger(__name__)

ROLES = ("scheduler", "job-controller", "attach-detach", "attacher", "kubelet")
_LEASE = Resource("coordination.k8s.io", "v1", "Lease", "leases", True)
_LEASE_NAMESPACE = "kube-node-lease"
_BEAT_S = 10.0
_ATTACHED_BY_CONTROLLER = "volumes.kubernetes.io/controller-managed-attach-detach"
"""Without it a real attach-detach controller leaves the node's volumes alone."""


class UnknownRole(Terminal):
    """No role of that name."""

    reason = "UnknownRole"


class Nodes(Part):
    """A number of nodes, each in a zone of its own, and the controllers that bring pods to them."""

    name = "nodes"

    def __init__(
        self,
        api: Api,
        directory: Path,
        *,
        count: int = 1,
        zones: Sequence[str] = (),
        roles: Iterable[str] = ROLES,
        job_retry_s: float = 1.0,
        faults: Faults | None = None,
        kubelet_client_ca: Path | None = None,
        isolation: Isolation | None = None,
    ) -> None:
        """Play `count` nodes in zones zone-a, zone-b, ..., or one node for each of `zones`.

        With `kubelet_client_ca` logs are handed out over HTTPS to who has a certificate of that authority, as a
        kubelet does; without it to who knows the node's token. With `isolation` each container has a file system,
        a user and rights of its own.
        """
        super().__init__(api)
        self._directory = directory
        self._zones = list(zones) or [f"zone-{chr(ord('a') + number)}" for number in range(count)]
        self._names = [f"sandbox-{number}" for number in range(1, len(self._zones) + 1)]
        self._kubelet_client_ca = kubelet_client_ca
        self._isolation = isolation
        self._wanted = frozenset(roles)
        self._job_retry_s = job_retry_s
        unknown = self._wanted - set(ROLES)
        if unknown:
            raise UnknownRole(f"unknown roles {', '.join(sorted(unknown))}; there are {', '.join(ROLES)}")
        self.faults = faults or Faults(self.mirror(CONFIG_MAP, NAMESPACE))
        self._kubelets: list[Kubelet] = []
        self._log_servers: list[LogServer] = []

    async def setup(self) -> list[Runnable]:
        """Register the nodes; return the wanted roles."""
        made: list[Runnable] = []
        if "kubelet" in self._wanted:
            for node, zone in zip(self._names, self._zones, strict=True):
                kubelet = Kubelet(self, node, self._directory, self.faults, self._isolation)
                await self._register(node, zone, kubelet)
                self._kubelets.append(kubelet)
                made.append(kubelet)
            made.append(Heartbeat(self.api, self._names))
        if "scheduler" in self._wanted:
            made.append(Scheduler(self, self.faults))
        if "job-controller" in self._wanted:
            made.append(JobController(self, self._job_retry_s))
        if "attach-detach" in self._wanted:
            made.append(AttachDetach(self))
        if "attacher" in self._wanted:
            made.append(Attacher(self, self.faults))
        return made

    async def begin(self) -> None:
        """End what an earlier life left: whoever is told to stop as soon as it is ready must have done so."""
        for kubelet in self._kubelets:
            await asyncio.to_thread(kubelet.end_leftovers)

    async def teardown(self) -> None:
        """Close the log servers."""
        for server in self._log_servers:
            await server.close()

    async def _register(self, node: str, zone: str, kubelet: Kubelet) -> None:
        token = secrets.token_urlsafe(32)
        server = LogServer(kubelet, token, client_ca=self._kubelet_client_ca)
        await server.open()
        self._log_servers.append(server)
        encoded = base64.b64encode(token.encode()).decode()
        secret = {"metadata": {"name": f"sandbox-node-{node}", "namespace": NAMESPACE}, "data": {"token": encoded}}
        await self.api.ensure(SECRET, secret)
        labels = {"kubernetes.io/hostname": node, "kubernetes.io/os": "linux", ZONE: zone}
        marks = {_ATTACHED_BY_CONTROLLER: "true"}
        wanted = {"metadata": {"name": node, "labels": labels, "annotations": marks}, "spec": {}}
        held = await self.api.ensure(NODE, wanted)
        await self._say_ready(held, server.port)
        driver = {"name": DRIVER, "nodeID": node, "topologyKeys": [ZONE]}
        try:
            await self.api.create(CSI_NODE, {"metadata": {"name": node}, "spec": {"drivers": [driver]}})
        except AlreadyExists:
            return

    async def _say_ready(self, node: Manifest, port: int) -> None:
        """Write a node's status; a real node controller writes to the object at the same time."""
        while True:
            try:
                await self.api.patch_status(NODE, node, _node_status(name(node), port))
            except Conflict:
                node = await self.api.get(NODE, name(node))
            else:
                return


def _node_status(node: str, port: int) -> Manifest:
    resources = {"cpu": str(os.cpu_count() or 1), "memory": "8Gi", "pods": "110"}
    now = timestamp()
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "KubeletReady",
        "message": "the sandbox's node runs pods as local processes",
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }
    return {
        "addresses": [{"type": "InternalIP", "address": ADDRESS}, {"type": "Hostname", "address": node}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        "capacity": resources,
        "allocatable": resources,
        "conditions": [ready],
        "nodeInfo": {
            "kubeletVersion": "v1.36.0-sandbox",
            "osImage": "local processes",
            "operatingSystem": "linux",
            "containerRuntimeVersion": "sandbox://1",
            "architecture": "",
            "bootID": "",
            "kernelVersion": "",
            "kubeProxyVersion": "",
            "machineID": "",
            "systemUUID": "",
        },
    }


class Heartbeat:
    """Renew the nodes' Leases, so that a real node controller holds them for alive."""

    name = "heartbeat"

    def __init__(self, api: Api, nodes: list[str]) -> None:
        self._api = api
        self._nodes = nodes

    async def run(self) -> None:
        """Beat until cancelled."""
        try:
            await self._api.create(NAMESPACES, {"metadata": {"name": _LEASE_NAMESPACE}})
        except ApiError:
            log.debug("namespace %s is there, or may not be made", _LEASE_NAMESPACE)
        while True:
            for node in self._nodes:
                beat = {
                    "holderIdentity": node,
                    "leaseDurationSeconds": 40,
                    "renewTime": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
                }
                lease = {"metadata": {"name": node, "namespace": _LEASE_NAMESPACE}, "spec": beat}
                try:
                    await self._api.ensure(_LEASE, lease)
                except ApiError as err:
                    log.debug("heartbeat of %s: %s", node, err)
            await asyncio.sleep(_BEAT_S)
