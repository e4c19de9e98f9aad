"""Which kinds the controller keeps in caches, and how far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from orchestrator.api.foreign.core import (
    Job,
    Namespace,
    PersistentVolume,
    PersistentVolumeClaim,
    Pod,
    StorageClass,
)
from orchestrator.api.foreign.snapshot import (
    SnapshotMetadataService,
    VolumeSnapshot,
    VolumeSnapshotClass,
    VolumeSnapshotContent,
)
from orchestrator.api.meta import K8sObject
from orchestrator.api.tidemark.backup import Backup
from orchestrator.api.tidemark.backup_policy import BackupPolicy
from orchestrator.api.tidemark.backup_repository import BackupRepository
from orchestrator.api.tidemark.fields import (
    LABEL_BACKUP_UID,
    LABEL_MANAGED_BY,
    LABEL_POINT_UID,
    LABEL_PVC_UID,
    LABEL_RESTORE_UID,
    MANAGED_BY,
)
from orchestrator.api.tidemark.recovery_point import RecoveryPoint
from orchestrator.api.tidemark.restore import Restore
from orchestrator.config import Settings
from orchestrator.kube.cache import Cache, Caches
from orchestrator.kube.client import Client


class Kept(NamedTuple):
    """One row of the table of kinds: what is cached, how far, and by which labels it is found."""

    kind: type[K8sObject]
    indices: Mapping[str, str] = {}
    """Index name -> label whose value is the key."""
    ours_only: bool = False
    """Only what carries our managed-by label, in the controller's namespace."""
    optional: bool = False
    """Not every cluster has it; absent counts as none."""


_BY_WORK = {"point": LABEL_POINT_UID, "restore": LABEL_RESTORE_UID}

KINDS = (
    Kept(BackupPolicy),
    Kept(Backup),
    Kept(RecoveryPoint, {"backup": LABEL_BACKUP_UID, "pvc": LABEL_PVC_UID}),
    Kept(Restore),
    Kept(BackupRepository),
    Kept(Namespace),
    Kept(PersistentVolumeClaim, _BY_WORK),
    Kept(PersistentVolume, _BY_WORK),
    Kept(StorageClass),
    Kept(Job, _BY_WORK, ours_only=True),
    Kept(Pod, _BY_WORK, ours_only=True),
    # Their CRDs come with a CSI driver: without them backups say so in a condition, and the rest of the house works.
    Kept(VolumeSnapshot, _BY_WORK, optional=True),
    Kept(VolumeSnapshotContent, _BY_WORK, optional=True),
    Kept(VolumeSnapshotClass, optional=True),
    Kept(SnapshotMetadataService, optional=True),
)
"""Every kind that controllers read from a cache. Secrets are not among them: they are read when needed."""


def build_caches(client: Client, settings: Settings) -> Caches:
    """Return an unfilled cache for each row of KINDS."""
    caches = Caches()
    for row in KINDS:
        caches.add(
            Cache(
                client,
                row.kind,
                namespace=settings.namespace if row.ours_only else "",
                labels=f"{LABEL_MANAGED_BY}={MANAGED_BY}" if row.ours_only else "",
                indexers={name: _by_label(label) for name, label in row.indices.items()},
                optional=row.optional,
            )
        )
    return caches


def _by_label(label: str) -> Callable[[K8sObject], tuple[str, ...]]:
    def values(obj: K8sObject) -> tuple[str, ...]:
        value = obj.metadata.labels.get(label)
        return (value,) if value else ()

    return values
