"""What is there, in the order that makes sweeping safe: packs and map objects, then manifests, then intents.

A writer puts its intent first and looks at its base after; so either this sees the intent, or that writer sees that
its base is gone. What must never happen here: another order, or an unreadable document taken for an absent one.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from orchestrator.repository.errors import Damaged, ManifestMissing, ObjectMissing, PointCancelled, UnsupportedFormat
from orchestrator.repository.intent import Intent, open_intent
from orchestrator.repository.layout import ObjectRef, intent_bytes
from orchestrator.repository.liveness import LiveChunks
from orchestrator.repository.manifest import MapRoot, PointRef, manifest_key, open_manifest
from orchestrator.repository.marking import Marking
from orchestrator.repository.moves import open_compaction, open_moves
from orchestrator.repository.page import Ref
from orchestrator.repository.parallel import in_parallel
from orchestrator.repository.partitions import Partitions
from orchestrator.repository.plan import open_plan
from orchestrator.repository.relocation import parse_relocation
from orchestrator.repository.store import ObjectInfo
from orchestrator.repository.vault import Vault

OBJECT = struct.Struct("<B32sQ")
"""0 pack, 1 map object or 2 relocation record (of the pack named), reference, bytes."""
PACK, MAP, RELOCATION = 0, 1, 2
READERS = 8
RELOCATED = struct.Struct("<32sIQ")
"""Old pack, generation, seconds since 1970."""


class Expired(msgspec.Struct, frozen=True):
    """An intent older than its age limit, to be ended by a cancelled record on its manifest's name."""

    intent_id: str
    manifest_key: str


