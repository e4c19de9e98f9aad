"""Run real mover processes as a Job's pod would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.api.mover import MoverConfig, Task
from orchestrator.repository.vault import Vault
from tests.waiting import LONG

ROOT = Path(__file__).parents[2]


@dataclass
class Pod:
    """Where one mover's files are."""

    task: Task
    point: str
    config: Path
    device: Path
    log: Path

    @classmethod
    def make(cls, folder: Path, vault: Vault, url: str, task: Task, point: str, device: Path, **more: Any) -> Pod:
        config = MoverConfig(task=task, point=point, url=url, keys=vault.keys.to_json().decode(), **more)
        path = folder / f"{task}-{point}.json"
        path.write_bytes(msgspec.json.encode(config))
        return cls(task, point, path, device, folder / f"{task}-{point}.termination")

    def start(self, **environment: str) -> subprocess.Popen[str]:
        """Start the process."""
        command = [sys.executable, "-m", "orchestrator", "mover", self.task, "--point", self.point]
        command += ["--config", str(self.config), "--device", str(self.device)]
        command += ["--termination-log", str(self.log)]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def outcome(self) -> dict[str, Any]:
        """Return the termination message."""
        raw = self.log.read_bytes()
        assert len(raw) <= 1024
        found: dict[str, Any] = json.loads(raw)
        return found


def end(process: subprocess.Popen[str], timeout_s: float = LONG) -> tuple[int, list[dict[str, Any]], str]:
    """Wait for a mover; return its exit code, its progress lines and its log."""
    out, log = process.communicate(timeout=timeout_s)
    return process.returncode, [json.loads(line) for line in out.splitlines()], log
