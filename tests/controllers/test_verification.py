"""Verification by schedule: Jobs prove, the controller tells, and only what is hurt is said to be hurt."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.api.foreign.core import Job, Secret
from orchestrator.api.meta import Condition, condition
from orchestrator.api.mover import CONFIG_KEY, MoverConfig
from orchestrator.api.tidemark.backup_repository import BackupRepository, VerifyDepth
from orchestrator.api.tidemark.recovery_point import RecoveryPoint
from orchestrator.controllers.backup_repository import BackupRepositoryController
from orchestrator.mover.arguments import parse
from orchestrator.mover.report import Reporter
from orchestrator.mover.verify import run
from orchestrator.repository.chunkmap import MapReader
from orchestrator.repository.keys import NamespaceIdentity
from orchestrator.repository.manifest import PointRef, open_manifest
from orchestrator.repository.vault import Vault
from tests.controllers.desk import CLUSTER, NAMESPACE, SYSTEM, Desk, desk
from tests.repository.engine import backup

KEY = ("", "main")
SIZE = 1024
ARGUMENTS = parse(["verify", "--point", "x"])
VOLUME = os.urandom(40 * SIZE)


@dataclass
class Site:
    """A repository with a namespace, and the hands to verify it."""

    at: Desk
    controller: BackupRepositoryController
    vault: Vault

    async def point(self, name: str, sequence: int, volume: bytes = VOLUME, **told: Any) -> PointRef:
        """Back a volume up and record it; `told` is what the record says instead."""
        ref = await backup(self.vault, volume, sequence=sequence, chunk_size=SIZE)
        manifest = {"key": ref.key, "digest": ref.digest, "repositoryId": self.vault.repository_id, **told}
        status = {"phase": "Completed", "manifest": manifest, "completionTime": self.at.clock.now().isoformat()}
        spec = {"pvcName": "db", "pvcUid": "pvc-uid", "repository": "main"}
        await self.at.put(RecoveryPoint, name, spec=spec, status=status)
        return ref

    async def pass_(self, times: int = 1) -> None:
        for _ in range(times):
            await self.controller.reconcile(KEY)

    async def begun(self, **wait: float) -> str:
        """Let the next slot come and its first Job be made; return the Job's name."""
        self.at.clock.pass_(**(wait or {"days": 8}))
        await self.pass_(2)
        (name,) = self.at.names(Job)
        return name

    async def config(self, name: str) -> MoverConfig:
        """Return what a Job's mover gets."""
        secret = await self.at.client.get(Secret, name, SYSTEM)
        return msgspec.json.decode(secret.data[CONFIG_KEY], type=MoverConfig)

    async def move(self, name: str) -> None:
        """Run the Job's mover, as its pod would, and let the Job end as it ended."""
        outcome = await run(await self.config(name), ARGUMENTS, Reporter())
        await self.end(name, "Complete" if outcome.ok else "Failed")

    async def end(self, name: str, how: str) -> None:
        await self.at.change(Job, name, SYSTEM, status={"conditions": [{"type": how, "status": "True"}]})

    async def verified(self, **wait: float) -> BackupRepository:
        """Let a whole slot pass."""
        await self.move(await self.begun(**wait))
        await self.pass_(4)
        assert self.at.names(Job) == []
        return await self.now()

    async def now(self) -> BackupRepository:
        return await self.at.known(BackupRepository, "main")

    async def of_point(self, name: str) -> Condition | None:
        return condition((await self.at.known(RecoveryPoint, name)).status.conditions, "Damaged")

    async def results(self) -> list[str]:
        return [info.key async for info in self.vault.store.list(self.vault.names.verified)]

    def gauge(self, what: str) -> float | None:
        return self.at.metric(f"tidemark_repository_{what}", repository="main")


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with desk(tmp_path) as at:
        await at.repository(maintenance={"suspend": True})
        controller = BackupRepositoryController(at.context)
        await controller.reconcile(KEY)
        identity = NamespaceIdentity(CLUSTER, "ns-1", NAMESPACE)
        _, vault = await at.context.repositories.vault("main", identity, create=True)
        yield Site(at, controller, vault)


async def replaced(vault: Vault, key: str, data: bytes) -> bytes:
    good = await vault.store.get(key)
    await vault.store.delete(key)
    await vault.store.put_new(key, data)
    return good


async def pack_of(vault: Vault, ref: PointRef, index: int) -> tuple[str, int]:
    """Return the pack of a chunk, and where the chunk lies in it."""
    manifest, _ = await open_manifest(vault, ref.key)
    entry = (await MapReader(vault, manifest.root).lookup([index]))[index]
    return vault.names.pack(entry.pack), entry.slot * 64


