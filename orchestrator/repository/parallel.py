"""Several requests at once, with errors that keep their class."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any


async def in_parallel(calls: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Await coroutines together; the first error is raised as itself, not as a group, once all have ended."""
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if result is not None:
            raise result
