"""A policy whose repository is an S3 server: the main job, wrong settings, and the server dying at the wrong time."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from orchestrator.api.foreign.core import PersistentVolumeClaim, Secret
from orchestrator.api.meta import ObjectMeta, condition
from orchestrator.api.tidemark import Backup, BackupPolicy, BackupRepository, RecoveryPoint, Restore
from orchestrator.api.tidemark.backup import BackupPhase
from orchestrator.api.tidemark.restore import RestorePhase, RestoreSpec
from orchestrator.demo import install
from tests.real.s3server import S3Server
from tests.system.world import SETTINGS, World, digest, world, write
from tests.waiting import LONG

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.real, pytest.mark.timeout(1500)]

NAMESPACE = "cloud"
SIZE = 16 << 20
CHUNK = 64 * 1024


class Installed:
    """The installation, the server, and one protected volume."""

    def __init__(self, found: World, server: S3Server, image: Path) -> None:
        self.found, self.server, self.image = found, server, image
        self.options_file = found.folder / "store-options"
        self.options_file.write_text("".join(f"{k}={v}\n" for k, v in server.options.items()))

    def offline(self) -> list[str]:
        return [
            "--repository", "s3://bucket/main", "--key-file", str(self.found.key_file),
            "--store-options", str(self.options_file),
        ]  # fmt: skip

    async def restored(self, point: RecoveryPoint) -> str:
        target = self.found.folder / f"{point.name}-{len(list(self.found.folder.glob('*.img')))}.img"
        code, said = await self.found.tidemark(
            "restore", *self.offline(), "--point", point.uid, "--to", str(target), "--sha256"
        )
        assert code == 0, said
        return digest(target)

    async def point(self, backup: str) -> RecoveryPoint:
        (found,) = [p for p in await self.found.points(NAMESPACE) if p.spec.backup == backup]
        return found

    async def lose_the_server_under_a_mover(self) -> None:
        """Kill the server when a mover runs; it waits meanwhile, so that it isn't done before on a busy machine."""
        async with asyncio.timeout(LONG):
            while not (movers := self.found.movers(self.found.folder)):
                await asyncio.sleep(0.02)
        for mover in movers:
            os.kill(mover, signal.SIGSTOP)
        await self.server.kill()
        for mover in movers:
            os.kill(mover, signal.SIGCONT)

    async def backed_up(self, name: str, within_s: float = LONG) -> RecoveryPoint:
        await self.found.backup(name, NAMESPACE, policy="all")
        done = await self.found.backup_ended(name, NAMESPACE, within_s=within_s)
        assert done.status.phase is BackupPhase.COMPLETED, done.status
        return await self.point(name)


async def secret(found: World, name: str, data: dict[str, str]) -> None:
    body = {"apiVersion": "v1", "kind": "Secret", "stringData": data}
    body["metadata"] = {"name": name, "namespace": SETTINGS.namespace}
    await found.client.create_raw(Secret.RESOURCE, body, Secret)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def s3(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Installed]:
    folders = [os.environ.get("KUBEBUILDER_ASSETS", ""), str(Path.home() / ".cache/tidemark/tools/bin")]
    program = next((p for f in folders if f and (p := shutil.which("versitygw", path=f))), None)
    if program is None:
        pytest.skip("versitygw is not here: `make real-tools`, or put it into KUBEBUILDER_ASSETS")
    folder = tmp_path_factory.mktemp("s3")
    server = S3Server(folder / "server", program)
    async with world(folder / "w") as found:
        try:
            # The server is down when the controller meets the repository for the first time.
            await secret(found, "s3", server.options)
            spec: dict[str, Any] = {"encryptionSecret": "vault-key", "allowedNamespaces": ["*"]}
            await found.apply(
                BackupRepository, "cloud", "", {**spec, "url": "s3://bucket/main", "credentialsSecret": "s3"}
            )
            await install.namespace(found.client, NAMESPACE)
            image = await found.claim("data", NAMESPACE, size=SIZE)
            write(image, 0, random.Random(1).randbytes(10 << 20))
            policy = {"repository": "cloud", "volumes": {"names": ["data"]}}
            await found.apply(BackupPolicy, "all", NAMESPACE, policy)
            await found.start_controller()
            yield Installed(found, server, image)
        finally:
            await server.kill()


async def test_a_server_that_is_down_at_the_start_is_a_condition_and_the_backup_completes_when_it_is_up(
    s3: Installed,
) -> None:
    found = s3.found
    await found.backup("first", NAMESPACE, policy="all")

    def away(repository: BackupRepository | None) -> bool:
        seen = condition(repository.status.conditions, "Ready") if repository is not None else None
        return seen is not None and seen.status == "False"

    repository = await found.until(BackupRepository, "cloud", "", away)
    assert repository is not None
    seen = condition(repository.status.conditions, "Ready")
    assert seen is not None
    assert seen.reason in {"StoreUnavailable", "RepositoryUnreachable"}
    await s3.server.start()
    done = await found.backup_ended("first", NAMESPACE)
    assert done.status.phase is BackupPhase.COMPLETED, done.status
    assert await s3.restored(await s3.point("first")) == digest(s3.image)


