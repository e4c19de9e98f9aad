"""A point of a volume in which nothing changed, small and huge: what a point costs when it costs nothing."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from benchmarks._bench import Bench, places, scratch
from benchmarks._report import Row
from benchmarks._volume import parse_size

SIZES = ("1G", "100G", "10T")
DATA = 64 << 20
ROUNDS = 40
"""A few milliseconds each: on a busy machine only many tries show what it takes."""


def run(args: Namespace) -> dict[str, Any]:
    """Measure sparse volumes of three sizes (or only `args.size`), in turn, many rounds each."""
    parent = next(iter(places(args).values()))
    sizes = (args.size,) if args.size else SIZES
    with scratch(parent) as folder:
        benches: dict[str, tuple[Bench, str]] = {}
        for text in sizes:
            (folder / text).mkdir()
            bench = Bench(folder / text, DATA)
            with bench.volume.open("r+b") as file:
                file.truncate(parse_size(text))
            benches[text] = bench, bench.copy("engine")[0].manifest.record.point_id
        found: dict[str, list[dict[str, Any]]] = {text: [] for text in sizes}
        for _ in range(max(args.rounds, ROUNDS)):
            for text, (bench, base) in benches.items():
                found[text].append(bench.copy("engine", [], base)[1])
        return {text: _best(results) for text, results in found.items()}


def _best(results: list[dict[str, Any]]) -> dict[str, Any]:
    best = min(results, key=lambda one: float(one["seconds"]))
    cpu = min(one["cpuSeconds"] for one in results)
    return {**best, "cpuSeconds": cpu, "rounds": [one["seconds"] for one in results]}


def rows(figures: dict[str, Any]) -> list[Row]:
    """Return the table's lines."""
    lines = []
    for text, found in figures.items():
        told = f"{found['seconds'] * 1000:.1f} ms (to {max(found['rounds']) * 1000:.1f}), "
        told += f"{sum(found['requests'].values())} requests"
        lines.append(Row(f"{text}iB, sparse", "< 0.2 s", told, found["seconds"] < 0.2))
    if len(figures) > 1:
        seconds = [found["seconds"] for found in figures.values()]
        share = max(seconds) / min(seconds)
        used = [found["cpuSeconds"] for found in figures.values()]
        told = f"{share:.2f} (of CPU: {max(used) / min(used):.2f})"
        lines.append(Row("slowest size by fastest", "<= 1.2", told, share <= 1.2))
    return lines
