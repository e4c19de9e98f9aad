"""Run benchmarks: every module beside this one that has `run(args) -> dict`.

Each takes its sizes by option, is small by default and measures ratios within one run, because absolute figures of
two machines, or of two days, say little about each other.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
from pathlib import Path


def names() -> list[str]:
    """Return the benchmarks there are."""
    here = str(Path(__file__).parent)
    return sorted(info.name for info in pkgutil.iter_modules([here]) if not info.name.startswith("_"))


def main() -> int:
    """List or run; print one JSON object, or leave it in --json FILE."""
    parser = argparse.ArgumentParser(prog="benchmarks", description="Measure Tidemark, in ratios within one run.")
    parser.add_argument("--list", action="store_true", help="name the benchmarks and end")
    parser.add_argument("--only", action="append", choices=names(), help="run this one (may be repeated)")
    parser.add_argument("--size", default=None, help="how much input, for instance 256M or 4G")
    parser.add_argument("--dir", default=None, help="where scratch files go (default: /dev/shm, else the temp folder)")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file too")
    args = parser.parse_args()
    if args.list:
        print("\n".join(names()))
        return 0
    figures = {}
    for name in args.only or names():
        print(f"# {name}", file=sys.stderr, flush=True)
        figures[name] = importlib.import_module(f"benchmarks.{name}").run(args)
    text = json.dumps(figures, indent=2)
    print(text)
    if args.json is not None:
        args.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
