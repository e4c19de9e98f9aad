"""A base that is lost between being chosen and being planned on: the point says why it is not the wanted delta."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from orchestrator.api.foreign.core import Event
from orchestrator.controllers.base import Context
from tests.controllers.bed import TENANT, bed


@pytest.mark.system
async def test_a_base_lost_after_it_was_chosen_is_never_a_silent_fallback(tmp_path: Path) -> None:
    harmed: list[Path] = []

    def hook(context: Context) -> None:
        transport = context.client._transport
        send = transport.request

        @contextlib.asynccontextmanager
        async def request(method: str, path: str, **more: Any) -> AsyncIterator[aiohttp.ClientResponse]:
            async with send(method, path, **more) as response:
                said = repr(more)
                if method == "PATCH" and "requestedMode" in said and "snapshotHandle" in said and not harmed:
                    harmed.extend(p for p in tmp_path.glob("repository/n/*/points/*/*") if p.is_file())
                    for manifest in harmed:
                        manifest.write_bytes(manifest.read_bytes()[:200])
                yield response

        transport.request = request  # type: ignore[method-assign]

    async with bed(tmp_path) as cluster:
        claim = await cluster.volume("db")
        await cluster.write("db", b"first" * 100)
        async with cluster.controller():
            await cluster.completed(claim)
        await cluster.write("db", b"second" * 100)
        async with cluster.controller(hook=hook):
            point = await cluster.completed(claim)
        assert harmed
        assert (point.status.requested_mode, point.status.mode) == ("delta", "allocated")
        assert point.status.fallback_reason == "BaseIncomplete", point.status
        events, _ = await cluster.client.list(Event, TENANT)
        assert "BaseIncomplete" in {event.reason for event in events}
        assert (await cluster.restored(point)).startswith(b"second" * 100)
