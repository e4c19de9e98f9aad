"""Fixed-size records spread over files by a byte of their own, so that sets of any size fit into little memory.

A mark of a large repository names more pages and packs than memory holds: records are spread over 64 files, and what
must be compared (listed against marked) always falls into the same file. Nothing secret is written: names only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

COUNT = 64
BUFFER = 16 * 1024


class Partitions:
    """Records of one size; `key` is the record's byte that chooses the file."""

    def __init__(self, folder: Path, name: str, size: int, key: int) -> None:
        self._folder, self._name, self._size, self._key = folder, name, size, key
        self._buffers = [bytearray() for _ in range(COUNT)]
        self._flushed: set[int] = set()
        """Files that exist: a small set touches no disk."""
        self.count = 0

    def add(self, record: bytes) -> None:
        """Add one record."""
        number = record[self._key] % COUNT
        buffer = self._buffers[number]
        buffer += record
        self.count += 1
        if len(buffer) >= BUFFER:
            self._flush(number)

    def add_many(self, number: int, records: bytes) -> None:
        """Add records that all belong into one file."""
        buffer = self._buffers[number]
        buffer += records
        self.count += len(records) // self._size
        if len(buffer) >= BUFFER:
            self._flush(number)

    def blocks(self, number: int, limit: int = 4 * 1024 * 1024) -> Iterator[bytes]:
        """Yield the records of one file, many at once."""
        if number in self._flushed:
            with self._path(number).open("rb") as file:
                while block := file.read(limit // self._size * self._size):
                    yield block
        if self._buffers[number]:
            yield bytes(self._buffers[number])

    def length(self, number: int) -> int:
        """Return how many bytes of records one file has."""
        on_disk = self._path(number).stat().st_size if number in self._flushed else 0
        return on_disk + len(self._buffers[number])

    def replace(self, number: int, blocks: Iterable[bytes]) -> None:
        """Put other records in the place of one file's; `blocks` may be made from reading it."""
        fresh = self._path(number).with_suffix(".new")
        with fresh.open("wb") as file:
            for block in blocks:
                file.write(block)
        self._buffers[number].clear()
        fresh.replace(self._path(number))
        self._flushed.add(number)

    def records(self, number: int) -> Iterator[bytes]:
        """Yield the records of one file, duplicates included. Adding to it meanwhile isn't allowed."""
        if number in self._flushed:
            with self._path(number).open("rb") as file:
                while block := file.read(self._size * 4096):
                    yield from (block[at : at + self._size] for at in range(0, len(block), self._size))
        buffer = bytes(self._buffers[number])
        yield from (buffer[at : at + self._size] for at in range(0, len(buffer), self._size))

    def drop(self, number: int) -> None:
        """Forget the records of one file."""
        self._buffers[number].clear()
        if number in self._flushed:
            self._flushed.remove(number)
            self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._name}-{number:02d}"

    def _flush(self, number: int) -> None:
        with self._path(number).open("ab") as file:
            file.write(self._buffers[number])
        self._flushed.add(number)
        self._buffers[number].clear()
