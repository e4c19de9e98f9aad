"""One installation per module: bringing one up takes seconds."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.system.world import World, world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """An installation with a running controller."""
    async with world(tmp_path_factory.mktemp("world") / "w") as found:
        await found.start_controller()
        yield found
