"""What the sandbox's tests do with a cluster: as a client would, over HTTPS."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from grpclib.client import Channel

from orchestrator.api.meta import Resource
from orchestrator.sandbox.api import Api, NotFound
from orchestrator.sandbox.kinds import (
    DRIVER,
    JOB,
    METADATA_SERVICE,
    PERSISTENT_VOLUME_CLAIM,
    POD,
    SERVICE_ACCOUNT,
    SNAPSHOT,
    SNAPSHOT_CONTENT,
)
from orchestrator.sandbox.objects import Manifest, name, namespace, spec, status
from orchestrator.wire.snapshotmetadata import (
    GetMetadataAllocatedRequest,
    GetMetadataDeltaRequest,
    SnapshotMetadataStub,
)
from tests.waiting import SHORT

MIB = 1 << 20
BLOCK = 65536


class World:
    """A client of a cluster, with the few sentences that tests are made of."""

    def __init__(self, api: Api) -> None:
        self.api = api

    async def until(
        self, resource: Resource, at: Manifest, holds: Callable[[Manifest], Any], timeout_s: float = SHORT
    ) -> Manifest:
        """Wait until an object satisfies `holds`; return it."""
        held: Manifest = {}
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    held = await self.api.get(resource, name(at), namespace(at))
                    if holds(held):
                        return held
                    await asyncio.sleep(0.02)
        except TimeoutError as err:
            raise AssertionError(f"not within {timeout_s} s: {held}") from err

    async def until_gone(self, resource: Resource, at: Manifest, timeout_s: float = SHORT) -> None:
        """Wait until an object is gone."""
        held: Manifest = {}
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    held = await self.api.get(resource, name(at), namespace(at))
                    await asyncio.sleep(0.02)
        except NotFound:
            return
        except TimeoutError as err:
            raise AssertionError(f"still there after {timeout_s} s: {held}") from err

    async def claim(
        self,
        at: str,
        size: str = "4Mi",
        *,
        mode: str = "Block",
        storage_class: str = "sandbox",
        source: Manifest | None = None,
        volume: str | None = None,
        wait: bool = True,
    ) -> Manifest:
        """Create a claim; wait until it is bound."""
        wanted: Manifest = {
            "accessModes": ["ReadWriteOnce"],
            "volumeMode": mode,
            "storageClassName": storage_class,
            "resources": {"requests": {"storage": size}},
        }
        if source:
            wanted["dataSource"] = source
        if volume:
            wanted["volumeName"] = volume
        made = await self.api.create(
            PERSISTENT_VOLUME_CLAIM, {"metadata": {"name": at, "namespace": "default"}, "spec": wanted}
        )
        return await self.bound(made) if wait else made

    async def bound(self, claim: Manifest) -> Manifest:
        """Wait until a claim is bound."""
        return await self.until(PERSISTENT_VOLUME_CLAIM, claim, lambda c: status(c).get("phase") == "Bound")

    async def volume(self, claim: Manifest) -> Manifest:
        """Return the volume behind a claim."""
        from orchestrator.sandbox.kinds import PERSISTENT_VOLUME

        live = await self.api.get(PERSISTENT_VOLUME_CLAIM, name(claim), namespace(claim))
        return await self.api.get(PERSISTENT_VOLUME, spec(live)["volumeName"])

    async def image(self, claim: Manifest) -> Path:
        """Return the file behind a claim."""
        return Path(spec(await self.volume(claim))["csi"]["volumeAttributes"]["path"])

    async def snapshot(self, at: str, claim: str, *, wait: bool = True, **more: Any) -> Manifest:
        """Create a snapshot of a claim; wait until it is ready."""
        body = {
            "metadata": {"name": at, "namespace": "default"},
            "spec": {"source": {"persistentVolumeClaimName": claim}, "volumeSnapshotClassName": "sandbox", **more},
        }
        made = await self.api.create(SNAPSHOT, body)
        return await self.ready(made) if wait else made

    async def ready(self, snapshot: Manifest) -> Manifest:
        """Wait until a snapshot is ready."""
        return await self.until(SNAPSHOT, snapshot, lambda s: status(s).get("readyToUse"))

    async def content(self, snapshot: Manifest) -> Manifest:
        """Return the content that a snapshot is bound to."""
        return await self.api.get(SNAPSHOT_CONTENT, status(snapshot)["boundVolumeSnapshotContentName"])

    async def handle(self, snapshot: Manifest) -> str:
        """Return the storage's own name of a snapshot."""
        return str(status(await self.content(snapshot))["snapshotHandle"])

    async def job(self, at: str, script: str, *, claims: dict[str, str] | None = None, **more: Any) -> Manifest:
        """Create a Job that runs a shell script with claims as devices `/dev/<name>`."""
        container: Manifest = {"name": "main", "image": "none", "command": ["sh", "-c", script]}
        container |= more.pop("container", {})
        volumes = [{"name": n, "persistentVolumeClaim": {"claimName": c}} for n, c in (claims or {}).items()]
        if claims:
            container["volumeDevices"] = [{"name": n, "devicePath": f"/dev/{n}"} for n in claims]
        pod: Manifest = {"restartPolicy": "Never", "containers": [container], "volumes": volumes}
        pod |= more.pop("pod", {})
        body = {
            "metadata": {"name": at, "namespace": "default"},
            "spec": {"template": {"spec": pod}, **more},
        }
        return await self.api.create(JOB, body)

    async def finished(self, job: Manifest, timeout_s: float = SHORT) -> Manifest:
        """Wait until a Job is Complete or Failed."""
        return await self.until(
            JOB,
            job,
            lambda j: any(
                c["type"] in {"Complete", "Failed"} and c["status"] == "True" for c in status(j).get("conditions") or []
            ),
            timeout_s,
        )

    async def pods(self, job: str) -> list[Manifest]:
        """Return a Job's pods."""
        found, _ = await self.api.list(POD, "default", selector=f"job-name={job}")
        return found

    async def token(self, account: str = "default", audience: str = "") -> str:
        """Return a token of a service account for the metadata service."""
        wanted = audience or spec(await self.api.get(METADATA_SERVICE, DRIVER))["audience"]
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": [wanted], "expirationSeconds": 600},
        }
        path = SERVICE_ACCOUNT.path("default", account, "token")
        return str(status(await self.api.call("POST", path, body=body))["token"])

    @asynccontextmanager
    async def metadata(self) -> AsyncIterator[SnapshotMetadataStub]:
        """Connect to the metadata service as its published object says."""
        found = spec(await self.api.get(METADATA_SERVICE, DRIVER))
        host, _, port = found["address"].rpartition(":")
        context = ssl.create_default_context(cadata=base64.b64decode(found["caCert"]).decode())
        context.set_alpn_protocols(["h2"])
        channel = Channel(host, int(port), ssl=context)
        try:
            yield SnapshotMetadataStub(channel)
        finally:
            channel.close()

    async def allocated(self, snapshot: str, start: int = 0, max_results: int = 0, token: str | None = None) -> Answer:
        """Ask for allocated ranges."""
        asked = GetMetadataAllocatedRequest(
            security_token=await self.token() if token is None else token,
            namespace="default",
            snapshot_name=snapshot,
            starting_offset=start,
            max_results=max_results,
        )
        async with self.metadata() as stub:
            return Answer([m async for m in stub.get_metadata_allocated(asked)])

    async def delta(self, base: str, snapshot: str, start: int = 0, max_results: int = 0) -> Answer:
        """Ask for changed ranges."""
        asked = GetMetadataDeltaRequest(
            security_token=await self.token(),
            namespace="default",
            base_snapshot_id=base,
            target_snapshot_name=snapshot,
            starting_offset=start,
            max_results=max_results,
        )
        async with self.metadata() as stub:
            return Answer([m async for m in stub.get_metadata_delta(asked)])


class Answer:
    """The messages of one stream."""

    def __init__(self, messages: list[Any]) -> None:
        self.messages = messages

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Return (offset, size) of every tuple."""
        return [(b.byte_offset, b.size_bytes) for m in self.messages for b in m.block_metadata]

    @property
    def blocks(self) -> set[int]:
        """Return the indices of the blocks that are covered."""
        return {b for at, size in self.ranges for b in range(at // BLOCK, -(-(at + size) // BLOCK))}
