"""BackupRepository: where recovery points live. Cluster scoped: an admin's object."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from orchestrator.api.meta import K8sObject, Resource
from orchestrator.api.tidemark.backup_policy import Schedule
from orchestrator.api.tidemark.fields import GROUP, VERSION, Conditions, Generation, Instant, Name


class Maintenance(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """When what no point needs is swept."""

    schedule: Annotated[Schedule | None, Meta(description="When. Absent: every 24 h.")] = None
    suspend: Annotated[bool, Meta(description="Sweep nothing.")] = False


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


class Usage(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What lies in the repository."""

    bytes: Annotated[int, Meta(ge=0, description="Stored bytes.")] = 0
    objects: Annotated[int, Meta(ge=0, description="Stored objects.")] = 0
    points: Annotated[int, Meta(ge=0, description="Recovery points.")] = 0
    size: Annotated[str, Meta(max_length=32, description="Stored bytes, for people.")] = ""
    measured: Annotated[Instant | None, Meta(description="When it was counted.")] = None


class BackupRepositoryStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Whether it can be reached, and what lies there."""

    observed_generation: Generation = 0
    repository_id: Annotated[str, Meta(max_length=64, description="Its own id, written at its first use.")] = ""
    ready: Annotated[str, Meta(max_length=16, description="True, False or Unknown.")] = ""
    last_checked: Annotated[Instant | None, Meta(description="When it was last reached.")] = None
    usage: Annotated[Usage | None, Meta(description="What lies there.")] = None
    last_maintenance: Annotated[Instant | None, Meta(description="When a sweep last completed.")] = None
    last_maintenance_slot: Annotated[Instant | None, Meta(description="The newest maintenance slot handled.")] = None
    conditions: Conditions = ()


class BackupRepository(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Where recovery points live. Deleting it deletes no data."""

    RESOURCE: ClassVar[Resource] = Resource(GROUP, VERSION, "BackupRepository", "backuprepositories", namespaced=False)

    spec: BackupRepositorySpec
    status: BackupRepositoryStatus = BackupRepositoryStatus()
