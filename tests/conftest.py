"""Keep the test runner from leaking an event loop of its own, and from skipping where nothing may be skipped.

Also tells `tests.tally` which API server each test ran on.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from tests import tally

# How long an example takes says something of the machine only.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    tally.register(config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        server = tally.api_server_of(item.nodeid, getattr(item, "fixturenames", ()))
        item.user_properties.append((tally.API_SERVER, server))


@pytest.fixture(scope="session", autouse=True)
def _no_stray_loop() -> None:
    """Say that no loop is current: pytest-asyncio asks, and on Python 3.11 asking makes one that nobody closes."""
    asyncio.set_event_loop(None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With TIDEMARK_NO_SKIPS set (the gate does), a test that misses something installable fails.

    What no package can give ("this machine has no ...") may still be skipped, and is listed.
    """
    report = yield
    if report.skipped and os.environ.get("TIDEMARK_NO_SKIPS") and "this machine" not in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be skipped: {report.longrepr}"
    return report
