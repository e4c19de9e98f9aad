"""Volumes and snapshots as sparse image files.

    DIR/volumes/<handle>.img                 a volume, of its exact size
    DIR/snapshots/<handle>.img and .json     a point-in-time copy, and the record of it (written last: it commits)

Everything here blocks and runs in a thread. A snapshot is a reflink where the filesystem can (atomic), else a sparse
copy. During a copy an OFD read lock is held on the image, so that a program that locks its file as databases do is
caught between two transactions; and a copy during which the file's mtime moved is made again, a few times. A writer
that does neither, and never pauses, gets a snapshot that is smeared over the duration of the copy.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from orchestrator.errors import Retryable, Terminal

log = logging.getLogger(__name__)

_FICLONE = 0x40049409
_HANDLE = re.compile(r"^[a-z0-9][a-z0-9.-]{0,126}$")
_COPY_STEP = 64 << 20
_STABLE_TRIES = 5
_LOCK_WAIT_S = 2.0


class NoSuchVolume(Retryable):
    """The storage has no volume of that handle."""

    reason = "NoSuchVolume"


class NoSuchSnapshot(Retryable):
    """The storage has no snapshot of that handle."""

    reason = "NoSuchSnapshot"


class BadHandle(Terminal):
    """Not a handle of this driver; it never becomes a path."""

    reason = "BadHandle"


class SnapshotRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What the storage knows of a snapshot."""

    handle: str
    volume_handle: str
    size_bytes: int
    created_ns: int


class ImageStore:
    """The directory of images. Every method is idempotent."""

    def __init__(self, root: Path) -> None:
        self._volumes = root / "volumes"
        self._snapshots = root / "snapshots"
        for folder in (self._volumes, self._snapshots):
            folder.mkdir(parents=True, exist_ok=True)

    def tidy(self) -> None:
        """Remove what a killed process left half made. Only the one process that writes may call it, before it does."""
        for folder in (self._volumes, self._snapshots):
            for half_made in folder.glob("*.part"):
                half_made.unlink()

    def volume_path(self, handle: str) -> Path:
        """Return where a volume's image is, there or not. Raises BadHandle."""
        return self._volumes / f"{_checked(handle)}.img"

    def snapshot_path(self, handle: str) -> Path:
        """Return where a snapshot's image is, there or not. Raises BadHandle."""
        return self._snapshots / f"{_checked(handle)}.img"

    def volume_size(self, handle: str) -> int:
        """Return the size of a volume in bytes. Raises NoSuchVolume."""
        try:
            return self.volume_path(handle).stat().st_size
        except FileNotFoundError as err:
            raise NoSuchVolume(f"volume {handle} does not exist") from err

    def create_volume(self, handle: str, size_bytes: int, source: Path | None = None) -> Path:
        """Make a volume: empty, or a copy of `source` with zeros up to `size_bytes`. An existing one is kept."""
        path = self.volume_path(handle)
        if path.exists():
            return path
        part = path.with_suffix(".part")
        with part.open("wb") as target:
            if source is not None:
                with source.open("rb") as origin:
                    copy_sparse(origin.fileno(), target.fileno())
            target.truncate(size_bytes)
        part.replace(path)
        return path

    def delete_volume(self, handle: str) -> None:
        """Destroy a volume; one that is gone is fine. Its snapshots live on."""
        self.volume_path(handle).unlink(missing_ok=True)

    def grow_volume(self, handle: str, size_bytes: int) -> None:
        """Make a volume larger, online; never smaller."""
        if self.volume_size(handle) < size_bytes:
            os.truncate(self.volume_path(handle), size_bytes)

    def snapshot(self, handle: str) -> SnapshotRecord:
        """Return the record of a snapshot. Raises NoSuchSnapshot."""
        try:
            record = self.snapshot_path(handle).with_suffix(".json").read_bytes()
        except (FileNotFoundError, BadHandle) as err:
            raise NoSuchSnapshot(f"snapshot {handle} does not exist") from err
        return msgspec.json.decode(record, type=SnapshotRecord)

    def take_snapshot(self, handle: str, volume_handle: str) -> SnapshotRecord:
        """Cut a snapshot of a volume, or return the record of the one that was cut before."""
        with suppress(NoSuchSnapshot):
            return self.snapshot(handle)
        path = self.snapshot_path(handle)
        part = path.with_suffix(".part")
        try:
            origin_fd = os.open(self.volume_path(volume_handle), os.O_RDONLY)
        except FileNotFoundError as err:
            raise NoSuchVolume(f"volume {volume_handle} does not exist") from err
        try:
            created_ns, size = _still_copy(origin_fd, part, volume_handle)
        finally:
            os.close(origin_fd)
        part.replace(path)
        record = SnapshotRecord(handle=handle, volume_handle=volume_handle, size_bytes=size, created_ns=created_ns)
        half = path.with_suffix(".json.part")
        half.write_bytes(msgspec.json.encode(record))
        half.replace(path.with_suffix(".json"))
        return record

    def delete_snapshot(self, handle: str) -> None:
        """Destroy a snapshot; one that is gone is fine."""
        path = self.snapshot_path(handle)
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    def handles(self) -> tuple[set[str], set[str]]:
        """Return the handles of all volumes and of all snapshots that are there."""
        return (
            {path.stem for path in self._volumes.glob("*.img")},
            {path.stem for path in self._snapshots.glob("*.json")},
        )


