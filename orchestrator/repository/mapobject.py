"""Write pages into map objects: many pages in one, so that a leaf costs no request of its own."""

from __future__ import annotations

from blake3 import blake3

from orchestrator.repository.crypto import TAG, ObjectCipher
from orchestrator.repository.layout import SLOT_UNIT, Kind, ObjectRef
from orchestrator.repository.pack import slots_of
from orchestrator.repository.page import Ref
from orchestrator.repository.vault import Vault

TARGET = 16 * 1024 * 1024


class MapObjectWriter:
    """Seals pages into objects of some 16 MiB. `add` is synchronous; `put_full` and `finish` upload."""

    def __init__(self, vault: Vault, intent_id: str, target: int = TARGET) -> None:
        self._vault, self._intent_id, self._target = vault, intent_id, target
        self._ref: ObjectRef | None = None
        self._cipher: ObjectCipher | None = None
        self._data = bytearray()
        self._full: list[tuple[str, bytearray]] = []
        self.bytes = 0
        """Bytes of all objects so far."""
        self.objects = 0

    def add(self, plain: bytes) -> Ref:
        """Seal one page and return its reference; the object it is in is put later."""
        if self._data and len(self._data) + len(plain) + TAG > self._target:
            self._close()
        if self._ref is None or self._cipher is None:
            self._ref = ObjectRef.new(self._intent_id)
            self._cipher = self._vault.new_cipher(Kind.MAP, self._vault.names.map(self._ref), self._ref)
            self._data = bytearray(self._cipher.header)
        slot = slots_of(len(self._data))
        self._data += bytes(slot * SLOT_UNIT - len(self._data))
        sealed = self._cipher.seal(slot, plain)
        self._data += sealed
        return Ref(self._ref, slot, len(sealed), blake3(sealed).digest())

    async def put_full(self) -> None:
        """Upload the objects that are full."""
        while self._full:
            name, data = self._full[0]
            await self._vault.store.put_new(name, data)
            self._full.pop(0)

    async def finish(self) -> None:
        """Upload everything."""
        self._close()
        await self.put_full()

    def _close(self) -> None:
        if self._cipher is not None and self._data:
            self._full.append((self._cipher.name, self._data))
            self.bytes += len(self._data)
            self.objects += 1
        self._ref = self._cipher = None
        self._data = bytearray()
