"""restic and borg from the distribution, run as a person would run them: encryption on, compression as by default.

A tool that isn't there is no error: its rows say that it is missing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command cost. Seconds."""

    seconds: float
    cpu_seconds: float
    peak_memory: int
    output: str = field(repr=False, default="")

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "seconds": round(self.seconds, 4),
            "cpuSeconds": round(self.cpu_seconds, 4),
            "peakMemory": self.peak_memory,
        }


def timed(command: Sequence[str], environment: Mapping[str, str] | None = None, stdin: str = "") -> Cost:
    """Run a command to its end and say what it cost; CalledProcessError with its errors when it fails."""
    started = time.perf_counter()
    with subprocess.Popen(
        command,
        env=dict(environment) if environment is not None else None,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(stdin)
            process.stdin.close()
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command), output[-2000:])
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, output)


class Restic:
    """restic on one repository."""

    name = "restic"

    def __init__(self, folder: Path) -> None:
        self.repository, self.folder = folder / "restic", folder
        self.environment = {
            **os.environ,
            "RESTIC_PASSWORD": "benchmark",
            "RESTIC_REPOSITORY": str(self.repository),
            "RESTIC_CACHE_DIR": str(folder / "restic-cache"),
        }

    def init(self) -> None:
        """Begin with an empty repository."""
        shutil.rmtree(self.repository, ignore_errors=True)
        shutil.rmtree(self.folder / "restic-cache", ignore_errors=True)
        timed(["restic", "init"], self.environment)

    def backup(self, volume: Path) -> Cost:
        """Back the file up; what it has already is not stored again."""
        return timed(["restic", "backup", "--quiet", str(volume)], self.environment)

    def restore(self, volume: Path, to: Path) -> Cost:
        """Restore the newest snapshot into a folder that goes again."""
        shutil.rmtree(to, ignore_errors=True)
        try:
            return timed(["restic", "restore", "latest", "--target", str(to)], self.environment)
        finally:
            shutil.rmtree(to, ignore_errors=True)

    def remove(self) -> None:
        """Drop everything."""
        shutil.rmtree(self.repository, ignore_errors=True)
        shutil.rmtree(self.folder / "restic-cache", ignore_errors=True)


class Borg:
    """borg on one repository."""

    name = "borg"

    def __init__(self, folder: Path) -> None:
        self.repository, self.folder = folder / "borg", folder
        self.environment = {
            **os.environ,
            "BORG_PASSPHRASE": "benchmark",
            "BORG_REPO": str(self.repository),
            "BORG_BASE_DIR": str(folder / "borg-base"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }
        self.count = 0

    def init(self) -> None:
        """Begin with an empty repository."""
        self.remove()
        timed(["borg", "init", "--encryption", "repokey"], self.environment)

    def backup(self, volume: Path) -> Cost:
        """Back the file up; what it has already is not stored again."""
        self.count += 1
        return timed(["borg", "create", f"::v{self.count}", str(volume)], self.environment)

    def restore(self, volume: Path, to: Path) -> Cost:
        """Restore the newest archive into a folder that goes again."""
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir()
        command = f'cd "{to}" && exec borg extract --sparse ::v{self.count}'
        try:
            return timed(["sh", "-c", command], self.environment)
        finally:
            shutil.rmtree(to, ignore_errors=True)

    def remove(self) -> None:
        """Drop everything."""
        shutil.rmtree(self.repository, ignore_errors=True)
        shutil.rmtree(self.folder / "borg-base", ignore_errors=True)


Rival = Restic | Borg


def rivals(folder: Path) -> list[Rival]:
    """Return the tools that are installed."""
    found: list[Rival] = []
    if shutil.which("restic"):
        found.append(Restic(folder))
    if shutil.which("borg"):
        found.append(Borg(folder))
    return found


def version(command: str) -> str:
    """Return what a tool says of itself, or that it isn't there."""
    if not shutil.which(command):
        return "not installed"
    words = timed([command, "version" if command == "restic" else "--version"]).output.split()
    return " ".join(words[:2])
