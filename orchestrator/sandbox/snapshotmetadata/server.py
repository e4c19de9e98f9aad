"""The service that clients call: `snapshotmetadata.SnapshotMetadata` over TLS, found through the driver's
SnapshotMetadataService.

The order of checks and the codes are those of the reference sidecar (cbt-contract 2.2); where that one crashes, this
answers UNAVAILABLE. A token is sent to the API server's TokenReview and nowhere else; it never reaches a log or
an error.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import grpclib.server
import trustme
from grpclib import GRPCError
from grpclib.const import Cardinality, Handler, Status

from orchestrator.sandbox.api import Api, ApiError, NotFound, wait_until_served
from orchestrator.sandbox.faults import CONFIG_NAME, NAMESPACE, Faults
from orchestrator.sandbox.kinds import (
    ACCESS_REVIEW,
    CONFIG_MAP,
    DRIVER,
    METADATA_SERVICE,
    SNAPSHOT,
    SNAPSHOT_CLASS,
    SNAPSHOT_CONTENT,
    TOKEN_REVIEW,
)
from orchestrator.sandbox.objects import Manifest, annotations_of, name, spec, status
from orchestrator.sandbox.roles import Part, Runnable
from orchestrator.sandbox.snapshotmetadata.core import Metadata
from orchestrator.sandbox.snapshotmetadata.driver import DriverSocket
from orchestrator.sandbox.snapshotmetadata.encoding import Encoded
from orchestrator.sandbox.snapshotmetadata.listener import Listener
from orchestrator.sandbox.snapshotmetadata.sabotage import messages, refuse, send
from orchestrator.sandbox.storage.images import ImageStore
from orchestrator.sandbox.storage.snapshot_controller import IS_DEFAULT
from orchestrator.wire.health import (
    HealthBase,
    HealthCheckRequest,
    HealthCheckResponse,
    HealthCheckResponseServingStatus,
)
from orchestrator.wire.snapshotmetadata import GetMetadataAllocatedRequest, GetMetadataDeltaRequest

log = logging.getLogger(__name__)

AUDIENCE = f"{DRIVER}/snapshot-metadata"
_SERVICE = "/snapshotmetadata.SnapshotMetadata"
_LONGEST_STREAM_S = 600.0


class _Request(Protocol):
    security_token: str
    namespace: str
    starting_offset: int
    max_results: int


class Gate:
    """Decides whether a call may go to the driver, and for which snapshot handle."""

    def __init__(self, api: Api, faults: Faults) -> None:
        self._api = api
        self._faults = faults

    async def check(self, request: _Request, snapshot_name: str, base_id: str | None) -> str:
        """Return the handle of the named snapshot. Raises GRPCError in the order of cbt-contract 2.2."""
        for value, field in (
            (request.security_token, "securityToken"),
            (request.namespace, "namespace"),
            (base_id, "baseSnapshotId"),
            (snapshot_name, "snapshotName"),
        ):
            if value == "":
                raise GRPCError(Status.INVALID_ARGUMENT, f"{field} cannot be empty")
        user = await self._authenticate(request.security_token)
        await self._authorize(user, request.namespace)
        return await self._handle(request.namespace, snapshot_name)

    async def _authenticate(self, token: str) -> Manifest:
        try:
            audience = spec(await self._api.get(METADATA_SERVICE, DRIVER))["audience"]
        except (ApiError, KeyError) as err:
            raise GRPCError(Status.INTERNAL, f"the audience of SnapshotMetadataService {DRIVER} is unknown") from err
        review = {
            "apiVersion": TOKEN_REVIEW.api_version,
            "kind": TOKEN_REVIEW.kind,
            "spec": {"token": token, "audiences": [audience]},
        }
        try:
            answer = status(await self._api.call("POST", TOKEN_REVIEW.path(), body=review))
        except ApiError as err:
            raise GRPCError(Status.INTERNAL, "the token could not be reviewed") from err
        known = answer.get("authenticated") and audience in (answer.get("audiences") or [])
        if not known or self._faults.on("cbt-bad-token"):
            raise GRPCError(Status.UNAUTHENTICATED, "the security token is not valid for this service")
        user: Manifest = answer.get("user") or {}
        return user

    async def _authorize(self, user: Manifest, namespace: str) -> None:
        review = {
            "apiVersion": ACCESS_REVIEW.api_version,
            "kind": ACCESS_REVIEW.kind,
            "spec": {
                "user": user.get("username"),
                "uid": user.get("uid"),
                "groups": user.get("groups") or [],
                "extra": user.get("extra") or {},
                "resourceAttributes": {
                    "verb": "get",
                    "group": SNAPSHOT.group,
                    "version": SNAPSHOT.version,
                    "resource": SNAPSHOT.plural,
                    "namespace": namespace,
                },
            },
        }
        try:
            answer = status(await self._api.call("POST", ACCESS_REVIEW.path(), body=review))
        except ApiError as err:
            raise GRPCError(Status.INTERNAL, "the caller's rights could not be reviewed") from err
        if not answer.get("allowed") or answer.get("denied") or self._faults.on("cbt-forbidden"):
            who = user.get("username")
            raise GRPCError(
                Status.PERMISSION_DENIED, f"{who} may not get volumesnapshots.{SNAPSHOT.group} in namespace {namespace}"
            )

    async def _handle(self, namespace: str, snapshot_name: str) -> str:
        what = f"VolumeSnapshot '{namespace}/{snapshot_name}'"
        try:
            snapshot = await self._api.get(SNAPSHOT, snapshot_name, namespace)
        except ApiError as err:
            raise GRPCError(Status.UNAVAILABLE, f"failed to get {what}") from err
        bound = status(snapshot).get("boundVolumeSnapshotContentName")
        if not status(snapshot).get("readyToUse") or not bound:
            raise GRPCError(Status.UNAVAILABLE, f"{what} is not ready or not bound")
        try:
            content = await self._api.get(SNAPSHOT_CONTENT, bound)
        except ApiError as err:
            raise GRPCError(Status.UNAVAILABLE, f"failed to get VolumeSnapshotContent '{bound}'") from err
        handle = status(content).get("snapshotHandle")
        if not status(content).get("readyToUse") or not handle:
            raise GRPCError(Status.UNAVAILABLE, f"VolumeSnapshotContent '{bound}' is not ready or has no handle")
        if spec(content).get("driver") != DRIVER:
            raise GRPCError(Status.INVALID_ARGUMENT, f"{what} is of driver {spec(content).get('driver')}, not {DRIVER}")
        await self._check_class(spec(snapshot).get("volumeSnapshotClassName"))
        return str(handle)

    async def _check_class(self, class_name: str | None) -> None:
        """Find the class for its secrets, as the reference does: without one it can't serve the call (T12, T13)."""
        try:
            if class_name:
                await self._api.get(SNAPSHOT_CLASS, class_name)
                return
            classes, _ = await self._api.list(SNAPSHOT_CLASS)
        except NotFound as err:
            raise GRPCError(Status.UNAVAILABLE, f"VolumeSnapshotClass '{class_name}' is missing") from err
        except ApiError as err:
            raise GRPCError(Status.UNAVAILABLE, "failed to get the VolumeSnapshotClass") from err
        defaults = [
            name(c) for c in classes if c.get("driver") == DRIVER and annotations_of(c).get(IS_DEFAULT) == "true"
        ]
        if len(defaults) != 1:
            raise GRPCError(Status.UNAVAILABLE, f"{len(defaults)} default VolumeSnapshotClasses for driver {DRIVER}")


