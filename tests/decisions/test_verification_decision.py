"""Every way in which a point that the cluster knows can stand after a verification."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from orchestrator.api.meta import Condition, ObjectMeta
from orchestrator.api.tidemark.backup_policy import BackupPolicy, BackupPolicySpec, Retention, Schedule
from orchestrator.api.tidemark.backup_repository import (
    BackupRepository,
    BackupRepositorySpec,
    BackupRepositoryStatus,
    Verify,
)
from orchestrator.api.tidemark.recovery_point import (
    PointManifest,
    PointPhase,
    PolicyRef,
    RecoveryPoint,
    RecoveryPointSpec,
    RecoveryPointStatus,
)
from orchestrator.decisions import backup_repository as due
from orchestrator.decisions.retention import explain
from orchestrator.decisions.verification import DAMAGED, Judged, Standing, condition_of, is_damaged, judge

pytestmark = pytest.mark.quick

SLOT = datetime(2026, 11, 19, tzinfo=UTC)
KEY, DIGEST = "n/ab/points/cd/000000000001-x", "d1"


def point(
    phase: PointPhase = PointPhase.COMPLETED,
    ended: datetime = SLOT - timedelta(hours=1),
    damaged: str = "",
    prune: bool = False,
    manifest: bool = True,
) -> RecoveryPoint:
    return RecoveryPoint(
        metadata=ObjectMeta(name="p", namespace="shop", uid="u"),
        spec=RecoveryPointSpec(pvc_name="db", pvc_uid="c", repository="main", prune=prune),
        status=RecoveryPointStatus(
            phase=phase,
            completion_time=ended,
            manifest=PointManifest(key=KEY, digest=DIGEST) if manifest else None,
            conditions=(Condition(type=DAMAGED, status=damaged),) if damaged else (),
        ),
    )


@pytest.mark.parametrize(
    ("seen", "digests", "hurt", "whole", "standing"),
    [
        (point(), {KEY: DIGEST}, {}, True, Standing.SOUND),
        (point(), {KEY: DIGEST}, {KEY: ("x is missing", 3)}, True, Standing.DAMAGED),
        (point(), {}, {KEY: ("altered", 0)}, True, Standing.DAMAGED),
        (point(), {KEY: "d2"}, {}, True, Standing.MISSING),
        (point(), {}, {}, True, Standing.MISSING),
        # completed after the slot: the run may not have seen it
        (point(ended=SLOT), {}, {}, True, Standing.UNSEEN),
        (point(ended=SLOT), {KEY: DIGEST}, {}, True, Standing.SOUND),
        # more points are hurt than the result names
        (point(), {KEY: DIGEST}, {}, False, Standing.UNSEEN),
        (point(PointPhase.COPYING), {}, {}, True, Standing.UNSEEN),
        (point(prune=True), {}, {}, True, Standing.UNSEEN),
        (point(manifest=False), {}, {}, True, Standing.UNSEEN),
    ],
)
def test_how_a_point_stands(
    seen: RecoveryPoint, digests: dict[str, str], hurt: dict[str, tuple[str, int]], whole: bool, standing: Standing
) -> None:
    judged = judge(seen, digests, hurt, whole=whole, slot=SLOT)
    assert judged.standing is standing
    assert len(judged.message) <= 512
    assert bool(judged.message) == (standing in (Standing.DAMAGED, Standing.MISSING))


@pytest.mark.parametrize(
    ("before", "standing", "after"),
    [
        ("", Standing.SOUND, None),
        ("False", Standing.SOUND, None),
        ("True", Standing.SOUND, "False"),
        ("True", Standing.UNSEEN, None),
        ("", Standing.DAMAGED, "True"),
        ("False", Standing.DAMAGED, "True"),
        ("", Standing.MISSING, "True"),
    ],
)
def test_what_becomes_of_the_condition(before: str, standing: Standing, after: str | None) -> None:
    change = condition_of(point(damaged=before), Judged(standing, "Damaged", "words"))
    assert (change.status if change is not None else None) == after
    assert is_damaged(point(damaged=before)) == (before == "True")


def repository(verify: Verify, **status: Any) -> BackupRepository:
    return BackupRepository(
        metadata=ObjectMeta(name="main", uid="u", creation_timestamp=SLOT),
        spec=BackupRepositorySpec(
            url="file:///x",
            encryption_secret="k",
            allowed_namespaces=("*",),
            verify=verify,
        ),
        status=BackupRepositoryStatus(repository_id="r", **status),
    )


def test_when_a_verification_is_due_and_overdue() -> None:
    weekly = repository(Verify())
    assert due.verify_due(weekly, SLOT + timedelta(hours=1)) is None
    slot = due.verify_due(weekly, SLOT + timedelta(days=8))
    assert slot == SLOT + timedelta(days=7)
    assert due.verify_due(msgspec.structs.replace(weekly, status=BackupRepositoryStatus()), slot) is None
    done = repository(Verify(), last_verification_slot=slot)
    assert due.verify_due(done, SLOT + timedelta(days=8)) is None
    assert not due.verification_overdue(weekly, SLOT + timedelta(days=14))
    assert due.verification_overdue(weekly, SLOT + timedelta(days=22))
    nightly = repository(Verify(schedule=Schedule(cron="30 2 * * *", time_zone="Europe/Oslo"), suspend=True))
    assert due.verify_due(nightly, SLOT + timedelta(days=8)) is None
    assert due.verification_overdue(nightly, SLOT + timedelta(days=80)) is False
    nightly = msgspec.structs.replace(
        nightly, spec=msgspec.structs.replace(nightly.spec, verify=Verify(schedule=Schedule(cron="30 2 * * *")))
    )
    assert due.verify_due(nightly, SLOT + timedelta(hours=3)) == SLOT + timedelta(hours=2, minutes=30)
    bad = repository(Verify(schedule=Schedule(cron="never")))
    assert due.verification_overdue(bad, SLOT + timedelta(days=80)) is None


def test_a_damaged_point_neither_takes_a_sound_ones_place_nor_goes_because_of_it() -> None:
    policy = BackupPolicy(
        metadata=ObjectMeta(name="all", namespace="shop", uid="p"),
        spec=BackupPolicySpec(retention=Retention(keep_last=2)),
    )

    def made(number: int, damaged: bool) -> RecoveryPoint:
        one = point(damaged="True" if damaged else "")
        return msgspec.structs.replace(
            one,
            metadata=ObjectMeta(name=f"p{number}", namespace="shop", uid=f"u{number}"),
            spec=msgspec.structs.replace(one.spec, policy=PolicyRef(name="all", uid="p"), slot=SLOT),
            status=msgspec.structs.replace(one.status, sequence=number, snapshot_time=SLOT + timedelta(hours=number)),
        )

    def kept(*damaged: int) -> list[str]:
        points = [made(number, number in damaged) for number in range(1, 6)]
        (verdict,) = explain(policy, points, SLOT + timedelta(days=1)).values()
        return sorted(each.point.id for each in verdict.keep)

    assert kept() == ["u4", "u5"]
    assert kept(5) == ["u3", "u4", "u5"]
    assert kept(4, 5) == ["u2", "u3", "u4", "u5"]
    assert kept(2) == ["u4", "u5"], "what the rules drop goes, damaged or not"
    assert kept(2, 3, 4, 5) == ["u1", "u4", "u5"]
    assert kept(1, 2, 3, 4, 5) == ["u4", "u5"], "none is sound: the rules as ever"
