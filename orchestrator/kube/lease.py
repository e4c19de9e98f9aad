"""The right to write, held by one controller at a time.

A Lease object, renewed from an own thread over an own connection, so that a busy or blocked loop does not lose it. The
API server does not fence: a process that was frozen may wake long after another took over. So `check()` compares the
clock with the moment *before* the last good renewal was sent, and once it was too late it stays so until the process
ends. What must never happen here: the lease looking younger than it is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from typing import ClassVar

import msgspec

from orchestrator.api.meta import K8sObject, Resource
from orchestrator.clock import Clock, SystemClock

log = logging.getLogger(__name__)


class LeaseSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The slice of a Lease's spec that we read."""

    holder_identity: str = ""
    lease_duration_seconds: int = 0
    renew_time: str = ""
    lease_transitions: int = 0


class LeaseObject(K8sObject, frozen=True, kw_only=True):
    """A coordination.k8s.io Lease."""

    RESOURCE: ClassVar[Resource] = Resource("coordination.k8s.io", "v1", "Lease", "leases", namespaced=True)

    spec: LeaseSpec = LeaseSpec()


def boot_seconds() -> float:
    """Return seconds since boot, counting also while the machine is suspended (CLOCK_MONOTONIC does not)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """A Fence backed by a Lease object. `run()` is the long-lived child; `check()` may be called from any thread."""

    def __init__(
        self,
        *,
        namespace: str,
        name: str = "tidemark-controller",
        identity: str = "",
        kubeconfig: str | None = None,
        context: str | None = None,
        duration_s: float = 15.0,
        renew_s: float = 10.0,
        clock: Clock | None = None,
        elapsed: Callable[[], float] = boot_seconds,
    ) -> None:
        """Hold `namespace/name` for `duration_s`; refuse and end when not renewed for `renew_s`."""
        if not 0 < renew_s < duration_s:
            raise ValueError("the renewal deadline must be shorter than the lease")
        self.namespace, self.name = namespace, name
        self.identity = identity or f"{os.environ.get('POD_NAME') or os.uname().nodename}_{secrets.token_hex(4)}"
        self._kubeconfig, self._context = kubeconfig, context
        self._duration_s, self._renew_s = duration_s, renew_s
        self._retry_s = max(0.05, renew_s / 5)
        self._clock = clock or SystemClock()
        self._elapsed = elapsed
        self._renewed_at: float | None = None
        self._lost = ""
        self._stop = threading.Event()
        self.acquired = asyncio.Event()
