"""People on a real cluster with Tidemark installed, and what the API server wrote down of everybody's doings.

A person has a credential of its own and the roles that a test binds; nothing is impersonated. What must never happen
here: a test that acts as the administrator where it means to act as a tenant.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.api.foreign.core import Namespace
from orchestrator.api.tidemark import RecoveryPoint
from orchestrator.demo import install
from tests.real import audit
from tests.real.cluster import RealCluster
from tests.real.world import HOME, RealWorld, real_world
from tests.system.world import SETTINGS
from tests.waiting import LONG

ACCOUNT = SETTINGS.service_account
MOVER = SETTINGS.mover_service_account
CONTROLLER = audit.account(HOME, ACCOUNT)
POD = "app.kubernetes.io/component=controller"
"""Seconds that a wait may take on a busy machine before a test gives up."""


class Site:
    """The installation, its people, and what was asked of the API server since it is there."""

    def __init__(self, world: RealWorld, since: datetime) -> None:
        self.world, self.cluster, self.client = world, world.cluster, world.client
        self.since = since
        self._teams: list[str] = []

    async def kubectl(
        self, *arguments: str, as_: Path | None = None, stdin: str = "", ok: bool = True
    ) -> tuple[int, str]:
        """Run kubectl; return its exit code and what it said."""
        done = await asyncio.to_thread(self.cluster.kubectl, *arguments, as_=as_, stdin=stdin, ok=ok)
        return done.returncode, done.stdout + done.stderr

    async def put(self, body: dict[str, Any], as_: Path | None = None) -> None:
        """Create an object as somebody who may."""
        await self.kubectl("create", "-f", "-", stdin=json.dumps(body), as_=as_)

    async def refused(self, *arguments: str, as_: Path, body: dict[str, Any] | None = None) -> str:
        """Run kubectl as somebody who must be told that this is forbidden; return what was said."""
        code, said = await self.kubectl(*arguments, as_=as_, stdin=json.dumps(body) if body else "", ok=False)
        assert code != 0, f"{arguments} was allowed: {said}"
        assert "forbidden" in said.lower(), said
        return said

    async def team(self, name: str, *roles: str) -> Path:
        """Make a namespace and a person with these roles (`edit`) there and nothing elsewhere; return the person."""
        await install.namespace(self.client, name)
        self._teams.append(name)
        person = f"{name}-dev"
        for role in roles or ("edit",):
            names = ["--clusterrole", role, "--user", person, "--namespace", name]
            await self.kubectl("create", "rolebinding", f"{person}-{role}", *names)
        return await asyncio.to_thread(self.cluster.kubeconfig_as, person)

    async def drop(self, *names: str) -> None:
        """Delete namespaces (those of all teams, without), and wait until they are gone."""
        for name in names or tuple(self._teams):
            found = await self.client.find(Namespace, name)
            if found is not None:
                await self.client.delete(Namespace, name, uid=found.uid)
        for name in names or tuple(self._teams):
            await self.world.until(Namespace, name, "", lambda n: n is None)

    async def pause(self) -> None:
        """Stop the controller, and wait until it is gone."""
        await self._scale(0)
        await self.kubectl("wait", "--for=delete", "pod", "-l", POD, "-n", HOME, f"--timeout={LONG:.0f}s")

    async def resume(self) -> None:
        """Start it again, and wait until it leads."""
        await self._scale(1)
        await self.world.installed.ready()

    async def _scale(self, replicas: int) -> None:
        await self.kubectl("scale", "deployment", "tidemark-controller", "-n", HOME, f"--replicas={replicas}")

    async def requests(self, *users: str, since: datetime | None = None) -> list[audit.Request]:
        """Return what these users (the controller, without) asked since then (since the installation, without)."""

        def read() -> list[audit.Request]:
            with self.cluster.audit_log.open("rb") as lines:
                made = audit.requests(lines, *(users or (CONTROLLER,)))
            return [r for r in made if r.at >= (since or self.since)]

        return await asyncio.to_thread(read)

    async def everybody(self) -> list[audit.Request]:
        """Return what anybody asked since the installation, as far as the server's policy writes it down."""

        def read() -> list[audit.Request]:
            with self.cluster.audit_log.open("rb") as lines:
                return [r for r in audit.requests(lines) if r.at >= self.since]

        return await asyncio.to_thread(read)

    async def grants(self) -> set[audit.Grant]:
        """Return what the roles in the cluster allow the controller."""
        kinds = "clusterroles,clusterrolebindings,roles,rolebindings"
        _, text = await self.kubectl("get", kinds, "-A", "-o", "json")
        return audit.grants(json.loads(text)["items"], HOME, ACCOUNT)

    async def point(self, namespace: str, backup: str) -> RecoveryPoint:
        """Return the only point of a Backup."""
        mine = [p for p in await self.world.points(namespace) if p.spec.backup == backup]
        assert len(mine) == 1, [p.name for p in mine]
        return mine[0]


@contextlib.asynccontextmanager
async def site(cluster: RealCluster, folder: Path) -> AsyncIterator[Site]:
    """Install Tidemark from the chart; people and all go at the end."""
    since = datetime.now(UTC)
    async with real_world(cluster, folder) as world:
        found = Site(world, since)
        try:
            yield found
        finally:
            await found.drop()


def claim(name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    """Return a small claim's manifest."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "volumeMode": "Block",
            "storageClassName": "sandbox",
            "resources": {"requests": {"storage": "8Mi"}},
            **spec,
        },
    }


def ours(kind: str, name: str, namespace: str, spec: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    """Return the manifest of an object of our group."""
    where = {"name": name, "namespace": namespace, **metadata}
    return {"apiVersion": "tidemark.dev/v1alpha1", "kind": kind, "metadata": where, "spec": spec}
