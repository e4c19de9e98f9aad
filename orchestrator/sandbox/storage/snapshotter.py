"""Play the csi-snapshotter beside the driver: cut, report and destroy physical snapshots.

A physical snapshot is destroyed only through a content whose policy is Delete, that is being deleted, and whose
snapshot let go of it (cbt-contract 4.3); several contents may name one handle. An error in a status is never the
end: it is tried again and cleared.
"""

from __future__ import annotations

import asyncio
import time
from typing import ClassVar

from orchestrator.errors import Retryable, TidemarkError
from orchestrator.sandbox.events import Recorder
from orchestrator.sandbox.faults import Faults
from orchestrator.sandbox.kinds import DRIVER, SNAPSHOT_CONTENT
from orchestrator.sandbox.objects import (
    Key,
    Manifest,
    annotations_of,
    deleting,
    finalizers,
    key,
    spec,
    status,
    timestamp,
    uid,
    without,
)
from orchestrator.sandbox.objects import meta as metadata
from orchestrator.sandbox.roles import Part, Role
from orchestrator.sandbox.storage.images import ImageStore, SnapshotRecord
from orchestrator.sandbox.storage.snapshot_controller import BEING_DELETED, CONTENT_FINALIZER

BEING_CREATED = "snapshot.storage.kubernetes.io/volumesnapshot-being-created"
MANAGED_BY = "snapshot.storage.kubernetes.io/managed-by"


class SnapshotNotTaken(Retryable):
    """The driver could not cut the snapshot."""

    reason: ClassVar[str] = "SnapshotCreationFailed"


class Snapshotter(Role):
    """Keys are contents. With `node` set, only contents that the label managed-by gives to that node."""

    name = "snapshotter"

    def __init__(self, part: Part, images: ImageStore, faults: Faults, node: str = "") -> None:
        super().__init__()
        self._api = part.api
        self._images = images
        self._faults = faults
        self._node = node
        self._contents = part.mirror(SNAPSHOT_CONTENT)
        self._events = Recorder(part.api, f"csi-snapshotter {DRIVER}")
        self._contents.listen(lambda obj, _gone: self.want(key(obj)))

    async def reconcile(self, at: Key) -> float | None:
        """Bring one content's physical snapshot and status to what its spec says."""
        content = self._contents.at(at)
        if content is None or spec(content).get("driver") != DRIVER:
            return None
        if self._node and (metadata(content).get("labels") or {}).get(MANAGED_BY) != self._node:
            return None
        if deleting(content):
            await self._let_go(content)
            return None
        if status(content).get("readyToUse"):
            return None
        try:
            return await self._make(content)
        except (TidemarkError, OSError) as err:
            live = self._contents.at(at)
            if live is not None and not deleting(live):
                await self._report(live, str(err))
            raise

    async def _make(self, content: Manifest) -> float | None:
        source = spec(content).get("source") or {}
        if source.get("snapshotHandle"):
            record = await asyncio.to_thread(self._images.snapshot, source["snapshotHandle"])
            cut_ns = time.time_ns() if self._faults.on("snapshot-no-list") else record.created_ns
            await self._fill(content, record, cut_ns, ready=True)
            return None
        if not status(content).get("snapshotHandle"):
            content = await self._mark(content, BEING_CREATED, "yes")
            if self._faults.on("snapshot-error"):
                raise SnapshotNotTaken("rpc error: code = Internal desc = the storage is out of order (snapshot-error)")
            handle = f"snap-{uid(content)}"
            record = await asyncio.to_thread(self._images.take_snapshot, handle, source["volumeHandle"])
        else:
            record = await asyncio.to_thread(self._images.snapshot, status(content)["snapshotHandle"])
        wait = self._until_ready(record)
        await self._fill(content, record, record.created_ns, ready=wait is None)
        if wait is None:
            await self._mark(self._contents.at(key(content)) or content, BEING_CREATED, None)
        return wait

    def _until_ready(self, record: SnapshotRecord) -> float | None:
        if self._faults.on("snapshot-never-ready"):
            return 0.5
        slow = self._faults.number("snapshot-slow")
        left = record.created_ns / 1e9 + slow - time.time()
        return min(left, 0.5) if slow and left > 0 else None

    async def _fill(self, content: Manifest, record: SnapshotRecord, cut_ns: int, *, ready: bool) -> None:
        wanted: Manifest = {
            "snapshotHandle": record.handle,
            "creationTime": cut_ns,
            "readyToUse": ready,
            "restoreSize": record.size_bytes,
        }
        held = status(content)
        if any(held.get(field) != value for field, value in wanted.items()) or held.get("error"):
            self._contents.saw(await self._api.patch_status(SNAPSHOT_CONTENT, content, {**wanted, "error": None}))

    async def _report(self, content: Manifest, message: str) -> None:
        said = f"Failed to check and update snapshot content: {message}"
        held = status(content).get("error") or {}
        if held.get("message") != said:
            change = {"error": {"message": said, "time": timestamp()}, "readyToUse": False}
            self._contents.saw(await self._api.patch_status(SNAPSHOT_CONTENT, content, change))
        await self._events.say(SNAPSHOT_CONTENT, content, "Warning", SnapshotNotTaken.reason, said)

    async def _mark(self, content: Manifest, mark: str, value: str | None) -> Manifest:
        if annotations_of(content).get(mark) == value:
            return content
        change = {"metadata": {"annotations": {mark: value}}}
        return self._contents.saw(await self._api.patch(SNAPSHOT_CONTENT, content, change))

    async def _let_go(self, content: Manifest) -> None:
        ref = spec(content).get("volumeSnapshotRef") or {}
        free = not ref.get("uid") or BEING_DELETED in annotations_of(content)
        if not free or CONTENT_FINALIZER not in finalizers(content):
            return
        if spec(content).get("deletionPolicy") == "Delete":
            handle = (spec(content).get("source") or {}).get("snapshotHandle") or status(content).get("snapshotHandle")
            await asyncio.to_thread(self._images.delete_snapshot, handle or f"snap-{uid(content)}")
            if status(content).get("snapshotHandle"):
                cleared = {"snapshotHandle": None, "readyToUse": False, "creationTime": None, "restoreSize": None}
                content = self._contents.saw(await self._api.patch_status(SNAPSHOT_CONTENT, content, cleared))
        wanted = without(finalizers(content), CONTENT_FINALIZER)
        await self._api.patch(SNAPSHOT_CONTENT, content, {"metadata": {"finalizers": wanted}})
