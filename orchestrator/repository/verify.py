"""Prove what is stored: that every point's manifest, map and packs are there and are what their writers sealed.

Findings name the points that they hurt, and are written down so that the next backup reads those chunks again. What
must never happen here: a damaged chunk passed over, or a store that didn't answer taken for damage.
"""

from __future__ import annotations

import asyncio
import struct
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from orchestrator.clock import Clock, SystemClock
from orchestrator.repository.blame import Bad, Finding, HurtPoint, Known, blame, hurt_points
from orchestrator.repository.damage import load_damage
from orchestrator.repository.errors import Damaged, ManifestMissing, ObjectMissing, PointCancelled, UnsupportedFormat
from orchestrator.repository.layout import CHUNK_SIZES, SLOT_UNIT, Kind, ObjectRef
from orchestrator.repository.manifest import list_points, open_manifest
from orchestrator.repository.mapobject import TARGET
from orchestrator.repository.marking import Marking
from orchestrator.repository.pack import CODEC_SHIFT, LENGTH_MASK, Entry
from orchestrator.repository.packcheck import WHOLE_LIMIT, Pace, PackCheck, PackChecker, Sample
from orchestrator.repository.page import Inner, Leaf, Ref
from orchestrator.repository.papers import damaged_papers
from orchestrator.repository.parallel import Window, in_order
from orchestrator.repository.partitions import COUNT, Partitions
from orchestrator.repository.secondlook import SecondLook
from orchestrator.repository.vault import Vault

WINDOW = Window(calls=8, weight=112 * 1024 * 1024)
"""Packs that are looked at at once: two of the usual size, or more of smaller ones."""
SLICE_BYTES = 12 * 1024 * 1024
"""Of records that are sorted in memory at once; as objects they take some five times as much."""
Depth = Literal["quick", "full"] | float
_CHUNK = struct.Struct("<32sII32s")
_LISTED = struct.Struct("<32sQ")
_SPAN = struct.Struct("<32sII")
"""Map object, slot and sealed length of a page."""


class _Looked(NamedTuple):
    """What came of one object."""

    kind: Literal["pack", "map"]
    ref: ObjectRef
    found: PackCheck
    hurts: bool


