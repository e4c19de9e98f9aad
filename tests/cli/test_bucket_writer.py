"""Somebody without any key who may write into the bucket: what he does is told, and hurts nothing he leaves alone.

The directory store stands for the bucket. Every attack is on a copy of one repository with two points of one volume;
the second one is left alone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from tests.blocks.volumes import CHUNK

pytestmark = pytest.mark.system
LAST = 10**12 - 1
STRANGE = b"\xff" * 4


class Bucket:
    """A repository's folder, and what its owner types."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str] | None = None) -> None:
        self.folder, self.capsys = folder, capsys
        self.root = folder / "repository"
        self.volume = folder / "volume"
        self.where = ["--repository", self.root.as_uri(), "--key-file", str(folder / "key")]

    def types(self, *command: str) -> tuple[int, str, str]:
        """Run a command; return exit code, stdout and stderr."""
        assert self.capsys is not None
        self.capsys.readouterr()
        code = main([*command, *self.where])
        said = self.capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    @property
    def namespace(self) -> Path:
        """Return the folder of the only namespace."""
        return next((self.root / "n").iterdir())

    @property
    def points(self) -> list[Path]:
        """Return the manifests' files, oldest first."""
        return sorted(self.namespace.glob("points/*/0*"))

    def put(self, name: str, data: bytes = b"mine\n") -> Path:
        """Add an object to the namespace."""
        path = self.namespace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bucket")
    bucket = Bucket(folder)
    assert main(["key", "generate", str(folder / "key")]) == 0
    for _ in range(2):
        bucket.volume.write_bytes(os.urandom(6 * CHUNK + 512))
        assert main(["copy", str(bucket.volume), "--create", *bucket.where]) == 0
    return folder


@pytest.fixture
def bucket(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Bucket]:
    shutil.copytree(made, tmp_path / "copy")
    before = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(120)  # a reader that waits for a pipe would wait for ever
    copy = Bucket(tmp_path / "copy", capsys)
    copy.volume = made / "volume"  # points are kept by path
    yield copy
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _patch(path: Path, *places: tuple[int, bytes]) -> None:
    data = bytearray(path.read_bytes())
    for start, piece in places:
        data[start : start + len(piece)] = piece
    path.write_bytes(data)


def _huge(bucket: Bucket) -> None:
    with bucket.put(f"points/{bucket.points[0].parent.name}/000000000009-x").open("wb") as file:
        file.truncate(1 << 42)


ATTACKS: dict[str, Callable[[Bucket], object]] = {
    "a point of the last number": lambda b: b.put(f"points/{b.points[0].parent.name}/{LAST}-x"),
    "a point of another volume's": lambda b: b.put("points/x/y"),
    "a point under the id of the sound one": lambda b: b.put("points/x/000000000001-" + b.points[1].name[13:]),
    "an old manifest as a newer one": lambda b: shutil.copy(
        b.points[0], b.points[0].with_name(b.points[0].name.replace("000000000001", "000000000009"))
    ),
    "a manifest larger than memory": _huge,
    "a manifest of a later version": lambda b: _patch(b.points[0], (8, b"\2")),
    "a manifest of an epoch that is none": lambda b: _patch(b.points[0], (12, STRANGE)),
    "a manifest of an epoch and a key that are none": lambda b: _patch(b.points[0], (12, STRANGE), (48, b"x" * 16)),
    "two manifests exchanged": lambda b: shutil.copy(
        b.points[0], b.put(f"points/{b.points[0].parent.name}/000000000003-x")
    ),
}
"""Each is told by `verify`, by name."""
UNSEEN: dict[str, Callable[[Bucket], object]] = {
    "a pipe among the points": lambda b: os.mkfifo(b.points[0].with_name("000000000009-pipe")),
    "a device among the points": lambda b: b.points[0].with_name("000000000009-zero").symlink_to("/dev/zero"),
    "a name with a backslash": lambda b: b.put(f"points/{b.points[0].parent.name}/a\\b"),
    "a name that is no text": lambda b: b.put(os.fsdecode(f"points/{b.points[0].parent.name}/".encode() + b"\xff")),
    "a name that colours a terminal": lambda b: b.put(f"points/{b.points[0].parent.name}/a\n\x1b[31m"),
    "names beside the keys": lambda b: [
        (b.root / "keys" / name).write_bytes(b"x") for name in ("x0000001", "000000001")
    ],
    "names beside the namespaces' keys": lambda b: (b.root / "namespaces" / "x").write_bytes(b"x"),
}
"""Nothing of ours could be there: these count as not there."""


