"""Prove that a store honours put-if-absent: without it two writers of one name would both believe they were first."""

from __future__ import annotations

import contextlib
import os

from orchestrator.repository.errors import AccessDenied, ConditionalPutMissing, ObjectConflict
from orchestrator.repository.layout import PROBE_PREFIX
from orchestrator.repository.store import Store


async def probe_conditional_put(store: Store) -> None:
    """Write a new name twice with different bytes; ConditionalPutMissing when the second gets through.

    The probe object is deleted again where the credentials allow it.
    """
    key = PROBE_PREFIX + os.urandom(16).hex()
    first, second = os.urandom(32), os.urandom(32)
    await store.put_new(key, first)
    try:
        await store.put_new(key, second)
    except ObjectConflict:
        kept = await store.get(key) == first
    else:
        kept = False
    with contextlib.suppress(AccessDenied):
        await store.delete(key)
    if not kept:
        raise ConditionalPutMissing(store.url)
