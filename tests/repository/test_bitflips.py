"""One random bit in each kind of object: found by verify and by restore, told in a line, never a wrong byte.

What a point needs is found by restoring it too. What no restore reads (headers of packs, the papers of writers and of
maintenance) is for `verify --full` to find. The only bytes of a repository that nothing authenticates are in the plain
object `tidemark`: where a flip there is not found, it changed nothing that anybody uses.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from orchestrator.errors import TidemarkError
from orchestrator.fence import OpenFence
from orchestrator.repository.damage import DamageRecord, put_damage
from orchestrator.repository.errors import StoreUnavailable
from orchestrator.repository.layout import SLOT_UNIT, Kind
from orchestrator.repository.maintenance import plan_sweep, sweep
from orchestrator.repository.manifest import Cancelled, open_manifest
from orchestrator.repository.marking import Marking
from orchestrator.repository.moves import put_moves
from orchestrator.repository.page import Ref
from orchestrator.repository.point import remove
from orchestrator.repository.record import seal_record
from orchestrator.repository.repository import Repository
from orchestrator.repository.vault import Vault
from orchestrator.repository.verified import put_result, result_of
from orchestrator.repository.verify import verify
from tests.blocks.volumes import CHUNK, MASTER, Point, Volume, announce, run, take, vault_on
from tests.repository.engine import restore
from tests.repository.faults import Fault, FaultyStore, Shelf

FLIPS = int(os.environ.get("TIDEMARK_FLIPS", "500"))
SEED = int(os.environ.get("TIDEMARK_SEED", "7"))
"""More on demand: TIDEMARK_FLIPS=5000 TIDEMARK_SEED=8 pytest tests/repository/test_bitflips.py"""
START = datetime(2026, 1, 1, tzinfo=UTC)
NEEDED = {"tidemark", "keys", "namespaces", "packs", "maps", "points", "relocated"}
KINDS = NEEDED | {"intent", "plan", "shards", "moves", "moved", "compacted"}
KINDS |= {"damaged", "sweeps", "removing", "verified"}
PACK = 6 * CHUNK
pytestmark = [pytest.mark.system, pytest.mark.timeout(1500)]
Points = dict[str, str]
"""Manifest's name -> SHA-256 of the volume."""


def kind_of(name: str) -> str:
    """Say what kind of object a name is of; cancelled records stand where manifests stood."""
    parts = name.split("/")
    if parts[0] != "n":
        return parts[0]
    if parts[2] == "intents":
        return parts[4]
    return parts[2]


async def _sweep(vault: Vault, days: float) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=days)
    plan = await plan_sweep(vault, now=now, grace=timedelta(days=1), intent_age=timedelta(days=7))
    await sweep(vault, plan, OpenFence(), pack_size=1 << 20)


async def _point(vault: Vault, volume: Volume, points: Points, changed: tuple[int, int], base: Point | None) -> Point:
    volume.noise(changed[0] * CHUNK, CHUNK)
    volume.text((changed[0] + 1) * CHUNK, (changed[1] - 1) * CHUNK)
    ranges = [(changed[0] * CHUNK, changed[1] * CHUNK)]
    point = await take(vault, volume.path, ranges, mode="delta" if base else "allocated", base=base)
    points[point.ref.key] = volume.sha256()
    return point


async def whole_world(folder: Path) -> tuple[Shelf, Points]:
    """Make a repository that has at least one object of every kind; return it and its points."""
    shelf, points = Shelf(), Points()
    vault = await vault_on(shelf)
    volume = Volume(folder / "volume", 40 * CHUNK + 77, seed=SEED)
    first = await _point(vault, volume, points, (0, 40), None)
    second = await _point(vault, volume, points, (0, 28), first)
    await remove(vault, first.ref, OpenFence())
    del points[first.ref.key]
    for days in (2, 4, 6):  # compacted, and the old pack swept
        await _sweep(vault, days)
    third = await _point(vault, volume, points, (30, 3), second)
    gone = await _point(vault, volume, points, (33, 3), third)
    await _point(vault, volume, points, (36, 3), gone)
    await remove(vault, gone.ref, OpenFence())
    del points[gone.ref.key]
    await _sweep(vault, 8)  # written down
    half = await announce(vault, volume.path, [(0, 2 * CHUNK)], mode="delta", base=third.ref)
    refusing = FaultyStore(
        shelf, lambda _number, verb, key: Fault.ERROR if verb == "put" and "/points/" in key else None
    )
    with pytest.raises(StoreUnavailable):
        await run(Vault(refusing, vault.keys), half, volume.path, pack_bytes=PACK)
    marker = vault.names.removal(second.ref.key)
    told = Cancelled(intent_id="", why="", at=START)
    await vault.store.put_new(marker, seal_record(vault, Kind.REMOVING, marker, told))
    moves = str(uuid.uuid4())
    await put_moves(vault, moves, [])
    record = DamageRecord(kind="pack", object="00" * 32, what="a test", found=START)
    await put_damage(vault, record, [1, 2])
    report = await verify(vault, depth="full")
    assert report.ok, report
    await put_result(vault, "run-1", result_of(report, begun=START, ended=START, share=1.0))
    return shelf, points


