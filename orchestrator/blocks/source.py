"""A volume to read: a raw block device (a snapshot's clone) or a file.

Opened read-only and never written. Reads exactly what is asked for, clipped to the end; fewer bytes than that are an
error here and never silently zero. Block devices are read past the page cache, so that a mover's memory stays what
its own buffers are and nobody's cache is thrown out.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from orchestrator.blocks.errors import DeviceReadFailed, DeviceSizeMismatch, NotADevice, open_failed
from orchestrator.repository.buffers import big_buffer

BLKGETSIZE64 = 0x80081272
BLKSSZGET = 0x1268
ALIGN = 4096
"""Offsets, lengths and buffers of direct reads are multiples of this; every device's logical block divides it."""


def device_size(fd: int, path: str) -> int:
    """Return the size in bytes of an open block device or regular file."""
    mode = os.fstat(fd)
    if stat.S_ISBLK(mode.st_mode):
        raw = fcntl.ioctl(fd, BLKGETSIZE64, b"\0" * 8)
        return int(struct.unpack("=Q", raw)[0])
    if stat.S_ISREG(mode.st_mode):
        return mode.st_size
    raise NotADevice(path)


def refuse_others(path: str) -> None:
    """Raise NotADevice for what is no file or block device, before it is opened: a pipe's open waits for ever."""
    mode = Path(path).stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise NotADevice(path)


class Source:
    """An open volume. Thread safe: every read names its offset."""

    def __init__(self, fd: int, path: str, size: int, *, direct: bool) -> None:
        """Adopt an open descriptor; use `Source.open`."""
        self._fd = fd
        self.path = path
        self.size = size
        self.direct = direct
        self.is_device = stat.S_ISBLK(os.fstat(fd).st_mode)

    @classmethod
    def open(cls, path: str | Path, *, expected_size: int | None = None, direct: bool | None = None) -> Source:
        """Open `path` read-only.

        `expected_size`: the plan's volume size; another one is DeviceSizeMismatch. `direct`: past the page cache;
        by default for block devices only (a file in the cache is read faster through it).
        """
        name = str(path)
        try:
            refuse_others(name)
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise open_failed(name, error) from error
        try:
            size = device_size(fd, name)
            if expected_size is not None and size != expected_size:
                raise DeviceSizeMismatch(name, size, expected_size)
            wanted = stat.S_ISBLK(os.fstat(fd).st_mode) if direct is None else direct
            fd, is_direct = _reopen_direct(fd, name) if wanted else (fd, False)
            if not is_direct:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        except BaseException:  # the descriptor must not leak whatever went wrong
            os.close(fd)
            raise
        return cls(fd, name, size, direct=is_direct)

    def read_into(self, buffer: memoryview, offset: int, length: int) -> memoryview:
        """Fill the start of `buffer` with `length` bytes at `offset`, clipped to the end; return that part.

        `buffer` must be page aligned (see `buffers`) and have room for `length` rounded up to ALIGN.
        """
        length = min(length, self.size - offset)
        if length <= 0:
            return buffer[:0]
        done = 0
        while done < length:
            room = buffer[done : -(-length // ALIGN) * ALIGN] if self.direct else buffer[done:length]
            try:
                got = os.preadv(self._fd, [room], offset + done)
            except OSError as error:
                if error.errno == errno.EINVAL and self.direct:
                    self._leave_direct()
                    continue
                raise DeviceReadFailed(self.path, offset, length, os.strerror(error.errno or 0)) from error
            if got == 0:
                raise DeviceReadFailed(self.path, offset, length, f"the device ends at {offset + done}")
            done += got
            if done < length and done % ALIGN and self.direct:
                done -= done % ALIGN  # a direct read goes on at an aligned place only
        return buffer[:length]

    def _leave_direct(self) -> None:
        """Go through the page cache from now on: this file system takes O_DIRECT at open and refuses it at read."""
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        self.direct = False

    def forget_cache(self) -> None:
        """Ask the kernel to drop what it cached of this file, so that a read-back comes from the medium."""
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def allocated(self) -> Iterator[tuple[int, int]]:
        """Yield `(offset, length)` of what is not a hole; the whole volume where the kernel can't tell."""
        return self.data_ranges(0, self.size)

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield `(offset, length)` of what is not a hole within `[start, end)`."""
        offset, end = start, min(end, self.size)
        while offset < end:
            try:
                first = os.lseek(self._fd, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    yield offset, end - offset
                return
            stop = min(os.lseek(self._fd, first, os.SEEK_HOLE), end)
            if stop > first:
                yield first, stop - first
            offset = max(stop, first + 1)

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Source:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _reopen_direct(fd: int, path: str) -> tuple[int, bool]:
    try:
        direct = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:
        return fd, False  # the file system has no direct reads: the page cache serves as well
    os.close(fd)
    return direct, True


def aligned_buffer(size: int) -> memoryview:
    """Return a page-aligned, writable buffer of at least `size` bytes, rounded up to ALIGN."""
    return memoryview(big_buffer(max(-(-size // ALIGN) * ALIGN, ALIGN)))
