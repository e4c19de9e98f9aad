"""Retention: drop what no rule keeps, and say why.

A long-lived part of its own, apart from the policies' schedule, so that a slow repository never holds back a backup.
Only live policies are judged; a point made without a policy goes only by its own expiry. What must never happen here:
a point dropped because something was not seen (an unsynced cache, an unread rule).
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime

from orchestrator.api.tidemark.backup_policy import BackupPolicy
from orchestrator.api.tidemark.recovery_point import PointPhase, RecoveryPoint
from orchestrator.controllers.base import Context
from orchestrator.controllers.recovery_point import prune_point
from orchestrator.decisions.retention import explain
from orchestrator.errors import LeaseStale, TidemarkError

log = logging.getLogger(__name__)

SETTLE_S = 1.0
"""Seconds after a change before the rules are applied: a run ends with several points at once."""


class Retention:
    """Applies every policy's retention, soon after a change and at each resync."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._changed = asyncio.Event()

    def wire(self) -> None:
        """Wake for points that are completed and for policies that change."""
        self._context.caches.of(RecoveryPoint).subscribe(self._point_changed)
        self._context.caches.of(BackupPolicy).subscribe(lambda _old, _new: self._changed.set())

    def _point_changed(self, old: RecoveryPoint | None, new: RecoveryPoint | None) -> None:
        before = old.status.phase if old is not None else None
        if new is not None and new.status.phase is PointPhase.COMPLETED and before is not PointPhase.COMPLETED:
            self._changed.set()

    async def run(self) -> None:
        """Apply the rules until cancelled."""
        await self._context.caches.of(RecoveryPoint).synced.wait()
        await self._context.caches.of(BackupPolicy).synced.wait()
        while True:
            self._changed.clear()
            await self.apply(self._context.clock.now())
            try:
                async with asyncio.timeout(self._context.settings.resync_s):
                    await self._changed.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(SETTLE_S)

    async def apply(self, now: datetime) -> None:
        """Drop what no rule keeps. One point's failure leaves the others alone."""
        for point, why in self.due(now):
            try:
                await prune_point(self._context, point)
            except LeaseStale:
                raise
            except TidemarkError as error:
                log.warning("retention could not drop a point", extra={"point": point.name, "reason": error.reason})
                self._context.recorder.event(point, "Warning", error.reason, error.sentence())
                continue
            self._context.recorder.event(point, "Normal", "Dropped", f"Dropped by retention: {why}.")
            log.info("dropped a point", extra={"namespace": point.namespace, "point": point.name, "why": why})

    def due(self, now: datetime) -> list[tuple[RecoveryPoint, str]]:
        """Return what is dropped now, each with its reasons."""
        points = self._context.caches.of(RecoveryPoint)
        due: list[tuple[RecoveryPoint, str]] = []
        for policy in self._context.caches.of(BackupPolicy).all():
            if policy.deleting:
                continue
            mine = [p for p in points.all() if p.namespace == policy.namespace]
            try:
                verdicts = explain(policy, mine, now)
            except ValueError:
                continue  # rules that can't be read drop nothing; the policy's condition RetentionValid says so
            for verdict in verdicts.values():
                for dropped in verdict.drop:
                    point = points.by_uid(dropped.point.id)
                    if point is not None:
                        due.append((point, "; ".join(dropped.reasons)))
        for point in points.all():
            expired = point.spec.expires is not None and point.spec.expires <= now
            if point.spec.policy is None and expired and point.status.phase is PointPhase.COMPLETED:
                due.append((point, "expired"))
        return [(point, why) for point, why in due if not point.deleting]
