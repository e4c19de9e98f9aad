"""Sweep what no point needs out of a repository, and compact what is mostly dead, without a cluster."""

from __future__ import annotations

import asyncio
import functools
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.parts.beforehand import check_writable
from orchestrator.cli.parts.names import printable
from orchestrator.cli.parts.offline import KeyFile, RepositoryUrl, StoreOptions, repository
from orchestrator.cli.parts.output import size, write_json
from orchestrator.errors import TidemarkError

app = typer.Typer()


@app.command()
def maintenance(
    url: RepositoryUrl,
    key_file: KeyFile,
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="Only this namespace.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    grace: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="How long what is unreached waits for readers.")
    ] = 86400.0,
    intent_age: Annotated[
        float, typer.Option(min=3600.0, metavar="SECONDS", help="How old an unfinished backup gets before it is ended.")
    ] = 604800.0,
    compact: Annotated[
        bool, typer.Option("--compact/--no-compact", help="Move what lives out of packs that are mostly dead.")
    ] = True,
    end_intent: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="End the unfinished backup whose damaged intent blocks sweeping."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE|-", help="Write the figures there.")] = None,
    options: StoreOptions = None,
) -> None:
    """Sweep what no point needs any more, and compact packs that are mostly dead.

    Two runs delete an object: one writes it down, another one, after the grace time, finds it still unreached. It may
    run at any time, beside backups, restores and other runs, and may be stopped anywhere.

    tidemark maintenance --repository s3://backups/shop --key-file master.key
    """
    if end_intent and namespace is None:
        raise typer.BadParameter("it needs --namespace", param_hint="--end-intent")
    check_writable(json_file)
    ages = timedelta(seconds=grace), timedelta(seconds=intent_age)
    rows, blocked = asyncio.run(
        _run(url, key_file, options, namespace, ages, tuple(end_intent or ()), dry_run, compact)
    )
    if json_file is not None:
        write_json(json_file, rows)
    if str(json_file) != "-":
        _tell(rows)
    if blocked is not None:
        raise blocked


def _tell(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if "plan" in row:
            print(f"{row['namespace']}: {row['plan']}.")
        if "error" in row:
            print(printable(f"{row['namespace']}: {row['error']['message']}."))
        if "result" in row:
            done, moved = row["result"], row["result"]["compacted"]
            print(
                f"  deleted {done['deletedObjects']} objects ({size(done['deletedBytes'])}), wrote down "
                f"{done['candidates']}, ended {done['cancelledIntents']} intents, "
                f"compacted {moved['packs']} packs ({size(moved['freed'])}) into {size(moved['written'])}"
            )
            if row.get("renewed"):
                print(f"  renewed the lock of {row['renewed']['objects']} objects until {row['renewed']['until']}")
    if not rows:
        print("The repository holds no namespace.")


async def _run(
    url: str,
    key_file: Path,
    options: Path | None,
    namespace: str | None,
    ages: tuple[timedelta, timedelta],
    end_intents: tuple[str, ...],
    dry_run: bool,
    compact: bool,
) -> tuple[list[dict[str, Any]], TidemarkError | None]:
    """Maintain one namespace after the other; return what was done, and the first error of one that is blocked.

    What can't be read in one namespace keeps no other from being swept.
    """
    import msgspec

    from orchestrator.cli.parts.errors import IntentUnknown
    from orchestrator.cli.parts.points import vaults, with_newest_keys
    from orchestrator.clock import SystemClock
    from orchestrator.fence import OpenFence
    from orchestrator.repository.errors import KeysOutdated, SweepBlocked, SweepOvertaken
    from orchestrator.repository.lockrenewal import renew_if_due
    from orchestrator.repository.maintenance import plan_sweep, sweep

    rows: list[dict[str, Any]] = []
    blocked: TidemarkError | None = None
    unknown = set(end_intents)
    async with repository(url, key_file, options) as opened:
        for vault in await vaults(opened, namespace):
            now, (grace, intent_age) = SystemClock().now(), ages
            plans = functools.partial(
                plan_sweep, now=now, grace=grace, intent_age=intent_age, compact=compact, end_intents=end_intents
            )
            row: dict[str, Any] = {"namespace": vault.namespace.name}
            rows.append(row)
            try:
                try:
                    plan = await plans(vault)
                except KeysOutdated:
                    vault = await with_newest_keys(opened, vault)
                    plan = await plans(vault)
                row["plan"] = plan.sentence()
                unknown -= {one.intent_id for one in plan.expired}
                if not dry_run:
                    row["result"] = msgspec.to_builtins(await sweep(vault, plan, OpenFence()))
                    renewal = await renew_if_due(vault, OpenFence(), now=SystemClock().now())
                    row["renewed"] = msgspec.to_builtins(renewal)
            except (SweepBlocked, SweepOvertaken) as error:
                row["error"] = {"reason": error.reason, "message": str(error)}
                blocked = blocked or error
    if unknown and blocked is None:
        blocked = IntentUnknown(f"there is no unfinished backup {', '.join(sorted(unknown))} in namespace {namespace}")
    return rows, blocked
