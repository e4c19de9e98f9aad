"""A volume and its repositories: points and restores by a mover's calls, and commands as people type them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks._bare import Bare
from benchmarks._rivals import Cost, timed
from benchmarks._volume import make_volume
from orchestrator.blocks.backup import CopyOptions
from orchestrator.blocks.offline import NAMESPACE, Made, make_point
from orchestrator.blocks.restore import RestoreOptions, write_point
from orchestrator.blocks.tally import Tallies
from orchestrator.blocks.target import Target
from orchestrator.repository.keys import MasterKey
from orchestrator.repository.repository import Repository
from orchestrator.repository.store import CountingStore, Store, open_store

READERS = 2
PEAK = (
    "import sys; sys.argv = ['tidemark', *sys.argv[1:]]; from orchestrator.__main__ import main; code = main(); "
    "from orchestrator.cli.parts.output import peak_memory; print('PEAK', peak_memory()); sys.exit(code)"
)


def places(args: Namespace) -> dict[str, Path]:
    """Return where to measure: on tmpfs, and on disk (or only where `--dir` says)."""
    if args.dir:
        return {"dir": Path(args.dir)}
    found = {}
    if os.access("/dev/shm", os.W_OK):  # measuring on tmpfs is the point
        found["tmpfs"] = Path("/dev/shm")
    found["disk"] = Path(os.environ.get("TIDEMARK_BENCH_DISK", tempfile.gettempdir()))
    return found


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """Make a folder that goes again."""
    folder = Path(tempfile.mkdtemp(prefix="tidemark-bench-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Bench:
    """One volume and a key; repositories are folders beside them."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.volume = folder / "volume"
        self.ranges = make_volume(self.volume, size)
        self.key = folder / "key"
        self.key.write_text(MasterKey.generate().to_hex())
        self._compiled = set[str]()

    @property
    def allocated(self) -> int:
        """Return the bytes that aren't holes."""
        return sum(stop - start for start, stop in self.ranges)

    def drop(self, repository: str) -> None:
        """Remove a repository."""
        shutil.rmtree(self.folder / repository, ignore_errors=True)

    def copy(
        self,
        repository: str,
        lines: Sequence[str] | None = None,
        base: str | None = None,
        *,
        options: CopyOptions | None = None,
        store: Store | None = None,
        chunk_size: int | None = None,
    ) -> tuple[Made, dict[str, Any]]:
        """Make a point by the engine; return it and what it cost, the opening of the repository not counted."""
        return asyncio.run(self._copy(repository, lines, base, options, store, chunk_size))

    async def _copy(
        self,
        repository: str,
        lines: Sequence[str] | None,
        base: str | None,
        options: CopyOptions | None,
        inner: Store | None,
        chunk_size: int | None,
    ) -> tuple[Made, dict[str, Any]]:
        store = CountingStore(inner or await open_store(f"file://{self.folder / repository}"))
        opened = await Repository.open_or_create(store, MasterKey.from_file(self.key))
        vault = await opened.vault(NAMESPACE, create=True)
        tallies = Tallies()
        store.requests.clear()
        store.bytes_read = store.bytes_written = 0
        started, used = time.perf_counter(), time.process_time()
        made = await make_point(
            vault,
            self.volume,
            base=base,
            extents=lines,
            chunk_size=chunk_size,
            options=options or CopyOptions(readers=READERS),
            tallies=tallies,
        )
        seconds, used = time.perf_counter() - started, time.process_time() - used
        stats = made.manifest.stats
        return made, {
            "seconds": round(seconds, 4),
            "cpuSeconds": round(used, 4),
            "planned": made.planned_bytes,
            "read": stats.read,
            "uploaded": stats.uploaded,
            "mapBytes": stats.map_bytes,
            "written": store.bytes_written,
            "requests": dict(store.requests),
            "threadSeconds": {name: round(value, 3) for name, value in sorted(tallies.sum().seconds.items())},
        }

    def restore(self, repository: str, made: Made, target: Path, *, store: Store | None = None) -> dict[str, Any]:
        """Write a point to a new file, or over a block device, by the engine; synced, not read back."""
        return asyncio.run(self._restore(repository, made, target, store))

    async def _restore(self, repository: str, made: Made, target: Path, inner: Store | None) -> dict[str, Any]:
        store = CountingStore(inner or await open_store(f"file://{self.folder / repository}"))
        opened = await Repository.open(store, MasterKey.from_file(self.key))
        vault = await opened.vault(NAMESPACE)
        tallies = Tallies()
        store.requests.clear()
        started, used = time.perf_counter(), time.process_time()
        with Target.for_restore(target, made.manifest.root.volume_size) as opened_target:
            await write_point(vault, made.manifest, opened_target, RestoreOptions(writers=READERS), tallies)
            zeroed = opened_target.zeroed
            opened_target.keep()
        return {
            "seconds": round(time.perf_counter() - started, 4),
            "cpuSeconds": round(time.process_time() - used, 4),
            "zeroed": zeroed,
            "requests": dict(store.requests),
            "threadSeconds": {name: round(value, 3) for name, value in sorted(tallies.sum().seconds.items())},
        }

    def process(self, repository: str, *more: str, stdin: str = "") -> dict[str, Any]:
        """Run `tidemark copy` as a person would; CPU is the whole process's."""
        cost = self._command(repository, "copy", str(self.volume), "--readers", str(READERS), *more, stdin=stdin)
        figures = json.loads(cost.output)
        return {**cost.as_json(), "engine": figures["seconds"], "peakMemory": figures["peakMemory"]}

    def restore_process(self, repository: str, made: Made, target: Path) -> dict[str, Any]:
        """Run `tidemark restore` as a person would, only without reading the target again."""
        wanted = ["--point", made.manifest.record.point_id, "--to", str(target), "--no-read-back"]
        return self._command(repository, "restore", "--writers", str(READERS), *wanted).as_json()

    def _command(self, repository: str, *arguments: str, stdin: str = "") -> Cost:
        """Time a command as installed, that is with its modules compiled: a run that doesn't count does that."""
        command = [sys.executable, "-m", "orchestrator"]
        home = ["--repository", f"file://{self.folder / repository}", "--key-file", str(self.key), "--json", "-"]
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(self.folder / "compiled")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        if arguments[0] not in self._compiled:
            self._compiled.add(arguments[0])
            first = ["copy", str(self.key), "--create"] if arguments[0] == "copy" else [arguments[0], "--list"]
            timed([*command, *first, *home], environment)
        return timed([*command, *arguments, *home], environment, stdin)

    def peak(self, *arguments: str) -> int:
        """Run any command of ours; return the most memory that it had at once."""
        output = timed([sys.executable, "-c", PEAK, *arguments]).output
        return int(output.rpartition("PEAK")[2])

    def bare(self, *, sync: bool) -> dict[str, Any]:
        """Run the bare loop over the allocated ranges."""
        with self.bare_copy() as bare:
            return timed_here(lambda: bare.copy(self.ranges, sync=sync))

    @contextlib.contextmanager
    def bare_copy(self) -> Iterator[Bare]:
        """Give a bare loop a folder that goes again."""
        out = self.folder / "bare"
        out.mkdir()
        try:
            yield Bare(self.volume, out, READERS)
        finally:
            shutil.rmtree(out)


