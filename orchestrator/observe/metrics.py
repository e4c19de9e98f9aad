"""Every metric on one page.

Labels come from closed sets and stable names (namespace, pvc, policy, repository, driver, reason, controller), never
from run or snapshot names. What is a state is read from the caches at scrape (`orchestrator.observe.state`): it is
right after a restart, and goes with its object. Only what happens is counted here. Nothing here may hold a number
that the cluster or the repository already holds.
"""

from __future__ import annotations

import logging
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

from orchestrator.observe.state import (
    MoverSample,
    PointSample,
    QueueSample,
    RepositorySample,
    RpoCollector,
    RpoSample,
    SnapshotSample,
    Source,
    Sources,
    StateCollector,
    guarded,
)

log = logging.getLogger(__name__)

Stage = Literal["snapshot", "diff", "copy", "commit", "total"]
Kind = Literal["volume", "allocated", "changed", "read", "uploaded"]
Result = Literal["completed", "failed", "cancelled"]

DURATIONS_S = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 28800)
RECONCILE_S = (0.005, 0.02, 0.1, 0.5, 2, 10, 60)


class Metrics:
    """All counters of one process, and the collectors that read state at scrape. One instance, made by `app`."""

    def __init__(self, sources: Sources | None = None, *, version: str = "") -> None:
        """Register everything in a registry of its own, so that tests and several controllers don't collide."""
        self.registry = CollectorRegistry(auto_describe=True)
        sources = guarded(sources or Sources(), self._source_failed)
        self.registry.register(RpoCollector(sources.rpo))
        self.registry.register(StateCollector(sources))
        ProcessCollector(registry=self.registry)
        self._build(version)
        self._make_run_metrics()
        self._make_engine_metrics()

    def _build(self, version: str) -> None:
        build = Gauge(
            "tidemark_build_info",
            "Always 1; the labels say which build runs. Which version is this?",
            ["version"],
            registry=self.registry,
        )
        build.labels(version or "unknown").set(1)

    def _make_run_metrics(self) -> None:
        registry = self.registry
        self.backups = Counter(
            "tidemark_backups",
            "Backups (runs) that ended. How often do the runs of a policy fail? policy is empty without one.",
            ["policy", "namespace", "result"],
            registry=registry,
        )
        self.backup_duration = Histogram(
            "tidemark_backup_duration_seconds",
            "Seconds that a stage of a recovery point took (phase=total: all of it). Where does the time go?",
            ["phase"],
            buckets=DURATIONS_S,
            registry=registry,
        )
        self.backup_bytes = Counter(
            "tidemark_backup_bytes",
            "Bytes of completed recovery points, by kind. How much is read and stored for how much of volume?",
            ["kind"],
            registry=registry,
        )
        self.cbt_fallback = Counter(
            "tidemark_cbt_fallback",
            "Recovery points that could not be the delta that was wanted. Which driver makes us read more, and why?",
            ["driver", "reason"],
            registry=registry,
        )
        self.slots_missed = Counter(
            "tidemark_slots_missed",
            "Scheduled slots that passed with nobody to make them. Was the controller away, or too slow?",
            ["namespace", "policy"],
            registry=registry,
        )
        self.restores = Counter(
            "tidemark_restores",
            "Restores that ended. Do restores work?",
            ["namespace", "result"],
            registry=registry,
        )
        self.restore_duration = Histogram(
            "tidemark_restore_duration_seconds",
            "Seconds from a restore's start to the volume being handed over. How long until I have my data back?",
            [],
            buckets=DURATIONS_S,
            registry=registry,
        )
        self.verifications = Counter(
            "tidemark_verifications",
            "Checks of stored recovery points that ended (result ok or damaged). Is what is stored readable?",
            ["repository", "result"],
            registry=registry,
        )
        self.maintenance_runs = Counter(
            "tidemark_maintenance_runs",
            "Repository sweeps that ended. Does maintenance work?",
            ["repository", "result"],
            registry=registry,
        )

    def _make_engine_metrics(self) -> None:
        registry = self.registry
        self.reconcile_errors = Counter(
            "tidemark_reconcile_errors",
            "Reconciles that ended in an error. What keeps going wrong? The reason is the runbook's anchor.",
            ["controller", "reason"],
            registry=registry,
        )
        self.reconcile_duration = Histogram(
            "tidemark_reconcile_duration_seconds",
            "Seconds that one reconcile took, by outcome (done, requeue, error). Is a controller slow?",
            ["controller", "outcome"],
            buckets=RECONCILE_S,
            registry=registry,
        )
        self.mover_attempts = Counter(
            "tidemark_mover_attempts",
            "Mover pods that ended, by task (backup, restore, maintain, verify). Do movers die and get retried?",
            ["task", "result"],
            registry=registry,
        )
        self.scrape_errors = Counter(
            "tidemark_scrape_errors",
            "Scrapes for which a part of this page could not be read from the caches. Is what you see complete?",
            ["source"],
            registry=registry,
        )
        self.loop_lag = Gauge(
            "tidemark_event_loop_lag_seconds",
            "Seconds by which the event loop was late at its last check. Does something block the controller?",
            [],
            registry=registry,
        )

    def reconciled(self, controller: str, seconds: float, outcome: str) -> None:
        """Count one reconcile; outcome is done, requeue or error."""
        self.reconcile_duration.labels(controller, outcome).observe(seconds)

    def reconcile_error(self, controller: str, reason: str) -> None:
        """Count one reconcile that ended in an error."""
        self.reconcile_errors.labels(controller, reason).inc()

    def backup_ended(self, namespace: str, policy: str, result: Result) -> None:
        """Count one Backup that reached its end; `policy` is empty for an inline selection."""
        self.backups.labels(policy, namespace, result).inc()

    def point_stage(self, stage: Stage, seconds: float) -> None:
        """Record how long one stage of a recovery point took."""
        self.backup_duration.labels(stage).observe(max(seconds, 0.0))

    def point_bytes(self, kind: Kind, count: int) -> None:
        """Count bytes of a completed recovery point."""
        self.backup_bytes.labels(kind).inc(max(count, 0))

    def fallback(self, driver: str, reason: str) -> None:
        """Count a recovery point that was not the delta that was wanted."""
        self.cbt_fallback.labels(driver, reason).inc()

    def slots_were_missed(self, namespace: str, policy: str, count: int) -> None:
        """Count scheduled slots that nobody made."""
        self.slots_missed.labels(namespace, policy).inc(max(count, 0))

    def restore_ended(self, namespace: str, result: Result, seconds: float) -> None:
        """Count one Restore that reached its end; only completed ones say how long a restore takes."""
        self.restores.labels(namespace, result).inc()
        if result == "completed":
            self.restore_duration.observe(max(seconds, 0.0))

    def mover_ended(self, task: str, result: str) -> None:
        """Count one mover pod that ended."""
        self.mover_attempts.labels(task, result).inc()

    def verified(self, repository: str, result: Literal["ok", "damaged", "failed"]) -> None:
        """Count one verification that ended."""
        self.verifications.labels(repository, result).inc()

    def maintained(self, repository: str, result: Literal["completed", "failed"]) -> None:
        """Count one repository sweep that ended."""
        self.maintenance_runs.labels(repository, result).inc()

    def loop_lagged(self, seconds: float) -> None:
        """Record how late the event loop was."""
        self.loop_lag.set(max(seconds, 0.0))

    def _source_failed(self, source: str, error: Exception) -> None:
        log.error("the metrics of %s could not be read", source, exc_info=error)
        self.scrape_errors.labels(source).inc()

    def forget_policy(self, namespace: str, policy: str) -> None:
        """Drop the counters of a policy that is gone. Idempotent."""
        for result in ("completed", "failed", "cancelled"):
            self.backups.remove(policy, namespace, result)
        self.slots_missed.remove(namespace, policy)

    def forget_namespace(self, namespace: str) -> None:
        """Drop the counters of a namespace that is gone. Idempotent."""
        for result in ("completed", "failed", "cancelled"):
            self.restores.remove(namespace, result)
            self.backups.remove("", namespace, result)

    def forget_repository(self, repository: str) -> None:
        """Drop the counters of a repository that is gone. Idempotent."""
        for result in ("ok", "damaged", "failed", "completed"):
            self.verifications.remove(repository, result)
            self.maintenance_runs.remove(repository, result)


__all__ = [
    "Kind",
    "Metrics",
    "MoverSample",
    "PointSample",
    "QueueSample",
    "RepositorySample",
    "Result",
    "RpoCollector",
    "RpoSample",
    "SnapshotSample",
    "Source",
    "Sources",
    "Stage",
    "StateCollector",
]
