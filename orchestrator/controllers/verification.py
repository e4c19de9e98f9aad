"""Verification by schedule: Jobs prove what each namespace stores; what they found is told where people look.

A Job leaves its result in the repository (`repository/verified`); here results become the repository's status, the
condition `Damaged` of the points that are hurt, Events and metrics. What must never happen here: a slot counted as
verified of which a namespace wasn't.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from orchestrator.api.meta import Condition, with_condition
from orchestrator.api.tidemark.backup_repository import BackupRepository, Verification, VerifyDepth
from orchestrator.api.tidemark.recovery_point import RecoveryPoint
from orchestrator.controllers.namespace_runs import NamespaceRuns
from orchestrator.controllers.repositories import OpenedRepository, mover_config
from orchestrator.controllers.status import patch_status
from orchestrator.decisions import backup_repository as decisions
from orchestrator.decisions import verification
from orchestrator.decisions.verification import DAMAGED, Judged, Standing
from orchestrator.repository.errors import Damaged, ManifestMissing, PointCancelled, UnsupportedFormat
from orchestrator.repository.keys import NamespaceIdentity
from orchestrator.repository.manifest import open_manifest
from orchestrator.repository.vault import Vault
from orchestrator.repository.verified import VerifyResult, forget_results, open_result
from orchestrator.volumes import job as jobs

ANNOTATION_VERIFIED = "tidemark.dev/verified"
READ_S = 120.0
"""How long one exchange with the repository may take."""
NAMED = 10
"""Hurt points that the repository's status names."""


@dataclass
class _Tally:
    """What all namespaces of a slot come to."""

    share: float = 1.0
    namespaces: int = 0
    points: int = 0
    chunks: int = 0
    bytes_read: int = 0
    damaged_objects: int = 0
    damaged_chunks: int = 0
    damaged_points: int = 0
    missing_points: int = 0
    unrecorded_points: int = 0
    hurt: list[str] = field(default_factory=list)

    def add(self, result: VerifyResult) -> None:
        self.share = min(self.share, result.share) if self.namespaces else result.share
        self.namespaces += 1
        for name in ("points", "chunks", "bytes_read", "damaged_objects", "damaged_chunks", "damaged_points"):
            setattr(self, name, getattr(self, name) + getattr(result, name))


