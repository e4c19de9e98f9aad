"""Refuse before the work begins what could only fail after it.

A command that did its work and then ends with an error, because a path was mistyped, is believed to have failed: here
nothing may be made or changed.
"""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.cli.parts.errors import FileRefused


def check_writable(file: Path | None) -> None:
    """Raise FileRefused for a file of figures (`-` is stdout) that can't be written."""
    if file is None or str(file) == "-":
        return
    place = file if file.exists() else file.parent
    if file.is_dir():
        why = "it is a directory"
    elif not place.exists():
        why = "no such file or directory"
    elif not os.access(place, os.W_OK):
        why = "permission denied, or a read-only file system"
    else:
        return
    raise FileRefused(f"can't write {file}: {why}")
