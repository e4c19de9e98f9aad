"""Take away everything that was made for one recovery point or restore, in the one order that leaks nothing.

Job and pods, Secret, clone claim, its volume, re-homed snapshot, re-homed content, and last, if it is to go, the
original snapshot. Out of order a pod keeps a claim alive, a pending claim keeps a snapshot alive, and a volume with
`Retain` outlives everybody. Each call does what can be done now; call again until it says True.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.config import Settings
from orchestrator.kube.client import Client
from orchestrator.volumes import clone, job, rehome, snapshot


@dataclass(frozen=True)
class Original:
    """The snapshot in the tenant's namespace."""

    namespace: str
    name: str
    content_name: str


async def remove_transient(client: Client, name: str, settings: Settings, owner: Mapping[str, str]) -> bool:
    """Remove mover, clone and re-homed snapshot of that name and owner; True when all of it is gone."""
    return (
        await job.remove(client, name, settings, owner)
        and await clone.remove(client, name, settings, owner)
        and await rehome.remove(client, name, settings, owner)
    )


async def remove(
    client: Client,
    name: str,
    settings: Settings,
    owner: Mapping[str, str],
    *,
    point_uid: str,
    original: Original | None,
) -> bool:
    """Remove everything, and the original physical snapshot if `original` names one; True when all of it is gone."""
    if not await remove_transient(client, name, settings, owner):
        return False
    if original is None:
        return True
    return await snapshot.destroy(client, original.namespace, original.name, original.content_name, point_uid)