def timed_here(work: Callable[[], float]) -> dict[str, Any]:
    """Run what returns its own seconds; add the CPU time that this process spent on it."""
    used = time.process_time()
    seconds = work()
    return {"seconds": round(seconds, 4), "cpuSeconds": round(time.process_time() - used, 4)}


def plain_write(path: Path, length: int, block: int = 4 << 20) -> dict[str, Any]:
    """Write so many bytes of noise and sync them: what the medium allows at best."""
    data = os.urandom(block)
    used = time.process_time()
    started = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for at in range(0, length, block):
            file.write(data[: min(block, length - at)])
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    path.unlink()
    return {"seconds": round(seconds, 4), "cpuSeconds": round(time.process_time() - used, 4)}


def rounds(number: int, **contestants: Callable[[int], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Run all contestants in turn, `number` times; return each one's fastest round and all its seconds."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for turn in range(number):
        for name, run in contestants.items():
            found[name].append(run(turn))
    best = {}
    for name, results in found.items():
        best[name] = {
            **min(results, key=lambda one: float(one["seconds"])),
            "cpuSeconds": min(one["cpuSeconds"] for one in results),
            "rounds": [one["seconds"] for one in results],
        }
    return best


def ratio(slow: dict[str, Any], fast: dict[str, Any], what: str = "seconds") -> float:
    """Return how many times faster the second is."""
    return round(float(slow[what]) / max(float(fast[what]), 1e-6), 2)
