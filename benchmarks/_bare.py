"""The bare loop beside which the engine is measured: read, hash, compress, seal, write, and nothing else.

No plan, no map, no intent, no check, no retry: what two threads of Python over the same C libraries can do at best on
this machine, now. It is not a benchmark of its own.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time
from pathlib import Path

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CHUNK = 256 * 1024
PACK = 48 << 20


def loop(volume: Path, out: Path, ranges: list[tuple[int, int]], threads: int, *, sync: bool = False) -> float:
    """Copy the ranges into pack-sized files under `out`; return seconds."""
    todo = [at for start, stop in ranges for at in range(start, stop, CHUNK)]
    position = iter(todo)
    lock = threading.Lock()
    key, seal = secrets.token_bytes(32), AESGCM(secrets.token_bytes(32))
    zeros = bytes(CHUNK)
    source = os.open(volume, os.O_RDONLY)

    def work(number: int) -> None:
        buffer = bytearray(PACK + 2 * CHUNK)
        view = memoryview(buffer)
        used = count = files = 0

        def flush() -> None:
            nonlocal used, files
            fd = os.open(out / f"{number}-{files}", os.O_WRONLY | os.O_CREAT, 0o600)
            os.write(fd, view[:used])
            if sync:
                os.fsync(fd)
            os.close(fd)
            used, files = 0, files + 1

        while True:
            with lock:
                some = [at for _, at in zip(range(16), position, strict=False)]
            if not some:
                break
            for at in some:
                data = os.pread(source, CHUNK, at)
                if data == zeros:
                    continue
                blake3(data, key=key).digest()
                packed = zstd.compress(data, 1)
                if len(packed) > len(data) - len(data) // 16:
                    packed = data
                count += 1
                end = used + len(packed) + 16
                seal.encrypt_into(count.to_bytes(12, "little"), packed, b"place", view[used:end])
                used = end
                if used >= PACK:
                    flush()
        if used:
            flush()

    crew = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    started = time.perf_counter()
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    seconds = time.perf_counter() - started
    os.close(source)
    return seconds
