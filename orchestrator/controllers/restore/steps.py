"""What each step of a restore does. Every one can be repeated after a crash anywhere inside it."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import msgspec

from orchestrator.api.foreign.core import (
    PersistentVolume,
    PersistentVolumeClaim,
    RawPersistentVolume,
)
from orchestrator.api.meta import Condition, ObjectMeta, with_condition
from orchestrator.api.tidemark.fields import FINALIZER, LABEL_MANAGED_BY, LABEL_RESTORE_UID, MANAGED_BY
from orchestrator.api.tidemark.restore import Restore, RestorePhase, RestoreSource, RestoreStatus
from orchestrator.controllers.base import Context
from orchestrator.controllers.repositories import mover_config
from orchestrator.controllers.restore.resolve import SavedClaim, child_points, readable, resolve, target_namespace
from orchestrator.controllers.status import patch_status
from orchestrator.decisions import stall
from orchestrator.decisions.restore import ANNOTATION_RECLAIM, LOST, MOVER, Abort, RestoreSeen, ours
from orchestrator.errors import Retryable
from orchestrator.kube.errors import AlreadyExists, NotFound
from orchestrator.observe.metrics import Result
from orchestrator.repository.errors import Damaged, ManifestMissing, ObjectMissing
from orchestrator.repository.manifest import open_manifest
from orchestrator.volumes import clone, handover
from orchestrator.volumes import job as jobs
from orchestrator.volumes.ownership import NameTaken
from policies.naming import object_name, transient_name

DAMAGE = frozenset({Damaged.reason, ObjectMissing.reason})
"""Reasons of a restore's end that speak of what is stored, and of nothing else."""
_RESULTS: dict[RestorePhase, Result] = {
    RestorePhase.COMPLETED: "completed",
    RestorePhase.FAILED: "failed",
    RestorePhase.CANCELLED: "cancelled",
}


class PrimeNotBound(Retryable):
    """The claim to fill has no volume yet."""

    reason = "PrimeNotBound"
    remedy = "See the Events of the claim in the controller's namespace."

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"Claim {name!r} is not bound yet" + (f": {why}" if why else ""))


