"""What every step of one point needs: the point as last seen, its names, its repository, and one way to write."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from orchestrator.api.foreign.core import Namespace
from orchestrator.api.meta import Condition, with_condition
from orchestrator.api.tidemark.fields import (
    ANNOTATION_POINT,
    FINALIZER,
    LABEL_MANAGED_BY,
    LABEL_POINT_UID,
    LABEL_PVC_UID,
    MANAGED_BY,
)
from orchestrator.api.tidemark.recovery_point import RecoveryPoint, RecoveryPointStatus
from orchestrator.controllers.base import Context
from orchestrator.controllers.repositories import OpenedRepository, Repositories, RepositorySlow
from orchestrator.controllers.status import patch_status
from orchestrator.errors import MESSAGE_LIMIT, Terminal
from orchestrator.repository.keys import NamespaceIdentity
from orchestrator.repository.vault import Vault
from orchestrator.volumes.snapshot import original_name
from policies.naming import transient_name

REPOSITORY_S = 120.0
"""How long one step may talk to a repository."""

CHUNK_SIZE_APPLIED = "ChunkSizeApplied"
"""Condition: False on a point that was asked for in chunks of another size than its volume has."""

LASTING = frozenset({"Complete", "ClockSkew", CHUNK_SIZE_APPLIED})
"""Conditions that still say something when a point has ended."""

Stage = Literal["snapshot", "diff", "copy", "commit", "total"]
Kind = Literal["volume", "allocated", "changed", "read", "uploaded"]


@runtime_checkable
class PointMeter(Protocol):
    """Where points are counted (`observe.metrics.Metrics`)."""

    def point_stage(self, stage: Stage, seconds: float) -> None:
        """Record how long one stage of a recovery point took."""

    def point_bytes(self, kind: Kind, count: int) -> None:
        """Count bytes of a completed recovery point."""

    def fallback(self, driver: str, reason: str) -> None:
        """Count a recovery point that was not the delta that was wanted."""

    def mover_ended(self, task: str, result: str) -> None:
        """Count one mover pod that ended."""


class Uncounted:
    """Counts nothing, where no metrics are kept."""

    def point_stage(self, stage: Stage, seconds: float) -> None:
        """Ignore."""

    def point_bytes(self, kind: Kind, count: int) -> None:
        """Ignore."""

    def fallback(self, driver: str, reason: str) -> None:
        """Ignore."""

    def mover_ended(self, task: str, result: str) -> None:
        """Ignore."""


class NoRepository(Terminal):
    """A step that needs a repository was reached by a point that has none."""

    reason = "NoRepository"
    remedy = "The point is only a snapshot; name a repository in its policy."


def lineage_of(driver: str, volume_handle: str) -> str:
    """Return the name of one volume's points in a repository: 32 hex digits of SHA-256 over driver and handle."""
    digest = hashlib.sha256()
    for part in (driver.encode(), volume_handle.encode()):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:32]


class Work:
    """One point in hand during one reconcile."""

    def __init__(self, context: Context, point: RecoveryPoint) -> None:
        """Take the point as it was gathered; writes move it on."""
        self.context = context
        self.point = point
        self.name = transient_name(point.uid)
        """Of the Job, clone and re-homed objects in the controller's namespace."""
        self.snapshot_name = original_name(point.uid)
        """Of the snapshot in the tenant's namespace."""
        self._vault: tuple[OpenedRepository, Vault] | None = None
        meter: Any = context.meter
        self.meter: PointMeter = meter if isinstance(meter, PointMeter) else Uncounted()

    @property
    def status(self) -> RecoveryPointStatus:
        """Return the status as last written or read."""
        return self.point.status

    @property
    def owner(self) -> dict[str, str]:
        """Return the labels of everything made for the point."""
        return {LABEL_POINT_UID: self.point.uid, LABEL_MANAGED_BY: MANAGED_BY}

    @property
    def annotations(self) -> dict[str, str]:
        """Return the annotations of everything made for the point."""
        return {ANNOTATION_POINT: f"{self.point.namespace}/{self.point.name}"}

    async def write(self, **changes: Any) -> None:
        """Write these fields of the status, if they differ."""
        changes.setdefault("observed_generation", self.point.metadata.generation)
        status = msgspec.structs.replace(self.status, **changes)
        self.point = await patch_status(self.context, self.point, status)

    def conditions(
        self, type_: str, status: Literal["True", "False", "Unknown"], reason: str, message: str = ""
    ) -> tuple[Condition, ...]:
        """Return the status's conditions with one of them changed."""
        new = Condition(
            type=type_,
            status=status,
            reason=reason[:64],
            message=message[:MESSAGE_LIMIT],
            observed_generation=self.point.metadata.generation,
        )
        return with_condition(self.status.conditions, new, self.context.clock.now())

    def final_conditions(
        self, status: Literal["True", "False"], reason: str, message: str = ""
    ) -> tuple[Condition, ...]:
        """Return the conditions of an ended point: how it ended, and what stays true of it."""
        return tuple(c for c in self.conditions("Complete", status, reason, message) if c.type in LASTING)

    def event(self, type_: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Tell what happened to the point."""
        self.context.recorder.event(self.point, type_, reason, message)

    async def hold(self) -> None:
        """Put the finalizer on, and the label by which a claim's points are found: a person may have made this one."""
        finalizers = [*self.point.metadata.finalizers, FINALIZER]
        await self._finalizers(finalizers, labels={LABEL_PVC_UID: self.point.spec.pvc_uid})

    async def release(self) -> None:
        """Take the finalizer off."""
        kept = [f for f in self.point.metadata.finalizers if f != FINALIZER]
        if len(kept) != len(self.point.metadata.finalizers):
            await self._finalizers(kept)

    async def _finalizers(self, finalizers: list[str], **metadata: Any) -> None:
        version = self.point.metadata.resource_version
        body = {"metadata": {"finalizers": finalizers or None, "resourceVersion": version, **metadata}}
        client = self.context.client
        self.point = await client.merge_patch(RecoveryPoint, self.point.name, self.point.namespace, body)
        self.context.caches.learn(self.point)

    @property
    def repositories(self) -> Repositories:
        """Return the provider of open repositories."""
        repositories: Repositories = self.context.repositories
        return repositories

    async def identity(self) -> NamespaceIdentity:
        """Return whose point it is, as the repository knows namespaces: by cluster and uid."""
        found = self.context.caches.of(Namespace).get(self.point.namespace)
        if found is None:
            found = await self.context.client.get(Namespace, self.point.namespace)
        return NamespaceIdentity(self.context.cluster_id, found.uid, found.name)

    @asynccontextmanager
    async def vault(self, *, create: bool = False) -> AsyncIterator[tuple[OpenedRepository, Vault]]:
        """Give the point's repository and its namespace's vault, for REPOSITORY_S at most (then RepositorySlow)."""
        name = self.point.spec.repository
        if name is None:
            raise NoRepository("The recovery point names no repository")
        try:
            async with asyncio.timeout(REPOSITORY_S):
                if self._vault is None:
                    self._vault = await self.repositories.vault(name, await self.identity(), create=create)
                yield self._vault
        except TimeoutError as error:
            raise RepositorySlow(name) from error
