"""A directory as a store, safe against power cuts: temporary file, fsync, link to the name, fsync of the directories.

`link` is the put-if-absent of a file system, also over NFS, where a repeated request may answer EEXIST for our own
success: the bytes decide. What must never happen here: a name that leads outside the root, a name that appears before
its content is on disk, a blocking call on the event loop.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import errno
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TypeVar

from orchestrator.repository.buffers import big_buffer
from orchestrator.repository.crypto import Bytes
from orchestrator.repository.errors import (
    AccessDenied,
    ObjectConflict,
    ObjectMissing,
    StoreFull,
    StoreMissing,
    StoreUnavailable,
    StoreUnsuitable,
)
from orchestrator.repository.store import ObjectInfo, check_size, coalesce

TEMPORARY = ".tmp"
"""Folder of files on their way. No object's name has a part that starts with a dot."""
LIST_BATCH = 1000
GAP = 4096
"""Bytes between two pieces that are read along rather than asked for apart."""
BIG = 1 << 20
"""Bytes from which on what is read gets a buffer of its own."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LINK = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
T = TypeVar("T")


class FileOperations:
    """The writes that matter for power cuts, as a seam: a test records them and replays what was synced."""

    def mkdir(self, path: Path) -> None:
        """Make one directory; FileExistsError."""
        path.mkdir(mode=0o700)

    def write(self, path: Path, data: Bytes) -> None:
        """Make a new file with this content and sync it."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name; FileExistsError."""
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        """Take a name away."""
        path.unlink()

    def sync_directory(self, path: Path) -> None:
        """Make a directory's names durable."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # Some file systems don't sync directories because their names are durable anyway.
        finally:
            os.close(descriptor)


class DirectoryStore:
    """Objects as files under one directory."""

    def __init__(self, root: str | Path, operations: FileOperations | None = None) -> None:
        """Use `root`; it is made at the first put, its parent must exist."""
        self.root = Path(root)
        self.url = self.root.as_uri()
        self._operations = operations or FileOperations()
        self._durable: set[Path] = set()

    async def get(self, key: str) -> bytes:
        """Return a whole object."""
        return await self._run("get", lambda: self._whole(key), key)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return a piece of an object."""
        return bytes((await self.get_ranges(key, [(start, length)]))[0])

    async def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[Bytes]:
        """Return pieces of an object, those that lie together as views of what was read at once."""
        return await self._run("get", lambda: self._read(key, ranges), key)

    async def put_new(self, key: str, data: Bytes) -> None:
        """Create an object durably."""
        await self._run("put", lambda: self._put(key, data))

    async def head(self, key: str) -> ObjectInfo | None:
        """Return size and time of an object."""
        try:
            return await self._run("head", lambda: _info(key, self._path(key).stat()), key)
        except ObjectMissing:
            return None

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Yield objects, folder by folder."""
        files = self._walk(prefix)
        while batch := await self._run("list", lambda: [*islice(files, LIST_BATCH)]):
            for info in batch:
                yield info

    async def delete(self, key: str) -> None:
        """Delete an object, and its folder when it was the last in it."""
        await self._run("delete", lambda: self._delete(key))

    async def sweep_leftovers(self, older_than: datetime) -> int:
        """Delete temporary files that a dead writer left; return how many."""
        return await self._run("delete", lambda: self._sweep(older_than.timestamp()))

    async def close(self) -> None:
        """Do nothing: no connection is held."""

    async def _run(self, verb: str, call: Callable[[], T], key: str | None = None) -> T:
        try:
            return await asyncio.to_thread(call)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            if key is None and isinstance(error, NotADirectoryError):
                raise StoreMissing(self.url) from error
            if key is None:
                raise StoreUnavailable(self.url, f"{verb}: {error.strerror}") from error
            raise ObjectMissing(key) from error
        except OSError as error:
            if error.errno in _FULL:
                raise StoreFull(self.url) from error
            if error.errno in _DENIED:
                raise AccessDenied(self.url, verb) from error
            raise StoreUnavailable(self.url, f"{verb}: {error.strerror}") from error

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if not all(parts) or any(part.startswith(".") or "\0" in part or "\\" in part for part in parts):
            raise ValueError(f"{key!r} is not an object's name")
        return self.root.joinpath(*parts)

    def _whole(self, key: str) -> bytes:
        with open(_open(self._path(key)), "rb") as file:
            check_size(key, os.fstat(file.fileno()).st_size)
            return file.read()

    def _read(self, key: str, ranges: Sequence[tuple[int, int]]) -> builtins.list[Bytes]:
        descriptor = _open(self._path(key))
        try:
            pieces: builtins.list[Bytes] = [b""] * len(ranges)
            for start, length, members in coalesce(ranges, GAP):
                data = _read_at(descriptor, start, length)
                for position in members:
                    first, size = ranges[position]
                    pieces[position] = data[first - start : first - start + size]
            return pieces
        finally:
            os.close(descriptor)

    def _put(self, key: str, data: Bytes) -> None:
        target = self._path(key)
        for attempt in range(3):
            temporary = self.root / TEMPORARY / os.urandom(16).hex()
            try:
                self._make_directories(temporary.parent)
                self._make_directories(target.parent)
                self._put_file(temporary, target, key, data)
            except FileNotFoundError:
                # Maintenance removed an empty folder between our two steps.
                self._durable.clear()
                if attempt == 2:
                    raise
                continue
            return

    def _put_file(self, temporary: Path, target: Path, key: str, data: Bytes) -> None:
        try:
            self._operations.write(temporary, data)
            try:
                self._operations.link(temporary, target)
            except FileExistsError:
                if not _same(target, data):
                    raise ObjectConflict(key) from None
            except OSError as error:
                if error.errno in _NO_LINK:
                    raise StoreUnsuitable(self.url, f"its file system can't link ({error.strerror})") from error
                raise
            self._operations.sync_directory(target.parent)
        finally:
            with contextlib.suppress(OSError):
                self._operations.unlink(temporary)

    def _make_directories(self, path: Path) -> None:
        """Make a directory under the root, and make sure once that its name and its parents' are durable."""
        if path in self._durable:
            return
        if path == self.root:
            if not path.parent.is_dir():
                raise StoreMissing(self.url)
        else:
            self._make_directories(path.parent)
        with contextlib.suppress(FileExistsError):
            self._operations.mkdir(path)
        self._operations.sync_directory(path.parent)
        self._durable.add(path)

    def _walk(self, prefix: str) -> Iterator[ObjectInfo]:
        folder = self.root if not prefix else self._path(prefix.rstrip("/"))
        yield from self._scan(folder, prefix)

    def _scan(self, folder: Path, prefix: str) -> Iterator[ObjectInfo]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            if entry.name.startswith(".") or (folder == self.root and entry.name == "lost+found"):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from self._scan(folder / entry.name, f"{prefix}{entry.name}/")
                continue
            if folder != self.root and not _can_be_ours(entry.name):
                continue
            with contextlib.suppress(FileNotFoundError):
                if entry.is_file():  # a pipe or a device that somebody put there would be read for ever
                    yield _info(prefix + entry.name, entry.stat())

    def _delete(self, key: str) -> None:
        path = self._path(key)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._operations.unlink(path)
        if len(path.relative_to(self.root).parts) > 2:
            with contextlib.suppress(OSError):
                path.parent.rmdir()
                self._durable.discard(path.parent)

    def _sweep(self, older_than: float) -> int:
        count = 0
        folder = self.root / TEMPORARY
        for entry in os.scandir(folder) if folder.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):
                if entry.stat().st_mtime < older_than:
                    self._operations.unlink(Path(entry.path))
                    count += 1
        return count


def _can_be_ours(name: str) -> bool:
    """Say whether an object of ours could have this name: `_path` takes it, and it prints as itself."""
    return name.isprintable() and "\\" not in name


def _open(path: Path) -> int:
    """Open an object's file; whatever else is under its name is no object, and must not be waited for or read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, "not a regular file", str(path))
    return descriptor


def _info(key: str, seen: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, seen.st_size, datetime.fromtimestamp(seen.st_mtime, UTC))


def _read_at(descriptor: int, start: int, length: int) -> Bytes:
    """Return what a file has there, fewer bytes only at its end."""
    if length < BIG:
        data = os.pread(descriptor, length, start)
        if len(data) == length:
            return data
    buffer, done = memoryview(big_buffer(max(length, 1))), 0
    while done < length and (got := os.preadv(descriptor, [buffer[done:length]], start + done)):
        done += got
    return buffer[:done]


def _same(path: Path, data: Bytes) -> bool:
    """Compare a file with bytes, without a copy of the whole in memory."""
    view = memoryview(data)
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != len(view):
            return False
        for start in range(0, len(view), 1 << 20):
            if file.read(1 << 20) != view[start : start + (1 << 20)]:
                return False
    return True
