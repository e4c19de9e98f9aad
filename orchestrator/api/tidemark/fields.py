"""Field types and names that our kinds share: each string bounded, each pattern in one place."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from orchestrator.api.meta import Condition

GROUP = "tidemark.dev"
VERSION = "v1alpha1"

LABEL_POINT_UID = "tidemark.dev/point-uid"
"""On everything made for one recovery point, in any namespace; the sweeper's handle."""
LABEL_RESTORE_UID = "tidemark.dev/restore-uid"
LABEL_RESTORED_BY = "tidemark.dev/restored-by"
"""On a tenant's restored claim and volume: the Restore's uid. Not LABEL_RESTORE_UID, by which the sweeper deletes."""
LABEL_POLICY_UID = "tidemark.dev/policy-uid"
LABEL_BACKUP_UID = "tidemark.dev/backup-uid"
LABEL_PVC_UID = "tidemark.dev/pvc-uid"
LABEL_REPOSITORY_UID = "tidemark.dev/repository-uid"
LABEL_TASK = "tidemark.dev/task"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY = "tidemark"
ANNOTATION_POINT = "tidemark.dev/point"
"""`namespace/name` of the RecoveryPoint (labels hold uids; names are too long for them)."""
ANNOTATION_POLICY = "tidemark.dev/policy"
ANNOTATION_ACCEPT_RESTORES = "tidemark.dev/accept-restores-from"
"""On a target Namespace, by its admin: comma-separated namespaces whose Restores may write here."""
ANNOTATION_INHERIT_POINTS = "tidemark.dev/inherit-points-of"
"""On a Namespace, by an admin: comma-separated uids of namespaces (of whatever cluster) whose points it may read."""
FINALIZER = "tidemark.dev/in-flight"
"""On work in flight only; a completed point carries none."""

Name = Annotated[str, Meta(max_length=253, min_length=1, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
Namespace = Annotated[str, Meta(max_length=63, min_length=1, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
Uid = Annotated[str, Meta(max_length=64)]
Text = Annotated[str, Meta(max_length=512)]
Reason = Annotated[str, Meta(max_length=64)]
Handle = Annotated[str, Meta(max_length=512)]
LabelValue = Annotated[str, Meta(max_length=63)]
LabelKey = Annotated[str, Meta(max_length=317)]
Duration = Annotated[
    str,
    Meta(
        max_length=32,
        min_length=2,
        pattern=r"^([0-9]{1,3}w)?([0-9]{1,4}d)?([0-9]{1,5}h)?([0-9]{1,7}m)?([0-9]{1,8}s)?$",
        description="A duration such as 15m, 24h, 7d or 1h30m: the largest unit (w, d, h, m, s) first.",
    ),
]
"""At most 81 years, below what `policies.duration` refuses: what the API server takes can be reckoned with."""
ObjectName = Annotated[str, Meta(max_length=253)]
"""A name in a status: written by us, so not checked again."""
Quantity = Annotated[
    str,
    Meta(
        max_length=32,
        pattern=r"^[0-9]+(\.[0-9]+)?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$",
        description="A size such as 50Mi or 2Gi.",
    ),
]
Conditions = Annotated[
    tuple[Condition, ...], Meta(max_length=6, description="What was observed of the object, newest facts first-hand.")
]
Generation = Annotated[int, Meta(ge=0, description="The generation of the spec that this status speaks of.")]
Instant = datetime


class Bytes(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """How many bytes of a volume were what. Written whole, so that zero shows as zero."""

    volume: Annotated[int, Meta(ge=0, description="Size of the volume.")]
    allocated: Annotated[
        Annotated[int, Meta(ge=0)] | None, Meta(description="Bytes the point holds that are not known to be zero.")
    ] = None
    changed: Annotated[
        Annotated[int, Meta(ge=0)] | None, Meta(description="Bytes reported as changed (delta) or allocated.")
    ] = None
    read: Annotated[int, Meta(ge=0, description="Bytes read from the volume.")]
    uploaded: Annotated[int, Meta(ge=0, description="Bytes stored in the repository, compressed and sealed.")]


class Seconds(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """How long the stages took. The fields are plain numbers of seconds."""

    snapshot: Annotated[float, Meta(ge=0, description="Until the snapshot was ready.")] = 0.0
    diff: Annotated[float, Meta(ge=0, description="Listing what changed and writing the plan.")] = 0.0
    copy: Annotated[float, Meta(ge=0, description="From the slot being granted to the last block stored.")] = 0.0
    commit: Annotated[float, Meta(ge=0, description="Map pages and manifest.")] = 0.0
    total: Annotated[float, Meta(ge=0, description="From the start of the point to its record.")] = 0.0
