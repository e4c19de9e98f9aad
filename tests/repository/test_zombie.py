"""A writer that is stopped for longer than anybody waits, while the ground it stands on is taken away.

Its base is pruned, swept and compacted meanwhile. Woken, it commits a whole point or learns that it is over: no point
with a hole, no point that comes back.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.api.mover import EXIT_TERMINAL
from orchestrator.fence import OpenFence
from orchestrator.repository.maintenance import plan_sweep, sweep
from orchestrator.repository.manifest import open_manifest
from orchestrator.repository.point import remove
from orchestrator.repository.vault import Vault
from orchestrator.repository.verify import verify
from tests.blocks.volumes import CHUNK, Point, Volume, announce, give_back, take, vault_at
from tests.mover.movers import Pod, end
from tests.reader.stranger import Folder, open_repository

pytestmark = pytest.mark.system

MIB = 1 << 20
PACK = 1 << 20
GRACE, AGE = timedelta(days=1), timedelta(days=7)


async def maintain(vault: Vault, *days: float) -> int:
    """Run one maintenance for each day from now; return how many packs were compacted in all."""
    compacted = 0
    for day in days:
        now = datetime.now(UTC) + timedelta(days=day)
        plan = await plan_sweep(vault, now=now, grace=GRACE, intent_age=AGE)
        compacted += (await sweep(vault, plan, OpenFence(), pack_size=PACK)).compacted.packs
    return compacted


class _Ground:
    """A volume, a base to build on, an heir of it that stays, and a mover stopped in mid-copy."""

    def __init__(self, folder: Path, vault: Vault, shards: int = 1) -> None:
        """With two shards the volume has two leaves, and something changes in both."""
        self.folder, self.vault, self.shards = folder, vault, shards
        self.volume = Volume(folder / "volume", (24 if shards == 1 else 68) * MIB + 4096, seed=3)
        self.kept: dict[str, str] = {}
        self.gone: list[Point] = []
        self.intent = ""

    async def prepare(self) -> None:
        """Take a full, a base on it that replaces most of it, and an heir; plan a delta on the base."""
        self.volume.noise(0, 8 * MIB)
        first = await take(self.vault, self.volume.path, [(0, 8 * MIB)], mode="allocated")
        most = [(index * CHUNK, CHUNK) for index in range(8 * MIB // CHUNK) if index % 4]
        for offset, length in most:
            self.volume.noise(offset, length)
        base = await take(self.vault, self.volume.path, most, mode="delta", base=first)
        self.volume.noise(CHUNK, CHUNK)
        heir = await take(self.vault, self.volume.path, [(CHUNK, CHUNK)], mode="delta", base=base)
        self.kept[heir.ref.key] = self.volume.sha256()
        self.gone = [first, base]
        self.volume.noise(8 * MIB, 14 * MIB)
        ranges = [(CHUNK, CHUNK), (8 * MIB, 14 * MIB)]
        if self.shards > 1:
            self.volume.noise(65 * MIB, 2 * MIB)
            ranges.append((65 * MIB, 2 * MIB))
        self.intent = await announce(
            self.vault, self.volume.path, ranges, mode="delta", base=base.ref, shards=self.shards
        )

    def pod(self, name: str, **more: int) -> Pod:
        """Return a mover of the planned point."""
        folder = self.folder / name
        folder.mkdir()
        url = f"file://{self.folder / 'repository'}"
        return Pod.make(folder, self.vault, url, "backup", self.intent, self.volume.path, **more)

    async def check(self, points: int) -> None:
        """So many points are there, each whole, and nothing is damaged."""
        report = await verify(self.vault, depth="full")
        assert report.ok, report
        assert report.points == points
        (namespace,) = open_repository(Folder(self.folder / "repository"), bytes(range(32)))
        assert len(namespace.points()) == points
        for key, wanted in self.kept.items():
            _, ref = await open_manifest(self.vault, key)
            back = self.folder / "back"
            assert await give_back(self.vault, ref, back) == wanted
            back.unlink()
            assert hashlib.sha256(namespace.volume(key)).hexdigest() == wanted

    async def check_handed_over_by(self, zombie: Pod) -> None:
        """The planned point is there, once and whole, beside the other that is kept, and this mover named it."""
        (key,) = [name for name in _manifests(self.folder / "repository") if name.endswith(self.intent)]
        _, ref = await open_manifest(self.vault, key)
        assert zombie.outcome()["manifestDigest"] == ref.digest
        self.kept[key] = self.volume.sha256()
        await self.check(2)


@contextmanager
def asleep(pod: Pod) -> Iterator[subprocess.Popen[str]]:
    """Start a mover, stop it in mid-copy, and wake it at the end of the block."""
    process = pod.start()
    try:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        yield process
        process.send_signal(signal.SIGCONT)
    except BaseException:
        process.kill()
        process.communicate()
        raise


@pytest.mark.parametrize(("days", "over"), [((2, 4, 6), False), ((2, 4, 6, 8, 10, 12, 14), True)])
async def test_a_stopped_writers_base_is_pruned_swept_and_compacted(
    tmp_path: Path, days: tuple[float, ...], over: bool
) -> None:
    # given a mover that is stopped in mid-copy
    ground = _Ground(tmp_path, await vault_at(tmp_path / "repository"))
    await ground.prepare()
    pod = ground.pod("stopped", bandwidth_limit=6 * MIB)
    with asleep(pod) as process:
        # when its base and what that builds on are pruned, swept and compacted, before or after the intent's age
        for point in ground.gone:
            await remove(ground.vault, point.ref, OpenFence())
        assert await maintain(ground.vault, *days) > 0
    # and it wakes
    code, _, log = await asyncio.to_thread(end, process)
    # then it commits a whole point, or is told that it is over
    if over:
        assert code == EXIT_TERMINAL
        assert pod.outcome()["reason"] == "PointCancelled", (pod.outcome(), log)
        assert "or make a new one" in pod.outcome()["message"]
    else:
        assert code == 0, log
        (key,) = [name for name in _manifests(tmp_path / "repository") if name.endswith(ground.intent)]
        ground.kept[key] = ground.volume.sha256()
    await ground.check(2 - over)
    # and what it left is swept in the end
    await maintain(ground.vault, *(day + 20 for day in days))
    await ground.check(2 - over)
    left = [path for path in (tmp_path / "repository").rglob("*") if f"packs/{ground.intent}" in str(path)]
    assert bool(left) is not over


def _manifests(repository: Path) -> list[str]:
    return [path.relative_to(repository).as_posix() for path in repository.glob("n/*/points/*/*")]


async def test_of_two_movers_of_one_point_the_zombie_wakes_after_its_packs_were_swept(tmp_path: Path) -> None:
    # given a mover that is stopped in mid-copy, and a second one that makes the point
    ground = _Ground(tmp_path, await vault_at(tmp_path / "repository"))
    await ground.prepare()
    zombie = ground.pod("zombie", bandwidth_limit=6 * MIB)
    with asleep(zombie) as process:
        code, _, log = await asyncio.to_thread(end, ground.pod("second").start())
        assert code == 0, log
        # when the base goes, maintenance takes all that the point doesn't need, and the zombie wakes
        for point in ground.gone:
            await remove(ground.vault, point.ref, OpenFence())
        assert await maintain(ground.vault, 2, 4, 6) > 0
    code, _, log = await asyncio.to_thread(end, process)
    # then the zombie adopts that point, and there is one, whole
    assert code == 0, log
    await ground.check_handed_over_by(zombie)
    await maintain(ground.vault, 22, 24, 26)
    await ground.check(2)


async def test_of_a_point_in_two_shards_one_mover_is_a_zombie_and_another_takes_its_place(tmp_path: Path) -> None:
    # given a mover of the first shard that is stopped in mid-copy
    ground = _Ground(tmp_path, await vault_at(tmp_path / "repository"), shards=2)
    await ground.prepare()
    zombie = ground.pod("zombie", bandwidth_limit=24 * MIB)
    with asleep(zombie) as process:
        # when the shard is done by another mover, the point is made, and the base goes with all that nobody needs
        await _shard(ground, "second", 0)
        await _shard(ground, "other", 1)
        for point in ground.gone:
            await remove(ground.vault, point.ref, OpenFence())
        assert await maintain(ground.vault, 2, 4, 6, 8) > 0
    code, _, log = await asyncio.to_thread(end, process)
    # then the zombie hands over that point, and there is one, whole
    assert code == 0, log
    await ground.check_handed_over_by(zombie)


async def test_of_a_point_in_two_shards_that_was_ended_every_mover_says_so(tmp_path: Path) -> None:
    # given one shard finished, and the mover of the other stopped in mid-copy
    ground = _Ground(tmp_path, await vault_at(tmp_path / "repository"), shards=2)
    await ground.prepare()
    await _shard(ground, "other", 1)
    zombie = ground.pod("zombie", bandwidth_limit=24 * MIB)
    with asleep(zombie) as process:
        # when the point is ended by its age, and everything of it is swept
        for point in ground.gone:
            await remove(ground.vault, point.ref, OpenFence())
        await maintain(ground.vault, 2, 8, 10, 12, 14)
        assert not [*(tmp_path / "repository").glob(f"n/*/intents/{ground.intent}/*")]
    # then the mover that wakes says that it is over, and so does one that starts now
    found = [await asyncio.to_thread(end, process)]
    for number in (0, 1):
        late = ground.pod(f"late-{number}")
        found.append(await asyncio.to_thread(end, late.start(JOB_COMPLETION_INDEX=str(number))))
        assert late.outcome()["reason"] == "PointCancelled"
    assert zombie.outcome()["reason"] == "PointCancelled"
    assert [code for code, _, _ in found] == [EXIT_TERMINAL] * 3
    await ground.check(1)


async def _shard(ground: _Ground, name: str, number: int) -> None:
    """Run a mover of one shard to its end."""
    code, _, log = await asyncio.to_thread(end, ground.pod(name).start(JOB_COMPLETION_INDEX=str(number)))
    assert code == 0, log
