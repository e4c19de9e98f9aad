"""Backup: one run over a policy's volumes. The schedule makes them; made by hand it is the on-demand backup."""

from __future__ import annotations

import enum
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from orchestrator.api.meta import K8sObject, Resource
from orchestrator.api.tidemark.backup_policy import VolumeOptions, VolumeSelector
from orchestrator.api.tidemark.fields import (
    GROUP,
    VERSION,
    Conditions,
    Duration,
    Generation,
    Instant,
    Name,
    ObjectName,
    Text,
)


class BackupPhase(enum.Enum):
    """How far a run is. Partially failed is a reason of Failed, not a phase."""

    PENDING = "Pending"
    RUNNING = "Running"
    COMPLETED = "Completed"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


class InlineSelection(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A backup without a policy."""

    volumes: Annotated[VolumeSelector, Meta(description="Which claims of this namespace. Empty: all.")] = (
        VolumeSelector()
    )
    repository: Annotated[Name | None, Meta(description="BackupRepository. Absent: snapshots only.")] = None
    options: Annotated[VolumeOptions, Meta(description="How points are made.")] = VolumeOptions()


class BackupSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What to back up now. Exactly one of policy and selection."""

    policy: Annotated[Name | None, Meta(description="BackupPolicy of this namespace.")] = None
    selection: Annotated[InlineSelection | None, Meta(description="Volumes without a policy.")] = None
    full: Annotated[bool, Meta(description="Read whole volumes, whatever the driver reports.")] = False
    expire_after: Annotated[
        Duration | None, Meta(description="Drop the points after this long. Absent: on-demand points are kept.")
    ] = None
    cancel: Annotated[bool, Meta(description="Set to true to stop the run; finished points stay.")] = False
    slot: Annotated[
        Instant | None, Meta(description="The schedule's nominal time; absent on backups made by hand.")
    ] = None


class BackupStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """How the run goes."""

    observed_generation: Generation = 0
    phase: Annotated[BackupPhase, Meta(description="How far it is.")] = BackupPhase.PENDING
    reason: Annotated[str, Meta(max_length=64, description="Why it ended as it did.")] = ""
    message: Annotated[Text, Meta(description="The first failure, in a sentence.")] = ""
    start_time: Annotated[Instant | None, Meta(description="When the run started.")] = None
    completion_time: Annotated[Instant | None, Meta(description="When it ended.")] = None
    volumes: Annotated[int, Meta(ge=0, description="Recovery points of the run.")] = 0
    completed: Annotated[int, Meta(ge=0, description="Of those, completed.")] = 0
    failed: Annotated[int, Meta(ge=0, description="Of those, failed or cancelled.")] = 0
    progress: Annotated[str, Meta(max_length=32, description="As 'completed/volumes'.")] = ""
    points: Annotated[
        tuple[ObjectName, ...],
        Meta(max_length=1000, description="Names of the run's recovery points, fixed at its start."),
    ] = ()
    conditions: Conditions = ()


class Backup(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One run over the volumes of a policy or a selection. Deleting it deletes no data."""

    RESOURCE: ClassVar[Resource] = Resource(GROUP, VERSION, "Backup", "backups", namespaced=True)

    spec: BackupSpec
    status: BackupStatus = BackupStatus()
