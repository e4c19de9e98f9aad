"""The main job in small, on a whole installation: a policy, a full, an increment, a restore, a prune."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest

from orchestrator.api.foreign.core import Event
from orchestrator.api.meta import ObjectMeta, condition
from orchestrator.api.tidemark import BackupPolicy, RecoveryPoint, Restore
from orchestrator.api.tidemark.backup import BackupPhase
from orchestrator.api.tidemark.restore import RestorePhase, RestoreSpec
from orchestrator.demo import install
from tests.system.world import World, digest, write

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.system]

SIZE = 8 << 20
CHUNK = 64 * 1024


async def _restore(found: World, name: str, namespace: str, **spec: object) -> Restore:
    wanted = msgspec.convert(spec, RestoreSpec)
    await found.client.create(Restore(metadata=ObjectMeta(name=name, namespace=namespace), spec=wanted))
    return await found.restore_ended(name, namespace)


async def test_a_full_an_increment_and_a_restore_are_bit_identical(installed: World) -> None:
    found, chance = installed, random.Random(7)
    await install.namespace(found.client, "main")
    block, files = (
        await found.claim("raw", "main", size=SIZE),
        await found.claim("files", "main", size=SIZE, mode="Filesystem"),
    )
    for image in (block, files):
        write(image, 0, chance.randbytes(3 << 20))
    await found.apply(BackupPolicy, "all", "main", {"repository": "vault", "retention": {"keepLast": 1}})

    await found.backup("first", "main", policy="all")
    first = await found.backup_ended("first", "main")
    write(block, 5 << 20, chance.randbytes(1000))
    changed = digest(block)
    await found.backup("second", "main", policy="all")
    second = await found.backup_ended("second", "main")

    assert (first.status.phase, second.status.phase) == (BackupPhase.COMPLETED, BackupPhase.COMPLETED)
    points = {(p.spec.backup, p.spec.pvc_name): p.status for p in await found.points("main")}
    delta, idle = points["second", "raw"], points["second", "files"]
    assert delta.bytes is not None
    assert idle.bytes is not None
    assert (points["first", "raw"].mode, delta.mode, idle.mode) == ("allocated", "delta", "delta")
    assert (delta.bytes.read, idle.bytes.read) == (CHUNK, 0)

    done = await _restore(found, "back", "main", source={"backup": "second"}, target={"namePrefix": "back-"})
    assert done.status.phase is RestorePhase.COMPLETED, done.status
    assert digest(await found.image("back-raw", "main")) == changed
    assert digest(await found.image("back-files", "main")) == digest(files)
    await found.settled("main", snapshots=2)


async def test_an_existing_claim_is_never_overwritten(installed: World) -> None:
    found = installed
    before = digest(await found.image("raw", "main"))
    done = await _restore(found, "over", "main", source={"pvc": {"pvc": "files"}}, target={"pvcName": "raw"})
    assert (done.status.phase, done.status.reason) == (RestorePhase.FAILED, "TargetExists")
    assert digest(await found.image("raw", "main")) == before


async def test_another_namespace_must_accept_a_restore(installed: World) -> None:
    found = installed
    await install.namespace(found.client, "other")
    target = {"namespace": "other", "pvcName": "moved"}
    refused = await _restore(found, "cross", "main", source={"pvc": {"pvc": "raw"}}, target=target)
    assert (refused.status.phase, refused.status.reason) == (RestorePhase.FAILED, "RestoreForbidden")

    await install.namespace(found.client, "other", {"tidemark.dev/accept-restores-from": "main"})
    await asyncio.sleep(0.5)
    taken = await _restore(found, "cross2", "main", source={"pvc": {"pvc": "raw"}}, target=target)
    assert taken.status.phase is RestorePhase.COMPLETED, taken.status
    assert digest(await found.image("moved", "other")) == digest(await found.image("raw", "main"))


async def test_a_point_is_pruned_on_request_and_said_so(installed: World) -> None:
    found = installed
    oldest = min(await found.points("main"), key=lambda p: p.status.sequence)
    await found.client.merge_patch(RecoveryPoint, oldest.name, "main", {"spec": {"prune": True}})
    await found.until(RecoveryPoint, oldest.name, "main", lambda p: p is None)
    code, said = await found.tidemark(
        "restore", "--repository", found.repository_url, "--key-file", str(found.key_file), "--list", "-o", "json"
    )
    assert code == 0
    assert oldest.uid not in said


async def test_the_policy_tells_how_it_stands(installed: World) -> None:
    found = installed
    policy = await found.client.get(BackupPolicy, "all", "main")
    ready = condition(policy.status.conditions, "RepositoryReady")
    assert ready is not None
    assert ready.status == "True"
    assert "tidemark_rpo_seconds{" in await found.scrape()
    events, _ = await found.client.list(Event, "main")
    assert {"Started", "Completed"} <= {e.reason for e in events}
