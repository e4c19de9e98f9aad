"""Open the one namespace that a mover may see."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orchestrator.api.mover import MoverConfig
from orchestrator.repository.keys import NamespaceKeys
from orchestrator.repository.store import open_store
from orchestrator.repository.vault import Vault


@asynccontextmanager
async def opened_vault(config: MoverConfig) -> AsyncIterator[Vault]:
    """Open the store and the namespace's vault for as long as the block lasts."""
    store = await open_store(config.url, config.store_options)
    try:
        yield Vault.from_mover(store, NamespaceKeys.from_json(config.keys))
    finally:
        await store.close()
