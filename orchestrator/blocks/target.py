"""A volume to fill: a block device, or a file.

A target too small is refused before the first write. What the point holds as zero must read as zero afterwards: where
the target is known to be zero its holes stay holes, elsewhere zeros are forced (by the device, by punching holes, or
written out). Nothing counts as restored before `finish` has synced it, and no new file has its name before `keep`: what
a kill or a power cut leaves of it is called `.partial`, and never taken for a volume.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import stat
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from orchestrator.blocks.errors import (
    DeviceWriteFailed,
    TargetExists,
    TargetFull,
    TargetTooSmall,
    TargetUnfinished,
    open_failed,
)
from orchestrator.blocks.source import ALIGN, device_size, refuse_others

BLKZEROOUT = 0x127F
FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
SYNC_FILE_RANGE_WRITE = 0x02
_ZEROS = bytes(1 << 20)
_CANNOT = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM}
PARTIAL = ".partial"
"""What the name of a new file ends with until it is whole."""


class Target:
    """An open target. Thread safe: every write names its offset."""

    def __init__(self, fd: int, path: str, size: int, *, known_zero: bool, is_device: bool) -> None:
        """Adopt an open descriptor; use `Target.open` or `Target.create`."""
        self._fd = fd
        self.path = path
        self.size = size
        self.known_zero = known_zero
        self.is_device = is_device
        self._native_zero = True
        self._direct = _open_direct(fd)
        self._refuses_direct = False
        self._made: os.stat_result | None = None
        self._name: Path | None = None
        """What a new file is called when it is whole."""
        self._lock = threading.Lock()
        self.zeroed = 0
        """Bytes that had to be forced to zero."""

    @classmethod
    def create(cls, path: str | Path, size: int) -> Target:
        """Make a new sparse file of `size` bytes; one that exists is TargetExists.

        Used as a context it goes again when the context ends by an error: half a volume must not pass for a whole one.
        """
        name = str(path)
        try:
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError as error:
            raise TargetExists(name) from error
        except OSError as error:
            raise open_failed(name, error) from error
        try:
            os.ftruncate(fd, size)
        except OSError as error:
            os.close(fd)
            Path(name).unlink(missing_ok=True)
            raise _write_error(name, 0, error) from error
        target = cls(fd, name, size, known_zero=True, is_device=False)
        target._made = os.fstat(fd)
        return target

    @classmethod
    def open(cls, path: str | Path, needed: int, *, known_zero: bool = False, exclusive: bool = False) -> Target:
        """Open an existing device or file of at least `needed` bytes; what it holds is overwritten.

        `exclusive`: not a device that this machine uses (mounted, swap, part of an array): DeviceUnavailable.
        """
        name = str(path)
        try:
            refuse_others(name)
            fd = os.open(name, os.O_RDWR | os.O_CLOEXEC | (os.O_EXCL if exclusive else 0))
        except OSError as error:
            raise open_failed(name, error) from error
        try:
            size = device_size(fd, name)
            if size < needed:
                raise TargetTooSmall(name, size, needed)
            is_device = stat.S_ISBLK(os.fstat(fd).st_mode)
        except BaseException:  # the descriptor must not leak whatever went wrong
            os.close(fd)
            raise
        return cls(fd, name, size, known_zero=known_zero, is_device=is_device)

    @classmethod
    def for_restore(cls, path: str | Path, size: int, *, overwrite: bool = False, known_zero: bool = False) -> Target:
        """Make a new file, or open the block device that is there; a file that is there only with `overwrite`.

        A new file is `<path>.partial` until `keep`; one that is left of a restore that was killed is TargetUnfinished.
        As a context it goes again when that ends without `keep`.
        """
        name = Path(path)
        if not os.path.lexists(name):
            partial = name.with_name(name.name + PARTIAL)
            try:
                target = cls.create(partial, size)
            except TargetExists as error:
                raise TargetUnfinished(str(partial)) from error
            target._name = name
            return target
        if name.exists() and (overwrite or name.is_block_device()):
            return cls.open(name, size, known_zero=known_zero, exclusive=name.is_block_device())
        raise TargetExists(str(path))

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at `offset`."""
        view = memoryview(data)
        done = 0
        while done < len(view):
            try:
                done += os.pwrite(self._fd, view[done:], offset + done)
            except OSError as error:
                raise _write_error(self.path, offset + done, error) from error

    @property
    def direct(self) -> bool:
        """Whether page-aligned pieces go past the page cache: to devices, and to files on a disk's own file system.

        That spares a copy of everything, the memory that holds it back (which counts as the pod's), and the long sync
        at the end.
        """
        return self._direct >= 0 and not self._refuses_direct

    def write_all(self, offset: int, pieces: Sequence[bytes | bytearray | memoryview]) -> None:
        """Write pieces one behind the other from `offset` on; at most 1,024 of them.

        Where `direct` says so each piece is to lie on a page of its own (see `buffers`): others go the slow way.
        """
        done = self._write_direct(offset, pieces)
        if not done and len(pieces) > 1:
            try:
                done = os.pwritev(self._fd, pieces, offset)
            except OSError as error:
                raise _write_error(self.path, offset, error) from error
        for piece in pieces:  # usually everything went at once
            if done < len(piece):
                self.write(offset + done, memoryview(piece)[done:])
            offset += len(piece)
            done = max(done - len(piece), 0)

    def _write_direct(self, offset: int, pieces: Sequence[bytes | bytearray | memoryview]) -> int:
        """Return how many bytes went past the page cache: 0 for what isn't aligned."""
        if not self.direct or offset % ALIGN or any(len(piece) % ALIGN for piece in pieces):
            return 0
        try:
            return os.pwritev(self._direct, pieces, offset)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise _write_error(self.path, offset, error) from error
            # It takes O_DIRECT at open and refuses it at a write, or wants larger pages: through the cache from now on.
            self._refuses_direct = True
            return 0

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros; does nothing where the target is known to be zero already."""
        length = min(length, self.size - offset)
        if self.known_zero or length <= 0:
            return
        with self._lock:
            self.zeroed += length
        if self._native_zero and (self._zero_device if self.is_device else self._punch)(offset, length):
            return
        end = offset + length
        while offset < end:
            piece = min(len(_ZEROS), end - offset)
            self.write(offset, memoryview(_ZEROS)[:piece])
            offset += piece

    def _zero_device(self, offset: int, length: int) -> bool:
        try:
            fcntl.ioctl(self._fd, BLKZEROOUT, struct.pack("=QQ", offset, length))
        except OSError as error:
            return self._refused(offset, error)
        return True

    def _punch(self, offset: int, length: int) -> bool:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        flags = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
        failed = libc.fallocate(self._fd, flags, ctypes.c_int64(offset), ctypes.c_int64(length))
        if failed:
            return self._refused(offset, OSError(ctypes.get_errno(), "fallocate"))
        return True

    def _refused(self, offset: int, error: OSError) -> bool:
        if error.errno in _CANNOT:
            self._native_zero = False
            return False
        raise _write_error(self.path, offset, error) from error

    def start_sync(self) -> None:
        """Have the kernel begin to write what it holds back, so that `finish` has little left to wait for.

        Promises nothing, and takes no error away from `finish`; does nothing where the C library can't.
        """
        begin = _sync_file_range()
        if begin is not None and not self.direct:
            begin(self._fd, 0, 0, SYNC_FILE_RANGE_WRITE)

    def finish(self) -> None:
        """Bring everything to the medium."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise _write_error(self.path, 0, error) from error

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._direct >= 0:
            os.close(self._direct)
            self._direct = -1

    def __enter__(self) -> Target:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
        if self._made is not None and (error is not None or self._name is not None):
            _unlink(Path(self.path), self._made)

    def keep(self) -> None:
        """Give a new file of `for_restore` its name, for good; devices and files that were there have theirs.

        Call it when the content is on the medium (`finish`). It replaces nothing: where a file of that name was made
        meanwhile it is TargetExists, and the volume stays as `.partial`. Doing it again does nothing.
        """
        if self._name is None or self._made is None:
            return
        name, made = self._name, self._made
        try:
            _give_name(Path(self.path), name, made)
            _sync_folder(name.parent)
        except FileExistsError as error:
            self._name = self._made = None
            raise TargetExists(str(name), restored=self.path) from error
        except OSError as error:
            _unlink(name, made)
            raise _write_error(str(name), 0, error) from error
        _unlink(Path(self.path), made)
        self.path, self._name, self._made = str(name), None, None