@pytest.mark.parametrize("attack", [*ATTACKS, *UNSEEN])
def test_what_a_strange_object_is_told_and_the_rest_goes_on(bucket: Bucket, attack: str) -> None:
    # given a repository into which somebody put something
    sound, volume, back = bucket.points[1].name[13:], bucket.volume, bucket.folder / "back"
    (ATTACKS | UNSEEN)[attack](bucket)
    # then the point that he left alone is listed and comes back bit for bit
    code, listed, _ = bucket.types("restore", "--list", "-o", "json")
    assert code == 0
    assert sound in [one["point"] for one in json.loads(listed)]
    assert bucket.types("restore", "--point", sound, "--to", str(back))[0] == 0
    assert back.read_bytes() == volume.read_bytes()
    # and the volume can be backed up, with a number that leaves room, and nothing is stored again
    code, figures, err = bucket.types("copy", str(volume), "--json", "-")
    assert code == 0, err
    made = json.loads(figures)
    assert made["stats"]["chunksStored"] == 0
    assert int(made["manifest"].rpartition("/")[2][:12]) < 20
    # and whoever looks is told
    code, out, err = bucket.types("verify", "--no-record")
    assert code == (65 if attack in ATTACKS else 0), err
    assert "\x1b" not in out + err
    # and maintenance either goes on, or names what keeps it from deleting
    code, _, err = bucket.types("maintenance")
    assert (code == 65 and "Nothing was deleted" in err) if attack in ATTACKS else code == 0, err


@pytest.mark.parametrize("name", ["keys/99999999", "namespaces/{}/00000009"])
def test_a_key_that_is_none_closes_what_hangs_on_it_and_the_remedy_opens_it_again(bucket: Bucket, name: str) -> None:
    # given an object where the next key would be
    path = bucket.root / name.format(bucket.namespace.name)
    path.write_bytes(b"mine")
    # then it is named, with what to do
    code, _, err = bucket.types("restore", "--list")
    assert code == 65
    assert path.name in err
    assert "take it away" in err
    # and that helps
    path.unlink()
    assert bucket.types("verify")[0] == 0


def test_a_footer_that_claims_a_whole_pack_is_found_and_costs_nothing(bucket: Bucket) -> None:
    # given packs whose trailers, which nothing seals, say that the footer is all of the object
    for pack in bucket.namespace.glob("packs/*/*"):
        size = pack.stat().st_size
        _patch(pack, (size - 16, (0).to_bytes(4, "little") + (size - 16).to_bytes(4, "little")))
    # then a whole verification finds each, and no point is hurt by it: restores don't read footers
    code, out, _ = bucket.types("verify", "--full", "--no-record")
    assert code == 65
    assert len([line for line in out.splitlines() if "/packs/" in line and "slot 0 doesn't open" in line]) == 2
    back = bucket.folder / "back"
    assert bucket.types("restore", "--point", bucket.points[1].name[13:], "--to", str(back))[0] == 0
    assert back.read_bytes() == bucket.volume.read_bytes()


def test_a_strangers_point_that_stops_the_volumes_backups_is_pruned_by_the_name_that_verify_gives(
    bucket: Bucket,
) -> None:
    # given an object above the newest point, whose header names an epoch and a key that are none
    junk = bucket.points[1].with_name("000000000009-x")
    shutil.copy(bucket.points[1], junk)
    _patch(junk, (12, STRANGE), (48, b"x" * 16))
    # then a backup stops: it might be of an epoch whose key somebody took away
    assert bucket.types("copy", str(bucket.volume))[0] == 75
    # and when the point that `verify` names is pruned, all goes on
    assert "Hurt: point 000000000009-x " in bucket.types("verify", "--no-record")[1]
    assert bucket.types("prune", "--point", "x", "--yes")[0] == 0
    for command in (("verify",), ("maintenance",), ("copy", str(bucket.volume))):
        code, _, err = bucket.types(*command)
        assert code == 0, err
