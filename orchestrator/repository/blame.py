"""Whom damage hurts: from damaged objects to the points, and the volumes, that can't be read back whole.

What must never happen here: a point blamed that doesn't use what is damaged, or a point that does passed over.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Literal

import msgspec

from orchestrator.clock import Clock
from orchestrator.repository.chunkmap import MapReader
from orchestrator.repository.damage import DamageIndex, DamageRecord, put_damage
from orchestrator.repository.errors import Damaged, ManifestMissing, ObjectMissing, PointCancelled, UnsupportedFormat
from orchestrator.repository.layout import FAN_OUT, LEAF_CHUNKS, ObjectRef
from orchestrator.repository.manifest import MapRoot, open_manifest
from orchestrator.repository.page import Inner, Ref
from orchestrator.repository.secondlook import SecondLook
from orchestrator.repository.vault import Vault

BATCH_PAGES = 32
"""Pages fetched together."""
REMEMBERED = 300_000
"""Pages whose losses are remembered, to bound memory: some 50 MB."""


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
    vault: Vault,
    found: Iterable[Bad],
    points: dict[str, Known],
    known: DamageIndex,
    clock: Clock | None,
    again: SecondLook,
) -> tuple[list[Finding], Counter[str]]:
    """Find the points that each damaged object hurts; return findings, and how many chunks each point lost.

    Points that were removed meanwhile are taken out of `points`. With `clock` damage that isn't `known` is written
    down.
    """
    index = DamageIndex()
    found = list(found)
    await _forget_removed(vault, points, again)
    for bad in found:
        if bad.hurts:
            index.add(bad.kind, bad.ref, bad.slots)
    hurt: dict[ObjectRef, dict[str, int]] = {}
    lost: Counter[str] = Counter()
    losses = Losses(vault, index)
    for key, point in list(points.items()):
        try:
            of_point = await again.at(functools.partial(losses.of, point.root))
        except (Damaged, ObjectMissing):
            if not await _removed(vault, key, again):
                raise
            del points[key]
            continue
        for ref, chunks in of_point.items():
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


async def _forget_removed(vault: Vault, points: dict[str, Known], again: SecondLook) -> None:
    """Leave out points that were removed while verify ran: maintenance may have swept what only they needed."""
    for key in list(points):
        if await _removed(vault, key, again):
            del points[key]


async def _removed(vault: Vault, key: str, again: SecondLook) -> bool:
    try:
        await again.at(functools.partial(open_manifest, vault, key))
    except (ManifestMissing, PointCancelled):
        return True
    except (Damaged, UnsupportedFormat):
        return False
    return False


def _known(index: DamageIndex, bad: Bad) -> bool:
    table = index.packs if bad.kind == "pack" else index.maps
    if bad.ref not in table:
        return False
    slots = table[bad.ref]
    return slots is None or (bool(bad.slots) and bad.slots <= slots)


class Losses:
    """How many chunks maps lose to damage. A page that several points share is looked at once."""

    def __init__(self, vault: Vault, damage: DamageIndex) -> None:
        self._vault, self._damage = vault, damage
        self._pages: dict[tuple[bytes, int], Counter[ObjectRef]] = {}
        """By the digest of an inner page, and how many chunks it covers: the last page of a map covers fewer."""
        self._leaves: dict[bytes, tuple[tuple[int, ObjectRef], ...]] = {}
        """Damaged chunks in leaves, by their digest; most have none."""

    async def of(self, root: MapRoot) -> Counter[ObjectRef]:
        """Return the chunks lost to each damaged object; a damaged page counts for all that it covers."""
        reader = MapReader(self._vault, root)
        top = reader.top()
        return Counter() if top is None else await self._page(reader, root.levels, top, 0)

    async def _page(self, reader: MapReader, level: int, ref: Ref, first: int) -> Counter[ObjectRef]:
        covered = min(LEAF_CHUNKS * FAN_OUT**level, reader.root.chunk_count - first)
        if self._damage.touches_page(ref.object, ref.slot):
            return Counter({ref.object: covered})
        known = self._pages.get((ref.digest, covered))
        if known is not None:
            return known
        (page,) = await reader.inner(level, [ref])
        lost: Counter[ObjectRef] = Counter()
        below = list(page.numbers())
        for start in range(0, len(below), BATCH_PAGES):
            some = below[start : start + BATCH_PAGES]
            if level == 1:
                await self._leaf_losses(reader, page, some, first, lost)
                continue
            children = {number: child for number in some if (child := page.child(number)) is not None}
            sound = [child for child in children.values() if not self._damage.touches_page(child.object, child.slot)]
            await reader.inner(level - 1, sound)
            for number, child in children.items():
                at = first + number * LEAF_CHUNKS * FAN_OUT ** (level - 1)
                lost.update(await self._page(reader, level - 1, child, at))
        if len(self._pages) >= REMEMBERED:
            self._pages.clear()
        self._pages[ref.digest, covered] = lost
        return lost

    async def _leaf_losses(
        self, reader: MapReader, page: Inner, numbers: list[int], first: int, lost: Counter[ObjectRef]
    ) -> None:
        """Count what some leaves of a level-1 page lose: in its overlay, and in leaves as far as they show through."""
        children = {number: page.child(number) for number in numbers}
        self._leaves.update(await self._damaged_in(reader, [ref for ref in children.values() if ref]))
        for number, ref in children.items():
            overlay = dict(page.overlay(number))
            lost.update(entry.pack for entry in overlay.values() if entry is not None and self._damage.touches(entry))
            if ref is None:
                continue
            if self._damage.touches_page(ref.object, ref.slot):
                left = min(LEAF_CHUNKS, reader.root.chunk_count - first - number * LEAF_CHUNKS)
                lost[ref.object] += left - len(overlay)
            else:
                lost.update(pack for at, pack in self._leaves[ref.digest] if at not in overlay)

    async def _damaged_in(self, reader: MapReader, refs: list[Ref]) -> dict[bytes, tuple[tuple[int, ObjectRef], ...]]:
        """Return the damaged chunks of leaves that weren't looked at yet, by digest."""
        if len(self._leaves) >= REMEMBERED:
            self._leaves.clear()
        fresh = [ref for ref in refs if not self._damage.touches_page(ref.object, ref.slot)]
        fresh = [ref for ref in fresh if ref.digest not in self._leaves]
        found = {}
        for ref, leaf in (await reader.leaves(fresh)).items():
            touched = any(pack in self._damage.packs for pack in leaf.packs)
            entries = leaf.chunks() if touched else ()
            found[ref.digest] = tuple((at, entry.pack) for at, entry in entries if self._damage.touches(entry))
        return found
