"""The generated messages say on the wire exactly what the published protocol says."""

from __future__ import annotations

from collections.abc import AsyncIterator

import betterproto2
import pytest
from grpclib.client import Channel
from grpclib.server import Server

from orchestrator.wire import csi, health, snapshotmetadata

pytestmark = pytest.mark.quick

# The published field numbers, one row per message.
FIELDS: dict[type[betterproto2.Message], dict[str, int]] = {
    snapshotmetadata.GetMetadataAllocatedRequest: {
        "security_token": 1, "namespace": 2, "snapshot_name": 3, "starting_offset": 4, "max_results": 5,
    },
    snapshotmetadata.GetMetadataDeltaRequest: {
        "security_token": 1, "namespace": 2, "base_snapshot_id": 3, "target_snapshot_name": 4,
        "starting_offset": 5, "max_results": 6,
    },
    csi.GetMetadataAllocatedRequest: {"snapshot_id": 1, "starting_offset": 2, "max_results": 3, "secrets": 4},
    csi.GetMetadataDeltaRequest: {
        "base_snapshot_id": 1, "target_snapshot_id": 2, "starting_offset": 3, "max_results": 4, "secrets": 5,
    },
    snapshotmetadata.BlockMetadata: {"byte_offset": 1, "size_bytes": 2},
    csi.BlockMetadata: {"byte_offset": 1, "size_bytes": 2},
    **{
        response: {"block_metadata_type": 1, "volume_capacity_bytes": 2, "block_metadata": 3}
        for response in (
            snapshotmetadata.GetMetadataAllocatedResponse,
            snapshotmetadata.GetMetadataDeltaResponse,
            csi.GetMetadataAllocatedResponse,
            csi.GetMetadataDeltaResponse,
        )
    },
    health.HealthCheckRequest: {"service": 1},
    health.HealthCheckResponse: {"status": 1},
}  # fmt: skip


@pytest.mark.parametrize("message", FIELDS, ids=lambda m: f"{m.__module__.rsplit('.', 1)[-1]}.{m.__name__}")
def test_every_field_has_its_published_number(message: type[betterproto2.Message]) -> None:
    numbers = {field.name: field.metadata["betterproto"].number for field in message.__dataclass_fields__.values()}
    assert {name: number for name, number in numbers.items() if not name.startswith("_")} == FIELDS[message]


def test_a_response_has_the_published_bytes_and_leaves_zeros_out() -> None:
    response = snapshotmetadata.GetMetadataDeltaResponse(
        block_metadata_type=snapshotmetadata.BlockMetadataType.FIXED_LENGTH,
        volume_capacity_bytes=300,
        block_metadata=[
            snapshotmetadata.BlockMetadata(byte_offset=0, size_bytes=1),
            snapshotmetadata.BlockMetadata(byte_offset=128, size_bytes=1),
        ],
    )
    assert bytes(response) == b"\x08\x01\x10\xac\x02\x1a\x02\x10\x01\x1a\x05\x08\x80\x01\x10\x01"


def test_an_unknown_block_type_is_read_as_its_number() -> None:
    assert int(snapshotmetadata.GetMetadataDeltaResponse.parse(b"\x08\x07").block_metadata_type) == 7


def test_the_services_are_served_under_their_published_paths() -> None:
    assert set(snapshotmetadata.SnapshotMetadataBase().__mapping__()) == {
        "/snapshotmetadata.SnapshotMetadata/GetMetadataAllocated",
        "/snapshotmetadata.SnapshotMetadata/GetMetadataDelta",
    }
    assert set(csi.SnapshotMetadataBase().__mapping__()) == {
        "/csi.v1.SnapshotMetadata/GetMetadataAllocated",
        "/csi.v1.SnapshotMetadata/GetMetadataDelta",
    }
    assert "/csi.v1.Identity/GetPluginCapabilities" in csi.IdentityBase().__mapping__()
    assert "/grpc.health.v1.Health/Check" in health.HealthBase().__mapping__()
    assert csi.PluginCapabilityServiceType.SNAPSHOT_METADATA_SERVICE == 4


class _OneRange(snapshotmetadata.SnapshotMetadataBase):
    async def get_metadata_allocated(
        self, message: snapshotmetadata.GetMetadataAllocatedRequest
    ) -> AsyncIterator[snapshotmetadata.GetMetadataAllocatedResponse]:
        yield snapshotmetadata.GetMetadataAllocatedResponse(
            volume_capacity_bytes=8,
            block_metadata=[snapshotmetadata.BlockMetadata(byte_offset=message.starting_offset, size_bytes=4)],
        )


async def test_the_generated_server_and_client_speak_with_each_other() -> None:
    server = Server([_OneRange()])
    await server.start("127.0.0.1", 0)
    assert server._server is not None
    port = server._server.sockets[0].getsockname()[1]
    try:
        async with Channel("127.0.0.1", port) as channel:
            stub = snapshotmetadata.SnapshotMetadataStub(channel)
            request = snapshotmetadata.GetMetadataAllocatedRequest(starting_offset=4)
            got = [message async for message in stub.get_metadata_allocated(request)]
    finally:
        server.close()
        await server.wait_closed()
    assert [(block.byte_offset, block.size_bytes) for block in got[0].block_metadata] == [(4, 4)]
