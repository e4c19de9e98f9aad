"""A store that answers once with half of an object is no damage: verification reads it once more, and says so.

Real stores answer a range in full or not at all; a whole object can come shortened and relabelled by what lies between.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Literal

import pytest

from orchestrator.fence import OpenFence
from orchestrator.repository.chunkmap import MapReader
from orchestrator.repository.errors import Damaged, ObjectMissing, StoreUnavailable, UnsupportedFormat
from orchestrator.repository.layout import SLOT_UNIT, Kind
from orchestrator.repository.manifest import PointRef, open_manifest
from orchestrator.repository.packreader import PackReader
from orchestrator.repository.page import Ref
from orchestrator.repository.point import remove
from orchestrator.repository.record import kind_of as kind_in
from orchestrator.repository.repository import Repository
from orchestrator.repository.secondlook import REMEMBERED, SecondLook
from orchestrator.repository.vault import Vault
from orchestrator.repository.verify import VerifyReport, verify
from tests.blocks.volumes import MASTER, NAMESPACE, vault_on
from tests.repository.engine import backup
from tests.repository.faults import Fault, FaultyStore, Script, Shelf
from tests.repository.test_bitflips import KINDS, flipped, kind_of, whole_world

OPENED_BEFORE = {"tidemark", "keys", "namespaces"}
"""Read by who opens the repository, before anything is verified."""


async def _verified(shelf: Shelf, script: Script | None) -> tuple[VerifyReport, FaultyStore]:
    vault = await vault_on(shelf)
    store = FaultyStore(shelf, script)
    return await verify(Vault(store, vault.keys), depth="full", record=False), store


class _LiesOnce(FaultyStore):
    """A store that gives something else for each object when that is read for the first time."""

    def __init__(self, shelf: Shelf, lie: Callable[[bytes], bytes], *, ranges: bool = True) -> None:
        """`ranges`: it lies about parts of objects too."""
        super().__init__(shelf)
        self.lie, self.ranges = lie, ranges
        self.lied: set[str] = set()

    def _told(self, key: str, pieces: list[bytes]) -> list[bytes]:
        if key in self.lied:
            return pieces
        self.lied.add(key)
        return [self.lie(piece) for piece in pieces]

    async def get(self, key: str) -> bytes:
        return self._told(key, [await super().get(key)])[0]

    async def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        pieces = await super().get_ranges(key, ranges)
        return self._told(key, pieces) if self.ranges else pieces


LIES: dict[str, Callable[[bytes], bytes]] = {
    "half": lambda data: data[: len(data) // 2],
    "altered": lambda data: flipped(data, 8 * 17),
}


@pytest.mark.parametrize("lie", LIES)
async def test_an_object_of_any_kind_that_comes_wrong_once_is_no_damage(tmp_path: Path, lie: str) -> None:
    # given a repository with objects of every kind, each of which comes wrong when it is read first
    shelf, _ = await whole_world(tmp_path)
    assert {kind_of(name) for name in shelf.objects} == KINDS
    vault = await vault_on(shelf)
    store = _LiesOnce(shelf, LIES[lie])
    # when all of it is verified
    report = await verify(Vault(store, vault.keys), depth="full", record=False)
    # then nothing is wrong with it, and all that was read twice is told
    assert report.ok, report.findings
    assert {kind_of(name) for name in report.read_again} == KINDS - OPENED_BEFORE
    assert set(report.read_again) <= store.lied


async def test_what_a_map_object_holds_beside_its_pages_may_come_wrong_once(tmp_path: Path) -> None:
    # given a repository whose map objects come wrong when they are read as a whole, which nobody but verify does
    shelf, _ = await whole_world(tmp_path)
    vault = await vault_on(shelf)
    store = _LiesOnce(shelf, LIES["altered"], ranges=False)
    store.lied = {name for name in shelf.objects if kind_of(name) != "maps"}
    # when all of it is verified, then nothing is wrong with it
    report = await verify(Vault(store, vault.keys), depth="full", record=False)
    assert report.ok, report.findings
    assert {kind_of(name) for name in report.read_again} == {"maps"}


@pytest.mark.system
@pytest.mark.parametrize("damaged", [False, True])
async def test_half_an_answer_to_any_one_request_changes_nothing_that_is_found(tmp_path: Path, damaged: bool) -> None:
    # given that repository, sound or with a chunk that is damaged, and what a verification finds there
    shelf, _ = await whole_world(tmp_path)
    if damaged:
        for name in [name for name in shelf.objects if kind_of(name) == "packs"]:
            shelf.replace(name, flipped(shelf.objects[name][0], 8 * 70))
    wanted, counted = await _verified(shelf, None)
    assert wanted.ok is not damaged
    assert wanted.read_again == ()
    reads = [number for number, (verb, _) in enumerate(counted.requests) if verb == "get"]
    assert len(reads) > 30
    for number in reads:
        # when one answer is cut to half
        found, _ = await _verified(shelf, _half_at(number))
        # then the same is found
        assert _whom(found) == _whom(wanted), counted.requests[number]


def _half_at(number: int) -> Script:
    return lambda at, _verb, _key: Fault.SHORT if at == number else None


def _whom(report: VerifyReport) -> tuple[object, object]:
    """Say what is damaged and whom it hurts, without the words for it: they are those of the last reading."""
    return (
        [(finding.key, finding.points, finding.chunks) for finding in report.findings],
        [(point.key, point.chunks) for point in report.hurt],
    )


async def test_a_pack_that_came_wrong_once_is_read_again_with_the_key_that_sealed_it() -> None:
    # given a point, then a new key for its namespace
    shelf = Shelf()
    await backup(await vault_on(shelf), os.urandom(60 * 1024), sequence=1, chunk_size=1024)
    vault = await (await Repository.open(shelf, MASTER)).rotate(NAMESPACE)
    assert len(vault.keys.data_keys) == 2
    # when some of its chunks are looked at, and come with no byte right, so that they don't tell by which key
    store = _LiesOnce(shelf, lambda data: bytes(byte ^ 0xFF for byte in data))
    report = await verify(Vault(store, vault.keys), depth=0.5, record=False)
    # then nothing is wrong with them
    assert report.chunks > 0
    assert report.ok, report.findings
    assert "packs" in {kind_of(name) for name in report.read_again}


class _RemovesMeanwhile(FaultyStore):
    """A store whose newest point somebody removes once packs are read, and which then tells half of that once."""

    def __init__(self, shelf: Shelf, vault: Vault, point: PointRef) -> None:
        super().__init__(shelf)
        self.vault, self.point, self.told = vault, point, 0

    async def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        if "/packs/" in key:
            await remove(self.vault, self.point, OpenFence())
        return await super().get_ranges(key, ranges)

    async def get(self, key: str) -> bytes:
        data = await super().get(key)
        if key != self.point.key or kind_in(key, data) != Kind.CANCELLED:
            return data
        self.told += 1
        return data[: len(data) // 2] if self.told == 1 else data


async def test_a_point_removed_meanwhile_is_not_blamed_for_half_an_answer(tmp_path: Path) -> None:
    # given a repository whose packs are damaged, all of them
    shelf, points = await whole_world(tmp_path)
    for name in [name for name in shelf.objects if kind_of(name) == "packs"]:
        shelf.replace(name, flipped(shelf.objects[name][0], 8 * 70))
    vault = await vault_on(shelf)
    _, newest = await open_manifest(vault, max(points))
    # when its newest point goes while it is verified, and what stands in its place comes as half once
    store = _RemovesMeanwhile(shelf, vault, newest)
    report = await verify(Vault(store, vault.keys), depth="full", record=False)
    # then the others are told as hurt, and it isn't
    assert store.told > 1
    assert report.hurt
    assert newest.key not in {point.key for point in report.hurt}
    assert newest.key in report.read_again


@pytest.mark.parametrize("kind", ["points", "sweeps", "intent", "maps"])
async def test_what_is_half_at_both_readings_is_damaged_and_not_read_a_third_time(tmp_path: Path, kind: str) -> None:
    # given an object that is not what it was: cut short, or the root of a map altered in a bit
    shelf, points = await whole_world(tmp_path)
    if kind == "maps":
        vault = await vault_on(shelf)
        manifest, _ = await open_manifest(vault, max(points))
        assert manifest.root.page is not None
        root = Ref.of(manifest.root.page)
        name = vault.names.map(root.object)
        shelf.replace(name, flipped(shelf.objects[name][0], 8 * SLOT_UNIT * root.slot))
    else:
        name = max(points) if kind == "points" else min(name for name in shelf.objects if kind_of(name) == kind)
        shelf.replace(name, shelf.objects[name][0][:-20])
    # when it is verified
    report, store = await _verified(shelf, None)
    # then it is found, and was read twice
    assert [finding.key for finding in report.findings] == [name]
    assert report.read_again == ()
    assert Counter(store.requests)["get", name] == 2


@pytest.mark.quick
async def test_a_second_look_is_taken_at_damage_only_and_is_the_last() -> None:
    look = SecondLook()
    for first in (Damaged("one", "half"), UnsupportedFormat("one", "version 9")):
        answers: list[Exception | str] = [first, "whole"]
        assert await look.at(_from(answers)) == "whole"
        assert not answers
        with pytest.raises(Damaged, match="still"):
            await look.at(_from([first, Damaged("two", "still"), "never"]))
    assert look.names == ("one",)
    for error in (ObjectMissing("three"), StoreUnavailable("memory://", "no answer")):
        with pytest.raises(type(error)):
            await look.at(_from([error, "never"]))
    # what it tells by name is bounded
    for number in range(2 * REMEMBERED):
        look.opened(f"object-{number}")
    assert len(look.names) == REMEMBERED


def _from(answers: list[Exception | str]) -> Callable[[], Awaitable[str]]:
    async def read() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return read


@pytest.mark.parametrize("depth", ["full", 1.0])
@pytest.mark.parametrize("harmed", [[0], [3], [0, 1, 2]])
async def test_under_an_earlier_key_damage_of_some_chunks_is_blamed_on_those_alone(
    depth: Literal["full"] | float, harmed: list[int]
) -> None:
    # given a point, then a new key for its namespace, and chunks of its pack that are damaged, the first among them
    shelf = Shelf()
    old = await vault_on(shelf)
    manifest, _ = await open_manifest(old, (await backup(old, os.urandom(16 * 1024), sequence=1, chunk_size=1024)).key)
    entries = [entry async for batch in MapReader(old, manifest.root).batches() for _, entry in batch]
    vault = await (await Repository.open(shelf, MASTER)).rotate(NAMESPACE)
    (pack,) = [key for key in shelf.objects if "/packs/" in key]
    data, stored = shelf.objects[pack]
    content = bytearray(data)
    for at in harmed:
        content[entries[at].slot * SLOT_UNIT + 5] ^= 1
    shelf.objects[pack] = (bytes(content), stored)
    # when the repository is verified
    report = await verify(Vault(shelf, vault.keys), depth=depth, record=False)
    # then only these are lost, and whoever reads the others gets them, whichever is read first
    assert [hurt.chunks for hurt in report.hurt] == [len(harmed)]
    reader = PackReader(vault, 1024)
    sealed = await reader.fetch(entries[0].pack, entries)
    opened = []
    for at, one in enumerate(sealed):
        with contextlib.suppress(Damaged):
            assert vault.keys.chunk_id(reader.open(one)) == entries[at].id
            opened.append(at)
    assert opened == [at for at in range(16) if at not in harmed]
