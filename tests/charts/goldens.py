"""What the chart renders for each file of `values/`, kept beside it so that every change of it is seen and reviewed.

Renew with `.venv/bin/python -m tests.charts.goldens` (needs helm), look at the difference, commit it.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import yaml

from tests.api.real_apiserver import find_tool

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CHART = ROOT / "charts" / "tidemark"
VALUES = sorted((HERE / "values").glob("*.yaml"))
NAMESPACE = "tidemark-system"
PASSED_ON = {"dashboards/tidemark.json": 4, "dashboards/rules.yaml": 2}
"""Files that are rendered as they are, and how far they are indented."""


def helm() -> str:
    """Return the helm to use; fails without one."""
    found = find_tool("helm")
    assert found is not None, "needs helm on PATH or in KUBEBUILDER_ASSETS (make real-tools)"
    return str(found)


def render(values: Path, *, whole: bool = False) -> str:
    """Return what helm renders for a values file.

    CRDs are left out and, unless the `whole` is wanted, files that the chart passes on are named instead of shown: they
    have tests of their own.
    """
    command = [helm(), "template", "tidemark", str(CHART), "--namespace", NAMESPACE, "--kube-version", "1.36.0"]
    done = subprocess.run([*command, "--values", str(values)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    for name, spaces in ({} if whole else PASSED_ON).items():
        shown = textwrap.indent((CHART / name).read_text().rstrip("\n"), " " * spaces)
        text = text.replace(shown, f"{' ' * spaces}asInFile: {name}")
    return text


def golden(values: Path) -> Path:
    """Return where the golden of a values file is."""
    return HERE / "goldens" / values.name


def documents(values: Path) -> list[dict[str, Any]]:
    """Return the golden's objects."""
    return [found for found in yaml.safe_load_all(golden(values).read_text()) if found]


def only(objects: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    """Return the one object of that kind (and name)."""
    found = [o for o in objects if o["kind"] == kind and name in ("", o["metadata"]["name"])]
    assert len(found) == 1, [o["metadata"]["name"] for o in found]
    return found[0]


def main() -> None:
    """Write them all."""
    for values in VALUES:
        golden(values).write_text(render(values))
        sys.stdout.write(f"{golden(values).relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
