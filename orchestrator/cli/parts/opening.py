"""Open a repository with nothing but its URL and the master key: the disaster case, and the benchmarks'.

Credentials come from the environment or from a file of `name=value` lines, never from the command line, where every
user of the machine could read them.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.parts.errors import OptionsUnreadable

if TYPE_CHECKING:
    from orchestrator.repository.repository import Repository
    from orchestrator.repository.store import Store

ENVIRONMENT: Mapping[str, Mapping[str, str]] = {
    "s3": {
        "AWS_ACCESS_KEY_ID": "access_key_id",
        "AWS_SECRET_ACCESS_KEY": "secret_access_key",
        "AWS_SESSION_TOKEN": "session_token",
        "AWS_REGION": "region",
        "AWS_DEFAULT_REGION": "region",
        "AWS_ENDPOINT_URL": "endpoint",
        "AWS_ENDPOINT_URL_S3": "endpoint",
    },
    "gs": {
        "GOOGLE_SERVICE_ACCOUNT_KEY": "service_account_key",
        "GOOGLE_APPLICATION_CREDENTIALS": "application_credentials",
    },
    "az": {
        "AZURE_STORAGE_ACCOUNT_NAME": "account_name",
        "AZURE_STORAGE_ACCOUNT_KEY": "account_key",
        "AZURE_STORAGE_SAS_TOKEN": "sas_key",
    },
}


def store_options(url: str, file: Path | None, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the store's options from a file of `name=value` lines, or else from the environment."""
    if file is None:
        names = ENVIRONMENT.get(url.partition(":")[0], {})
        environment = os.environ if environment is None else environment
        return {option: environment[name] for name, option in names.items() if environment.get(name)}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionsUnreadable(f"can't read {file}") from error
    options = {}
    for number, line in enumerate(lines, 1):
        name, found, value = line.strip().partition("=")
        if not name or name.startswith("#"):
            continue
        if not found:
            raise OptionsUnreadable(f"line {number} of {file} is not `name=value`")
        options[name.strip()] = value.strip()
    return options


@asynccontextmanager
async def repository(
    url: str, key_file: Path, options: Path | None, *, create: bool = False
) -> AsyncIterator[Repository]:
    """Open the repository for as long as the block lasts. `create`: make it when nothing is there.

    Where it says that object lock is promised, whatever is put in the block is put with it, by whoever.
    """
    from orchestrator.repository.keys import MasterKey
    from orchestrator.repository.repository import Repository
    from orchestrator.repository.store import CountingStore, open_store

    master = MasterKey.from_file(key_file)
    given = store_options(url, options)
    store = CountingStore(await open_store(url, given))
    try:
        opened = await (Repository.open_or_create(store, master) if create else Repository.open(store, master))
        if url.startswith("s3:"):
            store.inner = await _as_promised(opened, store.inner, url, given)
        yield opened
    finally:
        await store.close()


async def _as_promised(opened: Repository, store: Store, url: str, options: dict[str, str]) -> Store:
    """Return the store with the object lock that the repository says is promised.

    Where that can't be read, restores go on and what would have to be locked is refused: anybody who may put could
    otherwise stop restores, or make us forget the lock.
    """
    from orchestrator.repository.errors import Damaged
    from orchestrator.repository.lock import UNCLEAR, LockedStore, UnclearPromise, with_lock

    try:
        lock = await opened.lock()
    except Damaged as error:
        return LockedStore(store, UnclearPromise(error), UNCLEAR)
    return store if lock is None else with_lock(store, url, options, lock)
