"""RecoveryPoint: one volume at one moment. A small state machine while it is made, the record of it afterwards."""

from __future__ import annotations

import enum
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from orchestrator.api.meta import K8sObject, Resource
from orchestrator.api.tidemark.backup_policy import VolumeOptions
from orchestrator.api.tidemark.fields import (
    GROUP,
    VERSION,
    Bytes,
    Conditions,
    Generation,
    Handle,
    Instant,
    Name,
    Reason,
    Seconds,
    Text,
    Uid,
)


class PointPhase(enum.Enum):
    """How far a point is."""

    PENDING = "Pending"
    SNAPSHOTTING = "Snapshotting"
    PLANNING = "Planning"
    WAITING = "Waiting"
    COPYING = "Copying"
    COMPLETED = "Completed"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


TRANSITIONS: dict[PointPhase, frozenset[PointPhase]] = {
    PointPhase.PENDING: frozenset({PointPhase.SNAPSHOTTING, PointPhase.FAILED, PointPhase.CANCELLED}),
    PointPhase.SNAPSHOTTING: frozenset(
        {PointPhase.PLANNING, PointPhase.COMPLETED, PointPhase.FAILED, PointPhase.CANCELLED}
    ),
    PointPhase.PLANNING: frozenset(
        {PointPhase.WAITING, PointPhase.COPYING, PointPhase.COMPLETED, PointPhase.FAILED, PointPhase.CANCELLED}
    ),
    PointPhase.WAITING: frozenset({PointPhase.COPYING, PointPhase.COMPLETED, PointPhase.FAILED, PointPhase.CANCELLED}),
    PointPhase.COPYING: frozenset({PointPhase.WAITING, PointPhase.COMPLETED, PointPhase.FAILED, PointPhase.CANCELLED}),
    PointPhase.COMPLETED: frozenset(),
    PointPhase.FAILED: frozenset(),
    PointPhase.CANCELLED: frozenset(),
}
"""Where each phase may go. A snapshot-only point completes from Snapshotting."""

FINAL_PHASES = frozenset(phase for phase, after in TRANSITIONS.items() if not after)


