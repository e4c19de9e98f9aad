"""Which data keys a namespace has, and how much was stored while each was the newest. Reads names and times only.

No epoch is ever taken away (docs/decisions/0008): cancelled records stay for good, unchanged pages are shared for
good, and a writer that was started with older keys may go on. What must never happen here: a key in an answer.
"""

from __future__ import annotations

from bisect import bisect_right
from datetime import datetime

import msgspec

from orchestrator.repository.layout import NAMESPACES_PREFIX
from orchestrator.repository.vault import Vault


class KeyEpoch(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One data key of a namespace."""

    number: int
    made: datetime
    """By the store's clock."""
    objects: int
    """Put while it was the newest: sealed with it, or with an older one by a writer that knew no newer."""
    bytes: int


async def epochs(vault: Vault) -> list[KeyEpoch]:
    """Return the namespace's data keys, oldest first; one listing of all that it holds."""
    prefix = f"{NAMESPACES_PREFIX}{vault.namespace_id}/"
    made = {info.key: info.last_modified async for info in vault.store.list(prefix)}
    numbers = {int(key.removeprefix(prefix)): at for key, at in made.items() if key.removeprefix(prefix).isdecimal()}
    order = sorted(numbers)
    starts = [numbers[number] for number in order]
    objects, size = [0] * len(order), [0] * len(order)
    async for info in vault.store.list(vault.names.prefix):
        at = max(bisect_right(starts, info.last_modified) - 1, 0)
        objects[at], size[at] = objects[at] + 1, size[at] + info.size
    return [
        KeyEpoch(number=number, made=numbers[number], objects=objects[at], bytes=size[at])
        for at, number in enumerate(order)
    ]
