"""Find the point that a Restore means, and check who may.

Who may read: a namespace its own points, told by its uid, and those of namespaces that an admin put into its
`tidemark.dev/inherit-points-of` annotation. Who may write: the Restore's own namespace, or one whose admin accepts
restores from it. Keys are opened for those namespaces only, so a forged status can't reach further.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec

from orchestrator.api.foreign.core import Namespace, StorageClass
from orchestrator.api.quantity import parse_quantity
from orchestrator.api.tidemark.backup import Backup
from orchestrator.api.tidemark.fields import ANNOTATION_ACCEPT_RESTORES, ANNOTATION_INHERIT_POINTS
from orchestrator.api.tidemark.recovery_point import FINAL_PHASES, PointPhase, RecoveryPoint
from orchestrator.api.tidemark.restore import AsOf, RepositoryPoint, Restore
from orchestrator.controllers.base import Context
from orchestrator.errors import Retryable, Terminal
from orchestrator.repository.errors import ManifestMissing, PointCancelled
from orchestrator.repository.keys import NamespaceIdentity
from orchestrator.repository.manifest import Manifest, PointRef, list_points, open_manifest
from orchestrator.repository.vault import Vault
from orchestrator.volumes.handover import build_claim


class PointNotFound(Terminal):
    """No recovery point fits what a restore asks for."""

    reason = "PointNotFound"
    remedy = "See 'kubectl get rp', or 'tidemark get points --repository NAME' for points whose records are gone."


class PointNotReady(Retryable):
    """The recovery point is still being made."""

    reason = "PointNotReady"
    remedy = "The restore begins when it is completed."

    def __init__(self, name: str) -> None:
        super().__init__(f"RecoveryPoint {name!r} is still being made")


class PointUnusable(Terminal):
    """The recovery point holds no data in a repository."""

    reason = "PointUnusable"
    remedy = "Choose another point; see 'kubectl get rp'."


class RestoreRefused(Terminal):
    """A restore crosses a border without a grant."""

    reason = "RestoreForbidden"
    remedy = "Ask an admin of the target namespace for the annotation that accepts it."


class TargetInvalid(Terminal):
    """The target can't be made as asked."""

    reason = "TargetInvalid"
    remedy = "Mend spec.target and create the Restore again."


