"""A Go client of the CBT API on the sandbox's SnapshotMetadata service and on both API servers.

The client (tests/clients/cbt) is our own, written from the public contract as a storage vendor would: client-go finds
the service and asks for a token, grpc-go streams the ranges. All that it is given is a kubeconfig of an account with
the rights that such a tool asks for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from orchestrator.sandbox.cluster import Sandbox
from tests.real.cluster import RealCluster
from tests.real.servers import tool
from tests.waiting import LONG

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1500)]

BLOCK = 65536
SIZE = 4 << 20
SETUP = """
apiVersion: v1
kind: ServiceAccount
metadata: {name: lister, namespace: NS}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: stranger, namespace: NS}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: NS-lister}
rules:
- {apiGroups: [snapshot.storage.k8s.io], resources: [volumesnapshots, volumesnapshotcontents], verbs: [get]}
- {apiGroups: [cbt.storage.k8s.io], resources: [snapshotmetadataservices], verbs: [get]}
- {apiGroups: [""], resources: [serviceaccounts/token], resourceNames: [lister, stranger], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: NS-lister}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: NS-lister}
subjects: [{kind: ServiceAccount, name: lister, namespace: NS}]
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: disk, namespace: NS}
spec:
  accessModes: [ReadWriteOnce]
  volumeMode: Block
  storageClassName: sandbox
  resources: {requests: {storage: 4Mi}}
