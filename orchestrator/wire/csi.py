"""Name the messages and stubs of the CSI subset: `csi.v1.SnapshotMetadata` and `csi.v1.Identity`, on a driver's socket.

A request may hold secrets and its generated `repr` shows them: never log or format one.
"""

from orchestrator.wire._generated.csi.v1 import (
    BlockMetadata,
    BlockMetadataType,
    GetMetadataAllocatedRequest,
    GetMetadataAllocatedResponse,
    GetMetadataDeltaRequest,
    GetMetadataDeltaResponse,
    GetPluginCapabilitiesRequest,
    GetPluginCapabilitiesResponse,
    IdentityBase,
    IdentityStub,
    PluginCapability,
    PluginCapabilityService,
    PluginCapabilityServiceType,
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
    "GetPluginCapabilitiesRequest",
    "GetPluginCapabilitiesResponse",
    "IdentityBase",
    "IdentityStub",
    "PluginCapability",
    "PluginCapabilityService",
    "PluginCapabilityServiceType",
    "SnapshotMetadataBase",
    "SnapshotMetadataStub",
]