class PolicyRef(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The policy that asked for the point, by name and uid (a policy of the same name made later is another)."""

    name: Annotated[Name, Meta(description="Its name.")]
    uid: Annotated[Uid, Meta(description="Its uid.")]


class RecoveryPointSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What the point is of. Fixed when made, but for `prune` and `cancel`."""

    pvc_name: Annotated[Name, Meta(description="The claim.")]
    pvc_uid: Annotated[Uid, Meta(description="Its uid: a claim of the same name made later is another volume.")]
    policy: Annotated[
        PolicyRef | None, Meta(description="The policy whose retention holds it; absent on inline backups.")
    ] = None
    backup: Annotated[Name | None, Meta(description="The Backup that asked for it.")] = None
    slot: Annotated[Instant | None, Meta(description="The schedule's nominal time; absent on demand.")] = None
    repository: Annotated[Name | None, Meta(description="BackupRepository; absent: a snapshot only.")] = None
    full: Annotated[bool, Meta(description="Read the whole volume.")] = False
    options: Annotated[VolumeOptions, Meta(description="How it is made.")] = VolumeOptions()
    expires: Annotated[Instant | None, Meta(description="On-demand points: dropped after this instant.")] = None
    prune: Annotated[
        bool, Meta(description="Set to true to ask for removal of the data; the controller then deletes this record.")
    ] = False
    cancel: Annotated[bool, Meta(description="Set to true to stop it while it is made.")] = False


class PointBase(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The point that a delta was taken against."""

    point: Annotated[str, Meta(max_length=253, description="Its name.")] = ""
    uid: Annotated[Uid, Meta(description="Its uid.")] = ""
    snapshot_handle: Annotated[Handle, Meta(description="The id that the delta named as base.")] = ""


class PointManifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Where the point lives in the repository. The digest, kept here, shows a rolled-back repository."""

    key: Annotated[str, Meta(max_length=512, description="Object key of the manifest.")]
    digest: Annotated[str, Meta(max_length=128, description="Digest of the sealed manifest.")]
    repository_id: Annotated[str, Meta(max_length=64, description="The repository's own id.")] = ""


class RecoveryPointStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What is known of the point; at most 3 KiB."""

    observed_generation: Generation = 0
    phase: Annotated[PointPhase, Meta(description="How far it is.")] = PointPhase.PENDING
    reason: Annotated[Reason, Meta(description="Why it failed, or why it was not a delta.")] = ""
    message: Annotated[Text, Meta(description="The same in a sentence, with what to do.")] = ""
    start_time: Annotated[Instant | None, Meta(description="When work began.")] = None
    snapshot_time: Annotated[
        Instant | None, Meta(description="The instant the point stands for: the snapshot's creationTime.")
    ] = None
    completion_time: Annotated[Instant | None, Meta(description="When it was completed or failed.")] = None
    first_seen: Annotated[Instant | None, Meta(description="When the snapshot's time was first seen.")] = None
    ready_time: Annotated[Instant | None, Meta(description="When the snapshot was first seen ready.")] = None
    planned_time: Annotated[Instant | None, Meta(description="When the copy plan was stored.")] = None
    granted_time: Annotated[Instant | None, Meta(description="When a mover slot was granted.")] = None
    sequence: Annotated[int, Meta(ge=0, description="Its place in the volume's lineage.")] = 0
    driver: Annotated[str, Meta(max_length=253, description="CSI driver.")] = ""
    volume_handle: Annotated[Handle, Meta(description="The volume, as the driver names it.")] = ""
    snapshot_name: Annotated[str, Meta(max_length=253, description="VolumeSnapshot in this namespace.")] = ""
    snapshot_uid: Annotated[Uid, Meta(description="Uid of that VolumeSnapshot.")] = ""
    content_name: Annotated[str, Meta(max_length=253, description="Its VolumeSnapshotContent.")] = ""
    snapshot_handle: Annotated[Handle, Meta(description="The physical snapshot, as the driver names it.")] = ""
    base_id: Annotated[Handle, Meta(description="What the next delta will name as base.")] = ""
    snapshot_kept: Annotated[bool, Meta(description="Whether the physical snapshot is still kept.")] = False
    restore_size: Annotated[int, Meta(ge=0, description="Bytes of the volume.")] = 0
    volume_mode: Annotated[str, Meta(max_length=16, description="Block or Filesystem.")] = ""
    intent: Annotated[str, Meta(max_length=128, description="The writer's intent in the repository.")] = ""
    requested_mode: Annotated[str, Meta(max_length=16, description="delta, allocated or full.")] = ""
    mode: Annotated[str, Meta(max_length=16, description="What it became: delta, allocated, full or snapshot.")] = ""
    fallback_reason: Annotated[Reason, Meta(description="Why the mode is not the requested one.")] = ""
    base: Annotated[PointBase | None, Meta(description="What a delta was taken against.")] = None
    attempts: Annotated[int, Meta(ge=0, description="Mover Jobs started.")] = 0
    node: Annotated[str, Meta(max_length=253, description="Where the mover ran last.")] = ""
    bytes: Annotated[Bytes | None, Meta(description="What it cost.")] = None
    seconds: Annotated[Seconds | None, Meta(description="How long the stages took.")] = None
    progress: Annotated[str, Meta(max_length=32, description="While it is copied, such as 45%.")] = ""
    size: Annotated[str, Meta(max_length=32, description="Size of the volume, for people.")] = ""
    changed: Annotated[str, Meta(max_length=32, description="Bytes changed, for people.")] = ""
    chunk_size: Annotated[
        str, Meta(max_length=16, description="How finely the volume is cut in the repository, such as 256Ki.")
    ] = ""
    manifest: Annotated[PointManifest | None, Meta(description="Where it lives.")] = None
    conditions: Conditions = ()


class RecoveryPoint(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One volume at one moment. Deleting this record never deletes the data."""

    RESOURCE: ClassVar[Resource] = Resource(GROUP, VERSION, "RecoveryPoint", "recoverypoints", namespaced=True)

    spec: RecoveryPointSpec
    status: RecoveryPointStatus = RecoveryPointStatus()
