"""Chunks that another volume of the namespace has already are stored again only where that isn't asked for."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from orchestrator.blocks import equal
from orchestrator.blocks.backup import Copied, CopyOptions, backup
from orchestrator.blocks.offline import Made, lineage_of, make_point
from orchestrator.blocks.units import UNIT_BYTES
from orchestrator.fence import OpenFence
from orchestrator.repository.chunkmap import MapReader
from orchestrator.repository.damage import DamageRecord, put_damage
from orchestrator.repository.errors import Damaged
from orchestrator.repository.intent import Intent, put_intent
from orchestrator.repository.layout import ObjectRef
from orchestrator.repository.maintenance import plan_sweep, sweep
from orchestrator.repository.manifest import PointRef, list_points, manifest_key
from orchestrator.repository.neighbours import neighbours
from orchestrator.repository.pack import FooterEntry
from orchestrator.repository.plan import Plan, put_plan
from orchestrator.repository.point import remove
from orchestrator.repository.store import CountingStore
from orchestrator.repository.vault import Vault
from tests.blocks.volumes import CHUNK, KIB, Volume, give_back, vault_at

COUNT = 40


@pytest.fixture
async def vault(tmp_path: Path) -> Vault:
    return await vault_at(tmp_path / "repository")


def _twins(tmp_path: Path) -> tuple[Volume, Volume]:
    """Make two volumes with the same chunks at other places, and two chunks that only the second has."""
    first, second = Volume(tmp_path / "first", COUNT * CHUNK), Volume(tmp_path / "second", COUNT * CHUNK, seed=1)
    first.noise(0, 30 * CHUNK)
    second.write(5 * CHUNK, first.path.read_bytes()[: 30 * CHUNK])
    second.noise(0, 2 * CHUNK)
    return first, second


async def _made(vault: Vault, volume: Volume, *, across: bool) -> Made:
    return await make_point(vault, volume.path, chunk_size=CHUNK, across=across)


async def _same(vault: Vault, ref: PointRef, volume: Volume, to: Path) -> None:
    assert await give_back(vault, ref, to) == hashlib.sha256(volume.path.read_bytes()).hexdigest()


async def _sweep(vault: Vault) -> None:
    """Run maintenance until nothing more goes, with no grace time."""
    for day in range(1, 4):
        now = datetime.now(UTC) + timedelta(days=10 * day)
        plan = await plan_sweep(vault, now=now, grace=timedelta(0), intent_age=timedelta(days=30))
        await sweep(vault, plan, OpenFence())


async def test_equal_chunks_of_another_volume_are_stored_once_when_asked_for(tmp_path: Path, vault: Vault) -> None:
    first, second = _twins(tmp_path)
    await _made(vault, first, across=False)
    # when the second is copied without and with the option
    alone = await _made(vault, second, across=False)
    second.path.rename(tmp_path / "third")
    second.path = tmp_path / "third"
    shared = await _made(vault, second, across=True)
    # then only the option spares what the other has (here also what the second's own first point has)
    assert alone.manifest.stats.chunks_stored == 32
    assert shared.manifest.stats.chunks_stored == 0
    await _same(vault, shared.ref, second, tmp_path / "back")


async def test_a_point_outlives_the_neighbours_that_it_refers_to(tmp_path: Path, vault: Vault) -> None:
    """Retention may prune the neighbour at any time after: what the point needs is reached from its own map."""
    first, second = _twins(tmp_path)
    neighbour = await _made(vault, first, across=False)
    point = await _made(vault, second, across=True)
    assert point.manifest.stats.chunks_stored == 2
    # when the neighbour is removed and everything that nothing reaches is swept
    await remove(vault, neighbour.ref, OpenFence())
    await _sweep(vault)
    # then the point is whole
    await _same(vault, point.ref, second, tmp_path / "back")


async def _announced(vault: Vault, volume: Volume, template: Made) -> str:
    """Put intent and plan of a full of `volume` that may refer to all neighbours; return the intent's id."""
    from msgspec.structs import replace

    from orchestrator.extents import ChunkSet

    chunks = ChunkSet(volume.size, CHUNK)
    chunks.add_chunks(0, COUNT)
    lineage = lineage_of("test", str(volume.path))
    record = replace(
        template.manifest.record, point_id=str(uuid.uuid4()), lineage=lineage, sequence=1, actual_mode="full"
    )
    known = await neighbours(vault, lineage, CHUNK)
    intent = Intent(
        id=record.point_id,
        refers=tuple(known),
        manifest_key=manifest_key(vault, record),
        lineage=lineage,
        created=datetime.now(UTC),
    )
    await put_intent(vault, intent, roots=known)
    await put_plan(vault, record.point_id, Plan(record=record, mode="full", bits=chunks.to_bytes()))
    return record.point_id


async def test_a_neighbour_removed_before_the_copy_began_is_not_referred_to(tmp_path: Path, vault: Vault) -> None:
    """The intent names it, but nobody can say any more whether maintenance saw the intent in time."""
    first, second = _twins(tmp_path)
    neighbour = await _made(vault, first, across=False)
    intent_id = await _announced(vault, second, neighbour)
    await remove(vault, neighbour.ref, OpenFence())
    # when the mover comes to it
    done = await backup(vault, intent_id, second.path)
    # then it stores everything itself, and the point is whole
    assert isinstance(done, Copied)
    assert done.point is not None
    assert done.shard.stats.chunks_stored == 32
    await _same(vault, done.point, second, tmp_path / "back")


