"""Say what retention keeps and drops and why, and remove single points on request."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.parts.cluster import KubeConfig, KubeContext, Output, check_output, cluster
from orchestrator.cli.parts.offline import StoreOptions
from orchestrator.cli.parts.output import table, write_json
from orchestrator.cli.parts.refusals import NotThere

if TYPE_CHECKING:
    from orchestrator.kube.client import Client

app = typer.Typer()


@app.command()
def prune(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what retention keeps and drops, and why.")
    ] = False,
    point: Annotated[
        str | None,
        typer.Option(metavar="NAME|ID", help="Remove this point: by name in a cluster, by id in a repository."),
    ] = None,
    policy: Annotated[str | None, typer.Option(help="With --dry-run: only this policy.")] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", metavar="NS", help="The namespace.")] = None,
    url: Annotated[
        str | None, typer.Option("--repository", metavar="URL", help="Without a cluster: the repository's address.")
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", metavar="FILE", help="Without a cluster: the key.")
    ] = None,
    options: StoreOptions = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask before removing.")] = False,
    output: Output = "text",
    kubeconfig: KubeConfig = None,
    context: KubeContext = None,
) -> None:
    """Explain retention, or remove a point for good.

    Retention itself is applied by the controller, all the time. Removing a point can't be undone: its data goes in two
    runs of maintenance, a day apart.

    tidemark prune --dry-run -n shop

    tidemark prune --point database-4k2x -n shop
    """
    check_output(output)
    if dry_run == (point is not None):
        raise typer.BadParameter("give either --dry-run or --point", param_hint="--dry-run")
    if (url is None) != (key_file is None):
        raise typer.BadParameter("give both --repository URL and --key-file FILE", param_hint="--repository")
    if dry_run and url is not None:
        raise typer.BadParameter(
            "retention is a policy's, and policies are in a cluster: leave out --repository", param_hint="--dry-run"
        )
    if policy is not None and not dry_run:
        raise typer.BadParameter("it goes with --dry-run", param_hint="--policy")
    if dry_run:
        rows = asyncio.run(_explain(namespace, policy, kubeconfig, context))
        if output == "json":
            write_json(Path("-"), rows)
        elif rows:
            _print(rows)
        else:
            print("No points that a policy judges.")
        return
    assert point is not None
    if not yes:
        typer.confirm(f"Remove point {point} for good?", abort=True)
    if url is not None and key_file is not None:
        asyncio.run(_remove(url, key_file, options, namespace, point))
        said = f"Point {point} removed; its space comes back in two runs of maintenance, a day apart."
    else:
        asyncio.run(_ask(namespace or "default", point, kubeconfig, context))
        said = f"RecoveryPoint {namespace or 'default'}/{point} will be removed by the controller."
    if output == "json":
        write_json(Path("-"), {"point": point, "removed": url is not None})
    else:
        print(said)


def _print(rows: list[dict[str, Any]]) -> None:
    columns = ("namespace", "policy", "pvc", "point", "snapshotTime", "verdict")
    table(
        ("NAMESPACE", "POLICY", "VOLUME", "POINT", "TAKEN", "VERDICT", "REASONS"),
        [(*(row[column] for column in columns), "; ".join(row["reasons"])) for row in rows],
    )


async def _explain(
    namespace: str | None, policy: str | None, kubeconfig: str | None, context: str | None
) -> list[dict[str, Any]]:
    from orchestrator.clock import SystemClock

    async with cluster(kubeconfig, context) as client:
        return await explain_all(client, namespace or "", policy, SystemClock().now())


async def explain_all(client: Client, namespace: str, only: str | None, now: Any) -> list[dict[str, Any]]:
    """Return a row for every point that a live policy judges, with the very rules that the controller applies."""
    from orchestrator.api.tidemark import BackupPolicy, RecoveryPoint
    from orchestrator.decisions.retention import explain

    policies, _ = await client.list(BackupPolicy, namespace)
    if only is not None and not any(policy.name == only for policy in policies):
        raise NotThere(f"There is no BackupPolicy {only}" + (f" in namespace {namespace}" if namespace else ""))
    points, _ = await client.list(RecoveryPoint, namespace)
    by_uid = {p.uid: p for p in points}
    rows: list[dict[str, Any]] = []
    for judge in policies:
        if only is not None and judge.name != only:
            continue
        mine = [p for p in points if p.namespace == judge.namespace]
        for verdict in explain(judge, mine, now).values():
            for decision in verdict.decisions:
                point = by_uid[decision.point.id]
                rows.append(
                    {
                        "namespace": judge.namespace,
                        "policy": judge.name,
                        "pvc": point.spec.pvc_name,
                        "point": point.name,
                        "snapshotTime": decision.point.time.strftime("%Y-%m-%dT%H:%M:%SZ"),
                        "verdict": "keep" if decision.kept else "drop",
                        "reasons": list(decision.reasons),
                    }
                )
    return rows


async def _ask(namespace: str, point: str, kubeconfig: str | None, context: str | None) -> None:
    from orchestrator.api.tidemark import RecoveryPoint

    async with cluster(kubeconfig, context) as client:
        await client.merge_patch(RecoveryPoint, point, namespace, {"spec": {"prune": True}})


async def _remove(url: str, key_file: Path, options: Path | None, namespace: str | None, wanted: str) -> None:
    from orchestrator.cli.parts.offline import repository
    from orchestrator.cli.parts.points import one_point, with_newest_keys
    from orchestrator.fence import OpenFence
    from orchestrator.repository.errors import Damaged, KeysOutdated, UnsupportedFormat
    from orchestrator.repository.manifest import PointRef, open_manifest
    from orchestrator.repository.point import remove

    async with repository(url, key_file, options) as opened:
        vault, key = await one_point(opened, namespace, wanted)
        try:
            try:
                _, ref = await open_manifest(vault, key)
            except KeysOutdated:
                vault = await with_newest_keys(opened, vault)
                _, ref = await open_manifest(vault, key)
        except (Damaged, UnsupportedFormat):
            # Nobody can restore it, and while it is there no sweep can tell what lives: this is how it goes.
            ref = PointRef(key, "")
        await remove(vault, ref, OpenFence(), why="removed by hand")
