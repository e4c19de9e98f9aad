"""Restore: a recovery point written to a new volume."""

from __future__ import annotations

import enum
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from orchestrator.api.meta import K8sObject, Resource
from orchestrator.api.tidemark.fields import (
    GROUP,
    VERSION,
    Conditions,
    Generation,
    Handle,
    Instant,
    LabelKey,
    LabelValue,
    Name,
    Namespace,
    ObjectName,
    Reason,
    Text,
    Uid,
)


class RestorePhase(enum.Enum):
    """How far a restore is."""

    PENDING = "Pending"
    PROVISIONING = "Provisioning"
    FILLING = "Filling"
    HANDING_OVER = "HandingOver"
    COMPLETED = "Completed"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


class AsOf(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The newest point of a claim that is not younger than an instant."""

    pvc: Annotated[Name, Meta(description="The claim that was backed up.")]
    time: Annotated[Instant | None, Meta(description="The instant. Absent: the newest point.")] = None
    repository: Annotated[
        Name | None, Meta(description="Look in this BackupRepository too, for points whose records are gone.")
    ] = None


class RepositoryPoint(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A point found in a repository, its RecoveryPoint gone."""

    repository: Annotated[Name, Meta(description="BackupRepository.")]
    point: Annotated[str, Meta(max_length=512, min_length=1, description="The point's id, as the listing shows it.")]


class RestoreSource(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What to restore. Exactly one."""

    point: Annotated[Name | None, Meta(description="RecoveryPoint of this namespace.")] = None
    pvc: Annotated[AsOf | None, Meta(description="A claim as of a time.")] = None
    backup: Annotated[Name | None, Meta(description="Every volume of a Backup, one child Restore each.")] = None
    repository_point: Annotated[RepositoryPoint | None, Meta(description="A point by its id.")] = None


class RestoreTarget(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Where to. The claim must not exist."""

    pvc_name: Annotated[
        Name | None,
        Meta(description="The new claim. Absent: the name that was backed up. Not with a Backup as source."),
    ] = None
    name_prefix: Annotated[str, Meta(max_length=40, description="Put before each claim's name.")] = ""
    namespace: Annotated[
        Namespace | None, Meta(description="Absent: here. Another one must accept restores from here.")
    ] = None
    storage_class_name: Annotated[Name | None, Meta(description="Absent: as mapped, else as it was.")] = None
    class_mapping: Annotated[
        dict[Name, Name], Meta(max_length=32, description="Storage class that was -> class to use.")
    ] = {}
    labels: Annotated[
        dict[LabelKey, LabelValue], Meta(max_length=32, description="Put on the claim, over those backed up.")
    ] = {}


class RestoreSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What to restore, and where to."""

    source: Annotated[RestoreSource, Meta(description="What.")]
    target: Annotated[RestoreTarget, Meta(description="Where to.")] = RestoreTarget()
    read_back: Annotated[bool, Meta(description="Read the target again and compare before handing it over.")] = True
    cancel: Annotated[bool, Meta(description="Set to true to stop it; a half-filled volume is removed.")] = False


class RestoreStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """How the restore goes."""

    observed_generation: Generation = 0
    phase: Annotated[RestorePhase, Meta(description="How far it is.")] = RestorePhase.PENDING
    reason: Annotated[Reason, Meta(description="Why it ended as it did.")] = ""
    message: Annotated[Text, Meta(description="The same in a sentence, with what to do.")] = ""
    start_time: Annotated[Instant | None, Meta(description="When work began.")] = None
    completion_time: Annotated[Instant | None, Meta(description="When it ended.")] = None
    point: Annotated[str, Meta(max_length=253, description="Name of the recovery point.")] = ""
    point_uid: Annotated[Uid, Meta(description="Uid of that recovery point.")] = ""
    point_time: Annotated[Instant | None, Meta(description="The instant that is restored.")] = None
    repository: Annotated[str, Meta(max_length=253, description="BackupRepository it comes from.")] = ""
    manifest_key: Annotated[str, Meta(max_length=512, description="The point's manifest.")] = ""
    manifest_digest: Annotated[str, Meta(max_length=128, description="Its digest.")] = ""
    size_bytes: Annotated[int, Meta(ge=0, description="Bytes of the volume.")] = 0
    target_namespace: Annotated[str, Meta(max_length=63, description="Where the claim is made.")] = ""
    target_pvc: Annotated[str, Meta(max_length=253, description="The claim.")] = ""
    prime: Annotated[
        str, Meta(max_length=253, description="The claim that is filled, in the controller's namespace.")
    ] = ""
    volume: Annotated[str, Meta(max_length=253, description="The PersistentVolume handed over.")] = ""
    volume_handle: Annotated[Handle, Meta(description="The volume, as the driver names it.")] = ""
    saved_volume: Annotated[
        str,
        Meta(max_length=16384, description="The PersistentVolume to make again, as JSON, saved before the old goes."),
    ] = ""
    saved_claim: Annotated[str, Meta(max_length=16384, description="The target claim to make, as JSON.")] = ""
    granted_time: Annotated[Instant | None, Meta(description="When a mover slot was granted.")] = None
    filled: Annotated[bool, Meta(description="The volume holds the point, verified.")] = False
    attempts: Annotated[int, Meta(ge=0, description="Mover Jobs started.")] = 0
    sha256: Annotated[str, Meta(max_length=64, description="Of the whole volume as read back.")] = ""
    progress: Annotated[str, Meta(max_length=32, description="While it is filled, such as 45%.")] = ""
    children: Annotated[
        tuple[ObjectName, ...], Meta(max_length=1000, description="Restores made for the volumes of a Backup.")
    ] = ()
    conditions: Conditions = ()


class Restore(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A recovery point written to a new volume. Deleting it leaves the restored volume alone."""

    RESOURCE: ClassVar[Resource] = Resource(GROUP, VERSION, "Restore", "restores", namespaced=True)

    spec: RestoreSpec
    status: RestoreStatus = RestoreStatus()
