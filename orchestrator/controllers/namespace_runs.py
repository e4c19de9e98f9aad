"""Bulk work on a repository by schedule: one Job per namespace of it, one after the other, with that namespace's keys.

A slot is written down before its first Job is made and carried to its end whatever comes meanwhile (newer slots,
suspension, another leader): a Job whose slot was forgotten would be left behind. What became of each namespace is noted
before its Job goes: one that is missing and not noted would be made again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import datetime
from typing import Any, ClassVar

from orchestrator.api.mover import Task
from orchestrator.api.tidemark.backup_repository import BackupRepository
from orchestrator.api.tidemark.fields import LABEL_MANAGED_BY, LABEL_REPOSITORY_UID, MANAGED_BY
from orchestrator.controllers.base import Context
from orchestrator.controllers.repositories import OpenedRepository
from orchestrator.repository.keys import NamespaceIdentity
from orchestrator.repository.vault import Vault
from orchestrator.volumes import job as jobs
from policies.naming import object_name

FAILED = "!"


class NamespaceRuns(ABC):
    """One kind of work. Subclasses say when it is due, what a Job gets, and what it came to."""

    task: ClassVar[Task]
    condition: ClassVar[str]
    """Type of the repository's condition that tells of it."""
    annotation: ClassVar[str]
    """Holds the slot, and the uids of the namespaces whose Jobs ended, each with FAILED behind it if it failed."""

    def __init__(self, context: Context) -> None:
        """Take what the controller has."""
        self.context = context

    @abstractmethod
    def suspended(self, repository: BackupRepository) -> bool:
        """Say whether no further Job may be made."""

    @abstractmethod
    def last_slot(self, repository: BackupRepository) -> datetime | None:
        """Return the newest slot that is done."""

    @abstractmethod
    def due(self, repository: BackupRepository, now: datetime) -> datetime | None:
        """Return the slot to begin, None when nothing is due."""

    @abstractmethod
    def job(
        self, repository: BackupRepository, opened: OpenedRepository, vault: Vault, slot: datetime, name: str
    ) -> jobs.MoverJob:
        """Return the Job of one namespace: the same at each call within a slot."""

    @abstractmethod
    async def good(
        self,
        repository: BackupRepository,
        vault: Vault,
        identity: NamespaceIdentity,
        slot: datetime,
        seen: jobs.JobSeen,
    ) -> bool:
        """Say whether a Job that ended did its work. Counts nothing: it may be asked again."""

    @abstractmethod
    def count(self, repository: BackupRepository, identity: NamespaceIdentity, good: bool, seen: jobs.JobSeen) -> None:
        """Count a Job that ended; called once for each."""

    def name_of(self, repository: BackupRepository, identity: NamespaceIdentity, slot: datetime) -> str:
        """Return the name of a namespace's Job in a slot."""
        prefix = f"tm-{self.task}-{repository.name}"
        return object_name(prefix, repository.uid, identity.uid, slot.isoformat())

    def labels(self, repository: BackupRepository) -> dict[str, str]:
        """Return the labels that name the work."""
        return {LABEL_REPOSITORY_UID: repository.uid, LABEL_MANAGED_BY: MANAGED_BY}

    def begun(self, repository: BackupRepository) -> datetime | None:
        """Return the slot that was begun and isn't done, None when there is none."""
        text = repository.metadata.annotations.get(self.annotation, "").partition(" ")[0]
        try:
            slot = datetime.fromisoformat(text)
        except ValueError:
            return None  # none yet, or a hand wrote there: the next slot that is due overwrites it
        last = self.last_slot(repository)
        return slot if slot.tzinfo is not None and (last is None or slot > last) else None

    def noted(self, repository: BackupRepository, slot: datetime) -> dict[str, bool]:
        """Return the uids of the namespaces that the slot has been through, and whether each went well."""
        when, _, uids = repository.metadata.annotations.get(self.annotation, "").partition(" ")
        if when != slot.isoformat():
            return {}
        return {uid.removesuffix(FAILED): not uid.endswith(FAILED) for uid in uids.split(",") if uid}

    async def note(self, repository: BackupRepository, slot: datetime, through: dict[str, bool]) -> BackupRepository:
        """Write down the slot and what became of its namespaces; return the object as stored.

        Written over what was read and nothing newer (Conflict): whoever wins this write counts.
        """
        value = f"{slot.isoformat()} {','.join(uid if good else uid + FAILED for uid, good in through.items())}"
        body: dict[str, Any] = {
            "metadata": {
                "annotations": {self.annotation: value},
                "resourceVersion": repository.metadata.resource_version,
            }
        }
        stored = await self.context.client.merge_patch(BackupRepository, repository.name, "", body)
        self.context.caches.learn(stored)
        return stored

    async def step(
        self, repository: BackupRepository, opened: OpenedRepository, slot: datetime
    ) -> tuple[BackupRepository, bool]:
        """Bring the slot one step on; True when each of its Jobs ended and is gone."""
        context, labels = self.context, self.labels(repository)
        through = self.noted(repository, slot)
        for identity in await self.namespaces(opened):
            name = self.name_of(repository, identity, slot)
            if identity.uid in through:
                if not await jobs.remove(context.client, name, context.settings, labels):
                    return repository, False
                continue
            _, vault = await context.repositories.vault(repository.name, identity)
            seen = await jobs.look(context.client, context.caches, name, context.settings)
            if seen.state == "missing":
                if self.suspended(repository):
                    continue
                await jobs.ensure(context.client, self.job(repository, opened, vault, slot, name), context.settings)
                return repository, False
            if seen.state not in ("succeeded", "failed"):
                return repository, False
            good = await self.good(repository, vault, identity, slot, seen)
            repository = await self.note(repository, slot, {**through, identity.uid: good})
            context.meter.mover_ended(self.task, "completed" if good else "failed")
            self.count(repository, identity, good, seen)
            return repository, False
        return repository, True

    async def namespaces(self, opened: OpenedRepository) -> list[NamespaceIdentity]:
        """Return this cluster's namespaces in the repository: other clusters work on their own."""
        every = await opened.repository.namespaces()
        return [identity for identity in every if identity.cluster_id == self.context.cluster_id]
