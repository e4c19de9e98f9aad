"""Keys: who wraps the repository key, and what a new data key changes for whom."""

from __future__ import annotations

import os
import random
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from orchestrator.fence import OpenFence
from orchestrator.repository.crypto import Header
from orchestrator.repository.errors import Damaged, KeysOutdated, WrongKey
from orchestrator.repository.keyepochs import epochs
from orchestrator.repository.keys import MasterKey, NamespaceKeys
from orchestrator.repository.layout import HEADER_KEY, master_wrap
from orchestrator.repository.maintenance import plan_sweep, sweep
from orchestrator.repository.manifest import open_manifest
from orchestrator.repository.point import remove
from orchestrator.repository.repository import Repository
from orchestrator.repository.store import Store
from orchestrator.repository.vault import Vault
from orchestrator.repository.verify import verify
from orchestrator.repository.wrapping import KeyWrapper, MasterWrapper
from tests.repository.engine import NAMESPACE, announce, backup, copy, point_record, restore

pytestmark = pytest.mark.quick
SIZE = 1024
MASTER = MasterKey(bytes(range(32)))


class FakeService:
    """A key service at the seam: it alone has its key, and binds what it wraps to the place."""

    def __init__(self) -> None:
        self._key = AESGCM(os.urandom(32))
        self.id = os.urandom(8)

    async def wrap(self, repository_id: str, name: str, secret: bytes) -> bytes:
        nonce = os.urandom(12)
        return self.id + nonce + self._key.encrypt(nonce, secret, f"{repository_id} {name}".encode())

    async def unwrap(self, repository_id: str, name: str, data: bytes) -> bytes:
        if data[:8] != self.id:
            raise WrongKey(name)
        try:
            return self._key.decrypt(data[8:20], data[20:], f"{repository_id} {name}".encode())
        except InvalidTag:
            raise Damaged(name, "the key service can't open it") from None


@pytest.fixture(params=["master key", "key service"])
def wrapper(request: pytest.FixtureRequest) -> KeyWrapper:
    return MasterWrapper(MASTER) if request.param == "master key" else FakeService()


def _volume(seed: int = 1, chunks: int = 60) -> bytes:
    return random.Random(seed).randbytes(chunks * SIZE)


async def test_a_wrapper_gives_back_what_it_wrapped_and_only_in_its_place(wrapper: KeyWrapper) -> None:
    secret = os.urandom(32)
    data = await wrapper.wrap("ab" * 16, "keys/00000000", secret)
    assert secret not in data
    assert await wrapper.unwrap("ab" * 16, "keys/00000000", data) == secret
    for repository_id, name, what in [
        ("cd" * 16, "keys/00000000", data),
        ("ab" * 16, "keys/00000001", data),
        ("ab" * 16, "keys/00000000", data[:-1] + bytes([data[-1] ^ 1])),
    ]:
        with pytest.raises((Damaged, WrongKey)):
            await wrapper.unwrap(repository_id, name, what)


async def test_whoever_wraps_the_repository_opens_with_it_and_with_nothing_else(
    store: Store, wrapper: KeyWrapper
) -> None:
    made = await Repository.open_or_create(store, wrapper)
    vault = await made.vault(NAMESPACE, create=True)
    again = await Repository.open(store, wrapper)
    assert (await again.vault(NAMESPACE)).keys == vault.keys
    for other in (MasterKey.generate(), FakeService()):
        with pytest.raises((WrongKey, Damaged)):
            await Repository.open(store, other)


async def test_a_repository_changes_from_a_master_key_to_a_key_service(store: Store) -> None:
    keys = (await (await Repository.open_or_create(store, MASTER)).vault(NAMESPACE, create=True)).keys
    service = FakeService()
    await (await Repository.open(store, MASTER)).rewrap(service)
    assert (await (await Repository.open(store, service)).vault(NAMESPACE)).keys == keys
    with pytest.raises((WrongKey, Damaged)):
        await Repository.open(store, MASTER)
    assert {HEADER_KEY, master_wrap(0), master_wrap(1)} <= {info.key async for info in store.list("")}


async def test_a_new_data_key_seals_what_is_new_and_all_points_stay_readable(store: Store) -> None:
    repository = await Repository.open_or_create(store, MASTER)
    vault = await repository.vault(NAMESPACE, create=True)
    volume = bytearray(_volume())
    base = await backup(vault, bytes(volume), sequence=1, chunk_size=SIZE)
    before = bytes(volume)
    rotated = await repository.rotate(NAMESPACE)
    assert rotated.keys.current_epoch == 2
    assert rotated.keys.chunk_id_key == vault.keys.chunk_id_key
    assert rotated.keys.data_keys[1] == vault.keys.data_keys[1] != rotated.keys.data_keys[2]
    volume[5 * SIZE : 6 * SIZE] = b"x" * SIZE
    heir = await backup(rotated, bytes(volume), sequence=2, touched=[5], base=base, chunk_size=SIZE)
    assert await _epoch(rotated, heir.key) == 2
    mover = Vault.from_mover(store, NamespaceKeys.from_json(rotated.keys.to_json()))
    assert await restore(mover, base) == before
    assert await restore(mover, heir) == bytes(volume)
    assert (await verify(mover, depth="full")).ok


