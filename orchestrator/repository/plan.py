"""The copy plan under an intent: which chunks a mover reads, and everything the manifest will say.

Written once by the controller, read by every mover of the point: the inputs of a commit are the same for all.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

import msgspec

from orchestrator.errors import Terminal
from orchestrator.extents import ChunkSet
from orchestrator.repository.errors import Damaged, ObjectConflict
from orchestrator.repository.layout import LEAF_CHUNKS, MAX_VOLUME, Kind
from orchestrator.repository.manifest import Mode, PointRecord, PointRef
from orchestrator.repository.record import open_record, seal_record
from orchestrator.repository.vault import Vault


class VolumeTooLarge(Terminal):
    """A volume of a size that the format doesn't take."""

    reason: ClassVar[str] = "VolumeTooLarge"
    remedy: ClassVar[str] = "Volumes of up to 1 PiB can be backed up; is this really the size of what is in it?"

    def __init__(self, size: int) -> None:
        super().__init__(f"The volume has {size} bytes")


class _PlanDocument(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    record: PointRecord
    base: PointRef | None = None
    compare: PointRef | None = None
    mode: Mode
    shards: int = 1


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to read and how to go on. `bits`: one for each chunk of `record.volume_size`, zeros at the end left out."""

    record: PointRecord
    base: PointRef | None = None
    compare: PointRef | None = None
    mode: Mode
    bits: bytes
    shards: int = 1

    def chunks(self) -> ChunkSet:
        """Return the chunks to read."""
        return ChunkSet(self.record.volume_size, self.record.chunk_size, self.bits)


def shard_range(chunk_count: int, shards: int, number: int) -> tuple[int, int]:
    """Return (first, stop) chunk index of a shard: cut at leaf borders, the last ends with the volume."""
    if not 0 <= number < shards:
        raise ValueError(f"shard {number} of {shards}")
    leaves = -(-chunk_count // LEAF_CHUNKS)
    first = leaves * number // shards * LEAF_CHUNKS
    stop = leaves * (number + 1) // shards * LEAF_CHUNKS
    return min(first, chunk_count), min(stop, chunk_count)


async def put_plan(vault: Vault, intent_id: str, plan: Plan) -> Plan:
    """Write a plan under its intent and return what is stored: one that is there already counts."""
    if plan.record.volume_size > MAX_VOLUME:
        raise VolumeTooLarge(plan.record.volume_size)
    name = vault.names.plan(intent_id)
    document = _PlanDocument(
        record=plan.record, base=plan.base, compare=plan.compare, mode=plan.mode, shards=plan.shards
    )

    def sealed() -> bytes:  # beside the event loop: a volume of 16 TiB in chunks of 64 KiB has 32 MiB of bits
        plan.chunks()
        return seal_record(vault, Kind.PLAN, name, document, plan.bits)

    try:
        await vault.store.put_new(name, await asyncio.to_thread(sealed))
    except ObjectConflict:
        return await open_plan(vault, intent_id)
    return plan


async def open_plan(vault: Vault, intent_id: str) -> Plan:
    """Read an intent's plan; ObjectMissing, Damaged."""
    name = vault.names.plan(intent_id)
    stored = await vault.store.get(name)

    def opened() -> Plan:
        document, bits = open_record(vault, Kind.PLAN, name, stored, _PlanDocument)
        plan = Plan(
            record=document.record,
            base=document.base,
            compare=document.compare,
            mode=document.mode,
            bits=bits,
            shards=document.shards,
        )
        try:
            plan.chunks()
        except ValueError as error:
            raise Damaged(name, "its bits don't fit its volume") from error
        return plan

    return await asyncio.to_thread(opened)
