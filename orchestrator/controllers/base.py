"""What every controller shares: keys from caches to workers, and what becomes of an error.

A noun's controller gathers, decides and acts; it raises and never logs. Only here errors become conditions, Events,
metrics and back-off. What must never happen here: one key's failure reaching another, or an error that vanishes.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from orchestrator.api.meta import K8sObject
from orchestrator.clock import Clock
from orchestrator.config import Settings
from orchestrator.errors import LeaseStale, Retryable, Terminal, TidemarkError
from orchestrator.fence import Fence
from orchestrator.kube import errors as kube_errors
from orchestrator.kube.cache import Cache, Caches
from orchestrator.kube.client import Client
from orchestrator.kube.events import Recorder
from orchestrator.kube.queue import Closed, WorkQueue
from orchestrator.kube.tokens import AccountTokens
from orchestrator.observe.metrics import Metrics

if TYPE_CHECKING:
    from orchestrator.controllers.repositories import Repositories  # it imports this module

log = logging.getLogger(__name__)

T = TypeVar("T", bound=K8sObject)
U = TypeVar("U", bound=K8sObject)

Key = tuple[str, str]
"""(namespace, name); namespace "" when cluster scoped."""

DRAIN_S = 20.0
"""Seconds that reconciles in hand may take after SIGTERM."""
QUICK_S = 0.2
"""Seconds until a reconcile whose own write was overtaken is tried again."""
OVERTAKEN = 5
"""Quiet quick tries in a row; then a conflict is an error like others, with back-off."""
UNEXPECTED = "Unexpected"
RECORD_S = 10.0
"""Seconds that recording an error may take."""


class Requeue(NamedTuple):
    """Ask to be reconciled again later."""

    after_s: float


@dataclass(frozen=True, kw_only=True)
class Context:
    """What `app` hands to every controller."""

    client: Client
    caches: Caches
    recorder: Recorder
    clock: Clock
    settings: Settings
    fence: Fence
    cluster_id: str
    """uid of the namespace kube-system."""
    repositories: Repositories
    """Opens repositories, with their Secrets."""
    tokens: AccountTokens
    """The token source for `cbt`."""
    meter: Metrics = field(default_factory=Metrics)
    """Counters of what happens."""
    parts: dict[str, Any] = field(default_factory=dict)
    """Further single instances that controllers share, by name."""


class Controller(ABC, Generic[T]):
    """One noun's controller. Subclasses set `name` and `kind`, and say what one reconcile does."""

    name: ClassVar[str]
    kind: type[T]

    def __init__(self, context: Context) -> None:
        """Take what `app` made; subscribes in `wire`."""
        self.context = context
        self.queue: WorkQueue[Key] = WorkQueue()
        self._overtaken: dict[Key, int] = {}

    @property
    def cache(self) -> Cache[T]:
        """Return the cache of the controller's own kind."""
        return self.context.caches.of(self.kind)

    def wire(self) -> None:
        """Subscribe: each change of our kind enqueues its key. Override (and call) to map other kinds to keys."""
        self.watch(self.kind, lambda obj: [(obj.namespace, obj.name)])

    def watch(self, kind: type[U], keys: Callable[[U], Iterable[Key]]) -> None:
        """Enqueue `keys(old)` and `keys(new)` whenever an object of `kind` changes."""

        def changed(old: U | None, new: U | None) -> None:
            for obj in (old, new):
                if obj is not None:
                    for key in keys(obj):
                        self.queue.add(key)

        self.context.caches.of(kind).subscribe(changed)

    @abstractmethod
    async def reconcile(self, key: Key) -> Requeue | None:
        """Bring one object a step further. Idempotent; raises Retryable or Terminal; never logs."""

    async def record_error(self, key: Key, error: TidemarkError) -> None:
        """Write `error` into the object's status (nouns override this); nothing by default."""

    async def run(self) -> None:
        """Work until drained or cancelled; raises LeaseStale when this process may no longer write."""
        async with asyncio.TaskGroup() as group:
            resync = group.create_task(self._resync(), name=f"{self.name} resync")
            workers = [
                group.create_task(self._work(), name=f"{self.name} worker {number}")
                for number in range(self.context.settings.workers)
            ]
            await asyncio.wait(workers)
            resync.cancel()

    def stop(self) -> None:
        """Take no more keys; `run` returns when the reconciles in hand are finished."""
        self.queue.close()

    async def _work(self) -> None:
        while True:
            try:
                key = await self.queue.get()
            except Closed:
                return
            try:
                await self._process(key)
            finally:
                self.queue.done(key)

    async def _resync(self) -> None:
        """Enqueue everything now and then: a lost wake-up must not be lost for ever."""
        while True:
            await asyncio.sleep(self.context.settings.resync_s)
            for obj in self.cache.all():
                self.queue.add((obj.namespace, obj.name))

    async def _process(self, key: Key) -> None:
        started = self.context.clock.monotonic()
        outcome = "done"
        try:
            again = await self.reconcile(key)
        except Exception as error:  # noqa: BLE001 - the one place where a reconcile's errors end
            outcome = "error"
            await self._failed(key, leading(error))
        else:
            self.queue.forget(key)
            self._overtaken.pop(key, None)
            if again is not None:
                outcome = "requeue"
                self.queue.add_after(key, again.after_s)
        finally:
            self.context.meter.reconciled(self.name, self.context.clock.monotonic() - started, outcome)

    async def _failed(self, key: Key, error: Exception) -> None:
        if isinstance(error, LeaseStale):
            raise error
        if _overtaken(error) and self._overtaken.get(key, 0) < OVERTAKEN:
            self._overtaken[key] = self._overtaken.get(key, 0) + 1
            self.queue.add_after(key, QUICK_S)
            return
        if not isinstance(error, TidemarkError):
            log.error("%s %s failed unexpectedly", self.name, "/".join(key), exc_info=error)
            self.context.meter.reconcile_error(self.name, UNEXPECTED)
            self.queue.add_rate_limited(key)
            return
        self.context.meter.reconcile_error(self.name, error.reason)
        self._tell(key, error)
        await self._record(key, error)
        if isinstance(error, Terminal):
            self.queue.add_after(key, self.context.settings.resync_s)
        else:
            self.queue.add_rate_limited(key)

    def _tell(self, key: Key, error: TidemarkError) -> None:
        obj = self.cache.get(key[1], key[0])
        if obj is not None:
            self.context.recorder.event(obj, "Warning", error.reason, error.sentence())
        log.info("%s %s: %s: %s", self.name, "/".join(key), error.reason, error.sentence())

    async def _record(self, key: Key, error: TidemarkError) -> None:
        """Have the error written into the status; failing at that must not hide the error itself."""
        try:
            async with asyncio.timeout(RECORD_S):
                await self.record_error(key, error)
        except LeaseStale:
            raise
        except (kube_errors.Conflict, kube_errors.NotFound):
            pass  # the object moved or went; the next pass records what is true then
        except Exception:
            # Telling of an error must not end the worker; the next pass tells it again.
            log.exception("%s %s: the error could not be recorded", self.name, "/".join(key))


def _overtaken(error: Exception) -> bool:
    """Return whether our own write came too late: the object changed or went since we read it."""
    if isinstance(error, kube_errors.Conflict):
        return True
    return isinstance(error, kube_errors.NotFound) and error.target.verb in {"patch", "delete"}


def leading(error: Exception) -> Exception:
    """Return the error that decides: of a group a stale lease first, then an unexpected one, Terminal, Retryable."""
    if not isinstance(error, ExceptionGroup):
        return error
    leaves = [leading(inner) for inner in error.exceptions]

    def rank(leaf: Exception) -> int:
        order: tuple[type[Exception], ...] = (Retryable, Terminal, TidemarkError)
        known = next((place for place, kind in enumerate(order) if isinstance(leaf, kind)), len(order))
        return 9 if isinstance(leaf, LeaseStale) else known

    return max(leaves, key=rank)
