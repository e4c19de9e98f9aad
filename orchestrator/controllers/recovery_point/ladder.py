"""Delta, then allocated, then the whole volume: the cheapest way of knowing what to read that can be trusted.

Each step down throws away what the rung above said, has a typed reason in the status, a Warning Event and a counter:
a fallback is a success with a warning, and never silent. A delta's failure says nothing about the allocated rung.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.api.foreign.snapshot import VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent
from orchestrator.blocks.plan import add_resized, whole
from orchestrator.cbt import stream
from orchestrator.cbt.client import Client, Settings
from orchestrator.cbt.codes import ALLOCATED, DELTA
from orchestrator.cbt.errors import RungFailed, SnapshotGone, Unsupported
from orchestrator.cbt.service import Service, Token
from orchestrator.clock import Clock
from orchestrator.controllers.recovery_point.work import Work
from orchestrator.errors import MESSAGE_LIMIT, TidemarkError
from orchestrator.extents import ChunkSet, Extents
from orchestrator.kube.errors import Forbidden, TokenRefused
from orchestrator.repository.manifest import Manifest, Mode, PointRecord
from orchestrator.volumes.discovery import NoMetadataService, find_service

REMEMBER_S = 3600.0
"""How long a method that a driver doesn't serve is not asked for again (contract 2.3, UNIMPLEMENTED)."""
RECHECK_S = 60.0
"""How long a snapshot that stopped being ready is waited for."""
POLL_S = 1.0


class SnapshotObjectGone(RungFailed):
    """The VolumeSnapshot in the tenant's namespace is gone; the physical snapshot is ours and can still be read."""

    reason = "SnapshotObjectGone"
    remedy = "Somebody deleted the VolumeSnapshot while it was in use; the whole volume is read instead."


class SnapshotClassGone(RungFailed):
    """The snapshot's class was deleted: sidecars look it up at every call, and say UNAVAILABLE for ever (trap T13)."""

    reason = "SnapshotClassGone"
    remedy = "Make the VolumeSnapshotClass again; snapshots need it for as long as they live."


class Memory:
    """Which methods a driver does not serve, for an hour. Losing it costs one refused call."""

    def __init__(self, clock: Clock) -> None:
        """Start knowing nothing."""
        self._clock = clock
        self._until: dict[tuple[str, str], float] = {}

    def unsupported(self, driver: str, method: str) -> bool:
        """Return whether the driver said within the last hour that it doesn't serve the method."""
        return self._until.get((driver, method), 0.0) > self._clock.monotonic()

    def note(self, driver: str, method: str) -> None:
        """Remember that the driver doesn't serve the method."""
        self._until[(driver, method)] = self._clock.monotonic() + REMEMBER_S


@dataclass
class Outcome:
    """What to read, by which rung, and why it is not the one that was wanted."""

    mode: Mode
    chunks: ChunkSet
    reason: str = ""
    message: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    service_revision: str = ""


class _Sink:
    """Collects ranges as chunks."""

    def __init__(self, volume_size: int, chunk_size: int) -> None:
        self.chunks = ChunkSet(volume_size, chunk_size)

    def accept(self, extents: Extents) -> None:
        self.chunks.add(extents)

    def reset(self) -> None:
        self.chunks = ChunkSet(self.chunks.volume_size, self.chunks.chunk_size)


def tell(work: Work, reason: str, message: str) -> None:
    """Say and count that a point reads more than was wanted."""
    work.event("Warning", reason, message)
    work.meter.fallback(work.status.driver, reason)


async def descend(work: Work, record: PointRecord, base: Manifest | None, rung: Mode, memory: Memory) -> Outcome:
    """Try rung after rung until one holds. Raises SnapshotGone, and Retryable errors of the cluster itself."""
    tale = _Tale(work)
    service: Service | None = None
    while rung != "full":
        try:
            service = service or await find_service(work.context.client, record.driver)
            outcome = await _ask(work, service, record, base, rung, memory)
            return tale.told(outcome)
        except (RungFailed, NoMetadataService, TokenRefused, Forbidden) as error:
            goes_on = rung == "delta" and isinstance(error, RungFailed) and error.next_rung == "allocated"
            following: Mode = "allocated" if goes_on else "full"
            tell(work, error.reason, f"{rung} is not possible, {following} instead: {error.sentence()}"[:1024])
            tale.failed(rung, error)
            rung = following
    return tale.told(Outcome("full", whole(record.volume_size, record.chunk_size)))


class _Tale:
    """Why a point is not what was wanted, from the choice of a base down to the last rung."""

    def __init__(self, work: Work) -> None:
        self._began = (work.status.fallback_reason, work.status.reason, work.status.message)
        self._failures: list[dict[str, str]] = []

    def failed(self, rung: Mode, error: TidemarkError) -> None:
        """Note that a rung was given up."""
        self._failures.append({"rung": rung, "reason": error.reason, "message": error.sentence()})

    def told(self, outcome: Outcome) -> Outcome:
        """Return the outcome with its reason: the first thing that kept it from what was wanted."""
        unexpected, expected, began = self._began
        first = self._failures[0]["reason"] if self._failures else ""
        outcome.reason = unexpected or first or expected
        sentences = [began, *(failure["message"] for failure in self._failures)]
        outcome.message = "; ".join(filter(None, sentences))[:MESSAGE_LIMIT]
        if self._failures:
            outcome.evidence["failures"] = self._failures
        return outcome