class Census:
    """One look at a namespace."""

    def __init__(self, vault: Vault, folder: Path) -> None:
        self.vault = vault
        self.listed = Partitions(folder, "listed", OBJECT.size, 17)
        self.marking = Marking(vault, folder)
        self.chunks = LiveChunks(folder, "chunks")
        self.relocated = Partitions(folder, "relocated", RELOCATED.size, 16)
        self.compacted: set[str] = set()
        """Intents of compactions that were committed."""
        self.unsettled: list[str] = []
        """Those whose relocation records may not be there yet."""
        self.promised = Partitions(folder, "promised", 32, 16)
        """Packs that those records are going to point to."""
        self.compactions: dict[str, list[ObjectInfo]] = {}
        """Objects under intents of compactions that were committed."""
        self.with_objects: set[bytes] = set()
        """Intents that have packs or map objects."""
        self.points = 0
        self.cancelled: set[str] = set()
        """Ids of points whose manifest's name holds a cancelled record."""
        self.committed: set[str] = set()
        self.removing: dict[str, str] = {}
        """Points whose removal has begun, or was cut off: id -> manifest's name. Their intents are live."""
        self._leaving: set[str] = set()
        """Points that were removed while manifests were opened."""
        self.roots: set[str] = set()
        """Digests of the map roots of which nothing may be missing: of points, and those that live intents name."""
        self.overdue: list[MapRoot] = []
        """Those that expired intents name: what can't be read of them may be mended by ending these intents."""
        self._doomed: list[MapRoot] = []
        """Roots of which a part may be missing, and harms nobody: of points whose removal was begun and whose manifests
        are still there, and what an intent names that was put after its points were removed (its writer is told
        BaseGone). What of them is there stays, or else it would go later without the grace time for readers."""
        self.live: set[bytes] = set()
        """Intents (16 bytes) that may still commit."""
        self.expired: list[Expired] = []
        self.blind = False
        """An intent that may still commit, or what it builds on, can't be read: nothing may be deleted till it ends."""
        self.abandoned: list[str] = []
        """Names under intents that a person ended and whose manifest's name nothing tells."""
        self.folders: dict[str, list[ObjectInfo]] = {}
        """Objects under intents that aren't live."""
        self.strangers = 0

    async def take(self, *, now: datetime, intent_age: timedelta, end: Collection[str] = ()) -> None:
        """List, and read what says what is alive; intents `end` count as expired. `mark` comes next.

        Raises Damaged, UnsupportedFormat and ObjectMissing when something can't be read: others may have deleted it
        since it was listed, or a fault has.
        """
        await self._objects()
        await self._removals()
        await self._manifests()
        await self._compactions()
        await self._intents(now - intent_age, end)
        await self._relocations()

    async def mark(self, *, apart: bool = False) -> None:
        """Read all that the roots reach; Damaged, ObjectMissing.

        `apart`: what can't be read of that which expired intents build on raises nothing, but makes this look blind.
        """
        leaf, inner = self.chunks.leaf, self.chunks.inner
        if not apart:
            self._start_from(self.overdue, "an intent")
        await self.marking.run(on_leaf=leaf, on_inner=inner)
        if apart:
            try:
                self._start_from(self.overdue, "an intent")
            except Damaged:
                self.blind = True
            await self.marking.run(on_leaf=leaf, on_inner=inner, on_error=self._lose)
        self._start_from(self._doomed, "a point that is being removed")
        await self.marking.run(on_leaf=leaf, on_inner=inner, on_error=_passed_over)

    def _lose(self, _ref: Ref, _level: int, _error: Exception) -> None:
        self.blind = True

    async def _objects(self) -> None:
        for kind, prefix in ((PACK, self.vault.names.packs), (MAP, self.vault.names.maps)):
            async for info in self.vault.store.list(prefix):
                try:
                    intent_id, random = info.key.removeprefix(prefix).split("/")
                    ref = ObjectRef.named(intent_id, random)
                except ValueError:
                    self.strangers += 1
                    continue
                self.with_objects.add(ref.intent)
                self.listed.add(OBJECT.pack(kind, ref.to_bytes(), info.size))

    async def _removals(self) -> None:
        async for info in self.vault.store.list(self.vault.names.removing):
            key = self.vault.names.points + info.key.removeprefix(self.vault.names.removing)
            self.removing[point_of(key)] = key

    async def _manifests(self) -> None:
        batch: list[str] = []
        async for info in self.vault.store.list(self.vault.names.points):
            batch.append(info.key)
            if len(batch) == 256:
                await self._open(batch)
                batch = []
        await self._open(batch)

    async def _open(self, keys: list[str]) -> None:
        limit = asyncio.Semaphore(READERS)

        async def one(key: str) -> None:
            point_id = point_of(key)
            if point_id in self.removing:
                async with limit:
                    # A writer that begins now may still build on it, and a reader may have begun.
                    with contextlib.suppress(Damaged, ManifestMissing, PointCancelled, UnsupportedFormat):
                        self._doomed.append((await open_manifest(self.vault, key))[0].root)
                return
            async with limit:
                try:
                    manifest, _ = await open_manifest(self.vault, key)
                except PointCancelled:
                    self.cancelled.add(point_id)
                    return
                except ManifestMissing:
                    # Removed since it was listed.
                    self._leaving.add(point_id)
                    return
            self.committed.add(point_id)
            self.points += 1
            self._need(manifest.root)
            self._start_from([manifest.root], key)

        await in_parallel([one(key) for key in keys])

    async def _intents(self, limit: datetime, end: Collection[str]) -> None:
        async for info in self.vault.store.list(self.vault.names.intents):
            intent_id, _, rest = info.key.removeprefix(self.vault.names.intents).partition("/")
            try:
                raw = intent_bytes(intent_id)
            except ValueError:
                self.strangers += 1
                continue
            if intent_id in self.compacted:
                await self._of_compaction(intent_id, info)
            elif intent_id in self.cancelled or intent_id in self.committed:
                self.folders.setdefault(intent_id, []).append(info)
            elif rest == "intent" and (intent_id in self.removing or intent_id in self._leaving):
                # What it was built on may be swept for long, and whatever it commits is removed again.
                self.live.add(raw)
            elif rest == "intent":
                await self._live(intent_id, raw, info, over=info.last_modified < limit or intent_id in end, end=end)

    async def _live(self, intent_id: str, raw: bytes, info: ObjectInfo, *, over: bool, end: Collection[str]) -> None:
        try:
            intent: Intent = await open_intent(self.vault, intent_id)
        except (Damaged, UnsupportedFormat) as error:
            if not over:
                raise
            await self._unreadable(intent_id, raw, error, by_hand=intent_id in end)
            return
        self.live.add(raw)
        points = intent.points
        for position, root in enumerate(intent.roots):
            if position < len(points) and await self._put_too_late(info, points[position]):
                self._doomed.append(root)
                continue
            self._need(root)
            if over:
                self.overdue.append(root)
            else:
                self._start_from([root], info.key)
        if over:
            self.expired.append(Expired(intent_id, intent.manifest_key))

    async def _put_too_late(self, intent: ObjectInfo, ref: PointRef) -> bool:
        """Say whether an intent was put when a point that it names had been removed before, by the store's clock."""
        if point_of(ref.key) not in self.cancelled:
            return False
        told = await self.vault.store.head(ref.key)
        return told is not None and told.last_modified < intent.last_modified

    def _need(self, root: MapRoot) -> None:
        if root.page is not None:
            self.roots.add(root.page.digest)

    def _start_from(self, roots: Iterable[MapRoot], name: str) -> None:
        for root in roots:
            try:
                self.marking.add_root(root)
            except ValueError as error:
                raise Damaged(name, str(error)) from error

    async def _unreadable(
        self, intent_id: str, raw: bytes, error: Damaged | UnsupportedFormat, *, by_hand: bool
    ) -> None:
        """End an intent that can't be read: its plan tells where it would commit.

        What it builds on is known to nobody, so nothing is deleted before it is ended. Without a plan only a person
        can say that nobody is about to commit it: no program can begin to, since it would have to read both.
        """
        try:
            plan = await open_plan(self.vault, intent_id)
        except (Damaged, ObjectMissing, UnsupportedFormat):
            if not by_hand:
                raise error from None
            folder = f"{self.vault.names.intents}{intent_id}/"
            keys = [info.key async for info in self.vault.store.list(folder)]
            own = self.vault.names.intent(intent_id)
            self.abandoned += [*(key for key in keys if key != own), own]
            # Should it be a compaction's: that one can't commit after this.
            self.expired.append(Expired(intent_id, self.vault.names.compaction(intent_id)))
            return
        self.live.add(raw)
        self.blind = True
        self.expired.append(Expired(intent_id, manifest_key(self.vault, plan.record)))

    async def _compactions(self) -> None:
        """List the commits of compactions before their intents: who committed in between shows as live."""
        async for info in self.vault.store.list(self.vault.names.compacted):
            intent_id = info.key.removeprefix(self.vault.names.compacted)
            try:
                await open_compaction(self.vault, info.key)
            except PointCancelled:
                self.cancelled.add(intent_id)
            except ObjectMissing:
                continue
            else:
                self.compacted.add(intent_id)

    async def _of_compaction(self, intent_id: str, info: ObjectInfo) -> None:
        """Keep what a committed compaction is going to point to, until its relocation records say it."""
        if info.key != self.vault.names.moves(intent_id):
            self.compactions.setdefault(intent_id, []).append(info)
            return
        try:
            promises = await open_moves(self.vault, intent_id)
        except ObjectMissing:
            # Settled since it was listed: the records, listed later, are all there.
            return
        self.unsettled.append(intent_id)
        for target in {target for promise in promises for target in promise.targets}:
            self.promised.add(target.to_bytes())

    async def _relocations(self) -> None:
        """List where compacted packs went. After the intents: what was settled meanwhile is here then."""
        async for info in self.vault.store.list(self.vault.names.relocated):
            try:
                pack, generation = parse_relocation(self.vault, info.key)
            except ValueError:
                self.strangers += 1
                continue
            self.relocated.add(RELOCATED.pack(pack.to_bytes(), generation, int(info.last_modified.timestamp())))
            self.listed.add(OBJECT.pack(RELOCATION, pack.to_bytes(), info.size))


def _passed_over(_ref: Ref, _level: int, _error: Exception) -> None:
    """Leave a page that nobody needs."""


def point_of(key: str) -> str:
    """Return the point's id from its manifest's name."""
    return key.rpartition("/")[2].partition("-")[2]
