"""Where `tidemark` (and `kubectl tidemark`) starts.

A mover goes straight to its room: its start-up is part of every recovery point, so it must never pay for the command
line's libraries.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import NoReturn

GC_THRESHOLD = 20_000
"""Objects made between two looks for cycles. Python's 700 has it look through every module while they load, and then
again and again while chunks pass by, which are no cycles."""


def main() -> int:
    """Run the command that the arguments name; return its exit code."""
    gc.set_threshold(GC_THRESHOLD)
    arguments = sys.argv[1:]
    if arguments[:1] == ["mover"]:
        from orchestrator.sparing import lean_argparse, lean_msgspec

        lean_argparse()
        lean_msgspec()
        from orchestrator.mover.main import main as run_mover

        return run_mover(arguments[1:])
    from orchestrator.cli.main import main as run_command

    return run_command(arguments)


def run() -> NoReturn:
    """Run the command and end the process at once, with its exit code.

    Not by the interpreter's own end: a thread of the object storage library that still lets go of a buffer then aborts
    the process, and work that was done would be reported as a crash.
    """
    code = main()
    if "logging" in sys.modules:
        sys.modules["logging"].shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # what was to be said can't be said: that is no success
            code = code or 1
    os._exit(code)


if __name__ == "__main__":
    run()
