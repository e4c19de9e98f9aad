"""Volumes to measure with: sparse, half allocated, half of that noise and half log lines, the same for a seed.

The log lines never repeat a stretch, so that no tool gets whole blocks for nothing.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

BLOCK = 64 * 1024
STRETCH = 8 << 20
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
SERVICES = ("checkout", "catalog", "search", "payments", "accounts", "shipping", "gateway", "inventory")
LEVELS = ("INFO", "INFO", "INFO", "INFO", "WARN", "DEBUG", "DEBUG", "ERROR")


def parse_size(text: str) -> int:
    """Return bytes of `512M`, `4G` and the like."""
    return int(text[:-1]) * UNITS[text[-1].upper()] if text[-1].upper() in UNITS else int(text)


def log_lines(length: int, source: random.Random) -> bytes:
    """Return `length` bytes of what a web service's log looks like."""
    lines, size = [], 0
    while size < length:
        moment = f"2026-11-{source.randrange(1, 31):02}T{source.randrange(24):02}:{source.randrange(60):02}"
        line = (
            f"{moment}:{source.randrange(60):02}.{source.randrange(1000):03}Z level={source.choice(LEVELS)} "
            f"service={source.choice(SERVICES)} method=GET path=/api/v1/items/{source.randrange(10**6)} "
            f"status={source.choice((200, 200, 200, 304, 404, 500))} bytes={source.randrange(10**5)} "
            f"duration={source.randrange(2000)}ms trace={source.randrange(1 << 32):08x}\n"
        ).encode()
        lines.append(line)
        size += len(line)
    return b"".join(lines)[:length]


def make_volume(path: Path, size: int, seed: int = 1) -> list[tuple[int, int]]:
    """Make the volume; return the allocated ranges `(start, stop)`."""
    source, numbers = random.Random(seed), np.random.default_rng(seed)
    text = np.frombuffer(log_lines(STRETCH, source), dtype=np.uint8)
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
    ranges = []
    with path.open("wb") as file:
        file.truncate(size)
        for number, start in enumerate(range(0, size, 2 * STRETCH)):
            stop = min(start + STRETCH, size)
            if number % 2:
                # Another number in every line or so: nothing of a stretch is found in another one.
                block = text.copy().reshape(-1, 128)
                block[:, 60:68] = digits[numbers.integers(0, 16, (block.shape[0], 8))]
                data = block.tobytes()
            else:
                data = numbers.bytes(STRETCH)
            file.seek(start)
            file.write(data[: stop - start])
            ranges.append((start, stop))
    return ranges


def change(path: Path, ranges: list[tuple[int, int]], share: float, seed: int) -> list[tuple[int, int]]:
    """Rewrite `share` of the volume in 64 KiB blocks at random, in allocated places; return `(offset, length)`."""
    source = random.Random(seed)
    blocks = [at for start, stop in ranges for at in range(start, stop - BLOCK + 1, BLOCK)]
    chosen = sorted(source.sample(blocks, max(1, int(path.stat().st_size // BLOCK * share))))
    with path.open("r+b") as file:
        for at in chosen:
            file.seek(at)
            file.write(source.randbytes(BLOCK))
    return [(at, BLOCK) for at in chosen]
