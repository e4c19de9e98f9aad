"""What a person can get wrong on the command line beyond its syntax."""

from __future__ import annotations

from typing import ClassVar

from orchestrator.errors import Terminal


class OptionsUnreadable(Terminal):
    """The file given with --store-options isn't one."""

    reason: ClassVar[str] = "OptionsUnreadable"
    remedy: ClassVar[str] = "Give a readable file of `name=value` lines."


class FileRefused(Terminal):
    """A file can't be read, written or made as asked."""

    reason: ClassVar[str] = "FileRefused"
    remedy: ClassVar[str] = "Check the path and its permissions."


class Unclear(Terminal):
    """What was named fits nothing, or several things."""

    reason: ClassVar[str] = "Unclear"
    remedy: ClassVar[str] = "Use --list to see what is there."


class IntentUnknown(Unclear):
    """The unfinished backup that is to be ended isn't there, or isn't unfinished."""

    remedy: ClassVar[str] = "Its id stands in what blocks sweeping, between `intents/` and `/intent`."


class DamageFound(Terminal):
    """Verify found something damaged or missing."""

    reason: ClassVar[str] = "Damaged"
    remedy: ClassVar[str] = "Points that don't use it are sound; the next backup heals what the volume still holds."
