"""What bounds a full and a restore: how fast and how small zstd's levels make chunks of either kind."""

from __future__ import annotations

import os
import sys
import threading
import time
from argparse import Namespace
from typing import Any

from benchmarks._bench import READERS, Bench, places, scratch
from benchmarks._report import Row
from benchmarks._volume import parse_size
from orchestrator.repository.compression import LEVEL

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LEVELS = (LEVEL, -1, -3, -5, -10, 3)
CHUNK = 64 * 1024


def run(args: Namespace) -> dict[str, Any]:
    """Compress and decompress the chunks of a volume of `args.size` (default 256M) in memory, with two threads."""
    with scratch(next(iter(places(args).values()))) as folder:
        bench = Bench(folder, parse_size(args.size or "256M"))
        chunks: dict[str, list[bytes]] = {"noise": [], "log lines": []}
        volume = os.open(bench.volume, os.O_RDONLY)
        for number, (start, stop) in enumerate(bench.ranges):
            kind = "log lines" if number % 2 else "noise"
            chunks[kind] += [os.pread(volume, CHUNK, at) for at in range(start, stop, CHUNK)]
        os.close(volume)
    found: dict[str, Any] = {}
    for _ in range(args.rounds):
        for level in LEVELS:
            for kind, some in chunks.items():
                packed, seconds = _work(some, lambda one, level=level: zstd.compress(one, level))
                _, back = _work(packed, zstd.decompress)
                best = found.setdefault(f"{level} {kind}", {"seconds": seconds, "back": back})
                best["seconds"], best["back"] = min(best["seconds"], seconds), min(best["back"], back)
                best["bytes"], best["packed"] = sum(map(len, some)), sum(map(len, packed))
    return found


def _work(chunks: list[bytes], step: Any) -> tuple[list[bytes], float]:
    done: list[list[bytes]] = [[] for _ in range(READERS)]

    def some(number: int) -> None:
        done[number] = [step(chunk) for chunk in chunks[number::READERS]]

    crew = [threading.Thread(target=some, args=(number,)) for number in range(READERS)]
    started = time.perf_counter()
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    return [chunk for part in done for chunk in part], time.perf_counter() - started


def rows(figures: dict[str, Any]) -> list[Row]:
    """Return the table's lines."""
    lines = []
    for name, found in figures.items():
        level, _, kind = name.partition(" ")
        rate, back = (found["bytes"] / 1e6 / found[way] for way in ("seconds", "back"))
        told = f"{rate:.0f} MB/s, {found['packed'] / found['bytes']:.3f} of the size; back {back:.0f} MB/s"
        ours = " (ours)" if level == str(LEVEL) else ""
        lines.append(Row(f"zstd level {level}{ours}, {kind}", "", told))
    return lines
