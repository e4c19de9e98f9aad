"""Opening and making repositories: wrong key, garbage and nothing are told apart, and nobody's data is hurt."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import msgspec
import pytest

from orchestrator.repository.errors import (
    Damaged,
    KeysDamaged,
    NamespaceMissing,
    NotARepository,
    RepositoryMissing,
    StoreUnavailable,
    UnsupportedFormat,
    WrongKey,
)
from orchestrator.repository.keys import MasterKey, NamespaceIdentity
from orchestrator.repository.repository import Repository
from orchestrator.repository.store import Store, open_store
from tests.repository.engine import NAMESPACE, backup, new_vault, restore
from tests.repository.faults import Fault, FaultyStore, ProcessDied

pytestmark = pytest.mark.quick
MASTER, OTHER = MasterKey(b"m" * 32), MasterKey(b"o" * 32)


async def _replace(store: Store, key: str, data: bytes) -> None:
    await store.delete(key)
    await store.put_new(key, data)


async def test_nothing_there_is_a_missing_repository(store: Store) -> None:
    with pytest.raises(RepositoryMissing):
        await Repository.open(store, MASTER)


async def test_a_repository_opens_with_its_key_and_not_with_another(store: Store) -> None:
    made = await Repository.open_or_create(store, MASTER)
    assert (await Repository.open(store, MASTER)).id == made.id
    assert (await Repository.open_or_create(store, MASTER)).id == made.id
    for call in (Repository.open, Repository.open_or_create):
        with pytest.raises(WrongKey):
            await call(store, OTHER)


async def test_a_strangers_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"jpg")
    store = await open_store(tmp_path.as_uri())
    for call in (Repository.open, Repository.open_or_create):
        with pytest.raises(NotARepository, match=r"photo\.jpg"):
            await call(store, MASTER)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


@pytest.mark.parametrize("mark", [b"", b"{}", b'{"format":"else","version":1,"id":"00","created":"x"}', b"\0" * 50])
async def test_a_mark_of_something_else_is_no_repository(store: Store, mark: bytes) -> None:
    await store.put_new("tidemark", mark)
    with pytest.raises(NotARepository):
        await Repository.open_or_create(store, MASTER)


async def test_a_later_format_is_refused(store: Store) -> None:
    await Repository.open_or_create(store, MASTER)
    mark = msgspec.json.decode(await store.get("tidemark"))
    await _replace(store, "tidemark", msgspec.json.encode({**mark, "version": 2}))
    with pytest.raises(UnsupportedFormat):
        await Repository.open(store, MASTER)


async def test_every_flipped_bit_of_the_wrapped_key_is_found_and_garbage_is_not_called_a_wrong_key(
    store: Store,
) -> None:
    await Repository.open_or_create(store, MASTER)
    good = await store.get("keys/00000000")
    for at in range(0, len(good), 3):
        await _replace(store, "keys/00000000", good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        with pytest.raises((Damaged, UnsupportedFormat)):
            await Repository.open(store, MASTER)


async def test_no_new_key_is_ever_made_over_old_data(store: Store) -> None:
    await new_vault(store, MASTER)
    await store.delete("keys/00000000")
    with pytest.raises(Damaged):
        await Repository.open_or_create(store, MASTER)


async def test_a_namespace_whose_keys_are_gone_is_told_and_gets_no_new_ones_over_its_data(store: Store) -> None:
    # given a namespace with a point, and somebody who deletes its keys
    repository = await Repository.open_or_create(store, MASTER)
    await backup(await repository.vault(NAMESPACE, create=True), bytes(64 * 1024) + b"content", sequence=1)
    (name,) = [found.key async for found in store.list("namespaces/")]
    keys = await store.get(name)
    await store.delete(name)
    # then nobody is told that nothing is there, and nothing is written
    with pytest.raises(KeysDamaged, match="gone"):
        await repository.namespaces()
    for create in (False, True):
        with pytest.raises(KeysDamaged, match="gone"):
            await repository.vault(NAMESPACE, create=create)
    assert [found.key async for found in store.list("namespaces/")] == []
    # and once they are back all is as it was
    await store.put_new(name, keys)
    assert await repository.namespaces() == [NAMESPACE]


async def test_what_a_stranger_puts_beside_the_keys_closes_nothing(store: Store) -> None:
    repository = await Repository.open_or_create(store, MASTER)
    keys = (await repository.vault(NAMESPACE, create=True)).keys
    for name in ("keys/x12345678", "keys/foo/00000009", "keys/123456789", "namespaces/zz", "namespaces/x/00000001"):
        await store.put_new(name, b"mine")
    await store.put_new(f"namespaces/{keys.namespace_id}/zz", b"mine")
    reopened = await Repository.open(store, MASTER)
    assert await reopened.namespaces() == [NAMESPACE]
    assert (await reopened.vault(NAMESPACE)).keys == keys


async def test_a_repository_without_its_mark_is_told_from_a_strangers_files(store: Store) -> None:
    await Repository.open_or_create(store, MASTER)
    await store.delete("tidemark")
    for call in (Repository.open, Repository.open_or_create):
        with pytest.raises(KeysDamaged, match="is gone"):
            await call(store, MASTER)


async def test_two_who_create_at_once_get_one_repository(store: Store) -> None:
    made = await asyncio.gather(*(Repository.open_or_create(store, MASTER) for _ in range(5)))
    assert len({repository.id for repository in made}) == 1
    vaults = await asyncio.gather(*(repository.vault(NAMESPACE, create=True) for repository in made))
    assert all(vault.keys == vaults[0].keys for vault in vaults)


@pytest.mark.parametrize("fault", [Fault.CRASH, Fault.CRASH_AFTER, Fault.ERROR, Fault.LOST])
async def test_creation_cut_off_at_any_request_goes_on_the_next_time(fault: Fault) -> None:
    for number in range(40):
        inner = await open_store(f"memory://{uuid.uuid4().hex}")
        faulty = FaultyStore.at(inner, number, fault)
        try:
            await new_vault(faulty, MASTER)
        except (ProcessDied, StoreUnavailable):
            pass
        else:
            if number >= len(faulty.requests):
                return
        vault = await new_vault(inner, MASTER)
        ref = await backup(vault, b"x" * 10_000, sequence=1, chunk_size=1024)
        assert await restore(vault, ref) == b"x" * 10_000
    pytest.fail("creation never got through")


async def test_a_namespace_is_made_only_on_request_and_listed(store: Store) -> None:
    repository = await Repository.open_or_create(store, MASTER)
    with pytest.raises(NamespaceMissing):
        await repository.vault(NAMESPACE)
    one = await repository.vault(NAMESPACE, create=True)
    two = await repository.vault(NamespaceIdentity("cluster-1", "ns-uid-2", "shop"), create=True)
    assert one.namespace_id != two.namespace_id
    assert one.keys.chunk_id_key != two.keys.chunk_id_key
    assert one.keys.data_keys != two.keys.data_keys
    assert (await repository.vault(NAMESPACE)).keys == one.keys
    assert [identity.uid for identity in await repository.namespaces()] == ["ns-uid-1", "ns-uid-2"]


async def test_a_namespaces_objects_do_not_open_in_another(store: Store) -> None:
    repository = await Repository.open_or_create(store, MASTER)
    one = await repository.vault(NAMESPACE, create=True)
    two = await repository.vault(NamespaceIdentity("cluster-1", "ns-uid-2", "else"), create=True)
    ref = await backup(one, b"x" * 5000, sequence=1, chunk_size=1024)
    moved = ref.key.replace(one.names.prefix, two.names.prefix)
    await store.put_new(moved, await store.get(ref.key))
    from orchestrator.repository.manifest import open_manifest

    with pytest.raises(Damaged):
        await open_manifest(two, moved)


async def test_after_a_rewrap_only_the_new_master_key_opens(store: Store) -> None:
    vault = await new_vault(store, MASTER)
    ref = await backup(vault, b"y" * 5000, sequence=1, chunk_size=1024)
    number = await (await Repository.open(store, MASTER)).rewrap(OTHER)
    assert number == 1
    with pytest.raises(WrongKey):
        await Repository.open(store, MASTER)
    again = await (await Repository.open(store, OTHER)).vault(NAMESPACE)
    assert again.keys == vault.keys
    assert await restore(again, ref) == b"y" * 5000


async def test_a_repository_can_be_moved_to_another_prefix(store: Store) -> None:
    vault = await new_vault(store, MASTER)
    ref = await backup(vault, b"z" * 5000, sequence=1, chunk_size=1024)
    other = await open_store(f"memory://{uuid.uuid4().hex}")
    async for info in store.list(""):
        await other.put_new(info.key, await store.get(info.key))
    moved = await (await Repository.open(other, MASTER)).vault(NAMESPACE)
    assert await restore(moved, ref) == b"z" * 5000
