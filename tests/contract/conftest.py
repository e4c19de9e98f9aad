"""Each contract test runs on the sandbox's API server and, marked `real`, on a real one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract import clusters
from tests.contract.clusters import Cluster

SERVERS = ["sandbox", pytest.param("real", marks=pytest.mark.real)]


@pytest.fixture(scope="session", params=SERVERS)
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "sandbox":
        with clusters.sandbox(directory) as found:
            yield found
        return
    assets = os.environ.get("KUBEBUILDER_ASSETS", "")
    if not assets:
        pytest.fail("set KUBEBUILDER_ASSETS to the folder with etcd, kube-apiserver and kube-controller-manager")
    with clusters.real(directory, Path(assets)) as found:
        yield found


@pytest.fixture
def ns(cluster: Cluster) -> Iterator[str]:
    """A namespace of its own for each test."""
    name = cluster.namespace()
    yield name
    cluster.delete(f"/api/v1/namespaces/{name}")
