"""What becomes of keys and errors, whatever the noun."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from orchestrator.clock import SystemClock
from orchestrator.config import Settings
from orchestrator.controllers.base import OVERTAKEN, Context, Controller, Key, Requeue, leading
from orchestrator.errors import LeaseStale, Retryable, Terminal, TidemarkError
from orchestrator.fence import OpenFence
from orchestrator.kube import errors as kube_errors
from orchestrator.kube.cache import Cache, Caches
from orchestrator.kube.client import Client
from orchestrator.kube.errors import Target
from orchestrator.kube.events import Recorder
from orchestrator.kube.queue import WorkQueue
from tests.kube.fakes import FakeApi, Widget, serving, widget, write_kubeconfig
from tests.waiting import SHORT


class Flaky(Retryable):
    reason = "Flaky"
    remedy = "Wait."


class Broken(Terminal):
    reason = "Broken"
    remedy = "Change the spec."


class WidgetController(Controller[Widget]):
    """Does what the test says, and keeps what it saw."""

    name = "widget"
    kind = Widget

    def __init__(self, context: Context, act: Callable[[Key, int], Any]) -> None:
        super().__init__(context)
        self.queue = WorkQueue(base_s=0.01, max_s=0.02)
        self.act = act
        self.seen: list[Key] = []
        self.recorded: list[tuple[Key, str]] = []
        self.changed = asyncio.Condition()

    async def reconcile(self, key: Key) -> Requeue | None:
        self.seen.append(key)
        async with self.changed:
            self.changed.notify_all()
        result = self.act(key, self.seen.count(key))
        if asyncio.iscoroutine(result):
            result = await result
        return cast("Requeue | None", result)

    async def record_error(self, key: Key, error: TidemarkError) -> None:
        self.recorded.append((key, error.reason))
        if error.reason == "Unwritable":
            raise RuntimeError("the status could not be written")
        async with self.changed:
            self.changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(SHORT), self.changed:
            await self.changed.wait_for(condition)


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with serving(FakeApi()) as running:
        yield running


@pytest.fixture
async def context(api: FakeApi, tmp_path: Path) -> AsyncIterator[Context]:
    """A context with a filled cache of widgets."""
    api.put(widget("a"))
    api.put(widget("b"))
    async with await Client.connect(kubeconfig=str(write_kubeconfig(tmp_path, api.url))) as client:
        caches = Caches()
        cache = caches.add(Cache(client, Widget))
        filling = asyncio.create_task(cache.run())
        await cache.synced.wait()
        yield Context(
            client=client,
            caches=caches,
            recorder=Recorder(client, SystemClock()),
            clock=SystemClock(),
            settings=Settings(workers=2),
            fence=OpenFence(),
            cluster_id="c",
            repositories=cast("Any", None),
            tokens=cast("Any", None),
        )
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)


@asynccontextmanager
async def running(controller: WidgetController) -> AsyncIterator[asyncio.Task[None]]:
    controller.wire()
    task = asyncio.create_task(controller.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def raising(error: Exception, times: int = 10**6) -> Callable[[Key, int], None]:
    def act(key: Key, count: int) -> None:
        if key == ("ns", "a") and count <= times:
            raise error

    return act


def errors_counted(context: Context, reason: str) -> float:
    value = context.meter.registry.get_sample_value(
        "tidemark_reconcile_errors_total", {"controller": "widget", "reason": reason}
    )
    return value or 0.0


async def test_every_object_and_every_change_is_reconciled(api: FakeApi, context: Context) -> None:
    controller = WidgetController(context, lambda *_: None)
    async with running(controller):
        await controller.until(lambda: set(controller.seen) == {("ns", "a"), ("ns", "b")})
        api.put(widget("c"))
        await controller.until(lambda: ("ns", "c") in controller.seen)
        api.remove("c")
        await controller.until(lambda: controller.seen.count(("ns", "c")) == 2)


async def test_a_retryable_error_is_recorded_counted_told_and_tried_again(api: FakeApi, context: Context) -> None:
    controller = WidgetController(context, raising(Flaky("no luck"), times=3))
    async with running(controller):
        await controller.until(lambda: controller.seen.count(("ns", "a")) == 4)
        await asyncio.sleep(0)

        assert controller.recorded == [(("ns", "a"), "Flaky")] * 3
        assert controller.queue.failures(("ns", "a")) == 0, "success forgets the failures"
        assert errors_counted(context, "Flaky") == 3
    await context.recorder.drain()
    (event,) = api.objects["events"].values()
    assert (event["reason"], event["count"]) == ("Flaky", 3)
    assert event["message"] == "no luck. Wait."


async def test_a_terminal_error_is_recorded_and_waits_for_the_resync(context: Context) -> None:
    controller = WidgetController(context, raising(Broken("bad spec")))
    async with running(controller):
        await controller.until(lambda: bool(controller.recorded))
        await asyncio.sleep(0.2)

        assert controller.seen.count(("ns", "a")) == 1
        assert controller.queue.delayed == 1


async def test_a_changed_spec_ends_the_wait_of_a_terminal_error(api: FakeApi, context: Context) -> None:
    controller = WidgetController(context, raising(Broken("bad spec"), times=1))
    async with running(controller):
        await controller.until(lambda: bool(controller.recorded))
        api.put(widget("a", size=5))
        await controller.until(lambda: controller.seen.count(("ns", "a")) == 2)


@pytest.mark.parametrize(
    "error",
    [
        kube_errors.Conflict(Target("patch", "widgets", "ns", "a"), "modified"),
        kube_errors.NotFound(Target("delete", "widgets", "ns", "a"), "gone"),
    ],
)
async def test_an_overtaken_write_is_quietly_tried_again(context: Context, error: Exception) -> None:
    controller = WidgetController(context, raising(error, times=2))
    async with running(controller):
        await controller.until(lambda: controller.seen.count(("ns", "a")) == 3)

        assert controller.recorded == []
        assert errors_counted(context, "Conflict") == errors_counted(context, "NotFound") == 0


async def test_a_conflict_that_never_ends_becomes_an_error_like_others(context: Context) -> None:
    conflict = kube_errors.Conflict(Target("patch", "widgets", "ns", "a"), "modified")
    controller = WidgetController(context, raising(conflict))
    async with running(controller):
        await controller.until(lambda: bool(controller.recorded))

    assert controller.seen.count(("ns", "a")) >= OVERTAKEN + 1
    assert controller.recorded[0] == (("ns", "a"), "Conflict")


async def test_a_missing_object_that_was_only_read_is_no_overtaken_write(context: Context) -> None:
    missing = kube_errors.NotFound(Target("get", "secrets", "ns", "s"), "gone")
    controller = WidgetController(context, raising(missing))
    async with running(controller):
        await controller.until(lambda: bool(controller.recorded))

    assert controller.recorded == [(("ns", "a"), "NotFound")]


async def test_an_unexpected_error_shows_its_stack_and_harms_no_other_key(
    api: FakeApi, context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    controller = WidgetController(context, raising(RuntimeError("a bug"), times=3))
    async with running(controller) as task:
        await controller.until(lambda: controller.seen.count(("ns", "a")) == 4)
        api.put(widget("b", size=2))
        await controller.until(lambda: controller.seen.count(("ns", "b")) == 2)

        assert not task.done()
        assert errors_counted(context, "Unexpected") == 3
        assert "RuntimeError: a bug" in caplog.text
        assert "Traceback" in caplog.text


async def test_an_error_that_cannot_be_recorded_still_backs_off(
    context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    class Unwritable(Retryable):
        reason = "Unwritable"

    controller = WidgetController(context, raising(Unwritable("x"), times=2))
    async with running(controller):
        await controller.until(lambda: controller.seen.count(("ns", "a")) == 3)

    assert "could not be recorded" in caplog.text


async def test_a_stale_lease_ends_the_controller(context: Context) -> None:
    controller = WidgetController(context, raising(LeaseStale("too old")))
    async with running(controller) as task:
        with pytest.raises(ExceptionGroup) as caught:
            await asyncio.wait_for(asyncio.shield(task), SHORT)

    assert caught.value.subgroup(LeaseStale) is not None


async def test_a_requeue_comes_when_it_said(context: Context) -> None:
    controller = WidgetController(context, lambda key, count: Requeue(0.02) if count < 3 else None)
    async with running(controller):
        await controller.until(lambda: controller.seen.count(("ns", "a")) == 3)


async def test_the_resync_enqueues_everything_without_any_change(context: Context) -> None:
    quick = replace(context, settings=Settings(workers=2, resync_s=0.05))
    controller = WidgetController(quick, lambda *_: None)
    async with running(controller):
        await controller.until(lambda: min(controller.seen.count(("ns", name)) for name in "ab") >= 3)


async def test_stopping_finishes_what_is_in_hand_and_takes_nothing_more(context: Context) -> None:
    go, finished = asyncio.Event(), []

    async def slow(key: Key) -> None:
        await go.wait()
        finished.append(key)

    controller = WidgetController(replace(context, settings=Settings(workers=1)), lambda key, _: slow(key))
    async with running(controller) as task:
        await controller.until(lambda: len(controller.seen) == 1)
        controller.stop()
        await asyncio.sleep(0)
        assert not task.done()
        go.set()
        async with asyncio.timeout(SHORT):
            await task

    assert finished == controller.seen
    assert len(finished) == 1


async def test_one_key_is_never_reconciled_twice_at_the_same_time(api: FakeApi, context: Context) -> None:
    inside: dict[Key, int] = {}
    most = 0

    async def watchful(key: Key) -> None:
        nonlocal most
        inside[key] = inside.get(key, 0) + 1
        most = max(most, inside[key])
        await asyncio.sleep(0.01)
        inside[key] -= 1

    controller = WidgetController(replace(context, settings=Settings(workers=8)), lambda key, _: watchful(key))
    async with running(controller):
        for size in range(10):
            api.put(widget("a", size=size))
            await asyncio.sleep(0.005)
        await controller.until(lambda: controller.seen.count(("ns", "a")) >= 3)

    assert most == 1


@pytest.mark.quick
def test_of_several_errors_at_once_the_gravest_decides() -> None:
    flaky, broken, bug, stale = Flaky("f"), Broken("b"), ValueError("v"), LeaseStale("s")

    assert leading(ExceptionGroup("", [flaky, broken])) is broken
    assert leading(ExceptionGroup("", [broken, ExceptionGroup("", [flaky, bug])])) is bug
    assert leading(ExceptionGroup("", [bug, ExceptionGroup("", [stale])])) is stale
    assert leading(flaky) is flaky