async def test_a_sound_repository_is_verified_each_week_with_a_sample_and_told(site: Site) -> None:
    await site.point("db-1", 1)
    name = await site.begun()
    config = await site.config(name)
    job = site.at.api.objects["jobs"][(SYSTEM, name)]
    assert (config.task, config.sample, config.turn, config.run) == ("verify", 0.05, 0, name)
    assert "master" not in config.keys
    assert job["spec"]["activeDeadlineSeconds"] == 24 * 3600
    await site.move(name)
    await site.pass_()
    assert site.at.names(Job) == [name], "the note is there before the Job goes"
    await site.pass_(3)
    now = await site.now()
    seen = now.status.verification
    assert seen is not None
    assert (seen.depth, seen.sample_percent, seen.points, seen.namespaces) == (VerifyDepth.SAMPLED, 5, 1, 1)
    assert (seen.damaged_objects, seen.damaged_points, seen.missing_points, seen.hurt) == (0, 0, 0, ())
    assert now.status.last_verified == site.at.clock.now()
    told = condition(now.status.conditions, "Verified")
    assert told is not None
    assert told.status == "True"
    assert await site.of_point("db-1") is None, "a point that was never hurt gets no condition"
    assert await site.results() == []
    assert site.at.names(Job) == []
    assert site.at.metric("tidemark_verifications_total", repository="main", result="ok") == 1
    assert site.gauge("verified_timestamp_seconds") == site.at.clock.now().timestamp()
    assert site.gauge("damaged_points") == 0
    assert "Verified" in [reason for reason, _ in await site.at.events()]
    await site.pass_(2)
    assert site.at.names(Job) == [], "the slot is done"
    assert (await site.config(await site.begun())).turn == 1, "the next sample is another part"


async def test_damage_is_told_on_the_points_that_it_hurts_and_taken_back_when_it_is_healed(site: Site) -> None:
    await site.at.change(BackupRepository, "main", spec=await spec(site, verify={"depth": "full"}))
    one, _ = await site.point("db-1", 1), await site.point("db-2", 2, os.urandom(8 * SIZE))
    key, start = await pack_of(site.vault, one, 7)
    data = await site.vault.store.get(key)
    good = await replaced(site.vault, key, data[: start + 9] + bytes([data[start + 9] ^ 1]) + data[start + 10 :])
    now = await site.verified()
    hurt = await site.of_point("db-1")
    assert hurt is not None
    assert (hurt.status, hurt.reason) == ("True", "Damaged")
    assert "1 chunks are lost" in hurt.message
    assert await site.of_point("db-2") is None, "it doesn't use what is damaged"
    seen, told = now.status.verification, condition(now.status.conditions, "Verified")
    assert seen is not None
    assert told is not None
    assert (seen.damaged_objects, seen.damaged_chunks, seen.damaged_points, seen.hurt) == (1, 1, 1, ("shop/db-1",))
    assert (told.status, told.reason) == ("False", "Damaged")
    assert now.status.last_verified == site.at.clock.now(), "it was looked at, and found bad"
    assert site.gauge("damaged_objects") == site.gauge("damaged_chunks") == site.gauge("damaged_points") == 1
    assert site.at.metric("tidemark_verifications_total", repository="main", result="damaged") == 1
    events = await site.at.events()
    assert [reason for reason, _ in events].count("Damaged") == 2, "one on the point, one on the repository"
    # a sample, which would hardly hit the one chunk, must not tell of healing
    await site.at.change(BackupRepository, "main", spec=await spec(site, verify={"samplePercent": 1}))
    await site.verified()
    again = await site.of_point("db-1")
    assert again is not None
    assert again.status == "True"
    # when the object comes back, the next run takes it back
    await replaced(site.vault, key, good)
    now = await site.verified()
    healed = await site.of_point("db-1")
    assert healed is not None
    assert (healed.status, healed.reason) == ("False", "VerifiedClean")
    told = condition(now.status.conditions, "Verified")
    assert told is not None
    assert told.status == "True"
    assert site.gauge("damaged_points") == 0


async def spec(site: Site, **changes: Any) -> dict[str, Any]:
    """Return the repository's spec with changes."""
    stored = site.at.api.objects["backuprepositories"][("", "main")]["spec"]
    return {**stored, **changes}


async def test_points_that_are_gone_or_others_now_are_found_against_the_clusters_memory(site: Site) -> None:
    gone = await site.point("gone", 1)
    await site.point("rolled-back", 2, os.urandom(SIZE), digest="0" * 64)
    await site.point("sound", 3, os.urandom(2 * SIZE))
    await backup(site.vault, os.urandom(SIZE), sequence=4, chunk_size=SIZE)
    await site.vault.store.delete(gone.key)
    now = await site.verified()
    for name, words in (("gone", "no such object"), ("rolled-back", "isn't the one expected")):
        hurt = await site.of_point(name)
        assert hurt is not None
        assert (hurt.status, hurt.reason) == ("True", "ManifestMissing")
        assert words in hurt.message
    assert await site.of_point("sound") is None
    seen, told = now.status.verification, condition(now.status.conditions, "Verified")
    assert seen is not None
    assert told is not None
    assert (seen.missing_points, seen.unrecorded_points, seen.damaged_points) == (2, 1, 0)
    assert told.status == "False"
    assert site.gauge("missing_points") == 2