class SavedClaim(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What `status.savedClaim` keeps: the target claim to make, and what its volume takes from the source's."""

    claim: dict[str, Any]
    fs_type: str = ""
    mount_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Resolved:
    """A point found, and what will be made of it."""

    repository: str
    manifest: Manifest
    ref: PointRef
    size_bytes: int
    saved: SavedClaim


@dataclass(frozen=True, slots=True)
class _Found:
    repository: str
    manifest: Manifest
    ref: PointRef


async def resolve(context: Context, restore: Restore) -> Resolved:
    """Return the point and the target. Raises PointNotFound, PointNotReady, RestoreRefused, TargetInvalid, ..."""
    source = restore.spec.source
    if source.point is not None:
        found = await _by_record(context, restore, _record(context, restore, source.point))
    elif source.pvc is not None:
        found = await _as_of(context, restore, source.pvc)
    elif source.repository_point is not None:
        found = await _by_id(context, restore, source.repository_point)
    else:
        raise PointNotFound("spec.source names nothing")
    namespace = target_namespace(context, restore)
    return _target(context, restore, found, namespace)


def child_points(context: Context, restore: Restore) -> list[RecoveryPoint]:
    """Return the points of the Backup that a restore names, by name. Raises PointNotFound, PointNotReady."""
    name = restore.spec.source.backup or ""
    backup = context.caches.of(Backup).get(name, restore.namespace)
    if backup is None:
        raise PointNotFound(f"There is no Backup {name!r} in this namespace")
    points = [p for p in context.caches.of(RecoveryPoint).all() if p.namespace == restore.namespace]
    mine = sorted((p for p in points if p.spec.backup == name), key=lambda p: p.name)
    if any(p.status.phase not in FINAL_PHASES for p in mine):
        raise PointNotReady(next(p.name for p in mine if p.status.phase not in FINAL_PHASES))
    if not mine:
        raise PointNotFound(f"Backup {name!r} has no recovery points left")
    return mine


def readable(context: Context, namespace: str) -> list[NamespaceIdentity]:
    """Return whose points a namespace may read: its own first, then those it inherits (their names not known here)."""
    home = context.caches.of(Namespace).get(namespace)
    if home is None:
        raise PointNotFound(f"Namespace {namespace!r} is not known yet")
    inherited = home.metadata.annotations.get(ANNOTATION_INHERIT_POINTS, "")
    uids = [home.uid, *(part.strip() for part in inherited.split(",") if part.strip())]
    return [NamespaceIdentity(context.cluster_id, uid, namespace) for uid in uids]


def target_namespace(context: Context, restore: Restore) -> str:
    """Return where the claim is made. Raises RestoreRefused, TargetInvalid."""
    name = restore.spec.target.namespace or restore.namespace
    namespace = context.caches.of(Namespace).get(name)
    accepted = namespace.metadata.annotations.get(ANNOTATION_ACCEPT_RESTORES, "") if namespace is not None else ""
    if name != restore.namespace and restore.namespace not in [part.strip() for part in accepted.split(",")]:
        # The same words for one that is not there: whose names there are is nobody's business.
        raise RestoreRefused(
            f"Namespace {name!r} does not accept restores from {restore.namespace!r} "
            f"(annotation {ANNOTATION_ACCEPT_RESTORES})"
        )
    if namespace is None:
        raise TargetInvalid(f"There is no namespace {name!r}")
    if namespace.deleting:
        raise TargetInvalid(f"Namespace {name!r} is being deleted")
    return name


def _record(context: Context, restore: Restore, name: str) -> RecoveryPoint:
    point = context.caches.of(RecoveryPoint).get(name, restore.namespace)
    if point is None:
        raise PointNotFound(f"There is no RecoveryPoint {name!r} in this namespace")
    return point


async def _by_record(context: Context, restore: Restore, point: RecoveryPoint) -> _Found:
    if point.status.phase not in FINAL_PHASES:
        raise PointNotReady(point.name)
    if point.status.phase is not PointPhase.COMPLETED:
        raise PointUnusable(f"RecoveryPoint {point.name!r} is {point.status.phase.value}: {point.status.message}")
    manifest, repository = point.status.manifest, point.spec.repository
    if manifest is None or repository is None:
        raise PointUnusable(
            f"RecoveryPoint {point.name!r} is a snapshot only; make a claim with VolumeSnapshot "
            f"{point.status.snapshot_name!r} as its dataSource"
        )
    context.repositories.check_allowed(repository, restore.namespace)
    for identity in readable(context, restore.namespace):
        for vault in await _vaults(context, repository, identity):
            try:
                opened, ref = await open_manifest(vault, manifest.key, digest=manifest.digest)
            except ManifestMissing:
                continue
            return _Found(repository, opened, ref)
    raise PointNotFound(f"RecoveryPoint {point.name!r} is no longer in BackupRepository {repository!r}")


async def _as_of(context: Context, restore: Restore, wanted: AsOf) -> _Found:
    points = [
        p
        for p in context.caches.of(RecoveryPoint).all()
        if p.namespace == restore.namespace
        and p.spec.pvc_name == wanted.pvc
        and p.status.phase is PointPhase.COMPLETED
        and p.status.manifest is not None
        and p.status.snapshot_time is not None
        and (wanted.time is None or p.status.snapshot_time <= wanted.time)
    ]
    newest = max(points, key=lambda p: (p.status.snapshot_time is not None, p.status.snapshot_time), default=None)
    if newest is not None and wanted.repository is None:
        return await _by_record(context, restore, newest)
    if wanted.repository is None:
        when = f" as of {wanted.time.isoformat()}" if wanted.time else ""
        raise PointNotFound(f"No RecoveryPoint of claim {wanted.pvc!r}{when}; name a repository to look there")
    best: _Found | None = None
    async for found in _search(context, restore, wanted.repository):
        record = found.manifest.record
        if record.pvc_name != wanted.pvc or (wanted.time is not None and record.snapshot_time > wanted.time):
            continue
        if best is None or record.snapshot_time > best.manifest.record.snapshot_time:
            best = found
    if best is None:
        raise PointNotFound(f"BackupRepository {wanted.repository!r} has no readable point of claim {wanted.pvc!r}")
    return best


async def _by_id(context: Context, restore: Restore, wanted: RepositoryPoint) -> _Found:
    async for found in _search(context, restore, wanted.repository, wanted.point):
        if wanted.point in (found.manifest.record.point_id, found.ref.key):
            return found
    raise PointNotFound(
        f"BackupRepository {wanted.repository!r} has no point {wanted.point!r} that this namespace may read"
    )


async def _search(context: Context, restore: Restore, repository: str, point: str = "") -> AsyncIterator[_Found]:
    """Yield the readable points of a repository; with `point`, only those whose object name speaks of it."""
    context.repositories.check_allowed(repository, restore.namespace)
    for identity in readable(context, restore.namespace):
        for vault in await _vaults(context, repository, identity):
            async for key in list_points(vault):
                if point and point not in key:
                    continue
                try:
                    manifest, ref = await open_manifest(vault, key)
                except (ManifestMissing, PointCancelled):
                    continue
                yield _Found(repository, manifest, ref)


async def _vaults(context: Context, repository: str, identity: NamespaceIdentity) -> list[Vault]:
    """Return the vaults of every namespace of that uid: ours, or (inherited) of another cluster or name."""
    opened = await context.repositories.open(repository)
    return [
        await opened.repository.vault(found)
        for found in await opened.repository.namespaces()
        if found.uid == identity.uid
    ]


def _target(context: Context, restore: Restore, found: _Found, namespace: str) -> Resolved:
    record, target = found.manifest.record, restore.spec.target
    spec: dict[str, Any] = record.pvc_spec
    was = str(spec.get("storageClassName") or record.pv_spec.get("storageClassName") or "")
    storage_class = target.storage_class_name or target.class_mapping.get(was) or was
    if context.caches.of(StorageClass).get(storage_class) is None:
        raise TargetInvalid(
            f"There is no StorageClass {storage_class!r}; set spec.target.storageClassName or map {was!r}"
        )
    requested = parse_quantity(str(spec.get("resources", {}).get("requests", {}).get("storage", "0")))
    size = max(record.volume_size, requested)
    csi: dict[str, Any] = record.pv_spec.get("csi") or {}
    claim = build_claim(
        name=target.pvc_name or f"{target.name_prefix}{record.pvc_name}",
        namespace=namespace,
        restore_uid=restore.uid,
        labels=record.pvc_labels | target.labels,
        annotations=record.pvc_annotations,
        access_modes=[str(mode) for mode in spec.get("accessModes") or ()],
        storage_class=storage_class,
        volume_mode=record.volume_mode,
        size_bytes=size,
    )
    saved = SavedClaim(
        claim=claim,
        fs_type=str(csi.get("fsType") or ""),
        mount_options=tuple(str(option) for option in record.pv_spec.get("mountOptions") or ()),
    )
    return Resolved(found.repository, found.manifest, found.ref, size, saved)
