"""A target holds what was written, and zeros where zeros belong, or the error says why not."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.blocks.errors import (
    DeviceMissing,
    DeviceWriteFailed,
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


@pytest.mark.parametrize("most", [1, 4096, 4197, 5000, 16380, 1 << 20])
@pytest.mark.parametrize("sizes", [[4096, 8192, 4096], [4096, 100, 7]])
def test_pieces_in_a_row_are_whole_however_little_the_kernel_takes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, sizes: list[int]
) -> None:
    # given a kernel that takes at most so many bytes of a row
    def some(descriptor: int, pieces: Sequence[bytes], offset: int) -> int:
        return write(descriptor, b"".join(pieces)[:most], offset)

    write = os.pwrite
    monkeypatch.setattr(os, "pwritev", some)
    pieces = [os.urandom(size) for size in sizes]
    with Target.create(tmp_path / "new", 1 << 20) as target:
        # when pieces are written, past the page cache or through it
        target._direct = -1
        target.write_all(4096, pieces)
        target._direct = os.dup(target._fd)
        target.write_all(8 * 4096, pieces)
    # then they are there, and nothing else
    expected = bytearray(1 << 20)
    for offset in (4096, 8 * 4096):
        expected[offset : offset + sum(sizes)] = b"".join(pieces)
    assert (tmp_path / "new").read_bytes() == expected


@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.EOPNOTSUPP])
def test_what_direct_writes_refuse_is_written_all_the_same_and_an_error_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    # given a device that refuses direct writes, then one that breaks
    answers = [refusal, errno.EIO]

    def refuse(*_: object) -> int:
        raise OSError(answers[0], os.strerror(answers.pop(0)))

    monkeypatch.setattr(os, "pwritev", refuse)
    with Target.create(tmp_path / "refuses", 8192) as target:
        target._direct = os.dup(target._fd)
        # when something is written, then it is there, and nothing is tried that way again
        target.write_all(0, [b"a" * 4096])
        assert not target.direct
        target.write_all(4096, [b"b" * 4096])
    assert (tmp_path / "refuses").read_bytes() == b"a" * 4096 + b"b" * 4096
    # and what is no refusal is told
    with Target.create(tmp_path / "breaks", 8192) as target:
        target._direct = os.dup(target._fd)
        with pytest.raises(DeviceWriteFailed):
            target.write_all(0, [b"a" * 4096])


def test_only_whole_pages_go_past_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    write = os.pwritev

    def noting(descriptor: int, pieces: Sequence[bytes], offset: int) -> int:
        written.append(descriptor)
        return write(descriptor, pieces, offset)

    monkeypatch.setattr(os, "pwritev", noting)
    with Target.create(tmp_path / "new", 1 << 20) as target:
        direct = target._direct = os.dup(target._fd)
        for offset, sizes in ((0, [4096, 4096]), (8192, [4096, 100]), (16484, [4096, 4096])):
            target.write_all(offset, [bytes(size) for size in sizes])
        assert written == [direct, target._fd, target._fd]


def test_a_pipe_is_refused_before_it_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for opening in (Source.open, lambda path: Target.for_restore(path, 1, overwrite=True)):
        with pytest.raises(NotADevice):
            opening(tmp_path / "pipe")
