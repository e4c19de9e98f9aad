"""The program's version is said in one more place than pyproject.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import orchestrator

pytestmark = pytest.mark.quick


def test_the_version_that_manifests_carry_is_the_projects() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert orchestrator.__version__ == project["project"]["version"]
