"""Whatever request fails, whenever: no wrong point, and the next try completes it without starting over."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.blocks.backup import CopyOptions, backup
from orchestrator.repository.errors import StoreFull, StoreUnavailable
from orchestrator.repository.manifest import list_points, open_manifest
from orchestrator.repository.vault import Vault
from tests.blocks.stores import MemoryStore
from tests.blocks.volumes import CHUNK, Volume, announce, give_back, run, take, vault_on

PACK = 6 * CHUNK


class Cut(StoreUnavailable):
    """The fault that these tests make."""


def prepared(tmp_path: Path) -> Volume:
    volume = Volume(tmp_path / "volume", 24 * CHUNK + 999)
    volume.noise(0, volume.size)
    volume.write(5 * CHUNK, bytes(2 * CHUNK))
    return volume


async def planned(vault: Vault, volume: Volume) -> str:
    """Take a full point, change two thirds of the volume, and plan a delta."""
    full = await take(vault, volume.path)
    volume.noise(0, 16 * CHUNK)
    return await announce(vault, volume.path, [(0, 16 * CHUNK)], mode="delta", base=full.ref)


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_fault_at_any_request_of_a_backup_leaves_no_wrong_point(tmp_path: Path, moment: str) -> None:
    # given the number of requests that a whole delta takes
    volume = prepared(tmp_path)
    store = MemoryStore()
    vault = await vault_on(store)
    intent_id = await planned(vault, volume)
    wanted, ready, start = volume.sha256(), dict(store.objects), store.requests
    await run(vault, intent_id, volume.path, pack_bytes=PACK)
    total = store.requests - start
    assert total > 12
    # when each of them fails in turn, before or after it took effect
    for number in range(1, total + 1):
        store.objects, store.requests = dict(ready), 0

        def fault(at: int, verb: str, key: str, number: int = number) -> None:
            if at >= number:
                raise Cut("memory://test", f"cut at {verb} of {key}")

        setattr(store, moment, fault)
        try:
            await run(vault, intent_id, volume.path, pack_bytes=PACK)
        except Cut:
            pass
        else:
            assert moment == "after"  # a cut after the last request hurts nobody
        setattr(store, moment, None)
        # then every point in the repository is whole
        committed = [key async for key in list_points(vault)]
        assert len(committed) in (1, 2)
        # and the next try completes it
        point = await run(vault, intent_id, volume.path, pack_bytes=PACK)
        back = tmp_path / f"back-{number}"
        assert await give_back(vault, point, back) == wanted
        back.unlink()


async def test_a_rerun_reads_only_what_no_earlier_try_stored(tmp_path: Path) -> None:
    # given a full backup that was cut after three packs
    volume = prepared(tmp_path)
    store = MemoryStore()
    vault = await vault_on(store)
    intent_id = await announce(vault, volume.path, None)
    packs: list[str] = []

    def cut(number: int, verb: str, key: str) -> None:
        if verb == "put" and "/packs/" in key:
            packs.append(key)
            if len(packs) > 3:
                raise Cut("memory://test", "cut")

    store.before = cut
    with pytest.raises(Cut):
        await run(vault, intent_id, volume.path, pack_bytes=PACK)
    store.before = None
    left = {key for key in store.objects if "/packs/" in key}
    # when it runs again
    point = await run(vault, intent_id, volume.path, pack_bytes=PACK)
    # then it reads the rest, keeps the packs that are there, and stores no chunk twice
    assert len(left) == 3
    assert left < set(store.objects)
    assert point.tally.read <= volume.size - len(left) * 5 * CHUNK
    assert await give_back(vault, point, tmp_path / "back") == volume.sha256()
    assert sum(len(store.objects[key]) for key in store.objects if "/packs/" in key) < volume.size


async def test_a_full_repository_is_named_and_the_next_try_completes(tmp_path: Path) -> None:
    # given a store that has no room for packs
    volume = prepared(tmp_path)
    store = MemoryStore()
    vault = await vault_on(store)
    intent_id = await announce(vault, volume.path, None)

    def full(number: int, verb: str, key: str) -> None:
        if verb == "put" and "/packs/" in key:
            raise StoreFull("memory://test")

    store.before = full
    # when a backup runs, then the error says so
    with pytest.raises(StoreFull, match="no space"):
        await run(vault, intent_id, volume.path, pack_bytes=PACK)
    # and with room again it completes
    store.before = None
    point = await run(vault, intent_id, volume.path, pack_bytes=PACK)
    assert await give_back(vault, point, tmp_path / "back") == volume.sha256()


async def test_a_fault_at_any_request_of_a_restore_is_an_error_and_never_a_wrong_volume(tmp_path: Path) -> None:
    volume = prepared(tmp_path)
    store = MemoryStore()
    vault = await vault_on(store)
    point = await take(vault, volume.path)
    start = store.requests
    await give_back(vault, point, tmp_path / "back")
    total = store.requests - start
    for number in range(1, total + 1):
        store.requests = 0

        def fault(at: int, verb: str, key: str, number: int = number) -> None:
            if at == number:
                raise Cut("memory://test", f"cut at {verb} of {key}")

        store.before = fault
        with pytest.raises(Cut):
            await give_back(vault, point, tmp_path / f"back-{number}")
        store.before = None


async def test_two_movers_of_one_shard_at_once_make_one_good_point(tmp_path: Path) -> None:
    # given two movers that both believe they are the one
    import asyncio

    volume = prepared(tmp_path)
    vault = await vault_on(MemoryStore())
    intent_id = await announce(vault, volume.path, None)
    # when they run at the same time
    options = CopyOptions(readers=2, pack_bytes=PACK)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(2):
            tasks.create_task(backup(vault, intent_id, volume.path, options=options))
    # then one point is there, and it is right
    (key,) = [key async for key in list_points(vault)]
    _, ref = await open_manifest(vault, key)
    assert await give_back(vault, ref, tmp_path / "back") == volume.sha256()
