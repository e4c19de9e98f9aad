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
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from orchestrator.api.meta import K8sObject
from orchestrator.clock import Clock
from orchestrator.config import Settings
from orchestrator.errors import TidemarkError
from orchestrator.fence import Fence
from orchestrator.kube.cache import Cache, Caches
from orchestrator.kube.client import Client
from orchestrator.kube.events import Recorder
from orchestrator.kube.queue import WorkQueue

log = logging.getLogger(__name__)

T = TypeVar("T", bound=K8sObject)
U = TypeVar("U", bound=K8sObject)

Key = tuple[str, str]
"""(namespace, name); namespace "" when cluster scoped."""

DRAIN_S = 20.0
"""Seconds that reconciles in hand may take after SIGTERM."""
QUICK_S = 0.2
"""Seconds until a reconcile whose own write was overtaken is tried again."""
RECORD_S = 10.0
"""Seconds that recording an error may take."""


class Requeue(NamedTuple):
    """Ask to be reconciled again later."""

    after_s: float


class Meter(Protocol):
    """Where reconciles are counted. Labels from closed sets only: the controller's name, a reason."""

    def reconciled(self, controller: str, seconds: float, outcome: str) -> None:
        """Count one reconcile; outcome is `done`, `requeue` or `error`."""

    def reconcile_error(self, controller: str, reason: str) -> None:
        """Count one error: `tidemark_reconcile_errors_total{controller,reason}`."""


class NoMeter:
    """Counts nothing."""

    def reconciled(self, controller: str, seconds: float, outcome: str) -> None:
        """Ignore."""

    def reconcile_error(self, controller: str, reason: str) -> None:
        """Ignore."""


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
    repositories: Any = None
    """The provider of open repositories, made by the controllers' own factory (see `app.Plan`)."""
    tokens: Any = None
    """A token source for `cbt` (kube.tokens.AccountTokens)."""
    meter: Meter = field(default_factory=NoMeter)
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
        self._stopping = asyncio.Event()

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
        """Work until `drain` or cancelled."""

    async def drain(self) -> None:
        """Take no more keys and wait for the reconciles in hand, DRAIN_S at most."""
