"""The runbook has an anchor for each reason that anybody may see, and links lead somewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from policies.lineage import Reason
from tests.observe.test_metrics import full

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[2]
RUNBOOK = ROOT / "docs" / "operations.md"
STRANGERS = {"sandbox", "conformance", "doctor", "demo", "wire"}
"""Rooms whose reasons no operator of a cluster sees."""
BASES = {"Error", "Failed", "Retrying"}
"""Of base classes, and the reason of a run whose volumes say more."""
GOOD = {"Completed"}
ENDINGS = {"Fail", "_fail", "Finish", "Abort"}


def classes() -> Iterator[str]:
    """Yield the reason of each error class."""
    for path in (ROOT / "orchestrator").rglob("*.py"):
        if path.relative_to(ROOT / "orchestrator").parts[0] in STRANGERS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                yield from _reasons(node)


def _reasons(node: ast.ClassDef) -> Iterator[str]:
    for line in node.body:
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        value = getattr(line, "value", None)
        named = isinstance(target, ast.Name) and target.id == "reason"
        if named and isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value:
            yield value.value


def endings() -> Iterator[str]:
    """Yield the reasons that decisions give for an end."""
    for path in (ROOT / "orchestrator" / "decisions").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ENDINGS:
                words = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                yield from words[:1]


def test_every_reason_has_its_anchor() -> None:
    anchors = re.findall(r'<a id="([^"]+)"></a>', RUNBOOK.read_text(encoding="utf-8"))
    assert len(anchors) == len(set(anchors)), "an anchor is there twice"
    wanted = {*classes(), *endings(), *get_args(Reason)} - BASES - GOOD - {""}
    missing = sorted(wanted - set(anchors))
    assert not missing, f'add `<a id="REASON"></a>**REASON.** what happened, what to do` to {RUNBOOK} for {missing}'


def test_links_inside_the_runbook_lead_somewhere() -> None:
    text = RUNBOOK.read_text(encoding="utf-8")
    anchors = set(re.findall(r'<a id="([^"]+)"></a>', text))
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


def test_every_metric_is_in_the_runbook() -> None:
    text = RUNBOOK.read_text(encoding="utf-8")
    for family in full().registry.collect():
        if family.name.startswith("tidemark_"):
            assert f"`{family.name}" in text, family.name
