"""Fill packs from many threads and upload them, in bounded memory.

Engine threads call `add_all`; uploads run on the event loop. When every buffer is full or on its way, they wait: that
is the back-pressure of a slow store. The first upload error ends all adds.
"""

from __future__ import annotations

import asyncio
import mmap
import threading
from collections.abc import Sequence
from concurrent.futures import Future

from orchestrator.repository.buffers import big_buffer
from orchestrator.repository.errors import StoreUnavailable
from orchestrator.repository.layout import PACK_TARGET
from orchestrator.repository.pack import Entry, PackBuilder, Packed
from orchestrator.repository.vault import Vault


class PackWriter:
    """Writes the packs of one intent. At most `buffers` x `target` bytes of memory."""

    def __init__(
        self,
        vault: Vault,
        intent_id: str,
        loop: asyncio.AbstractEventLoop,
        *,
        target: int = PACK_TARGET,
        buffers: int = 2,
        stall_timeout_s: float = 900.0,
    ) -> None:
        """Make a writer whose uploads run on `loop` (running in another thread than the callers of `add_all`)."""
        self._vault, self._intent_id, self._loop = vault, intent_id, loop
        self._target, self._spare, self._stall = target, buffers, stall_timeout_s
        self._free: list[mmap.mmap] = []
        self._changed = threading.Condition()
        self._open: _Filling | None = None
        self._uploads: set[Future[None]] = set()
        self._error: BaseException | None = None
        self.bytes = 0
        """Bytes of finished packs."""
        self.packs = 0

    def add_all(self, chunks: Sequence[Packed]) -> list[Entry]:
        """Seal chunks into the open pack, and the next ones, and say where each is.

        From any thread but the loop's. Raises upload errors.
        """
        entries: list[Entry] = []
        while len(entries) < len(chunks):
            filling = self._enter()
            try:
                entries += filling.pack.add_all(chunks[len(entries) :])
            except BaseException:  # a place that was taken and never sealed must not go up
                filling.sent = True
                self._leave(filling, full=True)
                raise
            self._leave(filling, full=len(entries) < len(chunks))
        return entries

    async def finish(self) -> None:
        """Upload what is open and wait for every upload; raises the first upload error."""
        with self._changed:
            filling, self._open = self._open, None
            if filling is not None:
                self._upload(filling)
            waiting = [asyncio.wrap_future(future) for future in self._uploads]
        await asyncio.gather(*waiting, return_exceptions=True)
        if self._error is not None:
            raise self._error

    async def abort(self) -> None:
        """Drop what is open, cancel uploads and wait for them; `add_all` raises from now on."""
        with self._changed:
            self._error = self._error or asyncio.CancelledError()
            self._open = None
            waiting = [asyncio.wrap_future(future) for future in self._uploads]
            for future in waiting:
                future.cancel()
            self._changed.notify_all()
        await asyncio.gather(*waiting, return_exceptions=True)

    def _enter(self) -> _Filling:
        with self._changed:
            while True:
                if self._error is not None:
                    raise self._error
                if self._open is not None:
                    self._open.users += 1
                    return self._open
                buffer = self._take()
                if buffer is not None:
                    self._open = _Filling(PackBuilder(self._vault, self._intent_id, buffer), buffer)
                    continue
                if not self._changed.wait(self._stall):
                    raise StoreUnavailable(self._vault.store.url, f"no upload finished in {self._stall:.0f} s")

    def _take(self) -> mmap.mmap | None:
        if self._free:
            return self._free.pop()
        if self._spare:
            self._spare -= 1
            return big_buffer(self._target)
        return None

    def _leave(self, filling: _Filling, *, full: bool) -> None:
        with self._changed:
            filling.users -= 1
            if full and self._open is filling:
                if not filling.pack.count and not filling.sent:
                    raise ValueError(f"a chunk doesn't fit into an empty pack of {self._target} bytes")
                self._open = None
            if self._open is not filling and not filling.users and not filling.sent:
                self._upload(filling)

    def _upload(self, filling: _Filling) -> None:
        filling.sent = True
        data = filling.pack.finish()
        future = asyncio.run_coroutine_threadsafe(self._vault.store.put_new(filling.pack.name, data), self._loop)
        self._uploads.add(future)
        size = len(data)
        future.add_done_callback(lambda done: self._uploaded(done, filling, size))

    def _uploaded(self, done: Future[None], filling: _Filling, size: int) -> None:
        with self._changed:
            self._uploads.discard(done)
            error = asyncio.CancelledError() if done.cancelled() else done.exception()
            if error is not None:
                self._error = self._error or error
            else:
                self.bytes += size
                self.packs += 1
                self._free.append(filling.buffer)
            self._changed.notify_all()


class _Filling:
    """The open pack, how many threads are sealing into it, and whether it is on its way."""

    __slots__ = ("buffer", "pack", "sent", "users")

    def __init__(self, pack: PackBuilder, buffer: mmap.mmap) -> None:
        self.pack, self.buffer, self.users, self.sent = pack, buffer, 0, False
