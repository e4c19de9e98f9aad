"""Open the one namespace that a mover may see."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from orchestrator.api.mover import MoverConfig
from orchestrator.repository.keys import NamespaceKeys
from orchestrator.repository.store import Store, open_store
from orchestrator.repository.vault import Vault


@asynccontextmanager
async def opened_vault(config: MoverConfig) -> AsyncIterator[Vault]:
    """Open the store and the namespace's vault for as long as the block lasts."""
    store = await _store(config)
    try:
        yield Vault.from_mover(store, NamespaceKeys.from_json(config.keys))
    finally:
        await store.close()


async def _store(config: MoverConfig) -> Store:
    if not config.lock_retention_s:
        return await open_store(config.url, config.store_options)
    # Imported here: most repositories have no lock, and a mover must start fast.
    from orchestrator.repository.lock import ObjectLock, open_locked_store

    retention, renew = timedelta(seconds=config.lock_retention_s), timedelta(seconds=config.lock_renew_s)
    return await open_locked_store(config.url, config.store_options, ObjectLock(retention, renew, config.lock_mode))
