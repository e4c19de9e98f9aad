"""The table of what holds the sandbox to a real cluster names tests that exist, and every area of the contract."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

TESTS = Path(__file__).parent.parent
PAGE = (TESTS.parent / "docs" / "sandbox.md").read_text()
NAMED = re.findall(r"`([a-z_/]+\.py)::(test_[a-z0-9_]+)`", PAGE)


def test_each_test_that_the_table_names_exists() -> None:
    missing = [
        f"{file}::{name}"
        for file, name in NAMED
        if not (TESTS / file).exists() or not re.search(rf"def {name}\(", (TESTS / file).read_text())
    ]
    assert NAMED
    assert missing == []


def test_each_file_of_the_contract_holds_a_line_of_the_table() -> None:
    files = {f"contract/{path.name}" for path in (TESTS / "contract").glob("test_*.py")}
    assert files <= {file for file, _ in NAMED}


def test_each_line_of_the_table_is_held_by_a_test() -> None:
    table = PAGE.partition("| what | how far | held by |")[2].partition("\n\n")[0]
    lines = [line for line in table.splitlines()[2:] if line.startswith("|")]
    assert len(lines) > 20
    assert [line for line in lines if "::test_" not in line] == []
