"""A day of schedule in a second: the timer alone makes each slot, once, whatever the zone and the clock do.

The real controller, timer, caches and client against a scripted API server, on a loop whose time leaps from one thing
to be done to the next. The resync is off and later wake-ups are dropped, so that nothing but the timer can do it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, cast

import pytest

from orchestrator.api.foreign.core import PersistentVolumeClaim
from orchestrator.api.tidemark.backup import Backup, BackupPhase
from orchestrator.api.tidemark.backup_policy import BackupPolicy
from orchestrator.api.tidemark.backup_repository import BackupRepository
from orchestrator.api.tidemark.recovery_point import RecoveryPoint
from orchestrator.config import Settings
from orchestrator.controllers.backup_policy import BackupPolicyController
from orchestrator.controllers.base import Context, Key
from orchestrator.controllers.wake import Wake
from orchestrator.fence import OpenFence
from orchestrator.kube.cache import Cache, Caches, Timing
from orchestrator.kube.client import Client
from orchestrator.kube.events import Recorder
from orchestrator.kube.queue import WorkQueue
from tests.kube.fakes import FakeApi, serving, write_kubeconfig

# Ten idle rounds of the loop before its time leaps (42 by default): loopback answers within one.
pytestmark = [pytest.mark.quick, pytest.mark.looptime(noop_cycles=10)]

NEVER_S = 10.0**8
SOON_S = 1.0


class LoopClock:
    """The loop's time as a clock; `step` is what somebody set the wall clock by."""

    def __init__(self, start: datetime) -> None:
        self._start = start
        self._began = asyncio.get_running_loop().time()
        self.step = timedelta(0)

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self.monotonic() - self._began) + self.step

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


class TimerOnly(WorkQueue[Key]):
    """Forgets to be reconciled later, but for a conflict's quick retry."""

    def add_after(self, key: Key, delay_s: float) -> None:
        if delay_s <= SOON_S:
            super().add_after(key, delay_s)


