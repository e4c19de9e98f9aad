"""Claims in the controller's own namespace: the clone of a snapshot to read, or the prime volume to fill.

A claim's PersistentVolume outlives it when its class says Retain, and a leaked volume per backup is what peers are
blamed for: so the volume is labelled and set to Delete *before* its claim goes, and `remove` is done only when the
volume is gone too. What must never happen here: a volume deleted that is no longer our claim's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.api.foreign.core import Event, PersistentVolume, PersistentVolumeClaim
from orchestrator.api.foreign.snapshot import SNAPSHOT_GROUP
from orchestrator.api.tidemark.fields import LABEL_MANAGED_BY, MANAGED_BY
from orchestrator.config import Settings
from orchestrator.kube.cache import Caches
from orchestrator.kube.client import Client
from orchestrator.kube.errors import NotFound
from orchestrator.volumes.ownership import OWNER_LABELS, create_ours, is_ours, owner_of

State = Literal["missing", "pending", "bound", "lost", "deleting"]


@dataclass(frozen=True)
class Claim:
    """A claim to be made in the controller's namespace."""

    name: str
    storage_class: str
    size_bytes: int
    volume_mode: str = "Block"
    access_modes: tuple[str, ...] = ("ReadWriteOnce",)
    snapshot: str | None = None
    """VolumeSnapshot of the same namespace that it is made from; None: an empty volume."""
    labels: dict[str, str] = field(default_factory=dict)
    """Must name the work: point or restore uid."""
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClaimSeen:
    """How a claim stands."""

    state: State
    pvc: PersistentVolumeClaim | None = None
    pv: PersistentVolume | None = None


def build(claim: Claim, settings: Settings) -> dict[str, Any]:
    """Return the claim's manifest."""
    spec: dict[str, Any] = {
        "accessModes": list(claim.access_modes),
        "volumeMode": claim.volume_mode,
        "storageClassName": claim.storage_class,
        "resources": {"requests": {"storage": str(claim.size_bytes)}},
    }
    if claim.snapshot:
        spec["dataSource"] = {"apiGroup": SNAPSHOT_GROUP, "kind": "VolumeSnapshot", "name": claim.snapshot}
    return {
        "metadata": {
            "name": claim.name,
            "namespace": settings.namespace,
            "labels": {**claim.labels, LABEL_MANAGED_BY: MANAGED_BY},
            "annotations": claim.annotations,
        },
        "spec": spec,
    }


async def ensure(client: Client, claim: Claim, settings: Settings) -> PersistentVolumeClaim:
    """Make the claim; idempotent. Raises NameTaken, StillGoing, QuotaExceeded."""

    def fits(there: PersistentVolumeClaim) -> str:
        source = there.spec.data_source.name if there.spec.data_source else None
        same = (source, there.spec.volume_mode) == (claim.snapshot, claim.volume_mode)
        return "" if same else "it is made from something else"

    return await create_ours(client, PersistentVolumeClaim, build(claim, settings), fits)


async def look(
    client: Client, caches: Caches, name: str, settings: Settings, owner: Mapping[str, str] | None = None
) -> ClaimSeen:
    """Return how the claim and its volume stand, read from the API server; what was read goes into `caches`.

    With `owner` (labels that name the work) somebody else's claim of that name counts as missing: `ensure` tells.
    """
    pvc = await client.find(PersistentVolumeClaim, name, settings.namespace)
    if pvc is None or (owner is not None and not is_ours(pvc, owner)):
        return ClaimSeen("missing")
    caches.learn(pvc)
    pv = await client.find(PersistentVolume, pvc.spec.volume_name) if pvc.spec.volume_name else None
    if pvc.deleting:
        return ClaimSeen("deleting", pvc, pv)
    if pvc.status.phase == "Lost":
        return ClaimSeen("lost", pvc, pv)
    return ClaimSeen("bound" if pvc.bound and pv is not None else "pending", pvc, pv)


async def last_event(client: Client, pvc: PersistentVolumeClaim) -> str:
    """Return what was last said about the claim, "" when nothing was: why it is not bound yet."""
    events, _ = await client.list(Event, pvc.namespace, fields=f"involvedObject.name={pvc.name}")
    about = [event for event in events if event.involved_object.uid == pvc.uid]
    if not about:
        return ""
    newest = max(about, key=lambda event: (event.last_timestamp is not None, event.last_timestamp, event.name))
    return f"{newest.reason}: {newest.message}"


async def remove(client: Client, name: str, settings: Settings, owner: Mapping[str, str]) -> bool:
    """Delete the claim and its volume; True when both are gone. Idempotent.

    `owner` are the labels that name the work: a claim or volume that isn't that work's is left alone, and so is a
    volume that was handed over to another claim.
    """
    wanted = owner_of({**owner, LABEL_MANAGED_BY: MANAGED_BY})
    pvc = await client.find(PersistentVolumeClaim, name, settings.namespace)
    if pvc is not None and owner_of(pvc.metadata.labels) == wanted:
        await _doom_volume(client, pvc)
        if not pvc.deleting:
            await client.delete(PersistentVolumeClaim, name, settings.namespace, uid=pvc.uid)
        return False
    if wanted is None:
        return True
    return not await _doom_leftovers(client, name, settings, wanted)


async def _doom_volume(client: Client, pvc: PersistentVolumeClaim) -> None:
    """Label the claim's volume and set it to Delete, so that it goes with the claim and can be found without it."""
    if not pvc.spec.volume_name:
        return
    pv = await client.find(PersistentVolume, pvc.spec.volume_name)
    claimed = pv is not None and pv.spec.claim_ref is not None and pv.spec.claim_ref.uid == pvc.uid
    if pv is None or not claimed:
        return
    ours = {key: pvc.metadata.labels[key] for key in (*OWNER_LABELS, LABEL_MANAGED_BY) if key in pvc.metadata.labels}
    await _doom(client, pv, ours)


async def _doom(client: Client, pv: PersistentVolume, labels: Mapping[str, str]) -> None:
    labelled = all(pv.metadata.labels.get(key) == value for key, value in labels.items())
    if labelled and pv.spec.persistent_volume_reclaim_policy == "Delete":
        return
    body = {
        "metadata": {"labels": dict(labels), "resourceVersion": pv.metadata.resource_version},
        "spec": {"persistentVolumeReclaimPolicy": "Delete"},
    }
    try:
        await client.merge_patch(PersistentVolume, pv.name, "", body)
    except NotFound:
        return  # gone meanwhile, which is what we want


async def _doom_leftovers(client: Client, name: str, settings: Settings, owner: tuple[str, str]) -> bool:
    """Set volumes of the claim that is gone to Delete; return whether there are any left."""
    label, uid = owner
    labels = {label: uid, LABEL_MANAGED_BY: MANAGED_BY}
    volumes, _ = await client.list(PersistentVolume, labels=f"{label}={uid}")
    mine = [pv for pv in volumes if of_claim(pv, settings.namespace, name)]
    for pv in mine:
        await _doom(client, pv, labels)
    return bool(mine)


def of_claim(pv: PersistentVolume, namespace: str, name: str) -> bool:
    """Return whether the volume is (or was last) that claim's."""
    ref = pv.spec.claim_ref
    return ref is not None and (ref.namespace, ref.name) == (namespace, name)
