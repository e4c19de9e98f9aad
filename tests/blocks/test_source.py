"""Reading a volume gives exactly its bytes or a clear error."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from orchestrator.blocks.errors import (
    DeviceMissing,
    DeviceReadFailed,
    DeviceSizeMismatch,
    DeviceUnavailable,
    NotADevice,
    open_failed,
)
from orchestrator.blocks.source import ALIGN, Source, aligned_buffer

pytestmark = pytest.mark.quick
KIB = 1024


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume"
    path.write_bytes(os.urandom(300 * KIB + 77))
    return path


@pytest.mark.parametrize("direct", [False, True])
def test_a_range_is_read_exactly_and_clipped_to_the_end(volume: Path, direct: bool) -> None:
    content = volume.read_bytes()
    buffer = aligned_buffer(256 * KIB)
    with Source.open(volume, direct=direct) as source:
        assert source.size == len(content)
        assert bytes(source.read_into(buffer, 0, 64 * KIB)) == content[: 64 * KIB]
        assert bytes(source.read_into(buffer, 64 * KIB, 256 * KIB)) == content[64 * KIB :]
        assert bytes(source.read_into(buffer, 512 * KIB, 64 * KIB)) == b""


def test_a_device_of_another_size_than_planned_is_refused(volume: Path) -> None:
    with pytest.raises(DeviceSizeMismatch, match="the plan is for 1024"):
        Source.open(volume, expected_size=1024)


def test_a_missing_device_and_a_directory_are_named_for_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(DeviceMissing, match="No such file"):
        Source.open(tmp_path / "gone")
    with pytest.raises(NotADevice):
        Source.open(tmp_path)


def test_a_volume_that_shrinks_while_it_is_read_is_an_error_and_never_zeros(volume: Path) -> None:
    # given a volume opened at its full size
    with Source.open(volume) as source:
        # when it is cut behind our back
        os.truncate(volume, 10 * ALIGN)
        # then reading past the cut says so
        with pytest.raises(DeviceReadFailed, match="the device ends at 40960"):
            source.read_into(aligned_buffer(256 * KIB), 0, 256 * KIB)


def test_what_is_allocated_is_found_without_reading_it(tmp_path: Path) -> None:
    # given a sparse volume with data at the start, in the middle and nothing at the end
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 30)
        file.write(b"a" * 4096)
        file.seek(512 << 20)
        file.write(b"b" * 4096)
    # when its allocated ranges are asked for
    with Source.open(path) as source:
        ranges = list(source.allocated())
    # then they cover the data and little else
    assert [offset for offset, _ in ranges] == [0, 512 << 20]
    assert sum(length for _, length in ranges) <= 1 << 20


def test_a_device_that_fails_to_open_may_open_for_another_pod() -> None:
    # given the ways in which opening fails
    busy = open_failed("/dev/x", OSError(errno.EBUSY, "busy"))
    gone = open_failed("/dev/x", OSError(errno.ENOENT, "gone"))
    # then the storage's fault is one to try again, and a wrong path is not
    assert isinstance(busy, DeviceUnavailable)
    assert isinstance(gone, DeviceMissing)
