"""What a test run ran: counts by suite and by the API server that it ran on, for the gate's closing table.

With TIDEMARK_TALLY naming a folder, each run leaves one JSON file there (TIDEMARK_SUITE is its name); `python -m
tests.tally FOLDER SUITE...` prints the table of all and fails if a suite is missing, ran nothing, or had failures.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

API_SERVER = "api-server"
"""The name of the property under which a test's report tells its API server."""
_ROOMS_ON_SANDBOX = ("tests/system/", "tests/sandbox/", "tests/demo/", "tests/controllers/", "tests/cli/",
                     "tests/real/test_s3_story.py")  # fmt: skip
_REAL = ("tests/api/test_crd_real.py", "real_api_server")
_SERVERS = ("real", "sandbox", "running")


def api_server_of(nodeid: str, fixtures: Sequence[str]) -> str:
    """Return "real", "sandbox" or "running" for a test that meets an API server, "-" for one that meets none.

    A parameter of that name decides; else what the room's tests run on.
    """
    parameters = nodeid.partition("[")[2].rstrip("]").split("-")
    for server in _SERVERS:
        if server in parameters:
            return server
    if (nodeid.startswith("tests/real/") and "cluster" in fixtures) or any(part in nodeid for part in _REAL):
        return "real"
    if nodeid.startswith(_ROOMS_ON_SANDBOX):
        return "sandbox"
    return "-"


class Tally:
    """Counts outcomes of one run; registered in the process that gathers the reports."""

    def __init__(self, folder: Path, suite: str) -> None:
        self._file = folder / f"{suite}.json"
        self._suite = suite
        self._counts: Counter[str] = Counter()
        self._started = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        ended = report.when == "call" or (report.when == "setup" and not report.passed)
        broken_after = report.when == "teardown" and report.failed
        if ended or broken_after:
            server = dict(report.user_properties).get(API_SERVER, "-")
            self._counts[f"{server} {'failed' if broken_after else report.outcome}"] += 1

    def pytest_sessionfinish(self) -> None:
        seconds = round(time.monotonic() - self._started, 1)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps({"suite": self._suite, "seconds": seconds, "counts": self._counts}))


def register(config: pytest.Config) -> None:
    """Count this run if it is asked for; xdist's workers send their reports to the process that counts."""
    folder = os.environ.get("TIDEMARK_TALLY")
    if folder and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Tally(Path(folder), os.environ.get("TIDEMARK_SUITE", "tests")), "tally")


def table(folder: Path, suites: Sequence[str]) -> tuple[list[str], bool]:
    """Return the lines of the closing table, and whether each suite ran and none failed."""
    lines = [f"{'suite':<12} {'API server':<12} {'passed':>7} {'failed':>7} {'skipped':>8} {'seconds':>9}"]
    good, total = True, Counter[str]()
    for suite in suites:
        file = folder / f"{suite}.json"
        found = json.loads(file.read_text()) if file.exists() else {"counts": {}, "seconds": 0.0}
        servers = sorted({key.partition(" ")[0] for key in found["counts"]})
        for server in servers or ["-"]:
            passed, failed, skipped = (found["counts"].get(f"{server} {o}", 0) for o in ("passed", "failed", "skipped"))
            total.update(passed=passed, failed=failed, skipped=skipped)
            seconds = found["seconds"] if server == (servers or ["-"])[0] else ""
            lines.append(f"{suite:<12} {server:<12} {passed:>7} {failed:>7} {skipped:>8} {seconds:>9}")
        if not sum(n for key, n in found["counts"].items() if key.endswith("passed")):
            lines.append(f"{suite}: no test ran")
            good = False
    lines.append(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return lines, good and not total["failed"]


def main() -> None:
    """Print the table of a folder's runs; exit 1 unless all suites named ran and none failed."""
    lines, good = table(Path(sys.argv[1]), sys.argv[2:])
    print("\n".join(lines))
    sys.exit(not good)


if __name__ == "__main__":
    main()
