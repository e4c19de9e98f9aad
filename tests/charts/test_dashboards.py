"""No made-up metrics: what dashboards and alerts ask for is what the controller tells, with the labels it has."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.real_apiserver import find_tool
from tests.observe.test_metrics import full

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "dashboards" / "tidemark.json"
RULES = ROOT / "dashboards" / "rules.yaml"
RUNBOOK = ROOT / "docs" / "operations.md"

SERIES = re.compile(r"(tidemark_[a-z0-9_]+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)")
GROUPING = re.compile(r"\bby\s*\(([^)]*)\)")


def told() -> dict[str, set[str]]:
    """Return sample name -> labels, from a page with every family filled."""
    page = generate_latest(full().registry).decode()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["definition"]
    for rule in rules():
        yield rule["alert"], rule["expr"]


@pytest.mark.quick
@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_each_query_asks_for_metrics_and_labels_that_there_are(where: str, expression: str) -> None:
    metrics = told()
    names = SERIES.findall(expression)
    assert names, where
    known: set[str] = set()
    for name, matchers in names:
        assert name in metrics, f"{where}: {name}"
        assert set(MATCHER.findall(matchers)) <= metrics[name], f"{where}: labels of {name}"
        known |= metrics[name]
    for group in GROUPING.findall(expression):
        assert {label.strip() for label in group.split(",")} <= known, f"{where}: by ({group})"


@pytest.mark.quick
def test_every_metric_that_is_told_is_looked_at_somewhere() -> None:
    asked = {name for _, expression in expressions() for name, _ in SERIES.findall(expression)}
    histograms = {name.removesuffix("_bucket") for name in asked}
    for name in told():
        base = re.sub(r"_(bucket|count|sum|created)$", "", name)
        if name.startswith("tidemark_") and not name.endswith("_created"):
            assert name in asked or base in histograms, name


@pytest.mark.quick
def test_every_alert_says_how_bad_what_and_where_to_read_on() -> None:
    anchors = set(re.findall(r'<a id="([^"]+)"></a>', RUNBOOK.read_text()))
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert (ROOT / page).is_file()
        assert anchor in anchors, anchor


@pytest.mark.quick
def test_panels_do_not_overlap_and_have_their_own_ids() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.real
def test_promtool_takes_the_rules() -> None:
    promtool = find_tool("promtool")
    if promtool is None:
        pytest.skip("needs promtool (Debian: prometheus)")
    done = subprocess.run([promtool, "check", "rules", RULES], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
