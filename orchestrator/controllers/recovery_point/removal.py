"""What goes when a point is done: what was made on the way, surplus snapshots, and data that was asked to go.

Repository data goes here through `prune_point` and nowhere else in this folder.
"""

from __future__ import annotations

import asyncio

from orchestrator.api.tidemark.recovery_point import RecoveryPoint
from orchestrator.controllers.base import Context
from orchestrator.controllers.recovery_point.work import Work
from orchestrator.errors import Terminal
from orchestrator.repository.errors import ManifestMissing, PointCancelled
from orchestrator.repository.manifest import open_manifest
from orchestrator.repository.point import remove
from orchestrator.volumes import snapshot, teardown

DROP_TRIES = 10
DROP_PAUSE_S = 0.3


class NotItsManifest(Terminal):
    """The manifest that a record names is of another point, cluster or claim."""

    reason = "NotItsManifest"
    remedy = "Nothing was removed. Somebody wrote this record's status; delete the record."


async def tear_down(work: Work, destroy_snapshot: bool) -> bool:
    """Remove what was made for the point, then take the finalizer off; True when that is done."""
    status = work.status
    original = None
    if destroy_snapshot:
        original = teardown.Original(
            work.point.namespace, status.snapshot_name or work.snapshot_name, status.content_name
        )
    done = await teardown.remove(
        work.context.client,
        work.name,
        work.context.settings,
        work.owner,
        point_uid=work.point.uid,
        original=original,
    )
    if not done:
        return False
    if destroy_snapshot and status.snapshot_kept and not work.point.deleting:
        await work.write(snapshot_kept=False)
    await work.release()
    return True


async def drop_snapshot(work: Work) -> bool:
    """Destroy the physical snapshot of a finished point; True when it is gone."""
    status, point = work.status, work.point
    if status.snapshot_kept:
        # Written first: from here on nobody takes it for a base.
        await work.write(snapshot_kept=False)
    name = status.snapshot_name or work.snapshot_name
    return await snapshot.destroy(work.context.client, point.namespace, name, status.content_name, point.uid)


async def prune_point(context: Context, point: RecoveryPoint) -> None:
    """Remove a finished point's data and snapshot, then its record; idempotent.

    The record goes even while the driver still deletes the snapshot: by its label the sweeper sees that to its end.
    Raises NotItsManifest, and what the repository raises; nothing else was touched then.
    """
    context.fence.check()
    work = Work(context, point)
    if point.status.manifest is not None and point.spec.repository is not None:
        await _remove_manifest(work)
    if point.status.snapshot_name:
        for _ in range(DROP_TRIES):
            if await drop_snapshot(work):
                break
            await asyncio.sleep(DROP_PAUSE_S)
    await context.client.delete(RecoveryPoint, point.name, point.namespace, uid=point.uid)


async def _remove_manifest(work: Work) -> None:
    """Remove the manifest, if it is this very point's: a status is not proof of what may be deleted."""
    told = work.status.manifest
    assert told is not None
    async with work.vault() as (_, vault):
        try:
            manifest, ref = await open_manifest(vault, told.key)
        except (ManifestMissing, PointCancelled):
            return
        record = manifest.record
        same = record.point_id == work.point.uid and record.pvc_uid == work.point.spec.pvc_uid
        if not same or record.namespace.cluster_id != work.context.cluster_id or ref.digest != told.digest:
            raise NotItsManifest(f"{told.key} does not hold point {work.point.namespace}/{work.point.name}")
        await remove(vault, ref, work.context.fence, why="pruned", clock=work.context.clock)
