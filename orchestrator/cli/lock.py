"""Say what object lock a repository promises, promise one, or end the promise, without a cluster."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.parts.offline import KeyFile, RepositoryUrl, StoreOptions, repository, store_options

if TYPE_CHECKING:
    from orchestrator.repository.lock import ObjectLock

app = typer.Typer()


class Mode(StrEnum):
    """Who may end a lock before its time."""

    COMPLIANCE = "compliance"
    GOVERNANCE = "governance"


@app.command()
def lock(
    url: RepositoryUrl,
    key_file: KeyFile,
    retention: Annotated[
        str | None, typer.Option(metavar="30d", help="Promise: what is put or renewed can't be deleted for so long.")
    ] = None,
    renew_every: Annotated[
        str | None, typer.Option(metavar="7d", help="With --retention: maintenance renews what lives once in so long.")
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="With --retention: nobody may end a lock, or who has the permission for that.")
    ] = Mode.COMPLIANCE,
    release: Annotated[bool, typer.Option("--release", help="Promise nothing from now on.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask before a promise or its end.")] = False,
    options: StoreOptions = None,
) -> None:
    """Say what object lock a repository promises, promise one, or end the promise.

    The repository itself remembers it, sealed: from then on every command and every controller puts with that lock,
    and maintenance renews it. What lives already is locked at once.

    tidemark lock --repository s3://backups/shop --key-file master.key --retention 30d --renew-every 7d
    """
    wanted = _wanted(retention, renew_every, mode)
    if release and wanted is not None:
        raise typer.BadParameter("give either --release or --retention", param_hint="--release")
    if wanted is not None and not yes:
        kept = "nobody" if mode is Mode.COMPLIANCE else "only who has a permission for it"
        typer.confirm(
            f"What is stored from now on stays for {retention}, and {kept} can change that. Go on?", abort=True
        )
    if release and not yes:
        typer.confirm("What is locked stays so until its time is over, but nothing is renewed. Go on?", abort=True)
    for line in asyncio.run(_run(url, key_file, options, wanted, release)):
        print(line)


def _wanted(retention: str | None, renew_every: str | None, mode: Mode) -> ObjectLock | None:
    from orchestrator.repository.lock import LockUnsupported, ObjectLock
    from policies.duration import BadDuration, parse_duration

    if (retention is None) != (renew_every is None):
        raise typer.BadParameter("give both --retention and --renew-every", param_hint="--retention")
    if retention is None or renew_every is None:
        return None
    given: list[timedelta] = []
    for name, text in (("--retention", retention), ("--renew-every", renew_every)):
        try:
            given.append(parse_duration(text))
        except BadDuration as error:
            raise typer.BadParameter(str(error), param_hint=name) from error
    try:
        return ObjectLock(given[0], given[1], "GOVERNANCE" if mode is Mode.GOVERNANCE else "COMPLIANCE")
    except LockUnsupported:
        raise typer.BadParameter(
            "it must be longer than --renew-every, and both above zero", param_hint="--retention"
        ) from None


async def _run(url: str, key_file: Path, options: Path | None, wanted: ObjectLock | None, release: bool) -> list[str]:
    from orchestrator.repository.lock import past_unclear

    if wanted is not None:
        advice = await _check(url, options)
    async with repository(url, key_file, options) as opened:
        if wanted is None and not release:
            return [_sentence(await opened.lock())]
        opened.store = past_unclear(opened.store)
        await opened.promise(wanted)
    if wanted is None:
        return [_sentence(None), "What is locked stays so until its time is over."]
    return [_sentence(wanted), *advice, f"{await _renew(url, key_file, options)} objects that were there are locked."]


async def _check(url: str, options: Path | None) -> list[str]:
    """Return what a person should know about the bucket; LockUnsupported where nothing can be locked."""
    from orchestrator.repository.lock import LockUnsupported, only_s3
    from orchestrator.repository.lockclient import S3LockClient

    only_s3(url)
    client = S3LockClient(url, store_options(url, options))
    try:
        if missing := await client.no_lock():
            raise LockUnsupported(url, "; ".join(missing))
        return [f"Beware: {problem}." for problem in await client.no_lifecycle()]
    finally:
        await client.close()


async def _renew(url: str, key_file: Path, options: Path | None) -> int:
    """Lock what lives already; opened anew, the repository is one with a lock."""
    from orchestrator.cli.parts.points import vaults
    from orchestrator.clock import SystemClock
    from orchestrator.fence import OpenFence
    from orchestrator.repository.lockrenewal import renew

    async with repository(url, key_file, options) as opened:
        now = SystemClock().now()
        return sum([(await renew(vault, OpenFence(), now=now)).objects for vault in await vaults(opened, None)])


def _sentence(lock: ObjectLock | None) -> str:
    from policies.duration import format_duration

    if lock is None:
        return "No object lock is promised: whoever may delete can delete."
    return (
        f"Object lock ({lock.mode.lower()}): put for {format_duration(lock.retention)}, renewed once in "
        f"{format_duration(lock.renew_every)}. What lives can't be deleted for at least "
        f"{format_duration(lock.promise)}."
    )
