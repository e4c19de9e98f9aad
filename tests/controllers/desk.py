"""A controller's desk: everything that it reads and writes by, with a scripted API server at the wire.

The real client, caches, recorder, metrics and repositories; a test reconciles by hand, one pass at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

from orchestrator.api.foreign.core import Namespace, PersistentVolumeClaim
from orchestrator.api.meta import K8sObject
from orchestrator.api.tidemark.backup import Backup
from orchestrator.api.tidemark.backup_policy import BackupPolicy
from orchestrator.api.tidemark.backup_repository import BackupRepository
from orchestrator.app.forgetting import forget_the_gone
from orchestrator.app.kinds import build_caches
from orchestrator.app.sources import sources
from orchestrator.config import Settings
from orchestrator.controllers.base import Context
from orchestrator.controllers.repositories import Repositories
from orchestrator.fence import OpenFence
from orchestrator.kube.client import Client
from orchestrator.kube.events import Recorder
from orchestrator.observe.metrics import Metrics
from tests.kube.fakes import FakeApi, serving, write_kubeconfig
from tests.waiting import SHORT

SYSTEM = "tidemark-system"
NAMESPACE = "shop"
CLUSTER = "cluster-1"
NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)

T = TypeVar("T", bound=K8sObject)


class SetClock:
    """A clock that goes when it is told."""

    def __init__(self) -> None:
        self.instant = NOON

    def now(self) -> datetime:
        return self.instant

    def monotonic(self) -> float:
        return self.instant.timestamp()

    def pass_(self, **span: float) -> None:
        self.instant += timedelta(**span)


@dataclass
class Desk:
    """What a test reads and sets."""

    api: FakeApi
    client: Client
    context: Context
    clock: SetClock
    directory: Path

    async def put(self, kind: type[T], name: str, namespace: str = NAMESPACE, **body: Any) -> T:
        """Store an object as somebody else would, and wait until the cache knows it."""
        meta = {"name": name, "namespace": namespace if kind.RESOURCE.namespaced else ""}
        meta |= {"generation": 1, "creationTimestamp": self.clock.now().isoformat(), **body.pop("metadata", {})}
        self.api.put({"metadata": meta, **body}, kind.RESOURCE.plural)
        return await self.known(kind, name, meta["namespace"])

    async def change(self, kind: type[T], name: str, namespace: str = NAMESPACE, **body: Any) -> T:
        """Replace parts of a stored object."""
        namespace = namespace if kind.RESOURCE.namespaced else ""
        stored = self.api.objects[kind.RESOURCE.plural][(namespace, name)]
        self.api.put({**stored, **body}, kind.RESOURCE.plural)
        return await self.known(kind, name, namespace)

    async def known(self, kind: type[T], name: str, namespace: str = NAMESPACE) -> T:
        """Return the object as stored, once the cache has it like that."""
        namespace = namespace if kind.RESOURCE.namespaced else ""
        found = await self.client.get(kind, name, namespace)
        with contextlib.suppress(LookupError):
            self.context.caches.learn(found)
            cached = self.context.caches.of(kind).get(name, namespace)
            assert cached is not None
            assert cached.metadata.resource_version == found.metadata.resource_version
        return found

    async def remove(self, kind: type[K8sObject], name: str, namespace: str = NAMESPACE) -> None:
        """Delete an object and wait until the cache knows."""
        namespace = namespace if kind.RESOURCE.namespaced else ""
        self.api.remove(name, namespace, kind.RESOURCE.plural)
        async with asyncio.timeout(SHORT):
            while self.context.caches.of(kind).get(name, namespace) is not None:
                await asyncio.sleep(0.01)

    def names(self, kind: type[K8sObject]) -> list[str]:
        """Return the names of all stored objects of a kind."""
        return sorted(name for _, name in self.api.objects.get(kind.RESOURCE.plural, {}))

    async def events(self) -> list[tuple[str, str]]:
        """Return reason and message of every Event written so far."""
        await self.context.recorder.drain()
        return [(e["reason"], e["message"]) for e in self.api.objects.get("events", {}).values()]

    def metric(self, name: str, **labels: str) -> float | None:
        """Return what a scrape would read now."""
        return self.context.meter.registry.get_sample_value(name, labels)

    async def secret(self, name: str, **data: str) -> None:
        """Store a Secret of the controller's namespace."""
        coded = {key.replace("__", "."): b64encode(value.encode()).decode() for key, value in data.items()}
        self.api.put({"metadata": {"name": name, "namespace": SYSTEM}, "data": coded}, "secrets")

    async def repository(self, name: str = "main", key: str | None = None, **spec: Any) -> BackupRepository:
        """Make a repository in a directory of its own, and its key."""
        folder = self.directory / name
        await asyncio.to_thread(folder.mkdir, exist_ok=True)
        await self.secret(f"{name}-key", master__key=key or secrets.token_hex(32))
        body = {"url": f"file://{folder}", "encryptionSecret": f"{name}-key", "allowedNamespaces": ["*"], **spec}
        return await self.put(BackupRepository, name, spec=body, status={})

    async def claim(self, name: str, **metadata: Any) -> PersistentVolumeClaim:
        """Make a bound claim."""
        spec = {"volumeName": f"pv-{name}"}
        return await self.put(PersistentVolumeClaim, name, metadata=metadata, spec=spec, status={"phase": "Bound"})

    async def policy(self, name: str = "nightly", status: Mapping[str, Any] = {}, **spec: Any) -> BackupPolicy:
        """Make a policy."""
        return await self.put(BackupPolicy, name, spec=spec, status=dict(status))

    async def backup(self, name: str, status: Mapping[str, Any] = {}, labels: Any = None, **spec: Any) -> Backup:
        """Make a Backup."""
        return await self.put(Backup, name, metadata={"labels": labels or {}}, spec=spec, status=dict(status))


@contextlib.asynccontextmanager
async def desk(directory: Path, **settings: Any) -> AsyncIterator[Desk]:
    """Make a desk with the caches of all kinds filled."""
    clock = SetClock()
    chosen = Settings(namespace=SYSTEM, **settings)
    async with (
        serving(FakeApi()) as api,
        await Client.connect(kubeconfig=str(write_kubeconfig(directory, api.url))) as client,
    ):
        caches = build_caches(client, chosen)
        client.on_reply.append(caches.learn)
        meter = Metrics(sources(caches, clock, lambda: ()))
        context = Context(
            client=client,
            caches=caches,
            recorder=Recorder(client, clock),
            clock=clock,
            settings=chosen,
            fence=OpenFence(),
            cluster_id=CLUSTER,
            repositories=Repositories(client, caches, chosen, clock),
            tokens=cast("Any", None),
            meter=meter,
        )
        forget_the_gone(caches, meter)
        tasks = [asyncio.create_task(cache.run()) for cache in caches]
        await caches.wait_synced()
        made = Desk(api, client, context, clock, directory)
        await made.put(Namespace, NAMESPACE)
        try:
            yield made
        finally:
            await context.repositories.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
