"""Wake a policy when its next slot fires. APScheduler is the alarm clock; it decides nothing.

A wake-up that comes late, twice or never does no harm: `decisions.backup_policy` finds what is due from the stored
`lastSlot`, and the resync of at most a minute asks the same question.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime

from apscheduler.executors.debug import DebugExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger

from orchestrator.api.tidemark.backup_policy import BackupPolicy
from orchestrator.clock import Clock
from orchestrator.controllers.base import Key
from orchestrator.decisions.backup_policy import plan_of
from orchestrator.kube.cache import Cache
from policies.schedule import Plan, next_firing

log = logging.getLogger(__name__)


class SlotTrigger(BaseTrigger):  # type: ignore[misc]  # apscheduler has no type information
    """Fires when the next slot does, jitter included. Slots come from `policies.schedule`, never from APScheduler."""

    def __init__(self, plan: Plan, clock: Clock) -> None:
        self._plan = plan
        self._clock = clock

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        """Return the next instant to wake at."""
        return next_firing(self._plan, max(previous_fire_time or now, self._clock.now()))


class Wake:
    """One timer per policy. Owned by the app's task group."""

    def __init__(self, policies: Cache[BackupPolicy], clock: Clock, enqueue: Callable[[Key], None]) -> None:
        self._clock = clock
        self._enqueue = enqueue
        # Its own executor runs plain functions in a thread, and a queue is of its loop: from a thread the key would
        # lie there until something else wakes the loop.
        self._scheduler = AsyncIOScheduler(timezone="UTC", executors={"default": DebugExecutor()})
        self._plans: dict[str, tuple[int, bool]] = {}
        policies.subscribe(self._changed)

    async def run(self) -> None:
        """Keep the timers until cancelled."""
        self._scheduler.start()
        try:
            await asyncio.Event().wait()
        finally:
            self._scheduler.shutdown(wait=False)

    def _changed(self, old: BackupPolicy | None, new: BackupPolicy | None) -> None:
        if new is None or new.deleting:
            gone = new or old
            if gone is not None and self._plans.pop(gone.uid, None) is not None:
                self._remove(gone.uid)
            return
        seen = (new.metadata.generation, new.spec.suspend)
        if self._plans.get(new.uid) == seen:
            return
        self._plans[new.uid] = seen
        self._remove(new.uid)
        try:
            plan = plan_of(new, self._clock.now())
        except ValueError:
            return  # the policy's own condition says so
        if plan is None or new.spec.suspend:
            return
        self._scheduler.add_job(
            self._enqueue,
            trigger=SlotTrigger(plan, self._clock),
            args=[(new.namespace, new.name)],
            id=new.uid,
            replace_existing=True,
            misfire_grace_time=None,
            coalesce=True,
            max_instances=1,
        )

    def _remove(self, uid: str) -> None:
        if self._scheduler.get_job(uid) is not None:
            self._scheduler.remove_job(uid)
