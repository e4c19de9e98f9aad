"""Object lock as a resource asks for it, and as the repository itself remembers it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api.tidemark import BackupRepository
from orchestrator.controllers.repositories import mover_config
from orchestrator.repository.keys import NamespaceIdentity
from orchestrator.repository.lock import ObjectLock, locked
from tests.controllers.desk import CLUSTER, Desk, desk
from tests.repository.bucket import Bucket, serving

DAY = timedelta(days=1)
MONTH = ObjectLock(retention=30 * DAY, renew_every=7 * DAY)


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path) as made:
        yield made


@pytest.fixture
async def bucket() -> AsyncIterator[Bucket]:
    async with serving() as found:
        yield found


async def _resource(at: Desk, bucket: Bucket, name: str, key: str, **spec: Any) -> BackupRepository:
    await at.secret("cloud", access_key_id="a", secret_access_key="s", endpoint=bucket.url)
    return await at.repository(name, key=key, url="s3://bucket/p", credentialsSecret="cloud", **spec)


async def test_what_a_resource_asks_for_is_remembered_for_who_forgets_it(at: Desk, bucket: Bucket) -> None:
    key = secrets.token_hex(32)
    identity = NamespaceIdentity(CLUSTER, "uid-1", "shop")
    # given a repository that is used with a lock
    await _resource(at, bucket, "first", key, objectLock={"retention": "30d", "renewEvery": "7d"})
    opened = await at.context.repositories.open("first")
    assert opened.lock == MONTH
    assert await opened.repository.lock() == MONTH
    # when another resource, or another cluster, names it and says nothing of a lock
    await _resource(at, bucket, "second", key)
    opened, vault = await at.context.repositories.vault("second", identity, create=True)
    # then what it puts is locked all the same, and so is what its movers put
    assert opened.lock == MONTH
    assert (found := locked(vault.store)) is not None
    assert found.lock == MONTH
    config = mover_config(opened, vault, task="maintain", point=vault.namespace_id)
    assert (config.lock_retention_s, config.lock_renew_s, config.lock_mode) == (2592000, 604800, "COMPLIANCE")
    assert {name.split("/")[1] for name in bucket.locks} >= {"tidemark", "keys", "locks", "namespaces"}


async def test_a_repository_without_a_promise_is_used_without_a_lock(at: Desk, bucket: Bucket) -> None:
    await _resource(at, bucket, "plain", secrets.token_hex(32))
    opened = await at.context.repositories.open("plain")
    assert opened.lock is None
    assert locked(opened.repository.store) is None
    assert bucket.locks == {}
