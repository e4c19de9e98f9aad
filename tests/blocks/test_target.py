"""A target holds what was written, and zeros where zeros belong, or the error says why not."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from orchestrator.blocks.errors import (
    DeviceMissing,
    NotADevice,
    TargetExists,
    TargetFull,
    TargetTooSmall,
    TargetUnfinished,
)
from orchestrator.blocks.source import Source
from orchestrator.blocks.target import Target

pytestmark = pytest.mark.quick
KIB = 1024


def names(folder: Path) -> list[str]:
    """Return what is in a folder."""
    return [path.name for path in folder.iterdir()]


def test_a_new_file_is_sparse_and_its_holes_stay_holes(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with Target.create(path, 1 << 30) as target:
        target.write(512 << 20, b"x" * 4096)
        target.zero(0, 512 << 20)
        target.finish()
    assert path.stat().st_size == 1 << 30
    assert path.stat().st_blocks * 512 <= 1 << 20


def test_a_new_file_that_was_not_filled_to_its_end_is_gone_and_one_that_was_there_stays(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    old.write_bytes(b"old!")

    def fill_half(path: Path) -> None:
        with Target.for_restore(path, 4, overwrite=True) as target:
            target.write(0, b"ab")
            raise RuntimeError("half-way")

    for path in (new, old):
        with pytest.raises(RuntimeError, match="half-way"):
            fill_half(path)
    assert not new.exists()
    assert old.read_bytes() == b"abd!"


@pytest.fixture(params=["links", "no links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system with hard links, then one without any."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    if request.param == "no links":
        monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("links")
def test_a_new_file_has_its_name_only_when_it_is_kept(tmp_path: Path) -> None:
    # given a new file, filled and not yet kept
    with Target.for_restore(tmp_path / "new", 4) as target:
        target.write(0, b"abcd")
        target.finish()
        before = names(tmp_path)
        # when it is kept, twice even
        target.keep()
        target.keep()
    # then before nothing had its name, and afterwards it has no other
    assert before == ["new.partial"]
    assert names(tmp_path) == ["new"]
    assert (target.path, (tmp_path / "new").read_bytes()) == (str(tmp_path / "new"), b"abcd")
    # and one that nobody kept is gone
    with Target.for_restore(tmp_path / "other", 4):
        pass
    assert names(tmp_path) == ["new"]


def test_what_a_killed_restore_left_is_neither_taken_nor_overwritten(tmp_path: Path) -> None:
    left = tmp_path / "new.partial"
    left.write_bytes(b"left")
    for overwrite in (False, True):
        with pytest.raises(TargetUnfinished, match=r"new\.partial"):
            Target.for_restore(tmp_path / "new", 4, overwrite=overwrite)
    assert left.read_bytes() == b"left"


@pytest.mark.usefixtures("links")
def test_a_name_that_was_taken_meanwhile_is_left_alone_and_the_volume_kept_beside_it(tmp_path: Path) -> None:
    # given a name that somebody takes while it is restored to
    name = tmp_path / "new"
    with Target.for_restore(name, 4) as target:
        target.write(0, b"abcd")
        name.symlink_to("nowhere")
        # when the restore is done
        with pytest.raises(TargetExists, match=r"whole, in .*new\.partial"):
            target.keep()
    # then both are there, and a name that leads nowhere is refused at once next time
    assert (str(name.readlink()), (tmp_path / "new.partial").read_bytes()) == ("nowhere", b"abcd")
    (tmp_path / "new.partial").unlink()
    with pytest.raises(TargetExists):
        Target.for_restore(name, 4, overwrite=True)


@pytest.mark.parametrize("native", [True, False])
def test_zeros_are_forced_on_a_target_that_held_something_else(tmp_path: Path, native: bool) -> None:
    # given a target full of old bytes, on storage that can punch holes or not
    path = tmp_path / "old"
    path.write_bytes(b"old!" * (64 * KIB))
    with Target.open(path, 256 * KIB) as target:
        target._native_zero = native
        # when the middle is zeroed
        target.zero(64 * KIB, 128 * KIB)
        target.finish()
    # then just the middle is zero
    content = path.read_bytes()
    assert content == b"old!" * (16 * KIB) + bytes(128 * KIB) + b"old!" * (16 * KIB)


def test_a_target_too_small_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"keep me")
    with pytest.raises(TargetTooSmall, match="has 7 bytes"):
        Target.open(path, 8)
    assert path.read_bytes() == b"keep me"


def test_an_existing_file_is_never_taken_for_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "there"
    path.write_bytes(b"keep me")
    with pytest.raises(TargetExists):
        Target.create(path, 10)
    assert path.read_bytes() == b"keep me"
    with pytest.raises(DeviceMissing):
        Target.open(tmp_path / "gone", 1)


def test_no_room_is_named_as_such() -> None:
    # given a target that takes no more bytes
    fd = os.open("/dev/full", os.O_RDWR)
    # when something is written, then the error says that room is what lacks
    with (
        Target(fd, "/dev/full", 1 << 20, known_zero=False, is_device=False) as target,
        pytest.raises(TargetFull, match="/dev/full"),
    ):
        target.write(0, b"x")


def test_a_pipe_is_refused_before_it_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for opening in (Source.open, lambda path: Target.for_restore(path, 1, overwrite=True)):
        with pytest.raises(NotADevice):
            opening(tmp_path / "pipe")