async def test_a_writer_on_the_old_key_goes_on_while_keys_are_rotated(store: Store) -> None:
    repository = await Repository.open_or_create(store, MASTER)
    old = await repository.vault(NAMESPACE, create=True)
    base = await backup(old, _volume(), sequence=1, chunk_size=SIZE)
    volume = bytearray(_volume())
    volume[7 * SIZE : 8 * SIZE] = b"y" * SIZE
    record = point_record(sequence=2, size=len(volume), chunk_size=SIZE, mode="delta", parent=base)
    intent_id = await announce(old, record, [7], base=base)
    new = await repository.rotate(NAMESPACE)
    ref = await copy(old, intent_id, bytes(volume))
    assert await restore(new, ref) == bytes(volume)
    # and one that was begun with the old key is finished with the new one, by another
    record = point_record(sequence=3, size=len(volume), chunk_size=SIZE, mode="delta", parent=ref)
    intent_id = await announce(old, record, [8], base=ref)
    volume[8 * SIZE : 9 * SIZE] = b"z" * SIZE
    assert await restore(new, await copy(new, intent_id, bytes(volume))) == bytes(volume)


async def test_who_knows_only_older_keys_is_told_to_get_newer_ones_and_finds_no_damage(store: Store) -> None:
    repository = await Repository.open_or_create(store, MASTER)
    old = await repository.vault(NAMESPACE, create=True)
    new = await repository.rotate(NAMESPACE)
    ref = await backup(new, _volume(), sequence=1, chunk_size=SIZE)
    with pytest.raises(KeysOutdated):
        await open_manifest(old, ref.key)
    with pytest.raises(KeysOutdated):
        await verify(old, depth="full")
    with pytest.raises(KeysOutdated):
        await plan_sweep(old, now=datetime.now(UTC), grace=timedelta(1), intent_age=timedelta(7))
    assert not {info.key async for info in store.list(new.names.damaged)}


@pytest.mark.parametrize("bit", range(0, 32, 5))
async def test_an_altered_epoch_is_damage_and_not_a_newer_key(store: Store, bit: int) -> None:
    vault = await (await Repository.open_or_create(store, MASTER)).vault(NAMESPACE, create=True)
    ref = await backup(vault, _volume(), sequence=1, chunk_size=SIZE)
    data = bytearray(await store.get(ref.key))
    data[12 + bit // 8] ^= 1 << bit % 8
    await store.delete(ref.key)
    await store.put_new(ref.key, bytes(data))
    with pytest.raises(Damaged):
        await open_manifest(vault, ref.key)


async def test_compaction_seals_with_the_newest_key(store: Store) -> None:
    repository = await Repository.open_or_create(store, MASTER)
    vault = await repository.vault(NAMESPACE, create=True)
    base = await backup(vault, _volume(1), sequence=1, chunk_size=SIZE)
    volume = bytearray(_volume(1))
    volume[: 45 * SIZE] = random.Random(2).randbytes(45 * SIZE)
    vault = await repository.rotate(NAMESPACE)
    heir = await backup(vault, bytes(volume), sequence=2, touched=range(45), base=base, chunk_size=SIZE)
    await remove(vault, base, OpenFence())
    for days in (1, 3, 5):
        now = datetime.now(UTC) + timedelta(days=days)
        plan = await plan_sweep(vault, now=now, grace=timedelta(days=1), intent_age=timedelta(days=7))
        await sweep(vault, plan, OpenFence())
    packs = [info.key async for info in store.list(vault.names.packs)]
    assert [await _epoch(vault, key) for key in packs] == [2] * len(packs)
    assert len(packs) == 2
    assert await restore(vault, heir) == bytes(volume)


async def test_rotating_twice_at_once_leaves_keys_that_all_agree_on(store: Store) -> None:
    repository = await Repository.open_or_create(store, MASTER)
    await repository.vault(NAMESPACE, create=True)
    other = await Repository.open(store, MASTER)
    first = await repository.rotate(NAMESPACE)
    second = await other.rotate(NAMESPACE)
    assert (first.keys.current_epoch, second.keys.current_epoch) == (2, 3)
    assert second.keys.data_keys[2] == first.keys.data_keys[2]
    assert msgspec.json.decode(second.keys.to_json())["currentEpoch"] == 3


async def test_the_data_keys_are_listed_with_what_was_stored_while_each_was_the_newest(store: Store) -> None:
    repository = await Repository.open_or_create(store, MASTER)
    vault = await repository.vault(NAMESPACE, create=True)
    base = await backup(vault, _volume(1), sequence=1, chunk_size=SIZE)
    before = [info async for info in store.list(vault.names.prefix)]
    vault = await repository.rotate(NAMESPACE)
    await backup(vault, _volume(1), sequence=2, touched=[], base=base, chunk_size=SIZE)
    after = [info async for info in store.list(vault.names.prefix)]
    first, second = await epochs(vault)
    assert (first.number, second.number) == (1, 2)
    assert (first.objects, first.bytes) == (len(before), sum(info.size for info in before))
    assert first.objects + second.objects == len(after)
    assert first.made <= second.made


async def _epoch(vault: Vault, key: str) -> int:
    return Header.parse(key, await vault.store.get_range(key, 0, 64)).epoch
