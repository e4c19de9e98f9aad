"""Back up a file or block device of this machine into a repository, without a cluster.

What it needs is imported where the line was understood: its start is a good part of a small increment.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.sparing import asyncio_without_tls, lean_msgspec

CHUNK_SIZES = {"64K": 64 << 10, "256K": 256 << 10, "1M": 1 << 20}
EXAMPLES = """The first time:

  tidemark key generate master.key
  tidemark copy disk.img --repository file:///backups --key-file master.key --create

What changed, when you know it:

  tidemark copy disk.img --repository ... --key-file ... --base POINT --extents changed.txt
"""


def parser(program: str) -> argparse.ArgumentParser:
    """Return the command line's rules."""
    rules = argparse.ArgumentParser(
        prog=f"{program} copy",
        description="Back up PATH: what is allocated, or, with --base and --extents, what changed. "
        "Prints the new point's id.",
        epilog=EXAMPLES,
        formatter_class=_layout,
    )
    add = rules.add_argument
    add("path", metavar="PATH", type=Path, help="the file or block device to back up")
    add("--repository", metavar="URL", required=True, help="file:///path, s3://bucket/prefix, gs:// or az://")
    add("--key-file", metavar="FILE", type=Path, required=True, help="the master key: 32 bytes, hex or base64")
    add("--store-options", metavar="FILE", type=Path, help="`name=value` lines (default: AWS_*, GOOGLE_*, AZURE_*)")
    add("--base", metavar="POINT", help="build on this point (default: the newest of this path)")
    add("--extents", metavar="FILE|-", type=Path, help="what changed since --base: lines `offset length` in bytes")
    add("--json", metavar="FILE|-", type=Path, help="write all figures there")
    add("--create", action="store_true", help="make the repository if nothing is there")
    add(
        "--chunk-size",
        type=str.upper,
        choices=CHUNK_SIZES,
        help="for a first point (default: 64K, beyond 4 TiB 256K)",
    )
    add("--across-volumes", action="store_true", help="store nothing that other volumes' newest points have")
    add("--readers", metavar="N", type=_at_least_one, default=4, help="threads (default: 4)")
    add("--limit", metavar="BYTES", type=_rate, help="read at most so much per second: bytes, or 100M, 64Mi")
    add("--iops-limit", metavar="N", type=_at_least_one, help="reads per second, of at most 256 KiB each")
    return rules


def _layout(prog: str) -> argparse.HelpFormatter:
    """Lay help out as wide as the terminal. argparse asks `shutil` for that at every option, which loads archivers."""
    try:
        columns = int(os.environ.get("COLUMNS") or os.get_terminal_size().columns)
    except (OSError, ValueError):
        columns = 80
    return argparse.RawDescriptionHelpFormatter(prog, width=(columns or 80) - 2)


def _at_least_one(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _rate(text: str) -> int:
    from orchestrator.cli.parts.rate import bytes_per_second

    try:
        return bytes_per_second(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(arguments: Sequence[str], program: str) -> None:
    """Back up one file or device."""
    rules = parser(program)
    given = rules.parse_args(list(arguments))
    if given.json is not None:
        from orchestrator.cli.parts.beforehand import check_writable

        check_writable(given.json)
    if given.extents is not None and given.base is None:
        # Whichever point was newest may not be the one that the list counts from: what it leaves out would be wrong.
        rules.error("--extents needs --base POINT: which point are these the changes since?")
    lean_msgspec()
    if given.repository.startswith("file:"):  # with object lock in S3 a client of asyncio's comes in
        asyncio_without_tls()
    import asyncio

    from orchestrator.cli.parts.output import size, write_json

    figures = asyncio.run(_copy(given))
    if given.json is not None:
        write_json(given.json, figures)
    if str(given.json) == "-":
        return
    stats = figures["stats"]
    print(f"point {figures['point']} ({figures['mode']})")
    print(
        f"volume {size(stats['volume'])}, planned {size(figures['planned'])}, read {size(stats['read'])}, "
        f"changed {size(stats['changed'])}, uploaded {size(stats['uploaded'])}"
    )
    stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in figures["threadSeconds"].items())
    if stages:
        print(f"seconds of threads by stage: {stages}")
    requests = ", ".join(f"{count} {verb}" for verb, count in sorted(figures["requests"].items()))
    print(f"{figures['seconds']:.2f} s, requests: {requests}, peak memory {size(figures['peakMemory'])}")


async def _copy(given: argparse.Namespace) -> dict[str, Any]:
    from orchestrator.blocks.backup import CopyOptions
    from orchestrator.blocks.offline import NAMESPACE, as_json, make_point
    from orchestrator.blocks.tally import Tallies
    from orchestrator.cli.parts.opening import repository
    from orchestrator.cli.parts.output import peak_memory, progress_bar

    tallies = Tallies()
    with extents_lines(given.extents) as lines:
        async with repository(given.repository, given.key_file, given.store_options, create=given.create) as opened:
            vault = await opened.vault(NAMESPACE, create=True)
            started = time.perf_counter()
            async with progress_bar("copying", lambda: (tallies.sum().done, tallies.total_bytes)):
                made = await make_point(
                    vault,
                    given.path,
                    base=given.base,
                    extents=lines,
                    chunk_size=CHUNK_SIZES[given.chunk_size] if given.chunk_size else None,
                    options=CopyOptions(
                        readers=given.readers, bandwidth_limit=given.limit, iops_limit=given.iops_limit
                    ),
                    tallies=tallies,
                    across=given.across_volumes,
                )
            seconds = time.perf_counter() - started
            return {
                **as_json(made, tallies),
                "seconds": round(seconds, 4),
                "requests": dict(getattr(opened.store, "requests", {})),
                "peakMemory": peak_memory(),
            }


@contextmanager
def extents_lines(extents: Path | None) -> Iterator[Iterable[str] | None]:
    """Open the list of ranges for as long as the block lasts; what is no text shows as a malformed line."""
    if extents is None:
        yield None
    elif str(extents) == "-":
        yield sys.stdin
    else:
        try:
            file = extents.open(encoding="utf-8", errors="replace")
        except OSError as error:
            from orchestrator.cli.parts.errors import FileRefused

            raise FileRefused(f"can't read {extents}: {error.strerror}") from error
        with file:
            yield file
