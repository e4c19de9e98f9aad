"""BackupPolicy: which volumes, how fresh, when, kept how long, where to."""

from __future__ import annotations

import enum
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from orchestrator.api.meta import Condition, K8sObject, Resource
from orchestrator.api.quantity import parse_quantity
from orchestrator.api.tidemark.fields import (
    GROUP,
    VERSION,
    Duration,
    Generation,
    Instant,
    LabelKey,
    LabelValue,
    Name,
    Quantity,
    Text,
)


class VolumeSelector(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Which PersistentVolumeClaims of the policy's namespace. Empty: all of them."""

    match_labels: Annotated[
        dict[LabelKey, LabelValue], Meta(max_length=16, description="Claims that carry all of these labels.")
    ] = {}
    names: Annotated[
        tuple[Name, ...], Meta(max_length=256, description="Claims by name; with matchLabels, both must hold.")
    ] = ()
    exclude_names: Annotated[tuple[Name, ...], Meta(max_length=256, description="Claims left out, whatever else.")] = ()


class Schedule(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """When backups are due. Exactly one of cron and every."""

    cron: Annotated[
        Annotated[str, Meta(max_length=128)] | None,
        Meta(description="Five fields as crontab(5), such as '30 2 * * *'."),
    ] = None
    time_zone: Annotated[str, Meta(max_length=64, description="IANA zone that cron is read in.")] = "UTC"
    every: Annotated[Duration | None, Meta(description="A fixed interval, counted from the epoch.")] = None
    jitter: Annotated[
        Duration | None, Meta(description="Spread starts over this long, the same for a policy each time.")
    ] = None


class Objective(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What the policy promises."""

    rpo: Annotated[Duration, Meta(description="The most data, in time, that may be lost at any moment.")]


class Retention(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What is kept; a point is kept if any rule keeps it. Absent: everything is kept."""

    keep_last: Annotated[int, Meta(ge=0, le=10000, description="The newest N points.")] = 0
    hourly: Annotated[
        int, Meta(ge=0, le=10000, description="The newest point of each of the last N hours with one.")
    ] = 0
    daily: Annotated[int, Meta(ge=0, le=10000, description="Of each of the last N days with one.")] = 0
    weekly: Annotated[int, Meta(ge=0, le=10000, description="Of each of the last N ISO weeks with one.")] = 0
    monthly: Annotated[int, Meta(ge=0, le=10000, description="Of each of the last N months with one.")] = 0
    yearly: Annotated[int, Meta(ge=0, le=10000, description="Of each of the last N years with one.")] = 0
    keep_within: Annotated[Duration | None, Meta(description="Everything younger than this.")] = None
    snapshots: Annotated[
        Annotated[int, Meta(ge=1, le=100)] | None,
        Meta(description="Physical snapshots kept per volume, the delta's base among them (default 1)."),
    ] = None


class Deduplication(enum.Enum):
    """Among which points equal chunks are stored once."""

    VOLUME = "Volume"
    NAMESPACE = "Namespace"


class ChunkSize(enum.Enum):
    """How finely a volume is cut in a repository."""

    SMALL = "64Ki"
    MIDDLE = "256Ki"
    LARGE = "1Mi"

    @property
    def size_bytes(self) -> int:
        """Return the bytes of a chunk."""
        return parse_quantity(self.value)


class VolumeOptions(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """How a volume's points are made; copied into each RecoveryPoint, so that it stands alone."""

    snapshot_class_name: Annotated[
        Name | None, Meta(description="VolumeSnapshotClass; absent: the driver's default.")
    ] = None
    clone_class_name: Annotated[
        Name | None, Meta(description="StorageClass of the clone that is read; absent: the claim's own.")
    ] = None
    parallelism: Annotated[int, Meta(ge=1, le=64, description="Readers inside one mover.")] = 4
    bandwidth_limit: Annotated[Quantity | None, Meta(description="Bytes per second read by one mover.")] = None
    iops_limit: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)] | None,
        Meta(description="Reads per second by one mover; a read of more than 256 KiB in a row counts as several."),
    ] = None
    deduplication: Annotated[
        Deduplication,
        Meta(description="Where equal chunks are stored once: within a point, or across the namespace's volumes too."),
    ] = Deduplication.VOLUME
    chunk_size: Annotated[
        ChunkSize | None,
        Meta(
            description="How finely a volume is cut: 64Ki for small random writes, 1Mi for large ones; absent: 64Ki, "
            "256Ki for more than 4Ti. Counts for a volume's first point in a repository; a volume with points there "
            "keeps what it has."
        ),
    ] = None
    full_every: Annotated[
        Duration | None, Meta(description="Read the whole volume at least this often, whatever the driver reports.")
    ] = None


class BackupPolicySpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What to protect and how."""

    volumes: Annotated[VolumeSelector, Meta(description="Which claims of this namespace. Empty: all.")] = (
        VolumeSelector()
    )
    schedule: Annotated[
        Schedule | None, Meta(description="When. Absent: at half the RPO; without an RPO, only on demand.")
    ] = None
    objective: Annotated[Objective | None, Meta(description="What is promised.")] = None
    retention: Annotated[Retention | None, Meta(description="What is kept. Absent: everything.")] = None
    repository: Annotated[
        Name | None, Meta(description="BackupRepository. Absent: snapshots only, lost with the storage system.")
    ] = None
    options: Annotated[VolumeOptions, Meta(description="How points are made.")] = VolumeOptions()
    suspend: Annotated[bool, Meta(description="Make no scheduled backups. RPO goes on being told.")] = False


class VolumeAge(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One of the worst volumes of a policy."""

    pvc: Annotated[str, Meta(max_length=253, description="The claim.")]
    last_point_time: Annotated[Instant | None, Meta(description="When its newest good point was cut.")] = None
    message: Annotated[Text, Meta(description="What keeps it back, if anything does.")] = ""


PolicyConditions = Annotated[
    tuple[Condition, ...], Meta(max_length=8, description="What was observed of the policy, newest facts first-hand.")
]
"""One for each part of the spec that a schema can't judge, and Progressing."""


class BackupPolicyStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Counts and the ten worst volumes; never an entry for each."""

    observed_generation: Generation = 0
    last_slot: Annotated[Instant | None, Meta(description="The newest slot that was handled.")] = None
    next_slot: Annotated[str, Meta(max_length=32, description="When the next backup is due (UTC).")] = ""
    missed_slots: Annotated[int, Meta(ge=0, description="Slots that passed while nothing ran, since the start.")] = 0
    last_backup: Annotated[str, Meta(max_length=253, description="The newest Backup of the schedule.")] = ""
    volumes: Annotated[int, Meta(ge=0, description="Claims selected.")] = 0
    protected: Annotated[int, Meta(ge=0, description="Claims with at least one good point.")] = 0
    compliant: Annotated[str, Meta(max_length=32, description="Claims within the RPO, as 'n/m'.")] = ""
    points: Annotated[int, Meta(ge=0, description="Good points of this policy.")] = 0
    rpo: Annotated[str, Meta(max_length=32, description="The promised RPO.")] = ""
    oldest_point_time: Annotated[
        Instant | None, Meta(description="The newest point of the worst volume: what would be lost starts here.")
    ] = None
    last_point_time: Annotated[Instant | None, Meta(description="The newest point of any volume.")] = None
    worst: Annotated[tuple[VolumeAge, ...], Meta(max_length=10, description="The ten worst volumes.")] = ()
    conditions: PolicyConditions = ()


class BackupPolicy(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Which volumes are protected, how fresh, when, kept how long and where to."""

    RESOURCE: ClassVar[Resource] = Resource(GROUP, VERSION, "BackupPolicy", "backuppolicies", namespaced=True)

    spec: BackupPolicySpec
    status: BackupPolicyStatus = BackupPolicyStatus()
