"""What a compaction moved, before it is told to readers: put under its intent, made valid by one commit object.

`compacted/<intent>` is taken once: by the commit, or by a cancelled record that ends an old intent, so a compaction
that was stopped for a week can't point readers at packs that were swept. Once committed, anybody may *settle* it: put
the relocation records that it promised. What must never happen here: a relocation record before the commit.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from orchestrator.fence import Fence
from orchestrator.repository.errors import Damaged, ObjectConflict, PointCancelled
from orchestrator.repository.layout import Kind, ObjectRef
from orchestrator.repository.manifest import Cancelled
from orchestrator.repository.parallel import in_parallel
from orchestrator.repository.record import kind_of, open_record, seal_record
from orchestrator.repository.relocation import Moves, decode_moves, encode_moves, seal_relocation
from orchestrator.repository.vault import Vault

AT_ONCE = 8


class Compacted(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The commit of a compaction."""

    created: datetime
    packs: int
    """How many packs it tells the way to."""


class _Pack(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    pack: str
    generation: int
    targets: tuple[str, ...]
    bytes: int
    """Of the tail that are this pack's."""


class _MovesDocument(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    packs: tuple[_Pack, ...]


class Promise(msgspec.Struct, frozen=True):
    """One relocation record to come."""

    pack: ObjectRef
    generation: int
    moves: Moves

    @property
    def targets(self) -> set[ObjectRef]:
        """Return the packs it points to."""
        return {target for target, _ in self.moves.values()}


async def put_moves(vault: Vault, intent_id: str, promises: list[Promise]) -> None:
    """Write down what the compaction is going to say."""
    packs, tails = [], []
    for promise in promises:
        targets, tail = encode_moves(promise.moves)
        tails.append(tail)
        packs.append(
            _Pack(pack=promise.pack.to_bytes().hex(), generation=promise.generation, targets=targets, bytes=len(tail))
        )
    name = vault.names.moves(intent_id)
    document = _MovesDocument(packs=tuple(packs))
    await vault.store.put_new(name, seal_record(vault, Kind.MOVES, name, document, b"".join(tails)))


async def open_moves(vault: Vault, intent_id: str) -> list[Promise]:
    """Read it; ObjectMissing (settled and tidied), Damaged."""
    name = vault.names.moves(intent_id)
    document, tail = open_record(vault, Kind.MOVES, name, await vault.store.get(name), _MovesDocument)
    promises, at = [], 0
    for pack in document.packs:
        _, moves = decode_moves(name, pack.targets, tail[at : at + pack.bytes])
        try:
            promises.append(Promise(ObjectRef.parse(bytes.fromhex(pack.pack)), pack.generation, moves))
        except ValueError as error:
            raise Damaged(name, "it names no pack") from error
        at += pack.bytes
    return promises


async def commit_compaction(vault: Vault, intent_id: str, *, packs: int, now: datetime) -> bool:
    """Make the moves valid; False when the compaction was cancelled meanwhile."""
    name = vault.names.compaction(intent_id)
    record = Compacted(created=now, packs=packs)
    try:
        await vault.store.put_new(name, seal_record(vault, Kind.COMPACTED, name, record))
    except ObjectConflict:
        try:
            return await open_compaction(vault, name)
        except PointCancelled:
            return False
    return True


async def open_compaction(vault: Vault, name: str) -> bool:
    """Read a commit: True. Raises PointCancelled when it was cancelled, ObjectMissing, Damaged."""
    data = await vault.store.get(name)
    if kind_of(name, data) == Kind.CANCELLED:
        open_record(vault, Kind.CANCELLED, name, data, Cancelled)
        raise PointCancelled(name)
    open_record(vault, Kind.COMPACTED, name, data, Compacted)
    return True


async def settle(vault: Vault, intent_id: str, promises: list[Promise], fence: Fence) -> None:
    """Put the relocation records of a committed compaction, then take its moves away; idempotent, by anyone.

    A record of that generation that is there already counts: another compaction moved the same pack first, and what
    this one copied is swept.
    """

    async def one(promise: Promise) -> None:
        try:
            await vault.store.put_new(*seal_relocation(vault, promise.pack, promise.moves, promise.generation))
        except ObjectConflict:
            return

    for start in range(0, len(promises), AT_ONCE):
        fence.check()
        await in_parallel([one(promise) for promise in promises[start : start + AT_ONCE]])
    fence.check()
    await vault.store.delete(vault.names.moves(intent_id))
