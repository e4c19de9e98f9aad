"""Limits of bandwidth and of operations: how far a copy under a limit is from what it should take."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from benchmarks._bench import Bench, places, scratch
from benchmarks._report import Row
from benchmarks._volume import parse_size
from orchestrator.blocks.backup import CopyOptions
from orchestrator.blocks.throttle import operations_of

SECONDS = 8


def run(args: Namespace) -> dict[str, Any]:
    """Copy a volume of `args.size` (default 256M) in what should be eight seconds; four readers share each limit."""
    parent = next(iter(places(args).values()))
    with scratch(parent) as folder:
        bench = Bench(folder, parse_size(args.size or "256M"))
        scattered = [f"{at} 65536" for start, stop in bench.ranges for at in range(start, stop, 1 << 20)]
        cases = {
            "bandwidth": (None, CopyOptions(bandwidth_limit=bench.allocated // SECONDS)),
            "iops, in a row": (None, CopyOptions(iops_limit=operations_of(bench.allocated) // SECONDS)),
            "iops, scattered": (scattered, CopyOptions(iops_limit=len(scattered) // SECONDS)),
        }
        figures = {}
        for name, (lines, options) in cases.items():
            base = None if lines is None else bench.copy("limited")[0].manifest.record.point_id
            figures[name] = bench.copy("limited", lines, base, options=options)[1]
            bench.drop("limited")
        return figures


def rows(figures: dict[str, Any]) -> list[Row]:
    """Return the table's lines."""
    lines = []
    for name, found in figures.items():
        seconds = found["seconds"]
        told = f"{seconds} s instead of {SECONDS} ({(seconds / SECONDS - 1) * 100:+.1f} %)"
        lines.append(Row(name, "within 10 %", told, abs(seconds / SECONDS - 1) <= 0.1))
    return lines
