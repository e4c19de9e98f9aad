"""Where the chunks of a compacted pack went.

Map entries are never rewritten: they name the old pack for ever. A record `relocated/<old pack>/<generation>` is put
before the old pack goes, and readers that miss the old pack follow the highest generation, one hop. When a pack that
a record points to is compacted in its turn, a record of the next generation points past it: still one hop. What must
never happen here: a record that is changed, or one that leaves out a chunk which an older generation knew.
"""

from __future__ import annotations

import struct

import msgspec

from orchestrator.repository.errors import Damaged, ObjectMissing
from orchestrator.repository.layout import Kind, ObjectRef
from orchestrator.repository.record import open_record, seal_record
from orchestrator.repository.vault import Vault

_ENTRY = struct.Struct("<IHI")
Moves = dict[int, tuple[ObjectRef, int]]
"""Old slot -> (pack, slot)."""
LOOKS = 5


class RelocationDocument(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The JSON of a record; its moves are the tail."""

    pack: str
    targets: tuple[str, ...]


class Relocation(msgspec.Struct, frozen=True):
    """Old slot -> (pack, slot). A sealed length doesn't change when a chunk moves."""

    pack: ObjectRef
    targets: tuple[ObjectRef, ...]
    moves: Moves
    generation: int = 1


def encode_moves(moves: Moves) -> tuple[tuple[str, ...], bytes]:
    """Return (targets as hex, tail) of a record."""
    targets = tuple(dict.fromkeys(target for target, _ in moves.values()))
    number = {target: position for position, target in enumerate(targets)}
    tail = b"".join(_ENTRY.pack(old, number[target], new) for old, (target, new) in sorted(moves.items()))
    return tuple(target.to_bytes().hex() for target in targets), tail


def decode_moves(name: str, texts: tuple[str, ...], tail: bytes) -> tuple[tuple[ObjectRef, ...], Moves]:
    """Read what `encode_moves` wrote; Damaged."""
    try:
        targets = tuple(ObjectRef.parse(bytes.fromhex(text)) for text in texts)
        return targets, {old: (targets[number], new) for old, number, new in _ENTRY.iter_unpack(tail)}
    except (ValueError, IndexError, struct.error) as error:
        raise Damaged(name, "its moves are malformed") from error


def seal_relocation(vault: Vault, pack: ObjectRef, moves: Moves, generation: int = 1) -> tuple[str, bytes]:
    """Return (name, sealed object) of the record that moves `pack`."""
    texts, tail = encode_moves(moves)
    name = vault.names.relocation(pack, generation)
    document = RelocationDocument(pack=pack.to_bytes().hex(), targets=texts)
    return name, seal_record(vault, Kind.RELOCATED, name, document, tail)


def parse_relocation(vault: Vault, key: str) -> tuple[ObjectRef, int]:
    """Return (old pack, generation) of a record's name; ValueError when it is none of ours."""
    intent_id, random, generation = key.removeprefix(vault.names.relocated).split("/")
    if len(generation) != 6 or not generation.isdecimal():
        raise ValueError(f"{generation!r} is no generation")
    return ObjectRef.named(intent_id, random), int(generation)


async def open_relocation(vault: Vault, pack: ObjectRef) -> Relocation | None:
    """Read where a pack's chunks went by the newest record, None when it wasn't moved; Damaged."""
    for _ in range(LOOKS):
        generations = [
            parse_relocation(vault, info.key)[1] async for info in vault.store.list(vault.names.relocations(pack))
        ]
        if not generations:
            return None
        found = await open_generation(vault, pack, max(generations))
        if found is not None:
            return found
        # It went while we looked: there is a newer one then.
    raise ObjectMissing(vault.names.relocation(pack))


async def open_generation(vault: Vault, pack: ObjectRef, generation: int) -> Relocation | None:
    """Read one record, None when it isn't there (any more); Damaged."""
    name = vault.names.relocation(pack, generation)
    try:
        data = await vault.store.get(name)
    except ObjectMissing:
        return None
    document, tail = open_record(vault, Kind.RELOCATED, name, data, RelocationDocument)
    if document.pack != pack.to_bytes().hex():
        raise Damaged(name, "it is about another pack")
    targets, moves = decode_moves(name, document.targets, tail)
    return Relocation(pack, targets, moves, generation)