async def test_full_increment_prune_and_both_ways_of_restore(s3: Installed) -> None:
    found, first_digest = s3.found, digest(s3.image)
    first = await s3.point("first")
    write(s3.image, 4 << 20, b"changed")
    second = await s3.backed_up("second")
    assert second.status.mode == "delta"
    assert second.status.bytes is not None
    assert second.status.bytes.read == CHUNK
    spec = msgspec.convert({"source": {"point": second.name}, "target": {"pvcName": "back"}}, RestoreSpec)
    await found.client.create(Restore(metadata=ObjectMeta(name="back", namespace=NAMESPACE), spec=spec))
    done = await found.restore_ended("back", NAMESPACE)
    assert done.status.phase is RestorePhase.COMPLETED, done.status
    assert digest(await found.image("back", NAMESPACE)) == done.status.sha256 == digest(s3.image) != first_digest
    assert await s3.restored(first) == first_digest
    await found.client.merge_patch(RecoveryPoint, first.name, NAMESPACE, {"spec": {"prune": True}})
    await found.until(RecoveryPoint, first.name, NAMESPACE, lambda p: p is None)
    code, said = await found.tidemark("restore", *s3.offline(), "--list", "-o", "json")
    assert code == 0, said
    assert first.uid not in said
    assert second.uid in said
    code, said = await found.tidemark("verify", *s3.offline(), "--full")
    assert code == 0, said
    await found.settled(NAMESPACE, snapshots=1)


@pytest.mark.parametrize(
    ("name", "change", "url", "reason"),
    [
        ("denied", {"secret_access_key": "WRONGSECRET"}, "s3://bucket/main", "AccessDenied"),
        ("nobucket", {}, "s3://nobucket/main", "StoreMissing"),
        ("strange", {"path_style": "yes"}, "s3://bucket/main", "StoreOptionUnknown"),
        ("nohttp", {"allow_http": "false"}, "s3://bucket/main", "StoreOptionUnknown"),
    ],
)
async def test_wrong_settings_are_named(
    s3: Installed, name: str, change: dict[str, str], url: str, reason: str
) -> None:
    found = s3.found
    await secret(found, name, {**s3.server.options, **change})
    spec = {"url": url, "credentialsSecret": name, "encryptionSecret": "vault-key", "allowedNamespaces": ["*"]}
    await found.apply(BackupRepository, name, "", spec)

    def refused(repository: BackupRepository | None) -> bool:
        seen = condition(repository.status.conditions, "Ready") if repository is not None else None
        return seen is not None and seen.status == "False"

    repository = await found.until(BackupRepository, name, "", refused)
    assert repository is not None
    seen = condition(repository.status.conditions, "Ready")
    assert seen is not None
    assert seen.reason == reason, seen
    assert "SECRET" not in seen.message
    assert all(word in seen.message for word in change if reason == "StoreOptionUnknown"), seen
    await found.client.delete(BackupRepository, name, uid=repository.uid)
    # without a cluster the same is said
    options = found.folder / f"{name}-options"
    options.write_text("".join(f"{k}={v}\n" for k, v in {**s3.server.options, **change}.items()))
    key = ["--key-file", str(found.key_file), "--store-options", str(options)]
    code, said = await found.tidemark("restore", "--repository", url, *key, "--list")
    assert code not in (0, 1)
    assert "Traceback" not in said
    assert "SECRET" not in said


async def test_a_server_killed_in_mid_backup_and_back_loses_nothing(s3: Installed) -> None:
    found = s3.found
    write(s3.image, 0, random.Random(2).randbytes(10 << 20))
    policy = {"repository": "cloud", "volumes": {"names": ["data"]}, "options": {"bandwidthLimit": "2Mi"}}
    await found.apply(BackupPolicy, "all", NAMESPACE, policy)
    await found.backup("cut", NAMESPACE, policy="all")
    await s3.lose_the_server_under_a_mover()
    await asyncio.sleep(8)
    assert (await found.client.get(Backup, "cut", NAMESPACE)).status.completion_time is None
    await s3.server.start()
    done = await found.backup_ended("cut", NAMESPACE)
    assert done.status.phase is BackupPhase.COMPLETED, done.status
    assert await s3.restored(await s3.point("cut")) == digest(s3.image)
    await found.settled(NAMESPACE, snapshots=1)
    code, said = await found.tidemark("verify", *s3.offline(), "--full")
    assert code == 0, said


async def test_a_server_killed_in_mid_restore_and_back_hands_over_a_whole_volume(s3: Installed) -> None:
    found = s3.found
    point = await s3.point("cut")
    spec = msgspec.convert({"source": {"point": point.name}, "target": {"pvcName": "late"}}, RestoreSpec)
    await found.client.create(Restore(metadata=ObjectMeta(name="late", namespace=NAMESPACE), spec=spec))
    await s3.lose_the_server_under_a_mover()
    await asyncio.sleep(5)
    assert await found.client.find(PersistentVolumeClaim, "late", NAMESPACE) is None
    await s3.server.start()
    done = await found.restore_ended("late", NAMESPACE)
    assert done.status.phase is RestorePhase.COMPLETED, done.status
    assert digest(await found.image("late", NAMESPACE)) == digest(s3.image)
    await found.settled(NAMESPACE, snapshots=1)