async def test_a_point_completed_after_the_slot_is_not_called_missing(site: Site) -> None:
    await site.point("db-1", 1)
    name = await site.begun()
    await site.move(name)
    late = await site.point("late", 2, os.urandom(SIZE))
    await site.pass_(4)
    assert await site.of_point("late") is None
    assert late.key
    seen = (await site.now()).status.verification
    assert seen is not None
    assert seen.missing_points == 0


async def test_a_namespace_of_which_nothing_is_left_is_found(site: Site) -> None:
    await site.point("db-1", 1)
    async for info in site.vault.store.list(""):
        if site.vault.namespace_id in info.key:
            await site.vault.store.delete(info.key)
    await site.at.context.repositories.close()
    site.at.clock.pass_(days=8)
    await site.pass_(3)
    hurt = await site.of_point("db-1")
    assert hurt is not None
    assert hurt.reason == "ManifestMissing"
    seen = (await site.now()).status.verification
    assert seen is not None
    assert (seen.missing_points, seen.hurt) == (1, ("shop/db-1",))


async def test_a_verification_that_fails_is_said_counts_for_nothing_and_becomes_overdue(site: Site) -> None:
    await site.point("db-1", 1)
    for _ in range(4):
        await site.end(await site.begun(days=7), "Failed")
        await site.pass_(4)
    now = await site.now()
    told = condition(now.status.conditions, "Verified")
    assert told is not None
    assert (told.status, told.reason) == ("False", "VerificationFailed")
    assert now.status.last_verified is None
    assert now.status.verification is None
    assert site.gauge("verification_overdue") == 1
    assert site.at.metric("tidemark_verifications_total", repository="main", result="failed") == 4
    await site.verified()
    assert site.gauge("verification_overdue") == 0


async def test_a_result_of_an_older_run_is_no_result(site: Site) -> None:
    """Without this a store that plays back old bytes could tell of a run that never ended."""
    await site.point("db-1", 1)
    first = await site.begun()
    await run(await site.config(first), ARGUMENTS, Reporter())
    old = await site.vault.store.get(site.vault.names.verified + first)
    await site.end(first, "Complete")
    await site.pass_(4)
    second = await site.begun()
    assert second != first
    await site.vault.store.put_new(site.vault.names.verified + second, old)
    await site.end(second, "Complete")
    before = (await site.now()).status.last_verified
    await site.pass_(4)
    now = await site.now()
    assert now.status.last_verified == before
    told = condition(now.status.conditions, "Verified")
    assert told is not None
    assert told.reason == "VerificationFailed"


async def test_verification_that_is_switched_off_runs_nothing_and_is_not_overdue(site: Site) -> None:
    await site.at.change(BackupRepository, "main", spec=await spec(site, verify={"suspend": True}))
    site.at.clock.pass_(days=60)
    await site.pass_(2)
    assert site.at.names(Job) == []
    assert site.gauge("verification_overdue") == 0


async def test_suspended_while_it_runs_it_leaves_no_job_and_tells_what_it_found(site: Site) -> None:
    one = await site.point("db-1", 1)
    await site.vault.store.delete((await pack_of(site.vault, one, 0))[0])
    await site.at.context.repositories.vault("main", NamespaceIdentity(CLUSTER, "ns-2", "bank"), create=True)
    name = await site.begun()
    config = await site.config(name)
    await site.at.change(BackupRepository, "main", spec=await spec(site, verify={"suspend": True}))
    await site.move(name)
    await site.pass_(4)
    assert site.at.names(Job) == []
    now = await site.now()
    assert now.status.last_verified is None, "not every namespace was looked at"
    hurt = await site.of_point("db-1")
    assert (hurt is not None) == (config.point == site.vault.namespace_id)


async def test_other_clusters_namespaces_are_left_to_them(site: Site) -> None:
    await site.at.context.repositories.vault("main", NamespaceIdentity("another", "ns-9", "x"), create=True)
    await site.point("db-1", 1)
    now = await site.verified()
    assert now.status.verification is not None
    assert now.status.verification.namespaces == 1


async def test_a_schedule_that_can_not_be_followed_is_told_and_stops_nothing_else(site: Site) -> None:
    bad = {"schedule": {"cron": "61 * * * *"}}
    await site.at.change(BackupRepository, "main", spec=await spec(site, verify=bad, maintenance=bad))
    await site.pass_()
    now = await site.now()
    for type_ in ("Verified", "Maintained"):
        told = condition(now.status.conditions, type_)
        assert told is not None
        assert (told.status, told.reason) == ("False", "BadSchedule")
    assert now.status.ready == "True"
    assert site.gauge("verification_overdue") is None
    await site.at.change(BackupRepository, "main", spec=await spec(site, verify={}, maintenance={}))
    await site.pass_()
    now = await site.now()
    assert [each.type for each in now.status.conditions] == ["Ready", "ConditionalPut"], "mended, it is taken back"
