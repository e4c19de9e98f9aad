"""Prove what a repository holds, down to every byte if asked."""

from __future__ import annotations

import asyncio
import functools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.parts import rate
from orchestrator.cli.parts.beforehand import check_writable
from orchestrator.cli.parts.errors import DamageFound
from orchestrator.cli.parts.names import printable
from orchestrator.cli.parts.offline import KeyFile, RepositoryUrl, StoreOptions, repository
from orchestrator.cli.parts.output import peak_memory, progress_bar, size, write_json

if TYPE_CHECKING:
    from orchestrator.repository.vault import Vault

app = typer.Typer()


@app.command()
def verify(
    url: RepositoryUrl,
    key_file: KeyFile,
    full: Annotated[bool, typer.Option("--full", help="Read and check every byte.")] = False,
    sample: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the chunks to read, 0 to 1.")] = 0.0,
    point: Annotated[str | None, typer.Option(metavar="ID", help="Only this point.")] = None,
    expect: Annotated[str | None, typer.Option(metavar="DIGEST", help="That point's digest, kept elsewhere.")] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="Only this namespace.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(parser=rate.given, metavar="BYTES", help="Read at most so much per second: bytes, or 100M, 64Mi."),
    ] = None,
    record: Annotated[bool, typer.Option("--record/--no-record", help="Write down what is damaged.")] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE|-", help="Write the findings there.")
    ] = None,
    options: StoreOptions = None,
) -> None:
    """Check a repository: its structure, a sample of its chunks, or every byte. Ends 65 when anything is damaged."""
    if expect is not None and point is None:
        raise typer.BadParameter("it needs --point", param_hint="--expect")
    check_writable(json_file)
    depth: Any = "full" if full or sample >= 1 else sample or "quick"
    reports = asyncio.run(_verify(url, key_file, options, namespace, point, expect, depth, record, limit))
    if json_file is not None:
        write_json(json_file, reports)
    spoken = str(json_file) != "-"
    findings = [finding for report in reports for finding in report["findings"]]
    for finding in findings if spoken else []:
        hurts = ", ".join(finding["points"]) or "no point"
        print(printable(f"{finding['key']}: {finding['what']}; hurts {hurts}"))
    for report in reports if spoken else []:
        for hurt in report["hurt"]:
            print(printable(_sentence(report["namespace"], hurt)))
    again = [name for report in reports for name in report["readAgain"]]
    if again and spoken:
        what = f"{len(again)} objects came wrong and, read again, right: the store or the way to it is ill, they aren't"
        print(printable(f"{what}; first: {again[0]}"))
    if findings or not all(report["ok"] for report in reports):
        raise DamageFound(f"{len(findings)} objects are damaged or missing")
    if spoken:
        counted = ("points", "pages", "chunks", "bytesRead", "seconds")
        points, pages, chunks, read, seconds = (sum(report[name] for report in reports) for name in counted)
        print(f"Sound: {points} points, {pages} map pages, {chunks} chunks, {size(read)} read in {seconds:.2f} s.")


def _sentence(namespace: str, point: dict[str, Any]) -> str:
    """Tell of one hurt point which volume it is of, and how much of it is lost."""
    volume = f"volume {namespace}/{point['pvc']}" if point["pvc"] else f"a volume of {namespace}"
    named = f" ({point['name']}, {point['time']})" if point["name"] else ""
    lost = f"{point['chunks']} chunks are lost" if point["chunks"] else "it can't be read at all"
    return f"Hurt: point {point['key'].rpartition('/')[2]}{named} of {volume}: {lost}"


async def _verify(
    url: str,
    key_file: Path,
    options: Path | None,
    namespace: str | None,
    point: str | None,
    expect: str | None,
    depth: Any,
    record: bool,
    limit: int | None,
) -> list[dict[str, Any]]:
    import msgspec

    from orchestrator.blocks.throttle import pace_of
    from orchestrator.cli.parts.points import one_point, vaults, with_newest_keys
    from orchestrator.repository.errors import KeysOutdated
    from orchestrator.repository.verify import verify as prove

    state = [0, 0]

    def note(done: int, total: int) -> None:
        state[:] = done, total

    reports = []
    chosen: list[tuple[Vault, dict[str, str] | None]]
    async with repository(url, key_file, options) as opened, progress_bar("checking", lambda: (state[0], state[1])):
        if point is not None:
            vault, key = await one_point(opened, namespace, point)
            chosen = [(vault, {key: expect or ""})]
        else:
            chosen = [(vault, None) for vault in await vaults(opened, namespace)]
        for vault, points in chosen:
            started = time.perf_counter()
            go = functools.partial(prove, depth=depth, points=points, progress=note, record=record, pace=pace_of(limit))
            try:
                report = await go(vault)
            except KeysOutdated:
                report = await go(await with_newest_keys(opened, vault))
            figures = {"seconds": round(time.perf_counter() - started, 4), "peakMemory": peak_memory()}
            reports.append({"namespace": vault.namespace.name, **msgspec.to_builtins(report), **figures})
    return reports
