"""Real block devices: read past the page cache, zeroed by the device, read back from the medium."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.blocks.errors import DeviceUnavailable, TargetFull
from orchestrator.blocks.readback import read_back
from orchestrator.blocks.restore import write_point
from orchestrator.blocks.source import Source
from orchestrator.blocks.target import Target
from orchestrator.repository.manifest import open_manifest
from tests.blocks.volumes import CHUNK, Volume, take, vault_at

SIZE = 40 * CHUNK


def attach(path: Path) -> str:
    """Make a loop device of a file; skip where this machine or account can't."""
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        pytest.skip("needs root and losetup to make block devices")
    done = subprocess.run(["losetup", "-f", "--show", str(path)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this machine has no loop devices")
    return done.stdout.strip()


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    volume = Volume(tmp_path / "volume", SIZE)
    volume.noise(2 * CHUNK, 9 * CHUNK)
    volume.noise(30 * CHUNK, 5 * CHUNK)
    return volume


@pytest.fixture
def device(volume: Volume) -> Iterator[str]:
    name = attach(volume.path)
    yield name
    subprocess.run(["losetup", "-d", name], check=True)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "old"
    path.write_bytes(b"old!" * ((SIZE + 8 * CHUNK) // 4))
    name = attach(path)
    yield name
    subprocess.run(["losetup", "-d", name], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system on a disk of its own, with less room than the volume has content."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("needs mkfs.ext4 to make a file system")
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 16 * CHUNK)
    name = attach(image)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    try:
        subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-O", "^has_journal", "-m", "0", name], check=True)
        subprocess.run(["mount", name, str(mounted)], check=True)
        yield mounted
        subprocess.run(["umount", str(mounted)], check=True)
    finally:
        subprocess.run(["losetup", "-d", name], check=True)


async def test_a_disk_that_fills_up_past_the_page_cache_is_told_and_left_as_it_was(
    tmp_path: Path, volume: Volume, small_disk: Path
) -> None:
    # given a point of 14 chunks, and a disk that somebody left 6 of
    vault = await vault_at(tmp_path / "repository")
    point = await take(vault, volume.path, [(0, SIZE)], size=SIZE)
    manifest, _ = await open_manifest(vault, point.ref.key)
    room = os.statvfs(small_disk)
    other = small_disk / "other"
    other.write_bytes(bytes(room.f_bavail * room.f_frsize - 6 * CHUNK))
    # when it is restored to a file there
    target = Target.for_restore(small_disk / "back", SIZE)
    assert target.direct
    with pytest.raises(TargetFull), target:
        await write_point(vault, manifest, target)
    # then nothing of it is left
    assert sorted(path.name for path in small_disk.iterdir()) == ["lost+found", "other"]


async def test_a_block_device_goes_to_a_used_larger_one_bit_for_bit(
    tmp_path: Path, volume: Volume, device: str, target: str
) -> None:
    # given a block device, and a larger one that holds somebody's old data
    vault = await vault_at(tmp_path / "repository")
    with Source.open(device) as source:
        assert source.size == SIZE
        assert source.is_device
    # when the first is backed up and restored onto the second
    point = await take(vault, Path(device), [(0, SIZE)], size=SIZE)
    manifest, _ = await open_manifest(vault, point.ref.key)
    with Target.open(target, SIZE) as filled:
        await write_point(vault, manifest, filled)
        assert filled.zeroed == SIZE + 8 * CHUNK - 14 * CHUNK
    digest = await read_back(vault, manifest, target, sha256=True)
    # then the second holds it, and zeros beyond
    assert digest == volume.sha256()
    assert Path(target).read_bytes() == volume.path.read_bytes() + bytes(8 * CHUNK)


def test_a_device_that_the_machine_uses_is_not_written_over(target: str) -> None:
    # given a device that is held, as a mount, swap or an array holds its own
    held = os.open(target, os.O_RDONLY | os.O_EXCL)
    try:
        # when a person restores to it, then it is refused before the first write
        with pytest.raises(DeviceUnavailable, match="busy"):
            Target.for_restore(target, SIZE)
    finally:
        os.close(held)
    assert Path(target).read_bytes()[:4] == b"old!"
    Target.for_restore(target, SIZE).close()
