"""Open repositories for the controllers: resource, secrets, store and keys brought together in one place.

Credentials and master keys are read from Secrets of the controller's own namespace, kept only in the opened objects,
and given away only as one namespace's keys. What must never happen here: a repository that was known and is gone, or
is another one now, silently made anew.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from orchestrator.api.foreign.core import Secret
from orchestrator.api.mover import MoverConfig, Task
from orchestrator.api.tidemark.backup_repository import BackupRepository, BackupRepositorySpec, LockMode
from orchestrator.clock import Clock
from orchestrator.config import Settings
from orchestrator.errors import Retryable, Terminal
from orchestrator.kube.cache import Caches
from orchestrator.kube.client import Client
from orchestrator.kube.errors import NotFound
from orchestrator.observe.log import redact_key, redact_options
from orchestrator.repository.errors import RepositoryMissing
from orchestrator.repository.keys import MasterKey, NamespaceIdentity
from orchestrator.repository.lock import LockMode as ObjectLockMode
from orchestrator.repository.lock import ObjectLock, open_locked_store, with_lock
from orchestrator.repository.repository import Repository
from orchestrator.repository.vault import Vault
from policies.duration import parse_duration

MASTER_KEY = "master.key"
"""Key of the encryption Secret."""
OPEN_TIMEOUT_S = 60.0
TRUST_S = 60.0
"""How long Secrets are taken as read."""


class RepositoryUnknown(Terminal):
    """A policy or restore names a BackupRepository that does not exist."""

    reason = "RepositoryNotFound"
    remedy = "Create the BackupRepository or correct the name."

    def __init__(self, name: str) -> None:
        super().__init__(f"There is no BackupRepository {name!r}")


class SecretMissing(Retryable):
    """A Secret that a BackupRepository names is absent or lacks a key."""

    reason = "SecretMissing"
    remedy = "Create it in the controller's namespace; it is looked for again at every pass."

    def __init__(self, namespace: str, name: str, key: str = "") -> None:
        super().__init__(
            f"Secret {namespace}/{name} has no key {key!r}" if key else f"There is no Secret {namespace}/{name}"
        )


class NamespaceNotAllowed(Terminal):
    """A namespace uses a repository that does not admit it."""

    reason = "NamespaceNotAllowed"
    remedy = "Ask the repository's admin to add the namespace to spec.allowedNamespaces."

    def __init__(self, repository: str, namespace: str) -> None:
        super().__init__(f"BackupRepository {repository!r} does not admit namespace {namespace!r}")


class RepositoryReplaced(Terminal):
    """Another repository lies where the known one was."""

    reason = "RepositoryReplaced"
    remedy = "Put the old content back, or make a new BackupRepository for the new content."

    def __init__(self, name: str, known: str, found: str) -> None:
        super().__init__(f"BackupRepository {name!r} was {known}, but {found or 'nothing'} lies at its address now")


class RepositorySlow(Retryable):
    """A repository did not answer in time."""

    reason = "RepositoryUnreachable"
    remedy = "Check the store's address, network and credentials."

    def __init__(self, name: str) -> None:
        super().__init__(f"BackupRepository {name!r} did not answer within {OPEN_TIMEOUT_S:.0f} s")


@dataclass(frozen=True, slots=True)
class OpenedRepository:
    """A repository ready for use. Holds credentials: `repr` shows none."""

    name: str
    uid: str
    spec: BackupRepositorySpec
    repository: Repository = field(repr=False)
    url: str
    store_options: dict[str, str] = field(repr=False)
    lock: ObjectLock | None = None
    """What is put here is put with it: as the resource asks, else as the repository itself says."""


@dataclass(slots=True)
class _Held:
    opened: OpenedRepository
    versions: tuple[str, ...]
    trusted_until: float
    vaults: dict[NamespaceIdentity, Vault] = field(default_factory=dict, repr=False)
    """Opened for namespaces; trusted as long as the Secrets are, so that a repository that was wiped is noticed."""


class Repositories:
    """The controllers' way to repositories. Opens each once, and again when its resource or a Secret changed."""

    def __init__(self, client: Client, caches: Caches, settings: Settings, clock: Clock) -> None:
        self._client = client
        self._caches = caches
        self._settings = settings
        self._clock = clock
        self._held: dict[str, _Held] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    def resource(self, name: str) -> BackupRepository:
        """Return the resource; raises RepositoryUnknown."""
        found = self._caches.of(BackupRepository).get(name)
        if found is None:
            raise RepositoryUnknown(name)
        return found

    def check_allowed(self, name: str, namespace: str) -> None:
        """Raise NamespaceNotAllowed unless the repository admits the namespace."""
        allowed = self.resource(name).spec.allowed_namespaces
        if "*" not in allowed and namespace not in allowed:
            raise NamespaceNotAllowed(name, namespace)

    async def open(self, name: str) -> OpenedRepository:
        """Return the repository, opened (made at its very first use).

        Raises RepositoryUnknown, SecretMissing, RepositoryReplaced, RepositorySlow and what `repository/` raises.
        """
        async with self._locks.setdefault(name, asyncio.Lock()):
            resource = self.resource(name)
            held = self._held.get(name)
            if (
                held is not None
                and held.versions[0] == f"{resource.uid}/{resource.metadata.generation}"
                and self._clock.monotonic() < held.trusted_until
            ):
                return held.opened
            master, options, versions = await self._secrets(resource)
            if held is not None and held.versions == versions:
                held.trusted_until = self._clock.monotonic() + TRUST_S
                held.vaults.clear()
                return held.opened
            opened = await self._open(resource, master, options)
            if held is not None:
                await self._close(held)
            self._held[name] = _Held(opened, versions, self._clock.monotonic() + TRUST_S)
            return opened

    async def vault(
        self, name: str, namespace: NamespaceIdentity, *, create: bool = False
    ) -> tuple[OpenedRepository, Vault]:
        """Return the repository and one namespace's vault in it (made when `create`).

        Opening a vault costs a list and a get for each key epoch: it is done once as long as Secrets are trusted.
        """
        opened = await self.open(name)
        held = self._held.get(name)
        vaults = held.vaults if held is not None and held.opened is opened else {}
        if namespace in vaults:
            return opened, vaults[namespace]
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                vaults[namespace] = await opened.repository.vault(namespace, create=create)
        except TimeoutError as error:
            raise RepositorySlow(name) from error
        return opened, vaults[namespace]

    async def close(self) -> None:
        """Close every store."""
        for held in self._held.values():
            await self._close(held)
        self._held.clear()

    async def _open(self, resource: BackupRepository, master: MasterKey, options: dict[str, str]) -> OpenedRepository:
        known = resource.status.repository_id
        store = await open_locked_store(resource.spec.url, options, lock_of(resource.spec))
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                if known:
                    repository = await Repository.open(store, master)
                else:
                    repository = await Repository.open_or_create(store, master)
                if known and repository.id != known:
                    raise RepositoryReplaced(resource.name, known, repository.id)
                lock = await _keep_promise(resource.spec, repository, options)
        except TimeoutError as error:
            await store.close()
            raise RepositorySlow(resource.name) from error
        except RepositoryMissing as error:
            await store.close()
            raise RepositoryReplaced(resource.name, known, "") from error
        except BaseException:
            await store.close()
            raise
        spec = resource.spec
        return OpenedRepository(resource.name, resource.uid, spec, repository, spec.url, options, lock)

    async def _secrets(self, resource: BackupRepository) -> tuple[MasterKey, dict[str, str], tuple[str, ...]]:
        encryption = await self._secret(resource.spec.encryption_secret)
        if MASTER_KEY not in encryption.data:
            raise SecretMissing(self._settings.namespace, encryption.name, MASTER_KEY)
        redact_key(encryption.data[MASTER_KEY])
        master = MasterKey.from_bytes(encryption.data[MASTER_KEY])
        versions = [f"{resource.uid}/{resource.metadata.generation}", encryption.metadata.resource_version]
        options: dict[str, str] = {}
        if resource.spec.credentials_secret is not None:
            credentials = await self._secret(resource.spec.credentials_secret)
            options = {key: value.decode("utf-8", "replace").strip() for key, value in credentials.data.items()}
            redact_options(options)
            versions.append(credentials.metadata.resource_version)
        return master, options, tuple(versions)

    async def _secret(self, name: str) -> Secret:
        try:
            return await self._client.get(Secret, name, self._settings.namespace)
        except NotFound as error:
            raise SecretMissing(self._settings.namespace, name) from error

    @staticmethod
    async def _close(held: _Held) -> None:
        await held.opened.repository.store.close()


