"""A whole installation whose repository is promised undeletable: points are made, kept, removed and brought back."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.api.foreign.core import Secret
from orchestrator.api.tidemark import BackupPolicy, BackupRepository, RecoveryPoint
from orchestrator.api.tidemark.backup import BackupPhase
from orchestrator.demo import install
from orchestrator.repository.lock import is_locked
from orchestrator.repository.lockclient import S3LockClient
from orchestrator.repository.store import open_store
from tests.repository.lockservers import BUCKET, LockServer
from tests.system.world import SETTINGS, World, digest, world, write

pytestmark = [pytest.mark.real, pytest.mark.timeout(1500)]

NAMESPACE = "vaulted"
URL = f"s3://{BUCKET}/main"


async def unlocked(server: LockServer) -> list[str]:
    """Return the names of objects that a restore needs and somebody could delete within 29 days."""
    store, client = await open_store(URL, server.options("root")), S3LockClient(URL, server.options("root"))
    try:
        least = datetime.now(UTC) + timedelta(days=29)
        names = [info.key async for info in store.list("") if is_locked(info.key)]
        assert len(names) >= 6
        kept = [(name, await client.retained_until(name)) for name in names]
        return [name for name, until in kept if until is None or until < least]
    finally:
        await client.close()
        await store.close()


async def taken(found: World, name: str) -> RecoveryPoint:
    await found.backup(name, NAMESPACE, policy="all")
    done = await found.backup_ended(name, NAMESPACE)
    assert done.status.phase is BackupPhase.COMPLETED, done.status
    (point,) = [p for p in await found.points(NAMESPACE) if p.spec.backup == name]
    return point


async def test_points_of_a_locked_repository_are_made_kept_and_removed_without_a_right_to_delete(
    tmp_path: Path,
) -> None:
    server = LockServer(tmp_path / "server")
    (tmp_path / "server").mkdir()
    with server.running():
        await server.make_bucket()
        async with world(tmp_path / "w") as found:
            body = {"apiVersion": "v1", "kind": "Secret", "stringData": server.options("writer")}
            body["metadata"] = {"name": "s3", "namespace": SETTINGS.namespace}
            await found.client.create_raw(Secret.RESOURCE, body, Secret)
            spec = {"url": URL, "encryptionSecret": "vault-key", "credentialsSecret": "s3", "allowedNamespaces": ["*"]}
            lock = {"retention": "30d", "renewEvery": "7d"}
            await found.apply(BackupRepository, "locked", "", {**spec, "objectLock": lock})
            await install.namespace(found.client, NAMESPACE)
            image = await found.claim("data", NAMESPACE, size=4 << 20)
            write(image, 0, random.Random(1).randbytes(2 << 20))
            await found.apply(BackupPolicy, "all", NAMESPACE, {"repository": "locked", "volumes": {"names": ["data"]}})
            await found.start_controller()
            # given two points, made with a credential that may delete nothing
            first = await taken(found, "first")
            write(image, 1 << 20, random.Random(2).randbytes(1 << 20))
            second = await taken(found, "second")
            assert await unlocked(server) == []
            # when one is removed
            await found.client.merge_patch(RecoveryPoint, first.name, NAMESPACE, {"spec": {"prune": True}})
            await found.until(RecoveryPoint, first.name, NAMESPACE, lambda point: point is None)
            # then it is gone for commands that know nothing of the lock, and the other restores
            options = tmp_path / "options"
            options.write_text("".join(f"{k}={v}\n" for k, v in server.options("writer").items()))
            where = ["--repository", URL, "--key-file", str(found.key_file), "--store-options", str(options)]
            code, said = await found.tidemark("restore", *where, "--list", "-o", "json")
            assert code == 0, said
            assert first.uid not in said
            target = tmp_path / "back.img"
            code, said = await found.tidemark("restore", *where, "--point", second.uid, "--to", str(target))
            assert code == 0, said
            assert digest(target) == digest(image)
            # and the repository itself tells them what is promised
            code, said = await found.tidemark("lock", *where)
            assert code == 0, said
            assert "3w2d" in said
            assert await unlocked(server) == []
