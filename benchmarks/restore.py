"""A restore to a new file and over a used block device: the engine beside restic, borg and a plain write."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks._bench import Bench, places, plain_write, ratio, rounds, scratch, timed_here
from benchmarks._report import Row, size, spread
from benchmarks._rivals import rivals
from benchmarks._volume import parse_size


def run(args: Namespace) -> dict[str, Any]:
    """Measure a volume of `args.size` (default 4G), half allocated."""
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
    made = bench.copy("engine")[0]
    back = bench.folder / "back"
    holes: list[int] = []

    def engine(_: int) -> dict[str, Any]:
        cost = bench.restore("engine", made, back)
        holes.append(back.stat().st_blocks * 512)
        back.unlink()
        return cost

    def process(_: int) -> dict[str, Any]:
        cost = bench.restore_process("engine", made, back)
        back.unlink()
        return cost

    def rival(tool: Any) -> Any:
        return lambda _: tool.restore(bench.volume, bench.folder / "tool").as_json()

    contestants: dict[str, Any] = {tool.name: rival(tool) for tool in tools}
    with _loop_device(bench.folder / "device", bench.size) as device:
        if device is not None:
            contestants["device"] = lambda _: bench.restore("engine", made, Path(device))
        with bench.bare_copy() as loop:
            loop.copy(bench.ranges)

            def bare(_: int) -> dict[str, Any]:
                cost = timed_here(lambda: loop.restore(bench.folder / "bare-back"))
                (bench.folder / "bare-back").unlink()
                return cost

            def plain(_: int) -> dict[str, Any]:
                return plain_write(bench.folder / "plain", bench.allocated)

            best = rounds(number, bare=bare, engine=engine, process=process, plain=plain, **contestants)
    return {"volume": bench.size, "allocated": bench.allocated, "takes": max(holes), **best}


@contextlib.contextmanager
def _loop_device(path: Path, length: int) -> Iterator[str | None]:
    """Make a block device that held something else; None where this account or machine can't."""
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        yield None
        return
    with path.open("wb") as file:
        for _ in range(length >> 20):
            file.write(b"used" * (1 << 18))
    done = subprocess.run(["losetup", "-f", "--show", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        yield None
        return
    try:
        yield done.stdout.strip()
    finally:
        subprocess.run(["losetup", "-d", done.stdout.strip()], check=True)


def rows(figures: dict[str, Any]) -> list[Row]:
    """Return the table's lines."""
    lines = []
    for place, found in figures.items():
        engine, plain = found["engine"], found["plain"]
        gets = engine["requests"].get("get", 0)
        lines.append(Row(f"{place}: to a file", "", f"{spread(engine)}, {engine['cpuSeconds']} s of CPU, {gets} GETs"))
        process = found.get("process")  # figures of earlier runs have none
        if process is not None:
            lines.append(Row(f"{place}: `tidemark restore --no-read-back`", "", spread(process)))
        lines.append(
            Row(
                f"{place}: holes stay holes",
                "allocated as the volume",
                f"{size(found['takes'])} of {size(found['allocated'])}",
                found["takes"] <= found["allocated"] * 1.02,
            )
        )
        if "bare" in found:  # figures of earlier runs have none
            told = f"{ratio(found['bare'], engine)} (of its CPU: {ratio(found['bare'], engine, 'cpuSeconds')})"
            told = f"{told}; loop {spread(found['bare'])}"
            lines.append(Row(f"{place}: engine's speed as part of the bare loop's", "", told))
        share = ratio(plain, engine)
        goal = ">= 0.85" if place == "disk" else ""
        told = f"{share}; {spread(plain)}"
        met = share >= 0.85 if place == "disk" else None
        lines.append(Row(f"{place}: as part of a plain write of the same bytes with fsync", goal, told, met))
        for tool in ("restic", "borg"):
            if tool not in found:
                lines.append(Row(f"{place}: beside {tool}", "", "missing here"))
                continue
            times = ratio(found[tool], engine)
            wanted = tool == "restic" and place != "disk"
            whole = f"; the process {ratio(found[tool], process)}x" if process is not None else ""
            told = f"{times}x ({ratio(found[tool], engine, 'cpuSeconds')}x of CPU{whole}); {spread(found[tool])}"
            lines.append(
                Row(f"{place}: beside {tool}", ">= 8x" if wanted else "", told, times >= 8 if wanted else None)
            )
        if "device" in found:
            device = found["device"]
            told = f"{spread(device)}; {size(device['zeroed'])} forced to zero"
            lines.append(Row(f"{place}: over a used block device (loop)", "", told))
        stages = engine["threadSeconds"]
        told = ", ".join(f"{name} {stages.get(name, 0.0):.2f} s" for name in ("fetch", "open", "write", "sync"))
        lines.append(Row(f"{place}: where the threads' seconds went", "", told))
    return lines
