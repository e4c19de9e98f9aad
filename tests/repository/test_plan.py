"""A plan as it is stored."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import msgspec
import pytest

from orchestrator.extents import ChunkSet
from orchestrator.repository import plan as plans
from orchestrator.repository.plan import open_plan, put_plan
from tests.blocks.volumes import CHUNK, KIB, Volume, announce, vault_at

TERABYTE = 1 << 40


async def test_a_plan_of_a_huge_volume_is_sealed_and_opened_beside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """32 MiB of bits: on the loop every other volume's timers would wait for them."""
    vault = await vault_at(tmp_path / "repository")
    small = Volume(tmp_path / "volume", CHUNK)
    made = await open_plan(vault, await announce(vault, small.path, None))
    record = msgspec.structs.replace(made.record, volume_size=16 * TERABYTE, chunk_size=64 * KIB)
    chunks = ChunkSet(record.volume_size, record.chunk_size)
    chunks.add_chunks(0, chunks.chunk_count)
    huge, intent_id = msgspec.structs.replace(made, record=record, bits=chunks.to_bytes()), str(uuid.uuid4())
    on_the_loop: list[str] = []

    def watched(name: str) -> None:
        inner = getattr(plans, name)

        def call(*args: object) -> object:
            try:
                asyncio.get_running_loop()
                on_the_loop.append(name)
            except RuntimeError:
                pass  # no loop in this thread
            return inner(*args)

        monkeypatch.setattr(plans, name, call)

    watched("seal_record")
    watched("open_record")
    # when it is stored and read
    await put_plan(vault, intent_id, huge)
    again = await open_plan(vault, intent_id)
    # then that was done elsewhere, and nothing is missing
    assert on_the_loop == []
    assert again == huge
    assert again.chunks().total_bytes == 16 * TERABYTE
