"""Make and change master keys."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.parts.errors import FileRefused
from orchestrator.cli.parts.offline import RepositoryUrl, StoreOptions, repository

app = typer.Typer(no_args_is_help=True, help="Make and change master keys.")


@app.command()
def generate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it; must not exist yet.")],
) -> None:
    """Write a new random master key to FILE, readable by you only. Keep a copy: without it nothing can be restored."""
    from orchestrator.repository.keys import MasterKey

    try:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as out:
            out.write(MasterKey.generate().to_hex() + "\n")
    except OSError as error:
        raise FileRefused(f"can't make {file}: {os.strerror(error.errno or 0)}") from error
    print(f"New master key in {file}. Keep a copy in another place: without it no backup can be restored.")


@app.command()
def rewrap(
    url: RepositoryUrl,
    key_file: Annotated[Path, typer.Option("--key-file", metavar="FILE", help="The master key in use.")],
    new_key_file: Annotated[Path, typer.Option("--new-key-file", metavar="FILE", help="The master key to change to.")],
    options: StoreOptions = None,
) -> None:
    """Let a new master key open the repository. For a key that leaked, start a new repository instead."""
    from orchestrator.repository.keys import MasterKey

    async def run() -> None:
        async with repository(url, key_file, options) as opened:
            await opened.rewrap(MasterKey.from_file(new_key_file))

    asyncio.run(run())
    print(f"The repository opens with the key in {new_key_file} now.")


@app.command()
def rotate(
    url: RepositoryUrl,
    key_file: Annotated[Path, typer.Option("--key-file", metavar="FILE", help="The master key in use.")],
    new_key_file: Annotated[
        Path | None, typer.Option("--new-key-file", metavar="FILE", help="Change to this master key too.")
    ] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="Only this namespace.")] = None,
    options: StoreOptions = None,
) -> None:
    """Seal what is written from now on with new data keys, one per namespace.

    What is stored keeps its key until it expires or is compacted. Backups may run meanwhile.
    """
    from orchestrator.cli.parts.points import vaults
    from orchestrator.repository.keys import MasterKey

    async def run() -> list[str]:
        async with repository(url, key_file, options) as opened:
            # The new master key first: cut off after it, nothing but another call is needed.
            if new_key_file is not None:
                await opened.rewrap(MasterKey.from_file(new_key_file))
            found = [await opened.rotate(vault.namespace) for vault in await vaults(opened, namespace)]
            return [f"{vault.namespace.name}: data key {vault.keys.current_epoch}" for vault in found]

    for line in asyncio.run(run()):
        print(line)
    if new_key_file is not None:
        print(f"The repository opens with the key in {new_key_file} now.")


@app.command("list")
def list_(
    url: RepositoryUrl,
    key_file: Annotated[Path, typer.Option("--key-file", metavar="FILE", help="The master key in use.")],
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="Only this namespace.")] = None,
    options: StoreOptions = None,
) -> None:
    """List each namespace's data keys by number, and how much was stored while each was the newest.

    What was stored then is sealed with that key, or with an older one by a backup that had begun before. No key is ever
    deleted: what it sealed may live as long as the repository.
    """
    from orchestrator.cli.parts.points import vaults
    from orchestrator.repository.keyepochs import KeyEpoch, epochs

    async def run() -> list[tuple[str, list[KeyEpoch]]]:
        async with repository(url, key_file, options) as opened:
            return [(vault.namespace.name, await epochs(vault)) for vault in await vaults(opened, namespace)]

    for name, found in asyncio.run(run()):
        for epoch in found:
            newest = ", the newest" if epoch is found[-1] else ""
            made = f"{epoch.made:%Y-%m-%d %H:%M}"
            print(f"{name}: data key {epoch.number} of {made}{newest}: {epoch.objects} objects, {epoch.bytes} bytes")