class VerificationRuns(NamespaceRuns):
    """Verifications."""

    task = "verify"
    condition = "Verified"
    annotation = ANNOTATION_VERIFIED

    def suspended(self, repository: BackupRepository) -> bool:
        """Say whether verifying is switched off."""
        return repository.spec.verify.suspend

    def last_slot(self, repository: BackupRepository) -> datetime | None:
        """Return the newest slot that is done."""
        return repository.status.last_verification_slot

    def due(self, repository: BackupRepository, now: datetime) -> datetime | None:
        """Return the slot to begin."""
        return decisions.verify_due(repository, now)

    def job(
        self, repository: BackupRepository, opened: OpenedRepository, vault: Vault, slot: datetime, name: str
    ) -> jobs.MoverJob:
        """Return the Job that verifies one namespace; its name is the run's."""
        config = mover_config(
            opened,
            vault,
            task="verify",
            point=vault.namespace_id,
            sample=decisions.sample_of(repository),
            turn=decisions.next_turn(repository),
            run=name,
        )
        deadline_s = decisions.verify_deadline(repository).total_seconds()
        labels = self.labels(repository)
        return jobs.MoverJob(
            name=name, task="verify", config=config, labels=labels, owner=repository, deadline_s=deadline_s
        )

    async def good(
        self,
        repository: BackupRepository,
        vault: Vault,
        identity: NamespaceIdentity,
        slot: datetime,
        seen: jobs.JobSeen,
    ) -> bool:
        """Say whether the Job left a result, whatever it found: a Job that found damage ends badly."""
        return await _result(vault, self.name_of(repository, identity, slot)) is not None

    def count(self, repository: BackupRepository, identity: NamespaceIdentity, good: bool, seen: jobs.JobSeen) -> None:
        """Count one namespace's verification."""
        if not good:
            text = seen.message or "see the verification Job's log"
            self.context.recorder.event(repository, "Warning", "VerificationFailed", f"{identity.name}: {text}")
            self.context.meter.verified(repository.name, "failed")
        else:
            self.context.meter.verified(repository.name, "ok" if seen.state == "succeeded" else "damaged")

    async def done(
        self, repository: BackupRepository, opened: OpenedRepository, slot: datetime, now: datetime
    ) -> BackupRepository:
        """Tell what the slot's Jobs found, of each point and of the whole; then take the results away.

        Suspended meanwhile, or with a namespace that failed, a slot verified nothing as a whole; damage that it found
        is told all the same.
        """
        through = self.noted(repository, slot)
        failed = sum(not good for good in through.values())
        tally, verified = _Tally(), list[Vault]()
        known = self._known(repository, opened)
        prefixes = await self._elsewhere(repository, opened)
        for identity in await self.namespaces(opened):
            _, vault = await self.context.repositories.vault(repository.name, identity)
            prefixes.add(vault.names.prefix)
            if not through.get(identity.uid, False):
                continue
            result = await _result(vault, self.name_of(repository, identity, slot))
            if result is None:
                failed += 1
                continue
            verified.append(vault)
            tally.add(result)
            await self._tell(repository, vault, result, known.get(vault.names.prefix, ()), slot, tally)
        whole = not failed and not repository.spec.verify.suspend
        if whole:
            for prefix, points in known.items():
                if prefix not in prefixes:
                    await self._tell_lost(repository, points, slot, tally)
        repository = await self._record(repository, slot, now, tally, failed, whole)
        for vault in verified:
            async with asyncio.timeout(READ_S):
                await forget_results(vault)
        return repository

    async def _elsewhere(self, repository: BackupRepository, opened: OpenedRepository) -> set[str]:
        """Return the prefixes of other clusters' namespaces: these verify their own."""
        prefixes = set()
        for identity in await opened.repository.namespaces():
            if identity.cluster_id != self.context.cluster_id:
                _, vault = await self.context.repositories.vault(repository.name, identity)
                prefixes.add(vault.names.prefix)
        return prefixes

    def _known(self, repository: BackupRepository, opened: OpenedRepository) -> dict[str, list[RecoveryPoint]]:
        """Return the points that the cluster knows in this repository, by their namespace's prefix there."""
        known: dict[str, list[RecoveryPoint]] = defaultdict(list)
        for point in self.context.caches.of(RecoveryPoint).all():
            told = point.status.manifest
            if told is None or point.spec.repository != repository.name:
                continue
            if told.repository_id in ("", opened.repository.id):
                known["/".join(told.key.split("/")[:2]) + "/"].append(point)
        return known

    async def _tell(
        self,
        repository: BackupRepository,
        vault: Vault,
        result: VerifyResult,
        known: Iterable[RecoveryPoint],
        slot: datetime,
        tally: _Tally,
    ) -> None:
        """Compare one namespace's result with the points that the cluster knows, and tell each that is hurt."""
        hurt = {each.key: (each.what, each.chunks) for each in result.hurt}
        whole = result.damaged_points == len(result.hurt)
        recorded = set[str]()
        for point in known:
            assert point.status.manifest is not None
            recorded.add(point.status.manifest.key)
            judged = verification.judge(point, result.digests, hurt, whole=whole, slot=slot)
            if judged.standing is Standing.MISSING:
                judged = await _look_again(vault, point)
            await self._write(repository, point, judged, tally)
        tally.unrecorded_points += len(result.digests.keys() - recorded)

    async def _tell_lost(
        self, repository: BackupRepository, known: Iterable[RecoveryPoint], slot: datetime, tally: _Tally
    ) -> None:
        """Tell the points of a namespace of which the repository has nothing, not even its keys."""
        for point in known:
            judged = verification.judge(point, {}, {}, whole=True, slot=slot)
            await self._write(repository, point, judged, tally)

    async def _write(self, repository: BackupRepository, point: RecoveryPoint, judged: Judged, tally: _Tally) -> None:
        """Write a point's condition and count it; a record that has gone meanwhile was removed on purpose."""
        change = verification.condition_of(point, judged)
        if change is None:
            return
        now = self.context.clock.now()
        found = await self.context.client.find(RecoveryPoint, point.name, point.namespace)
        if found is None or found.uid != point.uid or found.deleting or found.spec.prune:
            return
        if judged.standing is Standing.MISSING:
            tally.missing_points += 1
        if judged.standing in (Standing.DAMAGED, Standing.MISSING):
            tally.hurt.append(f"{point.namespace}/{point.name}")
        news = verification.is_damaged(found) != (change.status == "True")
        conditions = with_condition(found.status.conditions, change, now)
        await patch_status(self.context, found, msgspec.structs.replace(found.status, conditions=conditions))
        if news and change.status == "True":
            self.context.recorder.event(found, "Warning", change.reason, change.message)
        elif news:
            self.context.recorder.event(found, "Normal", change.reason, "A verification found it sound again.")

    async def _record(
        self, repository: BackupRepository, slot: datetime, now: datetime, tally: _Tally, failed: int, whole: bool
    ) -> BackupRepository:
        """Write what the slot came to; figures only of a slot that went through every namespace."""
        seen = _verification(repository, tally)
        told = _condition(repository, seen, tally, failed)
        status = msgspec.structs.replace(repository.status, last_verification_slot=slot)
        if whole:
            status = msgspec.structs.replace(status, last_verified=now, verification=seen)
        if whole or failed or tally.hurt:
            conditions = with_condition(status.conditions, told, now)
            status = msgspec.structs.replace(status, conditions=conditions)
        repository = await patch_status(self.context, repository, status)
        if told.reason == DAMAGED:
            self.context.recorder.event(repository, "Warning", "Damaged", told.message)
        elif whole:
            self.context.recorder.event(repository, "Normal", "Verified", told.message)
        return repository


