"""The repositories: are they ready, and do their Secrets hold what they must. No key or credential is ever shown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

from orchestrator.api.foreign.core import Secret
from orchestrator.api.meta import condition
from orchestrator.api.tidemark import BackupRepository
from orchestrator.decisions.backup_repository import verification_overdue
from orchestrator.doctor.finding import Finding, Place, bad, ok, warn
from orchestrator.errors import TidemarkError
from orchestrator.kube.errors import Forbidden
from orchestrator.repository.keys import MasterKey
from orchestrator.repository.store import open_store

MASTER_KEY = "master.key"
UNSEEN = timedelta(minutes=15)
"""A controller that works checks each minute."""
BUCKET_S = 30.0
PAIRS = {
    "s3": (("access_key_id", "secret_access_key"),),
    "az": (("client_id", "client_secret"),),
}
"""Entries of a credentials Secret that are nothing without the other."""


async def repositories(place: Place) -> AsyncIterator[Finding]:
    """Are the repositories ready, and their Secrets whole?"""
    found, _ = await place.client.list(BackupRepository)
    if not found:
        yield warn(
            "repositories",
            "there is no BackupRepository: policies can keep snapshots only, lost with the storage",
            "Make a master key (tidemark key generate), its Secret, and a BackupRepository.",
        )
    for repository in found:
        async for finding in _secrets(place, repository):
            yield finding
        yield _readiness(place, repository)
        for finding in _proof(place, repository):
            yield finding
        async for finding in _lock(place, repository):
            yield finding


def _readiness(place: Place, repository: BackupRepository) -> Finding:
    ready, checked = condition(repository.status.conditions, "Ready"), repository.status.last_checked
    if repository.status.ready != "True":
        why = f"{ready.reason}: {ready.message}" if ready else "no controller has looked at it yet"
        return bad(
            "repositories", f"{repository.name} is not ready: {why}", "Mend what it says; it is tried each minute."
        )
    if checked is not None and place.now - checked > UNSEEN:
        return warn(
            "repositories",
            f"{repository.name} was ready when it was last looked at, {checked:%Y-%m-%d %H:%M} UTC",
            "See the controller above: it looks each minute.",
        )
    return ok("repositories", f"{repository.name} is ready")


def _proof(place: Place, repository: BackupRepository) -> Iterator[Finding]:
    """Judge what the last verification said, and how long ago that was; nothing before the first was due."""
    name, status = repository.name, repository.status
    told = condition(status.conditions, "Verified")
    if told is not None and told.status == "False":
        judge = bad if told.reason == "Damaged" else warn
        remedy = "See the runbook, docs/operations.md#" + told.reason
        yield judge("repositories", f"{name} is not proven: {told.message}", remedy)
    elif repository.spec.verify.suspend:
        yield warn("repositories", f"{name} is never verified", "Take spec.verify.suspend away.")
    elif verification_overdue(repository, place.now):
        yield warn(
            "repositories",
            f"{name} has not been verified for more than two slots",
            "See its Events: a Job that fails, or a controller that was away.",
        )
    elif status.last_verified is not None:
        yield ok("repositories", f"{name} was verified at {status.last_verified:%Y-%m-%d %H:%M} UTC")


async def _lock(place: Place, repository: BackupRepository) -> AsyncIterator[Finding]:
    """Judge the bucket of a repository with object lock, and whether the promise was kept up."""
    name, spec, promise = repository.name, repository.spec, repository.status.object_lock
    if spec.object_lock is None and promise is None:
        return
    if promise is not None and promise.kept == "False":
        # Without a lock in the resource it is the one that the repository itself promises.
        period = f"within {spec.object_lock.renew_every}" if spec.object_lock is not None else "in time"
        yield warn(
            "repositories",
            f"{name}: the object lock of what lives was not renewed {period}",
            "Run maintenance more often than that, and see why the last one failed.",
        )
    try:
        problems = await _bucket_problems(place, repository)
    except (TidemarkError, TimeoutError) as error:
        yield warn("repositories", f"{name}: could not look at its bucket: {error}", "Run it where the store is seen.")
        return
    for problem in problems:
        yield bad(
            "repositories",
            f"{name}: its bucket can't keep the promise of object lock: {problem}",
            "Object lock needs a bucket made with it, versions on, and a lifecycle rule for noncurrent versions.",
        )
    if not problems and promise is not None and promise.kept != "False":
        yield ok("repositories", f"{name}: what lives can't be deleted for {promise.undeletable_for}")


async def _bucket_problems(place: Place, repository: BackupRepository) -> list[str]:
    from orchestrator.repository.lockclient import S3LockClient

    held = None
    if repository.spec.credentials_secret is not None:
        held = await place.client.find(Secret, repository.spec.credentials_secret, place.settings.namespace)
    options = {name: value.decode("utf-8", "replace").strip() for name, value in held.data.items()} if held else {}
    client = S3LockClient(repository.spec.url, options, attempts=1)
    try:
        async with asyncio.timeout(BUCKET_S):
            return await client.problems()
    finally:
        await client.close()


async def _secrets(place: Place, repository: BackupRepository) -> AsyncIterator[Finding]:
    """Judge the Secrets that a repository names."""
    where, spec = place.settings.namespace, repository.spec
    try:
        key = await place.client.find(Secret, spec.encryption_secret, where)
        held = await place.client.find(Secret, spec.credentials_secret, where) if spec.credentials_secret else None
    except Forbidden:
        yield warn(
            "repositories",
            f"{repository.name}: could not look into its Secrets in {where}",
            "Run it as an admin of the cluster.",
        )
        return
    make = "Put the copy that you keep outside the cluster back; a new key can't read old points."
    if key is None:
        yield bad("repositories", f"{repository.name}: Secret {where}/{spec.encryption_secret} is missing", make)
    elif MASTER_KEY not in key.data:
        yield bad("repositories", f"{repository.name}: Secret {where}/{key.name} has no entry {MASTER_KEY}", make)
    else:
        try:
            MasterKey.from_bytes(key.data[MASTER_KEY])
        except TidemarkError as error:
            yield bad("repositories", f"{repository.name}: {MASTER_KEY} in Secret {where}/{key.name}: {error}", make)
    if spec.credentials_secret and held is None:
        yield bad(
            "repositories", f"{repository.name}: Secret {where}/{spec.credentials_secret} is missing", "Create it."
        )
    problem = await _credentials(spec.url, held)
    if problem:
        where = f"{where}/{held.name}" if held is not None else spec.url
        yield bad("repositories", f"{repository.name}: {where}: {problem}", "Correct the Secret's entries.")


async def _credentials(url: str, held: Secret | None) -> str:
    """Return what is wrong with a credentials Secret's entries, "" when nothing is. Contacts nobody."""
    options = {name: value.decode("utf-8", "replace").strip() for name, value in held.data.items()} if held else {}
    empty = sorted(name for name, value in options.items() if not value)
    if empty:
        return f"empty: {', '.join(empty)}"
    for pair in PAIRS.get(url.partition(":")[0], ()):
        there = [name for name in pair if name in options]
        if len(there) == 1:
            missing = next(name for name in pair if name not in options)
            return f"{there[0]} without {missing}"
    try:
        store = await open_store(url, options)
    except TidemarkError as error:
        return str(error)
    await store.close()
    return ""
