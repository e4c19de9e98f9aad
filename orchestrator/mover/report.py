"""What a mover says while it runs and when it ends.

Progress: one JSON line on stdout, the first at once, then at most every 5 s, the last at the end. Result: the
termination message, at most 1 KiB. Log: JSON lines on stderr, by observe/log. No secret in any of them.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import msgspec

from orchestrator.api.mover import PROGRESS_INTERVAL_S, TERMINATION_LIMIT, MoverOutcome, Progress

log = logging.getLogger("tidemark.mover")


class Reporter:
    """Prints progress lines. `watch` a function that says how far the work is."""

    def __init__(self, out: TextIO | None = None, interval_s: float = PROGRESS_INTERVAL_S) -> None:
        """Print to `out` (stdout) at most every `interval_s`."""
        self._out = out or sys.stdout
        self._interval_s = interval_s
        self._look: Callable[[], Progress] = lambda: Progress(stage="starting")
        self._last: Progress | None = None

    def watch(self, look: Callable[[], Progress]) -> None:
        """From now on tell what `look` returns."""
        self._look = look

    def tell(self, progress: Progress | None = None) -> None:
        """Print one line now, unless it would repeat the last."""
        progress = progress or self._look()
        if progress == self._last:
            return
        self._last = progress
        with contextlib.suppress(OSError, ValueError):  # nobody reads: the copy goes on all the same
            self._out.write(msgspec.json.encode(progress).decode() + "\n")
            self._out.flush()

    async def run(self) -> None:
        """Print a line every interval until cancelled."""
        import asyncio  # once the mover has chosen with what of it it runs

        while True:
            await asyncio.sleep(self._interval_s)
            self.tell()


def encode_outcome(outcome: MoverOutcome) -> bytes:
    """Return the outcome as JSON of at most 1 KiB; a long message is cut."""
    raw = msgspec.json.encode(outcome)
    message = outcome.message
    while len(raw) > TERMINATION_LIMIT and message:
        message = message[: len(message) - max(1, (len(raw) - TERMINATION_LIMIT + 3) // 4)]
        raw = msgspec.json.encode(msgspec.structs.replace(outcome, message=message + "…"))
    return raw


def write_outcome(path: Path, outcome: MoverOutcome) -> None:
    """Leave the outcome as the termination message. A place that can't be written is only logged: it is a hint."""
    try:
        path.write_bytes(encode_outcome(outcome))
    except OSError as error:
        log.warning("can't write the termination message to %s: %s", path, error.strerror)
