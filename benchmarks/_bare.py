"""The bare loops beside which the engine is measured: the same steps over the same C libraries, and nothing else.

Out: read, hash, compress, seal, write. Back: read, open, decompress, hash, write. No plan, no map, no intent, no
check, no retry: what two threads of Python can do at best on this machine, now. It is not a benchmark of its own.
"""

from __future__ import annotations

import mmap
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CHUNK = 64 * 1024
"""What the engine cuts a volume of this size into."""
PACK = 52 << 20
PLACE = b"place"


class Sealed(NamedTuple):
    """Where a chunk lies in a pack, and where it belongs."""

    start: int
    length: int
    nonce: bytes
    compressed: bool
    offset: int


class Bare:
    """A folder of pack-sized files, and what is in them."""

    def __init__(self, volume: Path, out: Path, threads: int) -> None:
        self._volume, self._out, self._threads = volume, out, threads
        self._key, self._seal = secrets.token_bytes(32), AESGCM(secrets.token_bytes(32))
        self._packs: dict[str, list[Sealed]] = {}

    def copy(self, ranges: list[tuple[int, int]], *, sync: bool = False) -> float:
        """Copy the ranges into pack-sized files; return seconds."""
        position = iter([at for start, stop in ranges for at in range(start, stop, CHUNK)])
        lock = threading.Lock()
        zeros = bytes(CHUNK)
        source = os.open(self._volume, os.O_RDONLY)

        def work(number: int) -> None:
            view = _buffer(PACK + 2 * CHUNK)
            used = count = 0
            entries: list[Sealed] = []

            def flush() -> None:
                nonlocal used, entries
                name = f"{number}-{count}"
                self._packs[name] = entries
                fd = os.open(self._out / name, os.O_WRONLY | os.O_CREAT, 0o600)
                os.write(fd, view[:used])
                if sync:
                    os.fsync(fd)
                os.close(fd)
                used, entries = 0, []

            while True:
                with lock:
                    some = [at for _, at in zip(range(16), position, strict=False)]
                if not some:
                    break
                for at in some:
                    data = os.pread(source, CHUNK, at)
                    if data == zeros:
                        continue
                    blake3(data, key=self._key).digest()
                    packed = zstd.compress(data, 1)
                    compressed = len(packed) <= len(data) - len(data) // 16
                    if not compressed:
                        packed = data
                    count += 1
                    end = used + len(packed) + 16
                    nonce = bytes((number,)) + count.to_bytes(11, "little")
                    self._seal.encrypt_into(nonce, packed, PLACE, view[used:end])
                    entries.append(Sealed(used, end - used, nonce, compressed, at))
                    used = end
                    if used >= PACK:
                        flush()
            if used:
                flush()

        seconds = self._run(work)
        os.close(source)
        return seconds

    def restore(self, target: Path) -> float:
        """Write everything to a new sparse file and sync it; return seconds."""
        todo = iter(sorted(self._packs))
        lock = threading.Lock()
        back = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(back, self._volume.stat().st_size)

        def work(_: int) -> None:
            view, scratch = _buffer(PACK + 2 * CHUNK), _buffer(CHUNK)
            while True:
                with lock:
                    name = next(todo, None)
                if name is None:
                    return
                fd = os.open(self._out / name, os.O_RDONLY)
                os.preadv(fd, [view], 0)
                os.close(fd)
                for one in self._packs[name]:
                    plain = scratch[: one.length - 16]
                    self._seal.decrypt_into(one.nonce, view[one.start : one.start + one.length], PLACE, plain)
                    data = zstd.decompress(plain) if one.compressed else plain
                    blake3(data, key=self._key).digest()
                    os.pwrite(back, data, one.offset)

        started = time.perf_counter()
        self._run(work)
        os.fsync(back)
        os.close(back)
        return time.perf_counter() - started

    def _run(self, work: Callable[[int], None]) -> float:
        crew = [threading.Thread(target=work, args=(number,)) for number in range(self._threads)]
        started = time.perf_counter()
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
        return time.perf_counter() - started


def _buffer(size: int) -> memoryview:
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
