"""Packs: many threads, bounded memory, nothing of an earlier pack left in reused memory."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from orchestrator.repository.compression import compress
from orchestrator.repository.crypto import ObjectCipher
from orchestrator.repository.errors import Damaged, StoreUnavailable
from orchestrator.repository.pack import Entry, PackBuilder, Packed, open_footer, read_footer
from orchestrator.repository.packreader import PackReader
from orchestrator.repository.packwriter import PackWriter
from orchestrator.repository.salvage import salvage
from orchestrator.repository.store import CountingStore
from orchestrator.repository.vault import Vault
from tests.repository.faults import Fault, FaultyStore

pytestmark = pytest.mark.quick
INTENT = str(uuid.UUID(int=9))
SIZE = 4096


def _chunk(index: int) -> bytes:
    rng = random.Random(index)
    return rng.randbytes(rng.randrange(1, SIZE)) if index % 3 else bytes([index % 251]) * SIZE


async def _write(vault: Vault, count: int, threads: int, *, target: int, buffers: int = 2) -> dict[int, Entry]:
    writer = PackWriter(vault, INTENT, asyncio.get_running_loop(), target=target, buffers=buffers, stall_timeout_s=20)
    entries: dict[int, Entry] = {}

    def work(part: int) -> None:
        for index in range(part, count, threads):
            chunk_id = vault.keys.chunk_id(_chunk(index))
            codec, packed = compress(_chunk(index))
            (entries[index],) = writer.add_all([Packed(index, chunk_id, packed, codec)])

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(threads) as pool:
        try:
            await asyncio.gather(*(loop.run_in_executor(pool, work, part) for part in range(threads)))
        except BaseException:
            await writer.abort()
            raise
    await writer.finish()
    return entries


async def test_chunks_from_many_threads_come_back_and_the_footers_list_them(vault: Vault) -> None:
    counting = CountingStore(vault.store)
    vault = Vault(counting, vault.keys)
    entries = await _write(vault, 400, 4, target=100_000)
    assert counting.requests["put"] > 5, "several packs in reused memory"
    reader = PackReader(vault, SIZE)
    for index, entry in entries.items():
        assert bytes(await reader.read(entry)) == _chunk(index)
    found = await salvage(vault, INTENT)
    assert {index: found.get(index) for index in range(400)} == entries


async def test_nothing_of_an_earlier_pack_is_left_between_frames(vault: Vault) -> None:
    buffer = bytearray(b"SECRET!!" * 2500)
    pack = PackBuilder(vault, INTENT, buffer)
    for index in range(20):
        assert pack.add(index, bytes(32), _chunk(1)[:77], 0)
    data = bytes(pack.finish())
    assert b"SECRET!!" not in data
    assert len(open_footer(vault, pack.ref, data)) == 20


async def test_no_slot_and_so_no_nonce_is_used_twice(vault: Vault) -> None:
    entries = await _write(vault, 300, 4, target=150_000)
    places = sorted((entry.pack, entry.slot, entry.slot + -(-entry.length // 64)) for entry in entries.values())
    for before, after in itertools.pairwise(places):
        assert before[0] != after[0] or before[2] <= after[1]


async def test_the_first_upload_error_ends_every_add(vault: Vault) -> None:
    faulty = FaultyStore.at(vault.store, 2, Fault.ERROR)
    with pytest.raises(StoreUnavailable):
        await _write(Vault(faulty, vault.keys), 600, 3, target=60_000, buffers=1)


async def test_a_pack_with_a_place_that_was_never_filled_does_not_go_up(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given chunks of which one can't be sealed
    counting = CountingStore(vault.store)
    vault = Vault(counting, vault.keys)
    writer = PackWriter(vault, INTENT, asyncio.get_running_loop(), target=100_000)
    chunks = [Packed(index, bytes(32), bytes(100), 0) for index in range(8)]
    left = [True] * 5
    seal = ObjectCipher.seal_into

    def break_down(*given: Any, **named: Any) -> int:
        if left.pop():
            return seal(*given, **named)
        raise MemoryError

    left.insert(0, False)
    monkeypatch.setattr(ObjectCipher, "seal_into", break_down)
    # when they are added
    with pytest.raises(MemoryError):
        await asyncio.to_thread(writer.add_all, chunks)
    monkeypatch.undo()
    # then no footer names places with nothing in them, and what comes next goes into another pack
    entries = await asyncio.to_thread(writer.add_all, chunks)
    await writer.finish()
    assert counting.requests["put"] == 1
    info = await vault.store.head(vault.names.pack(entries[0].pack))
    assert info is not None
    footer = await read_footer(vault, entries[0].pack, info.size)
    assert [(one.chunk, one.slot) for one in footer] == [(at, entry.slot) for at, entry in enumerate(entries)]


async def test_adds_wait_while_every_buffer_is_on_its_way(vault: Vault) -> None:
    release = asyncio.Event()
    started = asyncio.Event()

    class Slow(FaultyStore):
        async def put_new(self, key: str, data: object) -> None:
            started.set()
            await release.wait()
            await super().put_new(key, data)  # type: ignore[arg-type]

    writing = asyncio.create_task(_write(Vault(Slow(vault.store), vault.keys), 100, 1, target=60_000, buffers=1))
    await started.wait()
    assert not writing.done()
    assert threading.active_count() > 1
    release.set()
    assert len(await writing) == 100


async def test_a_footer_further_back_than_the_first_look_is_read_too(vault: Vault) -> None:
    pack = PackBuilder(vault, INTENT, bytearray(1 << 20))
    for index in range(900):
        assert pack.add(index, bytes([index % 256]) * 32, b"x" * 100, 0)
    data = bytes(pack.finish())
    await vault.store.put_new(pack.name, data)
    assert [line.chunk for line in await read_footer(vault, pack.ref, len(data))] == list(range(900))
    for cut in (len(data) - 1, 100, 0):
        with pytest.raises(Damaged):
            open_footer(vault, pack.ref, data[:cut])


async def test_a_chunk_frame_can_not_pass_as_a_footer(vault: Vault) -> None:
    """What a tenant writes into a volume must not be taken for structure."""
    from orchestrator.repository.pack import FOOTER_ENTRY, TRAILER, TRAILER_MAGIC

    pack = PackBuilder(vault, INTENT, bytearray(1 << 16))
    forged = FOOTER_ENTRY.pack(1, b"f" * 32, 1, 100)
    placed = pack.add(0, bytes(32), forged, 0)
    assert placed is not None
    cut = placed.slot * 64 + placed.length
    data = bytes(pack.finish())[:cut] + TRAILER.pack(placed.slot, placed.length, TRAILER_MAGIC)
    with pytest.raises(Damaged):
        open_footer(vault, pack.ref, data)


def test_a_pack_says_when_a_chunk_does_not_fit(vault: Vault) -> None:
    pack = PackBuilder(vault, INTENT, bytearray(4096))
    assert pack.add(0, bytes(32), bytes(3000), 0) is not None
    assert pack.add(1, bytes(32), bytes(3000), 0) is None
    assert pack.count == 1


async def test_a_chunk_that_is_not_the_one_named_is_refused_even_if_its_seal_is_good(vault: Vault) -> None:
    """Who holds the data key can seal anything, but not under a chunk id that a known manifest leads to."""
    pack = PackBuilder(vault, INTENT, bytearray(1 << 16))
    wanted = vault.keys.chunk_id(b"what the map names")
    placed = pack.add(0, wanted, b"something else", 0)
    assert placed is not None
    await vault.store.put_new(pack.name, pack.finish())
    reader = PackReader(vault, SIZE)
    with pytest.raises(Damaged, match="isn't the one"):
        await reader.read(placed)
    with pytest.raises(Damaged):
        await reader.read(placed._replace(codec=1))
    with pytest.raises(Damaged):
        await reader.read(placed._replace(length=placed.length + 1))
