"""Run benchmarks: every module beside this one that has `run(args) -> dict`, and write their tables into README.md.

Each takes its sizes by option and measures ratios within one run, because absolute figures of two machines, or of two
days, say little about each other.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import re
import sys
from pathlib import Path

from benchmarks import _report
from benchmarks._volume import parse_size

SMALLEST = 1 << 20


def names() -> list[str]:
    """Return the benchmarks there are."""
    here = str(Path(__file__).parent)
    return sorted(info.name for info in pkgutil.iter_modules([here]) if not info.name.startswith("_"))


def _name(text: str) -> str:
    name = text.replace("-", "_")
    if name not in names():
        raise argparse.ArgumentTypeError(f"no benchmark {text}; there are {', '.join(names())}")
    return name


def _size(text: str) -> str:
    if not re.fullmatch(r"[0-9]+[KMGTkmgt]?", text) or parse_size(text) < SMALLEST:
        raise argparse.ArgumentTypeError(f"{text} is no size from 1M on, such as 256M or 4G")
    return text


def _folder(text: str) -> str:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return text


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of rounds from 1 on")
    return int(text)


def main() -> int:
    """List or run; print one JSON object, keep it in results.json and write the tables."""
    parser = argparse.ArgumentParser(prog="benchmarks", description="Measure Tidemark, in ratios within one run.")
    parser.add_argument("--list", action="store_true", help="name the benchmarks and end")
    parser.add_argument("--only", action="append", type=_name, metavar="NAME", help="run this one (may be repeated)")
    parser.add_argument("--size", type=_size, default=None, help="how much input, for instance 256M or 4G")
    where = "measure only there (default: on /dev/shm and in the temp folder)"
    parser.add_argument("--dir", type=_folder, default=None, help=where)
    parser.add_argument("--rounds", type=_rounds, default=3, help="how often each contestant runs (default: 3)")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file too")
    parser.add_argument("--dry", action="store_true", help="leave results.json and README.md as they are")
    parser.add_argument("--tables", action="store_true", help="only write README.md again from results.json")
    args = parser.parse_args()
    if args.list:
        print("\n".join(names()))
        return 0
    if args.tables:
        _report.write(names())
        return 0
    figures = {}
    given = [f"--size {args.size}"] if args.size else []
    given += [f"--dir {args.dir}"] if args.dir else []
    for name in args.only or names():
        print(f"# {name}", file=sys.stderr, flush=True)
        figures[name] = importlib.import_module(f"benchmarks.{name}").run(args)
        if not args.dry:
            _report.keep(name, ["python -m benchmarks --only", name, *given], figures[name])
            _report.write(names())
    text = json.dumps(figures, indent=2)
    print(text)
    if args.json is not None:
        args.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
