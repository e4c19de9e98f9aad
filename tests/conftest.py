"""Keep the test runner from leaking an event loop of its own."""

from __future__ import annotations

import asyncio

import pytest


@pytest.fixture(scope="session", autouse=True)
def _no_stray_loop() -> None:
    """Say that no loop is current: pytest-asyncio asks, and on Python 3.11 asking makes one that nobody closes."""
    asyncio.set_event_loop(None)
