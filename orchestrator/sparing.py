"""Keep out of a short process what its libraries import in passing and it never uses.

`tidemark copy` and a mover run for tenths of a second, and half of that went into modules. Each library named here
does without the module in question by its own code, or is given the one thing that it asks of it. What must never
happen here: a stand-in that stays behind under the name of a real module and knows less than it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def without(name: str) -> Iterator[None]:
    """Have imports of a module fail inside the block, as where it isn't installed; one that is loaded stays."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # what Python's import takes for "there is none"
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def _only_system() -> Iterator[None]:
    """Give whoever imports `platform` inside the block nothing of it but `system()`, unless it is loaded."""
    if "platform" in sys.modules:
        yield
        return
    few = ModuleType("platform")
    few.system = lambda: os.uname().sysname  # type: ignore[attr-defined]
    sys.modules["platform"] = few
    try:
        yield
    finally:
        del sys.modules["platform"]


def lean_msgspec() -> None:
    """Import msgspec without what only its imports use: a third of its time."""
    if sys.version_info < (3, 12) and "datetime" not in sys.modules:
        # From 3.12 on `datetime` is this; before, the whole of it in Python is run first, and thrown away.
        import _datetime  # type: ignore[import-not-found]  # typeshed has it only as `datetime`

        sys.modules["datetime"] = _datetime
    # typing's own get_type_hints serves from 3.11 on; uuid wants to know whether this is AIX or Linux.
    with without("typing_extensions"), _only_system():
        import msgspec  # noqa: F401


def asyncio_without_tls() -> None:
    """Import asyncio without `ssl`: for a process whose connections, if any, are another library's.

    Where asyncio was imported before, nothing changes.
    """
    with without("ssl"):
        import asyncio  # noqa: F401
