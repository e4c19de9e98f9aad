"""Bring a recovery point back: into a cluster, or from a repository alone, without any cluster."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from orchestrator.cli.parts import cluster_restore as inside
from orchestrator.cli.parts import file_restore as outside
from orchestrator.cli.parts.cluster import KubeConfig, KubeContext, check_output
from orchestrator.cli.parts.offline import StoreOptions

app = typer.Typer()


@app.command()
def restore(
    ctx: typer.Context,
    url: outside.RepositoryUrl = None,
    key_file: outside.KeyFile = None,
    list_points: outside.ListPoints = False,
    point: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|ID", help="In a cluster its name; in a repository its id, the start of it, or its name."
        ),
    ] = None,
    to: outside.To = None,
    overwrite: outside.Overwrite = False,
    known_zero: outside.KnownZero = False,
    check: Annotated[
        bool, typer.Option("--read-back/--no-read-back", help="Read the target again and compare.")
    ] = True,
    sha256: outside.Sha256 = False,
    expect: outside.Expect = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="The namespace (repository: only its points).")
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="`text` or `json`.")] = "text",
    json_file: outside.JsonFile = None,
    writers: outside.Writers = 4,
    limit: outside.Limit = None,
    iops_limit: outside.IopsLimit = None,
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
    wait: inside.Wait = False,
    timeout: inside.Timeout = 3600.0,
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
    source = outside.Source(url, key_file, options, namespace)
    if list_points:
        outside.show_points(source, output)
        return
    if point is None or to is None:
        raise typer.BadParameter("give --list, or --point ID and --to FILE", param_hint="--point")
    wanted = outside.Wanted(
        point=point,
        to=to,
        overwrite=overwrite,
        known_zero=known_zero,
        check=check,
        sha256=sha256,
        expect=expect,
        writers=writers,
        limit=limit,
        iops_limit=iops_limit,
    )
    outside.run(source, wanted, output, json_file)
