"""The command tree for typer: every command listed, only the one that runs imported."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import typer
from typer.core import TyperCommand, TyperGroup

from orchestrator.cli.parts.names import command_help, command_names

if TYPE_CHECKING:
    from typer._click import Command, Context  # typer carries its own copy of click and exports only half of it

COMPLETION_OPTIONS = {"install_completion", "show_completion"}
PACKAGE = "orchestrator.cli"
MOVER_HELP = "Copy blocks between a volume and the repository (what a Job's pod runs)."
EPILOG = "Start with `tidemark demo`. Every command explains itself with --help."


class LazyCommands(TyperGroup):
    """The `tidemark` command: lists every command, imports only the one that runs."""

    def list_commands(self, ctx: Context) -> list[str]:
        """Return every command's name."""
        return sorted([*command_names(), "mover"])

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        """Return a stand-in with name and help: all that a listing needs."""
        if cmd_name == "mover":
            return TyperCommand(cmd_name, short_help=MOVER_HELP)
        return TyperCommand(cmd_name, short_help=command_help(cmd_name)) if cmd_name in command_names() else None

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
    app.rich_markup_mode = None
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
        rich_markup_mode=None,  # drawing boxes would cost more than all the rest of --help, and no script can read them
    )