async def _ask(
    work: Work,
    service: Service,
    record: PointRecord,
    base: Manifest | None,
    rung: Mode,
    memory: Memory,
) -> Outcome:
    method = DELTA if rung == "delta" else ALLOCATED
    if memory.unsupported(record.driver, method):
        raise Unsupported(record.driver, method, "allocated" if rung == "delta" else "full", "as it said before")
    sink = _Sink(record.volume_size, record.chunk_size)
    name = stream.Snapshot(work.point.namespace, work.status.snapshot_name)
    settings = Settings(streams_per_driver=work.context.settings.cbt_streams_per_driver)
    recheck = _Recheck(work, method)
    await recheck()

    async def again() -> Service:
        return await find_service(work.context.client, record.driver)

    async with Client(
        service, _Tokens(work), recheck=recheck, rediscover=again, settings=settings, clock=work.context.clock
    ) as client:
        try:
            if rung == "delta" and base is not None:
                evidence = await stream.delta(
                    client, name, base.record.base_id, size_bytes=record.volume_size, sink=sink
                )
            else:
                evidence = await stream.allocated(client, name, size_bytes=record.volume_size, sink=sink)
        except Unsupported:
            memory.note(record.driver, method)
            raise
    if rung == "delta" and base is not None:
        # Whatever the driver says of a volume that grew: its new tail is read (trap T11).
        add_resized(sink.chunks, base.root.volume_size)
    told = asdict(evidence)
    return Outcome(rung, sink.chunks, evidence=told, service_revision=evidence.service_revision)


class _Tokens:
    """Our account's tokens, in the form that `cbt` takes them."""

    def __init__(self, work: Work) -> None:
        self._source = work.context.tokens

    async def token(self, audience: str, *, min_ttl_s: float = 120.0, fresh: bool = False) -> Token:
        """Return a token for `audience`; raises TokenRefused."""
        made = await self._source.token(audience, min_ttl_s=min_ttl_s, fresh=fresh)
        return Token(made.value, made.expires_at)


class _Recheck:
    """Look at the snapshot's objects before a call: a sidecar dies of a snapshot without a status (trap T1)."""

    def __init__(self, work: Work, method: str) -> None:
        self._work, self._method = work, method
        self._calls = 0

    async def __call__(self) -> None:
        """Return when the snapshot is ready; wait for it a while; raise SnapshotGone or SnapshotObjectGone.

        The client asks before each try, so from the second one on a retry is told: a service that is down takes
        minutes until the next rung, and nobody should wonder meanwhile.
        """
        self._calls += 1
        if self._calls > 1:
            await self._tell_retry(self._calls - 1)
        try:
            async with asyncio.timeout(RECHECK_S):
                while not await self._ready():  # what changes is on the API server
                    await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            raise SnapshotObjectGone(
                self._work.status.driver, self._method, "full", "the snapshot is no longer ready"
            ) from error

    async def _tell_retry(self, number: int) -> None:
        work = self._work
        text = f"The driver's change tracking did not answer {self._method}; trying again (retry {number})."
        await work.write(conditions=work.conditions("Progressing", "False", "CBTRetrying", text))
        if number == 1:
            work.event("Warning", "CBTRetrying", text)

    async def _ready(self) -> bool:
        work, client = self._work, self._work.context.client
        content = await client.find(VolumeSnapshotContent, work.status.content_name)
        if content is None or content.deleting:
            raise SnapshotGone(f"VolumeSnapshotContent {work.status.content_name} was deleted")
        snapshot = await client.find(VolumeSnapshot, work.status.snapshot_name, work.point.namespace)
        if snapshot is None or snapshot.deleting or snapshot.uid != work.status.snapshot_uid:
            raise SnapshotObjectGone(work.status.driver, self._method, "full", "the VolumeSnapshot was deleted")
        bound = snapshot.status is not None and snapshot.status.bound_volume_snapshot_content_name == content.name
        told = content.status
        if not bound or told is None or content.spec.volume_snapshot_ref.uid != snapshot.uid:
            return False
        if told.snapshot_handle and told.snapshot_handle != work.status.snapshot_handle:
            raise SnapshotGone(f"VolumeSnapshotContent {content.name} holds another snapshot now")
        await self._check_class(snapshot.spec.volume_snapshot_class_name or "")
        assert snapshot.status is not None
        return bool(snapshot.status.ready_to_use and told.ready_to_use and told.snapshot_handle)

    async def _check_class(self, name: str) -> None:
        if not name or await self._work.context.client.find(VolumeSnapshotClass, name) is None:
            raise SnapshotClassGone(
                self._work.status.driver, self._method, "full", f"there is no VolumeSnapshotClass {name!r}"
            )
