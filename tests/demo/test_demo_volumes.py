"""The demonstration's volumes: made, changed, and judged by their own tools."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from orchestrator.demo.volumes import BLOCK, Archive, Database, Files, sha256_of

pytestmark = pytest.mark.quick


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "volume.img"
    path.touch()
    os.truncate(path, 64 << 20)
    return path


@pytest.mark.parametrize("ext4", [True, False], ids=["ext4", "tar"])
def test_changed_files_stay_sound_and_damage_is_told(image: Path, ext4: bool) -> None:
    files = Files(seed=1)
    files.ext4 = files.ext4 and ext4
    files.make(image)
    before = files.check(image)
    files.change(image, 1)
    files.change(image, 2)
    assert files.check(image)
    assert before
    with image.open("r+b") as broken:
        broken.write(b"\xff" * (1 << 16))
    with pytest.raises(ValueError, match="says"):
        files.check(image)


def test_a_database_on_a_raw_volume_grows_in_place(image: Path) -> None:
    database = Database(image)
    database.make()
    for _ in range(3):
        database.write()
    assert Database.check(image) == "PRAGMA integrity_check: ok, 5060 rows"
    assert image.stat().st_size == 64 << 20


def test_an_archive_rewrites_only_blocks_in_use_and_hashes_as_a_whole(image: Path) -> None:
    archive = Archive(image, 64 << 20, changes=10, seed=3)
    archive.make()
    before = image.read_bytes()
    changed = archive.change()
    after = image.read_bytes()
    blocks = [slice(b * BLOCK, (b + 1) * BLOCK) for b in range((64 << 20) // BLOCK)]
    different = [number for number, block in enumerate(blocks) if before[block] != after[block]]
    assert different == changed
    assert set(changed) <= set(archive.blocks)
    assert sha256_of(image) == hashlib.sha256(after).hexdigest()