Call = tuple[int, Callable[[], Coroutine[Any, Any, _Looked]]]


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What verify saw."""

    ok: bool
    points: int = 0
    pages: int = 0
    chunks: int = 0
    """Chunks read and checked."""
    bytes_read: int = 0
    """Bytes of packs read."""
    findings: tuple[Finding, ...] = ()
    hurt: tuple[HurtPoint, ...] = ()
    """The points that the findings hurt, by volume."""
    read_again: tuple[str, ...] = ()
    """Objects that opened at the second reading only, at most a thousand: something between here and there is ill."""
    digests: dict[str, str] = {}
    """Of each manifest that opened: name -> digest. Kept elsewhere, it shows a rolled-back repository later."""


async def verify(
    vault: Vault,
    *,
    depth: Depth = "quick",
    turn: int | None = None,
    points: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    record: bool = True,
    clock: Clock | None = None,
    pace: Pace | None = None,
    window: Window = WINDOW,
) -> VerifyReport:
    """Check points (all, or manifest name -> expected digest or ""), and write down what is damaged.

    `depth`: quick = manifests, every map page, presence and size of packs; a share between 0 and 1 = also that share
    of the chunks, taken at random or, with `turn`, so that turns one after the other take each chunk once in 1/share
    runs; full = every byte, and the documents of writers and of maintenance. Chunks on record as damaged are read at
    every depth: what isn't found again has healed. `progress` gets packs done and in all; `pace` limits how fast packs
    are read, `window` how much of them at once. Findings come in an order of their own, whichever pack answers first.
    Memory stays bounded, cancelling stops in bounded time. Raises the store's Retryable errors.
    """
    share = {"quick": 0.0, "full": 1.0}.get(depth, 0.0) if isinstance(depth, str) else float(depth)
    if not 0 <= share <= 1:
        raise ValueError(f"a depth of {share} isn't between 0 and 1")
    again = SecondLook()
    known = await load_damage(vault, again)
    with tempfile.TemporaryDirectory(prefix="tidemark-verify-") as name:
        run = _Verification(vault, Path(name), Sample(share, turn, known), progress, pace, again)
        await run.roots(points)
        await run.pages()
        await run.packs(window)
    findings, lost = list(run.findings), Counter[str]()
    if share >= 1 and points is None:
        findings += [Finding(key=name, what=what) async for name, what in damaged_papers(vault, again)]
    if run.bad:
        clock = (clock or SystemClock()) if record else None
        blamed, lost = await blame(vault, run.bad, run.points, known, clock, again)
        findings.extend(blamed)
    return VerifyReport(
        ok=not findings,
        points=len(run.points),
        pages=run.marking.pages,
        chunks=run.chunks,
        bytes_read=run.bytes_read,
        findings=tuple(findings),
        hurt=tuple(hurt_points(findings, lost, run.points)),
        read_again=again.names,
        digests={key: point.digest for key, point in run.points.items()},
    )


class _Verification:
    """One run's state: what was found, and the files that keep memory bounded."""

    def __init__(
        self,
        vault: Vault,
        folder: Path,
        sample: Sample,
        progress: Callable[[int, int], None] | None,
        pace: Pace | None,
        again: SecondLook,
    ) -> None:
        self._vault, self._sample, self._progress, self._again = vault, sample, progress, again
        self._checker = PackChecker(vault, sample, max(CHUNK_SIZES), pace, again)
        self.marking = Marking(vault, folder, again)
        self._uses = Partitions(folder, "uses", _CHUNK.size, 16)
        self._listed = Partitions(folder, "sizes", _LISTED.size, 16)
        self._spans = Partitions(folder, "spans", _SPAN.size, 16)
        self.points: dict[str, Known] = {}
        self.findings: list[Finding] = []
        self.bad: list[Bad] = []
        self.chunks = self.bytes_read = 0
        self._done = self._total = 0

    async def roots(self, points: Mapping[str, str] | None) -> None:
        """Open manifests; one that is missing, altered or of another digest is a finding."""
        wanted = {key: "" async for key in list_points(self._vault)} if points is None else dict(points)
        for key, expected in wanted.items():
            try:
                manifest, ref = await self._again.at(partial(open_manifest, self._vault, key, digest=expected or None))
                self.marking.add_root(manifest.root)
            except (PointCancelled, ManifestMissing) as error:
                if points is not None:
                    self.findings.append(Finding(key=key, what=str(error), points=(key,)))
                continue
            except (Damaged, UnsupportedFormat, ValueError) as error:
                what = str(error) if isinstance(error, ValueError) else error.what
                self.findings.append(Finding(key=key, what=what, points=(key,)))
                continue
            record = manifest.record
            self.points[key] = Known(
                manifest.root, ref.digest, record.pvc_name, record.point_name, record.snapshot_time
            )

    async def pages(self) -> None:
        """Read every page once, then list packs: one that a point names was there before its manifest was."""
        prefix = self._vault.names.packs
        await self.marking.run(on_leaf=self._leaf, on_inner=self._inner, on_error=self._page_failed)
        async for info in self._vault.store.list(prefix):
            intent_id, _, random = info.key.removeprefix(prefix).partition("/")
            try:
                ref = ObjectRef.named(intent_id, random)
            except ValueError:
                continue
            self._total += 1
            self._listed.add(_LISTED.pack(ref.to_bytes(), info.size))

    def _leaf(self, ref: Ref, leaf: Leaf) -> None:
        self._spans.add(_SPAN.pack(ref.object.to_bytes(), ref.slot, ref.length))
        for _index, entry in leaf.chunks():
            self._use(entry)

    def _inner(self, ref: Ref, page: Inner) -> None:
        self._spans.add(_SPAN.pack(ref.object.to_bytes(), ref.slot, ref.length))
        for number in page.numbers() if page.level == 1 else ():
            for _index, entry in page.overlay(number):
                if entry is not None:
                    self._use(entry)

    def _use(self, entry: Entry) -> None:
        packed = entry.length | entry.codec << CODEC_SHIFT
        self._uses.add(_CHUNK.pack(entry.pack.to_bytes(), entry.slot, packed, entry.id))

    def _page_failed(self, ref: Ref, level: int, error: Exception) -> None:
        what = error.what if isinstance(error, Damaged) else "it is missing"
        self._note("map", ref.object, what, {ref.slot})

    def _note(
        self, kind: Literal["pack", "map"], ref: ObjectRef, what: str, slots: set[int], hurts: bool = True
    ) -> None:
        for known in self.bad:
            if (known.kind, known.ref, known.what) == (kind, ref, what) and known.slots and slots:
                known.slots |= slots
                return
        self.bad.append(Bad(kind, ref, what, slots, hurts))

    async def packs(self, window: Window) -> None:
        """Check every pack that a page names; `full` reads map objects as a whole too."""
        await in_order(self._calls(), window, self._take)
        await in_order(self._targets(), window, self._take)

    async def _calls(self) -> AsyncGenerator[Call, None]:
        for number in range(COUNT):
            sizes: dict[bytes, int] = dict(map(_LISTED.unpack, self._listed.records(number)))
            for records in self._uses.slices(number, SLICE_BYTES):
                for ref, entries in _by_pack(await asyncio.to_thread(_distinct, records)):
                    size = sizes.get(ref.to_bytes())
                    yield self._checker.weight(size), partial(self._pack, ref, entries, size)
            if self._sample.share >= 1:
                for records in self._spans.slices(number, SLICE_BYTES):
                    for raw, spans in groupby(await asyncio.to_thread(_distinct, records), key=_object):
                        places = [_SPAN.unpack(record)[1:] for record in spans]
                        yield TARGET, partial(self._map_rest, ObjectRef.parse(raw), places)

    async def _targets(self) -> AsyncGenerator[Call, None]:
        for ref in sorted(self._checker.targets):
            yield WHOLE_LIMIT, partial(self._target, ref)

    async def _pack(self, ref: ObjectRef, entries: Sequence[Entry], size: int | None) -> _Looked:
        checked = await self._checker.check(ref, entries, size)
        return _Looked("pack", ref, checked, bool(checked.slots) or checked.whole)

    async def _target(self, ref: ObjectRef) -> _Looked:
        return _Looked("pack", ref, await self._checker.check_target(ref), hurts=False)

    def _take(self, looked: _Looked) -> None:
        """Note what came of one object; called in an order that doesn't hang on which of them was faster."""
        found = looked.found
        if looked.kind == "pack":
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, max(self._done, self._total))
        self.chunks += found.chunks
        self.bytes_read += found.bytes_read
        if found.what:
            self._note(looked.kind, looked.ref, found.what, set(found.slots), looked.hurts)

    async def _map_rest(self, ref: ObjectRef, spans: Sequence[tuple[int, int]]) -> _Looked:
        """Check what readers don't need of a map object, its header and what fills up its pages' last slots.

        `spans`: slot and sealed length of its pages. Altered, it is damage all the same.
        """
        what = ""
        try:
            await self._again.at(partial(self._open_rest, ref, spans))
        except ObjectMissing:
            pass  # its pages were read a moment ago: the points that needed it were removed since
        except (Damaged, UnsupportedFormat) as error:
            what = error.what
        return _Looked("map", ref, PackCheck(what), hurts=False)

    async def _open_rest(self, ref: ObjectRef, spans: Sequence[tuple[int, int]]) -> None:
        name = self._vault.names.map(ref)
        data = await self._vault.store.get(name)
        if self._vault.cipher(Kind.MAP, name, data).header[16:32] != ref.random:
            raise Damaged(name, "its id isn't the one in its name")
        for slot, length in spans:
            end = slot * SLOT_UNIT + length
            if any(data[end : end + -length % SLOT_UNIT]):
                raise Damaged(name, f"there is something between the page at slot {slot} and the next")


def _object(record: bytes) -> bytes:
    return record[:32]


def _distinct(records: Iterable[bytes]) -> list[bytes]:
    return sorted(set(records))


def _by_pack(records: Iterable[bytes]) -> Iterator[tuple[ObjectRef, list[Entry]]]:
    """Yield distinct chunks, sorted, pack by pack, by slot."""
    pack, entries = b"", list[Entry]()
    for record in records:
        raw, slot, packed, chunk_id = _CHUNK.unpack(record)
        if raw != pack and entries:
            yield ObjectRef.parse(pack), entries
            entries = []
        pack = raw
        entries.append(Entry(chunk_id, ObjectRef.parse(raw), slot, packed & LENGTH_MASK, packed >> CODEC_SHIFT))
    if entries:
        yield ObjectRef.parse(pack), entries
