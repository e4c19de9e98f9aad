"""The composition root: makes every long-lived part of the controller once and owns the one task group.

Each part is a named child. A part that ends takes the house down and the pod starts again: half a controller is worse
than none, because nobody sees it. SIGTERM: controllers take no more work and finish what they have in hand (at most
DRAIN_S), Events are written, the lease is given back, the process ends with 0. What must never happen here: a task
without a name, or a part that dies quietly.

Exit codes (mapped by the command line): 0 ended by a signal; 65 it can't work until somebody changes something (no
configuration, no permission); 75 start me again (a part died, the lease was lost, the API server was away).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from importlib import metadata
from typing import Any

from orchestrator.api.foreign.core import Namespace
from orchestrator.app.house import Builder, Health, House, Part, PartDied
from orchestrator.app.kinds import build_caches
from orchestrator.app.page import page
from orchestrator.app.sources import sources
from orchestrator.clock import Clock, SystemClock
from orchestrator.config import Settings
from orchestrator.controllers.base import Context, Controller, leading
from orchestrator.controllers.repositories import Repositories
from orchestrator.errors import LeaseStale, Terminal, TidemarkError
from orchestrator.fence import Fence, OpenFence
from orchestrator.kube import errors
from orchestrator.kube.client import Client
from orchestrator.kube.events import Recorder
from orchestrator.kube.lease import Lease
from orchestrator.kube.tokens import AccountTokens
from orchestrator.observe.metrics import Metrics
from orchestrator.web.server import Web

log = logging.getLogger(__name__)

VERSION = metadata.version("tidemark")
DRAIN_S = 20.0
"""How long reconciles in hand may take after SIGTERM; a pod gets 30 s in all."""
REFUSAL_PAUSE_S = 2.0
"""Between tries of a request that was Forbidden: an API server that has just started refuses everybody for seconds."""
REACH_S = 60.0
"""How long the first answer of the API server is waited for."""
LAG_WARN_S = 0.25


async def run(
    settings: Settings,
    *,
    kubeconfig: str | None = None,
    kube_context: str | None = None,
    build: Builder | None = None,
    clock: Clock | None = None,
    stop: asyncio.Event | None = None,
    started: Callable[[Health], None] | None = None,
) -> None:
    """Run the controller until SIGTERM or SIGINT (or `stop`); raises PartDied, LeaseStale or what hindered the start.

    `build` makes those who live in the house (all nouns by default); `started` is told when they are at work. No web
    server runs where `settings.metrics_address` is empty.
    """
    clock = clock or SystemClock()
    stop = stop or asyncio.Event()
    lease = _lease(settings, kubeconfig, kube_context, clock) if settings.leader_elect else None
    fence: Fence = lease or OpenFence()
    async with (
        _signals(stop),
        await Client.connect(kubeconfig=kubeconfig, context=kube_context, fence=fence) as client,
    ):
        caches = build_caches(client, settings)
        client.on_reply.append(caches.learn)
        client.refusal_pause_s = REFUSAL_PAUSE_S
        health = Health(caches=caches, lease=lease)
        metrics = Metrics(sources(caches, clock, lambda: health.controllers), version=VERSION)
        context = Context(
            client=client,
            caches=caches,
            recorder=Recorder(client, clock, component="tidemark", instance=lease.identity if lease else "tidemark"),
            clock=clock,
            settings=settings,
            fence=fence,
            cluster_id=await _cluster_id(client, stop),
            repositories=Repositories(client, caches, settings, clock),
            tokens=AccountTokens(client, clock, service_account=settings.service_account, namespace=settings.namespace),
            meter=metrics,
        )
        health.context = context
        if settings.metrics_address:
            health.web = _web(settings, health, metrics, clock)
        await _live(context, health, build or _everybody, stop, started)


def _everybody(context: Context) -> House:
    # Imported here, so that what tests the house alone does not pay for all nouns; the command imports it up front.
    from orchestrator.app.inhabitants import inhabitants

    return inhabitants(context)


async def _live(
    context: Context,
    health: Health,
    build: Builder,
    stop: asyncio.Event,
    started: Callable[[Health], None] | None,
) -> None:
    """Bring the house up in order, wait for `stop`, bring it down in order."""
    try:
        async with asyncio.TaskGroup() as group:
            children = _Children(group, health)
            children.start(Part("watchdog", lambda: _watch_lag(health)))
            if health.web is not None:
                children.start(Part("web", health.web.run))
            for cache in context.caches:
                children.start(Part(f"cache {cache.kind.__name__}", cache.run))
            lease_task = children.start(Part("lease", health.lease.run)) if health.lease is not None else None
            if await _ready_to_lead(health, stop):
                house = build(context)
                health.controllers = house.controllers
                recorder = children.start(Part("events", context.recorder.run))
                for controller in house.controllers:
                    controller.wire()
                working = [children.start(Part(c.name, c.run)) for c in house.controllers]
                for part in house.parts:
                    children.start(part)
                log.info("tidemark is running: %s", ", ".join(c.name for c in house.controllers) or "no controllers")
                if started is not None:
                    started(health)
                await stop.wait()
                health.stopping = True
                await _drain(house.controllers, working)
                recorder.cancel()
                await context.recorder.drain()
            health.stopping = True
            if lease_task is not None:
                lease_task.cancel()
                await asyncio.wait([lease_task])
            children.cancel()
    except BaseExceptionGroup as group_error:
        raise _reason(group_error) from group_error


class _Children:
    """The named children of the house; one that ends before the house stops is an error."""

    def __init__(self, group: asyncio.TaskGroup, health: Health) -> None:
        self._group = group
        self._health = health
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, part: Part) -> asyncio.Task[None]:
        """Start a child and return its task."""
        task = self._group.create_task(self._guarded(part), name=part.name)
        self._tasks.append(task)
        return task

    def cancel(self) -> None:
        """End all of them."""
        for task in self._tasks:
            task.cancel()

    async def _guarded(self, part: Part) -> None:
        try:
            await part.run()
        except Exception as group:
            # Whatever a part ends by is sorted here: a lost lease, a stop, or a fault that ends the whole.
            error = leading(group)
            if isinstance(error, LeaseStale):
                raise error from (group if error is not group else group.__cause__)
            if self._health.stopping:
                log.warning("part %s ended with an error while stopping", part.name, exc_info=error)
                return
            if not isinstance(error, TidemarkError):
                log.exception("part %s died", part.name)
            if isinstance(error, Terminal):
                raise error from (group if error is not group else group.__cause__)
            raise PartDied(part.name, error) from error
        if not self._health.stopping:
            raise PartDied(part.name, None)


async def _ready_to_lead(health: Health, stop: asyncio.Event) -> bool:
    """Wait until the caches are synced and the lease is ours; return False when told to stop before."""

    async def ready() -> None:
        await health.caches.wait_synced()
        if health.lease is not None:
            await health.lease.acquired.wait()

    waits = [asyncio.ensure_future(ready()), asyncio.ensure_future(stop.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        health.leading = waits[0].done() and not stop.is_set()
        return health.leading
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def _drain(controllers: Sequence[Controller[Any]], working: Sequence[asyncio.Task[None]]) -> None:
    """Let the controllers finish what they have in hand, at most DRAIN_S."""
    for controller in controllers:
        controller.stop()
    if not working:
        return
    log.info("stopping: finishing the work in hand")
    _, late = await asyncio.wait(working, timeout=DRAIN_S)
    for task in late:
        log.warning("%s did not finish within %g s; the next start carries on", task.get_name(), DRAIN_S)
        task.cancel()


def _reason(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one error that tells why the house came down: the lease first, then the first part that died."""
    leaves: list[BaseException] = []

    def collect(error: BaseException) -> None:
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                collect(inner)
        else:
            leaves.append(error)

    collect(group)
    stale = next((leaf for leaf in leaves if isinstance(leaf, LeaseStale)), None)
    if stale is not None:
        return PartDied("lease", stale)
    return next((leaf for leaf in leaves if isinstance(leaf, TidemarkError)), leaves[0])


