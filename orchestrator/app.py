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
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orchestrator.api.foreign.core import (
    Job,
    Namespace,
    PersistentVolume,
    PersistentVolumeClaim,
    Pod,
    StorageClass,
)
from orchestrator.api.foreign.snapshot import (
    SnapshotMetadataService,
    VolumeSnapshot,
    VolumeSnapshotClass,
    VolumeSnapshotContent,
)
from orchestrator.api.meta import K8sObject
from orchestrator.api.tidemark.backup import Backup
from orchestrator.api.tidemark.backup_policy import BackupPolicy
from orchestrator.api.tidemark.backup_repository import BackupRepository
from orchestrator.api.tidemark.fields import (
    LABEL_BACKUP_UID,
    LABEL_MANAGED_BY,
    LABEL_POINT_UID,
    LABEL_PVC_UID,
    LABEL_RESTORE_UID,
    MANAGED_BY,
)
from orchestrator.api.tidemark.recovery_point import RecoveryPoint
from orchestrator.api.tidemark.restore import Restore
from orchestrator.clock import Clock, SystemClock
from orchestrator.config import Settings
from orchestrator.controllers.base import Context, Controller, Meter, NoMeter
from orchestrator.controllers.repositories import Repositories
from orchestrator.errors import LeaseStale, Retryable, Terminal, TidemarkError
from orchestrator.fence import Fence, OpenFence
from orchestrator.kube import errors
from orchestrator.kube.cache import Cache, Caches
from orchestrator.kube.client import Client
from orchestrator.kube.events import Recorder
from orchestrator.kube.lease import Lease
from orchestrator.kube.tokens import AccountTokens

log = logging.getLogger(__name__)

DRAIN_S = 20.0
"""How long reconciles in hand may take after SIGTERM; a pod gets 30 s in all."""
REACH_S = 60.0
"""How long the first answer of the API server is waited for."""
LAG_WARN_S = 0.25


class Kept(NamedTuple):
    """One row of the table of kinds: what is cached, how far, and by which labels it is found."""

    kind: type[K8sObject]
    indices: Mapping[str, str] = {}
    """Index name -> label whose value is the key."""
    ours_only: bool = False
    """Only what carries our managed-by label, in the controller's namespace."""
    optional: bool = False
    """Not every cluster has it; absent counts as none."""


_BY_WORK = {"point": LABEL_POINT_UID, "restore": LABEL_RESTORE_UID}

KINDS = (
    Kept(BackupPolicy),
    Kept(Backup),
    Kept(RecoveryPoint, {"backup": LABEL_BACKUP_UID, "pvc": LABEL_PVC_UID}),
    Kept(Restore),
    Kept(BackupRepository),
    Kept(Namespace),
    Kept(PersistentVolumeClaim, _BY_WORK),
    Kept(PersistentVolume, _BY_WORK),
    Kept(StorageClass),
    Kept(Job, _BY_WORK, ours_only=True),
    Kept(Pod, _BY_WORK, ours_only=True),
    # Their CRDs come with a CSI driver: without them backups say so in a condition, and the rest of the house works.
    Kept(VolumeSnapshot, _BY_WORK, optional=True),
    Kept(VolumeSnapshotContent, _BY_WORK, optional=True),
    Kept(VolumeSnapshotClass, optional=True),
    Kept(SnapshotMetadataService, optional=True),
)
"""Every kind that controllers read from a cache. Secrets are not among them: they are read when needed."""


class PartDied(Retryable):
    """A long-lived part of the controller ended; the whole process ends with it."""

    reason = "PartDied"
    remedy = "The process ends and is to be started again; its log says more."

    def __init__(self, part: str, error: BaseException | None) -> None:
        """Name the part and what it said."""
        cause = "it returned" if error is None else str(error) or type(error).__name__
        super().__init__(f"The controller's part {part!r} ended: {cause}")


class Part(NamedTuple):
    """A long-lived child of the house."""

    name: str
    run: Callable[[], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class House:
    """What runs once this process holds the lease: the nouns' controllers and whatever else lives with them."""

    controllers: Sequence[Controller[Any]] = ()
    parts: Sequence[Part] = ()


Builder = Callable[[Context], House]


@dataclass(kw_only=True)
class Health:
    """What probes and the status page ask. Written by the house, read by the web server."""

    caches: Caches
    lease: Lease | None = None
    leading: bool = False
    loop_lag_s: float = 0.0
    stopping: bool = False
    context: Context | None = None
    controllers: Sequence[Controller[Any]] = field(default_factory=tuple)

    def unready(self) -> list[str]:
        """Return why this process should get no traffic yet; empty when it is ready (a standby is ready too)."""
        return ["stopping"] if self.stopping else [f"not synced: {kind}" for kind in self.caches.unsynced()]

    def unhealthy(self) -> list[str]:
        """Return why this process should be killed; empty when it is well."""
        return [f"the event loop is {self.loop_lag_s:.1f} s late"] if self.loop_lag_s > 10.0 else []


async def run(
    settings: Settings,
    *,
    kubeconfig: str | None = None,
    kube_context: str | None = None,
    build: Builder | None = None,
    serve: Callable[[Settings, Health], Part] | None = None,
    meter: Meter | None = None,
    clock: Clock | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Run the controller until SIGTERM or SIGINT (or `stop`); raises PartDied, LeaseStale or what hindered the start.

    `build` makes the house's inhabitants, `serve` the web server; both default to the real ones.
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
            meter=meter or NoMeter(),
        )
        health = Health(caches=caches, lease=lease, context=context)
        await _live(context, health, build or inhabitants, serve, stop)


def inhabitants(context: Context) -> House:
    """Return every noun's controller and the timers."""
    raise AssertionError(context)


def build_caches(client: Client, settings: Settings) -> Caches:
    """Return an unfilled cache for each row of KINDS."""
    caches = Caches()
    for row in KINDS:
        caches.add(
            Cache(
                client,
                row.kind,
                namespace=settings.namespace if row.ours_only else "",
                labels=f"{LABEL_MANAGED_BY}={MANAGED_BY}" if row.ours_only else "",
                indexers={name: _by_label(label) for name, label in row.indices.items()},
                optional=row.optional,
            )
        )
    return caches


def _by_label(label: str) -> Callable[[K8sObject], tuple[str, ...]]:
    def values(obj: K8sObject) -> tuple[str, ...]:
        value = obj.metadata.labels.get(label)
        return (value,) if value else ()

    return values


async def _live(
    context: Context,
    health: Health,
    build: Builder,
    serve: Callable[[Settings, Health], Part] | None,
    stop: asyncio.Event,
) -> None:
    """Bring the house up in order, wait for `stop`, bring it down in order."""
    try:
        async with asyncio.TaskGroup() as group:
            children = _Children(group, health)
            children.start(Part("watchdog", lambda: _watch_lag(health)))
            if serve is not None:
                children.start(serve(context.settings, health))
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
        except LeaseStale:
            raise
        except Exception as error:
            if self._health.stopping:
                log.warning("part %s ended with an error while stopping", part.name, exc_info=error)
                return
            if not isinstance(error, TidemarkError):
                log.exception("part %s died", part.name)
            if isinstance(error, Terminal):
                raise
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
