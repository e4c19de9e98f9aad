"""Hold what was claimed against what was seen."""

from __future__ import annotations

import contextlib
import itertools

from orchestrator.api.foreign.core import Event, Job, PersistentVolumeClaim
from orchestrator.api.foreign.snapshot import VolumeSnapshot
from orchestrator.api.tidemark.backup_policy import BackupPolicy
from orchestrator.api.tidemark.recovery_point import PointPhase, RecoveryPoint
from orchestrator.config import Settings
from orchestrator.decisions.retention import explain
from orchestrator.demo.report import Judged
from orchestrator.demo.script import CLAIMS, Script
from orchestrator.demo.stage import NAMESPACE, Waited
from orchestrator.demo.volumes import BLOCK
from policies.retention import Verdict


async def judge_retention(script: Script, policy_name: str) -> None:
    """Write down what retention kept and dropped, with its reasons."""
    policy = await script.client.get(BackupPolicy, policy_name, NAMESPACE)

    live: list[RecoveryPoint] = []
    verdicts: dict[str, Verdict] = {}

    async def settled() -> bool:
        nonlocal live, verdicts
        listed, _ = await script.client.list(RecoveryPoint, NAMESPACE)
        live = [p for p in listed if p.status.phase is PointPhase.COMPLETED]
        verdicts = explain(policy, live, script.stage.clock.now())
        return not any(v.drop for v in verdicts.values())

    await script.stage.until_told("points that retention drops to be gone", settled)
    names = {p.uid: p.name for p in live}
    for verdict in verdicts.values():
        for kept in verdict.keep:
            script.report.retention.append(Judged(point=names[kept.point.id], kept=True, reasons=list(kept.reasons)))
    gone = [p.name for p in script.points.values() if p.uid not in names]
    said: dict[str, str] = {}

    async def told() -> bool:
        events, _ = await script.client.list(Event, NAMESPACE)
        said.update((e.involved_object.name, e.message) for e in events if e.reason == "Dropped")
        return said.keys() >= set(gone)

    with contextlib.suppress(Waited):  # events are written after the deed
        await script.stage.until_told("the reasons of dropped points", told)
    for name in gone:
        script.report.retention.append(Judged(point=name, kept=False, reasons=[said.get(name, "")]))
    dropped = [j for j in script.report.retention if not j.kept]
    held = bool(dropped) and all(any(j.reasons) and j.reasons[0] for j in dropped)
    script.report.check("retention drops points, with reasons", held=held, detail=f"{len(dropped)} dropped")
    for judged in dropped[:3]:
        script.tell(f"  dropped {judged.point}: {'; '.join(judged.reasons)}")


def judge_costs(script: Script, chunk: int) -> None:
    """Hold what was read against what was changed."""
    points = script.of("archive")
    deltas = [p for p in points if p.status.mode == "delta"]
    script.report.check(
        "at least three increments of each volume",
        held=all(sum(1 for p in script.of(c) if p.status.mode == "delta") >= 3 for c in CLAIMS),
    )
    idle_read = [p.status.bytes.read for p in idle_increments(script) if p.status.bytes is not None]
    script.report.check(
        "an increment of a volume without change reads 0 bytes",
        held=bool(idle_read) and not any(idle_read),
        detail=str(idle_read),
    )
    for point in deltas:
        blocks = _changes_before(script, points, point)
        if not blocks or point.status.bytes is None:
            continue
        most = len({block * BLOCK // chunk for block in blocks}) * chunk
        script.report.check(
            "an increment reads at most the chunks that the changed blocks touch",
            held=point.status.bytes.read <= most,
            detail=f"{len(blocks)} blocks changed, read {point.status.bytes.read} of at most {most}",
        )


def idle_increments(script: Script) -> list[RecoveryPoint]:
    """Return the archive's increments before which nothing can have been rewritten."""
    points = script.of("archive")
    return [p for p in points if p.status.mode == "delta" and not _changes_before(script, points, p)]


def _changes_before(script: Script, points: list[RecoveryPoint], point: RecoveryPoint) -> list[int]:
    """Return the blocks that may have been rewritten between the point's base and the point.

    A snapshot is said to be as old as the second in which it was taken: a change in that second may be in it or not.
    """
    at = point.status.snapshot_time
    base = next((p for p in points if point.status.base is not None and p.name == point.status.base.point), None)
    since = base.status.snapshot_time if base is not None else None
    assert at is not None
    return [
        block
        for begun, ended, blocks in script.changed
        if begun.replace(microsecond=0) <= at and (since is None or ended >= since)
        for block in blocks
    ]


async def judge_leftovers(script: Script) -> None:
    """Nothing transient may be left in the controller's namespace."""
    namespace = Settings().namespace
    left: list[str] = []

    async def gone() -> bool:
        left.clear()
        for kind in (Job, PersistentVolumeClaim, VolumeSnapshot):
            listed, _ = await script.client.list(kind, namespace)
            left.extend(f"{kind.RESOURCE.kind} {obj.name}" for obj in listed)
        return not left

    with contextlib.suppress(Waited):
        await script.stage.until_told("what is transient to be gone", gone)
    script.report.check("no Job, clone or re-homed snapshot is left behind", held=not left, detail=", ".join(left))


def judge_rpo(script: Script) -> None:
    """The gauge must have risen and fallen."""
    readings = [r.seconds for r in script.report.rpo if r.pvc == "archive"]
    rises = any(b > a for a, b in itertools.pairwise(readings))
    falls = any(b < a for a, b in itertools.pairwise(readings))
    script.report.check("the RPO gauge rises and falls", held=rises and falls, detail=f"{len(readings)} readings")
