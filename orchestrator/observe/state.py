"""Metrics that are read from what is there, at the moment somebody asks.

Each source is a function that yields samples from the caches. So a restart starts right, a deleted object's series
vanish at the next scrape, and nothing has to be remembered or forgotten. A source must be quick (it runs on the event
loop). One that raises loses its own samples only, and is counted: it must not blind the whole page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import TypeVar

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

T = TypeVar("T")
Source = Callable[[], Iterable[T]]


@dataclass(frozen=True, slots=True)
class RpoSample:
    """One volume of one policy, now. Seconds; `last_timestamp` is Unix time."""

    namespace: str
    pvc: str
    policy: str
    age_s: float | None
    """What would be lost now; None: not known. Never protected: since the claim was made."""
    target_s: float | None
    breached: bool
    last_timestamp: float | None
    suspended: bool


@dataclass(frozen=True, slots=True)
class PointSample:
    """How many recovery points of a policy (empty: inline backups) are in a phase."""

    namespace: str
    policy: str
    phase: str
    count: int


@dataclass(frozen=True, slots=True)
class SnapshotSample:
    """How many physical snapshots a driver holds for us."""

    driver: str
    count: int


@dataclass(frozen=True, slots=True)
class RepositorySample:
    """One BackupRepository. None: not known yet."""

    repository: str
    reachable: bool | None
    bytes: int | None = None
    objects: int | None = None
    points: int | None = None
    last_maintenance_timestamp: float | None = None
    maintenance_overdue: bool | None = None
    verified_timestamp: float | None = None
    verification_overdue: bool | None = None
    damaged_objects: int | None = None
    damaged_chunks: int | None = None
    damaged_points: int | None = None
    missing_points: int | None = None


@dataclass(frozen=True, slots=True)
class MoverSample:
    """How many movers of a task hold a slot, and how many wait for one."""

    task: str
    running: int
    waiting: int


@dataclass(frozen=True, slots=True)
class QueueSample:
    """A controller's queue, and the age of the cache of its kind."""

    controller: str
    depth: int
    cache_age_s: float | None = None
    """Seconds since its watch was last heard of."""


def nothing() -> Iterable[T]:
    """Yield no sample: a source that is not there."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where state is read. Each is called once per scrape."""

    rpo: Source[RpoSample] = nothing
    points: Source[PointSample] = nothing
    snapshots: Source[SnapshotSample] = nothing
    repositories: Source[RepositorySample] = nothing
    movers: Source[MoverSample] = nothing
    queues: Source[QueueSample] = nothing


def guarded(sources: Sources, failed: Callable[[str, Exception], None]) -> Sources:
    """Return sources that tell `failed` of an error, by the source's name, and yield what came before it."""

    def guard(name: str, source: Source[T]) -> Source[T]:
        def read() -> Iterable[T]:
            got: list[T] = []
            try:
                got.extend(source())
            except Exception as error:  # noqa: BLE001 - one bad source must not take the others' samples along
                failed(name, error)
            return got

        return read

    return Sources(**{each.name: guard(each.name, getattr(sources, each.name)) for each in fields(sources)})


