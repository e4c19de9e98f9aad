"""The intent: what a writer announces before it reads a base, so that maintenance can't take it away.

Order is everything: the intent is put first, then the points it builds on are looked at again. Maintenance lists
manifests before intents, so it either sees the intent or the writer sees that the base is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec

from orchestrator.repository.errors import BaseGone, ManifestMissing, ObjectConflict, PointCancelled
from orchestrator.repository.layout import Kind
from orchestrator.repository.manifest import MapRoot, PointRef, open_manifest
from orchestrator.repository.record import open_record, seal_record
from orchestrator.repository.vault import Vault


class Intent(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What one recovery point builds on, and where it will commit."""

    id: str
    """Uid of the RecoveryPoint (a UUID in lower case)."""
    base: PointRef | None = None
    """A delta inherits this point's map."""
    compare: PointRef | None = None
    """An allocated or full read compares chunk ids with this point; the map starts empty."""
    refers: tuple[PointRef, ...] = ()
    """Other volumes' points whose chunks may be referred to. Dropped when gone before the intent is put; who refers to
    one looks after that whether it is still there."""
    manifest_key: str
    lineage: str
    created: datetime
    roots: tuple[MapRoot, ...] = ()
    """Map roots of the points above, filled in by `put_intent`: they stay alive while this intent does."""

    @property
    def points(self) -> tuple[PointRef, ...]:
        """Return every point this intent names, each once."""
        named = [ref for ref in (self.base, self.compare, *self.refers) if ref is not None]
        return tuple(dict.fromkeys(named))


async def put_intent(vault: Vault, intent: Intent, *, roots: Mapping[PointRef, MapRoot] | None = None) -> Intent:
    """Announce an intent, then check that what it names still exists; idempotent. Returns what is stored.

    `roots`: those of points whose manifests the caller has opened already; they are not opened twice before. An
    intent of that id that is there already counts, whatever was asked now: open its plan, not yours. Raises
    BaseGone (choose another base under another point id), PointCancelled, Damaged.
    """
    name = vault.names.intent(intent.id)
    if not intent.manifest_key.endswith(f"-{intent.id}"):
        raise ValueError(f"intent {intent.id} would commit another point's manifest, {intent.manifest_key}")
    known = dict(roots or {})
    for ref in intent.refers:
        if ref not in known and (root := await _root(vault, ref)) is not None:
            known[ref] = root
    intent = msgspec.structs.replace(intent, refers=tuple(ref for ref in intent.refers if ref in known))
    for ref in intent.points:
        if ref not in known:
            known[ref] = await _needed_root(vault, ref)
    stored = msgspec.structs.replace(intent, roots=tuple(known[ref] for ref in intent.points))
    try:
        await vault.store.put_new(name, seal_record(vault, Kind.INTENT, name, stored))
    except ObjectConflict:
        stored = await open_intent(vault, intent.id)
    for ref in stored.points:
        if ref in (stored.base, stored.compare):  # whoever refers to the others looks at them first
            await _needed_root(vault, ref)
    return stored


async def _root(vault: Vault, ref: PointRef) -> MapRoot | None:
    """Open a point's manifest and return its root; None when it isn't there any more."""
    try:
        manifest, _ = await open_manifest(vault, ref.key, digest=ref.digest)
    except (ManifestMissing, PointCancelled):
        return None
    return manifest.root


async def _needed_root(vault: Vault, ref: PointRef) -> MapRoot:
    """The same; BaseGone when it isn't there any more."""
    root = await _root(vault, ref)
    if root is None:
        raise BaseGone(ref.key)
    return root


async def open_intent(vault: Vault, intent_id: str) -> Intent:
    """Read an intent; ObjectMissing, Damaged."""
    name = vault.names.intent(intent_id)
    intent, _ = open_record(vault, Kind.INTENT, name, await vault.store.get(name), Intent)
    return intent
