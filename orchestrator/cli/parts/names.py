"""Which commands there are, without importing any; and names of others' making, made fit to be printed.

Every command imports it to print: what only help needs is imported there.
"""

from __future__ import annotations


def command_names() -> list[str]:
    """Return the names of all commands, sorted, without importing any."""
    import pkgutil
    from pathlib import Path

    here = Path(__file__).parents[1]
    modules = (info for info in pkgutil.iter_modules([str(here)]) if not info.ispkg and info.name != "main")
    return sorted(info.name.replace("_", "-") for info in modules)


def command_help(name: str) -> str:
    """Return the first line of a command's docstring, read from its source."""
    import ast
    from pathlib import Path

    source = (Path(__file__).parents[1] / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    text = ast.get_docstring(ast.parse(source)) or ""
    return text.partition("\n")[0]


def printable(text: str) -> str:
    """Return text that a terminal shows and does not obey: a bucket's names are whatever somebody put there."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
