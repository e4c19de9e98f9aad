"""`benchmarks/README.md`: the tables of the last runs, from `benchmarks/results.json`.

A goal that is missed is a row like any other. Figures come from runs only; nothing is typed in here.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._rivals import version

FOLDER = Path(__file__).parent
RESULTS, PAGE = FOLDER / "results.json", FOLDER / "README.md"
MARK = "<!-- Below: written by `make bench`. -->"


class Row(NamedTuple):
    """One line of a table: what was measured, what was wanted, what came out. `met`: None where there is no goal."""

    what: str
    goal: str
    measured: str
    met: bool | None = None


def machine() -> dict[str, Any]:
    """Return where this runs."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory": f"{memory / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "restic": version("restic"),
        "borg": version("borg"),
        "load": round(os.getloadavg()[1], 1),
    }


def size(count: float) -> str:
    """Return bytes as people read them."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def spread(one: dict[str, Any]) -> str:
    """Return the fastest round and the slowest."""
    return f"{one['seconds']:.2f} s (to {max(one['rounds']):.2f})"


def keep(name: str, arguments: list[str], figures: dict[str, Any]) -> None:
    """Remember a run's figures, with when and where it was."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results[name] = {
        "at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "arguments": " ".join(arguments),
        "machine": machine(),
        "figures": figures,
    }
    RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n", encoding="utf-8")


def write(names: list[str]) -> None:
    """Write the tables below the mark; what is above it stays."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    head = PAGE.read_text(encoding="utf-8").partition(MARK)[0] if PAGE.exists() else "# Benchmarks\n\n"
    parts = [head, MARK, "\n"]
    parts += [_section(name, results[name]) for name in names if name in results]
    PAGE.write_text("".join(parts), encoding="utf-8")


def _section(name: str, run: dict[str, Any]) -> str:
    module = importlib.import_module(f"benchmarks.{name}")
    rows: list[Row] = module.rows(run["figures"]) if hasattr(module, "rows") else _plain(run["figures"])
    where = run["machine"]
    told = (
        f"{where['cpu']}, {where['cores']} cores, {where['memory']}, Linux {where['kernel']}, Python {where['python']}"
    )
    told += f"; {where['restic']}; {where['borg']}"
    lines = [
        f"\n## {name.replace('_', '-')}\n",
        f"{(module.__doc__ or '').strip().splitlines()[0]}\n",
        f"`{run['arguments']}`, {run['at']}, load {where['load']} at the end: {told}.\n",
        "| what | goal | measured | met |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row.what} | {row.goal} | {row.measured} | {'' if row.met is None else 'yes' if row.met else '**no**'} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _plain(figures: dict[str, Any]) -> list[Row]:
    return [Row(name, "", str(value)) for name, value in figures.items() if not isinstance(value, dict | list)]
