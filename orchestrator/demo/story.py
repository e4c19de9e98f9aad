"""The story: protect, change, back up, drop, fall back, restore, lose everything, get it back.

Each act says what it shows, does it through the API only, and writes down whether its claims held.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import aiohttp

from orchestrator.api.foreign.cluster import ConfigMap
from orchestrator.api.foreign.core import Namespace, PersistentVolumeClaim
from orchestrator.api.meta import ObjectMeta
from orchestrator.api.quantity import format_size
from orchestrator.api.tidemark.backup import Backup, BackupPhase, BackupSpec
from orchestrator.api.tidemark.backup_policy import BackupPolicy
from orchestrator.api.tidemark.fields import ANNOTATION_INHERIT_POINTS
from orchestrator.api.tidemark.recovery_point import FINAL_PHASES, PointPhase, RecoveryPoint
from orchestrator.api.tidemark.restore import AsOf, Restore, RestorePhase, RestoreSource, RestoreSpec, RestoreTarget
from orchestrator.demo import install
from orchestrator.demo.judging import idle_increments, judge_costs, judge_leftovers, judge_retention, judge_rpo
from orchestrator.demo.report import Fallback, RestoreResult, point_entry
from orchestrator.demo.script import CLAIMS, Script
from orchestrator.demo.stage import CLASS, NAMESPACE, REPOSITORY
from orchestrator.demo.volumes import Archive, Database, Files, sha256_of
from orchestrator.repository.layout import default_chunk_size

POLICY = "hourly-in-seconds"
EVERY_S = 5
RPO_S = 20
FAULT = "cbt-precondition"


async def watch_points(script: Script) -> None:
    """Follow the recovery points: hash each snapshot's image while it is there, keep each completed record."""
    announced: set[str] = set()
    while True:
        listed, _ = await script.client.list(RecoveryPoint, NAMESPACE)
        for point in listed:
            handle = point.status.snapshot_handle
            if handle and point.status.ready_time and point.uid not in script.held:
                with contextlib.suppress(FileNotFoundError):  # gone since: one that isn't the volume's newest
                    script.held[point.uid] = await asyncio.to_thread(sha256_of, script.stage.snapshot_image(handle))
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
    """Scrape the RPO gauge once a second; like Prometheus, without an answer go on to the next one."""
    while True:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
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
    """Wait for the full and the increments, changing the volumes in between.

    On a busy machine a change may meet the next snapshot: then one more increment tells what no change costs.
    """
    for number in range(1, rounds + 1):
        await script.stage.until(f"scheduled backup {number}", functools.partial(_each_has, script, number))
        if number == rounds:
            break
        await asyncio.to_thread(files.change, images["files"], number)
        if number != 2:
            begun = script.stage.clock.now()
            blocks = await asyncio.to_thread(archive.change)
            script.changed.append((begun, script.stage.clock.now(), blocks))
    await script.stage.until("an increment without a change", lambda: idle_increments(script))


def _each_has(script: Script, count: int) -> bool:
    return all(len(script.of(claim)) >= count for claim in CLAIMS)


async def suspend(script: Script) -> None:
    """Stop the schedule and wait for what is under way."""
    await script.client.merge_patch(BackupPolicy, POLICY, NAMESPACE, {"spec": {"suspend": True}})
    over = (BackupPhase.COMPLETED, BackupPhase.FAILED, BackupPhase.CANCELLED)

    async def ended() -> bool:
        backups, _ = await script.client.list(Backup, NAMESPACE)
        return all(b.status.phase in over for b in backups)

    await script.stage.until_told("scheduled backups to end", ended)


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
        await judge_retention(script, POLICY)
        judge_costs(script, chunk=default_chunk_size(size))
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
