"""The small sealed documents of a namespace: what writers announce and what maintenance writes down.

No restore reads them. But a live intent that doesn't open stops every sweep, and a relocation record that doesn't open
hides chunks, so a whole verification opens them all. What must never happen here: a document that went meanwhile, or a
store that didn't answer, taken for damage.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator

from orchestrator.repository.errors import Damaged, ObjectMissing, UnsupportedFormat
from orchestrator.repository.layout import Kind
from orchestrator.repository.parallel import in_parallel
from orchestrator.repository.record import kind_of, open_body
from orchestrator.repository.secondlook import SecondLook
from orchestrator.repository.vault import Vault

AT_ONCE = 8
BATCH = 256


def _kinds(vault: Vault) -> dict[str, tuple[Kind, ...]]:
    """Return prefix -> kinds of the documents below it; those below intents differ by name."""
    names = vault.names
    return {
        names.intents: (),
        names.compacted: (Kind.COMPACTED, Kind.CANCELLED),
        names.damaged: (Kind.DAMAGED,),
        names.relocated: (Kind.RELOCATED,),
        names.moved: (Kind.MOVED,),
        names.sweeps: (Kind.SWEEP,),
        names.removing: (Kind.REMOVING,),
        names.verified: (Kind.VERIFIED,),
    }


def _of_intent(rest: str) -> tuple[Kind, ...]:
    """Return the kind of `<intent>/<rest>`; none of ours: nothing."""
    own = rest.partition("/")[2]
    if own.startswith("shards/"):
        return (Kind.SHARD,)
    return {"intent": (Kind.INTENT,), "plan": (Kind.PLAN,), "moves": (Kind.MOVES,)}.get(own, ())


async def damaged_papers(vault: Vault, again: SecondLook) -> AsyncIterator[tuple[str, str]]:
    """Yield (name, what is wrong) of every document that doesn't open, in memory bounded by a batch of them.

    Raises the store's Retryable errors.
    """
    for prefix, fixed in _kinds(vault).items():
        batch: list[tuple[str, tuple[Kind, ...]]] = []
        async for info in vault.store.list(prefix):
            kinds = fixed or _of_intent(info.key.removeprefix(prefix))
            if kinds:
                batch.append((info.key, kinds))
            if len(batch) == BATCH:
                for found in await _look(vault, batch, again):
                    yield found
                batch = []
        for found in await _look(vault, batch, again):
            yield found


async def _look(vault: Vault, batch: list[tuple[str, tuple[Kind, ...]]], again: SecondLook) -> list[tuple[str, str]]:
    limit, found = asyncio.Semaphore(AT_ONCE), []

    async def one(name: str, kinds: tuple[Kind, ...]) -> None:
        async with limit:
            try:
                await again.at(functools.partial(_open, vault, name, kinds))
            except ObjectMissing:
                return
            except Damaged as error:
                found.append((name, error.what))
            except UnsupportedFormat as error:
                found.append((name, str(error)))

    await in_parallel([one(name, kinds) for name, kinds in batch])
    return sorted(found)


async def _open(vault: Vault, name: str, kinds: tuple[Kind, ...]) -> None:
    data = await vault.store.get(name)
    seen = next((kind for kind in kinds if kind == kind_of(name, data)), kinds[0])
    open_body(vault.cipher(seen, name, data), data)
