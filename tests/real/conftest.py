"""One real cluster for all modules that ask for it: bringing one up takes a quarter of a minute.

Who uses it runs on the session's loop: `pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="session")]`.
A module leaves behind what it found: its namespaces and its installation go with it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.real.cluster import RealCluster, real_cluster


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RealCluster]:
    """A real cluster with a node in zone-a and one in zone-b."""
    async with real_cluster(tmp_path_factory.mktemp("real") / "c", zones=("a", "b")) as found:
        yield found
