"""Bring a recovery point back: into a cluster, or from a repository alone, without any cluster."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.parts import cluster_restore as inside
from orchestrator.cli.parts.beforehand import check_writable
from orchestrator.cli.parts.cluster import KubeConfig, KubeContext, check_output
from orchestrator.cli.parts.offline import StoreOptions, repository
from orchestrator.cli.parts.output import progress_bar, size, table, write_json

if TYPE_CHECKING:
    from orchestrator.repository.manifest import Manifest, PointRef

app = typer.Typer()


@app.command()
def restore(
    ctx: typer.Context,
    url: Annotated[
        str | None,
        typer.Option("--repository", metavar="URL", help="file:///path, s3://bucket/prefix, gs:// or az://."),
    ] = None,
    key_file: Annotated[Path | None, typer.Option("--key-file", metavar="FILE", help="The master key.")] = None,
    list_points: Annotated[bool, typer.Option("--list", help="Show the points that are there.")] = False,
    point: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|ID", help="In a cluster its name; in a repository its id, the start of it, or its name."
        ),
    ] = None,
    to: Annotated[Path | None, typer.Option(metavar="FILE", help="A new file, or a block device, to write.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Fill a file that exists.")] = False,
    known_zero: Annotated[bool, typer.Option("--known-zero", help="The device to write is all zeros now.")] = False,
    check: Annotated[
        bool, typer.Option("--read-back/--no-read-back", help="Read the target again and compare.")
    ] = True,
    sha256: Annotated[bool, typer.Option("--sha256", help="Also print the SHA-256 of the whole volume.")] = False,
    expect: Annotated[str | None, typer.Option(metavar="DIGEST", help="The manifest's digest, kept elsewhere.")] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="The namespace (repository: only its points).")
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="`text` or `json`.")] = "text",
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE|-", help="Write all figures there.")] = None,
    writers: Annotated[int, typer.Option(min=1, max=64, help="Threads.")] = 4,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="BYTES", help="Write, and read back, at most so much per second.")
    ] = None,
    iops_limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Writes per second, of at most 256 KiB each.")
    ] = None,
    options: StoreOptions = None,
    pvc: inside.Claim = None,
    as_of: inside.AsOfTime = None,
    backup: inside.WholeBackup = None,
    repository_point: inside.PointId = None,
    from_repository: inside.FromRepository = None,
    to_pvc: inside.ToPvc = None,
    name_prefix: inside.NamePrefix = "",
    to_namespace: inside.ToNamespace = None,
    storage_class: inside.NewClass = None,
    map_class: inside.ClassMap = None,
    restore_name: inside.RestoreName = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end; the exit code says how it went.")] = False,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait.")] = 3600.0,
    kubeconfig: KubeConfig = None,
    context: KubeContext = None,
) -> None:
    """Bring a point back: into a new claim of a cluster, or, with nothing but a repository and its key, into a file.

    tidemark restore --pvc database --as-of 2h --to-pvc database-then -n shop --wait

    tidemark restore --backup nightly-20260301 --name-prefix back- -n shop

    tidemark restore --repository file:///backups --key-file master.key --list

    tidemark restore --repository file:///backups --key-file master.key --point 3f2a --to disk.img
    """
    check_output(output)
    if url is None and key_file is None:
        needs = "it works on a repository itself: give --repository URL and --key-file FILE too"
        inside.refuse(ctx, inside.ONLY_OFFLINE, needs)
        wanted_inside = inside.Wanted(
            namespace=namespace or "default",
            point=point,
            pvc=pvc,
            as_of=as_of,
            backup=backup,
            repository_point=repository_point,
            from_repository=from_repository,
            to_pvc=to_pvc,
            name_prefix=name_prefix,
            to_namespace=to_namespace,
            storage_class=storage_class,
            map_class=tuple(map_class or ()),
            read_back=check,
            name=restore_name,
            wait=wait,
            timeout_s=timeout,
            output=output,
            kubeconfig=kubeconfig,
            context=context,
        )
        asyncio.run(inside.run(wanted_inside, inside.build(wanted_inside)))
        return
    inside.refuse(ctx, inside.ONLY_CLUSTER, "it needs a cluster: leave out --repository and --key-file")
    if url is None or key_file is None:
        raise typer.BadParameter("give both --repository URL and --key-file FILE", param_hint="--repository")
    if list_points:
        points = asyncio.run(_list(url, key_file, options, namespace))
        if output == "json":
            write_json(Path("-"), points)
        else:
            _print_points(points)
        return
    if point is None or to is None:
        raise typer.BadParameter("give --list, or --point ID and --to FILE", param_hint="--point")
    check_writable(json_file)
    wanted = _Wanted(point, to, overwrite, known_zero, check, sha256, expect, writers, limit, iops_limit)
    figures = asyncio.run(_restore(url, key_file, options, namespace, wanted))
    if json_file is not None or output == "json":
        write_json(json_file or Path("-"), figures)
    if output != "json" and str(json_file) != "-":
        print(f"{figures['to']}: {size(figures['volume'])} of point {figures['point']}, {figures['seconds']:.2f} s")
        if sha256:
            print(f"sha256 {figures['sha256']}")


@dataclass(frozen=True, slots=True)
class _Wanted:
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


async def _list(url: str, key_file: Path, options: Path | None, namespace: str | None) -> list[dict[str, Any]]:
    from orchestrator.cli.parts.points import all_points

    async with repository(url, key_file, options) as opened:
        return [_row(manifest, ref) for _, manifest, ref in await all_points(opened, namespace)]


def _row(manifest: Manifest, ref: PointRef) -> dict[str, Any]:
    record = manifest.record
    return {
        "point": record.point_id,
        "name": record.point_name,
        "namespace": record.namespace.name,
        "namespaceUid": record.namespace.uid,
        "pvc": record.pvc_name,
        "snapshotTime": record.snapshot_time.isoformat(),
        "mode": record.actual_mode,
        "volume": manifest.root.volume_size,
        "uploaded": manifest.stats.uploaded,
        "manifest": ref.key,
        "digest": ref.digest,
    }


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


async def _restore(
    url: str, key_file: Path, options: Path | None, namespace: str | None, wanted: _Wanted
) -> dict[str, Any]:
    from orchestrator.blocks.readback import read_back
    from orchestrator.blocks.restore import RestoreOptions, write_point
    from orchestrator.blocks.tally import Tallies
    from orchestrator.blocks.target import Target
    from orchestrator.cli.parts.points import one_point
    from orchestrator.repository.manifest import open_manifest

    async with repository(url, key_file, options) as opened:
        vault, key = await one_point(opened, namespace, wanted.point)
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
            **_row(manifest, ref),
            "to": str(wanted.to),
            "written": total.written,
            "seconds": round(written - started, 4),
            "readBackSeconds": round(time.perf_counter() - written, 4),
            "sha256": digest,
            "threadSeconds": {stage: round(seconds, 4) for stage, seconds in total.seconds.items()},
            "requests": dict(getattr(opened.store, "requests", {})),
        }
