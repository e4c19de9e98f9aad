"""Back up a file or block device of this machine into a repository, without a cluster."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.parts.errors import FileRefused
from orchestrator.cli.parts.offline import KeyFile, RepositoryUrl, StoreOptions, repository
from orchestrator.cli.parts.output import peak_memory, progress_bar, size, write_json

app = typer.Typer()
CHUNK_SIZES = {"64K": 64 << 10, "256K": 256 << 10, "1M": 1 << 20}


@app.command()
def copy(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The file or block device to back up.")],
    url: RepositoryUrl,
    key_file: KeyFile,
    base: Annotated[
        str | None, typer.Option(metavar="POINT", help="Build on this point (default: the newest).")
    ] = None,
    extents: Annotated[
        Path | None,
        typer.Option(metavar="FILE|-", help="Changed ranges since the base, as lines `offset length` in bytes."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE|-", help="Write all figures there.")] = None,
    create: Annotated[bool, typer.Option("--create", help="Make the repository if nothing is there.")] = False,
    chunk_size: Annotated[str | None, typer.Option(help="64K, 256K or 1M; only for a volume's first point.")] = None,
    readers: Annotated[int, typer.Option(min=1, max=64, help="Threads.")] = 4,
    limit: Annotated[int | None, typer.Option(min=1, metavar="BYTES", help="Read at most so much per second.")] = None,
    options: StoreOptions = None,
) -> None:
    """Back up PATH: what is allocated, or, with --base and --extents, what changed. Prints the new point's id.

    The first time:

      tidemark key generate master.key

      tidemark copy disk.img --repository file:///backups --key-file master.key --create
    """
    if chunk_size is not None and chunk_size.upper() not in CHUNK_SIZES:
        raise typer.BadParameter(f"{chunk_size} is none of {', '.join(CHUNK_SIZES)}", param_hint="--chunk-size")
    chunk = CHUNK_SIZES[chunk_size.upper()] if chunk_size else None
    figures = asyncio.run(_copy(path, url, key_file, options, base, extents, create, chunk, readers, limit))
    if json_file is not None:
        write_json(json_file, figures)
    if json_file is None or str(json_file) != "-":
        stats = figures["stats"]
        print(f"point {figures['point']} ({figures['mode']})")
        print(
            f"volume {size(stats['volume'])}, planned {size(figures['planned'])}, read {size(stats['read'])}, "
            f"changed {size(stats['changed'])}, uploaded {size(stats['uploaded'])}"
        )
        requests = ", ".join(f"{count} {verb}" for verb, count in sorted(figures["requests"].items()))
        print(f"{figures['seconds']:.2f} s, requests: {requests}, peak memory {size(figures['peakMemory'])}")


async def _copy(
    path: Path,
    url: str,
    key_file: Path,
    options: Path | None,
    base: str | None,
    extents: Path | None,
    create: bool,
    chunk_size: int | None,
    readers: int,
    limit: int | None,
) -> dict[str, Any]:
    from orchestrator.blocks.backup import CopyOptions
    from orchestrator.blocks.offline import NAMESPACE, as_json, make_point
    from orchestrator.blocks.tally import Tallies

    tallies = Tallies()
    with extents_lines(extents) as lines:
        async with repository(url, key_file, options, create=create) as opened:
            vault = await opened.vault(NAMESPACE, create=True)
            started = time.perf_counter()
            async with progress_bar("copying", lambda: (tallies.sum().done, tallies.total_bytes)):
                made = await make_point(
                    vault,
                    path,
                    base=base,
                    extents=lines,
                    chunk_size=chunk_size,
                    options=CopyOptions(readers=readers, bandwidth_limit=limit),
                    tallies=tallies,
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
            raise FileRefused(f"can't read {extents}: {error.strerror}") from error
        with file:
            yield file
