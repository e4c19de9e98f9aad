"""BackupRepository: where recovery points live. Cluster scoped: an admin's object."""

from __future__ import annotations

import enum
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from orchestrator.api.meta import K8sObject, Resource
from orchestrator.api.tidemark.backup_policy import Schedule
from orchestrator.api.tidemark.fields import GROUP, VERSION, Conditions, Duration, Generation, Instant, Name


class Maintenance(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """When what no point needs is swept."""

    schedule: Annotated[Schedule | None, Meta(description="When. Absent: every 24 h.")] = None
    suspend: Annotated[bool, Meta(description="Sweep nothing.")] = False


class VerifyDepth(enum.Enum):
    """How much of what is stored is read to prove it."""

    QUICK = "quick"
    SAMPLED = "sampled"
    FULL = "full"


class Verify(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """When what is stored is proven, and how deep."""

    schedule: Annotated[Schedule | None, Meta(description="When. Absent: every 7 days, spread over 12 hours.")] = None
    depth: Annotated[
        VerifyDepth,
        Meta(
            description="quick: every manifest and map page, presence and size of packs. sampled (default): also a "
            "part of the chunks, another one each time. full: every byte."
        ),
    ] = VerifyDepth.SAMPLED
    sample_percent: Annotated[
        int, Meta(ge=1, le=100, description="Of sampled: how many in a hundred chunks are read. Default 5.")
    ] = 5
    deadline: Annotated[
        Duration | None,
        Meta(description="A namespace's verification is given up after this long. Default 24h."),
    ] = None
    suspend: Annotated[bool, Meta(description="Verify nothing.")] = False


class LockMode(enum.Enum):
    """Who may end a lock before its time."""

    COMPLIANCE = "compliance"
    GOVERNANCE = "governance"


class ObjectLock(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Make what is stored undeletable for a while, as a promise that maintenance renews."""

    retention: Annotated[Duration, Meta(description="What is put or renewed can't be deleted for this long.")]
    renew_every: Annotated[
        Duration,
        Meta(
            description="What lives is renewed once in this long. It can't be deleted for at least retention less this."
        ),
    ]
    mode: Annotated[
        LockMode,
        Meta(description="compliance (default): nobody can end it. governance: who has the right to bypass it can."),
    ] = LockMode.COMPLIANCE


class BackupRepositorySpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Where, with which credentials and key, for whom."""

    url: Annotated[
        str,
        Meta(
            max_length=1024,
            pattern=r"^(file:///|s3://|gs://|az://).+$",
            description="file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix.",
        ),
    ]
    credentials_secret: Annotated[
        Name | None,
        Meta(
            description="Secret in the controller's namespace: access_key_id, secret_access_key, region, endpoint ..."
        ),
    ] = None
    encryption_secret: Annotated[
        Name, Meta(description="Secret in the controller's namespace whose `master.key` encrypts everything here.")
    ]
    allowed_namespaces: Annotated[
        tuple[Annotated[str, Meta(max_length=63, pattern=r"^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$")], ...],
        Meta(max_length=1000, min_length=1, description="Namespaces whose policies may write here; '*' for all."),
    ]
    maintenance: Annotated[Maintenance, Meta(description="When what no point needs is swept.")] = Maintenance()
    verify: Annotated[Verify, Meta(description="When what is stored is proven, and how deep.")] = Verify()
    object_lock: Annotated[
        ObjectLock | None,
        Meta(description="Only s3://, in a bucket made with object lock. Absent: whoever may delete can delete."),
    ] = None


class Usage(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What lies in the repository."""

    bytes: Annotated[int, Meta(ge=0, description="Stored bytes.")] = 0
    objects: Annotated[int, Meta(ge=0, description="Stored objects.")] = 0
    points: Annotated[int, Meta(ge=0, description="Recovery points.")] = 0
    size: Annotated[str, Meta(max_length=32, description="Stored bytes, for people.")] = ""
    measured: Annotated[Instant | None, Meta(description="When it was counted.")] = None


class LockPromise(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What object lock promises, and whether it was kept up."""

    undeletable_for: Annotated[
        str, Meta(max_length=32, description="What lives can't be deleted for at least this long.")
    ]
    last_renewed: Annotated[
        Instant | None, Meta(description="When the oldest renewal of all namespaces was begun. Absent: not all were.")
    ] = None
    kept: Annotated[str, Meta(max_length=16, description="True; False when a renewal is overdue.")] = ""


class Verification(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What the last verification saw. Written whole, so that zero shows as zero."""

    depth: Annotated[VerifyDepth, Meta(description="How deep it went.")]
    sample_percent: Annotated[int, Meta(ge=0, le=100, description="Of a sample: how many in a hundred chunks.")]
    turn: Annotated[int, Meta(ge=0, description="Which part the sample took; the next one takes the next.")]
    namespaces: Annotated[int, Meta(ge=0, description="Namespaces verified.")]
    points: Annotated[int, Meta(ge=0, description="Recovery points whose manifest and map were read.")]
    chunks: Annotated[int, Meta(ge=0, description="Chunks that were read and checked.")]
    bytes_read: Annotated[int, Meta(ge=0, description="Bytes of packs that were read.")]
    damaged_objects: Annotated[int, Meta(ge=0, description="Objects altered, truncated or missing.")]
    damaged_chunks: Annotated[int, Meta(ge=0, description="Chunks lost by that, summed over the points.")]
    damaged_points: Annotated[int, Meta(ge=0, description="Points that can't be restored whole.")]
    missing_points: Annotated[
        int, Meta(ge=0, description="Points that this cluster knows and the repository doesn't hold as they were.")
    ]
    unrecorded_points: Annotated[
        int,
        Meta(ge=0, description="Points in the repository without a RecoveryPoint here. Nothing is wrong with them."),
    ]
    hurt: Annotated[
        tuple[Annotated[str, Meta(max_length=317)], ...],
        Meta(max_length=10, description="Damaged and missing points, namespace/name, the first ten."),
    ] = ()


class BackupRepositoryStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Whether it can be reached, and what lies there."""

    observed_generation: Generation = 0
    repository_id: Annotated[str, Meta(max_length=64, description="Its own id, written at its first use.")] = ""
    ready: Annotated[str, Meta(max_length=16, description="True, False or Unknown.")] = ""
    last_checked: Annotated[Instant | None, Meta(description="When it was last reached.")] = None
    usage: Annotated[Usage | None, Meta(description="What lies there.")] = None
    object_lock: Annotated[LockPromise | None, Meta(description="What object lock promises.")] = None
    last_maintenance: Annotated[Instant | None, Meta(description="When a sweep last completed.")] = None
    last_maintenance_slot: Annotated[Instant | None, Meta(description="The newest maintenance slot handled.")] = None
    last_verified: Annotated[
        Instant | None, Meta(description="When every namespace was last verified, whatever was found.")
    ] = None
    last_verification_slot: Annotated[Instant | None, Meta(description="The newest verification slot handled.")] = None
    verification: Annotated[Verification | None, Meta(description="What the last verification saw.")] = None
    conditions: Conditions = ()


class BackupRepository(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Where recovery points live. Deleting it deletes no data."""

    RESOURCE: ClassVar[Resource] = Resource(GROUP, VERSION, "BackupRepository", "backuprepositories", namespaced=False)

    spec: BackupRepositorySpec
    status: BackupRepositoryStatus = BackupRepositoryStatus()
