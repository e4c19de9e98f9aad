"""Count what the controller asks of the API server per recovery point, on a real cluster with auditing on.

    python -m tests.real.requests                          # print the table
    python -m tests.real.requests --write docs/requests.md # put it into the page

One volume on an otherwise idle installation of the chart: a first point, one after a change, one without a change, and
a restore. A window goes from the moment that a person asks until nothing transient is left.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from orchestrator.api.tidemark.backup import BackupPhase
from orchestrator.api.tidemark.restore import RestorePhase
from tests.real import audit
from tests.real.cluster import RealCluster, real_cluster
from tests.real.site import Site, ours, site
from tests.real.world import REPOSITORY
from tests.system.world import write
from tests.waiting import LONG

TEAM = "counted"
BEGIN, END = "<!-- counted: begin -->", "<!-- counted: end -->"
IDLE_S = 30.0
STEADY = ("leases.coordination.k8s.io",)
"""Asked for whether anything goes on or not; shown for the idle window only."""


async def settled(at: Site, contents: int) -> None:
    """Wait until nothing transient is left."""
    await at.world.settled(TEAM, snapshots=contents)


async def window(at: Site, began: datetime) -> list[audit.Request]:
    """Return the controller's requests since then, but for watches, which stay open."""
    await asyncio.sleep(1.0)  # the log is written by another process
    return [r for r in await at.requests(since=began) if r.verb != "watch"]


async def count(at: Site) -> dict[str, list[audit.Request]]:
    """Make the points and the restore, and return the requests of each window."""
    await at.team(TEAM)
    image = await at.world.claim("data", TEAM, size=16 << 20)
    await asyncio.to_thread(write, image, 0, bytes(range(256)) * 32768)
    found: dict[str, list[audit.Request]] = {}
    for name in ("first", "changed", "no-change"):
        if name == "changed":
            await asyncio.to_thread(write, image, 1 << 20, b"changed" * 1000)
        began = datetime.now(UTC)
        selection = {"volumes": {"names": ["data"]}, "repository": REPOSITORY}
        await at.put(ours("Backup", name, TEAM, {"selection": selection}))
        ended = await at.world.backup_ended(name, TEAM, LONG)
        assert ended.status.phase is BackupPhase.COMPLETED, ended.status
        await settled(at, 1)
        found[name] = await window(at, began)
    began = datetime.now(UTC)
    await at.put(ours("Restore", "back", TEAM, {"source": {"pvc": {"pvc": "data"}}, "target": {"pvcName": "again"}}))
    restored = await at.world.restore_ended("back", TEAM, LONG)
    assert restored.status.phase is RestorePhase.COMPLETED, restored.status
    await settled(at, 1)
    found["restore"] = await window(at, began)
    began = datetime.now(UTC)
    await asyncio.sleep(IDLE_S)
    found["idle"] = [r for r in await window(at, began) if r.at < began + timedelta(seconds=IDLE_S)]
    return found


def table(found: Mapping[str, Sequence[audit.Request]]) -> str:
    """Return the counts as a table: a line for each verb on each resource."""
    columns: dict[str, Counter[tuple[str, str]]] = {}
    for name, made in found.items():
        columns[name] = audit.counts(r for r in made if name == "idle" or r.what not in STEADY)
    head = [f"idle, {IDLE_S:.0f} s" if name == "idle" else name for name in columns]
    lines = ["| verb | resource | " + " | ".join(head) + " |", "|---|---|" + "---:|" * len(columns)]
    for what, verb in sorted({key for column in columns.values() for key in column}):
        cells = [str(column[what, verb] or "") for column in columns.values()]
        lines.append(f"| {verb} | {what} | " + " | ".join(cells) + " |")
    totals = [f"**{column.total()}**" for column in columns.values()]
    writes = [str(sum(n for (_, verb), n in column.items() if verb in audit.WRITES)) for column in columns.values()]
    lines.append("| | of these, writes | " + " | ".join(writes) + " |")
    lines.append("| | **all** | " + " | ".join(totals) + " |")
    return "\n".join(lines)


async def versions(cluster: RealCluster) -> str:
    """Return on what it was counted."""
    done = await asyncio.to_thread(cluster.kubectl, "version")
    server = next(line.split()[-1] for line in done.stdout.splitlines() if line.startswith("Server"))
    here = f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores"
    return f"kube-apiserver {server}, {here}, {datetime.now(UTC):%Y-%m-%d}"


async def run() -> str:
    """Bring up a cluster, count, and return the generated part of the page."""
    with tempfile.TemporaryDirectory(prefix="tm") as name:
        folder = Path(name)
        async with real_cluster(folder / "c") as cluster, site(cluster, folder / "w") as at:
            # As the chart comes: tests shorten the lease.
            await at.world.installed.upgrade({"controller": {"leaseDurationSeconds": 15}})
            await asyncio.sleep(5)  # what the start itself asks for is over
            found = await count(at)
            refused = [r for made in found.values() for r in audit.denied(made)]
            assert not refused, refused
            return f"Counted on {await versions(cluster)}.\n\n{table(found)}"


def main() -> int:
    """Print the counts, or write them into the page."""
    parser = argparse.ArgumentParser(description="Count the controller's requests per recovery point.")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    chosen = parser.parse_args()
    counted = asyncio.run(run())
    if chosen.write is None:
        sys.stdout.write(counted + "\n")
        return 0
    page: str = chosen.write.read_text()
    before, rest = page.split(BEGIN)
    chosen.write.write_text(f"{before}{BEGIN}\n{counted}\n{END}{rest.split(END)[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