class Service:
    """The two streaming calls; replies are encoded by `encoding`, so grpclib is given bytes."""

    def __init__(
        self, gate: Gate, metadata: Metadata, faults: Faults, longest_stream_s: float = _LONGEST_STREAM_S
    ) -> None:
        self._gate = gate
        self._metadata = metadata
        self._faults = faults
        self._longest_stream_s = longest_stream_s

    def __mapping__(self) -> dict[str, Handler]:
        return {
            f"{_SERVICE}/GetMetadataAllocated": Handler(
                self._allocated, Cardinality.UNARY_STREAM, GetMetadataAllocatedRequest, Encoded
            ),
            f"{_SERVICE}/GetMetadataDelta": Handler(
                self._delta, Cardinality.UNARY_STREAM, GetMetadataDeltaRequest, Encoded
            ),
        }

    async def _allocated(self, stream: grpclib.server.Stream[GetMetadataAllocatedRequest, Encoded]) -> None:
        request = await stream.recv_message()
        assert request is not None
        async with self._limit():
            handle = await self._gate.check(request, request.snapshot_name, None)
            refuse(self._faults, delta=False)
            answer = await self._metadata.allocated(handle, request.starting_offset, request.max_results)
            await send(stream, messages(answer, request.starting_offset, request.max_results, self._faults))

    async def _delta(self, stream: grpclib.server.Stream[GetMetadataDeltaRequest, Encoded]) -> None:
        request = await stream.recv_message()
        assert request is not None
        async with self._limit():
            handle = await self._gate.check(request, request.target_snapshot_name, request.base_snapshot_id)
            refuse(self._faults, delta=True)
            answer = await self._metadata.delta(
                request.base_snapshot_id, handle, request.starting_offset, request.max_results
            )
            await send(stream, messages(answer, request.starting_offset, request.max_results, self._faults))

    def _limit(self) -> _Limit:
        return _Limit(self._longest_stream_s)


