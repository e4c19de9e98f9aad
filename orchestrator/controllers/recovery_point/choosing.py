"""Choose what a point builds on: the newest earlier point of its volume that a delta may be taken against.

Facts come from authenticated manifests, never from what a tenant can write. What can't be read is no base, but it
counts as a point: otherwise the next one would be a full without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from orchestrator.api.foreign.snapshot import VolumeSnapshotContent
from orchestrator.api.tidemark.recovery_point import PointBase, PointPhase, RecoveryPoint
from orchestrator.controllers.recovery_point import ladder
from orchestrator.controllers.recovery_point.work import Work, lineage_of
from orchestrator.decisions.recovery_point import RecoveryPointSeen
from orchestrator.repository.damage import check_base
from orchestrator.repository.errors import Damaged, ManifestMissing, PointCancelled, UnsupportedFormat
from orchestrator.repository.manifest import (
    Manifest,
    PointRef,
    list_lineage,
    next_sequence,
    open_manifest,
    sequence_in,
)
from orchestrator.repository.vault import Vault
from policies import lineage
from policies.duration import parse_duration

LOOK_BACK = 4
"""Earlier points opened, newest first, in search of a base."""
LOOK_THROUGH = 64
"""Names looked at for them; beyond these, only points that the cluster has a record of."""

_EXPECTED = frozenset({"", "NoBase", "FullRequested", "FullDue"})
"""Reasons for not asking for a delta that nobody need look into."""


class Earlier(NamedTuple):
    """An earlier point as it was opened."""

    ref: PointRef
    manifest: Manifest
    heal: tuple[tuple[int, int], ...]
    """Runs of its chunks that are known to be damaged: a delta reads them again."""


async def choose(work: Work, seen: RecoveryPointSeen) -> None:
    """Choose a base and a place in the lineage, and write both down."""
    status = work.status
    async with work.vault(create=True) as (_, vault):
        keys = await list_lineage(vault, lineage_of(status.driver, status.volume_handle))
        choice, found = await choose_base(work, seen, vault, keys)
    known = [p.status.sequence for p in seen.siblings] + [
        earlier.manifest.record.sequence for earlier in found.values()
    ]
    sequence = next_sequence(keys, max(known, default=0))
    expected = choice.reason in _EXPECTED
    base = None
    if choice.base is not None and choice.mode == "delta":
        record = found[choice.base.id].manifest.record
        base = PointBase(point=record.point_name, uid=record.point_id, snapshot_handle=record.base_id)
    await work.write(
        sequence=sequence,
        base=base,
        requested_mode=choice.mode if expected else "delta",
        fallback_reason="" if expected else choice.reason,
        reason=choice.reason,
        message=choice.sentence,
    )
    if not expected:
        ladder.tell(work, choice.reason, f"No delta: {choice.sentence}.")


async def choose_base(
    work: Work, seen: RecoveryPointSeen, vault: Vault, keys: list[str]
) -> tuple[lineage.Choice, dict[str, Earlier]]:
    """Return the choice, and the earlier points that were opened for it, by uid."""
    status, options = work.status, work.point.spec.options
    assert status.snapshot_time is not None
    target = lineage.Target(
        time=status.snapshot_time,
        driver=status.driver,
        volume_handle=status.volume_handle,
        size_bytes=status.restore_size,
        base_id=status.base_id,
        full_every=parse_duration(options.full_every) if options.full_every else None,
        force_full=work.point.spec.full,
    )
    records = {p.status.manifest.key: p for p in seen.siblings if p.status.manifest is not None}
    found: dict[str, Earlier] = {}
    candidates: list[lineage.Candidate] = []
    for key in _worth_opening(keys, records, candidates):
        candidate = await _candidate(work, vault, key, records.get(key), found)
        if candidate is not None:
            candidates.append(candidate)
            if target.full_every is None and not lineage.judge(candidate, target)[0]:
                break  # a good base: older ones can only be worse
    candidates += [_unreadable(work, key) for key, p in records.items() if key not in keys and _expected_there(p)]
    return lineage.choose_base(candidates, target), found


def _worth_opening(
    keys: list[str], records: dict[str, RecoveryPoint], candidates: list[lineage.Candidate]
) -> Iterator[str]:
    """Yield names of manifests, newest first, until there are LOOK_BACK `candidates`; then the last known full.

    Names of points that failed or were removed are no candidates: with only names counted, a volume whose last few
    points failed would be read and stored anew as if it had none.
    """
    newest = sorted(keys, key=sequence_in, reverse=True)
    recorded = [key for key in newest if key in records]
    seen: set[str] = set()
    for key in (*newest[:LOOK_THROUGH], *recorded):
        if len(candidates) >= LOOK_BACK:
            break
        if key not in seen:
            seen.add(key)
            yield key
    full = next((key for key in recorded if records[key].status.mode == "full"), None)
    if full is not None and full not in seen:
        yield full


async def _candidate(
    work: Work, vault: Vault, key: str, record: RecoveryPoint | None, found: dict[str, Earlier]
) -> lineage.Candidate | None:
    """Return what the manifest says of an earlier point, None when it was removed or ended.

    One that can't be read is no base, but it counts as a point: otherwise the next one would be a full without a word.
    """
    digest = record.status.manifest.digest if record is not None and record.status.manifest is not None else None
    try:
        manifest, ref = await open_manifest(vault, key, digest=digest)
    except (ManifestMissing, PointCancelled):
        return None
    except (Damaged, UnsupportedFormat):
        return _unreadable(work, key)
    told = manifest.record
    check = await check_base(vault, ref, manifest=manifest)
    found[told.point_id] = Earlier(ref, manifest, check.heal)
    return lineage.Candidate(
        id=told.point_id,
        sequence=told.sequence,
        time=told.snapshot_time,
        driver=told.driver,
        volume_handle=told.volume_handle,
        size_bytes=manifest.root.volume_size,
        base_id=told.base_id,
        usable=check.usable,
        snapshot_kept=await _snapshot_kept(work, record),
        whole=told.actual_mode == "full",
    )


def _unreadable(work: Work, key: str) -> lineage.Candidate:
    """Return a candidate of which nothing is known but that it should be there."""
    assert work.status.snapshot_time is not None
    return lineage.Candidate(
        id=key,
        sequence=sequence_in(key),
        time=work.status.snapshot_time,
        driver=work.status.driver,
        volume_handle=work.status.volume_handle,
        size_bytes=0,
        base_id="",
        usable=False,
        snapshot_kept=False,
    )


def _expected_there(record: RecoveryPoint) -> bool:
    """Return whether nobody asked for the point's data to go: then its manifest was lost behind our back."""
    return record.status.phase is PointPhase.COMPLETED and not record.spec.prune and not record.deleting


async def _snapshot_kept(work: Work, record: RecoveryPoint | None) -> bool:
    """Return whether the driver can still be asked about that point's snapshot."""
    if work.context.settings.extra.get(f"driver/{work.status.driver}/baseRetention") == "NotNeeded":
        return True
    if record is None or not record.status.snapshot_kept or not record.status.content_name:
        return False
    content = await work.context.client.find(VolumeSnapshotContent, record.status.content_name)
    return content is not None and not content.deleting
