"""The page is enough: a reader written from `docs/repository-format.md` alone restores what our writer wrote."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.blocks.volumes import CHUNK, Volume, take, vault_at
from tests.reader.stranger import Folder, Wrong, open_repository

STRANGER = Path(__file__).with_name("stranger.py")
ROOT = STRANGER.parents[2]
KEY = bytes(range(32))
ALLOWED = {"blake3", "cryptography", "backports", "compression", *sys.stdlib_module_names}


@pytest.mark.quick
def test_the_stranger_imports_nothing_of_ours() -> None:
    # given every import statement of the reader, wherever it stands
    names: set[str] = set()
    for node in ast.walk(ast.parse(STRANGER.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add((node.module or "").partition(".")[0])
    # then each is the standard library or one of three public ones
    assert names <= ALLOWED
    # and what they load in turn is nothing of ours
    script = f"import runpy, sys; runpy.run_path({str(STRANGER)!r}); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not [name for name in loaded if name.partition(".")[0] in ("orchestrator", "policies", "msgspec", "obstore")]


async def _three_points(folder: Path) -> dict[str, bytes]:
    """Take a full, a delta after writes, discards and growth, and a fallback; return manifest name -> volume."""
    volume = Volume(folder / "volume", 90 * CHUNK + 777)
    volume.scatter(0.6)
    vault = await vault_at(folder / "repository")
    first = await take(vault, volume.path)
    wanted = {first.ref.key: volume.path.read_bytes()}
    volume.write(3 * CHUNK, bytes(2 * CHUNK))
    volume.noise(40 * CHUNK, 3 * CHUNK)
    volume.resize(100 * CHUNK + 5)
    volume.text(99 * CHUNK, CHUNK + 5)
    touched = [(3 * CHUNK, 2 * CHUNK), (40 * CHUNK, 3 * CHUNK), (99 * CHUNK, CHUNK + 5)]
    second = await take(vault, volume.path, touched, mode="delta", base=first)
    wanted[second.ref.key] = volume.path.read_bytes()
    volume.write(50 * CHUNK, bytes(7 * CHUNK))
    third = await take(vault, volume.path, mode="full", base=second)
    wanted[third.ref.key] = volume.path.read_bytes()
    return wanted


async def test_a_stranger_restores_every_point_from_the_page_alone(tmp_path: Path) -> None:
    wanted = await _three_points(tmp_path)
    (namespace,) = open_repository(Folder(tmp_path / "repository"), KEY)
    found = namespace.points()
    assert {name: namespace.volume(name) for name in found} == wanted
    assert [manifest["record"]["sequence"] for manifest in found.values()] == sorted(
        manifest["record"]["sequence"] for manifest in found.values()
    )
    # and finds the parents by name and digest, as the page says
    for manifest in found.values():
        parent = manifest["record"]["parent"]
        if parent is not None:
            assert namespace.volume(parent["key"], parent["digest"]) == wanted[parent["key"]]


@pytest.mark.system
def test_the_strangers_command_lists_and_restores(tmp_path: Path) -> None:
    wanted = asyncio.run(_three_points(tmp_path))
    (tmp_path / "key").write_bytes(KEY)
    command = [sys.executable, "-m", "tests.reader.stranger", str(tmp_path / "repository"), str(tmp_path / "key")]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(listed) == len(wanted)
    point, target = listed[0].split()[0], tmp_path / "back"
    subprocess.run([*command, point, str(target)], cwd=ROOT, check=True)
    (name,) = [name for name in wanted if name.endswith(point)]
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(wanted[name]).digest()


async def test_the_stranger_refuses_what_our_reader_refuses(tmp_path: Path) -> None:
    wanted = await _three_points(tmp_path)
    folder = Folder(tmp_path / "repository")
    with pytest.raises(Wrong, match="another key"):
        open_repository(folder, bytes(32))
    objects = dict(folder)
    # when one bit of any pack, page or manifest flips, then no point that needs it comes out wrong
    for name in [name for name in objects if name.split("/")[2:3] in (["packs"], ["maps"], ["points"])]:
        good = objects[name]
        flipped = bytearray(good)
        flipped[len(good) // 2] ^= 1
        objects[name] = bytes(flipped)
        (namespace,) = open_repository(objects, KEY)
        for point, volume in wanted.items():
            try:
                assert namespace.volume(point) == volume
            except Wrong:
                continue
        objects[name] = good
