"""What the demonstration says of what it saw: on a slow machine too, where snapshots and changes meet."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import aiohttp
import msgspec
import pytest

from orchestrator.api.tidemark.recovery_point import RecoveryPoint
from orchestrator.demo.judging import idle_increments
from orchestrator.demo.programs import Program
from orchestrator.demo.report import Report, RpoReading
from orchestrator.demo.script import Script
from orchestrator.demo.stage import Stage
from orchestrator.demo.story import sample_rpo
from orchestrator.kube.client import Client
from tests.waiting import SHORT

pytestmark = pytest.mark.quick

NOON = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def point(number: int, taken: datetime) -> RecoveryPoint:
    """Return a completed point of the archive; its snapshot's time has no fractions, as Kubernetes writes it."""
    base = {"point": f"p{number - 1}"} if number else None
    found = {
        "metadata": {"name": f"p{number}", "namespace": "shop", "uid": f"u{number}"},
        "spec": {"pvcName": "archive", "pvcUid": "c"},
        "status": {
            "phase": "Completed", "mode": "delta" if number else "full", "sequence": number + 1, "base": base,
            "snapshotTime": taken.replace(microsecond=0).strftime("%Y-%m-%dT%H:%M:%SZ"),
        },
    }  # fmt: skip
    return msgspec.convert(found, RecoveryPoint)


class Staged(Stage):
    """A stage on which nothing runs; its gauge answers as told."""

    def __init__(self, *answers: Exception | list[RpoReading]) -> None:
        super().__init__(Path(), cast(Client, None), cast(Program, None), cast(Program, None), "")
        self.answers = list(answers)
        self.asked_in_vain = asyncio.Event()

    async def rpo(self) -> list[RpoReading]:
        if not self.answers:
            self.asked_in_vain.set()
            return []
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def script(*points: RecoveryPoint, stage: Stage | None = None) -> Script:
    """Return a script that saw these points."""
    found = Script(stage=stage or Staged(), report=Report(), tell=lambda _: None)
    found.points.update((p.uid, p) for p in points)
    return found


async def test_a_change_in_the_second_of_a_snapshot_may_be_in_it() -> None:
    """Its increment read what was changed: counted as one without a change, it would look like a fault."""
    at = NOON + timedelta(seconds=10, milliseconds=900)
    shown = script(point(0, NOON), point(1, at), point(2, NOON + timedelta(seconds=20)))
    shown.changed.append((at - timedelta(milliseconds=600), at - timedelta(milliseconds=500), [1, 2]))
    assert idle_increments(shown) == []
    later = point(3, NOON + timedelta(seconds=30))
    shown.points[later.uid] = later
    assert idle_increments(shown) == [later]


@pytest.mark.looptime
async def test_a_scrape_without_an_answer_does_not_end_the_demonstration() -> None:
    reading = RpoReading(at=NOON, namespace="shop", pvc="archive", policy="p", seconds=3.0)
    stage = Staged(TimeoutError(), aiohttp.ClientConnectionError(), [reading])
    shown = script(stage=stage)
    sampler = asyncio.create_task(sample_rpo(shown))
    async with asyncio.timeout(SHORT):
        await stage.asked_in_vain.wait()
    sampler.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sampler
    assert shown.report.rpo == [reading]
