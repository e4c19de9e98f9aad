"""What size of chunk costs: a full, and increments of scattered writes of 4 KiB, 64 KiB and 1 MiB."""

from __future__ import annotations

import random
from argparse import Namespace
from typing import Any

from benchmarks._bench import Bench, places, scratch
from benchmarks._report import Row, size
from benchmarks._volume import parse_size

CHUNKS = {"64K": 64 << 10, "256K": 256 << 10, "1M": 1 << 20}
WRITES = {"4 KiB": (4 << 10, 256), "64 KiB": (64 << 10, 128), "1 MiB": (1 << 20, 32)}


def run(args: Namespace) -> dict[str, Any]:
    """Measure a small volume (`args.size`, default 512M) and the same data spread over one 256 times as large."""
    parent = next(iter(places(args).values()))
    small = parse_size(args.size or "512M")
    return {"small": _volume(parent, small, 1), "large": _volume(parent, small, 256)}


def _volume(parent: Any, length: int, factor: int) -> dict[str, Any]:
    found: dict[str, Any] = {"volume": length * factor}
    for name, chunk in CHUNKS.items():
        with scratch(parent) as folder:
            bench = Bench(folder, length)
            if factor > 1:
                _spread(bench, factor)
            made, full = bench.copy("repository", chunk_size=chunk)
            found[name] = {"full": full, "increments": {}}
            base = made.manifest.record.point_id
            for label, (write, count) in WRITES.items():
                lines = _write(bench, write, count)
                cost = bench.copy("repository", lines, base)[1]
                found[name]["increments"][label] = {**cost, "changed": write * count}
    return found


def _spread(bench: Bench, factor: int) -> None:
    """Move every second stretch of data far away, in a volume that is `factor` times as large."""
    with bench.volume.open("r+b") as file:
        file.truncate(bench.size * factor)
        moved = []
        for number, (start, stop) in enumerate(bench.ranges):
            if number % 2 == 0:
                moved.append((start, stop))
                continue
            file.seek(start)
            data = file.read(stop - start)
            file.seek(start * factor)
            file.write(data)
            moved.append((start * factor, start * factor + len(data)))
        bench.ranges = sorted(moved)


def _write(bench: Bench, length: int, count: int) -> list[str]:
    """Rewrite `count` stretches of `length` bytes at random, aligned, where there is data."""
    source = random.Random(length)
    places = [at for start, stop in bench.ranges for at in range(start, stop - length + 1, length)]
    chosen = sorted(source.sample(places, min(count, len(places))))
    with bench.volume.open("r+b") as file:
        for at in chosen:
            file.seek(at)
            file.write(source.randbytes(length))
    return [f"{at} {length}" for at in chosen]


def rows(figures: dict[str, Any]) -> list[Row]:
    """Return the table's lines."""
    lines = []
    for which, volume in figures.items():
        for name in CHUNKS:
            full = volume[name]["full"]
            told = f"{full['seconds']} s ({full['cpuSeconds']} s of CPU), {size(full['written'])} stored, "
            what = f"{which} ({size(volume['volume'])}), chunks of {name}iB"
            lines.append(Row(f"{what}: full", "", told + f"map {size(full['mapBytes'])}"))
            for label, cost in volume[name]["increments"].items():
                told = (
                    f"read {cost['read'] / cost['changed']:.1f}x, stored {cost['written'] / cost['changed']:.1f}x of "
                    f"what was written; {cost['seconds']} s, map {size(cost['mapBytes'])}"
                )
                lines.append(Row(f"{what}: writes of {label}", "", told))
    return lines
