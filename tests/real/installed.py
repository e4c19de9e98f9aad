"""The chart as the installation: helm installs it, the cluster's controllers make its Pods, a played node runs them.

The controller is a process with the rendered command, environment, ServiceAccount token, user and rights, and nothing
else: no kubeconfig, no folder of this machine.
"""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from orchestrator.demo.programs import free_port
from orchestrator.sandbox.node.process import kill_recorded
from tests.real.cluster import CHECKOUT, RealCluster

CHART = CHECKOUT / "charts" / "tidemark"
NAMESPACE = "tidemark-system"
RELEASE = "tidemark"
CONTROLLER = "app.kubernetes.io/component=controller"
READY_S = 300


class Installed:
    """One release of the chart on a real cluster."""

    def __init__(self, cluster: RealCluster, values: Mapping[str, Any], namespace: str = NAMESPACE) -> None:
        self.cluster, self.namespace, self.release = cluster, namespace, RELEASE
        # Pods are processes of one machine: each listens on its own address, at a port that nobody has.
        own = {"metrics": {"host": "$(POD_IP)", "port": free_port()}, "mover": {"cpu": "50m"}}
        self.values = _merged(own, values)
        self._values_file = cluster.folder / f"{namespace}-values.yaml"

    # What a person does with helm

    async def install(self, chart: Path = CHART, *, values: bool = True) -> None:
        """Make the namespace as docs/operations.md says, install, and wait until the controller is ready.

        Without `values`: a chart that has none, such as one of an earlier release.
        """
        if await self._kubectl("get", "namespace", self.namespace, "--ignore-not-found") == "":
            await self._kubectl("create", "namespace", self.namespace)
        level = "pod-security.kubernetes.io/enforce=baseline"
        await self._kubectl("label", "namespace", self.namespace, level, "--overwrite")
        await self._helm("install", self.release, str(chart), *(self._with_values() if values else ()))
        await self.ready()

    async def upgrade(self, values: Mapping[str, Any] | None = None, chart: Path = CHART) -> None:
        """Change values (those of before stay) or the chart, and wait until the new Pods are ready."""
        self.values = _merged(self.values, values or {})
        await self._helm("upgrade", self.release, str(chart), "--reset-then-reuse-values", *self._with_values())
        await self.ready()

    async def uninstall(self) -> None:
        """Uninstall and wait until no Pod of the controller is left. The namespace and all else stay."""
        await self._helm("uninstall", self.release, "--wait")
        await self._kubectl("wait", "--for=delete", "pod", "-l", CONTROLLER, "-n", self.namespace, "--timeout=300s")

    async def remove(self) -> None:
        """Take everything away that `install` made, so that the next module finds a clean cluster."""
        await self._helm("uninstall", self.release, "--wait", "--ignore-not-found")
        await self._kubectl("delete", "namespace", self.namespace, "--wait=false")
        await self._kubectl("wait", "--for=delete", f"namespace/{self.namespace}", "--timeout=300s")

    async def ready(self) -> None:
        """Wait until every replica of the controller is ready and no other is left."""
        if self.values.get("controller", {}).get("replicas") == 0:
            return
        wait = ["rollout", "status", "deployment/tidemark-controller", "-n", self.namespace]
        try:
            await self._kubectl(*wait, f"--timeout={READY_S}s")
        except AssertionError as err:
            raise AssertionError(f"{err}\n{await self.why()}") from err

    # What is there

    async def pods(self) -> list[dict[str, Any]]:
        """Return the controller's Pods that are not going."""
        found = await self._kubectl("get", "pods", "-l", CONTROLLER, "-n", self.namespace, "-o", "json")
        return [pod for pod in json.loads(found)["items"] if not pod["metadata"].get("deletionTimestamp")]

    async def leader(self) -> str:
        """Return the name of the Pod that holds the Lease, "" if none does."""
        held = await self._kubectl(
            "get", "lease", "tidemark-controller", "-n", self.namespace, "-o", "jsonpath={.spec.holderIdentity}"
        )
        return next((p["metadata"]["name"] for p in await self.pods() if p["metadata"]["name"] in held), "")

    async def logs(self, pod: str = "", *more: str) -> str:
        """Return the log of one Pod of the controller, or of all of them, through the API server."""
        names = [pod] if pod else [p["metadata"]["name"] for p in await self.pods()]
        parts = [await self._kubectl("logs", name, "-n", self.namespace, *more) for name in names]
        return "".join(parts)

    async def metrics_url(self, pod: str = "") -> str:
        """Return where a Pod of the controller (the first one, or `pod`) serves, such as http://127.3.4.5:4321."""
        found = next(p for p in await self.pods() if pod in ("", p["metadata"]["name"]))
        return f"http://{found['status']['podIP']}:{self.values['metrics']['port']}"

    async def get(self, path: str, pod: str = "") -> tuple[int, str]:
        """Return status and body of a page that the controller serves."""
        url = await self.metrics_url(pod) + path
        return await asyncio.to_thread(_get, url)

    async def kill(self, pod: str = "") -> int:
        """kill -9 the controller's process in one Pod, or in all of them; return how many there were."""
        found = [p for p in await self.pods() if pod in ("", p["metadata"]["name"])]
        homes = [self.cluster.data / "pods" / p["metadata"]["uid"] for p in found]
        return sum([len(await asyncio.to_thread(kill_recorded, home)) for home in homes])

    async def why(self) -> str:
        """Return what a person would look at if the controller does not get ready."""
        described = await self._kubectl("describe", "pods", "-l", CONTROLLER, "-n", self.namespace, ok=False)
        logged = await self._kubectl("logs", "-l", CONTROLLER, "-n", self.namespace, "--tail=50", ok=False)
        return f"{described[-4000:]}\n{logged[-4000:]}\n{self.cluster.logs('node')}"

    def _with_values(self) -> list[str]:
        self._values_file.write_text(yaml.safe_dump(self.values))
        return ["--namespace", self.namespace, "--values", str(self._values_file)]

    async def _kubectl(self, *args: str, ok: bool = True) -> str:
        return (await asyncio.to_thread(self.cluster.kubectl, *args, ok=ok)).stdout

    async def _helm(self, *args: str) -> str:
        where = () if "--namespace" in args else ("--namespace", self.namespace)
        return (await asyncio.to_thread(self.cluster.helm, *args, *where)).stdout


async def install(cluster: RealCluster, *, values: Mapping[str, Any] | None = None) -> Installed:
    """Install this checkout's chart with `values` over its own, and return it when the controller is ready."""
    made = Installed(cluster, values or {})
    await made.install()
    return made


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as helm lays one file over another: maps are merged, all else is replaced."""
    made = dict(under)
    for name, value in over.items():
        held = made.get(name)
        made[name] = _merged(held, value) if isinstance(held, Mapping) and isinstance(value, Mapping) else value
    return made


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as err:
        with err:
            return err.code, err.read().decode()
