"""A tenant's physical snapshot, made usable in the controller's namespace: a static content and a snapshot bound to it.

Tenants must not see movers, and a claim can be made only from a snapshot of its own namespace. The second content for
one handle is always `Retain`: only the original may destroy the physical snapshot, and only through `volumes.snapshot`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.api.foreign.snapshot import (
    ANNOTATION_MODE_CHANGE,
    VolumeSnapshot,
    VolumeSnapshotContent,
)
from orchestrator.api.foreign.snapshot import LABEL_MANAGED_BY as LABEL_SNAPSHOT_NODE
from orchestrator.api.tidemark.fields import LABEL_MANAGED_BY, MANAGED_BY
from orchestrator.config import Settings
from orchestrator.kube.client import Client
from orchestrator.volumes.ownership import create_ours, is_ours, owner_of


@dataclass(frozen=True)
class Import:
    """A physical snapshot to be made usable."""

    name: str
    driver: str
    snapshot_handle: str
    class_name: str | None
    source_volume_mode: str
    """Told truthfully: it is compared with the clone's, and can never be changed."""
    node_label: str = ""
    """The original content's `managed-by` label: which node's sidecar owns it, on distributed snapshotting."""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ImportSeen:
    """How an import stands."""

    content: VolumeSnapshotContent | None
    snapshot: VolumeSnapshot | None

    @property
    def ready(self) -> bool:
        """Return whether a claim can be made from it."""
        status = self.snapshot.status if self.snapshot is not None else None
        return self.content is not None and status is not None and bool(status.ready_to_use)

    @property
    def error(self) -> str:
        """Return what the snapshot controllers said went wrong last, "" if nothing."""
        for part in (self.snapshot, self.content):
            if part is not None and part.status is not None and part.status.error is not None:
                return part.status.error.message
        return ""


def build_content(wanted: Import, settings: Settings) -> dict[str, Any]:
    """Return the pre-provisioned content's manifest."""
    labels = {**wanted.labels, LABEL_MANAGED_BY: MANAGED_BY}
    if wanted.node_label:
        labels[LABEL_SNAPSHOT_NODE] = wanted.node_label
    spec: dict[str, Any] = {
        "deletionPolicy": "Retain",
        "driver": wanted.driver,
        "source": {"snapshotHandle": wanted.snapshot_handle},
        "sourceVolumeMode": wanted.source_volume_mode,
        "volumeSnapshotRef": {
            "apiVersion": VolumeSnapshot.RESOURCE.api_version,
            "kind": VolumeSnapshot.RESOURCE.kind,
            "namespace": settings.namespace,
            "name": wanted.name,
        },
    }
    if wanted.class_name:
        spec["volumeSnapshotClassName"] = wanted.class_name
    annotations = {**wanted.annotations, ANNOTATION_MODE_CHANGE: "true"}
    return {"metadata": {"name": wanted.name, "labels": labels, "annotations": annotations}, "spec": spec}


def build_snapshot(wanted: Import, settings: Settings) -> dict[str, Any]:
    """Return the manifest of the VolumeSnapshot bound to that content."""
    spec: dict[str, Any] = {"source": {"volumeSnapshotContentName": wanted.name}}
    if wanted.class_name:
        spec["volumeSnapshotClassName"] = wanted.class_name
    return {
        "metadata": {
            "name": wanted.name,
            "namespace": settings.namespace,
            "labels": {**wanted.labels, LABEL_MANAGED_BY: MANAGED_BY},
            "annotations": wanted.annotations,
        },
        "spec": spec,
    }


async def ensure(client: Client, wanted: Import, settings: Settings) -> ImportSeen:
    """Make content, then snapshot; idempotent. Raises NameTaken, StillGoing."""

    def same_handle(there: VolumeSnapshotContent) -> str:
        same = there.spec.source.snapshot_handle == wanted.snapshot_handle
        return "" if same and there.spec.deletion_policy == "Retain" else "it is of another physical snapshot"

    def same_content(there: VolumeSnapshot) -> str:
        same = there.spec.source.volume_snapshot_content_name == wanted.name
        return "" if same else "it is of something else"

    content = await create_ours(client, VolumeSnapshotContent, build_content(wanted, settings), same_handle)
    snapshot = await create_ours(client, VolumeSnapshot, build_snapshot(wanted, settings), same_content)
    return ImportSeen(content, snapshot)


async def look(client: Client, name: str, settings: Settings, owner: Mapping[str, str]) -> ImportSeen:
    """Return how the import stands, read from the API server. What isn't the owner's counts as missing."""
    content = await client.find(VolumeSnapshotContent, name)
    snapshot = await client.find(VolumeSnapshot, name, settings.namespace)
    return ImportSeen(
        content if content is not None and is_ours(content, owner) else None,
        snapshot if snapshot is not None and is_ours(snapshot, owner) else None,
    )


async def remove(client: Client, name: str, settings: Settings, owner: Mapping[str, str]) -> bool:
    """Delete the snapshot, then the content; True when both are gone. The physical snapshot stays. Idempotent."""
    wanted = owner_of({**owner, LABEL_MANAGED_BY: MANAGED_BY})
    snapshot = await client.find(VolumeSnapshot, name, settings.namespace)
    if snapshot is not None and owner_of(snapshot.metadata.labels) == wanted:
        if not snapshot.deleting:
            await client.delete(VolumeSnapshot, name, settings.namespace, uid=snapshot.uid)
        return False
    content = await client.find(VolumeSnapshotContent, name)
    if content is None or owner_of(content.metadata.labels) != wanted:
        return True
    if content.spec.deletion_policy != "Retain":
        # Somebody changed it: deleting it now would destroy the base of the next delta.
        await client.merge_patch(VolumeSnapshotContent, name, "", {"spec": {"deletionPolicy": "Retain"}})
    if not content.deleting:
        await client.delete(VolumeSnapshotContent, name, uid=content.uid)
    return False
