"""A first backup: the engine beside a bare loop of the same steps, a plain write, restic and borg."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from benchmarks._bench import Bench, places, plain_write, ratio, rounds, scratch
from benchmarks._report import Row, size, spread
from benchmarks._rivals import rivals
from benchmarks._volume import parse_size


def run(args: Namespace) -> dict[str, Any]:
    """Measure a volume of `args.size` (default 4G), half allocated."""
    figures: dict[str, Any] = {}
    for place, parent in places(args).items():
        with scratch(parent) as folder:
            figures[place] = _measure(Bench(folder, parse_size(args.size or "4G")), args.rounds, place != "tmpfs")
    return figures


def _measure(bench: Bench, number: int, sync: bool) -> dict[str, Any]:
    tools = rivals(bench.folder)
    stored: dict[str, int] = {}

    def engine(_: int) -> dict[str, Any]:
        bench.drop("engine")
        cost = bench.copy("engine")[1]
        stored["engine"] = cost["written"]
        bench.drop("engine")
        return cost

    def process(_: int) -> dict[str, Any]:
        bench.drop("process")
        cost = bench.process("process", "--create")
        bench.drop("process")
        return cost

    def rival(tool: Any) -> Any:
        def once(_: int) -> dict[str, Any]:
            tool.init()
            cost = tool.backup(bench.volume).as_json()
            stored[tool.name] = sum(found.stat().st_size for found in tool.repository.rglob("*") if found.is_file())
            tool.remove()
            return dict(cost)

        return once

    def plain(_: int) -> dict[str, Any]:
        return plain_write(bench.folder / "plain", stored["engine"])

    best = rounds(
        number,
        bare=lambda _: bench.bare(sync=sync),
        engine=engine,
        process=process,
        plain=plain,
        **{tool.name: rival(tool) for tool in tools},
    )
    return {"volume": bench.size, "allocated": bench.allocated, "stored": stored, **best}


def rows(figures: dict[str, Any]) -> list[Row]:
    """Return the table's lines."""
    lines = []
    for place, found in figures.items():
        engine, bare, plain = found["engine"], found["bare"], found["plain"]
        lines.append(
            Row(
                f"{place}: engine",
                "",
                f"{spread(engine)}, {engine['cpuSeconds']} s of CPU; {size(found['allocated'])} of "
                f"{size(found['volume'])} allocated, {size(found['stored']['engine'])} stored",
            )
        )
        lines.append(Row(f"{place}: `tidemark copy`", "", spread(found["process"])))
        share = ratio(bare, engine)
        lines.append(
            Row(
                f"{place}: engine's speed as part of the bare loop's",
                ">= 0.85" if place != "disk" else "",
                f"{share} (of its CPU: {ratio(bare, engine, 'cpuSeconds')}); loop {spread(bare)}",
                share >= 0.85 if place != "disk" else None,
            )
        )
        share = ratio(plain, engine)
        if place == "disk":
            lines.append(
                Row(
                    "disk: as part of a plain write of the stored bytes with fsync",
                    ">= 0.85, or tmpfs's ratios",
                    f"{share}; plain write {spread(plain)}",
                    share >= 0.85,
                )
            )
        for tool, goal in (("restic", 8), ("borg", 5)):
            if tool not in found:
                lines.append(Row(f"{place}: beside {tool}", f">= {goal}x", "missing here"))
                continue
            times = ratio(found[tool], engine)
            lines.append(
                Row(
                    f"{place}: beside {tool}",
                    f">= {goal}x",
                    f"{times}x ({ratio(found[tool], engine, 'cpuSeconds')}x of CPU; the process "
                    f"{ratio(found[tool], found['process'])}x); {tool} {spread(found[tool])}, "
                    f"{size(found['stored'][tool])} stored",
                    times >= goal,
                )
            )
        lines.append(Row(f"{place}: where the threads' seconds went", "", _profile(engine["threadSeconds"])))
    return lines


def _profile(seconds: dict[str, float]) -> str:
    stages = {name: seconds.get(name, 0.0) for name in ("read", "hash", "compress", "seal", "map", "upload")}
    total = sum(stages.values()) or 1.0
    return ", ".join(f"{name} {100 * value / total:.0f} %" for name, value in stages.items())
