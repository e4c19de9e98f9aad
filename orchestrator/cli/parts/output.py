"""Print for people, and for scripts."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from orchestrator.cli.parts.errors import FileRefused

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(count: float) -> str:
    """Return a number of bytes as people read it."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def peak_memory() -> int:
    """Return the most memory this program had at once, in bytes (getrusage would count its parent's before exec)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print rows in columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def write_json(file: Path, value: Any) -> None:
    """Write a value as JSON to FILE, or to stdout when FILE is `-`."""
    import json  # not at the top: most runs print for a person, and are to start fast

    text = json.dumps(value, indent=2, default=str) + "\n"
    if str(file) == "-":
        sys.stdout.write(text)
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FileRefused(f"can't write {file}: {error.strerror}") from error


@asynccontextmanager
async def progress_bar(label: str, look: Callable[[], tuple[int, int]]) -> AsyncIterator[None]:
    """Show a bar on a terminal's stderr while the block runs; `look` returns bytes (done, total)."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(True), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None)

        async def follow() -> None:
            while True:
                done, total = look()
                bar.update(task, completed=done, total=total or None)
                await asyncio.sleep(0.2)

        async with asyncio.TaskGroup() as tasks:
            follower = tasks.create_task(follow(), name="progress")
            try:
                yield
            finally:
                follower.cancel()
                done, total = look()
                bar.update(task, completed=done, total=total or None)