def _web(settings: Settings, health: Health, metrics: Metrics, clock: Clock) -> Web:
    return Web(
        settings.metrics_address,
        metrics.registry,
        checks={"house": health.unready},
        status=lambda: page(health.caches, clock, version=VERSION, leading=health.leading),
        health={"loop": health.unhealthy},
    )


def _lease(settings: Settings, kubeconfig: str | None, context: str | None, clock: Clock) -> Lease:
    return Lease(
        namespace=settings.namespace,
        kubeconfig=kubeconfig,
        context=context,
        duration_s=settings.lease_duration_s,
        renew_s=settings.lease_renew_s,
        clock=clock,
    )


async def _cluster_id(client: Client, stop: asyncio.Event) -> str:
    """Return the uid of kube-system; waits REACH_S for an API server that is not there yet."""
    loop = asyncio.get_running_loop()
    until, pause = loop.time() + REACH_S, 0.2
    while True:
        try:
            return (await client.get(Namespace, "kube-system")).uid
        except (errors.Unavailable, errors.TooManyRequests) as error:
            if loop.time() > until or stop.is_set():
                raise
            log.info("waiting for the API server: %s", error)
        await asyncio.sleep(pause)
        pause = min(5.0, pause * 2)


async def _watch_lag(health: Health) -> None:
    """Measure once a second how late the loop is: whatever blocks it delays every controller."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + 1.0
        await asyncio.sleep(1.0)
        health.loop_lag_s = max(0.0, loop.time() - due)
        if health.context is not None:
            health.context.meter.loop_lagged(health.loop_lag_s)
        if health.loop_lag_s > LAG_WARN_S:
            log.warning("the event loop was blocked for %.2f s", health.loop_lag_s)


@contextlib.asynccontextmanager
async def _signals(stop: asyncio.Event) -> AsyncIterator[None]:
    """Set `stop` on SIGTERM and SIGINT; a second SIGINT ends the process at once."""
    loop = asyncio.get_running_loop()

    def interrupted() -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    handled: list[signal.Signals] = []
    # Only the main thread may; tests that run the house elsewhere stop it by the event.
    with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
        for number, action in ((signal.SIGTERM, stop.set), (signal.SIGINT, interrupted)):
            loop.add_signal_handler(number, action)
            handled.append(number)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
