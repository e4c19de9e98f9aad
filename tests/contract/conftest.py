"""Each contract test runs on the sandbox's API server and, marked `real`, on a real one.

With TIDEMARK_CONTRACT_RUNNING set, also on the running cluster that KUBECONFIG names (an administrator by token): its
own components may differ, so it comes beside the two, never instead of one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract import clusters
from tests.contract.clusters import Cluster

SERVERS = ["sandbox", pytest.param("real", marks=pytest.mark.real)]
if os.environ.get("TIDEMARK_CONTRACT_RUNNING") and os.environ.get("KUBECONFIG"):
    SERVERS.append(pytest.param("running", marks=pytest.mark.real))


@pytest.fixture(scope="session", params=SERVERS)
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "sandbox":
        with clusters.sandbox(directory) as found:
            yield found
        return
    if request.param == "running":
        found = Cluster(Path(os.environ["KUBECONFIG"]), "running")
        yield found
        found.close()
        return
    with clusters.real(directory, clusters.ASSETS) as found:
        yield found


@pytest.fixture
def ns(cluster: Cluster) -> Iterator[str]:
    """A namespace of its own for each test."""
    name = cluster.namespace()
    yield name
    cluster.delete(f"/api/v1/namespaces/{name}")
