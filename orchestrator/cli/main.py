"""Find the command, run it, and turn what it raises into one line and an exit code.

Nothing but this module prints an error or chooses an exit code: 0 fine, 2 wrong usage, 65 can't succeed until
something changes, 75 may succeed when tried again, 130 interrupted.
"""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from typer.core import TyperCommand, TyperGroup

from orchestrator.errors import Retryable, TidemarkError

if TYPE_CHECKING:
    from typer._click import Command, Context  # typer carries its own copy of click and exports only half of it

EXIT_USAGE = 2
EXIT_TERMINAL = 65
EXIT_RETRYABLE = 75
EXIT_INTERRUPTED = 130
COMPLETION_OPTIONS = {"install_completion", "show_completion"}
PACKAGE = "orchestrator.cli"
MOVER_HELP = "Copy blocks between a volume and the repository (what a Job's pod runs)."
EPILOG = "Start with `tidemark demo`. Every command explains itself with --help."


def command_names() -> list[str]:
    """Return the names of all commands, sorted, without importing any."""
    here = Path(__file__).parent
    modules = (info for info in pkgutil.iter_modules([str(here)]) if not info.ispkg and info.name != "main")
    return sorted(info.name.replace("_", "-") for info in modules)


def command_help(name: str) -> str:
    """Return the first line of a command's docstring, read from its source."""
    source = Path(__file__).with_name(name.replace("-", "_") + ".py").read_text(encoding="utf-8")
    text = ast.get_docstring(ast.parse(source)) or ""
    return text.partition("\n")[0]


class LazyCommands(TyperGroup):
    """The `tidemark` command: lists every command, imports only the one that runs."""

    def list_commands(self, ctx: Context) -> list[str]:
        """Return every command's name."""
        return sorted([*command_names(), "mover"])

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        """Return a stand-in with name and help: all that a listing needs."""
        if cmd_name == "mover":
            return TyperCommand(cmd_name, help=MOVER_HELP)
        return TyperCommand(cmd_name, help=command_help(cmd_name)) if cmd_name in command_names() else None

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        """Import the command that runs."""
        self.commands = {name: TyperCommand(name) for name in self.list_commands(ctx)}  # for "did you mean"
        name, stand_in, rest = super().resolve_command(ctx, args)
        if name is None or stand_in is None:
            return name, stand_in, rest
        return name, load(name), rest


def load(name: str) -> Command:
    """Import one command and build it under its name."""
    module = importlib.import_module(f"{PACKAGE}.{name.replace('-', '_')}")
    app: typer.Typer = module.app
    command = typer.main.get_command(app)
    command.name = name
    command.params = [option for option in command.params if option.name not in COMPLETION_OPTIONS]
    return command


def build() -> LazyCommands:
    """Return the whole command tree."""
    return LazyCommands(
        name="tidemark",
        help="Keep Kubernetes volumes recoverable to a recent point, at the cost of what changed.",
        epilog=EPILOG,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode="rich",
    )


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