@dataclass
class World:
    """An API server, a clock, and what was made when."""

    api: FakeApi
    clock: LoopClock
    kubeconfig: str
    made: dict[str, tuple[datetime, datetime]] = field(default_factory=dict)
    """Name of a Backup -> its nominal slot, and when it was first seen."""

    def policy(self, schedule: dict[str, str], *, uid: str = "policy-1", name: str = "nightly") -> None:
        meta = {
            "name": name,
            "namespace": "shop",
            "uid": uid,
            "generation": 1,
            "creationTimestamp": self.clock.now().isoformat(),
        }
        self.api.put({"metadata": meta, "spec": {"schedule": schedule}, "status": {}}, "backuppolicies")

    def status(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self.api.objects["backuppolicies"][("shop", "nightly")]["status"])

    @property
    def slots(self) -> list[datetime]:
        return [slot for slot, _ in self.made.values()]

    def posted(self) -> list[str]:
        """Return the names of Backups that somebody tried to make."""
        return [
            b["metadata"]["name"] for verb, url, _, b in self.api.requests if (verb, url[-8:]) == ("POST", "/backups")
        ]

    @contextlib.asynccontextmanager
    async def controller(self) -> AsyncIterator[Context]:
        """Run a policy controller and its timer; at the end it is cut off."""
        async with await Client.connect(kubeconfig=self.kubeconfig) as client:
            caches = Caches()
            calm = Timing(watch_s=NEVER_S, idle_s=NEVER_S)
            for kind in (BackupPolicy, Backup, RecoveryPoint, PersistentVolumeClaim, BackupRepository):
                caches.add(Cache(client, kind, timing=calm))
            client.on_reply.append(caches.learn)
            context = Context(
                client=client,
                caches=caches,
                recorder=Recorder(client, self.clock),
                clock=self.clock,
                settings=Settings(workers=2, resync_s=NEVER_S),
                fence=OpenFence(),
                cluster_id="cluster",
                repositories=cast("Any", None),
                tokens=cast("Any", None),
            )
            policies = BackupPolicyController(context)
            policies.queue = TimerOnly()
            tasks = [asyncio.create_task(cache.run()) for cache in caches]
            await caches.wait_synced()
            caches.of(Backup).subscribe(self._run)
            policies.wire()
            wake = Wake(caches.of(BackupPolicy), self.clock, policies.queue.add)
            tasks += [asyncio.create_task(policies.run()), asyncio.create_task(wake.run())]
            try:
                yield context
                assert not any(task.done() for task in tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _run(self, old: Backup | None, new: Backup | None) -> None:
        """Note a new Backup, and let the run be over at once, as if another controller had seen to it."""
        if new is None or new.status.phase is not BackupPhase.PENDING:
            return
        assert new.spec.slot is not None
        if new.name not in self.made:
            self.made[new.name] = (new.spec.slot, self.clock.now())
            asyncio.get_running_loop().call_soon(self._complete, new.name)

    def _complete(self, name: str) -> None:
        stored = self.api.objects["backups"][("shop", name)]
        self.api.put({**stored, "status": {"phase": "Completed"}}, "backups")


@contextlib.asynccontextmanager
async def world(start: datetime, directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Make a world whose clock, and APScheduler's, are the loop's time: the one name that is patched."""
    clock = LoopClock(start)

    class LoopDatetime(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return clock.now().astimezone(tz)

    monkeypatch.setattr("apscheduler.schedulers.base.datetime", LoopDatetime)
    async with serving(FakeApi()) as api:
        yield World(api, clock, str(write_kubeconfig(directory, api.url)))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def hours(first: str, count: int, step: timedelta = timedelta(hours=1)) -> list[datetime]:
    return [utc(first) + number * step for number in range(count)]


OSLO = "Europe/Oslo"
CALENDAR = [
    # The night on which 02:00 to 03:00 comes twice (25 h): a wall-clock time fires once, the first time.
    ("2026-10-24T22:00", 25, {"cron": "30 1,2,3 * * *", "timeZone": OSLO},
     [utc("2026-10-24T23:30"), utc("2026-10-25T00:30"), utc("2026-10-25T02:30")]),
    # Every real hour of it.
    ("2026-10-24T22:00", 25, {"cron": "10 * * * *", "timeZone": OSLO}, hours("2026-10-24T22:10", 25)),
    # The night without 02:00 to 03:00 (23 h): what falls there fires at the first minute after.
    ("2027-03-27T23:00", 23, {"cron": "30 1,2,3 * * *", "timeZone": OSLO},
     [utc("2027-03-28T00:30"), utc("2027-03-28T01:00"), utc("2027-03-28T01:30")]),
    ("2026-11-22T00:05", 24, {"every": "30m"}, hours("2026-11-22T00:30", 48, timedelta(minutes=30))),
    ("2026-11-22T00:05", 24, {"every": "2h", "jitter": "4m"}, None),
]  # fmt: skip


@pytest.mark.parametrize(("start", "span_h", "schedule", "expected"), CALENDAR)
async def test_the_timer_alone_makes_every_slot_of_a_day(
    start: str,
    span_h: int,
    schedule: dict[str, str],
    expected: list[datetime] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(utc(start), tmp_path, monkeypatch) as made:
        made.policy(schedule)
        async with made.controller():
            await asyncio.sleep(span_h * 3600)
    late = {when - slot for slot, when in made.made.values()}
    if expected is None:
        # Jitter moves the firing by one offset, always the same, and never the slot.
        assert made.slots == hours("2026-11-22T02:00", 12, timedelta(hours=2))
        assert max(late) - min(late) < timedelta(seconds=1)
        assert timedelta(seconds=1) <= min(late) < timedelta(minutes=4)
    else:
        assert made.slots == expected
        assert max(late) < timedelta(seconds=1)
    assert len(made.made) == len(made.slots) == len(set(made.posted()))
    assert made.status().get("missedSlots", 0) == 0


async def test_slots_five_seconds_apart_have_names_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(utc("2026-11-22T00:00:01"), tmp_path, monkeypatch) as made:
        made.policy({"every": "5s"})
        async with made.controller():
            await asyncio.sleep(60)
    assert made.slots == hours("2026-11-22T00:00:05", 12, timedelta(seconds=5))
    assert len(made.made) == 12


async def test_two_controllers_at_once_make_one_backup_for_each_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(utc("2026-11-22T00:01"), tmp_path, monkeypatch) as made:
        made.policy({"every": "5m"})
        async with made.controller() as first, made.controller() as second:
            await asyncio.sleep(3600)
            for context in (first, second):
                errors = context.meter.registry.get_sample_value(
                    "tidemark_reconcile_errors_total", {"controller": "backup_policy", "reason": "NameTaken"}
                )
                assert errors is None
    assert made.slots == hours("2026-11-22T00:05", 12, timedelta(minutes=5))
    assert set(made.posted()) == set(made.made)
    assert len(made.posted()) > 12, "both tried"


async def test_a_clock_that_steps_back_creates_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(utc("2026-11-22T00:05"), tmp_path, monkeypatch) as made:
        made.policy({"every": "30m"})
        async with made.controller():
            await asyncio.sleep(3 * 3600)
            before = list(made.slots)
            made.clock.step = -timedelta(hours=2)
            # Woken for every reason there is, while the clock shows the same two hours again.
            for _ in range(8):
                stored = made.api.objects["backuppolicies"][("shop", "nightly")]
                made.api.put(stored, "backuppolicies")
                await asyncio.sleep(15 * 60 - 30)
            during = list(made.slots)
            await asyncio.sleep(3600)
    assert before == hours("2026-11-22T00:30", 6, timedelta(minutes=30))
    assert during == before
    assert made.slots == hours("2026-11-22T00:30", len(made.slots), timedelta(minutes=30))
    assert len(made.slots) in (7, 8)


async def test_a_controller_away_over_several_slots_makes_the_newest_and_counts_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(utc("2026-11-22T00:05"), tmp_path, monkeypatch) as made:
        made.policy({"every": "1h"})
        async with made.controller():
            await asyncio.sleep(2 * 3600)
        await asyncio.sleep(5 * 3600)
        async with made.controller() as context:
            await asyncio.sleep(60)
            counted = context.meter.registry.get_sample_value(
                "tidemark_slots_missed_total", {"namespace": "shop", "policy": "nightly"}
            )
    assert made.slots == [utc("2026-11-22T01:00"), utc("2026-11-22T02:00"), utc("2026-11-22T07:00")]
    assert made.status()["missedSlots"] == 4
    assert counted == 4


async def test_a_slot_fires_on_the_loop_and_in_no_other_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue is of its loop: a key put there by a thread would lie until something else wakes the loop."""
    async with world(utc("2026-11-22T00:05"), tmp_path, monkeypatch) as made:
        made.policy({"every": "1h"})
        threads: list[int] = []
        async with made.controller() as context:
            wake = Wake(context.caches.of(BackupPolicy), made.clock, lambda _: threads.append(threading.get_ident()))
            task = asyncio.create_task(wake.run())
            await asyncio.sleep(3600)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert threads == [threading.get_ident()]
