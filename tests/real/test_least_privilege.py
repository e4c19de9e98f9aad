"""Every right of the controller is used, none is missing, and what it writes is what the page on security says.

One story is told on a real API server with auditing on; then the log is read. The story is chosen so that each right is
needed for certain: where a right serves a crash or a rare race, the story brings about what that leaves behind.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from orchestrator.api.foreign.core import Job, Namespace, PersistentVolumeClaim, Pod
from orchestrator.api.foreign.snapshot import VolumeSnapshotContent
from orchestrator.api.meta import condition
from orchestrator.api.tidemark import Backup, BackupPolicy, BackupRepository, RecoveryPoint, Restore
from orchestrator.api.tidemark.backup import BackupPhase
from orchestrator.api.tidemark.fields import LABEL_POLICY_UID
from orchestrator.api.tidemark.restore import RestorePhase
from orchestrator.decisions.backup import point_name
from orchestrator.decisions.backup_policy import backup_name
from policies.naming import object_name, transient_name
from tests.real import audit
from tests.real.cluster import RealCluster
from tests.real.site import ACCOUNT, HOME, MOVER, Site, ours, site
from tests.real.world import REPOSITORY
from tests.system.world import digest, write
from tests.waiting import LONG

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1500)]

TEAM = "rights"
SIZE = 8 << 20
SLOW = {"bandwidthLimit": "1Mi", "parallelism": 1}
"""Some ten seconds for one mover: long enough to be seen at work."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def told(cluster: RealCluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """The installation, after the story."""
    async with site(cluster, tmp_path_factory.mktemp("rights")) as found:
        await Story(found).tell()
        yield found


class Story:
    """What the controller is made to do."""

    def __init__(self, at: Site) -> None:
        self.at, self.world, self.client = at, at.world, at.client

    async def tell(self) -> None:
        """Tell all of it."""
        await self.at.team(TEAM)
        images = [await self.world.claim(name, TEAM, size=SIZE) for name in ("a", "b")]
        for image in images:
            await asyncio.to_thread(write, image, 0, bytes(range(256)) * 16384)
        await self.back_up(images[0])
        await self.restore_one(images[0])
        await self.find_names_taken()
        await self.wait_for_a_node()
        await self.lose_a_job()
        async with asyncio.TaskGroup() as together:  # these wait most of the time
            for part in (self.prune_and_sweep(), self.keep_the_schedule(), self.repeat_itself()):
                together.create_task(part)
        await self.maintain()

    async def backup(
        self, name: str, *claims: str, wanted: BackupPhase = BackupPhase.COMPLETED, **options: Any
    ) -> None:
        """Back up these claims, and wait until it ended so."""
        await self.begin(name, *claims, **options)
        ended = await self.world.backup_ended(name, TEAM, LONG)
        assert ended.status.phase is wanted, ended.status

    async def begin(self, name: str, *claims: str, **options: Any) -> None:
        """Create a Backup of these claims."""
        selection = {"volumes": {"names": list(claims)}, "repository": REPOSITORY, "options": options}
        await self.at.put(ours("Backup", name, TEAM, {"selection": selection}))

    async def back_up(self, image: Path) -> None:
        """A full, seen at work, then a delta: the mover's log is read, the service asked, events counted."""
        await self.begin("first", "a", "b", **SLOW)
        await self.world.kill_installed()
        ended = await self.world.backup_ended("first", TEAM, LONG)
        assert ended.status.phase is BackupPhase.COMPLETED, ended.status
        await asyncio.to_thread(write, image, 1 << 20, b"changed" * 1000)
        await self.backup("second", "a", "b")

    async def restore_one(self, image: Path) -> None:
        """A point comes back into a new claim, by a change of hands of its volume."""
        spec = {"source": {"pvc": {"pvc": "a"}}, "target": {"pvcName": "a-again"}}
        await self.at.put(ours("Restore", "one", TEAM, spec))
        ended = await self.world.restore_ended("one", TEAM, LONG)
        assert ended.status.phase is RestorePhase.COMPLETED, ended.status
        assert digest(await self.world.image("a-again", TEAM)) == digest(image)

    async def find_names_taken(self) -> None:
        """Leave a controller's place to another; what it finds under its names is looked at, and not taken."""
        await self.at.pause()
        await self.begin("taken", "a")
        backup = await self.client.get(Backup, "taken", TEAM)
        claim = await self.client.get(PersistentVolumeClaim, "a", TEAM)
        cluster_id = (await self.client.get(Namespace, "kube-system")).uid
        point = {"pvcName": "a", "pvcUid": claim.uid}
        await self.at.put(ours("RecoveryPoint", point_name(backup, claim, cluster_id), TEAM, point | {"cancel": True}))
        await self.at.put(
            ours("Restore", "whole", TEAM, {"source": {"backup": "second"}, "target": {"namePrefix": "w-"}})
        )
        restore = await self.client.get(Restore, "whole", TEAM)
        first = next(p for p in await self.world.points(TEAM) if (p.spec.backup, p.spec.pvc_name) == ("second", "a"))
        child = object_name("a", restore.uid, first.uid)
        await self.at.put(ours("Restore", child, TEAM, {"source": {"point": "none"}}))
        await self.at.resume()
        taken = await self.world.backup_ended("taken", TEAM, LONG)
        assert (taken.status.phase, taken.status.reason) == (BackupPhase.FAILED, "NameTaken")
        whole = await self.world.restore_ended("whole", TEAM, LONG)
        assert (whole.status.phase, whole.status.reason) == (RestorePhase.FAILED, "NameTaken")

    async def wait_for_a_node(self) -> None:
        """No node takes the mover for a while: why is read from the clone's events."""
        nodes = (await self.at.kubectl("get", "nodes", "-o", "name"))[1].split()
        for node in nodes:
            await self.at.kubectl("cordon", node)
        try:
            await self.at.put(ours("Restore", "late", TEAM, {
                "source": {"pvc": {"pvc": "b"}},
                "target": {"pvcName": "b-late", "storageClassName": "sandbox-wffc"},
            }))  # fmt: skip
            await self.until(Restore, "late", lambda r: _held(r.status.conditions))
        finally:
            for node in nodes:
                await self.at.kubectl("uncordon", node)
        ended = await self.world.restore_ended("late", TEAM, LONG)
        assert ended.status.phase is RestorePhase.COMPLETED, ended.status

    async def lose_a_job(self) -> None:
        """Somebody takes a mover's Job away and leaves its pod; the run is cancelled: the pod is ours to remove."""
        image = await self.world.image("a", TEAM)
        await asyncio.to_thread(write, image, 0, b"other" * 400_000)
        await self.begin("lost", "a", bandwidthLimit="64Ki", parallelism=1)
        point = await self.appeared("lost")
        await self.world.until(Job, transient_name(point.uid), HOME, lambda j: j is not None)
        pods = await self.pods_of(point)
        await self.at.kubectl("delete", "job", transient_name(point.uid), "-n", HOME, "--cascade=orphan")
        await self.client.merge_patch(Backup, "lost", TEAM, {"spec": {"cancel": True}})
        ended = await self.world.backup_ended("lost", TEAM, LONG)
        assert ended.status.phase is BackupPhase.CANCELLED, ended.status
        for pod in pods:
            await self.world.until(Pod, pod.name, HOME, lambda p: p is None)

    async def prune_and_sweep(self) -> None:
        """One point's data goes on request; another's record is deleted, and its snapshot swept."""
        points = {(p.spec.backup, p.spec.pvc_name): p for p in await self.world.points(TEAM)}
        pruned, deleted = points["first", "a"], points["second", "b"]
        await self.client.merge_patch(RecoveryPoint, pruned.name, TEAM, {"spec": {"prune": True}})
        await self.world.until(RecoveryPoint, pruned.name, TEAM, lambda p: p is None)
        assert deleted.status.content_name
        await self.client.delete(RecoveryPoint, deleted.name, TEAM, uid=deleted.uid)
        content = deleted.status.content_name
        await self.world.until(VolumeSnapshotContent, content, "", lambda c: c is None)

    async def keep_the_schedule(self) -> None:
        """Slots become runs; the oldest records of a long history go; one slot finds its run's name taken."""
        spec = {"volumes": {"names": ["a"]}, "repository": REPOSITORY, "schedule": {"every": "5s"}}
        policy = await self.world.apply(BackupPolicy, "often", TEAM, spec | {"suspend": True})
        past = datetime(2026, 1, 1, tzinfo=UTC)
        for number in range(21):
            await self.finished(policy, f"old-{number:02}", past + timedelta(days=number))
        await self.world.apply(BackupPolicy, "often", TEAM, spec)
        await self.until(BackupPolicy, "often", lambda p: bool(p.status.last_backup))
        policy = await self.world.apply(BackupPolicy, "often", TEAM, spec | {"suspend": True})
        await self.world.backup_ended(policy.status.last_backup, TEAM, LONG)
        await self.world.until(Backup, "old-00", TEAM, lambda b: b is None)

        cluster_id = (await self.client.get(Namespace, "kube-system")).uid
        start = datetime.fromtimestamp(int(datetime.now(UTC).timestamp()) // 5 * 5, UTC)
        for slot in (start + timedelta(seconds=5 * n) for n in range(-1, 24)):  # two minutes
            name = backup_name(policy, slot, cluster_id)
            if await self.client.find(Backup, name, TEAM) is None:
                body = ours("Backup", name, TEAM, {"policy": "often", "cancel": True})
                await self.client.create_raw(Backup.RESOURCE, body, Backup)
        await self.world.apply(BackupPolicy, "often", TEAM, spec)
        await self.until(BackupPolicy, "often", lambda p: _held(p.status.conditions, "NameTaken"))
        await self.world.apply(BackupPolicy, "often", TEAM, spec | {"suspend": True})

    async def finished(self, policy: BackupPolicy, name: str, slot: datetime) -> None:
        """Make the record of a run that is over, as it would have been left."""
        body = ours("Backup", name, TEAM, {"policy": policy.name, "slot": slot.isoformat()})
        body["metadata"]["labels"] = {LABEL_POLICY_UID: policy.uid}
        body["spec"]["cancel"] = True
        await self.client.create_raw(Backup.RESOURCE, body, Backup)

    async def repeat_itself(self) -> None:
        """A repository whose key is missing: the same is told again and again, as one event that counts."""
        spec = {"url": "s3://bucket/locked", "encryptionSecret": "missing", "allowedNamespaces": ["nobody"]}
        made = await self.world.apply(BackupRepository, "locked", "", spec)
        async with asyncio.timeout(LONG):
            while True:
                _, said = await self.at.kubectl("get", "events", "-n", "default", "-o", "json")
                told = [e for e in json.loads(said)["items"] if e["involvedObject"].get("uid") == made.uid]
                if any(e["count"] > 1 for e in told):
                    break
                await asyncio.sleep(0.5)
        await self.client.delete(BackupRepository, "locked", uid=made.uid)

    async def maintain(self) -> None:
        """A maintenance falls due."""
        before = (await self.client.get(BackupRepository, REPOSITORY)).status.last_maintenance_slot
        body = {"spec": {"maintenance": {"schedule": {"every": "10s"}}}}
        await self.client.merge_patch(BackupRepository, REPOSITORY, "", body)
        await self.world.until(
            BackupRepository, REPOSITORY, "",
            lambda r: r is not None and r.status.last_maintenance_slot not in (None, before),
        )  # fmt: skip
        await self.client.merge_patch(
            BackupRepository, REPOSITORY, "", {"spec": {"maintenance": {"schedule": None, "suspend": True}}}
        )

    async def appeared(self, backup: str) -> RecoveryPoint:
        """Wait for a Backup's only point, and return it."""
        async with asyncio.timeout(LONG):
            while True:
                mine = [p for p in await self.world.points(TEAM) if p.spec.backup == backup]
                if mine:
                    return mine[0]
                await asyncio.sleep(0.1)

    async def pods_of(self, point: RecoveryPoint) -> list[Pod]:
        """Wait for the pods of a point's mover, and return them."""
        async with asyncio.timeout(LONG):
            while True:
                label = f"batch.kubernetes.io/job-name={transient_name(point.uid)}"
                pods, _ = await self.client.list(Pod, HOME, labels=label)
                if pods:
                    return pods
                await asyncio.sleep(0.1)

    async def until(self, kind: Any, name: str, met: Any) -> None:
        """Wait until an object of the team is there and as wanted."""
        await self.world.until(kind, name, TEAM, lambda found: found is not None and met(found))


def _held(conditions: Any, reason: str = "") -> bool:
    found = condition(conditions, "Progressing")
    return found is not None and found.status == "False" and reason in ("", found.reason)


async def test_no_request_is_denied(told: Site) -> None:
    """What the controller asks for is what it was given."""
    assert audit.denied(await told.requests()) == []


async def test_movers_ask_nothing_of_the_api_server(told: Site) -> None:
    """They hold no token of any account; the tokens that were made are the controller's own."""
    assert await told.requests(audit.account(HOME, MOVER)) == []
    kubelets = [r for r in await told.everybody() if r.resource == "serviceaccounts/token" and r.namespace == HOME]
    assert kubelets
    assert {r.name for r in kubelets} == {ACCOUNT}


async def test_each_right_is_used(told: Site) -> None:
    """A right that a story of everything does not need is one too many."""
    assert audit.unused(await told.grants(), await told.requests()) == []


async def test_no_right_holds_everywhere_that_is_needed_at_home_only(told: Site) -> None:
    """What touches objects of the controller's own namespace only is granted by the Role there."""
    assert audit.too_wide(await told.grants(), await told.requests(), HOME) == []


async def test_nothing_is_written_that_the_page_does_not_list(told: Site) -> None:
    """The page's table is the whole truth about what is written, by name and place."""
    made = await told.requests()
    table = audit.rows(audit.PAGE.read_text())
    assert sum(r.verb in audit.WRITES for r in made) > 100
    assert audit.unlisted(made, table, HOME) == []
