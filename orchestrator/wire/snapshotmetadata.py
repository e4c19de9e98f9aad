"""Name the messages and stubs of `snapshotmetadata.SnapshotMetadata`, the API that backup clients call.

A request holds a security token and its generated `repr` shows it: never log or format one.
"""

from orchestrator.wire._generated.snapshotmetadata import (
    BlockMetadata,
    BlockMetadataType,
    GetMetadataAllocatedRequest,
    GetMetadataAllocatedResponse,
    GetMetadataDeltaRequest,
    GetMetadataDeltaResponse,
    SnapshotMetadataBase,
    SnapshotMetadataStub,
)

__all__ = [
    "BlockMetadata",
    "BlockMetadataType",
    "GetMetadataAllocatedRequest",
    "GetMetadataAllocatedResponse",
    "GetMetadataDeltaRequest",
    "GetMetadataDeltaResponse",
    "SnapshotMetadataBase",
    "SnapshotMetadataStub",
]
