"""The driver's own side: `csi.v1.SnapshotMetadata` and `csi.v1.Identity` on a Unix socket, as a real sidecar calls it.

No token and no TLS here: whoever may open the socket may ask (cbt-contract 1.1). Answers come from the same `core` as
those of the service, so both tell the same.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import grpclib.server
from grpclib.const import Cardinality, Handler

from orchestrator.sandbox.faults import Faults
from orchestrator.sandbox.snapshotmetadata.core import Metadata
from orchestrator.sandbox.snapshotmetadata.encoding import Encoded
from orchestrator.sandbox.snapshotmetadata.listener import DroppingServer
from orchestrator.sandbox.snapshotmetadata.sabotage import messages, refuse, send
from orchestrator.wire.csi import (
    GetMetadataAllocatedRequest,
    GetMetadataDeltaRequest,
    GetPluginCapabilitiesRequest,
    GetPluginCapabilitiesResponse,
    IdentityBase,
    PluginCapability,
    PluginCapabilityService,
    PluginCapabilityServiceType,
)

log = logging.getLogger(__name__)

_LONGEST_PATH = 107
_SERVICE = "/csi.v1.SnapshotMetadata"


class DriverService:
    """The two streaming calls of the driver, by snapshot handle."""

    def __init__(self, metadata: Metadata, faults: Faults) -> None:
        self._metadata = metadata
        self._faults = faults

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
        refuse(self._faults, delta=False)
        answer = await self._metadata.allocated(request.snapshot_id, request.starting_offset, request.max_results)
        await send(stream, messages(answer, request.starting_offset, request.max_results, self._faults))

    async def _delta(self, stream: grpclib.server.Stream[GetMetadataDeltaRequest, Encoded]) -> None:
        request = await stream.recv_message()
        assert request is not None
        refuse(self._faults, delta=True)
        answer = await self._metadata.delta(
            request.base_snapshot_id, request.target_snapshot_id, request.starting_offset, request.max_results
        )
        await send(stream, messages(answer, request.starting_offset, request.max_results, self._faults))


class Identity(IdentityBase):
    """Says that the driver serves snapshot metadata."""

    async def get_plugin_capabilities(self, message: GetPluginCapabilitiesRequest) -> GetPluginCapabilitiesResponse:
        """Answer with service type 4."""
        kind = PluginCapabilityServiceType.SNAPSHOT_METADATA_SERVICE
        return GetPluginCapabilitiesResponse(
            capabilities=[PluginCapability(service=PluginCapabilityService(type=kind))]
        )


class DriverSocket:
    """Serves the driver's side on a Unix socket that only this user may open."""

    name = "driver-socket"

    def __init__(self, path: Path, metadata: Metadata, faults: Faults) -> None:
        self._path = path
        self._open = False
        self._server = DroppingServer([DriverService(metadata, faults), Identity()])

    async def open(self) -> None:
        """Listen; a directory whose path is too long for a socket goes without."""
        if len(os.fsencode(self._path)) > _LONGEST_PATH:
            log.warning("no CSI socket: %s is longer than %d bytes", self._path, _LONGEST_PATH)
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            await self._server.start(path=str(self._path))
        finally:
            os.umask(before)
        self._open = True

    async def close(self) -> None:
        """Stop and cut every connection."""
        if not self._open:
            return
        self._server.drop()
        await self._server.wait_closed()
        self._path.unlink(missing_ok=True)
