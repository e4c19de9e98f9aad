"""The page about real clusters names tests; each of them exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

CHECKOUT = Path(__file__).parents[2]


def test_each_test_that_the_page_names_is_there() -> None:
    """A renamed test without a word in the page would make it tell of what nobody runs."""
    page = (CHECKOUT / "docs" / "real-cluster.md").read_text()
    named = set(re.findall(r"^\| `(test_\w+)`", page, re.MULTILINE))
    there = "".join(path.read_text() for path in (CHECKOUT / "tests" / "real").glob("test_story*.py"))
    defined = set(re.findall(r"^async def (test_\w+)", there, re.MULTILINE))
    assert named == defined
