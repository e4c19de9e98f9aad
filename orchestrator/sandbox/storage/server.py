"""The storage as one program: which of its roles run, on which directory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from orchestrator.errors import Terminal
from orchestrator.sandbox.api import Api
from orchestrator.sandbox.faults import NAMESPACE, Faults
from orchestrator.sandbox.kinds import CONFIG_MAP
from orchestrator.sandbox.roles import Part, Runnable
from orchestrator.sandbox.storage.images import ImageStore
from orchestrator.sandbox.storage.install import install
from orchestrator.sandbox.storage.protection import Protection
from orchestrator.sandbox.storage.provisioner import Provisioner, Resizer
from orchestrator.sandbox.storage.pv_controller import PvController
from orchestrator.sandbox.storage.snapshot_controller import SnapshotController
from orchestrator.sandbox.storage.snapshotter import Snapshotter

ROLES = ("pv-controller", "protection", "provisioner", "resizer", "snapshot-controller", "snapshotter")


class UnknownRole(Terminal):
    """No role of that name."""

    reason = "UnknownRole"


class Storage(Part):
    """Volumes and snapshots of the driver, and those roles around them that nobody else plays."""

    name = "storage"

    def __init__(
        self, api: Api, directory: Path, *, roles: Iterable[str] = ROLES, faults: Faults | None = None
    ) -> None:
        super().__init__(api)
        self._wanted = frozenset(roles)
        unknown = self._wanted - set(ROLES)
        if unknown:
            raise UnknownRole(f"unknown roles {', '.join(sorted(unknown))}; there are {', '.join(ROLES)}")
        self.images = ImageStore(directory)
        self.faults = faults or Faults(self.mirror(CONFIG_MAP, NAMESPACE))

    async def setup(self) -> list[Runnable]:
        """Install kinds and classes; return the wanted roles."""
        self.images.tidy()
        await install(self.api)
        made: list[Runnable] = []
        if "pv-controller" in self._wanted:
            made.append(PvController(self))
        if "protection" in self._wanted:
            made.append(Protection(self))
        if "provisioner" in self._wanted:
            provisioner = Provisioner(self, self.images, self.faults)
            made += [provisioner, provisioner.holds]
        if "resizer" in self._wanted:
            made.append(Resizer(self, self.images))
        if "snapshot-controller" in self._wanted:
            made.append(SnapshotController(self))
        if "snapshotter" in self._wanted:
            made.append(Snapshotter(self, self.images, self.faults))
        return made
