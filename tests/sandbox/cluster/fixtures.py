"""One cluster for all tests of a module: starting one takes under a second, a hundred of them do not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from orchestrator.api.meta import Resource
from orchestrator.sandbox.api import Api
from orchestrator.sandbox.cluster import Sandbox
from orchestrator.sandbox.kinds import CLUSTER_ROLE
from tests.sandbox.cluster.world import World

_BINDING = Resource("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", False)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sandbox")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox(directory: Path) -> AsyncIterator[Sandbox]:
    async with Sandbox(directory, nodes=2, job_retry_s=0.2) as cluster:
        yield cluster


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(sandbox: Sandbox) -> AsyncIterator[World]:
    async with Api.from_file(sandbox.kubeconfig) as api:
        await allow_default_account(api)
        yield World(api)


async def allow_default_account(api: Api) -> None:
    """Let the account `default` of namespace `default` read snapshots, as a backup client may."""
    rule = {"apiGroups": ["snapshot.storage.k8s.io"], "resources": ["volumesnapshots"], "verbs": ["get"]}
    await api.ensure(CLUSTER_ROLE, {"metadata": {"name": "reads-snapshots"}, "rules": [rule]})
    await api.ensure(
        _BINDING,
        {
            "metadata": {"name": "reads-snapshots"},
            "roleRef": {"apiGroup": CLUSTER_ROLE.group, "kind": "ClusterRole", "name": "reads-snapshots"},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}],
        },
    )