class Steps:
    """The acts of one restore."""

    def __init__(self, context: Context, restore: Restore) -> None:
        self._context = context
        self._restore = restore
        self._name = transient_name(restore.uid)
        self._labels = {LABEL_RESTORE_UID: restore.uid, LABEL_MANAGED_BY: MANAGED_BY}

    async def _write(self, **changes: Any) -> None:
        status: RestoreStatus = msgspec.structs.replace(self._restore.status, **changes)
        await patch_status(self._context, self._restore, status)

    async def release(self) -> None:
        """Drop our finalizer."""
        rest = [f for f in self._restore.metadata.finalizers if f != FINALIZER]
        if len(rest) == len(self._restore.metadata.finalizers):
            return
        body = {"metadata": {"finalizers": rest, "resourceVersion": self._restore.metadata.resource_version}}
        await self._context.client.merge_patch(Restore, self._restore.name, self._restore.namespace, body)

    async def resolve(self) -> None:
        """Write down which point is restored and what will be made."""
        now, restore = self._context.clock.now(), self._restore
        if restore.spec.source.backup is not None:
            points = child_points(self._context, restore)
            target_namespace(self._context, restore)
            await self._write(
                observed_generation=restore.metadata.generation,
                phase=RestorePhase.FILLING,
                start_time=now,
                children=tuple(object_name(p.spec.pvc_name, restore.uid, p.uid) for p in points),
            )
            await self.create_children()
            return
        found = await resolve(self._context, restore)
        record = found.manifest.record
        claim = found.saved.claim["metadata"]
        await self._write(
            observed_generation=restore.metadata.generation,
            start_time=restore.status.start_time or now,
            point=record.point_name,
            point_uid=record.point_id,
            point_time=record.snapshot_time,
            repository=found.repository,
            manifest_key=found.ref.key,
            manifest_digest=found.ref.digest,
            size_bytes=found.size_bytes,
            target_namespace=claim["namespace"],
            target_pvc=claim["name"],
            prime=self._name,
            saved_claim=msgspec.json.encode(found.saved).decode(),
        )
        taken = record.snapshot_time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._event("Normal", "Resolved", f"Restoring {record.point_name} of {taken}.")

    async def create_prime(self) -> None:
        """Make the raw block claim in the controller's namespace."""
        saved = self._saved()
        wanted = clone.Claim(
            name=self._name,
            storage_class=saved.claim["spec"]["storageClassName"],
            size_bytes=self._restore.status.size_bytes,
            labels=self._labels,
        )
        await clone.ensure(self._context.client, wanted, self._context.settings)
        await self._write(phase=RestorePhase.PROVISIONING)

    async def start_mover(self) -> None:
        """Start the Job that fills it."""
        context, restore, status = self._context, self._restore, self._restore.status
        opened = await context.repositories.open(status.repository)
        vault = await self._vault(opened)
        config = mover_config(
            opened,
            vault,
            task="restore",
            point=restore.uid,
            manifest_key=status.manifest_key,
            manifest_digest=status.manifest_digest,
            read_back=restore.spec.read_back,
            sha256=restore.spec.read_back,
        )
        job = jobs.MoverJob(
            name=self._name,
            task="restore",
            config=config,
            device_pvc=self._name,
            labels=self._labels,
            annotations={"tidemark.dev/restore": f"{restore.namespace}/{restore.name}"},
            attempt=status.attempts + 1,
        )
        await jobs.ensure(context.client, job, context.settings)
        await self._write(phase=RestorePhase.FILLING, attempts=status.attempts + 1)

    async def follow(self, seen: RestoreSeen) -> None:
        """Tell how far the mover or the children are, and what keeps a pending one back."""
        context, status = self._context, self._restore.status
        if self._restore.spec.source.backup is not None:
            await self._write(progress=self._children_done(seen))
            return
        found = await jobs.look(context.client, context.caches, self._name, context.settings)
        changes: dict[str, Any] = {"attempts": max(status.attempts, found.attempt)}
        said = await jobs.progress(context.client, found, context.settings)
        if said is not None and said.total > 0:
            changes["progress"] = f"{min(100 * said.done // said.total, 100)}%"
        why = found.message
        if found.state == "pending" and seen.prime is not None and not seen.prime.bound:
            why = await clone.last_event(context.client, seen.prime) or why
        stuck = Condition(
            type="Progressing",
            status="False" if found.state == "pending" and why else "True",
            reason="MoverPending" if found.state == "pending" else "MoverRunning",
            message=why[:512] if found.state == "pending" else "",
        )
        now = context.clock.now()
        sign = stall.sign(found.attempt, found.state, said)
        conditions = stall.noted(status.conditions, sign, now, context.settings.mover_stall_s)
        await self._write(**changes, conditions=with_condition(conditions, stuck, now))

    async def note_failure(self, seen: RestoreSeen) -> None:
        """Write down why a mover failed, and count it once: what removes the Job removes the only trace of it."""
        attempt, status = self._restore.status.attempts, self._restore.status
        start = f"Attempt {attempt}:"
        known = next((c for c in status.conditions if c.type == MOVER), None)
        failed = seen.mover.state == "failed" or seen.mover.stalled or seen.mover.lost
        told = known is not None and known.message.startswith(start)
        if not failed or (told and not (seen.mover.lost and known is not None and known.reason != LOST)):
            return
        outcome = seen.mover.outcome
        reason = outcome.reason if outcome is not None and outcome.reason else "MoverFailed"
        reason = LOST if seen.mover.lost else stall.STALLED if seen.mover.stalled else reason
        why = (outcome.message if outcome is not None else "") or seen.mover.message
        message = f"{start} {why}"[:512]
        condition = Condition(type=MOVER, status="False", reason=reason, message=message)
        await self._write(conditions=with_condition(status.conditions, condition, self._context.clock.now()))
        if not told:
            self._context.meter.mover_ended("restore", "failed")
        self._event("Warning", reason, f"Mover {attempt} failed: {why}")

    async def remove_mover(self) -> bool:
        """Remove Job, pods and Secret; True when they are gone."""
        return await jobs.remove(self._context.client, self._name, self._context.settings, self._labels)

    async def start_over(self) -> bool:
        """Remove the mover whose end nobody saw and the volume that it may still write to; True when they are gone."""
        if not await self.remove_mover():
            return False
        if not await clone.remove(self._context.client, self._name, self._context.settings, self._labels):
            return False
        again = Condition(type=MOVER, status="Unknown", reason="StartedOver", message="Another volume is filled.")
        conditions = with_condition(self._restore.status.conditions, again, self._context.clock.now())
        await self._write(conditions=stall.without(conditions), progress="")
        return True

    async def record_filled(self, sha256: str, seen: RestoreSeen) -> None:
        """Write down that the mover wrote and verified every chunk."""
        if seen.prime_volume is None or seen.prime_volume.spec.csi is None:
            raise PrimeNotBound(self._name, "")
        await self._write(
            filled=True,
            sha256=sha256,
            progress="100%",
            volume=seen.prime_volume.name,
            volume_handle=seen.prime_volume.spec.csi.volume_handle,
        )
        # Each chunk that the point holds was read, authenticated and written.
        self._context.meter.mover_ended("restore", "completed")
        self._context.meter.verified(self._restore.status.repository, "ok")

    async def save_volume(self, seen: RestoreSeen) -> None:
        """Set the volume to Retain, then save the spec of the volume to come. From here on there is no way back."""
        context = self._context
        if seen.prime_volume is None:
            raise PrimeNotBound(self._name, "")
        old = await context.client.get(RawPersistentVolume, seen.prime_volume.name)
        policy = old.metadata.annotations.get(ANNOTATION_RECLAIM) or old.spec.get("persistentVolumeReclaimPolicy")
        body = {
            "metadata": {
                "annotations": {ANNOTATION_RECLAIM: policy},
                "resourceVersion": old.metadata.resource_version,
            },
            "spec": {"persistentVolumeReclaimPolicy": "Retain"},
        }
        await context.client.merge_patch(PersistentVolume, old.name, "", body)
        saved = self._saved()
        manifest = handover.build_volume(
            old,
            name=self._name,
            restore_uid=self._restore.uid,
            claim=saved.claim,
            fs_type=saved.fs_type,
            mount_options=saved.mount_options,
            reclaim_policy=str(policy),
        )
        await self._write(phase=RestorePhase.HANDING_OVER, saved_volume=msgspec.json.encode(manifest).decode())

    async def remove_prime(self, seen: RestoreSeen) -> None:
        """Delete the filled claim; its volume was set to Retain before."""
        prime, volume = seen.prime, seen.prime_volume
        if prime is None or prime.deleting:
            return
        if volume is not None and volume.spec.persistent_volume_reclaim_policy != "Retain":
            raise PrimeNotBound(self._name, f"its volume {volume.name} is not set to Retain")
        await self._context.client.delete(
            PersistentVolumeClaim, prime.name, self._context.settings.namespace, uid=prime.uid
        )

    async def remove_old_volume(self, seen: RestoreSeen) -> None:
        """Delete the old volume object, once it is released; Retain keeps the storage."""
        volume = seen.prime_volume
        if volume is None or volume.deleting:
            return
        if volume.spec.persistent_volume_reclaim_policy != "Retain":
            raise PrimeNotBound(self._name, f"its volume {volume.name} is not set to Retain")
        await self._context.client.delete(PersistentVolume, volume.name, uid=volume.uid)

    async def create_volume(self) -> None:
        """Make the volume object again from what was saved."""
        manifest: dict[str, Any] = msgspec.json.decode(self._restore.status.saved_volume)
        try:
            await self._context.client.create_raw(PersistentVolume.RESOURCE, manifest, PersistentVolume)
        except AlreadyExists as error:
            there = await self._context.client.find(PersistentVolume, self._name)
            handle = there.spec.csi.volume_handle if there is not None and there.spec.csi is not None else ""
            if handle != self._restore.status.volume_handle:
                raise NameTaken("PersistentVolume", "", self._name) from error

    async def create_claim(self) -> None:
        """Make the tenant's claim, naming the volume."""
        saved = self._saved()
        manifest = {**saved.claim, "spec": {**saved.claim["spec"], "volumeName": self._name}}
        try:
            await self._context.client.create_raw(PersistentVolumeClaim.RESOURCE, manifest, PersistentVolumeClaim)
        except AlreadyExists:
            return  # the next pass looks whose it is

    async def put_back(self, seen: RestoreSeen) -> None:
        """Give the volume the reclaim policy that its class asks for."""
        volume = seen.new_volume
        if volume is None:
            return
        policy = volume.metadata.annotations.get(ANNOTATION_RECLAIM)
        body = {
            "metadata": {"resourceVersion": volume.metadata.resource_version},
            "spec": {"persistentVolumeReclaimPolicy": policy},
        }
        await self._context.client.merge_patch(PersistentVolume, volume.name, "", body)

    async def create_children(self) -> None:
        """Make one Restore per volume of the Backup. Raises NameTaken, after all whose names are free."""
        restore, target = self._restore, self._restore.spec.target
        taken: NameTaken | None = None
        for point in child_points(self._context, restore):
            child = Restore(
                metadata=ObjectMeta(
                    name=object_name(point.spec.pvc_name, restore.uid, point.uid),
                    namespace=restore.namespace,
                    labels=self._labels,
                ),
                spec=msgspec.structs.replace(
                    restore.spec,
                    source=RestoreSource(point=point.name),
                    target=msgspec.structs.replace(target, pvc_name=f"{target.name_prefix}{point.spec.pvc_name}"),
                ),
            )
            try:
                self._context.caches.learn(await self._context.client.create(child))
            except AlreadyExists as error:
                there = await self._context.client.get(Restore, child.name, restore.namespace)
                if there.metadata.labels.get(LABEL_RESTORE_UID) != restore.uid:
                    taken = NameTaken("Restore", restore.namespace, child.name)
                    taken.__cause__ = error
        if taken is not None:
            raise taken

    async def cancel_children(self, names: tuple[str, ...]) -> None:
        """Ask the children to stop."""
        for name in names:
            body = {"spec": {"cancel": True}}
            try:
                await self._context.client.merge_patch(Restore, name, self._restore.namespace, body)
            except NotFound:
                continue

    async def abort(self, step: Abort, seen: RestoreSeen) -> bool:
        """Write down why, remove what was made, and end; True when it has ended."""
        status = self._restore.status
        if not status.reason:
            await self._write(reason=step.reason, message=step.message[:512])
            if seen.mover.state == "failed":
                self._context.meter.mover_ended("restore", "failed")
            return True
        if not await self.remove_mover():
            return False
        volume = seen.new_volume
        foreign = seen.target is not None and not ours(self._restore, seen.target)
        if volume is not None and foreign and not volume.deleting:
            await self._context.client.merge_patch(
                PersistentVolume, volume.name, "", {"spec": {"persistentVolumeReclaimPolicy": "Delete"}}
            )
            await self._context.client.delete(PersistentVolume, volume.name, uid=volume.uid)
        if not await clone.remove(self._context.client, self._name, self._context.settings, self._labels):
            return False
        await self.finish(step.phase, status.reason, status.message, seen)
        return True

    def _children_done(self, seen: RestoreSeen) -> str:
        done = sum(1 for c in seen.children.values() if c.status.phase is RestorePhase.COMPLETED)
        return f"{done}/{len(self._restore.status.children)}"

    async def finish(self, phase: RestorePhase, reason: str, message: str, seen: RestoreSeen) -> None:
        """Record how it ended."""
        good = phase is RestorePhase.COMPLETED
        now = self._context.clock.now()
        end = Condition(
            type="Complete",
            status="True" if good else "False",
            reason=reason,
            message=message[:512],
            observed_generation=self._restore.metadata.generation,
        )
        await self._write(
            phase=phase,
            reason=reason,
            message="" if good else message[:512],
            completion_time=now,
            # The pass that sees the last child end is this one: without it the column would stay one behind.
            progress=self._children_done(seen) if self._restore.status.children else self._restore.status.progress,
            conditions=stall.without(with_condition(self._restore.status.conditions, end, now)),
        )
        # After the write, which only one pass can win: a restore is counted once.
        meter, started = self._context.meter, self._restore.status.start_time
        meter.restore_ended(
            self._restore.namespace, _RESULTS[phase], (now - started).total_seconds() if started is not None else 0.0
        )
        if reason in DAMAGE and self._restore.status.repository:
            meter.verified(self._restore.status.repository, "damaged")
        self._event("Normal" if good else "Warning", reason, message)

    async def _vault(self, opened: Any) -> Any:
        """Return the vault that the point's manifest opens with: of this namespace, or of one that it inherits."""
        status = self._restore.status
        for identity in readable(self._context, self._restore.namespace):
            for found in await opened.repository.namespaces():
                if found.uid != identity.uid:
                    continue
                vault = await opened.repository.vault(found)
                try:
                    await open_manifest(vault, status.manifest_key, digest=status.manifest_digest)
                except ManifestMissing:
                    continue
                return vault
        raise ManifestMissing(status.manifest_key)

    def _saved(self) -> SavedClaim:
        return msgspec.json.decode(self._restore.status.saved_claim, type=SavedClaim)

    def _event(self, type_: Any, reason: str, message: str) -> None:
        self._context.recorder.event(self._restore, type_, reason, message)
