"""The copy engine beside the bare loop: full, 1 % incremental, no change, restore.

Engine time is the call that a mover makes; process time is `tidemark copy` as a person runs it. Everything in one run
on the same input, best of a few rounds, so that the ratios mean something on a busy machine too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import _bare
from orchestrator.blocks.backup import CopyOptions
from orchestrator.blocks.offline import NAMESPACE, Made, make_point
from orchestrator.blocks.readback import read_back
from orchestrator.blocks.restore import RestoreOptions, write_point
from orchestrator.blocks.tally import Tallies
from orchestrator.blocks.target import Target
from orchestrator.repository.keys import MasterKey
from orchestrator.repository.repository import Repository
from orchestrator.repository.store import CountingStore, open_store

BLOCK = 64 * 1024
STRETCH = 8 << 20
ROUNDS = 3
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Return bytes of `512M`, `4G` and the like."""
    return int(text[:-1]) * UNITS[text[-1].upper()] if text[-1].upper() in UNITS else int(text)


def make_volume(path: Path, size: int, seed: int = 1) -> list[tuple[int, int]]:
    """Make a sparse volume, half allocated: half of that noise, half compressible text. Return the ranges."""
    source, ranges = random.Random(seed), []
    words = [source.randbytes(6).hex().encode() for _ in range(2000)]
    with path.open("wb") as file:
        file.truncate(size)
        for number, start in enumerate(range(0, size, 2 * STRETCH)):
            stop = min(start + STRETCH, size)
            if number % 2:
                text = b" ".join(source.choices(words, k=(stop - start) // 12))
                data = (text + bytes(stop - start))[: stop - start].replace(b"\0", b"\n")
            else:
                data = source.randbytes(stop - start)
            file.seek(start)
            file.write(data)
            ranges.append((start, stop))
    return ranges


def change(path: Path, ranges: list[tuple[int, int]], share: float, seed: int) -> list[tuple[int, int]]:
    """Rewrite a share of the volume's 64 KiB blocks at random, in allocated places; return (offset, length)."""
    source = random.Random(seed)
    blocks = [at for start, stop in ranges for at in range(start, stop - BLOCK + 1, BLOCK)]
    chosen = sorted(source.sample(blocks, max(1, int(path.stat().st_size // BLOCK * share))))
    with path.open("r+b") as file:
        for at in chosen:
            file.seek(at)
            file.write(source.randbytes(BLOCK))
    return [(at, BLOCK) for at in chosen]


class Bench:
    """One volume and its repositories."""

    def __init__(self, folder: Path, size: int, readers: int) -> None:
        self.folder, self.size, self.readers = folder, size, readers
        self.volume = folder / "volume"
        self.ranges = make_volume(self.volume, size)
        self.key = folder / "key"
        self.key.write_text(MasterKey.generate().to_hex())
        self.figures: dict[str, Any] = {}

    async def point(self, repository: str, lines: list[str] | None, base: str | None) -> tuple[Made, dict[str, Any]]:
        """Make one point; return it and what it cost."""
        master = MasterKey.from_file(self.key)
        store = CountingStore(await open_store(f"file://{self.folder / repository}"))
        opened = await Repository.open_or_create(store, master)
        vault = await opened.vault(NAMESPACE, create=True)
        tallies = Tallies()
        store.requests.clear()
        started, used = time.perf_counter(), time.process_time()
        made = await make_point(
            vault, self.volume, base=base, extents=lines, options=CopyOptions(readers=self.readers), tallies=tallies
        )
        seconds = time.perf_counter() - started
        stats = made.manifest.stats
        return made, {
            "seconds": round(seconds, 4),
            "cpuSeconds": round(time.process_time() - used, 4),
            "read": stats.read,
            "uploaded": stats.uploaded,
            "mapBytes": stats.map_bytes,
            "requests": dict(store.requests),
            "threadSeconds": {name: round(value, 3) for name, value in sorted(tallies.sum().seconds.items())},
        }

    async def restore(self, repository: str, made: Made, target: Path) -> dict[str, Any]:
        """Restore into a new file; read-back timed apart."""
        store = CountingStore(await open_store(f"file://{self.folder / repository}"))
        opened = await Repository.open(store, MasterKey.from_file(self.key))
        vault = await opened.vault(NAMESPACE)
        tallies = Tallies()
        started = time.perf_counter()
        with Target.create(target, made.manifest.root.volume_size) as file:
            await write_point(vault, made.manifest, file, RestoreOptions(writers=self.readers), tallies)
        written = time.perf_counter()
        await read_back(vault, made.manifest, str(target), known_zero=True, readers=self.readers)
        return {
            "seconds": round(written - started, 4),
            "readBackSeconds": round(time.perf_counter() - written, 4),
            "requests": dict(store.requests),
            "threadSeconds": {name: round(value, 3) for name, value in sorted(tallies.sum().seconds.items())},
        }

    def process(self, repository: str, *more: str, stdin: str = "") -> dict[str, Any]:
        """Run `tidemark copy` as a person would."""
        command = [sys.executable, "-m", "orchestrator", "copy", str(self.volume), "--key-file", str(self.key)]
        command += ["--repository", f"file://{self.folder / repository}", "--json", "-", *more]
        started = time.perf_counter()
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - started
        figures = json.loads(done.stdout)
        return {"seconds": round(seconds, 4), "engine": figures["seconds"], "peakMemory": figures["peakMemory"]}

    def extents(self) -> list[str]:
        """Return the allocated ranges as lines."""
        return [f"{start} {stop - start}" for start, stop in self.ranges]


def best(rounds: int, work: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """Run a few rounds; return the fastest, with all the seconds beside it."""
    results = [work(number) for number in range(rounds)]
    fastest = min(results, key=lambda one: one["seconds"])
    return {**fastest, "rounds": [one["seconds"] for one in results]}


def bare(bench: Bench, number: int) -> dict[str, Any]:
    """Run the bare loop once."""
    out = bench.folder / f"bare-{number}"
    out.mkdir()
    used = time.process_time()
    seconds = _bare.loop(bench.volume, out, bench.ranges, bench.readers)
    used = time.process_time() - used
    shutil.rmtree(out)
    return {"seconds": round(seconds, 4), "cpuSeconds": round(used, 4)}


def measure(bench: Bench) -> dict[str, Any]:
    """Run everything; return the figures."""
    figures: dict[str, Any] = {"volume": bench.size, "allocated": sum(stop - start for start, stop in bench.ranges)}
    made: list[Made] = []

    def full(number: int) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(bench.folder / f"repository-{number - 1}")
        point, cost = asyncio.run(bench.point(f"repository-{number}", bench.extents(), None))
        made.append(point)
        return cost

    figures["bareLoop"] = best(ROUNDS, lambda number: bare(bench, number))
    figures["full"] = best(ROUNDS, full)
    home = f"repository-{ROUNDS - 1}"
    base = made[-1].manifest.record.point_id
    figures["restore"] = best(ROUNDS, lambda number: restore(bench, home, made[-1], number))

    def increment(number: int) -> dict[str, Any]:
        lines = [f"{at} {length}" for at, length in change(bench.volume, bench.ranges, 0.01, number)]
        return asyncio.run(bench.point(home, lines, base))[1]

    figures["increment"] = best(ROUNDS, increment)
    figures["noChange"] = best(ROUNDS, lambda number: asyncio.run(bench.point(home, [], base))[1])
    figures["processNoChange"] = best(ROUNDS, lambda n: bench.process(home, "--base", base, "--extents", "-"))
    figures["processFull"] = bench.process("repository-process", "--create")
    figures["ratios"] = {
        "fullOfBareLoop": round(figures["bareLoop"]["seconds"] / figures["full"]["seconds"], 3),
        "fullOfBareLoopInCpu": round(figures["bareLoop"]["cpuSeconds"] / figures["full"]["cpuSeconds"], 3),
        "incrementOfFull": round(figures["increment"]["seconds"] / figures["full"]["seconds"], 4),
        "fullBytesPerSecond": int(figures["allocated"] / figures["full"]["seconds"]),
        "restoreBytesPerSecond": int(figures["allocated"] / figures["restore"]["seconds"]),
    }
    figures["peakMemory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return figures


def restore(bench: Bench, repository: str, made: Made, number: int) -> dict[str, Any]:
    """Restore once into a file that goes again."""
    target = bench.folder / f"target-{number}"
    cost = asyncio.run(bench.restore(repository, made, target))
    target.unlink()
    return cost


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure at `args.size` (default 256M) under `args.dir` (default /dev/shm)."""
    size = parse_size(args.size or "256M")
    place = args.dir or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix="tidemark-bench-", dir=place))
    try:
        return {"place": place, "readers": 2, **measure(Bench(folder, size, 2))}
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default=None)
    parser.add_argument("--dir", default=None)
    print(json.dumps(run(parser.parse_args()), indent=2))
