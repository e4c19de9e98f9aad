"""The right to write, held by one controller at a time.

A Lease object, renewed from an own thread over an own connection, so that a busy or blocked loop does not lose it. The
API server does not fence: a process that was frozen may wake long after another took over. So `check()` compares the
clock with the moment *before* the last good renewal was sent, and once it was too late it stays so until the process
ends. What must never happen here: the lease looking younger than it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar, NamedTuple

import msgspec

from orchestrator.api.meta import K8sObject, Resource
from orchestrator.clock import Clock, SystemClock
from orchestrator.errors import LeaseStale
from orchestrator.kube import errors
from orchestrator.kube.client import Client

log = logging.getLogger(__name__)

RELEASE_S = 5.0
"""How long a clean stop waits for the lease to be given back."""


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
        self._connect = partial(Client.connect, kubeconfig=kubeconfig, context=context, field_manager="tidemark-lease")
        self._duration_s, self._renew_s = duration_s, renew_s
        self._retry_s = renew_s / 5
        self._clock = clock or SystemClock()
        self._elapsed = elapsed
        self._renewed_at: float | None = None
        self._lost = ""
        self._loss_lock = threading.Lock()
        self._ended: asyncio.Future[None] | None = None
        self._home: asyncio.AbstractEventLoop | None = None
        self._asked_to_stop = False
        self._thread_stop: Callable[[], None] | None = None
        self._thread_loop: asyncio.AbstractEventLoop
        self.acquired = asyncio.Event()
        """Set once the lease is held; `run` raises when it is lost."""

    @property
    def age_s(self) -> float | None:
        """Return seconds since the last good renewal was sent, None when not held."""
        return None if self._renewed_at is None else self._elapsed() - self._renewed_at

    def check(self) -> None:
        """Raise LeaseStale unless the lease is held and young enough. Once it was too old it stays so."""
        renewed_at = self._renewed_at
        if renewed_at is None and not self._lost:
            raise LeaseStale(f"The lease {self.namespace}/{self.name} is not held")
        age = self._elapsed() - (renewed_at or 0.0)
        if not self._lost and age > self._renew_s:
            self._lose(f"not renewed for {age:.1f} s")
        if self._lost:
            raise LeaseStale(f"The lease {self.namespace}/{self.name} was lost: {self._lost}")

    async def run(self) -> None:
        """Acquire (waiting as long as it takes), then hold; raises LeaseStale when lost. Cancelling releases it."""
        self._home = asyncio.get_running_loop()
        self._ended = self._home.create_future()
        thread = threading.Thread(target=self._in_thread, name="tidemark-lease", daemon=True)
        thread.start()
        try:
            await asyncio.shield(self._ended)
        finally:
            self._asked_to_stop = True
            stop = self._thread_stop
            if stop is not None and thread.is_alive():
                with contextlib.suppress(RuntimeError):  # its loop has just ended
                    self._thread_loop.call_soon_threadsafe(stop)
            await asyncio.to_thread(thread.join, RELEASE_S)
            self._renewed_at = None

    # In the lease's own thread

    def _in_thread(self) -> None:
        error: BaseException | None = None
        try:
            asyncio.run(self._hold())
        except Exception as failure:  # noqa: BLE001 - handed to run(), which raises it
            error = failure
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        """Let `run` return or raise; from any thread."""

        def settle() -> None:
            if self._ended is not None and not self._ended.done():
                if error is None:
                    self._ended.set_result(None)
                else:
                    self._ended.set_exception(error)
                    self._ended.exception()  # seen, even if run() was cancelled meanwhile

        if self._home is not None:
            with contextlib.suppress(RuntimeError):  # the home loop is closed: nobody waits any more
                self._home.call_soon_threadsafe(settle)

    def _lose(self, why: str) -> None:
        with self._loss_lock:
            if self._lost:
                return
            self._lost = why
        log.error("the lease %s/%s is lost: %s", self.namespace, self.name, why)
        self._end(LeaseStale(f"The lease {self.namespace}/{self.name} was lost: {why}"))

    async def _hold(self) -> None:
        stop = asyncio.Event()
        self._thread_loop = asyncio.get_running_loop()
        self._thread_stop = stop.set
        if self._asked_to_stop:  # before there was a loop to tell
            return
        async with await self._connect(timeout_s=self._renew_s / 2) as client:
            held = await self._acquire(client, stop)
            if held is None:
                return
            log.info("holding the lease %s/%s as %s", self.namespace, self.name, self.identity)
            if self._home is not None:
                self._home.call_soon_threadsafe(self.acquired.set)
            version = await self._renew(client, stop, held)
            if version is not None:
                await self._release(client, version)

    async def _acquire(self, client: Client, stop: asyncio.Event) -> str | None:
        """Return the resourceVersion under which we hold it, None when stopped before."""
        seen = _Seen("", 0.0)
        while not stop.is_set():
            before = self._elapsed()
            try:
                found = await client.find(LeaseObject, self.name, self.namespace)
                if found is not None and found.metadata.resource_version != seen.version:
                    seen = _Seen(found.metadata.resource_version, before)
                if found is None or self._is_free(found, seen, before):
                    held = await self._take(client, found)
                    self._renewed_at = before
                    return held
            except (errors.Conflict, errors.AlreadyExists):
                log.debug("another took the lease first")
            except errors.ApiError as error:
                log.warning("the lease can't be acquired: %s", error)
            await _pause(stop, self._retry_s)
        return None

    def _is_free(self, found: LeaseObject, seen: _Seen, now: float) -> bool:
        """Judge by our own clock how long the record has not moved: the holder's clock may be wrong."""
        if found.spec.holder_identity in {"", self.identity}:
            return True
        return now - seen.since > max(found.spec.lease_duration_seconds, 1)

    async def _take(self, client: Client, found: LeaseObject | None) -> str:
        spec = self._spec()
        if found is None:
            body = {
                "metadata": {"name": self.name, "namespace": self.namespace},
                "spec": {**spec, "leaseTransitions": 0},
            }
            held = await client.create_raw(LeaseObject.RESOURCE, body, LeaseObject)
        else:
            spec |= {"acquireTime": spec["renewTime"], "leaseTransitions": found.spec.lease_transitions + 1}
            body = {"metadata": {"resourceVersion": found.metadata.resource_version}, "spec": spec}
            held = await client.merge_patch(LeaseObject, self.name, self.namespace, body)
        return held.metadata.resource_version

    async def _renew(self, client: Client, stop: asyncio.Event, version: str) -> str | None:
        """Renew until stopped (returns the version to release) or lost (returns None)."""
        while not await _pause(stop, self._retry_s):
            before = self._elapsed()
            if self._lost or before - (self._renewed_at or 0.0) > self._renew_s:
                self._lose(f"not renewed for {before - (self._renewed_at or 0.0):.1f} s")
                return None
            try:
                body = {"metadata": {"resourceVersion": version}, "spec": self._spec()}
                held = await client.merge_patch(LeaseObject, self.name, self.namespace, body)
                self._renewed_at = before
                version = held.metadata.resource_version
            except (errors.Conflict, errors.NotFound):
                found = await self._look(client)
                if isinstance(found, LeaseObject):
                    # An earlier renewal did happen though its answer was lost, or somebody put a label on it.
                    version = found.metadata.resource_version
                elif found:
                    self._lose(found)
                    return None
            except errors.ApiError as error:
                log.warning("the lease was not renewed, %.1f s old: %s", self.age_s or 0.0, error)
        return None if self._lost else version

    async def _look(self, client: Client) -> LeaseObject | str:
        """Return the lease if it is still ours, why it is lost if it is not, "" when that can't be known now."""
        try:
            found = await client.find(LeaseObject, self.name, self.namespace)
        except errors.ApiError:
            return ""
        if found is None:
            return "somebody deleted it"
        if found.spec.holder_identity != self.identity:
            return f"{found.spec.holder_identity or 'nobody'} holds it now"
        return found

    async def _release(self, client: Client, version: str) -> None:
        """Let the next one in at once; best effort."""
        body = {
            "metadata": {"resourceVersion": version},
            "spec": {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _micro_time(self._clock.now())},
        }
        # First, so that no write starts while another may already hold it.
        self._lost = "it was given back"
        try:
            await client.merge_patch(LeaseObject, self.name, self.namespace, body)
            log.info("gave the lease %s/%s back", self.namespace, self.name)
        except errors.ApiError as error:
            log.info("the lease was not given back, it runs out by itself: %s", error)

    def _spec(self) -> dict[str, Any]:
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self._duration_s)),
            "renewTime": _micro_time(self._clock.now()),
        }


class _Seen(NamedTuple):
    version: str
    since: float


def _micro_time(instant: datetime) -> str:
    """Return a MicroTime: the API server demands exactly six digits."""
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def _pause(stop: asyncio.Event, seconds: float) -> bool:
    """Wait; return whether to stop."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
    return stop.is_set()
