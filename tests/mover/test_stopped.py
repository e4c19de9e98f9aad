"""Movers that are stopped for longer than anybody waits, and maintenance that is killed over and over."""

from __future__ import annotations

import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.fence import OpenFence
from orchestrator.repository.maintenance import plan_sweep, sweep, usage
from orchestrator.repository.manifest import list_points, open_manifest
from orchestrator.repository.point import remove
from orchestrator.repository.verify import verify
from tests.blocks.volumes import CHUNK, Volume, announce, give_back, take, vault_at
from tests.mover.movers import Pod, end

MIB = 1 << 20
pytestmark = pytest.mark.system


async def test_a_mover_stopped_past_the_retry_wakes_and_there_is_one_good_point(tmp_path: Path) -> None:
    # given a mover that was stopped in mid-copy
    volume = Volume(tmp_path / "volume", 64 * MIB + 4096)
    volume.noise(0, 8 * MIB)
    vault = await vault_at(tmp_path / "repository")
    url = f"file://{tmp_path / 'repository'}"
    full = await take(vault, volume.path, [(0, 8 * MIB)], mode="allocated", chunk_size=4 * CHUNK)
    volume.noise(4 * MIB, 48 * MIB)
    ranges = [(4 * MIB, 48 * MIB)]
    intent_id = await announce(vault, volume.path, ranges, mode="delta", base=full.ref, chunk_size=4 * CHUNK)
    slow = Pod.make(tmp_path, vault, url, "backup", intent_id, volume.path, bandwidth_limit=24 * MIB)
    stopped = slow.start()
    assert stopped.stdout is not None
    stopped.stdout.readline()
    stopped.send_signal(signal.SIGSTOP)
    # when another one does the work, and maintenance runs twice with no grace at all
    folder = tmp_path / "second"
    folder.mkdir()
    code, _, log = end(Pod.make(folder, vault, url, "backup", intent_id, volume.path).start())
    assert code == 0, log
    now = datetime.now(UTC)
    for later in (timedelta(days=1), timedelta(days=2)):
        age = timedelta(days=30)
        await sweep(vault, await plan_sweep(vault, now=now + later, grace=timedelta(0), intent_age=age), OpenFence())
    # and the first one wakes
    stopped.send_signal(signal.SIGCONT)
    code, _, log = end(stopped)
    # then it ends well, and there is one point of that intent, whole
    assert code == 0, log
    keys = sorted([key async for key in list_points(vault)])
    assert len(keys) == 2
    _, ref = await open_manifest(vault, keys[-1])
    assert slow.outcome()["manifestDigest"] == ref.digest
    assert await give_back(vault, ref, tmp_path / "back") == volume.sha256()
    assert (await verify(vault, depth="full")).ok


async def test_maintenance_killed_at_many_moments_goes_on_and_takes_only_what_is_dead(tmp_path: Path) -> None:
    # given six points of which four were removed
    volume = Volume(tmp_path / "volume", 16 * MIB)
    vault = await vault_at(tmp_path / "repository")
    url = f"file://{tmp_path / 'repository'}"
    points, contents = [], []
    for number in range(6):
        volume.noise(number * MIB, 4 * MIB)
        points.append(await take(vault, volume.path))
        contents.append(volume.sha256())
    for point in points[:4]:
        await remove(vault, point.ref, OpenFence())
    before = (await usage(vault)).bytes
    pod = Pod.make(tmp_path, vault, url, "maintain", vault.namespace_id, volume.path, grace_s=0.0)
    # when maintenance is killed six times, ever later, and then runs to its end as often as it takes
    killed = 0
    for number in [*range(6)] * 10:  # a busy machine may kill too late, and not only once
        if killed and number == 0:
            break
        process = pod.start()
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(number * 0.03)  # noqa: ASYNC251  # the moment of the kill is what is tested
        process.send_signal(signal.SIGKILL)
        killed += end(process)[0] == -signal.SIGKILL
    assert killed
    for _ in range(2):
        code, _, log = end(pod.start())
        assert code == 0, log
    # then what is dead is gone, and what lives is whole
    assert (await usage(vault)).bytes < before * 0.6
    for number in (4, 5):
        back = tmp_path / f"back-{number}"
        assert await give_back(vault, points[number], back) == contents[number]
    assert (await verify(vault, depth="full")).ok
