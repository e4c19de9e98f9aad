"""core/v1, batch/v1 and storage.k8s.io/v1 slices."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

import msgspec

from orchestrator.api.meta import K8sObject, Resource
from orchestrator.api.quantity import parse_quantity


class Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Base of nested slices."""


class Namespace(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A namespace; kube-system's uid is the cluster id."""

    RESOURCE: ClassVar[Resource] = Resource("", "v1", "Namespace", "namespaces", namespaced=False)


class Secret(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A secret of the controller's namespace. `repr` shows no data."""

    RESOURCE: ClassVar[Resource] = Resource("", "v1", "Secret", "secrets", namespaced=True)

    type: str = "Opaque"
    data: dict[str, bytes] = {}
    """Decoded from base64 by msgspec."""

    def __repr__(self) -> str:
        return f"Secret({self.metadata.namespace}/{self.metadata.name}, keys={sorted(self.data)})"


class TypedReference(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A dataSource."""

    api_group: str | None = None
    kind: str = ""
    name: str = ""


class ResourceRequests(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What a claim asks for."""

    requests: dict[str, str] = {}


class PVCSpec(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A claim's spec."""

    access_modes: tuple[str, ...] = ()
    resources: ResourceRequests = ResourceRequests()
    storage_class_name: str | None = None
    volume_mode: str = "Filesystem"
    volume_name: str = ""
    data_source: TypedReference | None = None
    selector: dict[str, Any] | None = None


class PVCStatus(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A claim's status."""

    phase: str = ""
    capacity: dict[str, str] = {}


class PersistentVolumeClaim(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A claim."""

    RESOURCE: ClassVar[Resource] = Resource(
        "", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", namespaced=True
    )

    spec: PVCSpec = PVCSpec()
    status: PVCStatus = PVCStatus()

    @property
    def bound(self) -> bool:
        """Return whether it is bound to a volume."""
        return self.status.phase == "Bound" and bool(self.spec.volume_name)


class ObjectReference(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A claimRef, an involvedObject, a volumeSnapshotRef."""

    api_version: str = ""
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""


class CSISource(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The CSI side of a volume."""

    driver: str = ""
    volume_handle: str = ""
    fs_type: str = ""
    volume_attributes: dict[str, str] = {}


class PVSpec(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The slice of a volume's spec that we decide on. The whole spec, to make it again, is read raw."""

    capacity: dict[str, str] = {}
    access_modes: tuple[str, ...] = ()
    volume_mode: str = "Filesystem"
    storage_class_name: str = ""
    persistent_volume_reclaim_policy: str = ""
    claim_ref: ObjectReference | None = None
    csi: CSISource | None = None
    node_affinity: dict[str, Any] | None = None
    mount_options: tuple[str, ...] = ()


class PVStatus(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A volume's status."""

    phase: str = ""


class PersistentVolume(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A volume."""

    RESOURCE: ClassVar[Resource] = Resource("", "v1", "PersistentVolume", "persistentvolumes", namespaced=False)

    spec: PVSpec = PVSpec()
    status: PVStatus = PVStatus()

    @property
    def capacity_bytes(self) -> int:
        """Return its size, 0 when unknown."""
        return parse_quantity(self.spec.capacity.get("storage", "0"))


class RawPersistentVolume(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A volume with its spec as it stands, to be saved and made again."""

    RESOURCE: ClassVar[Resource] = PersistentVolume.RESOURCE

    spec: dict[str, Any] = {}


class RawPersistentVolumeClaim(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A claim with its spec as it stands, for the manifest."""

    RESOURCE: ClassVar[Resource] = PersistentVolumeClaim.RESOURCE

    spec: dict[str, Any] = {}


class StorageClass(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A storage class."""

    RESOURCE: ClassVar[Resource] = Resource("storage.k8s.io", "v1", "StorageClass", "storageclasses", namespaced=False)

    provisioner: str = ""
    volume_binding_mode: str = "Immediate"
    reclaim_policy: str = "Delete"
    parameters: dict[str, str] = {}


class VolumeAttachmentSource(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What is attached."""

    persistent_volume_name: str | None = None


class VolumeAttachmentSpec(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """An attachment's spec."""

    attacher: str = ""
    node_name: str = ""
    source: VolumeAttachmentSource = VolumeAttachmentSource()


class VolumeAttachment(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A volume attached to a node."""

    RESOURCE: ClassVar[Resource] = Resource(
        "storage.k8s.io", "v1", "VolumeAttachment", "volumeattachments", namespaced=False
    )

    spec: VolumeAttachmentSpec = VolumeAttachmentSpec()


class JobCondition(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A Job's condition."""

    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""


class JobStatus(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A Job's status."""

    active: int = 0
    succeeded: int = 0
    failed: int = 0
    start_time: datetime | None = None
    completion_time: datetime | None = None
    conditions: tuple[JobCondition, ...] = ()


class JobSpec(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The part of a Job's spec that we read back; Jobs are made from a whole manifest in volumes/job."""

    parallelism: int | None = None
    completions: int | None = None
    suspend: bool = False


class Job(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A mover's Job."""

    RESOURCE: ClassVar[Resource] = Resource("batch", "v1", "Job", "jobs", namespaced=True)

    spec: JobSpec = JobSpec()
    status: JobStatus = JobStatus()

    def _is(self, type_: str) -> bool:
        return any(c.type == type_ and c.status == "True" for c in self.status.conditions)

    @property
    def complete(self) -> bool:
        """Return whether all its pods succeeded."""
        return self._is("Complete")

    @property
    def failed(self) -> bool:
        """Return whether it gave up."""
        return self._is("Failed")


class Terminated(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """How a container ended."""

    exit_code: int = 0
    reason: str = ""
    message: str = ""


class Waiting(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Why a container does not run yet."""

    reason: str = ""
    message: str = ""


class ContainerState(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A container's state."""

    terminated: Terminated | None = None
    waiting: Waiting | None = None


class ContainerStatus(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A container's status."""

    name: str = ""
    state: ContainerState = ContainerState()


class PodCondition(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A Pod's condition."""

    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""


class PodStatus(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A Pod's status."""

    phase: str = ""
    reason: str = ""
    message: str = ""
    conditions: tuple[PodCondition, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()


class PodSpec(Part, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A Pod's spec."""

    node_name: str = ""


class Pod(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A mover's pod."""

    RESOURCE: ClassVar[Resource] = Resource("", "v1", "Pod", "pods", namespaced=True)

    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class Event(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A core Event, read for what keeps a claim back."""

    RESOURCE: ClassVar[Resource] = Resource("", "v1", "Event", "events", namespaced=True)

    involved_object: ObjectReference = ObjectReference()
    type: str = ""
    reason: str = ""
    message: str = ""
    last_timestamp: datetime | None = None
