"""What survives a `kill -9`: one SQLite file, written by one thread in batches.

The event loop never waits for the disk; a request that changed something waits for its batch to be committed before
it is answered. `synchronous=OFF` keeps the file whole when the process dies; only a machine that loses power may lose
the last batches.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

#: (table, namespace, name, body); body None deletes the row.
Row = tuple[str, str, str, bytes | None]


class Journal:
    """Rows of (table, namespace, name) -> encoded object, and a few named values."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: queue.SimpleQueue[Row | asyncio.Future[None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_forever, name="apiserver-journal", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: BaseException | None = None
        path.touch(mode=0o600)  # it holds Secrets and keys
        with self._connect() as db:
            db.execute(
                "CREATE TABLE IF NOT EXISTS objects "
                "(tab TEXT, ns TEXT, name TEXT, body BLOB, PRIMARY KEY (tab, ns, name)) WITHOUT ROWID"
            )
            db.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB)")
        db.close()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=OFF")
        return db

    def meta(self, key: str) -> bytes | None:
        """Read a named value; blocking, for start-up only."""
        db = self._connect()
        try:
            row = db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
            return None if row is None else bytes(row[0])
        finally:
            db.close()

    def set_meta(self, key: str, value: bytes) -> None:
        """Write a named value; blocking, for start-up only."""
        db = self._connect()
        try:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
        finally:
            db.close()

    def rows(self) -> Iterator[tuple[str, str, str, bytes]]:
        """Read every row; blocking, for start-up only."""
        db = self._connect()
        try:
            yield from db.execute("SELECT tab, ns, name, body FROM objects")
        finally:
            db.close()

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def append(self, row: Row) -> None:
        """Queue a row for the next batch."""
        self._queue.put(row)

    async def flushed(self) -> None:
        """Wait until everything that was appended before is committed."""
        if self._failure is not None:
            raise RuntimeError("the journal of the sandbox's API server cannot be written") from self._failure
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.put(done)
        await done

    async def close(self) -> None:
        """Write what is queued and end the thread."""
        if self._thread.is_alive():
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)

    def _write_forever(self) -> None:
        db = self._connect()
        waiting: list[asyncio.Future[None]] = []
        try:
            ended = False
            while not ended:
                batch = [self._queue.get()]
                while not self._queue.empty() and len(batch) < 1000:
                    batch.append(self._queue.get())
                rows = [item for item in batch if isinstance(item, tuple)]
                waiting = [item for item in batch if isinstance(item, asyncio.Future)]
                ended = any(item is None for item in batch)
                self._commit(db, rows)
                self._resolve(waiting, None)
        except sqlite3.Error as error:
            self._failure = error
            self._resolve(waiting, error)
        finally:
            db.close()
            left = []
            while not self._queue.empty():
                left.append(self._queue.get())
            self._resolve([f for f in left if isinstance(f, asyncio.Future)], self._failure)

    def _commit(self, db: sqlite3.Connection, rows: list[tuple[str, str, str, bytes | None]]) -> None:
        if not rows:
            return
        db.execute("BEGIN")
        for tab, ns, name, body in rows:
            if body is None:
                db.execute("DELETE FROM objects WHERE tab=? AND ns=? AND name=?", (tab, ns, name))
            else:
                db.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)", (tab, ns, name, body))
        db.execute("COMMIT")

    def _resolve(self, waiting: list[asyncio.Future[None]], error: BaseException | None) -> None:
        loop = self._loop
        if not waiting or loop is None or loop.is_closed():
            return

        def settle() -> None:
            for future in waiting:
                if not future.done():
                    future.set_exception(error) if error else future.set_result(None)

        loop.call_soon_threadsafe(settle)
