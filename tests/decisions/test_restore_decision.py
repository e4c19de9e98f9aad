"""A restore's steps against a small model of the world, cut at any of them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.api.foreign.core import PersistentVolume, PersistentVolumeClaim, PVCSpec, PVCStatus, PVSpec
from orchestrator.api.meta import Condition, ObjectMeta
from orchestrator.api.mover import MoverOutcome
from orchestrator.api.tidemark.fields import FINALIZER, LABEL_RESTORED_BY
from orchestrator.api.tidemark.restore import Restore, RestorePhase, RestoreSource, RestoreSpec, RestoreStatus
from orchestrator.decisions import restore as d
from orchestrator.decisions.stall import STALLED

pytestmark = pytest.mark.quick


def _claim(name: str, volume: str = "", labels: dict[str, str] | None = None) -> PersistentVolumeClaim:
    return PersistentVolumeClaim(
        metadata=ObjectMeta(name=name, uid=f"u-{name}", labels=labels or {}),
        spec=PVCSpec(volume_name=volume),
        status=PVCStatus(phase="Bound" if volume else "Pending"),
    )


@dataclass
class World:
    """A cluster as far as one restore sees it. `act` does what a step's code does; `storage` is the data."""

    status: RestoreStatus = field(default_factory=RestoreStatus)
    cancel: bool = False
    prime: bool = False
    old_volume: bool = False
    old_policy: str = "Delete"
    new_volume: bool = False
    new_policy: str = ""
    target: bool = False
    stranger: bool = False
    mover: str = "missing"
    attached: bool = False
    storage: bool = False
    finalizer: bool = True
    fail_movers: int = 0
    hang_movers: int = 0
    stalled: bool = False
    unsafe: bool = False
    """A mover whose end nobody saw may still write to the storage."""
    terminal: bool = False

    def seen(self) -> d.RestoreSeen:
        outcome = None
        if self.mover == "failed":
            outcome = MoverOutcome(ok=False, reason="Boom", message="boom", retryable=not self.terminal)
        if self.mover == "succeeded":
            outcome = MoverOutcome(ok=True, sha256="abc")
        annotations = {d.ANNOTATION_RECLAIM: "Delete"}
        target = None
        if self.stranger:
            target = _claim("t")
        elif self.target:
            target = _claim("t", "tm-r", {LABEL_RESTORED_BY: "r"})
        return d.RestoreSeen(
            restore=Restore(
                metadata=ObjectMeta(name="r", uid="r", finalizers=(FINALIZER,) if self.finalizer else ()),
                spec=RestoreSpec(source=RestoreSource(point="p"), cancel=self.cancel),
                status=self.status,
            ),
            prime=_claim("tm-r", "old") if self.prime else None,
            prime_volume=PersistentVolume(
                metadata=ObjectMeta(name="old"), spec=PVSpec(persistent_volume_reclaim_policy=self.old_policy)
            )
            if self.old_volume
            else None,
            new_volume=PersistentVolume(
                metadata=ObjectMeta(name="tm-r", annotations=annotations),
                spec=PVSpec(persistent_volume_reclaim_policy=self.new_policy),
            )
            if self.new_volume
            else None,
            target=target,
            attached=self.attached,
            mover=d.MoverSeen(self.mover, outcome, stalled=self.stalled),  # type: ignore[arg-type]
            children={},
            max_attempts=3,
        )

    def write(self, **changes: Any) -> None:
        self.status = msgspec.structs.replace(self.status, **changes)

    def act(self, step: d.Step, chance: random.Random) -> None:
        match step:
            case d.Resolve():
                self.write(manifest_key="k", target_pvc="t", target_namespace="n")
            case d.AwaitSlot():
                self.write(granted_time=None if chance.random() < 0.3 else _NOW)
            case d.CreatePrime():
                self.prime = self.old_volume = self.storage = True
                self.write(phase=RestorePhase.PROVISIONING)
            case d.StartMover():
                self.mover, self.attached = "running", True
                self.write(attempts=self.status.attempts + 1, phase=RestorePhase.FILLING)
            case d.Follow():
                if self.hang_movers:
                    self.stalled, self.hang_movers = True, self.hang_movers - 1
                elif self.fail_movers:
                    self.mover, self.fail_movers = "failed", self.fail_movers - 1
                else:
                    self.mover = "succeeded"
            case d.RemoveMover():
                if self.stalled:
                    gone = Condition(type=d.MOVER, status="False", reason=STALLED, message="Attempt")
                    self.write(conditions=(gone,))
                    self.unsafe = True
                if chance.random() < 0.7:  # cut off between the two
                    self.mover, self.stalled = "missing", False
            case d.StartOver():
                self.mover, self.stalled = "missing", False
                self.prime = self.old_volume = self.storage = self.unsafe = False
                if chance.random() < 0.7:
                    self.write(conditions=(Condition(type=d.MOVER, status="Unknown", reason="StartedOver"),))
            case d.RecordFilled():
                self.write(filled=True, volume="old")
            case d.AwaitDetach():
                self.attached = False
            case d.SaveVolume():
                assert not self.unsafe
                self.old_policy = "Retain"
                if chance.random() < 0.8:  # a crash between the patch and the status
                    self.write(phase=RestorePhase.HANDING_OVER, saved_volume="{}")
            case d.RemovePrime():
                assert self.old_policy == "Retain"
                assert self.status.saved_volume
                self.prime = False
            case d.RemoveOldVolume():
                assert not self.prime
                assert self.old_policy == "Retain"
                self.old_volume = False
            case d.CreateVolume():
                assert not self.old_volume
                self.new_volume, self.new_policy = True, "Retain"
            case d.CreateClaim():
                assert self.new_volume
                self.target = True
            case d.PutBack():
                self.new_policy = "Delete"
            case d.Abort():
                if not self.status.reason:
                    self.write(reason=step.reason, message=step.message)
                    return
                assert not self.status.saved_volume or self.stranger
                self.mover, self.stalled = "missing", False
                if self.prime:
                    self.prime = self.old_volume = self.storage = False
                else:
                    self.write(phase=step.phase)
            case d.Finish():
                self.write(phase=step.phase, reason=step.reason)
            case d.Release():
                self.finalizer = False
            case _:
                raise AssertionError(step)


