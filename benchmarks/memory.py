"""The most memory that a copy, an increment and a restore have at once, at any size of the volume."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

from benchmarks._bench import Bench, places, scratch
from benchmarks._report import Row, size
from benchmarks._volume import BLOCK, change, parse_size

SIZES = ("1G", "64G", "1T", "16T")
DATA = 768 << 20
LIMIT = 256 << 20


def run(args: Namespace) -> dict[str, Any]:
    """Measure sparse volumes of these sizes (or only `args.size`), whole commands."""
    parent = next(iter(places(args).values()))
    figures: dict[str, Any] = {}
    for text in (args.size,) if args.size else SIZES:
        with scratch(parent) as folder:
            bench = Bench(folder, min(2 * DATA, parse_size(text)))
            with bench.volume.open("r+b") as file:
                file.truncate(parse_size(text))
                far = range(bench.size, parse_size(text) - BLOCK, max(parse_size(text) // 512, BLOCK))
                for at in far:  # something in every part of the map
                    file.seek(at)
                    file.write(b"far away" * (BLOCK // 8))
            home = ["--repository", f"file://{folder}/repository", "--key-file", str(bench.key)]
            told = folder / "told"
            copy = ["copy", str(bench.volume), *home, "--json", str(told)]
            found = {"full": bench.peak(*copy, "--create")}
            changed = folder / "changed"
            changed.write_text("\n".join(f"{at} {n}" for at, n in change(bench.volume, bench.ranges, 0.0, 1)))
            base = json.loads(told.read_text())["point"]
            found["increment"] = bench.peak(*copy, "--base", base, "--extents", str(changed))
            found["restore"] = bench.peak(
                "restore", "--point", base, "--to", str(folder / "back"), *home, "--no-read-back"
            )
            figures[text] = found
    return figures


def rows(figures: dict[str, Any]) -> list[Row]:
    """Return the table's lines."""
    lines = []
    for text, found in figures.items():
        told = ", ".join(f"{name} {size(peak)}" for name, peak in found.items())
        lines.append(Row(f"{text}iB", "<= 256 MiB", told, max(found.values()) <= LIMIT))
    return lines
