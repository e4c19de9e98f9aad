"""kill -9 at random moments of backup and of maintenance: `verify --full` is clean after each, and work goes on.

The moments are real ones, of real processes on a real directory. That every single request is a moment too is shown,
without processes, in `test_faults_everywhere.py`.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from orchestrator.fence import OpenFence
from orchestrator.repository.manifest import open_manifest
from orchestrator.repository.point import remove
from orchestrator.repository.vault import Vault
from orchestrator.repository.verify import verify
from tests.blocks.volumes import CHUNK, Point, Volume, announce, run, take, vault_at
from tests.reader.stranger import Folder, open_repository
from tests.repository.killable import PACK, Killable

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("TIDEMARK_KILLS", "24"))
"""More on demand: TIDEMARK_KILLS=200 pytest tests/repository/test_faults_killed.py"""
SEED = int(os.environ.get("TIDEMARK_SEED", "11"))
KEY = bytes(range(32))


class _Site:
    """A volume, its repository in a directory, and what each point must restore to."""

    def __init__(self, folder: Path, vault: Vault) -> None:
        self.folder, self.vault = folder, vault
        self.rng = random.Random(SEED)
        self.volume = Volume(folder / "volume", 30 * CHUNK + 5, seed=SEED)
        self.points: dict[str, str] = {}
        self.last: Point | None = None

    async def planned(self) -> str:
        """Change some of the volume and announce a point of it."""
        first = self.rng.randrange(20)
        self.volume.noise(first * CHUNK, 6 * CHUNK)
        self.volume.write((first + 6) * CHUNK, bytes(CHUNK))
        if self.last is None:
            return await announce(self.vault, self.volume.path, None)
        ranges = [(first * CHUNK, 7 * CHUNK)]
        return await announce(self.vault, self.volume.path, ranges, mode="delta", base=self.last.ref)

    async def complete(self, intent_id: str) -> None:
        """Run what was cut off to its end."""
        self.last = await run(self.vault, intent_id, self.volume.path, pack_bytes=PACK)
        self.points[self.last.ref.key] = self.volume.sha256()

    async def prune(self) -> None:
        """Remove all but the two newest points."""
        for key in sorted(self.points)[:-2]:
            _, ref = await open_manifest(self.vault, key)
            await remove(self.vault, ref, OpenFence())
            del self.points[key]

    async def check(self) -> None:
        """Nothing is damaged, and every point is right for a stranger too."""
        report = await verify(self.vault, depth="full", record=False)
        assert report.ok, report
        (namespace,) = open_repository(Folder(self.folder / "repository"), KEY)
        found = {name: hashlib.sha256(namespace.volume(name)).hexdigest() for name in namespace.points()}
        assert {name: found.get(name) for name in self.points} == self.points
        # a backup that was killed after its commit has made its point all the same
        assert set(found.values()) <= {*self.points.values(), self.volume.sha256()}

    def kill(self, workers: Killable, within_s: float, task: str, intent_id: str = "") -> tuple[bool, float]:
        """Run a worker and kill it at a random moment; return whether that was in time, and how long it ran."""
        started = time.perf_counter()
        worker = workers.start(
            repository=str(self.folder / "repository"), task=task, intent=intent_id, volume=str(self.volume.path)
        )
        time.sleep(self.rng.uniform(0, within_s))  # the moment is the fault
        os.kill(worker, signal.SIGKILL)
        status = workers.ended()
        assert status in (0, -signal.SIGKILL), f"{task} failed"
        return status != 0, time.perf_counter() - started


async def test_verify_is_clean_after_every_kill(tmp_path: Path) -> None:
    site = _Site(tmp_path, await vault_at(tmp_path / "repository"))
    site.last = await take(site.vault, site.volume.path)
    site.points[site.last.ref.key] = site.volume.sha256()
    killed = {"backup": 0, "maintain": 0}
    within_s = {"backup": 0.3, "maintain": 0.3}
    with Killable() as workers:
        for _ in range(4 * KILLS):
            if sum(killed.values()) >= KILLS:
                break
            # when a backup is killed, then everything is right, and the next try completes it
            intent_id = await site.planned()
            await _killed(site, workers, "backup", intent_id, killed, within_s)
            await site.check()
            await site.complete(intent_id)
            # and when a maintenance is killed, everything is right again
            await site.prune()
            await _killed(site, workers, "maintain", "", killed, within_s)
            await site.check()
    assert sum(killed.values()) >= KILLS
    assert min(killed.values()) >= KILLS // 4


async def _killed(
    site: _Site, workers: Killable, task: str, intent_id: str, killed: dict[str, int], within_s: dict[str, float]
) -> None:
    in_time, seconds = site.kill(workers, within_s[task], task, intent_id)
    killed[task] += in_time
    # Aim at its middle, however fast this machine is: what ended before tells how long it takes.
    within_s[task] = within_s[task] * 1.2 if in_time else max(0.01, min(within_s[task], seconds) * 0.8)
