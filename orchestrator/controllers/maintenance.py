"""Maintenance by schedule: what no point of a namespace needs is swept by a Job."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from orchestrator.api.meta import Condition, with_condition
from orchestrator.api.tidemark.backup_repository import BackupRepository
from orchestrator.controllers.namespace_runs import NamespaceRuns
from orchestrator.controllers.repositories import OpenedRepository, mover_config
from orchestrator.controllers.status import patch_status
from orchestrator.decisions import backup_repository as decisions
from orchestrator.repository.keys import NamespaceIdentity
from orchestrator.repository.vault import Vault
from orchestrator.volumes import job as jobs

ANNOTATION_MAINTAINED = "tidemark.dev/maintained"
Result = Literal["completed", "failed"]


class Maintenance(NamespaceRuns):
    """Sweeps."""

    task = "maintain"
    condition = "Maintained"
    annotation = ANNOTATION_MAINTAINED

    def suspended(self, repository: BackupRepository) -> bool:
        """Say whether sweeping is switched off."""
        return repository.spec.maintenance.suspend

    def last_slot(self, repository: BackupRepository) -> datetime | None:
        """Return the newest slot that is done."""
        return repository.status.last_maintenance_slot

    def due(self, repository: BackupRepository, now: datetime) -> datetime | None:
        """Return the slot to begin."""
        return decisions.due(repository, now)

    def job(
        self, repository: BackupRepository, opened: OpenedRepository, vault: Vault, slot: datetime, name: str
    ) -> jobs.MoverJob:
        """Return the Job that sweeps one namespace."""
        config = mover_config(opened, vault, task="maintain", point=vault.namespace_id)
        return jobs.MoverJob(
            name=name, task="maintain", config=config, labels=self.labels(repository), owner=repository
        )

    async def good(
        self,
        repository: BackupRepository,
        vault: Vault,
        identity: NamespaceIdentity,
        slot: datetime,
        seen: jobs.JobSeen,
    ) -> bool:
        """Say whether the sweep completed."""
        return seen.state == "succeeded"

    def count(self, repository: BackupRepository, identity: NamespaceIdentity, good: bool, seen: jobs.JobSeen) -> None:
        """Count one namespace's sweep."""
        result: Result = "completed" if good else "failed"
        self.context.meter.maintained(repository.name, result)
        if not good:
            text = seen.message or "see the maintenance Job's log"
            self.context.recorder.event(repository, "Warning", "MaintenanceFailed", f"{identity.name}: {text}")

    async def done(
        self, repository: BackupRepository, opened: OpenedRepository, slot: datetime, now: datetime
    ) -> BackupRepository:
        """Record that each of the slot's Jobs ended; only when all of them succeeded has a sweep completed.

        Suspended meanwhile, a slot ends with the Job that was running: what it did counts for nothing but its failure.
        """
        swept = self.noted(repository, slot)
        failed = [uid for uid, good in swept.items() if not good]
        if repository.spec.maintenance.suspend and not failed:
            return await patch_status(
                self.context, repository, msgspec.structs.replace(repository.status, last_maintenance_slot=slot)
            )
        text = f"{len(failed)} of {len(swept)} namespaces could not be swept; the next slot tries again."
        told = Condition(
            type=self.condition,
            status="False" if failed else "True",
            reason="MaintenanceFailed" if failed else "Maintained",
            message=text if failed else "",
            observed_generation=repository.metadata.generation,
        )
        status = msgspec.structs.replace(
            repository.status,
            last_maintenance_slot=slot,
            last_maintenance=repository.status.last_maintenance if failed else now,
            conditions=with_condition(repository.status.conditions, told, now),
        )
        repository = await patch_status(self.context, repository, status)
        if not failed:
            self.context.recorder.event(repository, "Normal", "Maintained", f"Swept {len(swept)} namespaces.")
        return repository
