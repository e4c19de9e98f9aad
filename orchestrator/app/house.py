"""What the controller's process consists of, as values: parts, controllers, and how they are.

Apart from `app` itself, so that the web server's page and the nouns' list can speak of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orchestrator.controllers.base import Context, Controller
from orchestrator.errors import Retryable
from orchestrator.kube.cache import Caches
from orchestrator.kube.lease import Lease
from orchestrator.web.server import Web

SICK_S = 10.0
"""A loop this late serves nobody any more."""


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

    web: Web | None = None

    def unready(self) -> str | None:
        """Return why this process should get no traffic yet; None when it is ready (a standby is ready too)."""
        if self.stopping:
            return "stopping"
        waiting = self.caches.unsynced()
        return f"not synced: {'; '.join(waiting)}" if waiting else None

    def unhealthy(self) -> str | None:
        """Return why this process should be killed, None when it is well."""
        return f"the event loop is {self.loop_lag_s:.1f} s late" if self.loop_lag_s > SICK_S else None
