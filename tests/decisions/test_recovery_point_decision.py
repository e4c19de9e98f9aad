"""A recovery point's life: each row of it, and that any way through it, crashes included, comes to a clean end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, assert_never

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.api.foreign.core import (
    CSISource,
    ObjectReference,
    PersistentVolume,
    PersistentVolumeClaim,
    PVCSpec,
    PVCStatus,
    PVSpec,
)
from orchestrator.api.foreign.snapshot import (
    ANNOTATION_DEFAULT_CLASS,
    ContentSource,
    SnapshotError,
    VolumeSnapshot,
    VolumeSnapshotClass,
    VolumeSnapshotContent,
    VolumeSnapshotContentSpec,
    VolumeSnapshotContentStatus,
    VolumeSnapshotStatus,
)
from orchestrator.api.meta import Condition, ObjectMeta
from orchestrator.api.mover import MoverOutcome, Progress
from orchestrator.api.tidemark.backup_policy import VolumeOptions
from orchestrator.api.tidemark.fields import FINALIZER, LABEL_POINT_UID
from orchestrator.api.tidemark.recovery_point import (
    FINAL_PHASES,
    TRANSITIONS,
    PointBase,
    PointPhase,
    RecoveryPoint,
    RecoveryPointSpec,
    RecoveryPointStatus,
)
from orchestrator.decisions import recovery_point as d
from orchestrator.decisions import stall
from orchestrator.decisions.recovery_point import Bounds, MoverSeen, RecoveryPointSeen, decide, leftover

pytestmark = pytest.mark.quick

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
BOUNDS = Bounds(snapshot_timeout_s=600, clone_timeout_s=600, mover_attempts=3, finalizer_bound_s=300)
DRIVER = "csi.example.com"
Phase = PointPhase


def point(
    phase: PointPhase = Phase.PENDING, *, spec: dict[str, Any] | None = None, meta: dict[str, Any] | None = None,
    **status: Any,
) -> RecoveryPoint:  # fmt: skip
    told: dict[str, Any] = {"phase": phase}
    if phase is not Phase.PENDING:
        told |= {"start_time": NOW, "snapshot_uid": "uid-vs", "snapshot_name": "tidemark-uid-rp", "driver": DRIVER}
    return RecoveryPoint(
        metadata=ObjectMeta(
            **{
                "name": "rp",
                "namespace": "shop",
                "uid": "uid-rp",
                "finalizers": (FINALIZER,),
                "creation_timestamp": NOW,
                **(meta or {}),
            }
        ),
        spec=RecoveryPointSpec(**{"pvc_name": "db", "pvc_uid": "uid-pvc", "repository": "main", **(spec or {})}),
        status=RecoveryPointStatus(**{**told, **status}),
    )


def claim(**changes: Any) -> PersistentVolumeClaim:
    base = PersistentVolumeClaim(
        metadata=ObjectMeta(name="db", namespace="shop", uid="uid-pvc"),
        spec=PVCSpec(volume_name="pv"),
        status=PVCStatus(phase="Bound"),
    )
    return msgspec.structs.replace(base, **changes)


VOLUME = PersistentVolume(
    metadata=ObjectMeta(name="pv"), spec=PVSpec(csi=CSISource(driver=DRIVER, volume_handle="vol-1"))
)


def snapshot_class(name: str, *, driver: str = DRIVER, default: bool = False) -> VolumeSnapshotClass:
    marks = {ANNOTATION_DEFAULT_CLASS: "true"} if default else {}
    return VolumeSnapshotClass(metadata=ObjectMeta(name=name, annotations=marks), driver=driver)


def snapshot(*, bound: bool = True, ready: bool = False) -> VolumeSnapshot:
    status = VolumeSnapshotStatus(bound_volume_snapshot_content_name="content", ready_to_use=ready) if bound else None
    return VolumeSnapshot(metadata=ObjectMeta(name="tidemark-uid-rp", namespace="shop", uid="uid-vs"), status=status)


def content(
    *, claimed: bool = True, told: bool = True, ready: bool = True, error: str = "", handle: str = "snap-1"
) -> VolumeSnapshotContent:
    status = VolumeSnapshotContentStatus(
        snapshot_handle=handle,
        creation_time=1,
        ready_to_use=ready,
        error=SnapshotError(message=error) if error else None,
    )
    return VolumeSnapshotContent(
        metadata=ObjectMeta(name="content", labels={LABEL_POINT_UID: "uid-rp"} if claimed else {}),
        spec=VolumeSnapshotContentSpec(
            driver=DRIVER,
            deletion_policy="Retain" if claimed else "Delete",
            source=ContentSource(volume_handle="vol-1"),
            volume_snapshot_ref=ObjectReference(namespace="shop", name="tidemark-uid-rp", uid="uid-vs"),
        ),
        status=status if told else None,
    )


def seen(of: RecoveryPoint, **more: Any) -> RecoveryPointSeen:
    return RecoveryPointSeen(**{"point": of, "now": NOW, "bounds": BOUNDS, "siblings": (of,), **more})


def at_volume(of: RecoveryPoint, *classes: VolumeSnapshotClass, **more: Any) -> RecoveryPointSeen:
    return seen(of, **{"claim": claim(), "volume": VOLUME, "classes": classes, **more})


CLAIMED = {"content_name": "content", "snapshot_handle": "snap-1", "snapshot_time": NOW}
COPYING = {**CLAIMED, "granted_time": NOW, "planned_time": NOW, "intent": "uid-rp", "requested_mode": "delta"}


# Pending


def test_a_point_is_protected_before_anything_is_made_for_it() -> None:
    assert decide(at_volume(point(meta={"finalizers": ()}), snapshot_class("a"))) == d.Protect()


def test_the_class_is_the_one_asked_for_else_the_default_else_the_only_one() -> None:
    asked = point(spec={"options": VolumeOptions(snapshot_class_name="b")})
    two = (snapshot_class("a", default=True), snapshot_class("b"))
    assert decide(at_volume(asked, *two)) == d.TakeSnapshot("b")
    assert decide(at_volume(point(), *two)) == d.TakeSnapshot("a")
    assert decide(at_volume(point(), snapshot_class("b"))) == d.TakeSnapshot("b")


@pytest.mark.parametrize(
    ("options", "classes", "reason"),
    [
        ("nope", (snapshot_class("a"),), "UnknownSnapshotClass"),
        ("other", (snapshot_class("other", driver="x"),), "UnknownSnapshotClass"),
        (None, (snapshot_class("a"), snapshot_class("b")), "UnknownSnapshotClass"),
        (None, (snapshot_class("a", default=True), snapshot_class("b", default=True)), "UnknownSnapshotClass"),
        (None, (snapshot_class("other", driver="x"),), "NotCSI"),
    ],
)
def test_a_class_that_cannot_be_used_fails_the_point_and_says_what_to_do(
    options: str | None, classes: tuple[VolumeSnapshotClass, ...], reason: str
) -> None:
    step = decide(at_volume(point(spec={"options": VolumeOptions(snapshot_class_name=options)}), *classes))
    assert isinstance(step, d.Fail)
    assert step.reason == reason
    assert step.message.endswith(".")


def test_a_volume_that_is_not_there_bound_or_csi_gets_no_snapshot() -> None:
    other = claim(metadata=ObjectMeta(name="db", namespace="shop", uid="uid-new"))
    unbound = claim(status=PVCStatus(phase="Pending"), spec=PVCSpec())
    in_tree = PersistentVolume(metadata=ObjectMeta(name="pv"))
    gone = decide(at_volume(point(), claim=None))
    replaced = decide(at_volume(point(), claim=other))
    waiting = decide(at_volume(point(), claim=unbound, volume=None))
    late = decide(at_volume(point(), claim=unbound, volume=None, now=NOW + timedelta(seconds=601)))
    old = decide(at_volume(point(), volume=in_tree))
    assert [getattr(s, "reason", "") for s in (gone, replaced, waiting, late, old)] == [
        "VolumeGone", "VolumeGone", "VolumeNotBound", "VolumeNotBound", "NotCSI",
    ]  # fmt: skip
    assert isinstance(waiting, d.Wait)
    assert isinstance(late, d.Fail)


# Snapshotting


def test_a_bound_content_is_claimed_before_it_is_waited_for() -> None:
    bare = content(claimed=False, told=False)
    assert decide(seen(point(Phase.SNAPSHOTTING), snapshot=snapshot(), content=bare)) == d.ClaimSnapshot()


def test_a_content_that_somebody_set_back_to_delete_is_claimed_again() -> None:
    ours = content()
    taken_back = msgspec.structs.replace(ours, spec=msgspec.structs.replace(ours.spec, deletion_policy="Delete"))
    now = seen(point(Phase.SNAPSHOTTING, **CLAIMED, ready_time=NOW), snapshot=snapshot(ready=True), content=taken_back)
    assert decide(now) == d.ClaimSnapshot()


def test_handle_and_time_are_written_down_before_the_snapshot_is_ready() -> None:
    fresh = point(Phase.SNAPSHOTTING, content_name="content")
    assert decide(seen(fresh, snapshot=snapshot(), content=content(ready=False))) == d.ClaimSnapshot()
    known = point(Phase.SNAPSHOTTING, **CLAIMED)
    assert isinstance(decide(seen(known, snapshot=snapshot(), content=content(ready=False))), d.Wait)
    assert decide(seen(known, snapshot=snapshot(ready=True), content=content())) == d.ClaimSnapshot()


def test_a_snapshot_without_a_status_is_waited_for_and_never_used() -> None:
    known = point(Phase.SNAPSHOTTING, content_name="content")
    assert isinstance(decide(seen(known, snapshot=snapshot(bound=False), content=content(told=False))), d.Wait)
    assert isinstance(decide(seen(point(Phase.SNAPSHOTTING), snapshot=snapshot(bound=False))), d.Wait)


def test_an_error_of_the_driver_is_told_and_not_final_until_our_own_timeout() -> None:
    known = point(Phase.SNAPSHOTTING, **CLAIMED)
    ill = content(ready=False, error="pool is full")
    now = decide(seen(known, snapshot=snapshot(), content=ill))
    late = decide(seen(known, snapshot=snapshot(), content=ill, now=NOW + timedelta(seconds=601)))
    assert isinstance(now, d.Wait)
    assert (now.reason, now.message) == ("SnapshotError", "pool is full")
    assert isinstance(late, d.Fail)
    assert late.reason == "SnapshotTimeout"
    assert "pool is full" in late.message


def test_a_claimed_snapshot_outlives_the_tenants_object_and_an_unclaimed_one_does_not() -> None:
    known = point(Phase.SNAPSHOTTING, **CLAIMED)
    assert decide(seen(known, snapshot=None, content=content())) == d.ClaimSnapshot()
    lost = decide(seen(point(Phase.SNAPSHOTTING), snapshot=None))
    assert isinstance(lost, d.Fail)
    assert lost.reason == "SnapshotGone"


def test_a_point_without_a_repository_is_done_with_its_snapshot() -> None:
    only = point(Phase.SNAPSHOTTING, spec={"repository": None}, **CLAIMED, ready_time=NOW)
    assert decide(seen(only, snapshot=snapshot(ready=True), content=content())) == d.Complete()


# Planning and copying


def test_planning_chooses_then_plans_then_commits_when_nothing_is_to_be_copied() -> None:
    fresh = point(Phase.PLANNING, **CLAIMED)
    chosen = point(Phase.PLANNING, **CLAIMED, requested_mode="delta")
    empty = point(Phase.PLANNING, **CLAIMED, requested_mode="delta", planned_time=NOW)
    assert decide(seen(fresh, content=content())) == d.ChooseBase()
    assert decide(seen(chosen, content=content())) == d.PlanCopy()
    assert decide(seen(empty, content=content())) == d.Commit()


def test_a_content_that_went_or_holds_another_snapshot_ends_the_planning() -> None:
    for found in (None, content(handle="snap-2")):
        step = decide(seen(point(Phase.PLANNING, **CLAIMED), content=found))
        assert isinstance(step, d.Fail)
        assert step.reason == "SnapshotGone"


def test_nothing_is_made_before_a_slot_is_granted() -> None:
    assert isinstance(decide(seen(point(Phase.WAITING, **CLAIMED))), d.Wait)


def test_a_granted_point_is_rehomed_cloned_and_started_in_that_order() -> None:
    granted = point(Phase.COPYING, **COPYING)
    assert decide(seen(granted)) == d.Rehome()
    assert isinstance(decide(seen(granted, rehome_started=True)), d.Wait)
    assert decide(seen(granted, rehome_started=True, rehomed=True)) == d.Clone()
    assert decide(seen(granted, rehome_started=True, rehomed=True, cloned=True)) == d.StartMover(1)


def test_what_is_in_the_repository_counts_whatever_the_mover_said() -> None:
    for state in ("failed", "succeeded", "missing"):
        copied = point(Phase.COPYING, **COPYING, attempts=1)
        assert decide(seen(copied, mover=MoverSeen(state=state, attempt=1), committed=True)) == d.Record()


def test_a_mover_that_says_so_ends_the_point_and_one_that_was_killed_is_tried_again() -> None:
    copied = point(Phase.COPYING, **COPYING)
    final = MoverOutcome(ok=False, reason="DeviceTooSmall", message="too small", retryable=False)
    passing = MoverOutcome(ok=False, reason="StoreUnavailable", message="away", retryable=True)
    ended = decide(seen(copied, mover=MoverSeen("failed", 1, outcome=final, message="too small")))
    again = decide(seen(copied, mover=MoverSeen("failed", 1, outcome=passing, message="away")))
    killed = decide(seen(copied, mover=MoverSeen("failed", 1)))
    last = decide(seen(copied, mover=MoverSeen("failed", 3, outcome=passing, message="away")))
    assert ended == d.Fail(Phase.FAILED, "DeviceTooSmall", "too small")
    assert again == d.RetryMover("StoreUnavailable", "away")
    assert isinstance(killed, d.RetryMover)
    assert isinstance(last, d.Fail)
    assert last.reason == "StoreUnavailable"


def test_the_second_failure_waits_longer_than_the_first() -> None:
    def pause(attempts: int) -> float:
        failed = Condition(type=d.MOVER, status="False", last_transition_time=NOW)
        return d.retry_pause_s(seen(point(Phase.COPYING, **COPYING, attempts=attempts, conditions=(failed,))))

    assert pause(1) == 0.0
    assert 0 < pause(2) < pause(3) <= d.LONGEST_RETRY_S


def test_a_clone_that_does_not_come_up_gives_its_slot_back() -> None:
    granted = point(Phase.COPYING, **COPYING)
    late = NOW + timedelta(seconds=601)
    assert decide(seen(granted, mover=MoverSeen("pending", 1), now=late)) == d.ReleaseSlot()
    assert decide(seen(granted, rehome_started=True, now=late)) == d.ReleaseSlot()
    assert decide(seen(granted, mover=MoverSeen("running", 1), now=late)) == d.Follow()


def test_a_mover_that_comes_after_a_long_one_gets_its_own_time_to_come_up() -> None:
    failed = Condition(type=d.MOVER, status="False", last_transition_time=NOW + timedelta(hours=2))
    tried = point(Phase.COPYING, **COPYING, attempts=1, conditions=(failed,))
    soon, late = NOW + timedelta(hours=2, seconds=599), NOW + timedelta(hours=2, seconds=601)
    ready = {"rehome_started": True, "rehomed": True, "cloned": True}
    assert decide(seen(tried, **ready, now=soon)) == d.StartMover(2)
    assert decide(seen(tried, mover=MoverSeen("pending", 2), now=soon)) == d.Follow()
    assert decide(seen(tried, mover=MoverSeen("pending", 2), now=late)) == d.ReleaseSlot()


def test_a_mover_that_gets_nowhere_is_given_up_and_one_that_does_is_not() -> None:
    then, now = NOW, NOW + timedelta(seconds=1801)
    stuck = stall.sign(1, "running", Progress(stage="copying", done=5, total=9))
    moved = stall.sign(1, "running", Progress(stage="copying", done=6, total=9))
    silent = stall.sign(1, "running", None)
    copied = point(Phase.COPYING, **COPYING, attempts=1, conditions=stall.noted((), stuck, then, 1800))
    running = MoverSeen("running", 1)
    for sign in (stuck, silent):
        step = decide(seen(copied, mover=dataclasses.replace(running, sign=sign), now=now))
        assert isinstance(step, d.RetryMover)
        assert step.reason == "MoverStalled"
        assert "5 of 9 bytes" in step.message
    for mover in (running, dataclasses.replace(running, sign=moved)):
        assert decide(seen(copied, mover=mover, now=now)) == d.Follow()
    assert decide(seen(copied, mover=dataclasses.replace(running, sign=stuck), now=then)) == d.Follow()
    last = stall.sign(3, "running", None)
    tried = point(Phase.COPYING, **COPYING, attempts=3, conditions=stall.noted((), last, then, 1800))
    step = decide(seen(tried, mover=MoverSeen("running", 3, sign=last), now=now))
    assert isinstance(step, d.Fail)
    assert step.reason == "MoverStalled"


def test_a_mover_whose_job_somebody_deletes_is_seen_off() -> None:
    copied = point(Phase.COPYING, **COPYING, attempts=1)
    assert decide(seen(copied, mover=MoverSeen("running", 1, deleting=True))) == d.RemoveMover()


def test_the_repository_is_asked_only_when_a_mover_ended_or_vanished() -> None:
    fresh, tried = point(Phase.COPYING, **COPYING), point(Phase.COPYING, **COPYING, attempts=1)
    assert not d.asks_repository(fresh, MoverSeen())
    assert d.asks_repository(tried, MoverSeen())
    assert d.asks_repository(fresh, MoverSeen("failed"))
    assert not d.asks_repository(tried, MoverSeen("running"))


# Ends


@pytest.mark.parametrize("phase", [p for p in Phase if p not in FINAL_PHASES])
def test_cancel_prune_and_a_namespace_that_goes_end_work_in_every_phase(phase: PointPhase) -> None:
    for spec, gone in (({"cancel": True}, False), ({"prune": True}, False), ({}, True)):
        step = decide(seen(point(phase, spec=spec), namespace_gone=gone))
        assert isinstance(step, d.Fail)
        assert step.phase is Phase.CANCELLED
        assert Phase.CANCELLED in TRANSITIONS[phase]


@pytest.mark.parametrize("phase", list(Phase))
def test_a_deleted_point_is_torn_down_for_a_bounded_time_and_then_let_go(phase: PointPhase) -> None:
    going = point(phase, meta={"deletion_timestamp": NOW})
    gone = point(phase, meta={"deletion_timestamp": NOW, "finalizers": ()})
    assert decide(seen(going)) == d.TearDown(destroy_snapshot=True)
    assert decide(seen(going, now=NOW + timedelta(seconds=300))) == d.Release()
    assert decide(seen(gone)) == d.Done()


def test_a_failed_point_keeps_no_snapshot_and_the_newest_good_one_keeps_its_own() -> None:
    failed = point(Phase.FAILED, completion_time=NOW)
    good = point(Phase.COMPLETED, snapshot_kept=True, completion_time=NOW)
    assert decide(seen(failed)) == d.TearDown(destroy_snapshot=True)
    assert decide(seen(good)) == d.TearDown(destroy_snapshot=False)
    assert decide(seen(good, now=NOW + timedelta(seconds=301))) == d.Release()


def sibling(uid: str, sequence: int, phase: PointPhase = Phase.COMPLETED, **status: Any) -> RecoveryPoint:
    status.setdefault("snapshot_kept", phase is Phase.COMPLETED)
    return point(phase, meta={"uid": uid, "name": uid, "finalizers": ()}, sequence=sequence, **status)


def test_a_point_that_expires_does_not_cost_the_lasting_one_its_snapshot() -> None:
    lasting, older, passing = sibling("lasting", 2), sibling("older", 1), sibling("passing", 3)
    passing = msgspec.structs.replace(passing, spec=msgspec.structs.replace(passing.spec, expires=NOW))
    both = (older, lasting, passing)
    assert decide(seen(older, siblings=both)) == d.DropSnapshot()
    assert decide(seen(lasting, siblings=both)) == d.Done()
    assert decide(seen(passing, siblings=both)) == d.Done()


def test_a_snapshot_whose_destruction_was_cut_off_is_destroyed_again() -> None:
    given_up = sibling("given-up", 1, snapshot_kept=False)
    assert decide(seen(given_up, siblings=(given_up,))) == d.Done()
    assert decide(seen(given_up, siblings=(given_up,), snapshot_lingers=True)) == d.DropSnapshot()


def test_a_snapshot_goes_with_its_claim_unless_it_is_all_there_is() -> None:
    stored, only = sibling("stored", 1), sibling("only", 1)
    only = msgspec.structs.replace(only, spec=msgspec.structs.replace(only.spec, repository=None))
    assert decide(seen(stored, siblings=(stored,))) == d.Done()
    assert decide(seen(stored, siblings=(stored,), claim_gone=True)) == d.DropSnapshot()
    assert decide(seen(only, siblings=(only,), claim_gone=True)) == d.Done()


def test_older_snapshots_go_once_a_newer_point_is_good_and_no_work_in_flight_names_them() -> None:
    old, new = sibling("old", 1), sibling("new", 2)
    running = sibling("run", 3, Phase.PLANNING, base=PointBase(uid="old"))
    failed = sibling("bad", 3, Phase.FAILED)
    both = (old, new)
    assert decide(seen(old, siblings=both)) == d.DropSnapshot()
    assert decide(seen(new, siblings=both)) == d.Done()
    assert decide(seen(old, siblings=both, snapshots_kept=2)) == d.Done()
    assert decide(seen(old, siblings=(*both, running))) == d.Done()
    assert decide(seen(new, siblings=(*both, failed))) == d.Done()


def test_a_point_that_is_only_a_snapshot_keeps_it() -> None:
    def only(uid: str, sequence: int) -> RecoveryPoint:
        return point(
            Phase.COMPLETED, spec={"repository": None}, meta={"uid": uid, "finalizers": ()}, sequence=sequence,
            snapshot_kept=True,
        )  # fmt: skip

    old, new = only("old", 1), only("new", 2)
    assert decide(seen(old, siblings=(old, new))) == d.Done()


def test_a_request_to_prune_is_carried_out_when_the_point_is_at_rest() -> None:
    asked = point(Phase.COMPLETED, spec={"prune": True}, meta={"finalizers": ()}, snapshot_kept=True)
    assert decide(seen(asked)) == d.Prune()


def test_the_sweeper_leaves_work_in_flight_alone_and_knows_a_kept_snapshot() -> None:
    rest = {"meta": {"finalizers": ()}, "completion_time": NOW - timedelta(hours=1)}
    nothing = d.Leftover(transient=False, snapshot=False)
    assert leftover(point(Phase.COPYING), NOW, 60) == nothing
    assert leftover(point(Phase.COMPLETED, completion_time=NOW - timedelta(hours=1)), NOW, 60) == nothing
    kept = leftover(point(Phase.COMPLETED, snapshot_kept=True, **rest), NOW, 60)
    assert kept == d.Leftover(transient=True, snapshot=False)
    assert leftover(point(Phase.COMPLETED, **rest), NOW, 60) == d.Leftover(transient=True, snapshot=True)
    assert leftover(point(Phase.FAILED, **rest), NOW, 60) == d.Leftover(transient=True, snapshot=True)
    assert leftover(None, NOW, 60) == d.Leftover(transient=True, snapshot=True)


# Any way through it


Deed = Callable[["World"], None]


@dataclass
class World:
    """A cluster and a repository, as small as they can be. A crash is: not all deeds of a step are done."""

    point: RecoveryPoint
    now: datetime = NOW
    vs: bool = False
    vsc: str = ""
    """'' none, 'bound', 'told' (handle and time), 'ready'."""
    claimed: bool = False
    rehomed: str = ""
    clone: str = ""
    job: str = ""
    job_attempt: int = 0
    plan: bool = False
    manifest: bool = False
    closed: bool = False
    empty: bool = False
    kills: int = 0
    steps: list[str] = field(default_factory=list)

    def status(self, **changes: Any) -> None:
        old = self.point.status.phase
        new = msgspec.structs.replace(self.point.status, **changes)
        assert new.phase is old or new.phase in TRANSITIONS[old], f"{old} to {new.phase}"
        self.point = msgspec.structs.replace(self.point, status=new)

    def finalizers(self, *names: str) -> None:
        meta = msgspec.structs.replace(self.point.metadata, finalizers=names)
        self.point = msgspec.structs.replace(self.point, metadata=meta)

    def storage_moves(self) -> None:
        self.vsc = {"": "bound" if self.vs else "", "bound": "told", "told": "ready"}.get(self.vsc, self.vsc)
        self.rehomed = "ready" if self.rehomed else ""
        self.clone = "bound" if self.clone else ""

    def mover_moves(self) -> None:
        if self.job == "pending" and self.clone == "bound":
            self.job = "running"
        elif self.job == "running":
            self.job = "succeeded"
            self.manifest = self.manifest or not self.closed

    def mover_dies(self) -> None:
        """A killed pod; now and then just after its commit."""
        if self.job in ("pending", "running") and self.kills < 2:
            self.kills += 1
            self.manifest = self.manifest or (self.job == "running" and self.kills == 2 and not self.closed)
            self.job = "failed"

    def seen(self) -> RecoveryPointSeen:
        bound = self.vsc != ""
        vs = snapshot(bound=bound, ready=self.vsc == "ready") if self.vs else None
        vsc = content(claimed=self.claimed, told=self.vsc in ("told", "ready"), ready=self.vsc == "ready")
        named = bool(self.point.status.content_name) or (bound and self.vs)
        mover = MoverSeen(state=self.job or "missing", attempt=self.job_attempt)  # type: ignore[arg-type]
        asked = d.asks_repository(self.point, mover)
        return at_volume(
            self.point, snapshot_class("a"), now=self.now, snapshot=vs, content=vsc if bound and named else None,
            rehome_started=bool(self.rehomed), rehomed=self.rehomed == "ready", cloned=bool(self.clone), mover=mover,
            committed=asked and self.manifest, siblings=(self.point,),
        )  # fmt: skip

    def clear(self, *, snapshot_too: bool) -> bool:
        """One stage of the tear-down in order; True when nothing is left."""
        for name in ("job", "clone", "rehomed"):
            if getattr(self, name):
                setattr(self, name, "")
                return False
        if snapshot_too and (self.vs or self.vsc):
            self.vs, self.vsc = False, ""
            return False
        return True

    def deeds(self, step: d.Step) -> list[Deed]:
        """Return the single writes of a step, in the order in which the controller makes them."""
        now = self.now
        match step:
            case d.Done() | d.Wait() | d.Follow():
                return []
            case d.Protect():
                return [lambda w: w.finalizers(FINALIZER)]
            case d.TakeSnapshot():
                taken = {"phase": Phase.SNAPSHOTTING, "start_time": now, "snapshot_uid": "uid-vs"}
                return [lambda w: setattr(w, "vs", True), lambda w: w.status(**taken)]
            case d.ClaimSnapshot():
                return [lambda w: setattr(w, "claimed", True), lambda w: w.status(**w.facts())]
            case d.Complete():
                return [lambda w: w.status(phase=Phase.COMPLETED, completion_time=now, snapshot_kept=True)]
            case d.ChooseBase():
                return [lambda w: w.status(requested_mode="delta", sequence=1)]
            case d.PlanCopy():
                after = Phase.PLANNING if self.empty else Phase.WAITING
                planned = {"phase": after, "planned_time": now, "intent": "i"}
                return [lambda w: setattr(w, "plan", True), lambda w: w.status(**planned)]
            case d.Rehome():
                return [lambda w: setattr(w, "rehomed", "made")]
            case d.Clone():
                return [lambda w: setattr(w, "clone", "pending")]
            case d.StartMover(attempt):
                return [lambda w: w.start(attempt), lambda w: w.status(attempts=attempt)]
            case d.RetryMover():
                attempt = max(self.job_attempt, self.point.status.attempts)
                return [lambda w: w.status(attempts=attempt), lambda w: setattr(w, "job", "")]
            case d.ReleaseSlot():
                tries = self.point.status.attempts + 1
                back = {"phase": Phase.WAITING, "granted_time": None, "attempts": tries}
                return [lambda w: (w.clear(snapshot_too=False) and w.status(**back)) or None]
            case d.Commit():
                return [lambda w: setattr(w, "manifest", True), lambda w: w.recorded()]
            case d.Record():
                return [lambda w: w.recorded()]
            case d.Fail():
                return [lambda w: setattr(w, "closed", True), lambda w: w.ended(step)]
            case d.TearDown(destroy):
                return [lambda w: w.finalizers() if w.clear(snapshot_too=destroy) else None]
            case d.Release():
                return [lambda w: w.finalizers()]
            case d.DropSnapshot() | d.Prune():
                return []
            case _:
                assert_never(step)

    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = {"content_name": "content"}
        if self.vsc in ("told", "ready"):
            found |= {"snapshot_handle": "snap-1", "snapshot_time": NOW}
        if self.vsc == "ready":
            found |= {"ready_time": self.now}
            if self.point.spec.repository is not None:
                found |= {"phase": Phase.PLANNING}
        return found

    def start(self, attempt: int) -> None:
        if not self.job:
            self.job, self.job_attempt = "pending", attempt

    def recorded(self) -> None:
        assert self.manifest
        self.status(phase=Phase.COMPLETED, completion_time=self.now, snapshot_kept=True)

    def ended(self, step: d.Fail) -> None:
        if self.manifest:
            self.recorded()  # a mover was faster
        else:
            self.status(phase=step.phase, reason=step.reason, completion_time=self.now)

    def reconcile(self, deeds: int | None = None) -> None:
        """Decide and act; with `deeds`, the process dies after that many of them."""
        step = decide(self.seen())
        self.steps.append(type(step).__name__)
        for deed in self.deeds(step)[:deeds]:
            deed(self)

    def grant(self) -> None:
        if self.point.status.phase is Phase.WAITING:
            self.status(phase=Phase.COPYING, granted_time=self.now)

    @property
    def at_rest(self) -> bool:
        return self.point.status.phase in FINAL_PHASES and not self.point.metadata.finalizers


EVENTS = ("reconcile", "crash0", "crash1", "storage", "mover", "kill", "grant", "later", "cancel")


@settings(max_examples=150, deadline=None)
@given(
    way=st.lists(st.sampled_from(EVENTS), max_size=60),
    repository=st.booleans(),
    empty=st.booleans(),
    protected=st.booleans(),
)
def test_every_way_through_it_comes_to_a_clean_end(
    way: list[str], repository: bool, empty: bool, protected: bool
) -> None:
    spec = {} if repository else {"repository": None}
    world = World(point(spec=spec, meta={} if protected else {"finalizers": ()}), empty=empty)
    for event in way:
        match event:
            case "reconcile":
                world.reconcile()
            case "crash0" | "crash1":
                world.reconcile(int(event[-1]))
            case "storage":
                world.storage_moves()
            case "mover":
                world.mover_moves()
            case "kill":
                world.mover_dies()
            case "grant":
                world.grant()
            case "later":
                world.now += timedelta(seconds=31)
            case _:
                asked = msgspec.structs.replace(world.point.spec, cancel=True)
                world.point = msgspec.structs.replace(world.point, spec=asked)
    for _ in range(80):
        if world.at_rest:
            break
        world.now += timedelta(seconds=1)
        world.storage_moves()
        world.mover_moves()
        world.grant()
        world.reconcile()
    assert world.at_rest, world.steps
    assert not (world.job or world.clone or world.rehomed), world.steps
    good = world.point.status.phase is Phase.COMPLETED
    assert (world.vsc == "ready") == good
    assert world.manifest == (good and repository)
    assert good or world.point.spec.cancel or world.point.status.reason


def test_the_same_answer_comes_twice() -> None:
    once = at_volume(point(), snapshot_class("a"))
    assert decide(once) == decide(dataclasses.replace(once))