async def test_a_neighbour_removed_and_swept_while_the_copy_goes_on_leaves_no_hole(
    tmp_path: Path, vault: Vault
) -> None:
    """The live intent's roots are marked: a stopped mover that wakes later finds all that it refers to."""
    first, second = _twins(tmp_path)
    neighbour = await _made(vault, first, across=False)
    intent_id = await _announced(vault, second, neighbour)
    # given a mover that has looked at the neighbour and is stopped before its first read
    from orchestrator.blocks import others

    real, looked = others.neighbours.entries, asyncio.Event()
    go = asyncio.Event()

    async def entries(*given: object) -> object:
        async for batch in real(*given):  # type: ignore[arg-type]
            yield batch
        looked.set()
        await go.wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(others.neighbours, "entries", entries)
        mover = asyncio.create_task(backup(vault, intent_id, second.path))
        await looked.wait()
        # when the neighbour goes and everything is swept
        await remove(vault, neighbour.ref, OpenFence())
        plan = await plan_sweep(
            vault, now=datetime.now(UTC) + timedelta(days=1), grace=timedelta(0), intent_age=timedelta(days=30)
        )
        await sweep(vault, plan, OpenFence())
        go.set()
        done = await mover
    # then the point refers to what is still there
    assert isinstance(done, Copied)
    assert done.point is not None
    assert done.shard.stats.chunks_stored == 2
    await _same(vault, done.point, second, tmp_path / "back")


async def test_a_damaged_chunk_of_a_neighbour_is_stored_again(tmp_path: Path, vault: Vault) -> None:
    first, second = _twins(tmp_path)
    neighbour = await _made(vault, first, across=False)
    entry = (await MapReader(vault, neighbour.manifest.root).lookup([7]))[7]
    record = DamageRecord(kind="pack", object=entry.pack.to_bytes().hex(), what="test", found=datetime.now(UTC))
    await put_damage(vault, record, [entry.slot])
    point = await _made(vault, second, across=True)
    assert point.manifest.stats.chunks_stored == 3
    await _same(vault, point.ref, second, tmp_path / "back")


@pytest.mark.parametrize("deed", ["garbled", "gone"])
async def test_a_neighbours_pack_that_cant_be_read_does_not_stop_a_backup(
    tmp_path: Path, vault: Vault, monkeypatch: pytest.MonkeyPatch, deed: str
) -> None:
    # given two neighbours, of whose chunks no ids are kept in memory but those of the pack looked at last
    monkeypatch.setattr(equal, "IDS_BYTES", 1)
    first, second = _twins(tmp_path)
    other = Volume(tmp_path / "other", 5 * CHUNK, seed=2)
    other.noise(0, 5 * CHUNK)
    await _made(vault, other, across=False)
    neighbour = await _made(vault, first, across=False)
    # when the footer of the newer one's pack can't be read
    entry = (await MapReader(vault, neighbour.manifest.root).lookup([7]))[7]
    path = tmp_path / "repository" / vault.names.pack(entry.pack)
    if deed == "gone":
        path.unlink()
    else:
        raw = bytearray(path.read_bytes())
        raw[-40] ^= 1
        path.write_bytes(raw)
    counting = CountingStore(vault.store)
    point = await _made(msgspec.structs.replace(vault, store=counting), second, across=True)
    # then all of it is stored again, and the pack wasn't asked for at each of its chunks
    assert point.manifest.stats.chunks_stored == 32
    assert counting.requests["head"] < 10
    await _same(vault, point.ref, second, tmp_path / "back")


async def test_an_own_pack_that_cant_be_read_stops_the_backup(
    tmp_path: Path, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a volume whose last chunk is its first again, of whose pack no ids are in memory by then
    monkeypatch.setattr(equal, "IDS_BYTES", 1)
    count = 2 * UNIT_BYTES // CHUNK
    volume = Volume(tmp_path / "volume", (count + 1) * CHUNK)
    volume.noise(0, count * CHUNK)
    volume.write(count * CHUNK, volume.path.read_bytes()[:CHUNK])

    async def unreadable(vault: Vault, ref: ObjectRef, size: int) -> list[FooterEntry]:
        raise Damaged(vault.names.pack(ref), "test")

    monkeypatch.setattr("orchestrator.blocks.backup.read_footer", unreadable)
    # then its point, which refers to the pack already, isn't made
    with pytest.raises(Damaged):
        await make_point(vault, volume.path, chunk_size=CHUNK, options=CopyOptions(readers=1, pack_bytes=4 * CHUNK))
    assert [name async for name in list_points(vault)] == []


async def test_a_small_increment_does_not_read_the_maps_of_huge_neighbours(tmp_path: Path, vault: Vault) -> None:
    first, second = Volume(tmp_path / "first", 200 * CHUNK), Volume(tmp_path / "second", 200 * CHUNK)
    first.noise(0, 200 * CHUNK)
    await _made(vault, first, across=False)
    base = await _made(vault, second, across=False)
    # when two chunks are planned, and the neighbour has two hundred
    second.write(0, first.path.read_bytes()[: 2 * CHUNK])
    made = await make_point(
        vault, second.path, base=base.manifest.record.point_id, extents=[f"0 {2 * CHUNK}"], across=True
    )
    # then they are stored rather than looked for
    assert made.manifest.stats.chunks_stored == 2
    assert KIB * 64 == CHUNK
