"""Damage, then the next backup: it completes, and holds again whatever the volume still holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from tests.blocks.volumes import CHUNK, Volume, give_back, take, vault_on
from tests.reader.stranger import open_repository
from tests.repository.faults import Shelf

pytestmark = pytest.mark.system


class Person:
    """Backs up one volume into one directory."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys, self.repository = folder, capsys, folder / "repository"
        (folder / "key").write_bytes(bytes(range(32)))
        self.where = ["--repository", f"file://{self.repository}", "--key-file", str(folder / "key")]
        self.volume = Volume(folder / "disk.img", 50 * CHUNK + 9, seed=9)
        self.volume.noise(0, 20 * CHUNK)

    def types(self, *command: str) -> tuple[int, str, str]:
        """Run a command; return exit code, output and what was said of errors."""
        self.capsys.readouterr()
        code = main([*command, *self.where])
        said = self.capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    def copies(self, *more: str) -> dict[str, str]:
        """Back up; return the figures."""
        code, out, err = self.types("copy", str(self.volume.path), "--json", "-", *more)
        assert code == 0, err
        found: dict[str, str] = json.loads(out)
        return found

    def hurt(self) -> set[str]:
        """Verify every byte; return the points that can't be read back whole."""
        found = self.folder / "found.json"
        self.types("verify", "--full", "--no-record", "--json", str(found))
        return {
            point["key"].rpartition("/")[2].partition("-")[2]
            for report in json.loads(found.read_bytes())
            for point in report["hurt"]
        }

    def restored(self, point: str) -> bool:
        """Say whether a point restores to what the volume is now."""
        back = self.folder / "back"
        back.unlink(missing_ok=True)
        code, _, _ = self.types("restore", "--point", point, "--to", str(back))
        return code == 0 and back.read_bytes() == self.volume.path.read_bytes()


def flip(path: Path, at: int) -> None:
    """Alter one byte."""
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(("kind", "which"), [("packs", 0), ("maps", 0), ("maps", 1), ("points", 0)])
@pytest.mark.parametrize("harm", ["flipped", "gone"])
def test_the_backup_after_damage_completes_and_is_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, which: int, harm: str
) -> None:
    # given a point of which one object is damaged or gone, and verify has seen that
    person = Person(tmp_path, capsys)
    first = person.copies("--create")
    objects = sorted(person.repository.glob(f"n/*/{kind}/*/*"), key=lambda one: one.stat().st_size)
    assert len(objects) == (2 if kind == "maps" else 1), "of a map, the page above and its leaves"
    path = objects[which]
    if harm == "flipped":
        flip(path, path.stat().st_size // 2)
    else:
        path.unlink()
    code, _, _ = person.types("verify", "--full")
    assert code == 65 or (kind, harm) == ("points", "gone"), "a missing manifest is told from memory outside alone"
    assert not person.restored(first["point"])
    # when the volume changes a little and is backed up again
    person.volume.noise(30 * CHUNK, CHUNK)
    second = person.copies()
    # then the new point is whole, and its successors are
    assert person.restored(second["point"])
    third = person.copies()
    assert person.restored(third["point"])
    # and the damage is told of the first one alone, for as long as it is there
    lost = harm == "gone" and kind == "points"
    assert person.hurt() == (set() if lost else {first["point"]})
    if not lost:
        said = person.types("prune", "--point", first["point"], "--yes")
        assert said[0] == 0, said
        assert person.hurt() == set()
        assert person.types("maintenance")[0] == 0, "what can't be read must not block sweeping once it is removed"


def test_a_damaged_manifest_hides_no_other_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # given three points, the manifest of the second damaged
    person = Person(tmp_path, capsys)
    points = [person.copies("--create") for _ in range(3)]
    flip(person.repository / points[1]["manifest"], 100)
    # when the points are listed, then the others are there, and the damaged one is told
    code, listed, err = person.types("restore", "--list")
    assert code == 0
    assert [point["point"] in listed for point in points] == [True, False, True]
    assert points[1]["point"] in err
    # and they restore
    assert person.restored(points[0]["point"])
    assert person.restored(points[2]["point"])
    assert not person.restored(points[1]["point"])


async def test_what_was_discarded_does_not_come_back_with_a_fallback(tmp_path: Path) -> None:
    # given a base whose chunks are not zero, most of which are discarded after it
    volume = Volume(tmp_path / "volume", 20 * CHUNK)
    volume.noise(0, 20 * CHUNK)
    shelf = Shelf()
    vault = await vault_on(shelf)
    base = await take(vault, volume.path)
    volume.write(2 * CHUNK, bytes(15 * CHUNK))
    # when the driver can't tell what changed: allocated extents, and a full read, both compared with the base
    held = [(0, 2 * CHUNK), (17 * CHUNK, 3 * CHUNK)]
    allocated = await take(vault, volume.path, held, mode="allocated", base=base)
    full = await take(vault, volume.path, mode="full", base=base)
    # then what was discarded is zero in both, for our reader and for a stranger's, and nothing was stored twice
    (namespace,) = open_repository(shelf.plain(), bytes(range(32)))
    for number, point in enumerate((allocated, full)):
        assert await give_back(vault, point, tmp_path / f"back-{number}") == volume.sha256()
        assert namespace.volume(point.ref.key) == volume.path.read_bytes()
        assert point.stats.chunks_stored == 0
