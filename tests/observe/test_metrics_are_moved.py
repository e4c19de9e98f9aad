"""No panel and no alert lives on a metric that nobody moves.

What each call does to the numbers is shown beside the controllers; here it is held that the call is there at all.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from orchestrator.app.sources import sources
from orchestrator.observe.metrics import Metrics
from orchestrator.observe.state import RpoCollector, Sources, StateCollector, nothing

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[2]
SUFFIX = re.compile(r"_(?:bucket|sum|count|total|created)$")
MOVE = re.compile(r"self\.(\w+)\.(?:labels\([^)]*\)\.)?(?:inc|observe|set)\(")
ITSELF = {"tidemark_build_info": "set when made", "tidemark_scrape_errors": "counted when a source fails at a scrape"}
"""Moved inside the metrics room."""


def used() -> set[str]:
    """Return the families that panels and alerts ask for."""
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "dashboards").iterdir())
    return {SUFFIX.sub("", name) for name in re.findall(r"tidemark_[a-z_]+", text)} - {"tidemark_"}


def states() -> set[str]:
    """Return the families that are read from the caches."""
    return {family.name for each in (RpoCollector(), StateCollector(Sources())) for family in each.describe()}


def counters() -> dict[str, set[str]]:
    """Return family -> the methods of Metrics that move it, found in their source."""
    metrics = Metrics()
    families = {
        name: SUFFIX.sub("", family.describe()[0].name)
        for name, family in vars(metrics).items()
        if not isinstance(family, CollectorRegistry) and hasattr(family, "describe")
    }
    movers: dict[str, set[str]] = {family: set() for family in families.values()}
    for name, method in inspect.getmembers(Metrics, inspect.isfunction):
        for attribute in MOVE.findall(inspect.getsource(method)):
            if attribute in families:
                movers[families[attribute]].add(name)
    return movers


def called() -> Iterator[str]:
    """Yield the methods of Metrics that the controllers and the house call, as `meter.METHOD(...)`."""
    for room in ("controllers", "app"):
        for path in (ROOT / "orchestrator" / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    owner = node.func.value
                    if getattr(owner, "attr", getattr(owner, "id", "")) == "meter":
                        yield node.func.attr


def test_each_metric_of_a_panel_or_alert_can_be_moved_by_the_controllers() -> None:
    calls, movers, gauges = set(called()), counters(), states()
    assert len(used()) > 20
    dead = sorted(family for family in used() - gauges - ITSELF.keys() if not movers.get(family, set()) & calls)
    assert dead == []


def test_every_method_that_counts_or_forgets_is_called() -> None:
    public = {
        name
        for name, method in inspect.getmembers(Metrics, inspect.isfunction)
        if not name.startswith("_") and method.__module__ == Metrics.__module__
    }
    assert public - set(called()) == set()


def test_every_state_has_a_source() -> None:
    made = sources(None, None, lambda: ())  # type: ignore[arg-type]
    assert [name for name in made.__slots__ if getattr(made, name) is nothing] == []
