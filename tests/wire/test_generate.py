"""The generator tells when what is checked in is not what the protos say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def _check(checkout: Path) -> subprocess.CompletedProcess[str]:
    command = ["sh", checkout / "proto" / "generate.sh", Path(sys.executable).parent, "--check"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_checked_in_code_is_what_the_protos_generate() -> None:
    run = _check(CHECKOUT)
    assert run.returncode == 0, run.stderr


def test_a_stale_generated_file_is_told_and_left_alone(tmp_path: Path) -> None:
    shutil.copytree(CHECKOUT / "proto", tmp_path / "proto")
    generated = tmp_path / "orchestrator" / "wire" / "_generated"
    shutil.copytree(CHECKOUT / "orchestrator" / "wire" / "_generated", generated)
    stale = generated / "snapshotmetadata" / "__init__.py"
    stale.write_text(stale.read_text().replace("field(3,", "field(4,"))
    run = _check(tmp_path)
    assert run.returncode == 1
    assert "stale: run 'make gen'" in run.stderr
    assert "field(4," in stale.read_text()


def test_the_go_stubs_are_of_this_proto_and_an_edit_is_told_without_go(tmp_path: Path) -> None:
    cbt = Path("tests", "clients", "cbt")
    shutil.copytree(CHECKOUT / "proto", tmp_path / "proto")
    shutil.copytree(CHECKOUT / cbt, tmp_path / cbt)
    shutil.copy(CHECKOUT / "tests" / "clients" / "go.mod", tmp_path / "tests" / "clients")
    command = ["sh", str(tmp_path / cbt / "generate.sh"), "nowhere", "--check"]

    def check() -> subprocess.CompletedProcess[str]:
        env = {"PATH": os.defpath}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)

    run = check()
    assert run.returncode == 0, run.stderr

    proto = tmp_path / "proto" / "snapshotmetadata" / "snapshotmetadata.proto"
    proto.write_text(proto.read_text().replace("max_results = 5", "max_results = 7"))
    run = check()
    assert run.returncode == 1
    assert "stale" in run.stderr
