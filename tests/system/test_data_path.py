"""Damage, a full disk, maintenance and dying movers under a whole installation: nothing wrong is ever handed over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from orchestrator.api.foreign.core import Event, Job, PersistentVolumeClaim
from orchestrator.api.meta import ObjectMeta, condition
from orchestrator.api.tidemark import Backup, BackupPolicy, BackupRepository, RecoveryPoint, Restore
from orchestrator.api.tidemark.backup import BackupPhase
from orchestrator.api.tidemark.recovery_point import PointPhase
from orchestrator.api.tidemark.restore import RestorePhase, RestoreSpec
from orchestrator.demo import install
from tests.blocks.volumes import Volume, take, vault_at
from tests.mover.movers import Pod, end
from tests.system.world import SETTINGS, World, digest, world, write
from tests.waiting import LONG

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.system, pytest.mark.timeout(1500)]

Harm = Callable[[Path], None]
CHUNK = 256 * 1024
"""Four of those that such a volume is cut into."""
USED = 80
"""Chunks with content: more than a page's overlay holds, so that the leaf is an object of its own."""
SIZE = 24 << 20


def objects(found: World, part: str) -> set[Path]:
    """Return the repository's objects of one kind, of all namespaces."""
    root = Path(found.repository_url.removeprefix("file://"))
    return {p for p in root.rglob("*") if p.is_file() and f"/{part}/" in p.as_posix() and ".tmp" not in p.parts}


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in range(70, len(data), max(len(data) // 50, 1)):
        data[at] ^= 0x10
    path.chmod(0o600)
    path.write_bytes(data)


def deleted(path: Path) -> None:
    path.unlink()


async def protected(found: World, namespace: str, seed: int) -> tuple[Path, RecoveryPoint, dict[str, set[Path]]]:
    """Make a namespace with one volume and its first point; return the image, the point and its objects."""
    await install.namespace(found.client, namespace)
    image = await found.claim("data", namespace, size=SIZE)
    write(image, 0, random.Random(seed).randbytes(USED * CHUNK))
    await found.apply(BackupPolicy, "all", namespace, {"repository": "vault", "retention": {"keepLast": 10}})
    before = {part: objects(found, part) for part in ("packs", "maps", "points")}
    point = await backed_up(found, namespace, "first")
    return image, point, {part: objects(found, part) - known for part, known in before.items()}


async def backed_up(found: World, namespace: str, name: str, **spec: object) -> RecoveryPoint:
    """Run a backup to its good end and return its point."""
    await found.backup(name, namespace, policy="all", **spec)
    done = await found.backup_ended(name, namespace)
    assert done.status.phase is BackupPhase.COMPLETED, done.status
    (point,) = [p for p in await found.points(namespace) if p.spec.backup == name]
    return point


async def restored(found: World, name: str, namespace: str, point: str) -> Restore:
    """Restore a point into a new claim named like the restore."""
    spec = msgspec.convert({"source": {"point": point}, "target": {"pvcName": name}}, RestoreSpec)
    await found.client.create(Restore(metadata=ObjectMeta(name=name, namespace=namespace), spec=spec))
    return await found.restore_ended(name, namespace)


async def said(found: World, namespace: str, reason: str) -> list[str]:
    events, _ = await found.client.list(Event, namespace)
    return [event.message for event in events if event.reason == reason]


@pytest.mark.parametrize("harm", [truncated, flipped, deleted], ids=lambda f: f.__name__)
async def test_a_base_whose_map_is_harmed_is_done_without_and_never_handed_over(installed: World, harm: Harm) -> None:
    found, namespace = installed, f"map-{harm.__name__}"
    image, first, made = await protected(found, namespace, seed=1)
    original = digest(image)
    root = min(made["maps"], key=lambda path: path.stat().st_size)  # one page with one child; times of both may tie
    leaves = made["maps"] - {root}
    assert leaves, made
    for path in leaves:
        harm(path)
    # a delta that needs the harmed leaf reads everything instead, and says why
    write(image, 3 * CHUNK, b"new" * 1000)
    write(image, 9 * CHUNK, bytes(CHUNK))
    for index in range(10, 80):
        write(image, index * CHUNK, random.Random(index).randbytes(512))
    expected = digest(image)
    second = await backed_up(found, namespace, "second")
    assert await found.restored_offline(second.uid) == expected
    assert (second.status.requested_mode, second.status.mode) == ("delta", "full"), second.status
    assert second.status.fallback_reason == "BaseIncomplete"
    assert second.status.base is None
    assert "can't be read" in second.status.message
    assert await said(found, namespace, "BaseIncomplete")
    # the next one is a delta again
    write(image, 0, b"later")
    third = await backed_up(found, namespace, "third")
    assert third.status.mode == "delta"
    assert await found.restored_offline(third.uid) == digest(image)
    # the harmed point hands over nothing
    ended = await restored(found, "harmed", namespace, first.name)
    assert (ended.status.phase, ended.status.reason) in {
        (RestorePhase.FAILED, "Damaged"),
        (RestorePhase.FAILED, "ObjectMissing"),
    }, ended.status
    assert any(path.name in ended.status.message for path in leaves), ended.status.message
    assert await found.client.find(PersistentVolumeClaim, "harmed", namespace) is None
    good = await restored(found, "good", namespace, second.name)
    assert good.status.phase is RestorePhase.COMPLETED, good.status
    assert digest(await found.image("good", namespace)) == good.status.sha256 == expected != original
    await found.settled(namespace, snapshots=1)


@pytest.mark.parametrize("harm", [truncated, flipped, deleted], ids=lambda f: f.__name__)
async def test_a_harmed_manifest_is_no_base_and_the_next_point_says_so(installed: World, harm: Harm) -> None:
    found, namespace = installed, f"manifest-{harm.__name__}"
    image, first, made = await protected(found, namespace, seed=2)
    (manifest,) = made["points"]
    harm(manifest)
    write(image, 5 * CHUNK, b"changed")
    second = await backed_up(found, namespace, "second")
    assert await found.restored_offline(second.uid) == digest(image)
    assert second.status.mode == "allocated"
    assert second.status.fallback_reason == "BaseIncomplete", second.status
    ended = await restored(found, "harmed", namespace, first.name)
    assert ended.status.phase is RestorePhase.FAILED, ended.status
    assert ended.status.reason in {"Damaged", "PointNotFound"}, ended.status
    assert (manifest.name if harm is not deleted else first.name) in ended.status.message
    assert await found.client.find(PersistentVolumeClaim, "harmed", namespace) is None
    await found.settled(namespace, snapshots=1)


@pytest.mark.parametrize("harm", [truncated, flipped, deleted], ids=lambda f: f.__name__)
async def test_a_harmed_pack_is_named_by_verify_and_healed_by_the_next_delta(installed: World, harm: Harm) -> None:
    found, namespace = installed, f"pack-{harm.__name__}"
    image, first, made = await protected(found, namespace, seed=3)
    pack = max(made["packs"], key=lambda p: p.stat().st_size)
    harm(pack)
    ended = await restored(found, "harmed", namespace, first.name)
    assert ended.status.phase is RestorePhase.FAILED
    assert ended.status.reason in {"Damaged", "ObjectMissing"}, ended.status
    assert pack.name in ended.status.message
    assert await found.client.find(PersistentVolumeClaim, "harmed", namespace) is None
    # verify names the object and the point
    options = ["--repository", found.repository_url, "--key-file", str(found.key_file)]
    code, words = await found.tidemark("verify", *options, "--full", "-n", namespace)
    assert code == 65, words
    assert pack.name in words
    assert first.uid in words
    # and the next delta reads again what the volume still holds
    write(image, 0, b"small change")
    second = await backed_up(found, namespace, "second")
    assert second.status.mode == "delta", second.status
    assert await found.restored_offline(second.uid) == digest(image)
    # what verify still finds of the pack itself hurts the healed point no more
    _, words = await found.tidemark("verify", *options, "--full", "--point", second.uid)
    assert second.uid not in words, words
    await found.settled(namespace, snapshots=1)


async def test_a_mover_killed_every_time_ends_in_words_and_the_next_backup_works(installed: World) -> None:
    found, namespace = installed, "killed"
    await install.namespace(found.client, namespace)
    image = await found.claim("data", namespace, size=SIZE)
    write(image, 0, random.Random(4).randbytes(USED * CHUNK))
    spec = {"repository": "vault", "options": {"bandwidthLimit": "1Mi"}}
    await found.apply(BackupPolicy, "all", namespace, spec)
    await found.backup("doomed", namespace, policy="all")
    kills = 0
    async with asyncio.timeout(LONG):
        while True:
            kills += found.kill_movers()
            done = await found.client.get(Backup, "doomed", namespace)
            if done.status.phase in (BackupPhase.FAILED, BackupPhase.COMPLETED):
                break
            await asyncio.sleep(0.3)
    assert done.status.phase is BackupPhase.FAILED, done.status
    (point,) = await found.points(namespace)
    assert point.status.phase is PointPhase.FAILED
    assert point.status.attempts == SETTINGS.mover_attempts, point.status
    assert kills == SETTINGS.mover_attempts
    assert "5 movers" in point.status.message, point.status.message
    await found.settled(namespace, snapshots=0)
    await found.apply(BackupPolicy, "all", namespace, {"repository": "vault"})
    after = await backed_up(found, namespace, "after")
    assert await found.restored_offline(after.uid) == digest(image)
    await found.settled(namespace, snapshots=1)


async def test_maintenance_runs_while_backups_run_and_touches_nothing_that_lives(tmp_path: Path) -> None:
    async with world(tmp_path / "w") as found:
        await found.start_controller("--lease-duration", "10")
        namespace = "swept"
        image, first, _ = await protected(found, namespace, seed=5)
        expected = {first.uid: digest(image)}
        body = {"spec": {"maintenance": {"schedule": {"every": "5s"}}}}
        await found.client.merge_patch(BackupRepository, "vault", "", body)
        kills = 0
        for number in range(4):
            write(image, number * CHUNK, random.Random(number).randbytes(CHUNK))
            point = await backed_up(found, namespace, f"run-{number}", full=number == 2)
            expected[point.uid] = digest(image)
        kills = await _kill_maintenance(found)
        ended = datetime.now(UTC)

        def swept(repository: BackupRepository | None) -> bool:
            last = repository.status.last_maintenance if repository is not None else None
            return last is not None and last > ended

        await found.until(BackupRepository, "vault", "", swept)
        await found.client.merge_patch(BackupRepository, "vault", "", {"spec": {"maintenance": {"suspend": True}}})
        for uid, wanted in expected.items():
            assert await found.restored_offline(uid) == wanted
        assert kills
        await _no_maintenance_left(found)
        repository = await found.client.get(BackupRepository, "vault")
        maintained, usage = condition(repository.status.conditions, "Maintained"), repository.status.usage
        assert maintained is not None
        assert maintained.status == "True", maintained
        assert usage is not None
        assert usage.points == len(expected)
        assert 0 < usage.bytes <= sum(p.stat().st_size for p in objects(found, "n"))
        await found.settled(namespace, snapshots=1)
        options = ["--repository", found.repository_url, "--key-file", str(found.key_file)]
        code, words = await found.tidemark("verify", *options, "--full")
        assert code == 0, words


async def _kill_maintenance(found: World) -> int:
    """Kill one maintenance mover as soon as it is seen, and see that the slot is told as failed."""
    async with asyncio.timeout(LONG):
        while True:
            if kills := found.kill_movers():
                return kills
            await asyncio.sleep(0.02)


async def _no_maintenance_left(found: World) -> None:
    async with asyncio.timeout(LONG):
        while True:
            jobs, _ = await found.client.list(Job, SETTINGS.namespace)
            if not [j.name for j in jobs if j.name.startswith("tm-maintain")]:
                return
            await asyncio.sleep(0.2)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a small file system; skips where this account may not."""
    folder.mkdir(parents=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"mounting a small file system needs root: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def enlarge(folder: Path, size: str) -> None:
    """Give a small file system more room."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the space that is left."""
    ballast = folder / "lost+found"
    ballast.mkdir(exist_ok=True)
    path = ballast / "ballast"
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path


async def test_a_repository_that_fills_up_says_so_and_goes_on_when_there_is_room(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("full") / "w"
    with small_disk(folder / "repository", "40m") as disk:
        async with world(folder) as found:
            await found.start_controller()
            image, first, _ = await protected(found, "full", seed=6)
            first_digest = digest(image)
            # no room for the copy: the mover says so, and the point waits
            write(image, 0, random.Random(7).randbytes(USED * CHUNK))
            await found.backup("second", "full", policy="all")

            def full(point: RecoveryPoint) -> bool:
                return any(c.reason == "StoreFull" for c in point.status.conditions)

            await _some_point(found, "full", "second", full)
            repository = Path(found.repository_url.removeprefix("file://"))
            enlarge(disk, "120m")
            done = await found.backup_ended("second", "full")
            assert done.status.phase is BackupPhase.COMPLETED, done.status
            (second,) = [p for p in await found.points("full") if p.spec.backup == "second"]
            assert await found.restored_offline(second.uid) == digest(image)
            assert await found.restored_offline(first.uid) == first_digest
            # no room for a single object: the controller's own writes say so too
            ballast = fill(repository)
            write(image, 0, b"third")
            await found.backup("third", "full", policy="all")
            await _some_point(found, "full", "third", full)
            ballast.unlink()
            done = await found.backup_ended("third", "full")
            assert done.status.phase is BackupPhase.COMPLETED, done.status
            (third,) = [p for p in await found.points("full") if p.spec.backup == "third"]
            assert third.status.mode == "delta"
            assert await found.restored_offline(third.uid) == digest(image)
            options = ["--repository", found.repository_url, "--key-file", str(found.key_file)]
            code, words = await found.tidemark("verify", *options, "--full")
            assert code == 0, words
            await found.settled("full", snapshots=1)


async def test_a_restore_onto_a_full_target_says_so_and_the_next_try_completes(tmp_path: Path) -> None:
    # given a point, and a target that lies on a file system with too little room
    volume = Volume(tmp_path / "volume", 8 << 20)
    volume.noise(0, volume.size)
    vault = await vault_at(tmp_path / "repository")
    point = await take(vault, volume.path)
    with small_disk(tmp_path / "disk", "4m") as disk:
        device = disk / "device"
        with device.open("wb") as file:
            file.truncate(volume.size)
        place = {"manifest_key": point.ref.key, "manifest_digest": point.ref.digest, "target_known_zero": True}
        url = f"file://{tmp_path / 'repository'}"
        pod = Pod.make(tmp_path, vault, url, "restore", "restore-uid", device, **place)
        code, _, log = await asyncio.to_thread(end, pod.start())
        assert (code, pod.outcome()["reason"]) == (65, "TargetFull"), log
        enlarge(disk, "32m")
        code, _, log = await asyncio.to_thread(end, pod.start())
        assert code == 0, log
        assert digest(device) == volume.sha256()


async def _some_point(found: World, namespace: str, backup: str, met: Callable[[RecoveryPoint], bool]) -> RecoveryPoint:
    last: list[RecoveryPoint] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LONG):
            while True:
                last = [p for p in await found.points(namespace) if p.spec.backup == backup]
                for point in last:
                    if met(point):
                        return point
                await asyncio.sleep(0.2)
    raise AssertionError(f"not as wanted: {[p.status for p in last]}")
