"""Find points in a repository that nobody but us has open."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from orchestrator.cli.parts.errors import Unclear

if TYPE_CHECKING:
    from orchestrator.repository.manifest import Manifest, PointRef
    from orchestrator.repository.repository import Repository
    from orchestrator.repository.vault import Vault


async def vaults(opened: Repository, namespace: str | None) -> list[Vault]:
    """Return the vaults of all namespaces, or of those with this name or uid."""
    found = [one for one in await opened.namespaces() if namespace is None or namespace in (one.name, one.uid)]
    if not found and namespace is not None:
        raise Unclear(f"the repository holds nothing of namespace {namespace}")
    return [await opened.vault(one) for one in found]


async def all_points(opened: Repository, namespace: str | None) -> list[tuple[Vault, Manifest, PointRef]]:
    """Return every committed point that opens, oldest first; a damaged one is told on stderr and hides no other."""
    from orchestrator.repository.errors import Damaged, ManifestMissing, PointCancelled
    from orchestrator.repository.manifest import list_points, open_manifest

    found = []
    for vault in await vaults(opened, namespace):
        async for key in list_points(vault):
            try:
                found.append((vault, *await open_manifest(vault, key)))
            except (ManifestMissing, PointCancelled):
                continue
            except Damaged as error:
                print(f"tidemark: left out: {error}", file=sys.stderr)
    return sorted(found, key=lambda point: point[1].record.snapshot_time)


async def one_point(opened: Repository, namespace: str | None, wanted: str) -> tuple[Vault, str]:
    """Return the vault and manifest name of the one point whose id or name begins with `wanted`."""
    from orchestrator.blocks.offline import point_name
    from orchestrator.repository.manifest import list_points

    by_id = []
    for vault in await vaults(opened, namespace):
        by_id += [(vault, key) async for key in list_points(vault) if point_name(key).startswith(wanted)]
    if len(by_id) == 1:
        return by_id[0]
    if len(by_id) > 1:
        raise Unclear(f"{len(by_id)} points begin with {wanted}")
    by_name = [
        (vault, ref.key)
        for vault, manifest, ref in await all_points(opened, namespace)
        if manifest.record.point_name == wanted
    ]
    if len(by_name) == 1:
        return by_name[0]
    raise Unclear(f"{len(by_name)} points are named {wanted}" if by_name else f"no point {wanted} in the repository")
