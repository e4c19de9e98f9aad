"""What became of an intent: committed, ended or neither; so also how a writer that finds something gone learns its end.

What a live intent needs stays. So a writer that misses something was itself passed by: its point was ended by its age
or by a person, or another mover committed it, and what only this one's try needed was swept. What must never happen
here: damage taken for an end.
"""

from __future__ import annotations

import contextlib

from orchestrator.repository.errors import Damaged, ManifestMissing, ObjectMissing, UnsupportedFormat
from orchestrator.repository.intent import open_intent
from orchestrator.repository.manifest import PointRef, open_manifest
from orchestrator.repository.moves import open_compaction
from orchestrator.repository.vault import Vault


async def outcome(vault: Vault, intent_id: str, key: str | None = None) -> PointRef | None:
    """Return the point that an intent came to; None: it is neither committed nor ended.

    `key`: the manifest's name, where known; else the intent tells it. When even that is gone, or can't be read, the
    name is looked for among all: the intent goes only after the end. Raises PointCancelled, Damaged (what stands there
    can't be read).
    """
    if key is None:
        with contextlib.suppress(Damaged, ObjectMissing, UnsupportedFormat):
            key = (await open_intent(vault, intent_id)).manifest_key
    if key is None:
        key = await _name(vault, intent_id)
    if key is not None:
        with contextlib.suppress(ManifestMissing):
            return (await open_manifest(vault, key))[1]
    # One that a person ended while nothing told which name it would take.
    with contextlib.suppress(ObjectMissing):
        await open_compaction(vault, vault.names.compaction(intent_id))
    return None


async def _name(vault: Vault, intent_id: str) -> str | None:
    async for info in vault.store.list(vault.names.points):
        if info.key.endswith(f"-{intent_id}"):
            return info.key
    return None
