"""snapshot.storage.k8s.io/v1 and cbt.storage.k8s.io slices.

Name traps: the API group ends in `k8s.io`, annotations and finalizers in `kubernetes.io`.
"""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from orchestrator.api.foreign.core import ObjectReference, Part
from orchestrator.api.meta import K8sObject, Resource

SNAPSHOT_GROUP = "snapshot.storage.k8s.io"
ANNOTATION_MODE_CHANGE = "snapshot.storage.kubernetes.io/allow-volume-mode-change"
ANNOTATION_BEING_DELETED = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted"
ANNOTATION_DEFAULT_CLASS = "snapshot.storage.kubernetes.io/is-default-class"
LABEL_MANAGED_BY = "snapshot.storage.kubernetes.io/managed-by"


class VolumeSnapshotSource(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What a snapshot is of."""

    persistent_volume_claim_name: str | None = None
    volume_snapshot_content_name: str | None = None


class VolumeSnapshotSpec(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A snapshot's spec."""

    source: VolumeSnapshotSource = VolumeSnapshotSource()
    volume_snapshot_class_name: str | None = None


class SnapshotError(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What went wrong last. Not terminal: both snapshot controllers retry."""

    time: datetime | None = None
    message: str = ""


class VolumeSnapshotStatus(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A snapshot's status."""

    bound_volume_snapshot_content_name: str | None = None
    creation_time: datetime | None = None
    ready_to_use: bool | None = None
    restore_size: str | None = None
    error: SnapshotError | None = None
    volume_group_snapshot_name: str | None = None


class VolumeSnapshot(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A snapshot. `status` may be absent: check it before any use and before any metadata call."""

    RESOURCE: ClassVar[Resource] = Resource(SNAPSHOT_GROUP, "v1", "VolumeSnapshot", "volumesnapshots", namespaced=True)

    spec: VolumeSnapshotSpec = VolumeSnapshotSpec()
    status: VolumeSnapshotStatus | None = None


class ContentSource(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What a content is of."""

    volume_handle: str | None = None
    snapshot_handle: str | None = None


class VolumeSnapshotContentSpec(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A content's spec."""

    driver: str = ""
    deletion_policy: str = ""
    source: ContentSource = ContentSource()
    source_volume_mode: str | None = None
    volume_snapshot_class_name: str | None = None
    volume_snapshot_ref: ObjectReference = ObjectReference()


class VolumeSnapshotContentStatus(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A content's status. creationTime is in ns, restoreSize in bytes."""

    snapshot_handle: str | None = None
    creation_time: int | None = None
    restore_size: int | None = None
    ready_to_use: bool | None = None
    error: SnapshotError | None = None
    volume_group_snapshot_handle: str | None = None


class VolumeSnapshotContent(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The physical side of a snapshot."""

    RESOURCE: ClassVar[Resource] = Resource(
        SNAPSHOT_GROUP, "v1", "VolumeSnapshotContent", "volumesnapshotcontents", namespaced=False
    )

    spec: VolumeSnapshotContentSpec = VolumeSnapshotContentSpec()
    status: VolumeSnapshotContentStatus | None = None


class VolumeSnapshotClass(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A snapshot class."""

    RESOURCE: ClassVar[Resource] = Resource(
        SNAPSHOT_GROUP, "v1", "VolumeSnapshotClass", "volumesnapshotclasses", namespaced=False
    )

    driver: str = ""
    deletion_policy: str = ""
    parameters: dict[str, str] = {}


class SnapshotMetadataServiceSpec(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Where a driver's CBT service is."""

    address: str = ""
    audience: str = ""
    ca_cert: bytes = b""


class SnapshotMetadataService(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A driver's CBT service, named as the driver."""

    RESOURCE: ClassVar[Resource] = Resource(
        "cbt.storage.k8s.io", "v1beta1", "SnapshotMetadataService", "snapshotmetadataservices", namespaced=False
    )
    VERSIONS: ClassVar[tuple[str, ...]] = ("v1", "v1beta1", "v1alpha1")
    """Best first; the schema is the same."""

    spec: SnapshotMetadataServiceSpec = SnapshotMetadataServiceSpec()
