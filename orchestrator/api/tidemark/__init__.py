"""Our kinds, `tidemark.dev/v1alpha1`: strict, bounded, and the source of the CRDs.

`orchestrator.api.crd` turns these Structs into structural schemas, so every string, list and map has a maximum (or the
API server refuses our CEL rules for their cost) and every field has a description.
"""

from __future__ import annotations

from orchestrator.api.tidemark.backup import Backup
from orchestrator.api.tidemark.backup_policy import BackupPolicy
from orchestrator.api.tidemark.backup_repository import BackupRepository
from orchestrator.api.tidemark.recovery_point import RecoveryPoint
from orchestrator.api.tidemark.restore import Restore

KINDS = (BackupPolicy, Backup, RecoveryPoint, Restore, BackupRepository)

__all__ = ["KINDS", "Backup", "BackupPolicy", "BackupRepository", "RecoveryPoint", "Restore"]
