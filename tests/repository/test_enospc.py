"""No room left: where the repository lives, where a restore goes. And what isn't a repository, or not ours to open.

Real file systems of a few MiB (a tmpfs each; needs root, as CI has), the real command line: one line, an exit code,
nothing damaged, and all goes on when there is room again.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from tests.blocks.volumes import CHUNK, Volume

pytestmark = pytest.mark.system

TERMINAL, RETRYABLE = 65, 75
MIB = 1 << 20


class Person:
    """Types commands at a repository."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys, self.key = capsys, folder / "master.key"
        self.key.write_bytes(bytes(range(32)))

    def types(self, url: Path, *command: str, key: Path | None = None) -> tuple[int, str, str]:
        """Run a command; return exit code, output and the one line of an error."""
        self.capsys.readouterr()
        code = main([*command, "--repository", f"file://{url}", "--key-file", str(key or self.key)])
        said = self.capsys.readouterr()
        assert "Traceback" not in said.err
        assert said.err.count("\n") == (1 if code else 0), said.err
        return code, said.out, said.err

    def copies(self, url: Path, volume: Path, *more: str) -> str:
        """Back up; return the point's id."""
        code, out, err = self.types(url, "copy", str(volume), *more)
        assert code == 0, err
        return out.split()[1]

    def restores(self, url: Path, point: str, to: Path) -> int:
        """Restore into a new file; return the exit code."""
        return self.types(url, "restore", "--point", point, "--to", str(to))[0]


@pytest.fixture
def person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Person:
    return Person(tmp_path, capsys)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    volume = Volume(tmp_path / "disk.img", 6 * MIB + 512, seed=5)
    volume.noise(0, 3 * MIB)
    return volume


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 8 MiB."""
    if os.geteuid() != 0:
        if os.environ.get("TIDEMARK_NO_SKIPS"):
            pytest.fail("mounting a small file system needs root")
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_repository_is_named_keeps_its_points_and_goes_on_with_room_again(
    person: Person, volume: Volume, small: Path, tmp_path: Path
) -> None:
    # given a repository on a file system that has room for one point
    repository = small / "repository"
    first = person.copies(repository, volume.path, "--create")
    before = volume.path.read_bytes()
    volume.noise(0, 6 * MIB)
    # when the second doesn't fit
    code, _, err = person.types(repository, "copy", str(volume.path))
    # then that is said in a line, to be tried again
    assert code == RETRYABLE
    assert "no space left" in err
    # and the first point is whole, while it is full
    assert person.types(repository, "verify", "--full")[0] == 0
    assert person.restores(repository, first, tmp_path / "back") == 0
    assert (tmp_path / "back").read_bytes() == before
    # and with room again the next backup completes
    subprocess.run(["mount", "-o", "remount,size=32m", str(small)], check=True)
    second = person.copies(repository, volume.path)
    assert person.restores(repository, second, tmp_path / "back2") == 0
    assert (tmp_path / "back2").read_bytes() == volume.path.read_bytes()
    assert person.types(repository, "verify", "--full")[0] == 0


def test_maintenance_makes_room_in_a_full_repository(person: Person, volume: Volume, small: Path) -> None:
    # given a repository without a byte to spare, most of it removed points
    repository = small / "repository"
    first = person.copies(repository, volume.path, "--create")
    volume.noise(0, 3 * MIB)
    kept = person.copies(repository, volume.path)
    filler = small / "filler"
    assert person.types(repository, "prune", "--point", first, "--yes")[0] == 0
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
    with suppress(OSError):
        while os.write(descriptor, bytes(4096)):
            pass
    os.close(descriptor)
    # when maintenance has nowhere to write, then it says so in a line, and nothing is hurt
    code, _, err = person.types(repository, "maintenance", "--grace", "0")
    assert (code, "no space left" in err) == (RETRYABLE, True)
    filler.unlink()
    # and with a little room it goes on
    for _ in range(2):
        assert person.types(repository, "maintenance", "--grace", "0")[0] == 0
    assert person.types(repository, "verify", "--full")[0] == 0
    used = sum(path.stat().st_size for path in repository.rglob("*") if path.is_file())
    assert used < 4 * MIB
    assert kept in person.types(repository, "restore", "--list")[1]


def test_a_full_restore_target_is_named_and_no_half_volume_stays(
    person: Person, volume: Volume, small: Path, tmp_path: Path
) -> None:
    # given a point of 10 MiB of data
    repository = tmp_path / "repository"
    volume.resize(10 * MIB)
    volume.noise(0, 10 * MIB)
    point = person.copies(repository, volume.path, "--create")
    # when it is restored to a file system of 8 MiB
    code, _, err = person.types(repository, "restore", "--point", point, "--to", str(small / "back"))
    # then the target is named, and nothing that looks like a volume stays there
    assert code in (TERMINAL, RETRYABLE)
    assert "no space left" in err.lower()
    assert str(small / "back") in err
    assert not (small / "back").exists()
    # and the repository is as it was, and somewhere else it fits
    assert person.types(repository, "verify", "--full")[0] == 0
    assert person.restores(repository, point, tmp_path / "back") == 0
    assert (tmp_path / "back").read_bytes() == volume.path.read_bytes()


def test_a_wrong_key_and_a_foreign_directory_are_refused_by_every_command_and_stay_as_they_are(
    person: Person, volume: Volume, tmp_path: Path
) -> None:
    # given a repository, another key, and somebody's home
    repository, foreign = tmp_path / "repository", tmp_path / "home"
    point = person.copies(repository, volume.path, "--create")
    other = tmp_path / "other.key"
    other.write_bytes(bytes(32))
    foreign.mkdir()
    (foreign / "letter.txt").write_text("dear")
    commands = {
        "copy": ["copy", str(volume.path), "--create"],
        "restore": ["restore", "--point", point, "--to", str(tmp_path / "back")],
        "list": ["restore", "--list"],
        "verify": ["verify", "--full"],
        "prune": ["prune", "--point", point, "--yes"],
        "maintenance": ["maintenance"],
    }
    before = _files(repository)
    for command in commands.values():
        # when any command comes with the wrong key, or to the wrong place, then it is told so and changes nothing
        code, _, err = person.types(repository, *command, key=other)
        assert (code, "key does not open" in err) == (TERMINAL, True), command
        code, _, err = person.types(foreign, *command)
        assert (code, "not a Tidemark repository" in err) == (TERMINAL, True), command
    assert _files(repository) == before
    assert _files(foreign) == {"letter.txt": b"dear"}
    assert not (tmp_path / "back").exists()
    assert volume.size > CHUNK


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
