"""Grant mover slots: one task, one view, so that no two passes can give the same slot away.

What holds a slot and what waits for one is read from the caches, which know every reply to our own writes at once;
`policies.admission` decides. A slot is written into the status of whoever got it: nothing is remembered here.
What must never happen here: a grant from a second task, or a clone before a grant.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import datetime
from typing import TypeVar

import msgspec

from orchestrator.api.meta import K8sObject
from orchestrator.api.tidemark.backup_policy import BackupPolicy
from orchestrator.api.tidemark.fields import FINALIZER
from orchestrator.api.tidemark.recovery_point import FINAL_PHASES, PointPhase, RecoveryPoint
from orchestrator.api.tidemark.restore import Restore, RestorePhase
from orchestrator.controllers.base import Context
from orchestrator.controllers.status import patch_status
from orchestrator.errors import LeaseStale, TidemarkError
from policies import admission
from policies.duration import BadDuration, parse_duration

log = logging.getLogger(__name__)

T = TypeVar("T", bound=K8sObject)

RESYNC_S = 5.0
"""Look again this often, whatever the caches say."""
RESTORE_FINAL = frozenset({RestorePhase.COMPLETED, RestorePhase.FAILED, RestorePhase.CANCELLED})


class Slots:
    """Grants mover slots to recovery points and restores."""

    def __init__(self, context: Context) -> None:
        """Take what `app` made, and follow the caches from now on."""
        self.context = context
        self._changed = asyncio.Event()
        # What asks for a slot or holds one, as the caches know it: a hundred thousand finished points cost nothing.
        self._points: dict[str, RecoveryPoint] = {}
        self._restores: dict[str, Restore] = {}
        context.caches.of(RecoveryPoint).subscribe(self._point_changed)
        context.caches.of(Restore).subscribe(self._restore_changed)

    async def run(self) -> None:
        """Grant whenever something changes, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RESYNC_S):
                    await self._changed.wait()
            self._changed.clear()
            await self.grant()

    def _point_changed(self, old: RecoveryPoint | None, new: RecoveryPoint | None) -> None:
        concerned = new is not None and (new.status.phase is PointPhase.WAITING or holds_slot(new))
        self._keep(self._points, old, new, concerned)

    def _restore_changed(self, old: Restore | None, new: Restore | None) -> None:
        concerned = new is not None and (restore_waits(new) or restore_holds_slot(new))
        self._keep(self._restores, old, new, concerned)

    def _keep(self, known: dict[str, T], old: T | None, new: T | None, concerned: bool) -> None:
        gone = known.pop(old.uid, None) if old is not None else None
        if new is not None and concerned:
            known[new.uid] = new
        if concerned or gone is not None:
            self._changed.set()

    async def grant(self) -> list[str]:
        """Grant what fits now; return the uids granted."""
        settings = self.context.settings
        limits = admission.Limits(
            total=settings.max_movers,
            per_node=settings.max_movers_per_node,
            per_driver=settings.max_movers_per_driver,
            per_repository=settings.max_movers_per_repository,
        )
        points, restores = list(self._points.values()), list(self._restores.values())
        now = self.context.clock.now()
        waiting = [self._asking(p, now) for p in points if p.status.phase is PointPhase.WAITING and _wanted(p)]
        waiting += [_asking_restore(r) for r in restores if restore_waits(r)]
        running = [_running(p) for p in points if holds_slot(p)]
        running += [_running_restore(r) for r in restores if restore_holds_slot(r)]
        return [item.id for item in admission.grant(waiting, running, limits) if await self._give(item.id, now)]

    async def _give(self, uid: str, now: datetime) -> bool:
        """Write a grant; one that fails is decided anew at the next look."""
        try:
            point = self._points.get(uid)
            if point is not None:
                status = msgspec.structs.replace(point.status, phase=PointPhase.COPYING, granted_time=now)
                await patch_status(self.context, point, status)
                return True
            restore = self._restores.get(uid)
            if restore is not None:
                await patch_status(self.context, restore, msgspec.structs.replace(restore.status, granted_time=now))
                return True
        except LeaseStale:
            raise
        except TidemarkError as error:
            log.info("a slot for %s could not be written: %s", uid, error)
        return False

    def _asking(self, point: RecoveryPoint, now: datetime) -> admission.Waiting:
        return admission.Waiting(
            id=point.uid,
            namespace=point.namespace,
            since=point.status.planned_time or now,
            overdue_s=self._overdue_s(point, now),
            driver=point.status.driver,
            repository=point.spec.repository or "",
        )

    def _overdue_s(self, point: RecoveryPoint, now: datetime) -> float:
        """Return by how much the volume's objective is broken, 0 without one."""
        named = point.spec.policy
        policy = self.context.caches.of(BackupPolicy).get(named.name, point.namespace) if named is not None else None
        if policy is None or policy.spec.objective is None:
            return 0.0
        try:
            target_s = parse_duration(policy.spec.objective.rpo).total_seconds()
        except BadDuration:
            return 0.0
        siblings = self.context.caches.of(RecoveryPoint).by_index("pvc", point.spec.pvc_uid)
        times = [
            p.status.snapshot_time
            for p in siblings
            if p.status.phase is PointPhase.COMPLETED and p.status.snapshot_time is not None
        ]
        if not times:
            return target_s  # unprotected: as urgent as one that missed its objective by a whole one
        return max(0.0, (now - max(times)).total_seconds() - target_s)


def _wanted(point: RecoveryPoint) -> bool:
    return not (point.deleting or point.spec.cancel or point.spec.prune)


def holds_slot(point: RecoveryPoint) -> bool:
    """Return whether a mover of the point may exist: until its clone's volume is gone, which the finalizer tells."""
    if point.status.phase is PointPhase.COPYING:
        return True
    final = point.status.phase in FINAL_PHASES
    return final and point.status.granted_time is not None and FINALIZER in point.metadata.finalizers


def restore_waits(restore: Restore) -> bool:
    """Return whether a restore asks for a slot: its point is known and it has none yet."""
    status = restore.status
    asks = status.phase is RestorePhase.PENDING and bool(status.manifest_key) and status.granted_time is None
    return asks and not restore.deleting and not restore.spec.cancel


def restore_holds_slot(restore: Restore) -> bool:
    """Return whether a restore's mover may exist; once the volume is filled and being handed over none does."""
    status = restore.status
    if status.granted_time is None or status.phase is RestorePhase.HANDING_OVER:
        return False
    return status.phase not in RESTORE_FINAL or FINALIZER in restore.metadata.finalizers


def _running(point: RecoveryPoint) -> admission.Running:
    status = point.status
    return admission.Running(
        id=point.uid,
        namespace=point.namespace,
        node=status.node,
        driver=status.driver,
        repository=point.spec.repository or "",
    )


def _asking_restore(restore: Restore) -> admission.Waiting:
    status = restore.status
    # A person waits for a restore: it counts as overdue for as long as it waits.
    since = status.start_time or restore.metadata.creation_timestamp
    assert since is not None
    return admission.Waiting(
        id=restore.uid,
        namespace=restore.namespace,
        since=since,
        overdue_s=float("inf"),
        repository=status.repository,
    )


def _running_restore(restore: Restore) -> admission.Running:
    return admission.Running(id=restore.uid, namespace=restore.namespace, repository=restore.status.repository)
