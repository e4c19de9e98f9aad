"""`docs/cli.md` names every option of every command, and none that there isn't."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cli.main import command_names, main
from orchestrator.mover.main import main as run_mover

pytestmark = pytest.mark.quick
PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
SECTION = re.compile(r"^### `tidemark ([a-z ]+)`\n(.*?)(?=^##|\Z)", re.DOTALL | re.MULTILINE)
SECTIONS = dict(SECTION.findall(PAGE))
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z0-9-]*")


def documented(body: str) -> set[str]:
    """Return the options in the first column of a section's tables."""
    cells = [line.split("|")[1] for line in body.splitlines() if line.startswith("| `-")]
    return {option for cell in cells for option in OPTION.findall(cell)}


def real(command: str, said: Callable[[], str]) -> set[str]:
    """Return the options that a command's --help lists, help itself aside."""
    if command == "mover":
        with pytest.raises(SystemExit):
            run_mover(["--help"])
    else:
        assert main([*command.split(), "--help"]) == 0
    lines = [line.strip() for line in said().splitlines() if re.match(r"  -", line)]
    return {option for line in lines for option in OPTION.findall(line.split("  ")[0])} - {"-h", "--help"}


@pytest.mark.parametrize("command", sorted(SECTIONS))
def test_the_page_names_just_the_options_that_there_are(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert documented(SECTIONS[command]) == real(command, lambda: capsys.readouterr().out)


def test_every_command_is_on_the_page() -> None:
    assert {title.split()[0] for title in SECTIONS} == {*command_names(), "mover"}
