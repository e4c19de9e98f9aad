"""Find the command, run it, and turn what it raises into one line and an exit code.

Nothing but this module prints an error or chooses an exit code: 0 fine, 2 wrong usage, 65 can't succeed until
something changes, 75 may succeed when tried again, 128 + n ended by signal n (130: Ctrl-C).
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from orchestrator.cli.parts.names import command_help as command_help
from orchestrator.cli.parts.names import command_names as command_names
from orchestrator.cli.parts.names import printable
from orchestrator.errors import Retryable, TidemarkError
from orchestrator.sparing import lean_argparse

if TYPE_CHECKING:
    from orchestrator.cli.parts.lazy import LazyCommands

EXIT_USAGE = 2
EXIT_TERMINAL = 65
EXIT_RETRYABLE = 75
EXIT_SIGNALLED = 128
EXIT_INTERRUPTED = EXIT_SIGNALLED + signal.SIGINT
PLAIN = frozenset({"copy"})
"""Commands that are timed against others: their modules parse the line themselves (`main(arguments, program)`),
because typer alone takes longer to import than an incremental backup takes to run."""


def build() -> LazyCommands:
    """Return the whole command tree."""
    from orchestrator.cli.parts.lazy import build as build_tree

    return build_tree()


def program_name(argv0: str) -> str:
    """Return how the person called us: kubectl runs its plugins as `kubectl-NAME`."""
    return "kubectl tidemark" if argv0.rpartition("/")[2].startswith("kubectl-") else "tidemark"


def main(arguments: Sequence[str]) -> int:
    """Run one command; return its exit code."""
    if list(arguments) == ["--version"]:
        from importlib.metadata import version

        print(f"tidemark {version('tidemark')}")
        return 0
    hold_streams()
    with orderly_end() as came:
        code = _run(arguments)
    if code != EXIT_INTERRUPTED and not (came and code == 1):  # 1: typer's word for a question that was cut off
        return code
    number = came[0] if came else signal.SIGINT
    print("tidemark: interrupted" if number == signal.SIGINT else f"tidemark: ended by {number.name}", file=sys.stderr)
    return EXIT_SIGNALLED + number


def _run(arguments: Sequence[str]) -> int:
    try:
        if arguments and arguments[0] in PLAIN:
            lean_argparse()
            module = importlib.import_module(f"orchestrator.cli.{arguments[0]}")
            module.main(arguments[1:], program_name(sys.argv[0]))
        else:
            build().main(args=list(arguments), prog_name=program_name(sys.argv[0]), standalone_mode=True)
        sys.stdout.flush()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except TidemarkError as error:
        return report(error)
    except BaseExceptionGroup as group:
        expected = only_expected(group)
        if expected is None:
            raise
        return report(expected)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except MemoryError:
        print("tidemark: there is not enough memory. Allow it more, or use fewer threads.", file=sys.stderr)
        return EXIT_RETRYABLE
    except OSError as error:
        return _unwritable(error)
    return 0


def _unwritable(error: OSError) -> int:
    """Tell that stdout takes no more; raises the error again if it is about something else.

    The disk's errors of stores, volumes and files were translated where they came up: what is left is what we print.
    """
    if error.filename is not None or error.errno not in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.EPIPE,
    ):
        raise error
    # What is left in the buffer can't be written either: without this the interpreter says so again at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print(f"tidemark: the work was done, but stdout takes no more: {error.strerror}", file=sys.stderr)
    return EXIT_TERMINAL


def hold_streams() -> None:
    """Put /dev/null where stdin, stdout or stderr is closed: else the next file opened, a pack, would be there."""
    for number, mode in enumerate(("r", "w", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            setattr(sys, ("stdin", "stdout", "stderr")[number], open(number, mode, closefd=False))  # noqa: SIM115


@contextmanager
def orderly_end() -> Iterator[list[signal.Signals]]:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does, in order: a half-written target is taken away.

    Yields the signals that came. A command with a loop of its own that listens for them (the controller) goes on doing
    so. One that was to be ignored (nohup) stays ignored.
    """
    came: list[signal.Signals] = []

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(signal.Signals(number))
        if len(came) > 1:
            return  # the first one is being obeyed, and a second interruption would meet that anywhere
        if callable(signal.getsignal(signal.SIGINT)):
            signal.raise_signal(signal.SIGINT)
        else:  # a shell's background job: Ctrl-C is not for it, and nobody turns it into a cancellation
            raise KeyboardInterrupt

    ours: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():  # elsewhere Python lets nobody listen
        ours = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield came
    finally:
        for number in ours:
            if signal.getsignal(number) is stop:
                signal.signal(number, signal.SIG_DFL)


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
    line = printable(" ".join(error.sentence().split()))
    if os.environ.get("TIDEMARK_DEBUG"):
        import traceback

        traceback.print_exception(error)
    print(f"tidemark: {line}", file=sys.stderr)
    return EXIT_RETRYABLE if isinstance(error, Retryable) else EXIT_TERMINAL
