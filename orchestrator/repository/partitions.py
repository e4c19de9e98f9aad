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
        self._paths = [folder / f"{name}-{number:02d}" for number in range(COUNT)]
        self._on_disk = [0] * COUNT
        """Bytes of each file; a small set touches no disk."""
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
        if self._on_disk[number]:
            with self._paths[number].open("rb") as file:
                while block := file.read(limit // self._size * self._size):
                    yield block
        if self._buffers[number]:
            yield bytes(self._buffers[number])

    def length(self, number: int) -> int:
        """Return how many bytes of records one file has."""
        return self._on_disk[number] + len(self._buffers[number])

    def replace(self, number: int, blocks: Iterable[bytes]) -> None:
        """Put other records in the place of one file's; `blocks` may be made from reading it."""
        fresh, size = self._paths[number].with_suffix(".new"), 0
        with fresh.open("wb") as file:
            for block in blocks:
                size += file.write(block)
        self._buffers[number].clear()
        fresh.replace(self._paths[number])
        self._on_disk[number] = size

    def records(self, number: int) -> Iterator[bytes]:
        """Yield the records of one file, duplicates included. Adding to it meanwhile isn't allowed."""
        if self._on_disk[number]:
            with self._paths[number].open("rb") as file:
                while block := file.read(self._size * 4096):
                    yield from (block[at : at + self._size] for at in range(0, len(block), self._size))
        buffer = bytes(self._buffers[number])
        yield from (buffer[at : at + self._size] for at in range(0, len(buffer), self._size))

    def slices(self, number: int, limit: int) -> Iterator[Iterator[bytes]]:
        """Yield the records of one file in slices of about `limit` bytes at most, duplicates always in the same one.

        A longer file is spread over files again, by the byte after the one that chose it.
        """
        if self.length(number) <= limit or self._key + 1 >= self._size:
            yield self.records(number)
            return
        deeper = Partitions(self._folder, f"{self._name}-{number:02d}", self._size, self._key + 1)
        for record in self.records(number):
            deeper.add(record)
        for below in range(COUNT):
            yield from deeper.slices(below, limit)
            deeper.drop(below)

    def drop(self, number: int) -> None:
        """Forget the records of one file."""
        self._buffers[number].clear()
        if self._on_disk[number]:
            self._on_disk[number] = 0
            self._paths[number].unlink(missing_ok=True)

    def _flush(self, number: int) -> None:
        with self._paths[number].open("ab") as file:
            self._on_disk[number] += file.write(self._buffers[number])
        self._buffers[number].clear()