async def _looked_at(shelf: Shelf, points: Points) -> tuple[set[str], bool]:
    """Open, verify and restore all; return the points that could not be restored, and whether verify found anything."""
    try:
        repository = await Repository.open(shelf, MASTER)
        (identity,) = await repository.namespaces()
        vault = await repository.vault(identity)
    except TidemarkError:
        return set(points), True
    except ValueError as error:  # no namespace, or two
        raise AssertionError("the namespaces are told wrong") from error
    report = await verify(vault, depth="full", record=False)
    assert report.ok is not bool(report.findings)
    lost = set()
    for key, wanted in points.items():
        try:
            _, ref = await open_manifest(vault, key)
            assert hashlib.sha256(await restore(vault, ref)).hexdigest() == wanted, "a wrong byte"
        except TidemarkError:
            lost.add(key)
    named = {point for finding in report.findings for point in finding.points}
    assert lost <= named, "verify must name every point that can't be restored"
    return lost, not report.ok


async def _live_pages(shelf: Shelf, points: Points, folder: Path) -> dict[str, list[range]]:
    """Return map objects with the bytes of them that points need, up to the next page: dead pages are garbage."""
    vault = await vault_on(shelf)
    folder.mkdir()
    marking, found = Marking(vault, folder), dict[str, list[range]]()

    def note(ref: Ref, _: object) -> None:
        start = ref.slot * SLOT_UNIT
        whole = range(start, start + ref.length + -ref.length % SLOT_UNIT)
        found.setdefault(vault.names.map(ref.object), [range(SLOT_UNIT)]).append(whole)

    for key in points:
        marking.add_root((await open_manifest(vault, key))[0].root)
    await marking.run(on_leaf=note, on_inner=note)
    return found


async def test_a_flipped_bit_in_any_kind_of_object_is_found(tmp_path: Path) -> None:
    # given a repository with objects of every kind
    shelf, points = await whole_world(tmp_path)
    by_kind: dict[str, list[str]] = {}
    for name in sorted(shelf.objects):
        by_kind.setdefault(kind_of(name), []).append(name)
    assert set(by_kind) == KINDS
    pages = await _live_pages(shelf, points, tmp_path / "marks")
    by_kind["maps"] = sorted(pages)
    rng, unseen = random.Random(SEED), Counter[str]()
    lost_by: Counter[str] = Counter()
    for number in range(FLIPS):
        # when one bit of one of them flips
        kind = sorted(by_kind)[number % len(by_kind)]
        name = rng.choice(by_kind[kind])
        good = shelf.objects[name][0]
        bit = _bit(rng, good, pages.get(name))
        shelf.replace(name, flipped(good, bit))
        # then verify finds it, names whom it hurts, and no restore gives a wrong byte
        lost, found = await _looked_at(shelf, points)
        lost_by[kind] += bool(lost)
        if not found:
            assert not lost
            unseen[kind] += 1
            assert kind == "tidemark", (name, bit)
        shelf.replace(name, good)
    # and restores noticed it in every kind that they need
    assert {kind for kind, count in lost_by.items() if count} >= NEEDED, lost_by
    assert (await _looked_at(shelf, points))[0] == set()


async def test_an_object_that_claims_to_be_a_newer_releases_is_told_by_verify_and_stops_it_not(tmp_path: Path) -> None:
    """Random bits hardly ever meet the few bytes that make an object look like a newer release's."""
    # given a repository with objects of every kind
    shelf, points = await whole_world(tmp_path)
    one_of = {kind_of(name): name for name in sorted(shelf.objects)}
    one_of["maps"] = min(await _live_pages(shelf, points, tmp_path / "marks"))
    for kind, name in sorted(one_of.items()):
        good = shelf.objects[name][0]
        for byte in (8, 10) if kind != "tidemark" else ():
            # when one claims to be of another version, or sealed by another algorithm
            shelf.replace(name, flipped(good, byte * 8))
            # then verify says so
            _, found = await _looked_at(shelf, points)
            assert found, (kind, byte)
        shelf.replace(name, good)


def _bit(rng: random.Random, data: bytes, pages: list[range] | None) -> int:
    """Choose a bit of an object, of a map object one that some point needs."""
    places = range(len(data)) if pages is None else rng.choice(pages)
    return rng.choice(range(places.start, min(places.stop, len(data)))) * 8 + rng.randrange(8)


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def test_the_command_line_tells_of_a_flipped_bit_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # given the same repository as a directory, and its key
    shelf, points = asyncio.run(whole_world(tmp_path))
    folder, key = tmp_path / "repository", tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    for name, data in shelf.plain().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    where = ["--repository", f"file://{folder}", "--key-file", str(key)]
    names = sorted(shelf.objects)
    pages = asyncio.run(_live_pages(shelf, points, tmp_path / "marks"))
    rng = random.Random(SEED)
    for kind in sorted(KINDS):
        # when one bit of one object flips, and a person verifies, lists and restores
        name = rng.choice([*pages] if kind == "maps" else [name for name in names if kind_of(name) == kind])
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(flipped(good, _bit(rng, good, pages.get(name))))
        capsys.readouterr()
        verified = main(["verify", "--full", "--no-record", *where])
        said = capsys.readouterr()
        assert verified in ((0, 65) if kind == "tidemark" else (65,)), (name, said)
        _check_words(said.err, verified)
        for point, wanted in points.items():
            target = tmp_path / "back"
            target.unlink(missing_ok=True)
            point_id = point.rpartition("/")[2].partition("-")[2]
            code = main(["restore", "--point", point_id, "--to", str(target), *where])
            # then each says what is wrong in one line, and leaves no wrong volume behind
            _check_words(capsys.readouterr().err, code)
            assert code in (0, 65)
            assert target.exists() is (code == 0)
            if code == 0:
                assert hashlib.sha256(target.read_bytes()).hexdigest() == wanted
            else:
                assert kind in NEEDED
        (folder / name).write_bytes(good)
    assert main(["verify", "--full", *where]) == 0


def _check_words(err: str, code: int) -> None:
    assert "Traceback" not in err
    assert err.count("\n") == (1 if code else 0), err