"""
SNAPSHOT = """
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: NAME, namespace: NS}
spec: {volumeSnapshotClassName: sandbox, source: {persistentVolumeClaimName: disk}}
"""


@dataclass
class Site:
    """A cluster with a volume that was written, snapped, written again and snapped again."""

    admin: Path
    namespace: str
    lister: Path
    """The kubeconfig of the tool's own account."""

    async def kubectl(self, *arguments: str, stdin: str = "") -> str:
        command = [str(tool("kubectl")), "--kubeconfig", str(self.admin), "-n", self.namespace, *arguments]
        return await asyncio.to_thread(_run, command, stdin)

    async def list(self, *arguments: str) -> set[int]:
        """Return the numbers of the blocks in the ranges that the client prints, after checking their order."""
        records = await self.records(*arguments)
        ranges = [(int(t.get("byte_offset", 0)), int(t["size_bytes"])) for r in records for t in r["block_metadata"]]
        assert ranges == sorted(ranges)
        assert {r["volume_capacity_bytes"] for r in records} <= {SIZE}
        return {b for at, size in ranges for b in range(at // BLOCK, -(-(at + size) // BLOCK))}

    async def records(self, *arguments: str) -> list[dict[str, list[dict[str, int]]]]:
        program = tool("snapshot-metadata-lister")
        command = [str(program), "-kubeconfig", str(self.lister), "-n", self.namespace, "-o", "json", *arguments]
        found: list[dict[str, list[dict[str, int]]]] = json.loads(await asyncio.to_thread(_run, command, ""))
        return found


def _run(command: list[str], stdin: str) -> str:
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    done = subprocess.run(command, input=stdin, env=env, capture_output=True, text=True, timeout=LONG, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def _write(image: Path, *blocks: int) -> None:
    with image.open("r+b") as file:
        for block in blocks:
            file.seek(block * BLOCK)
            file.write(os.urandom(BLOCK))
        os.fsync(file.fileno())


async def _furnish(admin: Path, folder: Path) -> Site:
    site = Site(admin, "cbt-client", folder / "lister.kubeconfig")
    await site.kubectl("create", "namespace", site.namespace)
    await site.kubectl("apply", "-f", "-", stdin=SETUP.replace("NS", site.namespace))
    await site.kubectl("wait", "pvc/disk", "--for=jsonpath={.status.phase}=Bound", "--timeout=300s")
    config = yaml.safe_load(admin.read_text())
    config["users"][0]["user"] = {"token": (await site.kubectl("create", "token", "lister")).strip()}
    site.lister.touch(mode=0o600)
    site.lister.write_text(yaml.safe_dump(config))
    volume = (await site.kubectl("get", "pvc", "disk", "-o", "jsonpath={.spec.volumeName}")).strip()
    image = Path(await site.kubectl("get", "pv", volume, "-o", "jsonpath={.spec.csi.volumeAttributes.path}"))
    for name, blocks in (("before", (0, 3, 10)), ("after", (3, 20, 21, 63))):
        await asyncio.to_thread(_write, image, *blocks)
        await site.kubectl("apply", "-f", "-", stdin=SNAPSHOT.replace("NS", site.namespace).replace("NAME", name))
        await site.kubectl(
            "wait", f"volumesnapshot/{name}", "--for=jsonpath={.status.readyToUse}=true", "--timeout=300s"
        )
    return site


@contextlib.asynccontextmanager
async def _furnished(admin: Path, folder: Path) -> AsyncIterator[Site]:
    site = await _furnish(admin, folder)
    try:
        yield site
    finally:
        await site.kubectl("delete", "volumesnapshot", "--all", "--timeout=300s")
        await site.kubectl("delete", "namespace", site.namespace, "--timeout=300s")
        await site.kubectl("delete", "clusterrole,clusterrolebinding", f"{site.namespace}-lister")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def sandbox(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sandbox]:
    async with Sandbox(tmp_path_factory.mktemp("cbt") / "sandbox") as found:
        yield found


@pytest.fixture(scope="module", params=["sandbox", "cluster"], ids=["sandbox", "real"])
def admin(request: pytest.FixtureRequest) -> Path:
    """Return the administrator's kubeconfig; only the cluster that is asked for is started."""
    found: Sandbox | RealCluster = request.getfixturevalue(request.param)
    return found.kubeconfig


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def site(admin: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with _furnished(admin, tmp_path_factory.mktemp("cbt")) as found:
        yield found


async def test_the_go_client_lists_exactly_what_was_written_between_two_snapshots(site: Site) -> None:
    assert await site.list("-s", "after", "-p", "before") == {3, 20, 21, 63}


async def test_the_go_client_lists_what_is_allocated(site: Site) -> None:
    assert await site.list("-s", "before") == {0, 3, 10}
    assert await site.list("-s", "after") == {0, 3, 10, 20, 21, 63}


async def test_the_go_client_gets_the_same_by_handle_in_small_messages_and_from_an_offset(site: Site) -> None:
    content = await site.kubectl(
        "get", "volumesnapshot", "before", "-o", "jsonpath={.status.boundVolumeSnapshotContentName}"
    )
    handle = await site.kubectl("get", "volumesnapshotcontent", content, "-o", "jsonpath={.status.snapshotHandle}")
    records = await site.records("-s", "after", "-P", handle, "-max-results", "1")
    assert all(len(record["block_metadata"]) <= 1 for record in records)
    assert await site.list("-s", "after", "-P", handle, "-max-results", "1") == {3, 20, 21, 63}
    assert await site.list("-s", "after", "-P", handle, "-starting-offset", str(20 * BLOCK)) == {20, 21, 63}


async def test_the_go_client_is_refused_without_the_right_to_read_the_snapshot(site: Site) -> None:
    role = f"{site.namespace}-lister"
    await site.kubectl("patch", "clusterrole", role, "--type=json", "-p", '[{"op":"remove","path":"/rules/0"}]')
    try:
        command = [str(tool("snapshot-metadata-lister")), "-kubeconfig", str(site.lister), "-n", site.namespace]
        service = await site.kubectl("get", "snapshotmetadataservices", "-o", "jsonpath={.items[0].metadata.name}")
        assert service  # the tool itself asks for the snapshot first, and is told no
        with pytest.raises(AssertionError, match="forbidden"):
            await asyncio.to_thread(_run, [*command, "-s", "after", "-p", "before"], "")
    finally:
        await site.kubectl("apply", "-f", "-", stdin=SETUP.replace("NS", site.namespace))


async def test_the_go_client_prints_a_table_for_an_account_that_it_is_told(site: Site) -> None:
    program = [str(tool("snapshot-metadata-lister")), "-kubeconfig", str(site.admin), "-n", site.namespace]
    account = ["-service-account", "lister", "-service-account-namespace", site.namespace]
    table = await asyncio.to_thread(_run, [*program, *account, "-s", "after", "-p", "before"], "")
    head, *rows = [line.split() for line in table.splitlines()]
    assert head == ["RECORD", "TYPE", "CAPACITY", "OFFSET", "SIZE"]
    assert {(kind, capacity) for _, kind, capacity, _, _ in rows} == {("VARIABLE_LENGTH", str(SIZE))}
    ranges = [(int(at), int(size)) for _, _, _, at, size in rows]
    assert ranges == [(3 * BLOCK, BLOCK), (20 * BLOCK, 2 * BLOCK), (63 * BLOCK, BLOCK)]


async def test_the_service_refuses_the_token_of_an_account_without_the_right_to_read_snapshots(site: Site) -> None:
    # The caller may read them; whose token it shows may not.
    with pytest.raises(AssertionError, match=r"GetMetadataDelta: .*PermissionDenied"):
        await site.list("-s", "after", "-p", "before", "-service-account", "stranger")
