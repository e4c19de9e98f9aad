"""Fresh stores and vaults."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from orchestrator.repository.store import Store, open_store
from orchestrator.repository.vault import Vault
from tests.repository.engine import new_vault


@pytest.fixture(scope="session", autouse=True)
def _no_stray_loop() -> None:
    """Say that no loop is current: pytest-asyncio asks, and on Python 3.11 asking makes one that nobody closes."""
    asyncio.set_event_loop(None)


@pytest.fixture
async def store() -> Store:
    return await open_store(f"memory://{uuid.uuid4().hex}")


@pytest.fixture
async def vault(store: Store) -> Vault:
    return await new_vault(store)
