"""The JSONPath of printer columns."""

from __future__ import annotations

import pytest

from orchestrator.sandbox.apiserver.durations import human_duration
from orchestrator.sandbox.apiserver.jsonpath import find

pytestmark = pytest.mark.quick

OBJ = {
    "spec": {"size": 3, "list": [{"n": "a"}, {"n": "b"}]},
    "metadata": {"annotations": {"x.io/y": "z"}},
    "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]},
}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (".spec.size", [3]),
        (".spec.none", []),
        (".spec.list[*].n", ["a", "b"]),
        (".spec.list[1].n", ["b"]),
        (".spec.list[-1].n", ["b"]),
        ('.status.conditions[?(@.type=="Ready")].status', ["True"]),
        (".status.conditions[?(@.type=='None')].status", []),
        (".metadata.annotations.x\\.io/y", ["z"]),
        (".metadata.annotations['x\\.io/y']", ["z"]),
    ],
)
def test_a_path_finds(path: str, expected: list[object]) -> None:
    assert find(OBJ, path) == expected


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (119, "119s"), (120, "2m"), (125, "2m5s"), (601, "10m"), (3 * 3600 + 60, "3h1m"), (9 * 3600, "9h"),
     (50 * 3600, "2d2h"), (10 * 86400, "10d"), (-5, "<invalid>")],
)  # fmt: skip
def test_ages_read_as_kubectl_writes_them(seconds: int, shown: str) -> None:
    assert human_duration(seconds) == shown
