"""Find points in a repository that nobody but us has open."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from orchestrator.cli.parts.errors import Unclear
from orchestrator.cli.parts.names import printable

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


async def with_newest_keys(opened: Repository, vault: Vault) -> Vault:
    """Return the vault after a KeysOutdated: with the epochs made meanwhile, or else certain that there are none.

    An object may name a later epoch because somebody who has no key wrote so into its header.
    """
    newest = await opened.vault(vault.namespace)
    return replace(newest, final=newest.keys.current_epoch == vault.keys.current_epoch)


async def all_points(opened: Repository, namespace: str | None) -> list[tuple[Vault, Manifest, PointRef]]:
    """Return every committed point that opens, oldest first; a damaged one is told on stderr and hides no other."""
    from orchestrator.repository.manifest import list_points

    found = []
    for vault in await vaults(opened, namespace):
        async for key in list_points(vault):
            point = await _opened(vault, key)
            if point is not None:
                found.append((vault, *point))
    return sorted(found, key=lambda point: point[1].record.snapshot_time)


def described(manifest: Manifest, ref: PointRef) -> dict[str, Any]:
    """Return what a script is told of a point."""
    record = manifest.record
    return {
        "point": record.point_id,
        "name": record.point_name,
        "namespace": record.namespace.name,
        "namespaceUid": record.namespace.uid,
        "pvc": record.pvc_name,
        "snapshotTime": record.snapshot_time.isoformat(),
        "mode": record.actual_mode,
        "volume": manifest.root.volume_size,
        "uploaded": manifest.stats.uploaded,
        "manifest": ref.key,
        "digest": ref.digest,
    }


async def _opened(vault: Vault, key: str) -> tuple[Manifest, PointRef] | None:
    """Return what is at a point's name, None if that is no point; one that doesn't open is told on stderr."""
    from orchestrator.repository.errors import (
        Damaged,
        KeysOutdated,
        ManifestMissing,
        PointCancelled,
        UnsupportedFormat,
    )
    from orchestrator.repository.manifest import open_manifest

    try:
        return await open_manifest(vault, key)
    except (ManifestMissing, PointCancelled):
        return None
    except (Damaged, UnsupportedFormat, KeysOutdated) as error:
        print(printable(f"tidemark: left out: {error}"), file=sys.stderr)
        return None


async def one_point(opened: Repository, namespace: str | None, wanted: str) -> tuple[Vault, str]:
    """Return the vault and manifest name of the one point that is named so.

    `wanted` is the start of its id, its name, or what `verify` calls it: its manifest's name or the last part of that.
    """
    from orchestrator.blocks.offline import point_name
    from orchestrator.repository.manifest import list_points

    def named(key: str) -> bool:
        return point_name(key).startswith(wanted) or wanted in (key, key.rpartition("/")[2])

    by_id = []
    for vault in await vaults(opened, namespace):
        by_id += [(vault, key) async for key in list_points(vault) if named(key)]
    if len(by_id) == 1:
        return by_id[0]
    if len(by_id) > 1:
        # Names are no proof: one that anybody could put there must not make a point's own id ambiguous.
        sound = [point for point in by_id if await _opened(*point) is not None]
        if len(sound) == 1:
            return sound[0]
        raise Unclear(f"{len(by_id)} points begin with {wanted!r}")
    by_name = [
        (vault, ref.key)
        for vault, manifest, ref in await all_points(opened, namespace)
        if manifest.record.point_name == wanted
    ]
    if len(by_name) == 1:
        return by_name[0]
    raise Unclear(f"{len(by_name)} points are named {wanted}" if by_name else f"no point {wanted} in the repository")
