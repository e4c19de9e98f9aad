"""Metrics are right after a restart, go with their object, and have a closed set of labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.observe.metrics import (
    Metrics,
    MoverSample,
    PointSample,
    QueueSample,
    RepositorySample,
    RpoSample,
    SnapshotSample,
    Sources,
)

pytestmark = pytest.mark.quick

SAMPLE = RpoSample(
    namespace="shop",
    pvc="data",
    policy="nightly",
    age_s=90.0,
    target_s=60.0,
    breached=True,
    last_timestamp=1_800_000_000.0,
    suspended=False,
)
LABELS = {"namespace": "shop", "pvc": "data", "policy": "nightly"}
CLOSED = {
    "namespace", "pvc", "policy", "repository", "driver", "reason", "controller", "phase", "kind", "result", "task",
    "outcome", "version", "le", "source",
}  # fmt: skip


def full() -> Metrics:
    """Return metrics with every family filled."""
    metrics = Metrics(
        Sources(
            rpo=lambda: [SAMPLE],
            points=lambda: [PointSample("shop", "nightly", "Completed", 3)],
            snapshots=lambda: [SnapshotSample("csi", 1)],
            repositories=lambda: [RepositorySample("main", True, 10, 2, 3, 1.0, False, 1.0, False, 0, 0, 0, 0)],
            movers=lambda: [MoverSample("backup", 1, 2)],
            queues=lambda: [QueueSample("backup", 0, 1.0)],
        ),
        version="1.2.3",
    )
    metrics.backup_ended("shop", "nightly", "completed")
    metrics.point_stage("copy", 3.0)
    metrics.point_bytes("read", 5)
    metrics.fallback("csi", "BaseSnapshotGone")
    metrics.slots_were_missed("shop", "nightly", 2)
    metrics.restore_ended("shop", "completed", 9.0)
    metrics.verified("main", "ok")
    metrics.maintained("main", "completed")
    metrics.reconciled("backup", 0.1, "done")
    metrics.reconcile_error("backup", "Conflict")
    metrics.mover_ended("backup", "completed")
    metrics.loop_lagged(0.1)
    metrics.scrape_errors.labels("rpo").inc()
    return metrics


def test_the_rpo_gauges_are_what_the_source_says_at_scrape() -> None:
    # given a source that changes between scrapes
    now: list[RpoSample] = []
    source: Iterable[RpoSample] = now
    metrics = Metrics(Sources(rpo=lambda: list(source)))
    read = metrics.registry.get_sample_value
    assert read("tidemark_rpo_seconds", LABELS) is None
    # when a volume appears
    now.append(SAMPLE)
    assert read("tidemark_rpo_seconds", LABELS) == 90.0
    assert read("tidemark_rpo_target_seconds", LABELS) == 60.0
    assert read("tidemark_rpo_breached", LABELS) == 1.0
    assert read("tidemark_last_recovery_point_timestamp_seconds", LABELS) == 1_800_000_000.0
    # when it goes, no series stays
    now.clear()
    assert b"tidemark_rpo_seconds{" not in generate_latest(metrics.registry)


def test_a_suspended_policy_goes_on_being_told() -> None:
    metrics = Metrics(Sources(rpo=lambda: [replace(SAMPLE, suspended=True)]))
    assert metrics.registry.get_sample_value("tidemark_rpo_seconds", LABELS) == 90.0
    labels = {"namespace": "shop", "policy": "nightly"}
    assert metrics.registry.get_sample_value("tidemark_policy_suspended", labels) == 1.0


def test_an_age_is_never_negative_and_what_is_not_known_is_absent() -> None:
    unknown = replace(SAMPLE, age_s=-5.0, target_s=None, breached=False, last_timestamp=None)
    read = Metrics(Sources(rpo=lambda: [unknown])).registry.get_sample_value
    assert read("tidemark_rpo_seconds", LABELS) == 0.0
    assert read("tidemark_rpo_target_seconds", LABELS) is None
    assert read("tidemark_rpo_breached", LABELS) is None
    assert read("tidemark_last_recovery_point_timestamp_seconds", LABELS) is None


def test_a_volume_named_twice_gives_one_series() -> None:
    metrics = Metrics(Sources(rpo=lambda: [SAMPLE, replace(SAMPLE, age_s=100.0)]))
    page = generate_latest(metrics.registry).decode()
    assert page.count("tidemark_rpo_seconds{") == 1


def test_making_the_metrics_calls_no_source() -> None:
    def early() -> Iterable[RpoSample]:
        raise AssertionError("the caches are not there yet")

    Metrics(Sources(rpo=early))


def test_labels_come_from_a_closed_set_and_help_asks_a_question() -> None:
    families = list(text_string_to_metric_families(generate_latest(full().registry).decode()))
    ours = [f for f in families if f.name.startswith("tidemark_")]
    assert len(ours) > 25
    for family in ours:
        assert family.samples, family.name
        for sample in family.samples:
            assert set(sample.labels) <= CLOSED, family.name
        if not family.name.endswith("_created"):
            assert "?" in family.documentation or "build" in family.name, family.name


def test_a_source_that_breaks_loses_its_own_samples_only_and_is_counted() -> None:
    """Without this, one bad object would hide every number, also those that would tell of it."""

    def breaks() -> Iterable[RpoSample]:
        yield SAMPLE
        raise ValueError("one bad policy")

    metrics = Metrics(Sources(rpo=breaks, snapshots=lambda: [SnapshotSample("csi", 1)]))
    read = metrics.registry.get_sample_value
    assert read("tidemark_snapshots_kept", {"driver": "csi"}) == 1.0
    generate_latest(metrics.registry)
    assert read("tidemark_rpo_seconds", LABELS) == 90.0
    errors = read("tidemark_scrape_errors_total", {"source": "rpo"})
    assert errors is not None
    assert errors >= 1


def test_the_counters_of_a_deleted_policy_go() -> None:
    metrics = full()
    metrics.forget_policy("shop", "nightly")
    metrics.forget_policy("shop", "nightly")
    page = generate_latest(metrics.registry).decode()
    assert "tidemark_backups_total{" not in page
    assert "tidemark_slots_missed_total{" not in page


def test_two_instances_do_not_collide() -> None:
    assert Metrics().registry is not Metrics().registry
