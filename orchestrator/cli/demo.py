"""Protect real volumes in a sandbox cluster, end to end, and prove that they come back."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from orchestrator.api.quantity import parse_quantity

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    json: Annotated[Path | None, typer.Option(help="Write what was found to this file.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the directory and print where it is.")] = False,
    volume_size: Annotated[str, typer.Option(help="Size of the large volume.")] = "1Gi",
    changes: Annotated[
        float, typer.Option(help="Percent of the large volume's blocks in use rewritten a round.")
    ] = 1.0,
    directory: Annotated[Path | None, typer.Option("--dir", help="Work here instead of a temporary directory.")] = None,
) -> None:
    """Protect real volumes in a sandbox cluster, end to end, and prove that they come back.

    Starts a whole cluster and the controller on this machine, without root and without network. Exits 0 only if every
    volume came back bit for bit and every claim held.
    """
    try:
        size = parse_quantity(volume_size)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--volume-size") from error
    if size < 16 << 20:
        raise typer.BadParameter("make it at least 16Mi", param_hint="--volume-size")
    if not 0 < changes <= 100:
        raise typer.BadParameter("a percentage above 0, at most 100", param_hint="--changes")
    folder = (directory or Path(tempfile.mkdtemp(prefix="tidemark-demo-"))).absolute()
    if directory is not None and folder.exists() and any(folder.iterdir()):
        raise typer.BadParameter(f"{folder} is not empty", param_hint="--dir")
    good = False
    try:
        good = asyncio.run(_play(folder, size, changes, json))
    finally:
        if keep or directory is not None:
            print(f"kept: {folder}")
        elif good:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"kept, because not everything held: {folder}")
    raise typer.Exit(0 if good else 1)


async def _play(folder: Path, size: int, changes: float, json: Path | None) -> bool:
    from rich.console import Console

    from orchestrator.demo.report import Report
    from orchestrator.demo.script import Script
    from orchestrator.demo.stage import stage
    from orchestrator.demo.story import tell_story

    console, begun, report = Console(highlight=False), time.monotonic(), Report()

    def tell(line: str) -> None:
        console.print(f"[dim]{time.monotonic() - begun:5.1f} s[/dim]  ", end="")
        console.print(line, markup=False, soft_wrap=True)

    live = console.status("starting") if console.is_terminal else contextlib.nullcontext()

    try:
        with live as status:

            def show(line: str) -> None:
                if status is not None:
                    status.update(line)

            async with stage(folder, tell) as found:
                await tell_story(Script(found, report, tell, show), size, changes)
    finally:
        report.seconds = round(time.monotonic() - begun, 1)
        report.ok = bool(report.checks) and all(check["held"] for check in report.checks) and bool(report.points)
        if json is not None:
            json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
    for check in report.checks:
        sign = "[green]✓[/green]" if check["held"] else "[red]✗[/red]"
        console.print(f" {sign} {check['claim']}" + (f" [dim]{check['detail']}[/dim]" if check["detail"] else ""))
    console.print(f"[bold]{'All of it held' if report.ok else 'NOT everything held'}[/bold], {report.seconds:.0f} s")
    return report.ok
