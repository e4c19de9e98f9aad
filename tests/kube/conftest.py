"""The scripted API server and a real client for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.kube.client import Client
from tests.kube.fakes import FakeApi, serving, write_kubeconfig


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    """A scripted API server on a free port."""
    async with serving(FakeApi()) as running:
        yield running


@pytest.fixture
async def client(api: FakeApi, tmp_path: Path) -> AsyncIterator[Client]:
    """The real client, configured as in life."""
    path = write_kubeconfig(tmp_path, api.url)
    async with await Client.connect(kubeconfig=str(path), timeout_s=2) as connected:
        yield connected
