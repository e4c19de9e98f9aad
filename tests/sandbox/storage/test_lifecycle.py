"""Claims, volumes, snapshots: how they bind, what they refuse, in which order they go (cbt-contract 4)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator.sandbox.cluster import Sandbox
from orchestrator.sandbox.kinds import (
    EVENT,
    PERSISTENT_VOLUME,
    PERSISTENT_VOLUME_CLAIM,
    SNAPSHOT,
    SNAPSHOT_CLASS,
    SNAPSHOT_CONTENT,
)
from orchestrator.sandbox.objects import Manifest, annotations_of, finalizers, name, spec, status, uid
from tests.sandbox.cluster.world import MIB, World
from tests.waiting import SHORT

pytestmark = pytest.mark.asyncio(loop_scope="module")


def from_snapshot(at: str) -> Manifest:
    return {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": at}


async def said(world: World, about: str, reason: str, timeout_s: float = SHORT) -> str:
    """Wait for an event of that reason about an object; return its message."""
    async with asyncio.timeout(timeout_s):
        while True:
            events, _ = await world.api.list(EVENT, "default")
            for event in events:
                if event["involvedObject"]["name"] == about and event["reason"] == reason:
                    return str(event["message"])
            await asyncio.sleep(0.05)


async def patch(world: World, resource: Any, at: Manifest, change: Manifest) -> Manifest:
    live = await world.api.get(resource, name(at), at["metadata"].get("namespace", ""))
    return await world.api.patch(resource, live, change)


async def test_a_claim_gets_a_volume_of_its_exact_size_and_takes_it_along(world: World) -> None:
    claim = await world.claim("plain", "5Mi")
    volume, image = await world.volume(claim), await world.image(claim)
    assert image.stat().st_size == 5 * MIB
    assert image.stat().st_blocks == 0
    assert (spec(volume)["volumeMode"], spec(volume)["claimRef"]["uid"]) == ("Block", uid(claim))
    assert "kubernetes.io/pvc-protection" in finalizers(claim)

    await world.api.delete(PERSISTENT_VOLUME_CLAIM, claim)

    await world.until_gone(PERSISTENT_VOLUME, volume)
    assert not image.exists()


async def test_a_claim_that_names_no_class_gets_the_default_one(world: World) -> None:
    body = {
        "metadata": {"name": "classless", "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    }
    claim = await world.api.create(PERSISTENT_VOLUME_CLAIM, body)

    bound = await world.until(PERSISTENT_VOLUME_CLAIM, claim, lambda c: status(c).get("phase") == "Bound")

    assert spec(bound)["storageClassName"] == "sandbox"


async def test_a_raised_request_grows_the_file(world: World) -> None:
    claim = await world.claim("grows", "1Mi")

    await patch(world, PERSISTENT_VOLUME_CLAIM, claim, {"spec": {"resources": {"requests": {"storage": "3Mi"}}}})

    await world.until(PERSISTENT_VOLUME_CLAIM, claim, lambda c: status(c)["capacity"]["storage"] == "3Mi")
    assert (await world.image(claim)).stat().st_size == 3 * MIB


async def test_a_snapshot_is_cut_bound_both_ways_and_destroyed_with_policy_delete(
    sandbox: Sandbox, world: World
) -> None:
    claim = await world.claim("cut")
    (await world.image(claim)).write_bytes(b"x" * MIB + bytes(3 * MIB))

    snapshot = await world.snapshot("cut", "cut")

    content = await world.content(snapshot)
    assert name(content) == f"snapcontent-{uid(snapshot)}"
    assert spec(content)["volumeSnapshotRef"]["uid"] == uid(snapshot)
    assert spec(content)["sourceVolumeMode"] == "Block"
    assert status(content)["restoreSize"] == 4 * MIB
    assert status(content)["creationTime"] > 10**18
    assert status(snapshot)["restoreSize"] == "4Mi"
    held = await world.until(SNAPSHOT, snapshot, lambda s: len(finalizers(s)) == 2)
    assert set(finalizers(held)) == {
        "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection",
        "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection",
    }
    image = sandbox.directory / "data" / "snapshots" / f"{status(content)['snapshotHandle']}.img"
    assert image.read_bytes()[:MIB] == b"x" * MIB

    await world.api.delete(SNAPSHOT, snapshot)
    await world.until_gone(SNAPSHOT, snapshot)
    await world.until_gone(SNAPSHOT_CONTENT, content)
    assert not image.exists()
    await world.until(PERSISTENT_VOLUME_CLAIM, claim, lambda c: finalizers(c) == ["kubernetes.io/pvc-protection"])


async def test_a_retained_content_outlives_its_snapshot_until_it_is_patched_to_delete(
    sandbox: Sandbox, world: World
) -> None:
    await world.claim("kept")
    snapshot = await world.snapshot("kept", "kept")
    content = await world.content(snapshot)
    image = sandbox.directory / "data" / "snapshots" / f"{status(content)['snapshotHandle']}.img"
    await patch(world, SNAPSHOT_CONTENT, content, {"spec": {"deletionPolicy": "Retain"}})

    await world.api.delete(SNAPSHOT, snapshot)
    await world.until_gone(SNAPSHOT, snapshot)
    held = await world.api.get(SNAPSHOT_CONTENT, name(content))
    assert "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted" in annotations_of(held)
    assert status(held)["snapshotHandle"]
    assert image.exists()

    await patch(world, SNAPSHOT_CONTENT, content, {"spec": {"deletionPolicy": "Delete"}})
    await world.api.delete(SNAPSHOT_CONTENT, content)
    await world.until_gone(SNAPSHOT_CONTENT, content)
    assert not image.exists()


async def test_a_rehomed_handle_clones_in_another_place_and_going_leaves_the_snapshot(
    sandbox: Sandbox, world: World
) -> None:
    claim = await world.claim("home", mode="Filesystem")
    (await world.image(claim)).write_bytes(b"home" * MIB)
    original = await world.snapshot("home", "home")
    handle = await world.handle(original)
    content = await world.api.create(SNAPSHOT_CONTENT, static_content("tm-1", handle, "Filesystem"))
    snapshot = await world.api.create(SNAPSHOT, static_snapshot("tm-1"))
    await world.ready(snapshot)
    clone = await world.claim("tm-1", "4Mi", source=from_snapshot("tm-1"), wait=False)
    assert "modifies the mode" in await said(world, "tm-1", "ProvisioningFailed")

    allow = {"metadata": {"annotations": {"snapshot.storage.kubernetes.io/allow-volume-mode-change": "true"}}}
    await patch(world, SNAPSHOT_CONTENT, content, allow)
    await world.bound(clone)
    assert (await world.image(clone)).read_bytes() == b"home" * MIB
    volume = await world.volume(clone)
    await world.api.delete(PERSISTENT_VOLUME_CLAIM, clone)
    await world.until_gone(PERSISTENT_VOLUME, volume)
    await world.api.delete(SNAPSHOT, await world.api.get(SNAPSHOT, "tm-1", "default"))
    await world.until_gone(SNAPSHOT, snapshot)
    await world.api.delete(SNAPSHOT_CONTENT, content)
    await world.until_gone(SNAPSHOT_CONTENT, content)

    assert (sandbox.directory / "data" / "snapshots" / f"{handle}.img").exists()
    assert (await world.allocated("home")).ranges


def static_content(at: str, handle: str, mode: str) -> Manifest:
    return {
        "metadata": {"name": at},
        "spec": {
            "deletionPolicy": "Retain",
            "driver": "sandbox.csi.tidemark.dev",
            "source": {"snapshotHandle": handle},
            "sourceVolumeMode": mode,
            "volumeSnapshotClassName": "sandbox",
            "volumeSnapshotRef": {"name": at, "namespace": "default"},
        },
    }


def static_snapshot(at: str) -> Manifest:
    source = {"volumeSnapshotContentName": at}
    return {
        "metadata": {"name": at, "namespace": "default"},
        "spec": {"source": source, "volumeSnapshotClassName": "sandbox"},
    }


async def test_a_clone_smaller_than_its_snapshot_is_refused_and_a_larger_one_ends_in_zeros(world: World) -> None:
    claim = await world.claim("sizes", "2Mi")
    (await world.image(claim)).write_bytes(b"s" * 2 * MIB)
    await world.snapshot("sizes", "sizes")

    await world.claim("small", "1Mi", source=from_snapshot("sizes"), wait=False)
    large = await world.claim("large", "3Mi", source=from_snapshot("sizes"))

    assert "is less than the size" in await said(world, "small", "ProvisioningFailed")
    assert (await world.image(large)).read_bytes() == b"s" * 2 * MIB + bytes(MIB)


async def test_a_snapshot_that_a_pending_claim_needs_stays_until_the_claim_goes(world: World) -> None:
    await world.claim("needed")
    snapshot = await world.snapshot("needed", "needed")
    waiting = await world.claim("waits", source=from_snapshot("needed"), storage_class="sandbox-wffc", wait=False)

    await world.api.delete(SNAPSHOT, snapshot)
    assert "used to restore" in await said(world, "needed", "SnapshotDeletePending")
    assert status(await world.api.get(SNAPSHOT, "needed", "default"))["readyToUse"]

    await world.api.delete(PERSISTENT_VOLUME_CLAIM, waiting)
    await world.until_gone(SNAPSHOT, snapshot)


@pytest.mark.parametrize("storage_class", ["sandbox", "sandbox-wffc"])
async def test_a_filled_volume_is_handed_over_to_a_claim_of_another_mode_that_is_made_last(
    world: World, storage_class: str
) -> None:
    # given: a filled Block volume whose PV is kept
    at = f"over-{storage_class}"
    prime = await world.claim(f"prime-{at}")
    (await world.image(prime)).write_bytes(b"filled" + bytes(4 * MIB - 6))
    volume, image = await world.volume(prime), await world.image(prime)
    await patch(world, PERSISTENT_VOLUME, volume, {"spec": {"persistentVolumeReclaimPolicy": "Retain"}})
    # when: claim and PV go, and the PV is made again, as Filesystem, for a claim that does not exist yet
    await world.api.delete(PERSISTENT_VOLUME_CLAIM, prime)
    await world.until(PERSISTENT_VOLUME, volume, lambda v: status(v)["phase"] == "Released")
    await world.api.delete(PERSISTENT_VOLUME, volume)
    await world.until_gone(PERSISTENT_VOLUME, volume)
    assert image.exists()
    again = {
        "metadata": {"name": name(volume), "annotations": annotations_of(volume)},
        "spec": {
            **{k: spec(volume)[k] for k in ("capacity", "accessModes")},
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": storage_class,
            "volumeMode": "Filesystem",
            "csi": {**spec(volume)["csi"], "fsType": "ext4"},
            "claimRef": {"kind": "PersistentVolumeClaim", "namespace": "default", "name": f"target-{at}"},
        },
    }
    made = await world.api.create(PERSISTENT_VOLUME, again)
    await world.until(PERSISTENT_VOLUME, made, lambda v: status(v)["phase"] == "Available")
    target = await world.claim(f"target-{at}", mode="Filesystem", storage_class=storage_class, volume=name(volume))
    # then: it is bound to that file, and dies with its claim once the policy is put back
    assert await world.image(target) == image
    assert image.read_bytes()[:6] == b"filled"
    await patch(world, PERSISTENT_VOLUME, volume, {"spec": {"persistentVolumeReclaimPolicy": "Delete"}})
    await world.api.delete(PERSISTENT_VOLUME_CLAIM, target)
    await world.until_gone(PERSISTENT_VOLUME, volume)
    assert not image.exists()


async def test_a_volume_kept_for_one_claim_is_given_to_no_other(world: World) -> None:
    volume = {
        "metadata": {"name": "kept-for-somebody"},
        "spec": {
            "capacity": {"storage": "1Mi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "none",
            "volumeMode": "Block",
            "csi": {"driver": "sandbox.csi.tidemark.dev", "volumeHandle": "vol-x"},
            "claimRef": {"kind": "PersistentVolumeClaim", "namespace": "default", "name": "somebody"},
        },
    }
    await world.api.create(PERSISTENT_VOLUME, volume)
    other = await world.claim("anybody", "1Mi", storage_class="none", wait=False)
    right = await world.claim("somebody", "1Mi", storage_class="none", wait=False)

    await world.bound(right)
    assert status(await world.api.get(PERSISTENT_VOLUME_CLAIM, name(other), "default"))["phase"] == "Pending"


async def test_a_claim_whose_volume_was_taken_away_is_lost(world: World) -> None:
    claim = await world.claim("robbed")
    volume = await world.volume(claim)
    await world.api.delete(PERSISTENT_VOLUME, volume)
    held = await world.api.get(PERSISTENT_VOLUME, name(volume))
    assert "kubernetes.io/pv-protection" in finalizers(held), "a bound volume is protected"

    await world.api.patch(PERSISTENT_VOLUME, held, {"metadata": {"finalizers": None}})

    await world.until(PERSISTENT_VOLUME_CLAIM, claim, lambda c: status(c)["phase"] == "Lost")


async def test_a_snapshot_without_class_gets_the_default_and_of_an_unknown_class_says_so(world: World) -> None:
    await world.claim("classes")
    snapshot = await world.snapshot("defaulted", "classes", volumeSnapshotClassName=None)
    assert spec(snapshot)["volumeSnapshotClassName"] == "sandbox"

    wrong = await world.snapshot("unknown", "classes", wait=False, volumeSnapshotClassName="nope")
    held = await world.until(SNAPSHOT, wrong, lambda s: status(s).get("error"))
    assert "nope" in status(held)["error"]["message"]

    await world.api.create(
        SNAPSHOT_CLASS,
        {"metadata": {"name": "nope"}, "driver": "sandbox.csi.tidemark.dev", "deletionPolicy": "Delete"},
    )
    held = await world.ready(wrong)
    assert not status(held).get("error")


async def test_a_static_snapshot_of_a_handle_that_is_nowhere_reports_an_error(world: World) -> None:
    await world.api.create(SNAPSHOT_CONTENT, static_content("nowhere", "snap-nowhere", "Block"))
    snapshot = await world.api.create(SNAPSHOT, static_snapshot("nowhere"))

    held = await world.until(SNAPSHOT, snapshot, lambda s: status(s).get("error"))
    assert "does not exist" in status(held)["error"]["message"]


async def test_snapshot_faults_delay_and_fail_and_are_over_when_switched_off(sandbox: Sandbox, world: World) -> None:
    await world.claim("faulty")
    await sandbox.fault("snapshot-error")
    failing = await world.snapshot("failing", "faulty", wait=False)
    await world.until(SNAPSHOT, failing, lambda s: "snapshot-error" in str(status(s).get("error")))
    await sandbox.fault("snapshot-never-ready")
    await sandbox.fault("snapshot-error", None)
    held = await world.until(SNAPSHOT, failing, lambda s: status(s).get("creationTime"))
    assert not status(held)["readyToUse"]
    await sandbox.fault("snapshot-never-ready", None)
    await world.ready(failing)

    await sandbox.fault("clone-pending")
    clone = await world.claim("pending", source=from_snapshot("failing"), wait=False)
    await asyncio.sleep(0.3)
    assert status(await world.api.get(PERSISTENT_VOLUME_CLAIM, "pending", "default"))["phase"] == "Pending"
    await sandbox.fault("clone-pending", None)
    await world.bound(clone)


async def test_a_snapshot_is_held_while_a_clone_is_made_and_what_a_crash_left_held_is_let_go(
    sandbox: Sandbox, world: World
) -> None:
    await world.claim("origin")
    snapshot = await world.snapshot("origin", "origin")
    mark = "provisioner.storage.kubernetes.io/volumesnapshot-as-source-protection"
    await sandbox.fault("clone-slow", "0.5")
    clone = await world.claim("slow", source=from_snapshot("origin"), wait=False)
    await world.until(SNAPSHOT, snapshot, lambda s: mark in finalizers(s))
    await sandbox.fault("clone-slow", None)
    await world.bound(clone)
    held = await world.until(SNAPSHOT, snapshot, lambda s: mark not in finalizers(s))

    await world.api.patch(SNAPSHOT, held, {"metadata": {"finalizers": [*finalizers(held), mark]}})

    await world.until(SNAPSHOT, snapshot, lambda s: mark not in finalizers(s))
