"""A run over volumes: what is chosen, when points are made, and how it ends."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from orchestrator.api.foreign.core import PersistentVolumeClaim, PVCSpec, PVCStatus
from orchestrator.api.meta import ObjectMeta
from orchestrator.api.tidemark.backup import Backup, BackupPhase, BackupSpec, BackupStatus, InlineSelection
from orchestrator.api.tidemark.backup_policy import BackupPolicy, BackupPolicySpec, VolumeSelector
from orchestrator.api.tidemark.recovery_point import PointPhase, RecoveryPoint, RecoveryPointSpec, RecoveryPointStatus
from orchestrator.decisions.backup import (
    BackupSeen,
    CancelPoints,
    CreatePoints,
    Done,
    Finish,
    Follow,
    Start,
    decide,
    expires,
    point_name,
    select,
)

pytestmark = pytest.mark.quick

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def claim(name: str, *, bound: bool = True, **labels: str) -> PersistentVolumeClaim:
    return PersistentVolumeClaim(
        metadata=ObjectMeta(name=name, namespace="shop", uid=f"uid-{name}", labels=labels),
        spec=PVCSpec(volume_name=f"pv-{name}" if bound else ""),
        status=PVCStatus(phase="Bound" if bound else "Pending"),
    )


POLICY = BackupPolicy(metadata=ObjectMeta(name="p", namespace="shop", uid="uid-p"), spec=BackupPolicySpec())


def backup(**spec: object) -> Backup:
    return Backup(
        metadata=ObjectMeta(name="b", namespace="shop", uid="uid-b", creation_timestamp=NOW),
        spec=msgspec.convert({"policy": "p", **spec}, BackupSpec),
    )


def seen(run: Backup, *claims: PersistentVolumeClaim, **changes: Any) -> BackupSeen:
    base = BackupSeen(
        backup=run,
        policy=POLICY,
        claims=claims,
        points={},
        busy=frozenset(),
        namespace_terminating=False,
        cluster_id="c",
    )
    return dataclasses.replace(base, **changes)


def started(*claims: PersistentVolumeClaim, **spec: object) -> Backup:
    run = backup(**spec)
    names = tuple(point_name(run, c, "c") for c in claims)
    return msgspec.structs.replace(
        run, status=BackupStatus(phase=BackupPhase.RUNNING, points=names, volumes=len(names))
    )


def point(run: Backup, of: PersistentVolumeClaim, phase: PointPhase, reason: str = "") -> dict[str, RecoveryPoint]:
    name = point_name(run, of, "c")
    return {
        name: RecoveryPoint(
            metadata=ObjectMeta(name=name, namespace="shop"),
            spec=RecoveryPointSpec(pvc_name=of.name, pvc_uid=of.uid, backup=run.name),
            status=RecoveryPointStatus(phase=phase, reason=reason),
        )
    }


def test_a_run_fixes_its_points_before_it_makes_any() -> None:
    a, b = claim("a"), claim("b")
    assert decide(seen(backup(), a, b)) == Start(
        (point_name(backup(), a, "c"), point_name(backup(), b, "c")), missing=()
    )


def test_a_run_of_no_volumes_fails_and_says_so() -> None:
    step = decide(seen(backup(), claim("unbound", bound=False)))
    assert isinstance(step, Finish)
    assert (step.phase, step.reason) == (BackupPhase.FAILED, "NoVolumes")


def test_a_run_of_a_policy_that_is_not_there_fails_with_its_name() -> None:
    step = decide(seen(backup(), claim("a"), policy=None))
    assert isinstance(step, Finish)
    assert step.reason == "PolicyNotFound"
    assert "'p'" in step.message


def test_a_busy_volume_waits_while_the_others_go_on() -> None:
    a, b = claim("a"), claim("b")
    step = decide(seen(started(a, b), a, b, busy=frozenset({a.uid})))
    assert isinstance(step, CreatePoints)
    assert [plan.claim.name for plan in step.plans] == ["b"]


def test_a_run_waits_for_a_volume_that_is_still_busy() -> None:
    a = claim("a")
    assert decide(seen(started(a), a, busy=frozenset({a.uid}))) == Follow()


def test_a_run_ends_completed_only_when_every_point_is() -> None:
    a, b = claim("a"), claim("b")
    run = started(a, b)
    good = point(run, a, PointPhase.COMPLETED)

    assert decide(seen(run, a, b, points=good | point(run, b, PointPhase.COPYING))) == Follow()
    ended = decide(seen(run, a, b, points=good | point(run, b, PointPhase.COMPLETED)))
    assert isinstance(ended, Finish)
    assert ended.phase is BackupPhase.COMPLETED


def test_partly_failed_is_a_reason_of_failed_and_names_the_first_failure() -> None:
    a, b = claim("a"), claim("b")
    run = started(a, b)
    points = point(run, a, PointPhase.COMPLETED) | point(run, b, PointPhase.FAILED, "NoCloneClass")
    step = decide(seen(run, a, b, points=points))
    assert isinstance(step, Finish)
    assert (step.phase, step.reason) == (BackupPhase.FAILED, "PartiallyFailed")
    assert "b: NoCloneClass" in step.message


def test_a_run_that_failed_for_one_reason_has_that_reason() -> None:
    a, b = claim("a"), claim("b")
    run = started(a, b)
    one = point(run, a, PointPhase.FAILED, "NoCloneClass")
    for other, reason in (("NoCloneClass", "NoCloneClass"), ("WrongKey", "Failed")):
        step = decide(seen(run, a, b, points=one | point(run, b, PointPhase.FAILED, other)))
        assert isinstance(step, Finish)
        assert step.reason == reason


def test_a_claim_that_vanished_before_its_point_was_made_is_not_silent() -> None:
    a, b = claim("a"), claim("b")
    run = started(a, b)
    step = decide(seen(run, a, points=point(run, a, PointPhase.COMPLETED)))
    assert isinstance(step, Finish)
    assert step.reason == "PartiallyFailed"
    assert "vanished" in step.message


def test_a_named_claim_that_does_not_exist_fails_the_run_in_the_end() -> None:
    a = claim("a")
    selection = msgspec.to_builtins(InlineSelection(volumes=VolumeSelector(names=("a", "ghost"))))
    run = msgspec.structs.replace(started(a, policy=None, selection=selection))
    step = decide(seen(run, a, points=point(run, a, PointPhase.COMPLETED)))
    assert isinstance(step, Finish)
    assert step.phase is BackupPhase.FAILED
    assert "ghost" in step.message


def test_cancelling_stops_what_runs_and_keeps_what_is_finished() -> None:
    a, b = claim("a"), claim("b")
    run = started(a, b, cancel=True)
    points = point(run, a, PointPhase.COMPLETED) | point(run, b, PointPhase.COPYING)
    assert decide(seen(run, a, b, points=points)) == CancelPoints((point_name(run, b, "c"),))
    after = points | point(run, b, PointPhase.CANCELLED)
    ended = decide(seen(run, a, b, points=after))
    assert isinstance(ended, Finish)
    assert ended.phase is BackupPhase.CANCELLED


def test_an_ended_run_stays_as_it_is() -> None:
    run = msgspec.structs.replace(backup(), status=BackupStatus(phase=BackupPhase.COMPLETED))
    assert decide(seen(run, claim("a"))) == Done()


def test_selection_takes_labels_names_and_excludes_together() -> None:
    claims = [claim("a", app="x"), claim("b", app="x"), claim("c", app="y")]
    chosen = select(VolumeSelector(match_labels={"app": "x"}, exclude_names=("b",)), claims)
    assert [c.name for c in chosen] == ["a"]


def test_on_demand_points_expire_only_when_asked() -> None:
    assert expires(backup(), NOW) is None
    assert expires(backup(expireAfter="1d"), NOW) == datetime(2026, 3, 2, tzinfo=UTC)
