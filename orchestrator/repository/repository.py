"""The whole repository: who holds the master key opens it, and opens vaults for namespaces."""

from __future__ import annotations

from orchestrator.clock import Clock
from orchestrator.repository.keys import MasterKey, NamespaceIdentity
from orchestrator.repository.store import Store
from orchestrator.repository.vault import Vault as Vault


class Repository:
    """An opened repository. Holds the repository key; `repr` says only its id."""

    id: str
    store: Store

    @classmethod
    async def open(cls, store: Store, master: MasterKey) -> Repository:
        """Open one that exists. Raises RepositoryMissing, NotARepository, WrongKey, UnsupportedFormat, Damaged."""
        raise AssertionError

    @classmethod
    async def open_or_create(cls, store: Store, master: MasterKey, *, clock: Clock | None = None) -> Repository:
        """Open, or make a new one where nothing is; proves conditional put first. Also ConditionalPutMissing."""
        raise AssertionError

    async def vault(self, namespace: NamespaceIdentity, *, create: bool = False) -> Vault:
        """Return a namespace's vault; NamespaceMissing unless `create`."""
        raise AssertionError

    async def namespaces(self) -> list[NamespaceIdentity]:
        """Return every namespace that has keys here."""
        raise AssertionError

    async def rewrap(self, new: MasterKey) -> int:
        """Wrap the same repository key with another master key; that one opens it from now on. Returns its number."""
        raise AssertionError
