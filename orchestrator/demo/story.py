"""The story: protect, change, back up, drop, fall back, restore, lose everything, get it back.

Each act says what it shows, does it through the API only, and writes down whether its claims held.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator.api.foreign.cluster import ConfigMap
from orchestrator.api.foreign.core import Event, Job, Namespace, PersistentVolumeClaim
from orchestrator.api.foreign.snapshot import VolumeSnapshot
from orchestrator.api.meta import ObjectMeta
from orchestrator.api.quantity import format_size
from orchestrator.api.tidemark.backup import Backup, BackupPhase, BackupSpec
from orchestrator.api.tidemark.backup_policy import BackupPolicy
from orchestrator.api.tidemark.fields import ANNOTATION_INHERIT_POINTS
from orchestrator.api.tidemark.recovery_point import FINAL_PHASES, PointPhase, RecoveryPoint
from orchestrator.api.tidemark.restore import AsOf, Restore, RestorePhase, RestoreSource, RestoreSpec, RestoreTarget
from orchestrator.config import Settings
from orchestrator.decisions.retention import explain
from orchestrator.demo import install
from orchestrator.demo.report import Fallback, Judged, Report, RestoreResult, point_entry
from orchestrator.demo.stage import CLASS, NAMESPACE, REPOSITORY, Stage, Waited
from orchestrator.demo.volumes import BLOCK, Archive, Database, Files, sha256_of

POLICY = "hourly-in-seconds"
EVERY_S = 5
RPO_S = 20
CLAIMS = ("files", "database", "archive")
FAULT = "cbt-precondition"
Teller = Callable[[str], None]


@dataclass
class Script:
    """What the acts share."""

    stage: Stage
    report: Report
    tell: Teller
    show: Teller = lambda _: None
    """Shows what is under way now, on a line that is overwritten."""
    points: dict[str, RecoveryPoint] = field(default_factory=dict)
    """Every point ever seen completed, by uid: dropped ones too."""
    held: dict[str, str] = field(default_factory=dict)
    """SHA-256 of what each point's snapshot held, by the point's uid."""
    changed: list[tuple[datetime, datetime, list[int]]] = field(default_factory=list)
    """Rewritten blocks of the archive: when that began, when it ended, which."""
    database: Database | None = None

    @property
    def client(self) -> Any:
        """Return the API client."""
        return self.stage.client

    def of(self, claim: str) -> list[RecoveryPoint]:
        """Return a claim's completed points, oldest first."""
        mine = [p for p in self.points.values() if p.spec.pvc_name == claim and p.status.snapshot_time is not None]
        return sorted(mine, key=lambda p: (p.status.sequence, p.status.snapshot_time))


async def watch_points(script: Script) -> None:
    """Follow the recovery points: hash each snapshot's image while it is there, keep each completed record."""
    announced: set[str] = set()
    while True:
        listed, _ = await script.client.list(RecoveryPoint, NAMESPACE)
        for point in listed:
            handle = point.status.snapshot_handle
            if handle and point.status.ready_time and point.uid not in script.held:
                image = script.stage.snapshot_image(handle)
                try:
                    script.held[point.uid] = await asyncio.to_thread(sha256_of, image)
                except FileNotFoundError:
                    continue
            if point.status.phase is PointPhase.COMPLETED:
                script.points[point.uid] = point
                if point.uid not in announced:
                    announced.add(point.uid)
                    script.tell(_line(point))
        script.show(", ".join(_under_way(p) for p in listed if p.status.phase not in FINAL_PHASES) or "waiting")
        await asyncio.sleep(0.1)


def _under_way(point: RecoveryPoint) -> str:
    status = point.status
    return f"{point.spec.pvc_name}: {status.phase.value.lower()} {status.progress}".rstrip()


def _line(point: RecoveryPoint) -> str:
    entry, status = point_entry(point), point.status
    sizes = {name: format_size(value) for name, value in entry["bytes"].items()}
    why = f" ({status.fallback_reason})" if status.fallback_reason else ""
    return (
        f"  {point.spec.pvc_name:9} {status.mode:9}{why} volume {sizes['volume']}, changed {sizes['changed']}, "
        f"read {sizes['read']}, uploaded {sizes['uploaded']}, {entry['seconds']['total']:.1f} s"
    )


async def sample_rpo(script: Script) -> None:
    """Scrape the RPO gauge once a second."""
    while True:
        script.report.rpo.extend(await script.stage.rpo())
        await asyncio.sleep(1.0)


async def write_database(script: Script) -> None:
    """Keep changing the database."""
    assert script.database is not None
    while True:
        await asyncio.to_thread(script.database.write)
        await asyncio.sleep(0.3)


