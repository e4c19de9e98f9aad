"""Commands run their own event loop, so each test here gives away the one that a plugin would make and forget."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def own_loop() -> Iterator[None]:
    """Set a loop that is closed again: looptime asks for one before every test, and `asyncio.run` forgets it."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.close()
    asyncio.set_event_loop(None)
