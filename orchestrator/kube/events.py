"""Kubernetes Events: what happened, for whoever runs `kubectl describe`.

Best effort by nature. What must never happen here: blocking or failing the caller, or flooding the API server.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from datetime import datetime
from typing import Any, ClassVar, Literal, NamedTuple

from orchestrator.api.meta import K8sObject, Resource
from orchestrator.clock import Clock
from orchestrator.errors import TidemarkError
from orchestrator.kube import errors
from orchestrator.kube.client import Client

log = logging.getLogger(__name__)

EventType = Literal["Normal", "Warning"]

MESSAGE_LIMIT = 1024
PENDING = 1000
"""Different events that may wait; more are dropped and counted."""
SERIES = 4096
"""Events remembered, so that a repetition counts up instead of making a new object."""
BURST, REFILL_S = 25, 30.0
"""Writes for one object: a burst, then one each REFILL_S."""
PACE_S = 0.05
"""Between two writes: 20 a second at most."""


class Event(K8sObject, frozen=True, kw_only=True):
    """The slice of a core/v1 Event that we read back."""

    RESOURCE: ClassVar[Resource] = Resource("", "v1", "Event", "events", namespaced=True)

    count: int = 0


class _Subject(NamedTuple):
    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str
    resource_version: str


class _Key(NamedTuple):
    uid: str
    type: str
    reason: str
    message: str


class _Pending(NamedTuple):
    subject: _Subject
    times: int
    first: datetime
    last: datetime


class _Series(NamedTuple):
    name: str
    times: int


class Recorder:
    """Takes events from anywhere on the loop; `run()` writes them."""

    def __init__(self, client: Client, clock: Clock, *, component: str = "tidemark", instance: str = "") -> None:
        """Write through `client`; `component` and `instance` say who reports."""
        self._client = client
        self._clock = clock
        self._component = component
        self._instance = instance or component
        self._pending: OrderedDict[_Key, _Pending] = OrderedDict()
        self._series: OrderedDict[_Key, _Series] = OrderedDict()
        self._budget: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._wake = asyncio.Event()
        self.dropped = 0
        """Events that were not written, for whatever reason."""

    def event(self, obj: K8sObject, type_: EventType, reason: str, message: str) -> None:
        """Note that something happened to `obj`. Never blocks, never raises; equal ones are counted together."""
        meta, resource, now = obj.metadata, obj.RESOURCE, self._clock.now()
        key = _Key(meta.uid, type_, reason, errors.redacted(message, MESSAGE_LIMIT))
        waiting = self._pending.get(key)
        if waiting is not None:
            self._pending[key] = waiting._replace(times=waiting.times + 1, last=now)
            return
        if len(self._pending) >= PENDING:
            self.dropped += 1
            return
        subject = _Subject(
            resource.api_version, resource.kind, meta.namespace, meta.name, meta.uid, meta.resource_version
        )
        self._pending[key] = _Pending(subject, 1, now, now)
        self._wake.set()

    async def run(self) -> None:
        """Write what was noted, for ever; a stale lease ends it (and the process)."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                await self._write_next()
                await asyncio.sleep(PACE_S)

    async def drain(self, limit_s: float = 2.0) -> None:
        """Write what is left, within `limit_s`."""
        try:
            async with asyncio.timeout(limit_s):
                while self._pending:
                    await self._write_next()
        except TimeoutError:
            self.dropped += len(self._pending)
            self._pending.clear()

    async def _write_next(self) -> None:
        key, pending = self._pending.popitem(last=False)
        if not self._allowed(key.uid):
            self.dropped += pending.times
            return
        try:
            await self._write(key, pending)
        except (errors.ApiError, TidemarkError) as error:
            if not isinstance(error, errors.ApiError):
                raise  # a stale lease: this process must end
            self.dropped += pending.times
            log.debug("an event was not written: %s", error)

    async def _write(self, key: _Key, pending: _Pending) -> None:
        namespace = pending.subject.namespace or "default"
        series = self._series.get(key)
        if series is not None:
            count = series.times + pending.times
            body = {"count": count, "lastTimestamp": _stamp(pending.last)}
            try:
                await self._client.merge_patch(Event, series.name, namespace, body)
                self._remember(key, _Series(series.name, count))
                return
            except errors.NotFound:
                pass  # it expired on the server (an hour by default): make a new one
        manifest = self._manifest(key, pending, namespace)
        try:
            await self._client.create_raw(Event.RESOURCE, manifest, Event)
        except errors.AlreadyExists:
            return
        self._remember(key, _Series(manifest["metadata"]["name"], pending.times))

    def _manifest(self, key: _Key, pending: _Pending, namespace: str) -> dict[str, Any]:
        subject = pending.subject
        digest = hashlib.sha256("\0".join((*key, pending.first.isoformat())).encode()).hexdigest()[:16]
        return {
            "metadata": {"name": f"{subject.name[:200]}.{digest}", "namespace": namespace},
            "involvedObject": {
                "apiVersion": subject.api_version,
                "kind": subject.kind,
                "namespace": subject.namespace,
                "name": subject.name,
                "uid": subject.uid,
                "resourceVersion": subject.resource_version,
            },
            "type": key.type,
            "reason": key.reason,
            "message": key.message,
            "count": pending.times,
            "firstTimestamp": _stamp(pending.first),
            "lastTimestamp": _stamp(pending.last),
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "reportingInstance": self._instance,
        }

    def _remember(self, key: _Key, series: _Series) -> None:
        self._series[key] = series
        self._series.move_to_end(key)
        while len(self._series) > SERIES:
            self._series.popitem(last=False)

    def _allowed(self, uid: str) -> bool:
        """Take one write from the object's bucket."""
        now = self._clock.monotonic()
        tokens, at = self._budget.get(uid, (float(BURST), now))
        tokens = min(float(BURST), tokens + (now - at) / REFILL_S)
        self._budget[uid] = (tokens - 1.0 if tokens >= 1.0 else tokens, now)
        self._budget.move_to_end(uid)
        while len(self._budget) > SERIES:
            self._budget.popitem(last=False)
        return tokens >= 1.0


def _stamp(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%dT%H:%M:%SZ")
