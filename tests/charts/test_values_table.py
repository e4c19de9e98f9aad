"""The table of values in docs/operations.md says what the chart does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.charts.goldens import CHART, ROOT

pytestmark = pytest.mark.quick

ROW = re.compile(r"^\| `([a-zA-Z.]+)` \| `(.*?)` \| (.+) \|$", re.MULTILINE)
WHOLE = {"controller.resources", "metrics.dashboard.labels"}
"""Maps whose default has entries that are not ours to name."""


def leaves(values: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value that a person can set, by its dotted name."""
    if isinstance(values, dict) and values and at not in WHOLE:
        for name, value in values.items():
            yield from leaves(value, f"{at}.{name}" if at else name)
    else:
        yield at, values


def test_the_table_of_values_names_each_with_its_default() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    section = page.partition("### Values\n")[2].partition("\n### ")[0]
    told = {name: json.loads(default) for name, default, _ in ROW.findall(section)}

    assert told == dict(leaves(yaml.safe_load((CHART / "values.yaml").read_text())))


def test_the_schema_refuses_unknown_names_at_every_level_that_is_ours() -> None:
    """Without this a slip of the pen is taken for an option that does nothing."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    free = set(open_objects(schema, schema))
    assert free == {
        "global", "controller.resources", "controller.nodeSelector", "controller.affinity", "controller.podAnnotations",
        "controller.podLabels", "serviceAccounts.controller.annotations", "serviceAccounts.mover.annotations",
        "metrics.serviceMonitor.labels", "metrics.prometheusRule.labels", "metrics.dashboard.labels",
    }  # fmt: skip


def open_objects(schema: dict[str, Any], top: dict[str, Any], at: str = "") -> Iterator[str]:
    """Yield the objects that take any name."""
    if "$ref" in schema:
        schema = top["definitions"][schema["$ref"].rpartition("/")[2]]
    if schema.get("type") != "object":
        return
    if schema.get("additionalProperties") is not False:
        yield at
    for name, inner in schema.get("properties", {}).items():
        yield from open_objects(inner, top, f"{at}.{name}" if at else name)
