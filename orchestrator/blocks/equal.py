"""Remember which chunks this point has stored, so that equal ones are stored once. In fixed memory.

A table of 16-byte entries (8 bytes of the chunk id, 8 bytes saying where) holds some 3 million recent chunks in
64 MiB; a Python dict for a 16 TiB volume would take 13.7 GiB. It is exact while everything fits and best effort
beyond. A hit counts only when the full id agrees: a wrong hit would silently put other content into the point.
"""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import msgspec

from orchestrator.repository.layout import ObjectRef
from orchestrator.repository.pack import CODEC_SHIFT, LENGTH_MASK, Entry

TABLE_BYTES = 64 << 20
IDS_BYTES = 16 << 20
"""Memory for full ids; those of older packs are read back from the packs' footers when a hit must be confirmed."""
_ENTRY_BYTES = 16
_TAGS = struct.Struct("<QQ")
_PROBES = 64
"""Entries looked at from a chunk's own place on. Beyond three quarters full, old entries make room."""
_SLOT_BITS = 24
_RECORD = struct.Struct("<35sI")


class Place(msgspec.Struct):
    """Where a chunk lies; `entry` is None while its first copy is being stored."""

    entry: Entry | None = None


def record(slot: int, chunk_id: bytes, length: int, codec: int) -> bytes:
    """Return what is kept of a chunk besides its entry in the table; found by its first 35 bytes."""
    return _RECORD.pack(slot.to_bytes(3, "little") + chunk_id, length | codec << CODEC_SHIFT)


class EqualChunks:
    """The table. Thread safe."""

    def __init__(self, expected: int, recall: Callable[[ObjectRef], bytes | None] | None = None) -> None:
        """Size the table for at most `expected` chunks. `recall(pack)`: a stored pack's records, joined."""
        wanted = max(expected * 2, 1024) * _ENTRY_BYTES
        size = 1 << (min(wanted, TABLE_BYTES) - 1).bit_length()
        self._entries = size // _ENTRY_BYTES
        self._turn = 0
        self._table = bytearray(size)
        self._words = memoryview(self._table).cast("Q")
        """Two for each entry: 8 bytes of the id, of which 0 says that there is none; and pack and slot."""
        self._recall = recall
        self._packs: list[ObjectRef] = []
        self._ordinals: dict[ObjectRef, int] = {}
        self._ids: OrderedDict[int, bytearray] = OrderedDict()
        self._ids_bytes = 0
        self._pending: dict[bytes, Place] = {}
        self._lock = threading.Lock()

    def claim(self, chunk_id: bytes) -> tuple[Place, bool]:
        """Return where the chunk lies, and False; or a place to be settled by the caller, and True.

        A place that another thread is about to settle is returned with False at once: whoever needs it waits for it.
        """
        checked: list[tuple[int, int]] = []
        while True:
            with self._lock:
                pending = self._pending.get(chunk_id)
                if pending is not None:
                    return pending, False
                candidates = [where for where in self._candidates(chunk_id) if where not in checked]
                if not candidates:
                    place = self._pending[chunk_id] = Place()
                    return place, True
            for pack, slot in candidates:  # outside the lock: confirming may read a footer
                entry = self._confirmed(pack, slot, chunk_id)
                if entry is not None:
                    return Place(entry), False
            checked += candidates

    def claim_all(self, ids: Sequence[bytes]) -> list[Place | None]:
        """Claim many chunks at once; None: the caller's to settle. One that comes twice among them is claimed once."""
        places: list[Place | None] = [None] * len(ids)
        doubtful = []
        pending = self._pending
        with self._lock:
            for position, chunk_id in enumerate(ids):
                place = pending.get(chunk_id)
                if place is not None:
                    places[position] = place
                elif self._candidates(chunk_id):
                    doubtful.append(position)
                else:
                    pending[chunk_id] = Place()
        for position in doubtful:
            place, mine = self.claim(ids[position])
            places[position] = None if mine else place
        return places

    def settle_all(self, entries: Iterable[Entry]) -> None:
        """Say where claimed chunks were stored."""
        with self._lock:
            for entry in entries:
                self._insert(entry)
                place = self._pending.pop(entry.id, None)
                if place is not None:
                    place.entry = entry

    def add(self, entry: Entry) -> None:
        """Remember a chunk that an earlier try stored."""
        with self._lock:
            self._insert(entry)

    def add_all(self, entries: Iterable[Entry]) -> None:
        """Remember chunks of other points; one that is known already stays as it is.

        A map names a chunk at every index that has it: entered each time, one that is common would fill all places
        near its own and then drive out chunks that nobody can find again.
        """
        with self._lock:
            for entry in entries:
                if not self._candidates(entry.id):
                    self._insert(entry)

    def _insert(self, entry: Entry) -> None:
        pack = self._ordinals.get(entry.pack)
        if pack is None:
            pack = self._ordinals[entry.pack] = len(self._packs)
            self._packs.append(entry.pack)
        kept = self._ids.setdefault(pack, bytearray())
        kept += record(entry.slot, entry.id, entry.length, entry.codec)
        self._ids_bytes += _RECORD.size
        self._forget()
        words, entries = self._words, self._entries
        tag, home = self._home(entry.id)
        for step in range(min(_PROBES, entries)):
            at = (home + step) % entries * 2
            if not words[at]:
                break
        else:  # no room near its place: an older entry goes
            self._turn = (self._turn + 1) % _PROBES
            at = (home + self._turn) % entries * 2
        words[at], words[at + 1] = tag, pack << _SLOT_BITS | entry.slot

    def _forget(self) -> None:
        while self._ids_bytes > IDS_BYTES and len(self._ids) > 1:
            _, dropped = self._ids.popitem(last=False)
            self._ids_bytes -= len(dropped)

    def _candidates(self, chunk_id: bytes) -> list[tuple[int, int]]:
        words, entries = self._words, self._entries
        tag, home = self._home(chunk_id)
        found: list[tuple[int, int]] = []
        for step in range(min(_PROBES, entries)):
            at = (home + step) % entries * 2
            known = words[at]
            if not known:
                break
            if known == tag:
                where = words[at + 1]
                found.append((where >> _SLOT_BITS, where & ((1 << _SLOT_BITS) - 1)))
        return found

    def _home(self, chunk_id: bytes) -> tuple[int, int]:
        tag, home = _TAGS.unpack_from(chunk_id)
        return tag or 1, home % self._entries

    def _confirmed(self, pack: int, slot: int, chunk_id: bytes) -> Entry | None:
        with self._lock:
            ref = self._packs[pack]
            kept: bytes | bytearray | None = self._ids.get(pack)
            if kept is not None:
                return _find(kept, ref, slot, chunk_id)
        kept = self._recall(ref) if self._recall is not None else None
        if kept is None:
            return None
        with self._lock:
            # The next hits are likely in the same pack: without this each of them would read its footer again.
            self._ids_bytes += len(kept) - len(self._ids.get(pack, b""))
            self._ids[pack] = bytearray(kept)
            self._ids.move_to_end(pack)
            self._forget()
        return _find(kept, ref, slot, chunk_id)


def _find(kept: bytes | bytearray, ref: ObjectRef, slot: int, chunk_id: bytes) -> Entry | None:
    at = kept.find(slot.to_bytes(3, "little") + chunk_id)
    if at < 0:
        return None
    packed = int.from_bytes(kept[at + 35 : at + 39], "little")
    return Entry(chunk_id, ref, slot, packed & LENGTH_MASK, packed >> CODEC_SHIFT)
