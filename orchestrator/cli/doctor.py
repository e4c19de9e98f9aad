"""Check an installation: cluster, controller and its rights, storage, repositories, policies, backups."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.parts.cluster import KubeConfig, KubeContext, Output, check_output
from orchestrator.cli.parts.output import write_json

if TYPE_CHECKING:
    from orchestrator.config import Settings
    from orchestrator.doctor import Finding

app = typer.Typer()


@app.command()
def doctor(
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Where the controller runs.")] = "tidemark-system",
    service_account: Annotated[
        str, typer.Option(metavar="NAME", help="The controller's service account.")
    ] = "tidemark-controller",
    output: Output = "text",
    kubeconfig: KubeConfig = None,
    context: KubeContext = None,
) -> None:
    """Check an installation and say what to do. Changes nothing; exits 1 when something failed."""
    check_output(output)
    from orchestrator.config import Settings

    settings = Settings(namespace=namespace, service_account=service_account)
    findings = asyncio.run(_examine(settings, kubeconfig, context))
    if output == "json":
        write_json(
            Path("-"),
            [
                {"check": f.check, "verdict": f.verdict.value, "message": f.message, "remedy": f.remedy}
                for f in findings
            ],
        )
    else:
        _print(findings)
    raise typer.Exit(1 if any(f.verdict.value == "failed" for f in findings) else 0)


async def _examine(settings: Settings, kubeconfig: str | None, context: str | None) -> list[Finding]:
    from orchestrator.cli.parts.refusals import check_kubeconfig, for_a_person
    from orchestrator.clock import SystemClock
    from orchestrator.doctor import examine
    from orchestrator.kube.client import Client
    from orchestrator.kube.errors import NotConfigured
    from orchestrator.kube.transport import Transport

    check_kubeconfig(kubeconfig)
    try:
        transport = await Transport.open(kubeconfig, context)
    except NotConfigured as error:
        raise for_a_person(error, "") from error
    async with Client(transport, field_manager="tidemark-cli") as client:
        return await examine(client, settings, SystemClock(), transport)


def _print(findings: list[Finding]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    colours = {"ok": "green", "warning": "yellow", "failed": "red"}
    for found in findings:
        verdict = found.verdict.value
        console.print(f"[{colours[verdict]}]{verdict:8}[/] [bold]{found.check:13}[/]", end=" ")
        console.print(found.message, markup=False, soft_wrap=True)
        if found.remedy:
            console.print(f"{'':23}→ {found.remedy}", markup=False, soft_wrap=True)
