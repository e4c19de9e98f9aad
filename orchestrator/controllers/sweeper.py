"""Take away what nobody answers for any more: the leftovers of points and restores that are gone or done.

Every object that Tidemark makes names its work in a label, so that it is found again whatever was lost on the way: a
finalizer that ran out of patience, a record deleted by force, a class that keeps volumes. What must never happen here:
repository data touched, work in flight disturbed, anything taken away because a cache had not heard of its owner, or
a snapshot destroyed because the definition of our kind was deleted, and all records with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import timedelta

from orchestrator.api.foreign.cluster import CustomResourceDefinition
from orchestrator.api.foreign.core import Job, Namespace, PersistentVolume, PersistentVolumeClaim, Pod
from orchestrator.api.foreign.snapshot import VolumeSnapshot, VolumeSnapshotContent
from orchestrator.api.meta import K8sObject
from orchestrator.api.tidemark.fields import (
    ANNOTATION_POINT,
    FINALIZER,
    LABEL_MANAGED_BY,
    LABEL_POINT_UID,
    LABEL_RESTORE_UID,
    MANAGED_BY,
)
from orchestrator.api.tidemark.recovery_point import RecoveryPoint
from orchestrator.api.tidemark.restore import Restore
from orchestrator.controllers.base import Context
from orchestrator.controllers.recovery_point.snapshotting import ANNOTATION_SNAPSHOT_ONLY
from orchestrator.controllers.slots import RESTORE_FINAL
from orchestrator.decisions.recovery_point import leftover
from orchestrator.errors import LeaseStale, TidemarkError
from orchestrator.kube.errors import NotFound
from orchestrator.volumes import teardown
from orchestrator.volumes.snapshot import original_name
from policies.naming import transient_name

log = logging.getLogger(__name__)

SWEEP_S = 180.0
GRACE_S = 180.0
"""Nothing younger is touched: its owner's record may still be on its way to us."""
DELETED_GRACE_S = 15.0
"""A record that was seen to go is swept after this long: its own controller may still be at it."""
STEPS = 12
"""Tear-down steps tried for one owner in one sweep; what is left waits for the next."""
STEP_S = 0.5
KINDS: tuple[type[K8sObject], ...] = (
    Job,
    Pod,
    PersistentVolumeClaim,
    PersistentVolume,
    VolumeSnapshot,
    VolumeSnapshotContent,
)


@dataclass
class Found:
    """The objects that name one owner."""

    uid: str
    objects: list[K8sObject] = field(default_factory=list)


