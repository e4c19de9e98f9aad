"""kill -9 at any moment of a backup, then another pod: it carries on, and the point is whole."""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.repository.manifest import list_points, open_manifest
from tests.blocks.volumes import CHUNK, Volume, announce, give_back, take, vault_at
from tests.mover.movers import Pod, end

MIB = 1 << 20
SIZE = 160 * MIB + 4096


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory if the machine has one: these volumes are large enough to make several packs."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shutil.disk_usage(shared).free < 2 << 30:
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="tidemark-test-", dir=shared))
    yield folder
    shutil.rmtree(folder)


async def kill_and_continue(place: Path, seed: int, kills: int) -> None:
    # given a planned delta on a full point, with 120 MiB to read
    moments = random.Random(seed)
    volume = Volume(place / "volume", SIZE, seed)
    volume.noise(0, 8 * MIB)
    vault = await vault_at(place / "repository")
    url = f"file://{place / 'repository'}"
    full = await take(vault, volume.path, [(0, 8 * MIB)], mode="allocated", chunk_size=4 * CHUNK)
    volume.noise(4 * MIB, 140 * MIB)
    changes = [(4 * MIB, 140 * MIB)]
    intent_id = await announce(vault, volume.path, changes, mode="delta", base=full.ref, chunk_size=4 * CHUNK)
    killed = 0
    # when its mover is killed at random moments, the first one long before it can end
    for _ in range(kills):
        limit = 200 * MIB if killed else 40 * MIB
        process = Pod.make(place, vault, url, "backup", intent_id, volume.path, bandwidth_limit=limit).start()
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moments.uniform(0, 0.8))  # noqa: ASYNC251  # the moment of the kill is what is tested
        process.send_signal(signal.SIGKILL)
        killed += end(process)[0] == -signal.SIGKILL
        # then no half point is in the repository
        for key in [key async for key in list_points(vault)]:
            await open_manifest(vault, key)
    # and the last one completes, reading only what no killed one stored
    code, _, log = end(Pod.make(place, vault, url, "backup", intent_id, volume.path).start())
    assert code == 0, log
    assert killed
    keys = sorted([key async for key in list_points(vault)])
    assert len(keys) == 2
    _, ref = await open_manifest(vault, keys[-1])
    assert await give_back(vault, ref, place / "back") == volume.sha256()


@pytest.mark.system
async def test_a_backup_killed_at_several_moments_continues_and_comes_back_whole(place: Path) -> None:
    await kill_and_continue(place, seed=1, kills=4)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(20))
async def test_a_backup_killed_at_many_moments_continues_and_comes_back_whole(place: Path, seed: int) -> None:
    await kill_and_continue(place, seed=seed, kills=10)
