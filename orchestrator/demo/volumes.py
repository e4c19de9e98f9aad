"""The protected volumes: real content, changed by real programs, checked by their own tools.

Whoever changes an image holds a lock on it meanwhile, as databases do; the sandbox cuts its snapshots between such
transactions, which is what a storage system's atomic snapshots give a crash-consistent writer.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import random
import shutil
import sqlite3
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

BLOCK = 64 * 1024
_READ = 4 << 20


@contextlib.contextmanager
def locked(image: Path) -> Iterator[int]:
    """Hold a write lock on an image; yields its descriptor."""
    with image.open("r+b", buffering=0) as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield file.fileno()


def sha256_of(image: Path) -> str:
    """Return the SHA-256 of a whole image, holes as zeros. Reads only what is allocated."""
    digest, zeros = hashlib.sha256(), bytes(_READ)
    with image.open("rb", buffering=0) as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        while at < size:
            try:
                data = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                data = size
            while at < data:
                step = min(data - at, _READ)
                digest.update(zeros[:step] if step < _READ else zeros)
                at += step
            hole = os.lseek(file.fileno(), at, os.SEEK_HOLE) if at < size else size
            while at < hole:
                piece = os.pread(file.fileno(), min(hole - at, _READ), at)
                if not piece:
                    raise OSError(f"{image} became shorter while it was read")
                digest.update(piece)
                at += len(piece)
    return digest.hexdigest()


class Files:
    """A filesystem image with real files: ext4 where e2fsprogs is there, else a tar archive."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - test content, not a secret
        self.tool = next((t for t in ("/usr/sbin", "/sbin") if Path(t, "mke2fs").exists()), "")
        self.ext4 = bool(self.tool) or shutil.which("mke2fs") is not None

    def _tool(self, name: str) -> str:
        return str(Path(self.tool, name)) if self.tool else name

    def make(self, image: Path) -> None:
        """Lay out the image."""
        with tempfile.TemporaryDirectory() as folder:
            for number in range(40):
                path = Path(folder, f"dir{number % 4}", f"file{number:02}.txt")
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(self._random.randbytes(self._random.randrange(1000, 200_000)))
            with locked(image) as descriptor:
                if self.ext4:
                    command = [self._tool("mke2fs"), "-q", "-F", "-t", "ext4", "-d", folder, str(image)]
                    subprocess.run(command, check=True, capture_output=True, timeout=60)  # noqa: S603 - fixed command
                else:
                    archive = io.BytesIO()
                    with tarfile.open(fileobj=archive, mode="w") as tar:
                        tar.add(folder, arcname=".")
                    os.pwrite(descriptor, archive.getvalue(), 0)

    def change(self, image: Path, number: int) -> None:
        """Write one more file."""
        content = self._random.randbytes(150_000)
        with locked(image) as descriptor, tempfile.NamedTemporaryFile() as source:
            if not self.ext4:
                os.pwrite(descriptor, content, (32 << 20) + number * (1 << 18))  # behind the archive's end
                return
            source.write(content)
            source.flush()
            command = [self._tool("debugfs"), "-w", "-R", f"write {source.name} change{number}", str(image)]
            subprocess.run(command, check=True, capture_output=True, timeout=60)  # noqa: S603 - fixed command

    def check(self, image: Path) -> str:
        """Return how the restored image fares with its own tool; raises ValueError when it is not sound."""
        if not self.ext4:
            try:
                with tarfile.open(image) as tar:
                    return f"tar: {len(tar.getnames())} entries"
            except tarfile.TarError as error:
                raise ValueError(f"tar says: {error}") from error
        command = [self._tool("e2fsck"), "-fn", str(image)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)  # noqa: S603
        if done.returncode != 0:
            raise ValueError(f"e2fsck -fn says: {done.stdout[-300:]} {done.stderr[-200:]}")
        return "e2fsck -fn: clean"


class Database:
    """A SQLite database that lies on the raw volume itself, and a writer that keeps changing it."""

    def __init__(self, image: Path) -> None:
        self._image = image
        self.rows = 0

    def make(self) -> None:
        """Put a database with some rows onto the volume."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "seed.db")
            with contextlib.closing(sqlite3.connect(path)) as database:
                database.execute("create table ledger(id integer primary key, note text not null)")
                notes = ((f"row {n} " + "x" * 200,) for n in range(5000))
                database.executemany("insert into ledger(note) values (?)", notes)
                database.commit()
            content = path.read_bytes()
        with locked(self._image) as descriptor:
            os.pwrite(descriptor, content, 0)
        self.rows = 5000

    def write(self) -> None:
        """Commit one transaction: some new rows, some changed ones."""
        # The rollback journal is kept in memory: the volume is the only storage that a snapshot sees.
        with contextlib.closing(sqlite3.connect(self._image, timeout=10)) as database:
            database.execute("pragma journal_mode=memory")
            notes = ((f"later {self.rows + n} " + "y" * 100,) for n in range(20))
            database.executemany("insert into ledger(note) values (?)", notes)
            database.execute("update ledger set note = note || '!' where id = ?", (self.rows % 4999 + 1,))
            database.commit()
        self.rows += 20

    @staticmethod
    def check(image: Path) -> str:
        """Return how the restored database fares; raises ValueError when it is not sound."""
        with contextlib.closing(sqlite3.connect(f"file:{image}?mode=ro&immutable=1", uri=True)) as database:
            verdict = database.execute("pragma integrity_check").fetchone()[0]
            rows = database.execute("select count(*) from ledger").fetchone()[0]
        if verdict != "ok" or rows < 5000:
            raise ValueError(f"PRAGMA integrity_check says: {verdict}; {rows} rows")
        return f"PRAGMA integrity_check: ok, {rows} rows"


class Archive:
    """A large, mostly empty volume, of which some percent of the blocks in use are rewritten."""

    def __init__(self, image: Path, size: int, changes: float, seed: int) -> None:
        self._image = image
        self._changes = changes
        self._random = random.Random(seed)  # noqa: S311 - test content, not a secret
        blocks = size // BLOCK
        used = min(max(blocks // 50, 16), 1600)
        self.blocks = sorted(self._random.sample(range(blocks), min(used, blocks)))

    def make(self) -> None:
        """Write the blocks in use."""
        self._write(self.blocks)

    def change(self) -> list[int]:
        """Rewrite some of them; return their numbers."""
        count = max(round(len(self.blocks) * self._changes / 100), 1)
        chosen = sorted(self._random.sample(self.blocks, min(count, len(self.blocks))))
        self._write(chosen)
        return chosen

    def _write(self, blocks: list[int]) -> None:
        with locked(self._image) as descriptor:
            for block in blocks:
                os.pwrite(descriptor, self._random.randbytes(BLOCK), block * BLOCK)
