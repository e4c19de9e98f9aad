"""An increment of 1 % in blocks of 64 KiB, the changed ranges known; restic and borg read everything."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from benchmarks._bench import Bench, places, ratio, rounds, scratch
from benchmarks._report import Row, size, spread
from benchmarks._rivals import rivals
from benchmarks._volume import change, parse_size


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
    base = bench.copy("engine")[0].manifest.record.point_id
    lines: list[str] = []

    def engine(turn: int) -> dict[str, Any]:
        lines[:] = [f"{at} {length}" for at, length in change(bench.volume, bench.ranges, 0.01, turn)]
        return bench.copy("engine", lines, base)[1]

    def process(_: int) -> dict[str, Any]:
        return bench.process("engine", "--base", base, "--extents", "-", stdin="\n".join(lines))

    def rival(tool: Any) -> Any:
        return lambda _: tool.backup(bench.volume).as_json()

    best = rounds(number, engine=engine, process=process, **{tool.name: rival(tool) for tool in tools})
    return {"volume": bench.size, **best}


def rows(figures: dict[str, Any]) -> list[Row]:
    """Return the table's lines."""
    lines = []
    for place, found in figures.items():
        engine, process = found["engine"], found["process"]
        told = f"{spread(engine)}, {engine['cpuSeconds']} s of CPU; {size(engine['read'])} read, "
        lines.append(Row(f"{place}: engine", "", told + f"{size(engine['uploaded'])} stored"))
        start = round(process["seconds"] - process["engine"], 2)
        told = f"{spread(process)}, {process['cpuSeconds']} s of CPU; {start} s of it before and after the engine"
        lines.append(Row(f"{place}: `tidemark copy`, start-up", "<= 0.15 s", told, start <= 0.15))
        share = engine["read"] / engine["planned"]
        lines.append(Row(f"{place}: read of the chunks touched", "<= 1.1x", f"{share:.2f}x", share <= 1.1))
        if "restic" not in found:
            lines.append(Row(f"{place}: beside restic", ">= 40x", "missing here"))
            continue
        times, whole = ratio(found["restic"], engine), ratio(found["restic"], process)
        lines.append(
            Row(f"{place}: engine beside restic", ">= 40x", f"{times}x; {spread(found['restic'])}", times >= 40)
        )
        lines.append(Row(f"{place}: process beside restic", ">= 20x", f"{whole}x", whole >= 20))
        if "borg" in found:
            told = f"{ratio(found['borg'], engine)}x; {spread(found['borg'])}"
            lines.append(Row(f"{place}: engine beside borg", "", told))
    return lines