def _open_direct(fd: int) -> int:
    """Open the same device or file once more, for writes past the page cache; -1 where that can't be or doesn't pay."""
    found = os.fstat(fd)
    if not stat.S_ISBLK(found.st_mode) and not os.major(found.st_dev):
        return -1  # no disk of its own: memory, a network, a layer over other file systems
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:
        return -1


def _give_name(partial: Path, name: Path, made: os.stat_result) -> None:
    """Link a file to its name, or move it where there are no links; FileExistsError if another has that name."""
    try:
        os.link(partial, name)
    except FileExistsError:
        if not os.path.samestat(made, name.lstat()):  # else NFS answers so to the repetition of what succeeded
            raise
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        if os.path.lexists(name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(name)) from error
        partial.rename(name)


def _sync_folder(folder: Path) -> None:
    """Make its names durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # so say file systems whose names are durable anyway
            raise
    finally:
        os.close(descriptor)


def _unlink(path: Path, made: os.stat_result) -> None:
    """Take our own new file away, unless somebody put another one in its place."""
    with contextlib.suppress(OSError):
        if os.path.samestat(made, path.stat()):
            path.unlink()


@functools.cache
def _sync_file_range() -> Callable[..., int] | None:
    import ctypes

    found = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if found is not None:
        found.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return found


def _write_error(path: str, offset: int, error: OSError) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return TargetFull(path, offset)
    return DeviceWriteFailed(path, offset, os.strerror(error.errno or 0))
