"""Whom damage hurts: from damaged objects to the points, and the volumes, that can't be read back whole.

What must never happen here: a point blamed that doesn't use what is damaged, or a point that does passed over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Literal

import msgspec

from orchestrator.clock import Clock
from orchestrator.repository.chunkmap import MapReader
from orchestrator.repository.damage import DamageIndex, DamageRecord, put_damage
from orchestrator.repository.errors import Damaged, ManifestMissing, PointCancelled, UnsupportedFormat
from orchestrator.repository.layout import FAN_OUT, LEAF_CHUNKS, ObjectRef
from orchestrator.repository.manifest import MapRoot, open_manifest
from orchestrator.repository.page import Inner
from orchestrator.repository.vault import Vault


class Finding(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One damaged or missing object, and the points that it hurts."""

    key: str
    what: str
    points: tuple[str, ...] = ()
    """Manifest names."""
    chunks: int = 0
    """Chunks lost, summed over those points."""


class HurtPoint(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One point that can't be read back whole."""

    key: str
    """Its manifest's name."""
    pvc: str = ""
    """The volume's claim; empty where no manifest of the volume can be read."""
    name: str = ""
    """The RecoveryPoint's name; empty where its manifest can't be read."""
    time: datetime | None = None
    chunks: int = 0
    """Chunks of it that are lost; 0 where that isn't known: its manifest is damaged or missing."""
    what: str
    """What is wrong, in words."""


class Known(msgspec.Struct, frozen=True):
    """A point whose manifest opened."""

    root: MapRoot
    digest: str
    pvc: str
    name: str
    time: datetime


class Bad(msgspec.Struct):
    """A damaged object before it is known whom it hurts."""

    kind: Literal["pack", "map"]
    ref: ObjectRef
    what: str
    slots: set[int]
    hurts: bool = True


def hurt_points(findings: Iterable[Finding], chunks: Mapping[str, int], points: Mapping[str, Known]) -> list[HurtPoint]:
    """Return the points that findings name, by volume and time. `chunks`: how many each of them lost."""
    what: dict[str, str] = {}
    for finding in findings:
        for key in finding.points:
            what.setdefault(key, finding.what if finding.key == key else f"{finding.key}: {finding.what}")
    volumes = {key.rpartition("/")[0]: known.pvc for key, known in points.items()}
    hurt = []
    for key, words in what.items():
        known = points.get(key)
        hurt.append(
            HurtPoint(
                key=key,
                pvc=volumes.get(key.rpartition("/")[0], ""),
                name=known.name if known is not None else "",
                time=known.time if known is not None else None,
                chunks=chunks.get(key, 0),
                what=words,
            )
        )
    return sorted(hurt, key=lambda point: (point.pvc, point.key))


async def blame(
    vault: Vault, found: Iterable[Bad], points: dict[str, Known], known: DamageIndex, clock: Clock | None
) -> tuple[list[Finding], Counter[str]]:
    """Find the points that each damaged object hurts; return findings, and how many chunks each point lost.

    Points that were removed meanwhile are taken out of `points`. With `clock` damage that isn't `known` is written
    down.
    """
    index = DamageIndex()
    found = list(found)
    await _forget_removed(vault, points)
    for bad in found:
        if bad.hurts:
            index.add(bad.kind, bad.ref, bad.slots)
    hurt: dict[ObjectRef, dict[str, int]] = {}
    lost: Counter[str] = Counter()
    for key, point in points.items():
        for ref, chunks in (await lost_chunks(vault, point.root, index)).items():
            hurt.setdefault(ref, {})[key] = chunks
            lost[key] += chunks
    findings = []
    for bad in found:
        whom = hurt.get(bad.ref, {}) if bad.hurts else {}
        if bad.hurts and not whom:
            # Only points that were removed meanwhile needed it.
            continue
        name = vault.names.pack(bad.ref) if bad.kind == "pack" else vault.names.map(bad.ref)
        findings.append(Finding(key=name, what=bad.what, points=tuple(sorted(whom)), chunks=sum(whom.values())))
        if clock is not None and whom and not _known(known, bad):
            entry = DamageRecord(
                kind=bad.kind,
                object=bad.ref.to_bytes().hex(),
                what=bad.what,
                found=clock.now(),
                points=tuple(sorted(whom)),
            )
            await put_damage(vault, entry, bad.slots)
    return findings, lost


async def _forget_removed(vault: Vault, points: dict[str, Known]) -> None:
    """Leave out points that were removed while verify ran: maintenance may have swept what only they needed."""
    for key in list(points):
        try:
            await open_manifest(vault, key)
        except (ManifestMissing, PointCancelled):
            del points[key]
        except (Damaged, UnsupportedFormat):
            continue


def _known(index: DamageIndex, bad: Bad) -> bool:
    table = index.packs if bad.kind == "pack" else index.maps
    if bad.ref not in table:
        return False
    slots = table[bad.ref]
    return slots is None or (bool(bad.slots) and bad.slots <= slots)


async def lost_chunks(vault: Vault, root: MapRoot, damage: DamageIndex) -> Counter[ObjectRef]:
    """Return how many chunks a map loses to each damaged object; a damaged page counts for all that it covers."""
    lost: Counter[ObjectRef] = Counter()
    reader, leaves = MapReader(vault, root), -(-root.chunk_count // LEAF_CHUNKS)
    for node in range(-(-leaves // FAN_OUT)):
        page = await _level1(reader, node, damage, lost)
        for number in page.numbers() if page is not None else ():
            await _leaf_losses(reader, page, number, damage, lost)
    return lost


async def _level1(reader: MapReader, node: int, damage: DamageIndex, lost: Counter[ObjectRef]) -> Inner | None:
    """Descend to a level-1 page, charging its chunks to the first damaged page on the way."""
    level, ref = reader.root.levels, reader.top()
    covered = min(FAN_OUT * LEAF_CHUNKS, reader.root.chunk_count - node * FAN_OUT * LEAF_CHUNKS)
    while ref is not None:
        if damage.touches_page(ref.object, ref.slot):
            lost[ref.object] += covered
            return None
        (page,) = await reader.inner(level, [ref])
        if level == 1:
            return page
        level -= 1
        ref = page.child(node // FAN_OUT ** (level - 1) % FAN_OUT)
    return None


async def _leaf_losses(
    reader: MapReader, page: Inner | None, number: int, damage: DamageIndex, lost: Counter[ObjectRef]
) -> None:
    assert page is not None
    overlay = dict(page.overlay(number))
    for entry in overlay.values():
        if entry is not None and damage.touches(entry):
            lost[entry.pack] += 1
    ref = page.child(number)
    if ref is None:
        return
    if damage.touches_page(ref.object, ref.slot):
        lost[ref.object] += LEAF_CHUNKS - len(overlay)
        return
    leaf = (await reader.leaves([ref]))[ref]
    if any(pack in damage.packs for pack in leaf.packs):
        for at, entry in leaf.chunks():
            if at not in overlay and damage.touches(entry):
                lost[entry.pack] += 1
