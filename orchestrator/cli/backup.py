"""Back up now: create a Backup and, if asked, wait for its end."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.parts.cluster import (
    KubeConfig,
    KubeContext,
    NamespaceOption,
    Output,
    check_name,
    check_output,
    cluster,
    known,
    wait_for,
)
from orchestrator.cli.parts.instant import check_duration
from orchestrator.cli.parts.output import write_json

app = typer.Typer(help="Back up now.", no_args_is_help=True)


@app.callback()
def backup() -> None:
    """Back up now: create a Backup and, if asked, wait for its end."""


@app.command()
def create(
    name: Annotated[str | None, typer.Argument(help="Name of the Backup. Absent: made up.")] = None,
    policy: Annotated[str | None, typer.Option(help="The BackupPolicy whose volumes are backed up.")] = None,
    pvc: Annotated[list[str] | None, typer.Option(help="A claim, instead of a policy; may be repeated.")] = None,
    repository: Annotated[str | None, typer.Option(help="With --pvc: the BackupRepository.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Read whole volumes, whatever the driver reports.")] = False,
    expire_after: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Drop the points after this long, such as 7d. Absent: never.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end; the exit code says how it went.")] = False,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait.")] = 3600.0,
    namespace: NamespaceOption = "default",
    output: Output = "text",
    kubeconfig: KubeConfig = None,
    context: KubeContext = None,
) -> None:
    """Create a Backup: of a policy's volumes, or of claims by name.

    tidemark backup create --policy hourly -n shop --wait

    tidemark backup create before-upgrade --pvc database --repository vault --expire-after 7d -n shop
    """
    check_output(output)
    if (policy is None) == (not pvc):
        raise typer.BadParameter("give either --policy or --pvc", param_hint="--policy")
    if repository is not None and policy is not None:
        raise typer.BadParameter("a policy names its repository itself", param_hint="--repository")
    for given, option in ((name, "NAME"), (policy, "--policy"), (repository, "--repository"), (namespace, "-n")):
        check_name(given, option)
    for claim in pvc or ():
        check_name(claim, "--pvc")
    if expire_after is not None:
        check_duration(expire_after, "--expire-after")
    asyncio.run(
        _create(
            name,
            policy,
            pvc or [],
            repository,
            full,
            expire_after,
            wait,
            timeout,
            namespace,
            output,
            kubeconfig,
            context,
        )
    )


async def _create(
    name: str | None,
    policy: str | None,
    claims: list[str],
    repository: str | None,
    full: bool,
    expire_after: str | None,
    wait: bool,
    timeout_s: float,
    namespace: str,
    output: str,
    kubeconfig: str | None,
    context: str | None,
) -> None:
    from orchestrator.api.meta import ObjectMeta
    from orchestrator.api.tidemark.backup import Backup, BackupPhase, BackupSpec, InlineSelection
    from orchestrator.api.tidemark.backup_policy import BackupPolicy, VolumeSelector
    from orchestrator.kube.errors import Forbidden

    def ended(found: Backup) -> str | None:
        status = found.status
        if status.phase is BackupPhase.COMPLETED:
            return ""
        if status.phase in (BackupPhase.FAILED, BackupPhase.CANCELLED):
            return f"Backup {namespace}/{found.name} {status.phase.value}: {status.reason}: {status.message}"
        return None

    selection = None
    if claims:
        selection = InlineSelection(volumes=VolumeSelector(names=tuple(claims)), repository=repository)
    wanted = Backup(
        metadata=ObjectMeta(
            name=name or "", generate_name="" if name else f"{policy or 'by-hand'}-", namespace=namespace
        ),
        spec=BackupSpec(policy=policy, selection=selection, full=full, expire_after=expire_after),
    )
    async with cluster(kubeconfig, context) as client:
        with contextlib.suppress(Forbidden):  # who may create but not read goes on: the controller says the rest
            if policy is not None:
                await known(client, BackupPolicy, policy, namespace)
        made = await client.create(wanted)
        if wait:
            made = await wait_for(
                client,
                Backup,
                made.name,
                namespace,
                timeout_s=timeout_s,
                ended=ended,
                tell=lambda b: f"{b.name}: {b.status.phase.value} {b.status.progress}",
            )
    if output == "json":
        write_json(Path("-"), made.to_manifest())
    elif wait:
        print(f"Backup {namespace}/{made.name} completed: {made.status.completed} recovery points")
    else:
        print(f"Backup {namespace}/{made.name} created; follow it with: kubectl get bk,rp -n {namespace} -w")
