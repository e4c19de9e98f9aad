"""Where the chunks of a compacted pack went.

A record `relocated/<old pack>` is put before the old pack goes; readers that miss the old pack follow it, one hop at
most: compaction of a pack that relocations point to writes the records of the older packs anew under new names only
after no map names them. Compaction itself lives elsewhere; this is its place in the format.
"""

from __future__ import annotations

import struct

import msgspec

from orchestrator.repository.errors import Damaged, ObjectMissing
from orchestrator.repository.layout import Kind, ObjectRef
from orchestrator.repository.record import open_record, seal_record
from orchestrator.repository.vault import Vault

_ENTRY = struct.Struct("<IHI")


class _RelocationDocument(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    pack: str
    targets: tuple[str, ...]


class Relocation(msgspec.Struct, frozen=True):
    """Old slot -> (pack, slot). A sealed length doesn't change when a chunk moves."""

    pack: ObjectRef
    targets: tuple[ObjectRef, ...]
    moves: dict[int, tuple[ObjectRef, int]]


def seal_relocation(vault: Vault, pack: ObjectRef, moves: dict[int, tuple[ObjectRef, int]]) -> tuple[str, bytes]:
    """Return (name, sealed object) of the record that moves `pack`."""
    targets = tuple(dict.fromkeys(target for target, _ in moves.values()))
    number = {target: position for position, target in enumerate(targets)}
    tail = b"".join(_ENTRY.pack(old, number[target], new) for old, (target, new) in sorted(moves.items()))
    name = vault.names.relocation(pack)
    document = _RelocationDocument(pack=pack.to_bytes().hex(), targets=tuple(t.to_bytes().hex() for t in targets))
    return name, seal_record(vault, Kind.RELOCATED, name, document, tail)


async def open_relocation(vault: Vault, pack: ObjectRef) -> Relocation | None:
    """Read where a pack's chunks went, None when it wasn't moved; Damaged."""
    name = vault.names.relocation(pack)
    try:
        data = await vault.store.get(name)
    except ObjectMissing:
        return None
    document, tail = open_record(vault, Kind.RELOCATED, name, data, _RelocationDocument)
    try:
        targets = tuple(ObjectRef.parse(bytes.fromhex(text)) for text in document.targets)
        moves = {old: (targets[number], new) for old, number, new in _ENTRY.iter_unpack(tail)}
    except (ValueError, IndexError, struct.error) as error:
        raise Damaged(name, "its moves are malformed") from error
    return Relocation(pack, targets, moves)
