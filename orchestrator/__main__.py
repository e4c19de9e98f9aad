"""Where `tidemark` (and `kubectl tidemark`) starts.

A mover goes straight to its room: its start-up is part of every recovery point, so it must never pay for the command
line's libraries.
"""

from __future__ import annotations

import gc
import sys

GC_THRESHOLD = 20_000
"""Objects made between two looks for cycles. Python's 700 has it look through every module while they load, and then
again and again while chunks pass by, which are no cycles."""


def main() -> int:
    """Run the command that the arguments name; return its exit code."""
    gc.set_threshold(GC_THRESHOLD)
    arguments = sys.argv[1:]
    if arguments[:1] == ["mover"]:
        from orchestrator.mover.main import main as run_mover

        return run_mover(arguments[1:])
    from orchestrator.cli.main import main as run_command

    return run_command(arguments)


if __name__ == "__main__":
    sys.exit(main())
