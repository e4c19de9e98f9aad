"""Keep out of a short process what its libraries import in passing and it never uses.

`tidemark copy` and a mover run for tenths of a second, and half of that went into modules. Each library named here
does without the module in question by its own code, or comes to it when it first asks it for something. What must
never happen here: a stand-in that stays behind under the name of a real module, or that knows less than it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from traceback import StackSummary


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


class _Later(ModuleType):
    """A module that is imported when it is asked for something; what it is given with it answers at once."""

    def __init__(self, name: str, answers: dict[str, Callable[..., object]]) -> None:
        super().__init__(name)
        vars(self).update(answers)

    def __getattr__(self, asked: str) -> Any:
        if asked == "__path__":  # what Python asks before `from ... import`: it is no package
            raise AttributeError(asked)
        if sys.modules.get(self.__name__) is self:  # still inside the block: a library needs it at its own import
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), asked)


@contextmanager
def later(*names: str, **answers: Callable[..., object]) -> Iterator[None]:
    """Have whoever imports these modules (no packages) inside the block wait until the first use; loaded ones stay.

    `answers`: functions that do the same as the module's own of that name, which don't count as use. A library that
    uses a module while it is imported itself, as another version may, gets it there and then.
    """
    stand_ins = {name: _Later(name, answers) for name in names if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is not stand_in:
                continue
            del sys.modules[name]
            package, _, last = name.rpartition(".")
            if package in sys.modules and not hasattr(sys.modules[package], last):  # where importing it would put it
                setattr(sys.modules[package], last, stand_in)


def lean_argparse() -> None:
    """Import argparse and pathlib without translations that we don't have, and without other systems' paths."""
    with later("ntpath", "ipaddress"):
        import pathlib  # noqa: F401
    with later("gettext", gettext=lambda text: text, ngettext=lambda one, many, count: one if count == 1 else many):
        import argparse  # noqa: F401


def lean_msgspec() -> None:
    """Import msgspec without what only its imports use: a third of its time."""
    if sys.version_info < (3, 12) and "datetime" not in sys.modules:
        # From 3.12 on `datetime` is this; before, the whole of it in Python is run first, and thrown away.
        import _datetime  # type: ignore[import-not-found]  # typeshed has it only as `datetime`

        sys.modules["datetime"] = _datetime
    # typing's own get_type_hints serves from 3.11 on; uuid wants to know whether this is AIX or Linux; what tells
    # about types and makes schemas of them is the command line's.
    with (
        without("typing_extensions"),
        later("platform", system=lambda: os.uname().sysname),
        later("msgspec.inspect", "msgspec.toml", "msgspec.yaml", "textwrap"),
    ):
        import msgspec  # noqa: F401


def asyncio_without_tls() -> None:
    """Import asyncio without `ssl`: for a process whose connections, if any, are another library's.

    Nor what only looks into errors and source code. Where asyncio was imported before, nothing changes.
    """
    with (
        without("ssl"),
        later("inspect", "linecache", "locale"),
        later("traceback", extract_stack=_extract_stack),
    ):
        import asyncio  # noqa: F401


def _extract_stack(frame: FrameType | None = None, limit: int | None = None) -> StackSummary:
    import traceback

    return traceback.extract_stack(sys._getframe(1) if frame is None else frame, limit)