async def _result(vault: Vault, run: str) -> VerifyResult | None:
    """Return what a run left, None when there is nothing that opens."""
    try:
        async with asyncio.timeout(READ_S):
            return await open_result(vault, run)
    except (Damaged, UnsupportedFormat):
        return None


async def _look_again(vault: Vault, point: RecoveryPoint) -> Judged:
    """Look for a manifest that a run did not see: it may have been removed meanwhile, or a listing was old."""
    told = point.status.manifest
    assert told is not None
    try:
        async with asyncio.timeout(READ_S):
            await open_manifest(vault, told.key, digest=told.digest)
    except ManifestMissing:
        return verification.missing("there is no such object")
    except PointCancelled:
        return verification.missing("the point was removed from the repository")
    except (Damaged, UnsupportedFormat) as error:
        return verification.missing(error.what if isinstance(error, Damaged) else str(error))
    return Judged(Standing.UNSEEN)


def _verification(repository: BackupRepository, tally: _Tally) -> Verification:
    share = tally.share if tally.namespaces else decisions.sample_of(repository)
    depth = VerifyDepth.QUICK if share <= 0 else VerifyDepth.FULL if share >= 1 else VerifyDepth.SAMPLED
    return Verification(
        depth=depth,
        sample_percent=round(share * 100) if depth is VerifyDepth.SAMPLED else 0,
        turn=decisions.next_turn(repository),
        namespaces=tally.namespaces,
        points=tally.points,
        chunks=tally.chunks,
        bytes_read=tally.bytes_read,
        damaged_objects=tally.damaged_objects,
        damaged_chunks=tally.damaged_chunks,
        damaged_points=tally.damaged_points,
        missing_points=tally.missing_points,
        unrecorded_points=tally.unrecorded_points,
        hurt=tuple(sorted(tally.hurt)[:NAMED]),
    )


def _condition(repository: BackupRepository, seen: Verification, tally: _Tally, failed: int) -> Condition:
    """Say in the condition `Verified` whether all was looked at and all of it is sound."""
    words = []
    if seen.damaged_objects or seen.missing_points:
        words.append(
            f"{seen.damaged_objects} damaged objects hurt {seen.damaged_points} points; {seen.missing_points} points "
            "are not in the repository as they were."
        )
        if tally.hurt:
            more = f" and {len(tally.hurt) - 3} more" if len(tally.hurt) > 3 else ""
            words.append(f"Hurt: {', '.join(sorted(tally.hurt)[:3])}{more}.")
    if failed:
        words.append(f"{failed} namespaces could not be verified; the next slot tries again.")
    reason = DAMAGED if seen.damaged_objects or seen.missing_points else "VerificationFailed" if failed else "Verified"
    if not words:
        words.append(f"{seen.points} points are sound ({seen.depth.value}).")
    return Condition(
        type="Verified",
        status="True" if reason == "Verified" else "False",
        reason=reason,
        message=" ".join(words)[: verification.MESSAGE_LIMIT],
        observed_generation=repository.metadata.generation,
    )
