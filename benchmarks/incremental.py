"""An increment of 1 % in blocks of 64 KiB, the changed ranges known; restic and borg read everything.

The same changes go into a second repository, where the volume is cut into chunks of 256 KiB, as a policy with
`options.chunkSize: 256Ki` does: each block of 64 KiB is then read and stored with the 256 KiB around it.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from benchmarks._bench import Bench, places, ratio, rounds, scratch
from benchmarks._report import Row, size, spread
from benchmarks._rivals import rivals
from benchmarks._volume import change, parse_size

MIDDLE = 256 << 10
COARSE = ", chunks of 256 KiB"
"""What follows a contestant's name when it works on the second repository, and a row's place."""


def run(args: Namespace) -> dict[str, Any]:
    """Measure a volume of `args.size` (default 4G); every contestant sees the same changes in every round."""
    figures: dict[str, Any] = {}
    for place, parent in places(args).items():
        with scratch(parent) as folder:
            figures[place] = _measure(Bench(folder, parse_size(args.size or "4G")), args.rounds)
    return figures


def _measure(bench: Bench, number: int) -> dict[str, Any]:
    tools = rivals(bench.folder)
    for tool in tools:
        tool.init()
        tool.backup(bench.volume)
    bases = {
        name: bench.copy(name, chunk_size=chunk)[0].manifest.record.point_id
        for name, chunk in (("engine", None), ("coarse", MIDDLE))
    }
    lines: list[str] = []

    def engine(turn: int) -> dict[str, Any]:
        lines[:] = [f"{at} {length}" for at, length in change(bench.volume, bench.ranges, 0.01, turn)]
        return bench.copy("engine", lines, bases["engine"])[1]

    def coarse(_: int) -> dict[str, Any]:
        return bench.copy("coarse", lines, bases["coarse"])[1]

    def process(repository: str) -> Any:
        more = ("--base", bases[repository], "--extents", "-")
        return lambda _: bench.process(repository, *more, stdin="\n".join(lines))

    def rival(tool: Any) -> Any:
        return lambda _: tool.backup(bench.volume).as_json()

    ours = {"engine": engine, "process": process("engine"), f"engine{COARSE}": coarse}
    ours[f"process{COARSE}"] = process("coarse")
    return {"volume": bench.size, **rounds(number, **ours, **{tool.name: rival(tool) for tool in tools})}


def rows(figures: dict[str, Any]) -> list[Row]:
    """Return the table's lines."""
    lines = []
    for place, found in figures.items():
        lines += _ours(place, found["engine"], found["process"])
        lines += _beside(place, found, "engine", "process")
        if "restic" in found and "borg" in found:
            told = f"{ratio(found['borg'], found['engine'])}x; {spread(found['borg'])}"
            lines.append(Row(f"{place}: engine beside borg", "", told))
        if f"engine{COARSE}" in found:
            # The goals are for what is done unless somebody asks for another size: these figures are for comparison.
            other = _ours(place + COARSE, found[f"engine{COARSE}"], found[f"process{COARSE}"])
            other += _beside(place + COARSE, found, f"engine{COARSE}", f"process{COARSE}")
            lines += [Row(row.what, "", row.measured) for row in other]
    return lines


def _ours(where: str, engine: dict[str, Any], process: dict[str, Any]) -> list[Row]:
    """Return what an increment took and read in one repository."""
    told = f"{spread(engine)}, {engine['cpuSeconds']} s of CPU; {size(engine['read'])} read, "
    start = round(process["seconds"] - process["engine"], 2)
    share = engine["read"] / engine["planned"]
    began = f"{spread(process)}, {process['cpuSeconds']} s of CPU; {start} s of it before and after the engine"
    return [
        Row(f"{where}: engine", "", told + f"{size(engine['uploaded'])} stored"),
        Row(f"{where}: `tidemark copy`, start-up", "<= 0.15 s", began, start <= 0.15),
        Row(f"{where}: read of the chunks touched", "<= 1.1x", f"{share:.2f}x", share <= 1.1),
    ]


def _beside(where: str, found: dict[str, Any], engine: str, process: str) -> list[Row]:
    """Return how many times restic takes; it reads the same volume whatever our chunks are."""
    if "restic" not in found:
        return [Row(f"{where}: beside restic", ">= 40x", "missing here")]
    times, whole = ratio(found["restic"], found[engine]), ratio(found["restic"], found[process])
    return [
        Row(f"{where}: engine beside restic", ">= 40x", f"{times}x; {spread(found['restic'])}", times >= 40),
        Row(f"{where}: process beside restic", ">= 20x", f"{whole}x", whole >= 20),
    ]
