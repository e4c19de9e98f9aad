"""What a recovery point costs in requests to the repository."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import pytest_asyncio

from orchestrator.controllers import repositories
from orchestrator.repository.lock import ObjectLock, open_locked_store
from orchestrator.repository.store import CountingStore
from tests.controllers.bed import Bed, bed

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bed]:
    directory: Path = tmp_path_factory.mktemp("requests")
    async with bed(directory) as made:
        yield made


async def test_a_point_without_changes_opens_the_namespaces_keys_once(
    cluster: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: Counter[str] = Counter()
    stores: list[CountingStore] = []

    class Watched(CountingStore):
        async def get(self, key: str) -> bytes:
            keys[f"get {key.split('/')[0]}"] += 1
            return await super().get(key)

        def list(self, prefix: str):  # type: ignore[no-untyped-def,override]
            keys[f"list {prefix.split('/')[0]}"] += 1
            return super().list(prefix)

    async def counted(url: str, options: Mapping[str, str] | None, lock: ObjectLock | None) -> CountingStore:
        stores.append(Watched(await open_locked_store(url, options, lock)))
        return stores[-1]

    monkeypatch.setattr(repositories, "open_locked_store", counted)
    claim = await cluster.volume("still", "2Mi")
    await cluster.write("still", b"data")
    async with cluster.controller():
        await cluster.completed(claim)
        (store,) = stores
        before, keys_before = Counter(store.requests), Counter(keys)
        await cluster.completed(claim)
        spent, opened = Counter(store.requests) - before, keys - keys_before
    assert opened["list namespaces"] <= 1
    assert opened["get namespaces"] <= 1
    assert spent.total() <= 30, spent
