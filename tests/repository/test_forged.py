"""Who holds a namespace's key can forge its points: that must not cost those who open points of all namespaces.

Nor may what nothing seals, which anybody who writes into the bucket can choose.
"""

from __future__ import annotations

import tracemalloc
import uuid
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from orchestrator.repository.crypto import ObjectCipher
from orchestrator.repository.errors import Damaged
from orchestrator.repository.layout import MAX_VOLUME, Kind, ObjectRef
from orchestrator.repository.manifest import Manifest, MapRoot, PointStats, open_manifest
from orchestrator.repository.pack import TRAILER, TRAILER_MAGIC, read_footer
from orchestrator.repository.plan import Plan, VolumeTooLarge, put_plan
from orchestrator.repository.record import seal_body, seal_record
from orchestrator.repository.store import Store, open_store
from orchestrator.repository.vault import Vault
from tests.repository.engine import backup, new_vault

pytestmark = pytest.mark.quick
KIB = 1024


async def _forged(vault: Vault, root: MapRoot) -> str:
    """Put a manifest with this root under a name of its own, sealed with the namespace's key; return its name."""
    ref = await backup(vault, b"content", sequence=1)
    true, _ = await open_manifest(vault, ref.key)
    name = vault.names.point(true.record.lineage, 2, str(uuid.uuid4()))
    forged = Manifest(record=true.record, root=root, stats=PointStats(), created=datetime.now(UTC), writer="forger")
    await vault.store.put_new(name, seal_record(vault, Kind.MANIFEST, name, forged))
    return name


@pytest.mark.parametrize(
    "root",
    [
        MapRoot(volume_size=MAX_VOLUME + 1, chunk_size=256 * KIB, levels=4),
        MapRoot(volume_size=1 << 62, chunk_size=64 * KIB, levels=5),
        MapRoot(volume_size=-1, chunk_size=64 * KIB, levels=1),
        MapRoot(volume_size=1, chunk_size=0, levels=1),
        MapRoot(volume_size=1 << 40, chunk_size=1, levels=5),
    ],
)
async def test_a_root_that_no_map_can_have_is_damage(store: Store, root: MapRoot) -> None:
    vault = await new_vault(store)
    with pytest.raises(Damaged, match="its root tells of"):
        await open_manifest(vault, await _forged(vault, root))


async def test_a_manifest_that_unfolds_to_more_than_any_has_costs_no_memory(store: Store) -> None:
    # given a sealed manifest of some kilobytes that claims, and has, 200 MiB of zeros
    vault = await new_vault(store)
    name = vault.names.point("0" * 32, 1, str(uuid.uuid4()))
    bomb = seal_body(vault.new_cipher(Kind.MANIFEST, name), b"{}", bytes(200 << 20))
    assert len(bomb) < 1 << 20
    await store.put_new(name, bomb)
    # when it is opened, then it is refused before it unfolds
    tracemalloc.start()
    try:
        with pytest.raises(Damaged, match="malformed"):
            await open_manifest(vault, name)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


async def test_a_manifest_of_unknown_members_of_any_depth_is_damage(store: Store) -> None:
    vault = await new_vault(store)
    name = vault.names.point("0" * 32, 1, str(uuid.uuid4()))
    cipher: ObjectCipher = vault.new_cipher(Kind.MANIFEST, name)
    await store.put_new(name, seal_body(cipher, b'{"record":' + b"[" * 1_000_000))
    with pytest.raises(Damaged):
        await open_manifest(vault, name)


async def test_a_volume_that_no_manifest_could_tell_of_is_refused_before_anything_is_copied(store: Store) -> None:
    vault = await new_vault(store)
    true, _ = await open_manifest(vault, (await backup(vault, b"content", sequence=1)).key)
    plan = Plan(record=msgspec.structs.replace(true.record, volume_size=MAX_VOLUME + 1), mode="full", bits=b"")
    with pytest.raises(VolumeTooLarge):
        await put_plan(vault, str(uuid.uuid4()), plan)


async def test_a_trailer_that_nobody_sealed_makes_nobody_read_a_gigabyte(tmp_path: Path) -> None:
    # given a large object under a pack's name, whose trailer says that all of it is the footer
    vault = await new_vault(await open_store((tmp_path / "repository").as_uri()))
    ref, size = ObjectRef.new(str(uuid.uuid4())), 1 << 30
    path = tmp_path / "repository" / vault.names.pack(ref)
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.write(vault.new_cipher(Kind.PACK, vault.names.pack(ref), ref).header)
        file.seek(size - TRAILER.size)
        file.write(TRAILER.pack(0, size - TRAILER.size, TRAILER_MAGIC))
    # when its footer is asked for, then it is refused unread
    with pytest.raises(Damaged, match="a footer of its own"):
        await read_footer(vault, ref, size)
