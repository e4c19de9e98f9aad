"""Write Events as the programs do whose part the sandbox plays: one object per reason and message, counted up."""

from __future__ import annotations

import hashlib
import logging
from typing import Literal

from orchestrator.api.meta import Resource
from orchestrator.sandbox.api import AlreadyExists, Api, ApiError
from orchestrator.sandbox.kinds import EVENT
from orchestrator.sandbox.objects import Manifest, name, namespace, reference, timestamp, uid

log = logging.getLogger(__name__)

EventType = Literal["Normal", "Warning"]


class Recorder:
    """Records what one component says about objects. A lost event is no error."""

    def __init__(self, api: Api, component: str) -> None:
        self._api = api
        self._component = component
        self._counts: dict[str, int] = {}

    async def say(self, resource: Resource, about: Manifest, kind: EventType, reason: str, message: str) -> None:
        """Record an event, or count up the one that says the same."""
        message = message[:1024]
        digest = hashlib.sha256(f"{uid(about)}{self._component}{reason}{message}".encode()).hexdigest()[:16]
        named = f"{name(about)[:200]}.{digest}"
        home = namespace(about) or "default"
        self._counts[named] = count = self._counts.get(named, 0) + 1
        now = timestamp()
        body: Manifest = {
            "metadata": {"name": named, "namespace": home},
            "involvedObject": reference(about, api_version=resource.api_version, kind=resource.kind),
            "type": kind,
            "reason": reason,
            "message": message,
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": count,
        }
        try:
            try:
                await self._api.create(EVENT, body)
            except AlreadyExists:
                change = {"count": count, "lastTimestamp": now}
                path = EVENT.path(home, named)
                await self._api.call("PATCH", path, body=change, content_type="application/merge-patch+json")
        except ApiError as err:
            log.debug("event %s lost: %s", reason, err)