async def make_volumes(script: Script, size: int, changes: float) -> tuple[Files, Archive, dict[str, Path]]:
    """Make the namespace, its three claims and what is in them."""
    await install.namespace(script.client, NAMESPACE)
    for name, mode, request in (
        ("files", "Filesystem", 64 << 20),
        ("database", "Block", 32 << 20),
        ("archive", "Block", size),
    ):
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": "shop"}},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "volumeMode": mode,
                "storageClassName": CLASS,
                "resources": {"requests": {"storage": str(request)}},
            },
        }
        await script.client.create_raw(PersistentVolumeClaim.RESOURCE, claim, PersistentVolumeClaim)
    images: dict[str, Path] = {}
    for name in CLAIMS:
        await script.stage.poll(
            f"claim {name} to be bound",
            PersistentVolumeClaim,
            name,
            lambda c: c is not None and c.bound,
            namespace=NAMESPACE,
        )
        images[name] = await script.stage.image(name)
    files, archive = Files(seed=1), Archive(images["archive"], size, changes, seed=2)
    script.database = Database(images["database"])
    await asyncio.to_thread(files.make, images["files"])
    await asyncio.to_thread(script.database.make)
    await asyncio.to_thread(archive.make)
    kind = "an ext4 filesystem" if files.ext4 else "a tar archive (no e2fsprogs here)"
    script.tell(f"volumes: files ({kind}), database (SQLite, being written), archive ({size >> 20} MiB, mostly empty)")
    return files, archive, images


async def protect(script: Script) -> None:
    """Create the policy."""
    body = {
        "apiVersion": BackupPolicy.RESOURCE.api_version,
        "kind": "BackupPolicy",
        "metadata": {"name": POLICY, "namespace": NAMESPACE},
        "spec": {
            "volumes": {"matchLabels": {"app": "shop"}},
            "schedule": {"every": f"{EVERY_S}s"},
            "objective": {"rpo": f"{RPO_S}s"},
            "retention": {"keepLast": 2},
            "repository": REPOSITORY,
        },
    }
    await script.client.create_raw(BackupPolicy.RESOURCE, body, BackupPolicy)
    script.tell(f"policy {POLICY}: every {EVERY_S} s, RPO {RPO_S} s, keep the last 2")


async def scheduled(script: Script, files: Files, archive: Archive, images: dict[str, Path], rounds: int = 4) -> None:
    """Wait for the full and the increments, changing the volumes in between."""
    for number in range(1, rounds + 1):
        await script.stage.until(f"scheduled backup {number}", functools.partial(_each_has, script, number))
        if number == rounds:
            break
        await asyncio.to_thread(files.change, images["files"], number)
        if number != 2:
            begun = script.stage.clock.now()
            blocks = await asyncio.to_thread(archive.change)
            script.changed.append((begun, script.stage.clock.now(), blocks))


def _each_has(script: Script, count: int) -> bool:
    return all(len(script.of(claim)) >= count for claim in CLAIMS)


async def suspend(script: Script) -> None:
    """Stop the schedule and wait for what is under way."""
    await script.client.merge_patch(BackupPolicy, POLICY, NAMESPACE, {"spec": {"suspend": True}})
    over = (BackupPhase.COMPLETED, BackupPhase.FAILED, BackupPhase.CANCELLED)
    async with asyncio.timeout(60):
        while True:
            backups, _ = await script.client.list(Backup, NAMESPACE)
            if all(b.status.phase in over for b in backups):
                return
            await asyncio.sleep(0.2)


async def on_demand(script: Script, name: str) -> Backup:
    """Create a Backup and wait for its end, as a person would with kubectl."""
    backup = Backup(metadata=ObjectMeta(name=name, namespace=NAMESPACE), spec=BackupSpec(policy=POLICY))
    await script.client.create(backup)
    over = (BackupPhase.COMPLETED, BackupPhase.FAILED, BackupPhase.CANCELLED)
    done = await script.stage.poll(
        f"Backup {name}", Backup, name, lambda b: b is not None and b.status.phase in over, namespace=NAMESPACE
    )
    assert done is not None
    held = done.status.phase is BackupPhase.COMPLETED
    script.report.check(f"on-demand Backup {name} completes", held=held, detail=done.status.message)
    await script.stage.until("its points", lambda: not held or _known(script, done.status.points))
    return done


def _known(script: Script, names: Iterable[str]) -> bool:
    return {p.name for p in script.points.values()}.issuperset(names)


