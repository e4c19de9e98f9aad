"""Restores: gather what is there, decide, act. The order and its reasons are in `decisions.restore`."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any, assert_never

import msgspec

from orchestrator.api.foreign.core import (
    Job,
    PersistentVolume,
    PersistentVolumeClaim,
    Secret,
    VolumeAttachment,
)
from orchestrator.api.meta import Condition, with_condition
from orchestrator.api.tidemark.fields import FINALIZER, LABEL_RESTORE_UID
from orchestrator.api.tidemark.restore import Restore, RestoreStatus
from orchestrator.controllers.base import Controller, Key, Requeue
from orchestrator.controllers.restore.steps import Steps
from orchestrator.controllers.status import patch_status
from orchestrator.decisions import restore as decisions
from orchestrator.decisions import stall
from orchestrator.decisions.restore import FINAL, MoverSeen, RestoreSeen
from orchestrator.errors import Terminal, TidemarkError
from orchestrator.volumes import clone
from orchestrator.volumes import job as jobs
from policies.naming import transient_name

SOON = Requeue(0)
POLL = Requeue(1.0)
FOLLOW = Requeue(5.0)


class RestoreController(Controller[Restore]):
    """A recovery point written to a new volume."""

    name = "restore"
    kind = Restore

    def wire(self) -> None:
        """Wake for Restores, their children, and their Jobs."""
        super().wire()
        self.watch(Restore, self._parents_of)
        self.watch(Job, self._by_label)

    def _by_label(self, job: Job) -> list[Key]:
        owner = self.cache.by_uid(job.metadata.labels.get(LABEL_RESTORE_UID, ""))
        return [(owner.namespace, owner.name)] if owner is not None else []

    def _parents_of(self, child: Restore) -> list[Key]:
        parent = self.cache.by_uid(child.metadata.labels.get(LABEL_RESTORE_UID, ""))
        return [(parent.namespace, parent.name)] if parent is not None else []

    async def reconcile(self, key: Key) -> Requeue | None:
        """Bring one restore a step further."""
        restore = self.cache.get(key[1], key[0])
        if restore is None:
            return None
        if restore.status.phase not in FINAL and not restore.deleting and FINALIZER not in restore.metadata.finalizers:
            await self._hold(restore)
            return SOON
        seen = await self._gather(restore)
        return await self._act(seen, Steps(self.context, restore))

    async def _hold(self, restore: Restore) -> None:
        body = {
            "metadata": {
                "finalizers": [*restore.metadata.finalizers, FINALIZER],
                "resourceVersion": restore.metadata.resource_version,
            }
        }
        stored = await self.context.client.merge_patch(Restore, restore.name, restore.namespace, body)
        self.context.caches.learn(stored)

    async def _gather(self, restore: Restore) -> RestoreSeen:
        """Read live what decides: a cache may be behind what an earlier pass did."""
        client, settings, status = self.context.client, self.context.settings, restore.status
        prime: PersistentVolumeClaim | None = None
        prime_volume: PersistentVolume | None = None
        new_volume: PersistentVolume | None = None
        target: PersistentVolumeClaim | None = None
        mover, attached = MoverSeen(), False
        if status.phase not in FINAL and status.manifest_key:
            name = transient_name(restore.uid)
            seen = await clone.look(client, self.context.caches, name, settings)
            prime, prime_volume = seen.pvc, seen.pv
            if prime_volume is None and status.volume:
                prime_volume = await client.find(PersistentVolume, status.volume)
            target = await client.find(PersistentVolumeClaim, status.target_pvc, status.target_namespace)
            mover = await self._mover(restore, name)
            if status.filled and not status.saved_volume and prime_volume is not None:
                attachments, _ = await client.list(VolumeAttachment)
                attached = any(a.spec.source.persistent_volume_name == prime_volume.name for a in attachments)
            if status.saved_volume:
                new_volume = await client.find(PersistentVolume, name)
        # By name and label: a stranger's Restore under a child's name is not ours.
        children = {
            name: child
            for name in status.children
            if (child := self.cache.get(name, restore.namespace)) is not None
            and child.metadata.labels.get(LABEL_RESTORE_UID) == restore.uid
        }
        return RestoreSeen(
            restore=restore,
            prime=prime,
            prime_volume=prime_volume,
            new_volume=new_volume,
            target=target,
            attached=attached,
            mover=mover,
            children=children,
            max_attempts=settings.mover_attempts,
            overdue=self._overdue(restore),
        )

    async def _mover(self, restore: Restore, name: str) -> MoverSeen:
        """Return how the mover stands; "deleting" as long as anything of it is left without its Job."""
        client, settings, status = self.context.client, self.context.settings, restore.status
        found = await jobs.look(client, self.context.caches, name, settings)
        mover = MoverSeen(found.state, found.outcome, found.message, lost=found.lost)
        if found.state == "missing" and status.filled and await client.find(Secret, name, settings.namespace):
            return MoverSeen("deleting")  # the Job is gone, the keys are not yet
        if found.state == "missing" and status.attempts and not status.filled:
            # The next mover must not write beside an older one.
            left = await jobs.lingering(client, name, settings, {LABEL_RESTORE_UID: restore.uid})
            return MoverSeen("deleting", message=jobs.LOST, lost=left == "overdue") if left else mover
        if found.deleting and found.state in ("pending", "running"):
            return MoverSeen("deleting")
        now, bound_s = self.context.clock.now(), settings.mover_stall_s
        if found.state in ("pending", "running") and stall.overdue(status.conditions, now, bound_s):
            sign = stall.sign(found.attempt, found.state, await jobs.progress(client, found, settings))
            if stall.stalled(status.conditions, sign, now, bound_s):
                return dataclasses.replace(mover, stalled=True, message=stall.sentence(bound_s, status.conditions))
        return mover

    def _overdue(self, restore: Restore) -> bool:
        asked = restore.metadata.deletion_timestamp
        bound = timedelta(seconds=self.context.settings.finalizer_bound_s)
        return asked is not None and self.context.clock.now() > asked + bound

    async def _act(self, seen: RestoreSeen, steps: Steps) -> Requeue | None:
        step = decisions.decide(seen)
        match step:
            case decisions.Done():
                return None
            case decisions.Release():
                await steps.release()
                return None
            case decisions.Resolve():
                await steps.resolve()
                return SOON
            case decisions.AwaitSlot():
                return POLL
            case decisions.CreatePrime():
                await steps.create_prime()
                return SOON
            case decisions.StartMover():
                await steps.start_mover()
                return FOLLOW
            case decisions.Follow():
                await steps.follow(seen)
                return FOLLOW
            case decisions.RemoveMover():
                await steps.note_failure(seen)
                return SOON if await steps.remove_mover() else POLL
            case decisions.StartOver():
                return SOON if await steps.start_over() else POLL
            case decisions.RecordFilled():
                await steps.record_filled(step.sha256, seen)
                return SOON
            case decisions.AwaitDetach() | decisions.AwaitBound():
                return POLL
            case decisions.SaveVolume():
                await steps.save_volume(seen)
                return SOON
            case decisions.RemovePrime():
                await steps.remove_prime(seen)
                return POLL
            case decisions.RemoveOldVolume():
                await steps.remove_old_volume(seen)
                return POLL
            case decisions.CreateVolume():
                await steps.create_volume()
                return SOON
            case decisions.CreateClaim():
                await steps.create_claim()
                return POLL
            case decisions.PutBack():
                await steps.put_back(seen)
                return SOON
            case decisions.CreateChildren():
                await steps.create_children()
                return FOLLOW
            case decisions.CancelChildren():
                await steps.cancel_children(step.names)
                return POLL
            case decisions.Abort():
                return SOON if await steps.abort(step, seen) else POLL
            case decisions.Finish():
                await steps.finish(step.phase, step.reason, step.message, seen)
                return SOON
            case _:
                assert_never(step)

    async def record_error(self, key: Key, error: TidemarkError) -> None:
        """Show an error; one that no later pass can mend is noted as the reason, and the next pass clears up."""
        restore = self.cache.get(key[1], key[0])
        if restore is None or restore.status.phase in FINAL:
            return
        now = self.context.clock.now()
        new = Condition(type="Progressing", status="False", reason=error.reason, message=error.sentence())
        changes: dict[str, Any] = {"conditions": with_condition(restore.status.conditions, new, now)}
        if isinstance(error, Terminal) and not restore.status.saved_volume:
            changes |= {"reason": error.reason, "message": error.sentence()}
            if restore.status.start_time is None:
                changes["start_time"] = now
        status: RestoreStatus = msgspec.structs.replace(restore.status, **changes)
        await patch_status(self.context, restore, status)
