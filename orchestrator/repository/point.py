"""Commit and remove recovery points."""

from __future__ import annotations

from orchestrator.clock import Clock
from orchestrator.fence import Fence
from orchestrator.repository.manifest import PointRef
from orchestrator.repository.vault import Vault


async def commit(vault: Vault, intent_id: str, *, clock: Clock | None = None) -> PointRef:
    """Put the point's manifest, once every shard is there; idempotent, by anyone. Adopts a manifest that is there.

    Raises ShardsMissing, PointCancelled, ObjectMissing (no such intent or plan), Damaged.
    """
    raise AssertionError


async def committed(vault: Vault, intent_id: str) -> PointRef | None:
    """Return the intent's committed point, None when it isn't committed; PointCancelled."""
    raise AssertionError


async def remove(
    vault: Vault, ref: PointRef, fence: Fence, *, why: str = "removed", clock: Clock | None = None
) -> None:
    """Remove a point for good: its manifest goes, a cancelled record takes its place; idempotent."""
    raise AssertionError