async def broken_cbt(script: Script) -> None:
    """Break the CBT service; the next backup falls back, with its reason, and does not fail."""
    await set_fault(script, FAULT, on=True)
    try:
        done = await on_demand(script, "with-broken-cbt")
    finally:
        await set_fault(script, FAULT, on=False)
    fell = [p for p in script.points.values() if p.spec.backup == done.name and p.status.fallback_reason]
    for point in fell:
        script.report.fallbacks.append(
            Fallback(pvc=point.spec.pvc_name, point=point.name, reason=point.status.fallback_reason)
        )
    held = len(fell) == len(CLAIMS) and all(p.status.mode != "delta" for p in fell)
    script.report.check("a broken CBT service leads to a reasoned fallback of every volume", held=held)
    text = ", ".join(f"{p.spec.pvc_name}: {p.status.mode} because {p.status.fallback_reason}" for p in fell)
    script.tell(f"CBT broken on purpose -> {text or 'NO FALLBACK SEEN'}")


async def set_fault(script: Script, name: str, *, on: bool) -> None:
    """Switch a fault of the sandbox, through its ConfigMap."""
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "sandbox-faults", "namespace": "kube-system"},
        "data": {name: "on"} if on else {},
    }
    await script.client.apply(ConfigMap, body)
    await asyncio.sleep(0.5)


async def judge_retention(script: Script) -> None:
    """Write down what retention kept and dropped, with its reasons."""
    policy = await script.client.get(BackupPolicy, POLICY, NAMESPACE)

    async def settled() -> list[RecoveryPoint]:
        listed, _ = await script.client.list(RecoveryPoint, NAMESPACE)
        return [p for p in listed if p.status.phase is PointPhase.COMPLETED]

    async with asyncio.timeout(30):
        while True:
            live = await settled()
            verdicts = explain(policy, live, script.stage.clock.now())
            if not any(v.drop for v in verdicts.values()):
                break
            await asyncio.sleep(0.3)
    names = {p.uid: p.name for p in live}
    for verdict in verdicts.values():
        for kept in verdict.keep:
            script.report.retention.append(Judged(point=names[kept.point.id], kept=True, reasons=list(kept.reasons)))
    events, _ = await script.client.list(Event, NAMESPACE)
    said = {e.involved_object.name: e.message for e in events if e.reason == "Dropped"}
    for point in script.points.values():
        if point.uid not in names:
            script.report.retention.append(Judged(point=point.name, kept=False, reasons=[said.get(point.name, "")]))
    dropped = [j for j in script.report.retention if not j.kept]
    held = bool(dropped) and all(any(j.reasons) and j.reasons[0] for j in dropped)
    script.report.check("retention drops points, with reasons", held=held, detail=f"{len(dropped)} dropped")
    for judged in dropped[:3]:
        script.tell(f"  dropped {judged.point}: {'; '.join(judged.reasons)}")


async def restore_all(
    script: Script, files: Files, *, prefix: str, source: Callable[[str, RecoveryPoint], RestoreSource], label: str
) -> None:
    """Restore the newest point of each volume and compare it with what its snapshot held."""
    newest = {claim: script.of(claim)[-1] for claim in CLAIMS}
    begun = time.monotonic()
    for claim, point in newest.items():
        restore = Restore(
            metadata=ObjectMeta(name=f"{label}-{claim}", namespace=NAMESPACE),
            spec=RestoreSpec(source=source(claim, point), target=RestoreTarget(pvc_name=f"{prefix}{claim}")),
        )
        await script.client.create(restore)
    final = (RestorePhase.COMPLETED, RestorePhase.FAILED, RestorePhase.CANCELLED)
    for claim, point in newest.items():
        done = await script.stage.poll(
            f"restore of {claim}",
            Restore,
            f"{label}-{claim}",
            lambda r: r is not None and r.status.phase in final,
            namespace=NAMESPACE,
        )
        assert done is not None
        seconds = time.monotonic() - begun
        if done.status.phase is not RestorePhase.COMPLETED:
            script.report.check(f"restore of {claim} completes", held=False, detail=done.status.message)
            continue
        image = await script.stage.image(f"{prefix}{claim}")
        actual, expected = await asyncio.to_thread(sha256_of, image), script.held.get(point.uid, "unknown")
        check, sound = await asyncio.to_thread(_own_check, files, claim, image)
        identical = actual == expected
        script.report.restores.append(
            RestoreResult(
                pvc=claim,
                point=point.name,
                seconds=round(seconds, 3),
                sha256=actual,
                expected_sha256=expected,
                identical=identical,
                check=check,
            )
        )
        script.report.check(f"{label}: {claim} is identical to its snapshot", held=identical and sound, detail=check)
        script.tell(f"  {claim:9} {'identical' if identical else 'DIFFERENT'}  sha256 {actual[:16]}…  {check}")