def _checked(handle: str) -> str:
    if not _HANDLE.match(handle) or ".." in handle:
        raise BadHandle(f"{handle[:40]!r} is not a handle of this driver")
    return handle


def _still_copy(origin_fd: int, part: Path, what: str) -> tuple[int, int]:
    """Copy until nothing was written meanwhile; return the moment of the cut (ns) and the size."""
    for _ in range(_STABLE_TRIES):
        with part.open("wb") as target, _between_transactions(origin_fd):
            created_ns = time.time_ns()
            before = os.fstat(origin_fd)
            atomic = copy_sparse(origin_fd, target.fileno())
            after = os.fstat(origin_fd)
            target.truncate(before.st_size)
        if atomic or (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size):
            break
    else:
        log.warning("volume %s was written during each of %d copies: the snapshot is smeared", what, _STABLE_TRIES)
    return created_ns, before.st_size


@contextmanager
def _between_transactions(fd: int) -> Iterator[None]:
    """Hold a read lock on the whole file, waiting a little for a writer that locks; go on without it after that.

    OFD locks conflict with POSIX record locks of every process, our own included, and closing our descriptor drops
    none of theirs.
    """
    give_up = time.monotonic() + _LOCK_WAIT_S
    held = False
    while not held and time.monotonic() < give_up:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_RDLCK))
            held = True
        except OSError as err:
            if err.errno not in (errno.EAGAIN, errno.EACCES):
                break
            time.sleep(0.002)
    try:
        yield
    finally:
        if held:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK))


def _flock(kind: int) -> bytes:
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)


def copy_sparse(origin_fd: int, target_fd: int) -> bool:
    """Copy a file onto an empty one, holes as holes; return whether it was an atomic reflink."""
    try:
        fcntl.ioctl(target_fd, _FICLONE, origin_fd)
        return True
    except OSError:
        pass  # a filesystem without reflinks, or another one
    size = os.fstat(origin_fd).st_size
    os.ftruncate(target_fd, size)
    for start, end in data_extents(origin_fd, size):
        _copy_range(origin_fd, target_fd, start, end)
    return False


def _copy_range(origin_fd: int, target_fd: int, start: int, end: int) -> None:
    while start < end:
        step = min(end - start, _COPY_STEP)
        try:
            done = os.copy_file_range(origin_fd, target_fd, step, start, start)
        except OSError as err:
            if err.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            done = os.pwrite(target_fd, os.pread(origin_fd, min(step, 4 << 20), start), start)
        if done == 0:
            return  # the file became shorter
        start += done


def data_extents(fd: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the [start, end) byte ranges that the filesystem holds data for, in order."""
    at = 0
    while at < size_bytes:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:
                return
            raise
        if start >= size_bytes:
            return
        at = min(os.lseek(fd, start, os.SEEK_HOLE), size_bytes)
        yield start, at
