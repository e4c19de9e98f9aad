"""Find the command, run it, and turn what it raises into one line and an exit code.

Nothing but this module prints an error or chooses an exit code: 0 fine, 2 wrong usage, 65 can't succeed until
something changes, 75 may succeed when tried again, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.parts.names import command_help as command_help
from orchestrator.cli.parts.names import command_names as command_names
from orchestrator.errors import Retryable, TidemarkError

if TYPE_CHECKING:
    from orchestrator.cli.parts.lazy import LazyCommands

EXIT_USAGE = 2
EXIT_TERMINAL = 65
EXIT_RETRYABLE = 75
EXIT_INTERRUPTED = 130
PLAIN = frozenset({"copy"})
"""Commands that are timed against others: their modules parse the line themselves (`main(arguments, program)`),
because typer alone takes longer to import than an incremental backup takes to run."""


def build() -> LazyCommands:
    """Return the whole command tree."""
    from orchestrator.cli.parts.lazy import build as build_tree

    return build_tree()


def program_name(argv0: str) -> str:
    """Return how the person called us: kubectl runs its plugins as `kubectl-NAME`."""
    return "kubectl tidemark" if Path(argv0).name.startswith("kubectl-") else "tidemark"


def main(arguments: Sequence[str]) -> int:
    """Run one command; return its exit code."""
    if list(arguments) == ["--version"]:
        from importlib.metadata import version

        print(f"tidemark {version('tidemark')}")
        return 0
    try:
        if arguments and arguments[0] in PLAIN:
            module = importlib.import_module(f"orchestrator.cli.{arguments[0]}")
            module.main(arguments[1:], program_name(sys.argv[0]))
            return 0
        build().main(args=list(arguments), prog_name=program_name(sys.argv[0]), standalone_mode=True)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        print("tidemark: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except TidemarkError as error:
        return report(error)
    except BaseExceptionGroup as group:
        expected = only_expected(group)
        if expected is None:
            raise
        return report(expected)
    return 0


def only_expected(group: BaseExceptionGroup[BaseException]) -> TidemarkError | None:
    """Return the first error of a task group if everything in it was raised on purpose, else None."""
    expected, rest = group.split(TidemarkError)
    if expected is None or rest is not None:
        return None
    first: BaseException = expected
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, TidemarkError)
    return first


def report(error: TidemarkError) -> int:
    """Print one line for a person; return the exit code for a script."""
    line = " ".join(error.sentence().split())
    if os.environ.get("TIDEMARK_DEBUG"):
        import traceback

        traceback.print_exception(error)
    print(f"tidemark: {line}", file=sys.stderr)
    return EXIT_RETRYABLE if isinstance(error, Retryable) else EXIT_TERMINAL