def lock_of(spec: BackupRepositorySpec) -> ObjectLock | None:
    """Return the object lock that a repository asks for; LockUnsupported when its durations make none."""
    if spec.object_lock is None:
        return None
    mode: ObjectLockMode = "GOVERNANCE" if spec.object_lock.mode is LockMode.GOVERNANCE else "COMPLIANCE"
    retention, renew = parse_duration(spec.object_lock.retention), parse_duration(spec.object_lock.renew_every)
    return ObjectLock(retention, renew, mode)


async def _keep_promise(
    spec: BackupRepositorySpec, repository: Repository, options: dict[str, str]
) -> ObjectLock | None:
    """Return the lock that counts: what the resource asks for is told to the repository, for who has no cluster.

    A resource that asks for none doesn't end a promise: who makes it again and forgets the lock would. That is done
    with `tidemark lock --release`, which takes the master key.
    """
    lock = lock_of(spec)
    if lock is not None:
        await repository.promise(lock)
    elif spec.url.startswith("s3:"):
        lock = await repository.lock()
        if lock is not None:
            repository.store = with_lock(repository.store, spec.url, options, lock)
    return lock


def mover_config(opened: OpenedRepository, vault: Vault, *, task: Task, point: str, **fields: Any) -> MoverConfig:
    """Return what a mover gets: the repository's address and credentials, and one namespace's keys only."""
    for key in (*vault.keys.data_keys.values(), vault.keys.chunk_id_key):
        redact_key(key)
    if opened.lock is not None:
        fields.setdefault("lock_retention_s", opened.lock.retention.total_seconds())
        fields.setdefault("lock_renew_s", opened.lock.renew_every.total_seconds())
        fields.setdefault("lock_mode", opened.lock.mode)
    return MoverConfig(
        task=task,
        point=point,
        url=opened.url,
        store_options=opened.store_options,
        keys=vault.keys.to_json().decode(),
        **fields,
    )
