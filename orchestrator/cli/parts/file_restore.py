"""The repository's side of `tidemark restore`: a point into a file or a block device, without any cluster.

What must never happen here: a target that holds less than the whole point under the name that was asked for.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.parts import rate
from orchestrator.cli.parts.beforehand import check_writable
from orchestrator.cli.parts.offline import repository
from orchestrator.cli.parts.output import progress_bar, size, table, write_json

if TYPE_CHECKING:
    from orchestrator.repository.repository import Repository

RepositoryUrl = Annotated[
    str | None,
    typer.Option("--repository", metavar="URL", help="file:///path, s3://bucket/prefix, gs:// or az://."),
]
KeyFile = Annotated[Path | None, typer.Option("--key-file", metavar="FILE", help="The master key.")]
ListPoints = Annotated[bool, typer.Option("--list", help="Show the points that are there.")]
To = Annotated[Path | None, typer.Option(metavar="FILE", help="A new file, or a block device, to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Fill a file that exists.")]
KnownZero = Annotated[bool, typer.Option("--known-zero", help="The device to write is all zeros now.")]
Sha256 = Annotated[bool, typer.Option("--sha256", help="Also print the SHA-256 of the whole volume.")]
Expect = Annotated[str | None, typer.Option(metavar="DIGEST", help="The manifest's digest, kept elsewhere.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE|-", help="Write all figures there.")]
Writers = Annotated[int, typer.Option(min=1, max=64, help="Threads that open and write chunks.")]
Limit = Annotated[
    int | None,
    typer.Option(
        parser=rate.given,
        metavar="BYTES",
        help="Write, and read back, at most so much per second: bytes, or 100M, 64Mi.",
    ),
]
IopsLimit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Writes per second, of at most 256 KiB each.")]


@dataclass(frozen=True, slots=True)
class Source:
    """The repository to look in, and of which namespace; None: of any."""

    url: str
    key_file: Path
    options: Path | None
    namespace: str | None

    def opened(self) -> AbstractAsyncContextManager[Repository]:
        """Open the repository for the length of a block."""
        return repository(self.url, self.key_file, self.options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to restore, where to and how."""

    point: str
    to: Path
    overwrite: bool
    known_zero: bool
    check: bool
    sha256: bool
    expect: str | None
    writers: int
    limit: int | None
    iops_limit: int | None


def show_points(source: Source, output: str) -> None:
    """Print the points that are there."""
    points = asyncio.run(_list(source))
    if output == "json":
        write_json(Path("-"), points)
    else:
        _print_points(points)


def run(source: Source, wanted: Wanted, output: str, json_file: Path | None) -> None:
    """Restore, and say what came of it."""
    check_writable(json_file)
    figures = asyncio.run(_restore(source, wanted))
    if json_file is not None or output == "json":
        write_json(json_file or Path("-"), figures)
    if output != "json" and str(json_file) != "-":
        print(f"{figures['to']}: {size(figures['volume'])} of point {figures['point']}, {figures['seconds']:.2f} s")
        if wanted.sha256:
            print(f"sha256 {figures['sha256']}")


async def _list(source: Source) -> list[dict[str, Any]]:
    from orchestrator.cli.parts.points import all_points, described

    async with source.opened() as opened:
        return [described(manifest, ref) for _, manifest, ref in await all_points(opened, source.namespace)]


def _print_points(points: list[dict[str, Any]]) -> None:
    if not points:
        print("No points.")
        return
    rows: list[tuple[str, ...]] = [
        (
            one["point"],
            f"{one['namespace']}/{one['pvc']}",
            one["snapshotTime"][:19] + "Z",
            one["mode"],
            size(one["volume"]),
            size(one["uploaded"]),
        )
        for one in points
    ]
    table(("POINT", "VOLUME", "SNAPSHOT", "MODE", "SIZE", "STORED"), rows)


async def _restore(source: Source, wanted: Wanted) -> dict[str, Any]:
    from orchestrator.blocks.readback import read_back
    from orchestrator.blocks.restore import RestoreOptions, write_point
    from orchestrator.blocks.tally import Tallies
    from orchestrator.blocks.target import Target
    from orchestrator.cli.parts.points import described, one_point
    from orchestrator.repository.manifest import open_manifest

    async with source.opened() as opened:
        vault, key = await one_point(opened, source.namespace, wanted.point)
        manifest, ref = await open_manifest(vault, key, digest=wanted.expect)
        volume, tallies, checking = manifest.root.volume_size, Tallies(), Tallies()
        started = time.perf_counter()
        digest = ""
        # Not in a thread: a cancellation while it runs there would leave the new file that nobody was given.
        with Target.for_restore(wanted.to, volume, overwrite=wanted.overwrite, known_zero=wanted.known_zero) as target:
            async with progress_bar("writing", lambda: (tallies.sum().done, volume)):
                total = await write_point(
                    vault,
                    manifest,
                    target,
                    RestoreOptions(writers=wanted.writers, bandwidth_limit=wanted.limit, iops_limit=wanted.iops_limit),
                    tallies,
                )
            target.close()  # a device's cache goes with the last who has it open
            written = time.perf_counter()
            if wanted.check or wanted.sha256:
                async with progress_bar("reading back", lambda: (checking.sum().done, volume)):
                    digest = await read_back(
                        vault,
                        manifest,
                        target.path,
                        known_zero=target.known_zero,
                        readers=wanted.writers,
                        sha256=wanted.sha256,
                        tallies=checking,
                        bandwidth_limit=wanted.limit,
                        iops_limit=wanted.iops_limit,
                    )
            target.keep()
        return {
            **described(manifest, ref),
            "to": str(wanted.to),
            "written": total.written,
            "seconds": round(written - started, 4),
            "readBackSeconds": round(time.perf_counter() - written, 4),
            "sha256": digest,
            "threadSeconds": {stage: round(seconds, 4) for stage, seconds in total.seconds.items()},
            "requests": dict(getattr(opened.store, "requests", {})),
        }