class Sweeper:
    """Sweeps at the start and every few minutes."""

    def __init__(
        self,
        context: Context,
        *,
        grace_s: float = GRACE_S,
        every_s: float = SWEEP_S,
        deleted_grace_s: float = DELETED_GRACE_S,
        step_s: float = STEP_S,
    ) -> None:
        """Take what `app` made."""
        self.context = context
        self._grace_s = grace_s
        self._every_s = every_s
        self._deleted_grace_s = deleted_grace_s
        self._step_s = step_s
        self._gone: dict[str, float] = {}
        """Points whose records were seen to go, and when they are due. A hint: the next full sweep needs none."""
        self._told = asyncio.Event()

    async def run(self) -> None:
        """Sweep for ever; what fails is tried again at the next sweep."""
        self.context.caches.of(RecoveryPoint).subscribe(self._changed)
        clock, full = self.context.clock, -math.inf
        while True:
            now = clock.monotonic()
            due = {uid for uid, when in self._gone.items() if when <= now}
            try:
                if now >= full:
                    full = now + self._every_s
                    await self.sweep()
                elif due:
                    await self.sweep_deleted(due)
            except LeaseStale:
                raise
            except TidemarkError as error:
                log.warning("the sweep ended early: %s", error.sentence())
            self._gone = {uid: when for uid, when in self._gone.items() if uid not in due}
            await self._wait(min([full, *self._gone.values()]))

    def _changed(self, old: RecoveryPoint | None, new: RecoveryPoint | None) -> None:
        if old is not None and new is None:
            self._gone[old.uid] = self.context.clock.monotonic() + self._deleted_grace_s
            self._told.set()

    async def _wait(self, until: float) -> None:
        """Wait until then, or until another record goes."""
        self._told.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until - self.context.clock.monotonic())):
                await self._told.wait()

    async def sweep_deleted(self, uids: AbstractSet[str]) -> list[str]:
        """Sweep points whose records were seen to go, without regard to the age of what they left."""
        caches, held = self.context.caches, False
        for kind in KINDS:
            held = held or any(obj.metadata.labels.get(LABEL_POINT_UID) in uids for obj in caches.of(kind).all())
        if not held or caches.of(RecoveryPoint).absent:
            return []
        return await self._sweep_points([f for f in self._labelled(LABEL_POINT_UID) if f.uid in uids])

    async def sweep(self) -> list[str]:
        """Take away what may go; return the uids of owners of which nothing is left now."""
        caches = self.context.caches
        if caches.of(RecoveryPoint).absent or caches.of(Restore).absent:
            return []  # the CRDs are gone: that is no reason to destroy a single snapshot
        points = self._old(self._labelled(LABEL_POINT_UID))
        restores = self._old(self._labelled(LABEL_RESTORE_UID))
        swept = await self._sweep_points(points)
        if restores:
            known = {restore.uid: restore for restore in (await self.context.client.list(Restore))[0]}
            for found in restores:
                if await self._guarded(self._sweep_restore(found, known.get(found.uid)), found.uid):
                    swept.append(found.uid)
        await self._sweep_volumes()
        return swept

    async def _sweep_points(self, points: list[Found]) -> list[str]:
        if not points:
            return []
        live = {point.uid: point for point in (await self.context.client.list(RecoveryPoint))[0]}
        # Looked at after the records: as long as the definition stays, no record went because of it.
        name = f"{RecoveryPoint.RESOURCE.plural}.{RecoveryPoint.RESOURCE.group}"
        definition = await self.context.client.find(CustomResourceDefinition, name)
        if definition is None or definition.deleting:
            return []
        swept: list[str] = []
        for found in points:
            if found.uid not in live and _older(found, definition):
                continue  # its record went with an earlier definition, and may be imported again
            if await self._guarded(self._sweep_point(found, live.get(found.uid)), found.uid):
                swept.append(found.uid)
        return swept

    async def _guarded(self, sweeping: Awaitable[bool], uid: str) -> bool:
        """Let one owner's trouble be its own."""
        try:
            return await sweeping
        except LeaseStale:
            raise
        except TidemarkError as error:
            log.warning("leftovers of %s stay for now: %s", uid, error.sentence())
            return False

    def _labelled(self, label: str) -> list[Found]:
        """Return everything that carries the label, by its value.

        But Secrets, which our role may not list: a mover's is made after its claim and goes before it, so it is found
        by the claim's name.
        """
        found: dict[str, Found] = {}
        for kind in KINDS:
            _collect(found, label, self.context.caches.of(kind).all())
        return [found[uid] for uid in sorted(found)]

    def _old(self, found: list[Found]) -> list[Found]:
        """Return those of which every object is old enough."""
        since = self.context.clock.now() - timedelta(seconds=self._grace_s)

        def old(obj: K8sObject) -> bool:
            made = obj.metadata.creation_timestamp
            return made is not None and made < since

        return [item for item in found if all(old(obj) for obj in item.objects)]

    async def _sweep_point(self, found: Found, point: RecoveryPoint | None) -> bool:
        verdict = leftover(point, self.context.clock.now(), self._grace_s)
        originals = self._originals(found) if verdict.snapshot else []
        if not verdict.transient or not (originals or _transient(found)):
            return False
        done = [await self._remove(found.uid, LABEL_POINT_UID, original) for original in originals]
        return all(done) if done else await self._remove(found.uid, LABEL_POINT_UID, None)

    def _originals(self, found: Found) -> list[teardown.Original]:
        """Return the tenant's snapshot among the objects, none when there is none or it must stay.

        Without its content nobody can tell which of several VolumeSnapshots with our labels is it: all are looked at.
        """
        contents = [o for o in found.objects if isinstance(o, VolumeSnapshotContent)]
        content = next((o for o in contents if o.name != transient_name(found.uid)), None)
        if content is not None:
            if self._is_last_copy(content):
                return []
            ref = content.spec.volume_snapshot_ref
            return [teardown.Original(ref.namespace, ref.name, content.name)]
        name = original_name(found.uid)
        snapshots = [o for o in found.objects if isinstance(o, VolumeSnapshot) and o.name == name]
        return [teardown.Original(snapshot.namespace, name, "") for snapshot in snapshots]

    def _is_last_copy(self, content: VolumeSnapshotContent) -> bool:
        """Return whether a content is all that is left of a namespace that is gone: only a person may destroy it."""
        if content.metadata.annotations.get(ANNOTATION_SNAPSHOT_ONLY) != "true":
            return False
        namespace = content.metadata.annotations.get(ANNOTATION_POINT, "").partition("/")[0]
        home = self.context.caches.of(Namespace).get(namespace)
        return home is None or home.deleting

    async def _sweep_restore(self, found: Found, restore: Restore | None) -> bool:
        if restore is not None:
            final = restore.status.phase in RESTORE_FINAL and FINALIZER not in restore.metadata.finalizers
            ended = restore.status.completion_time
            recent = ended is None or self.context.clock.now() - ended < timedelta(seconds=self._grace_s)
            if not final or recent:
                return False
        if not _transient(found):
            return False  # a volume that was handed over keeps the label, and is the tenant's now
        return await self._remove(found.uid, LABEL_RESTORE_UID, None)

    async def _remove(self, uid: str, label: str, original: teardown.Original | None) -> bool:
        for _ in range(STEPS):
            self.context.fence.check()
            done = await teardown.remove(
                self.context.client,
                transient_name(uid),
                self.context.settings,
                {label: uid},
                point_uid=uid,
                original=original,
            )
            if done:
                log.info("swept what was left of %s", uid)
                return True
            await asyncio.sleep(self._step_s)
        return False

    async def _sweep_volumes(self) -> None:
        """Doom volumes of our claims that were deleted behind our back, before the volume could be labelled."""
        namespace = self.context.settings.namespace
        for volume in self.context.caches.of(PersistentVolume).all():
            ref = volume.spec.claim_ref
            ours = ref is not None and ref.namespace == namespace and ref.name.startswith(transient_name(""))
            if not ours or ref is None or volume.status.phase != "Released":
                continue
            uid = ref.name.removeprefix(transient_name(""))
            if self.context.caches.of(Restore).by_uid(uid) is not None:
                continue  # a hand-over in the making: its own controller knows what to do with the volume
            claim = await self.context.client.find(PersistentVolumeClaim, ref.name, namespace)
            if claim is None and volume.spec.persistent_volume_reclaim_policy != "Delete" and not volume.deleting:
                await self._doom(volume)

    async def _doom(self, volume: PersistentVolume) -> None:
        self.context.fence.check()
        body = {
            "metadata": {"resourceVersion": volume.metadata.resource_version},
            "spec": {"persistentVolumeReclaimPolicy": "Delete"},
        }
        try:
            await self.context.client.merge_patch(PersistentVolume, volume.name, "", body)
        except NotFound:
            return
        log.info("swept volume %s of a clone that is gone", volume.name)


def _collect(found: dict[str, Found], label: str, objects: Iterable[K8sObject]) -> None:
    for obj in objects:
        uid = obj.metadata.labels.get(label)
        if uid and obj.metadata.labels.get(LABEL_MANAGED_BY) == MANAGED_BY:
            found.setdefault(uid, Found(uid)).objects.append(obj)


def _older(found: Found, definition: K8sObject) -> bool:
    """Return whether an owner's objects were made before the definition of its kind."""
    since = definition.metadata.creation_timestamp
    made = [obj.metadata.creation_timestamp for obj in found.objects]
    return since is not None and any(when is not None and when < since for when in made)


def _transient(found: Found) -> bool:
    """Return whether anything but a tenant's own snapshot or volume is among the objects."""
    name = transient_name(found.uid)
    return any(
        isinstance(obj, Job | Pod)
        or (isinstance(obj, PersistentVolumeClaim | VolumeSnapshot | VolumeSnapshotContent) and obj.name == name)
        or (isinstance(obj, PersistentVolume) and obj.spec.claim_ref is not None and obj.spec.claim_ref.name == name)
        for obj in found.objects
    )
