"""The gate's closing table tells the truth, and a suite that ran nothing stops it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tally import api_server_of, table

pytestmark = pytest.mark.quick


def _ran(folder: Path, suite: str, **counts: int) -> None:
    spelled = {key.replace("_", " "): n for key, n in counts.items()}
    (folder / f"{suite}.json").write_text(json.dumps({"suite": suite, "seconds": 1.5, "counts": spelled}))


def test_each_suite_and_server_has_a_line_and_the_sum_closes(tmp_path: Path) -> None:
    _ran(tmp_path, "one", sandbox_passed=3, real_passed=2, real_skipped=1)
    _ran(tmp_path, "two", sandbox_passed=4)
    lines, good = table(tmp_path, ["one", "two"])
    assert good
    assert [line.split() for line in lines[1:4]] == [
        ["one", "real", "2", "0", "1", "1.5"],
        ["one", "sandbox", "3", "0", "0"],
        ["two", "sandbox", "4", "0", "0", "1.5"],
    ]
    assert lines[-1] == "9 passed, 0 failed, 1 skipped"


def test_a_suite_that_ran_nothing_or_is_missing_is_not_good(tmp_path: Path) -> None:
    _ran(tmp_path, "one", sandbox_skipped=3)
    assert not table(tmp_path, ["one"])[1]
    assert not table(tmp_path, ["absent"])[1]


def test_a_failure_is_not_good(tmp_path: Path) -> None:
    _ran(tmp_path, "one", sandbox_passed=3, sandbox_failed=1)
    assert not table(tmp_path, ["one"])[1]


def test_the_server_is_the_parameters_or_the_rooms() -> None:
    assert api_server_of("tests/contract/test_objects.py::test_x[real]", ()) == "real"
    assert api_server_of("tests/contract/test_objects.py::test_x[sandbox-a]", ()) == "sandbox"
    assert api_server_of("tests/real/test_story.py::test_x", ("cluster",)) == "real"
    assert api_server_of("tests/real/test_s3_story.py::test_x", ()) == "sandbox"
    assert api_server_of("tests/policies/test_schedule.py::test_x", ()) == "-"