class _Gauge:
    """One family being filled; the last of two samples with the same labels wins, or the page would be invalid."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        self._family = GaugeMetricFamily(name, text, labels=labels)
        self._values: dict[tuple[str, ...], float] = {}

    def set(self, labels: tuple[str, ...], value: float | None) -> None:
        if value is not None:
            self._values[labels] = float(value)

    def done(self) -> Metric:
        for labels, value in self._values.items():
            self._family.add_metric(labels, value)
        return self._family


class RpoCollector(Collector):
    """How much would be lost now, for every volume of every policy. Suspended policies go on being told."""

    LABELS = ("namespace", "pvc", "policy")

    def __init__(self, source: Source[RpoSample] = nothing) -> None:
        """Take the function that is called at each scrape."""
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """Yield the families, as things stand now."""
        age = _Gauge(
            "tidemark_rpo_seconds",
            "Seconds of writes that would be lost if the volume were lost now. How exposed am I?",
            self.LABELS,
        )
        target = _Gauge(
            "tidemark_rpo_target_seconds", "Seconds promised by the policy's objective. What was promised?", self.LABELS
        )
        breached = _Gauge(
            "tidemark_rpo_breached", "1 if tidemark_rpo_seconds is above the target. Is the promise kept?", self.LABELS
        )
        last = _Gauge(
            "tidemark_last_recovery_point_timestamp_seconds",
            "Unix time at which the newest good recovery point was cut. Absent: never. When was it last safe?",
            self.LABELS,
        )
        suspended = _Gauge(
            "tidemark_policy_suspended",
            "1 if the policy makes no scheduled backups. Did somebody switch it off?",
            ("namespace", "policy"),
        )
        for sample in self._source():
            labels = (sample.namespace, sample.pvc, sample.policy)
            age.set(labels, None if sample.age_s is None else max(sample.age_s, 0.0))
            target.set(labels, sample.target_s)
            breached.set(labels, None if sample.target_s is None else float(sample.breached))
            last.set(labels, sample.last_timestamp)
            suspended.set((sample.namespace, sample.policy), float(sample.suspended))
        for gauge in (age, target, breached, last, suspended):
            yield gauge.done()

    def describe(self) -> Iterable[Metric]:
        """Return the families without values: registering must not call the source."""
        return list(RpoCollector().collect())


class StateCollector(Collector):
    """Everything else that is a state: points, snapshots, repositories, movers, queues."""

    def __init__(self, sources: Sources) -> None:
        """Take the functions that are called at each scrape."""
        self._sources = sources

    def describe(self) -> Iterable[Metric]:
        """Return the families without values: registering must not call a source."""
        return list(StateCollector(Sources()).collect())

    def collect(self) -> Iterator[Metric]:
        """Yield the families, as things stand now."""
        yield from self._points()
        yield from self._repositories()
        yield from self._verifications()
        yield from self._engine()

    def _points(self) -> Iterator[Metric]:
        points = _Gauge(
            "tidemark_recovery_points",
            "Number of recovery points, by phase. What is there, what is under way?",
            ("namespace", "policy", "phase"),
        )
        for point in self._sources.points():
            points.set((point.namespace, point.policy, point.phase), point.count)
        yield points.done()
        snapshots = _Gauge(
            "tidemark_snapshots_kept",
            "Number of physical snapshots held as bases or by retention. What do we cost the storage system?",
            ("driver",),
        )
        for snapshot in self._sources.snapshots():
            snapshots.set((snapshot.driver,), snapshot.count)
        yield snapshots.done()

    def _repositories(self) -> Iterator[Metric]:
        label = ("repository",)
        reachable = _Gauge(
            "tidemark_repository_reachable", "1 if the repository answered at its last check. Can it be written?", label
        )
        size = _Gauge("tidemark_repository_bytes", "Bytes stored in the repository. What does it cost?", label)
        objects = _Gauge("tidemark_repository_objects", "Objects stored in the repository. How many files?", label)
        points = _Gauge("tidemark_repository_points", "Recovery points in the repository. How many are safe?", label)
        swept = _Gauge(
            "tidemark_repository_last_maintenance_timestamp_seconds",
            "Unix time at which the last sweep completed. Absent: never. Is garbage being removed?",
            label,
        )
        overdue = _Gauge(
            "tidemark_repository_maintenance_overdue",
            "1 if more than two maintenance slots passed without a completed sweep. Is maintenance stuck?",
            label,
        )
        for sample in self._sources.repositories():
            name = (sample.repository,)
            reachable.set(name, None if sample.reachable is None else float(sample.reachable))
            size.set(name, sample.bytes)
            objects.set(name, sample.objects)
            points.set(name, sample.points)
            swept.set(name, sample.last_maintenance_timestamp)
            overdue.set(name, None if sample.maintenance_overdue is None else float(sample.maintenance_overdue))
        for gauge in (reachable, size, objects, points, swept, overdue):
            yield gauge.done()

    def _verifications(self) -> Iterator[Metric]:
        label = ("repository",)
        verified = _Gauge(
            "tidemark_repository_verified_timestamp_seconds",
            "Unix time at which every namespace had last been verified. Absent: never. When was it last proven?",
            label,
        )
        overdue = _Gauge(
            "tidemark_repository_verification_overdue",
            "1 if more than two verification slots passed without a whole verification. Does anybody look at all?",
            label,
        )
        objects = _Gauge(
            "tidemark_repository_damaged_objects",
            "Objects that the last verification found altered, truncated or missing. Does the store keep what it took?",
            label,
        )
        chunks = _Gauge(
            "tidemark_repository_damaged_chunks",
            "Chunks lost by that, summed over the points. How much is lost?",
            label,
        )
        points = _Gauge(
            "tidemark_repository_damaged_points",
            "Points that the last verification found damaged. How many can't be restored whole?",
            label,
        )
        missing = _Gauge(
            "tidemark_repository_missing_points",
            "Points that the cluster knows and the repository doesn't hold as they were. Was the bucket rolled back?",
            label,
        )
        for sample in self._sources.repositories():
            name = (sample.repository,)
            verified.set(name, sample.verified_timestamp)
            overdue.set(name, None if sample.verification_overdue is None else float(sample.verification_overdue))
            objects.set(name, sample.damaged_objects)
            chunks.set(name, sample.damaged_chunks)
            points.set(name, sample.damaged_points)
            missing.set(name, sample.missing_points)
        for gauge in (verified, overdue, objects, chunks, points, missing):
            yield gauge.done()

    def _engine(self) -> Iterator[Metric]:
        running = _Gauge(
            "tidemark_movers_running", "Number of movers that hold a slot. Is copying going on?", ("task",)
        )
        waiting = _Gauge("tidemark_slots_waiting", "Number of movers waiting for a slot. Too few slots?", ("task",))
        for mover in self._sources.movers():
            running.set((mover.task,), mover.running)
            waiting.set((mover.task,), mover.waiting)
        yield running.done()
        yield waiting.done()
        depth = _Gauge(
            "tidemark_queue_depth",
            "Number of objects waiting to be reconciled. Is a controller behind?",
            ("controller",),
        )
        cache = _Gauge(
            "tidemark_cache_age_seconds",
            "Seconds since the watch of a controller's kind was last heard of. Do we still see the cluster?",
            ("controller",),
        )
        for queue in self._sources.queues():
            depth.set((queue.controller,), queue.depth)
            cache.set((queue.controller,), queue.cache_age_s)
        yield depth.done()
        yield cache.done()
