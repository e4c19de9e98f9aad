"""Repositories that earlier releases wrote: both readers restore them, for ever.

A vector is never altered: what it pins is that the bytes of a release stay readable. Change the format, and a new
vector is added beside the old ones.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.blocks.restore import write_point
from orchestrator.blocks.target import Target
from orchestrator.repository.errors import UnsupportedFormat
from orchestrator.repository.keys import MasterKey
from orchestrator.repository.manifest import open_manifest
from orchestrator.repository.repository import Repository
from orchestrator.repository.store import open_store
from orchestrator.repository.vault import Vault
from orchestrator.repository.verify import verify
from tests.reader.stranger import Folder, Wrong, open_repository
from tests.vectors.make import make

HERE = Path(__file__).parent
PINNED = {
    "v1-basic": "7890416a2fabf7a0e0ce9ea7db9606fe3ecb571a9011e9cb9c0272902f798d2f",
    "v1-wide": "c25dbcf45a3a986e9ad5a6ff486197c1283f7d2db0420e4950bae8097e6d62d7",
    "v1-rewrapped": "59c0c8786f77999f3fb8f872f849d1b7652190bc004f545c214fccb753597024",
    "v1-compacted": "4a83dca4f9bcb0abaad409305eee58e73298aed6a429683bfe4be6b600eb1f97",
    "v1-rotated": "19673883cdf6c10f6420001e107cbfd5aefec43c1c89ce9cc3add09fa187c1fe",
}
"""SHA-256 over names and contents of all files of a vector: one that changed is no vector any more."""


def tree(folder: Path) -> str:
    """Return the digest of a folder's names and contents."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def expected(folder: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """Return the master key and the points."""
    document = json.loads((folder / "vector.json").read_text())
    assert document["points"]
    return bytes.fromhex(document["master"]), document["points"]


def check_stranger(folder: Path) -> None:
    """Restore every point with the reader that knows only the page."""
    master, points = expected(folder)
    (namespace,) = open_repository(Folder(folder / "repository"), master)
    assert set(namespace.points()) == {point["key"] for point in points}
    for point in points:
        wanted = {offset: bytearray(length) for offset, length in point["ranges"]}
        for offset, data in namespace.data(point["key"], point["digest"]):
            (start,) = [at for at in wanted if at <= offset < at + len(wanted[at])]
            assert offset + len(data) <= start + len(wanted[start])
            wanted[start][offset - start : offset - start + len(data)] = data
        found = hashlib.sha256(b"".join(wanted[offset] for offset, _ in point["ranges"])).hexdigest()
        assert found == point["sha256"], point["key"]


async def check_ours(folder: Path, target: Path) -> None:
    """Restore every point as a mover does, and verify every byte."""
    master, points = expected(folder)
    repository = await Repository.open(await open_store(f"file://{folder / 'repository'}"), MasterKey(master))
    (identity,) = await repository.namespaces()
    vault = await repository.vault(identity)
    for point in points:
        assert await _restored(vault, point, target) == point["sha256"]
    report = await verify(vault, depth="full", record=False)
    assert report.ok, report
    assert report.points == len(points)


async def _restored(vault: Vault, point: dict[str, Any], target: Path) -> str:
    target.unlink(missing_ok=True)
    manifest, _ = await open_manifest(vault, point["key"], digest=point["digest"])
    with Target.create(target, manifest.root.volume_size) as opened:
        await write_point(vault, manifest, opened)
    assert target.stat().st_size == point["size"]
    held = sum(length for _, length in point["ranges"])
    assert target.stat().st_blocks * 512 <= held + (1 << 20), "holes stay holes"
    digest = hashlib.sha256()
    with target.open("rb") as file:
        for offset, length in point["ranges"]:
            file.seek(offset)
            digest.update(file.read(length))
    return digest.hexdigest()


def test_every_vector_is_pinned_and_none_was_altered() -> None:
    found = {path.parent.name: tree(path.parent) for path in HERE.glob("*/vector.json")}
    assert found == PINNED


@pytest.mark.parametrize("name", PINNED)
def test_a_stranger_reads_the_vector(name: str) -> None:
    check_stranger(HERE / name)


@pytest.mark.parametrize("name", PINNED)
def test_a_stranger_finds_every_chunk_of_a_pack_by_its_footer(name: str) -> None:
    # given the packs of a vector
    objects = Folder(HERE / name / "repository")
    (namespace,) = open_repository(objects, expected(HERE / name)[0])
    packs = [key for key in objects if "/packs/" in key]
    assert packs
    for pack in packs:
        # when their footers are read as the page says
        entries = [entry for _, entry in namespace.footer(pack)]
        # then the frames follow each other, and each opens to the chunk that it must be
        slots = [1] + [entry.slot + -(-entry.length // 64) for entry in entries]
        assert [entry.slot for entry in entries] == slots[:-1]
        for entry in entries:
            namespace.chunk(entry, 1 << 20)


@pytest.mark.parametrize("name", PINNED)
async def test_this_release_reads_the_vector_and_leaves_it_as_it_is(name: str, tmp_path: Path) -> None:
    await check_ours(HERE / name, tmp_path / "back")
    assert tree(HERE / name) == PINNED[name]


@pytest.mark.system
async def test_the_command_that_makes_vectors_still_does(tmp_path: Path) -> None:
    await make("v1-compacted", tmp_path / "vector")
    check_stranger(tmp_path / "vector")
    await check_ours(tmp_path / "vector", tmp_path / "back")


async def test_a_repository_that_was_raised_to_a_later_version_is_refused_by_both_readers(tmp_path: Path) -> None:
    # given a repository whose key was wrapped again by a release of version 2
    shutil.copytree(HERE / "v1-basic" / "repository", tmp_path / "repository")
    wrap = bytearray((tmp_path / "repository" / "keys" / "00000000").read_bytes())
    wrap[8] = 2
    (tmp_path / "repository" / "keys" / "00000001").write_bytes(wrap)
    # then this release says that it is too old, and a stranger does as well
    with pytest.raises(UnsupportedFormat, match="version 2"):
        await Repository.open(await open_store(f"file://{tmp_path / 'repository'}"), MasterKey(bytes(range(32))))
    with pytest.raises(Wrong, match="version"):
        open_repository(Folder(tmp_path / "repository"), bytes(range(32)))


def test_the_page_names_every_member_of_every_document() -> None:
    # given all documents of all vectors
    page = (HERE.parents[1] / "docs" / "repository-format.md").read_text()
    seen: set[str] = set()
    for name in PINNED:
        folder = Folder(HERE / name / "repository")
        (namespace,) = open_repository(folder, expected(HERE / name)[0])
        for key, data in folder.items():
            if data[:8] == b"TIDEMARK" and key.startswith("n/") and data[9] not in (3, 4):
                seen |= set(_members(namespace.open(data[9], key, data)[0]))
    # then the page names each of their members
    assert len(seen) > 60
    assert not sorted(member for member in seen if f"`{member}`" not in page)


def _members(value: object) -> Iterator[str]:
    """Yield the names of all members; below those that hold what a cluster said, they are free."""
    if isinstance(value, dict):
        for member, below in value.items():
            yield member
            if member not in ("seconds", "digests"):
                yield from _members(below)
    elif isinstance(value, list):
        for below in value:
            yield from _members(below)