_NOW = datetime(2026, 1, 1, tzinfo=UTC)


def play(world: World, seed: int, cancel_at: int = -1) -> None:
    chance = random.Random(seed)
    for turn in range(200):
        if turn == cancel_at:
            world.cancel = True
        step = d.decide(world.seen())
        if isinstance(step, d.Done):
            return
        if chance.random() < 0.2 and not isinstance(step, d.SaveVolume):
            continue  # killed before it acted
        world.act(step, chance)
    raise AssertionError("it does not come to an end")


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_a_restore_ends_with_the_volume_in_the_tenants_hands(seed: int) -> None:
    world = World()
    play(world, seed)
    assert world.status.phase is RestorePhase.COMPLETED
    assert (world.target, world.new_volume, world.new_policy, world.storage) == (True, True, "Delete", True)
    assert not (world.prime or world.old_volume or world.finalizer)
    assert world.mover == "missing"


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 1 << 30), when=st.integers(0, 40))
def test_a_cancelled_restore_leaves_nothing_or_is_carried_to_its_end(seed: int, when: int) -> None:
    world = World()
    play(world, seed, cancel_at=when)
    if world.status.phase is RestorePhase.COMPLETED:
        assert world.target
    else:
        assert world.status.phase is RestorePhase.CANCELLED
        assert not (world.prime or world.old_volume or world.new_volume or world.target or world.storage)
    assert world.mover == "missing"


@given(seed=st.integers(0, 1000))
def test_movers_are_tried_again_and_then_it_fails_with_nothing_left(seed: int) -> None:
    again = World(fail_movers=2)
    play(again, seed)
    assert again.status.phase is RestorePhase.COMPLETED
    never = World(fail_movers=99)
    play(never, seed)
    assert (never.status.phase, never.status.reason) == (
        RestorePhase.FAILED,
        "Boom" if never.terminal else "MoverFailed",
    )
    assert not (never.prime or never.storage or never.target)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 1 << 30), hangs=st.integers(1, 9))
def test_a_volume_that_a_hung_mover_may_still_write_to_is_never_handed_over(seed: int, hangs: int) -> None:
    world = World(hang_movers=hangs)
    play(world, seed)
    assert world.mover == "missing"
    if hangs < 3:
        assert world.status.phase is RestorePhase.COMPLETED
        assert world.status.attempts == hangs + 1
    else:
        assert (world.status.phase, world.status.reason) == (RestorePhase.FAILED, STALLED)
        assert not (world.prime or world.storage or world.target)


def test_a_terminal_mover_is_not_tried_again() -> None:
    world = World(fail_movers=1, terminal=True)
    play(world, 1)
    assert (world.status.phase, world.status.reason, world.status.attempts) == (RestorePhase.FAILED, "Boom", 1)


def test_an_existing_claim_is_never_overwritten() -> None:
    world = World(stranger=True)
    play(world, 3)
    assert (world.status.phase, world.status.reason) == (RestorePhase.FAILED, "TargetExists")
    assert not (world.prime or world.storage)
