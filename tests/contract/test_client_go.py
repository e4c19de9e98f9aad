"""What client-go expects of an API server: a Go program with its typed, dynamic and metadata clients, on both servers.

The program runs all of its cases at once, and one time per server; its sources are in tests/clients/contract.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract import clusters
from tests.contract.clusters import Cluster
from tests.waiting import LONG

#: Hermetic runs have no Go compiler: the program is one of the real tools.
pytestmark = pytest.mark.real

SOURCES = Path(__file__).parent.parent / "clients" / "contract"
CASES = re.findall(r'^\t\{"([a-z0-9-]+)", \w+\},', (SOURCES / "main.go").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def results(cluster: Cluster) -> Iterator[dict[str, str]]:
    """Return each case's error, "" where all was well."""
    program = clusters.ASSETS / "contract-client"
    if not program.exists():
        pytest.skip("needs the client-go program (make real-tools)")
    namespace = cluster.namespace()
    command = [str(program), "-kubeconfig", str(cluster.kubeconfig), "-namespace", namespace]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    yield {line["case"]: line["error"] for line in lines}
    cluster.delete(f"/api/v1/namespaces/{namespace}")


@pytest.mark.parametrize("case", CASES)
def test_what_a_go_program_expects_holds(results: dict[str, str], case: str) -> None:
    assert results[case] == ""


def test_every_case_of_the_go_program_is_named(results: dict[str, str]) -> None:
    assert set(results) == set(CASES)