def _own_check(files: Files, claim: str, image: Path) -> tuple[str, bool]:
    try:
        if claim == "files":
            return files.check(image), True
        if claim == "database":
            return Database.check(image), True
    except ValueError as error:
        return str(error), False
    return "", True


async def lose_and_recover(script: Script, files: Files) -> None:
    """Delete the namespace, make it again, and bring its volumes back from the repository."""
    before = await script.client.get(Namespace, NAMESPACE)
    await script.client.delete(Namespace, NAMESPACE, uid=before.uid)
    script.tell(f"namespace {NAMESPACE} is deleted: claims, volumes, snapshots and records are gone")
    await script.stage.poll(
        "the namespace to be gone", Namespace, NAMESPACE, lambda n: n is None or n.uid != before.uid
    )
    await install.namespace(script.client, NAMESPACE, {ANNOTATION_INHERIT_POINTS: before.uid})
    script.tell("namespace made again, with an admin's grant to read the old one's points")

    def source(claim: str, _: RecoveryPoint) -> RestoreSource:
        return RestoreSource(pvc=AsOf(pvc=claim, repository=REPOSITORY))

    await restore_all(script, files, prefix="", source=source, label="recover")


def judge_costs(script: Script, chunk: int) -> None:
    """Hold what was read against what was changed."""
    points = script.of("archive")
    deltas = [p for p in points if p.status.mode == "delta"]
    script.report.check(
        "at least three increments of each volume",
        held=all(sum(1 for p in script.of(c) if p.status.mode == "delta") >= 3 for c in CLAIMS),
    )
    idle = [p for p in deltas if not _changes_before(script, points, p)]
    idle_read = [p.status.bytes.read for p in idle if p.status.bytes is not None]
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


def _changes_before(script: Script, points: list[RecoveryPoint], point: RecoveryPoint) -> list[int]:
    """Return the blocks that may have been rewritten between the point's base and the point."""
    at = point.status.snapshot_time
    base = next((p for p in points if point.status.base is not None and p.name == point.status.base.point), None)
    since = base.status.snapshot_time if base is not None else None
    assert at is not None
    return [
        block
        for begun, ended, blocks in script.changed
        if begun <= at and (since is None or ended >= since)
        for block in blocks
    ]


async def judge_leftovers(script: Script) -> None:
    """Nothing transient may be left in the controller's namespace."""
    namespace = Settings().namespace
    left: list[str] = []
    for _ in range(100):
        left = []
        for kind in (Job, PersistentVolumeClaim, VolumeSnapshot):
            listed, _ = await script.client.list(kind, namespace)
            left += [f"{kind.RESOURCE.kind} {obj.name}" for obj in listed]
        if not left:
            break
        await asyncio.sleep(0.2)
    script.report.check("no Job, clone or re-homed snapshot is left behind", held=not left, detail=", ".join(left))


def judge_rpo(script: Script) -> None:
    """The gauge must have risen and fallen."""
    readings = [r.seconds for r in script.report.rpo if r.pvc == "archive"]
    rises = any(b > a for a, b in itertools.pairwise(readings))
    falls = any(b < a for a, b in itertools.pairwise(readings))
    script.report.check("the RPO gauge rises and falls", held=rises and falls, detail=f"{len(readings)} readings")


async def tell_story(script: Script, size: int, changes: float) -> None:
    """Play all acts."""
    files, archive, images = await make_volumes(script, size, changes)
    async with asyncio.TaskGroup() as group:
        writer = group.create_task(write_database(script), name="writer")
        watcher = group.create_task(watch_points(script), name="watcher")
        sampler = group.create_task(sample_rpo(script), name="sampler")
        await protect(script)
        await scheduled(script, files, archive, images)
        await suspend(script)
        script.tell("on demand: a Backup object, made by hand")
        await on_demand(script, "by-hand")
        await broken_cbt(script)
        await judge_retention(script)
        judge_costs(script, chunk=256 * 1024)
        writer.cancel()
        script.tell("restore every volume's newest point into new claims")

        def source(_: str, point: RecoveryPoint) -> RestoreSource:
            return RestoreSource(point=point.name)

        await restore_all(script, files, prefix="restored-", source=source, label="restore")
        watcher.cancel()
        await lose_and_recover(script, files)
        await judge_leftovers(script)
        sampler.cancel()
    judge_rpo(script)
    script.report.points = [point_entry(p) for claim in CLAIMS for p in script.of(claim)]


__all__ = ["Script", "Waited", "tell_story"]