class _Limit:
    """The reference sidecar's limit on a whole call."""

    def __init__(self, seconds: float) -> None:
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *raised: Any) -> None:
        try:
            await self._timeout.__aexit__(*raised)
        except TimeoutError as err:
            if self._timeout.expired():
                raise GRPCError(Status.DEADLINE_EXCEEDED, "the stream took longer than the server allows") from err
            raise


class Health(HealthBase):
    """grpc.health.v1, for the empty service name only, as the reference registers it."""

    async def check(self, message: HealthCheckRequest) -> HealthCheckResponse:
        """Answer SERVING."""
        if message.service:
            raise GRPCError(Status.NOT_FOUND, "unknown service")
        return HealthCheckResponse(status=HealthCheckResponseServingStatus.SERVING)

    async def watch(self, message: HealthCheckRequest) -> AsyncIterator[HealthCheckResponse]:
        """Answer once: the status never changes while the server lives."""
        yield await self.check(message)


class MetadataServer(Part):
    """The service as a program: publishes its address, audience and CA in the driver's SnapshotMetadataService."""

    name = "snapshot-metadata"

    def __init__(
        self,
        api: Api,
        directory: Path,
        *,
        block_bytes: int = 65536,
        fixed: bool = False,
        port: int = 0,
        longest_stream_s: float = _LONGEST_STREAM_S,
        faults: Faults | None = None,
    ) -> None:
        super().__init__(api)
        switches = self.mirror(CONFIG_MAP, NAMESPACE)
        self.faults = faults or Faults(switches)
        self._authority = trustme.CA()
        metadata = Metadata(ImageStore(directory), self.faults, block_bytes=block_bytes, fixed=fixed)
        self._socket = DriverSocket(directory / "csi.sock", metadata, self.faults)
        service = Service(Gate(api, self.faults), metadata, self.faults, longest_stream_s)
        self.listener = Listener([service, Health()], self._tls(), lambda: not self.faults.on("cbt-down"), port)
        switches.listen(lambda obj, _gone: self.listener.changed() if name(obj) == CONFIG_NAME else None)

    def _tls(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        self._authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
        return context

    async def setup(self) -> list[Runnable]:
        """Publish the service; return what listens."""
        await self._socket.open()
        self.listener.reserve()
        ca = base64.b64encode(self._authority.cert_pem.bytes()).decode()
        published = {"address": f"localhost:{self.listener.port}", "audience": AUDIENCE, "caCert": ca}
        await wait_until_served(self.api, METADATA_SERVICE)  # the storage installs the kind, maybe at the same time
        await self.api.ensure(METADATA_SERVICE, {"metadata": {"name": DRIVER}, "spec": published})
        return [self.listener]

    async def teardown(self) -> None:
        """Close the driver's socket."""
        await self._socket.close()
