"""The cluster as a whole: its directory is its memory, and nothing outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import sys
import threading
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from orchestrator.sandbox.api import Api
from orchestrator.sandbox.cluster import DirectoryInUse, Sandbox
from orchestrator.sandbox.kinds import JOB, POD
from orchestrator.sandbox.node.kubelet import Kubelet
from orchestrator.sandbox.objects import name, status, uid
from tests.sandbox.cluster.fixtures import allow_default_account
from tests.sandbox.cluster.world import MIB, World
from tests.waiting import SHORT

pytestmark = pytest.mark.system


async def test_a_restart_on_the_same_directory_finds_everything_and_fails_what_ran(tmp_path: Path) -> None:
    # given: a volume, a snapshot, a running pod, and the sandbox ends
    async with Sandbox(tmp_path) as first, Api.from_file(first.kubeconfig) as api:
        await allow_default_account(api)
        world = World(api)
        claim = await world.claim("lives")
        with (await world.image(claim)).open("r+b") as file:
            file.write(b"x" * MIB)
        before = await world.snapshot("lives", "lives")
        job = await world.job("runs", "echo $$$$; exec sleep 60", backoffLimit=0)
        async with asyncio.timeout(SHORT):
            while not any(status(pod).get("phase") == "Running" for pod in await world.pods("runs")):
                await asyncio.sleep(0.02)
        [pod] = await world.pods("runs")
        log = tmp_path / "data" / "pods" / uid(pod) / "logs" / "main.log"
        async with asyncio.timeout(SHORT):
            while not log.read_text().strip():
                await asyncio.sleep(0.02)
        pid = int(log.read_text())
    async with asyncio.timeout(SHORT):
        while alive(pid):
            await asyncio.sleep(0.02)
    # when: it starts again
    async with Sandbox(tmp_path) as second, Api.from_file(second.kubeconfig) as api:
        world = World(api)
        # then: the snapshot still answers, a new one can be cut, and the pod is Failed
        assert (await world.allocated("lives")).blocks == set(range(16))
        after = await world.snapshot("again", "lives")
        assert (await world.delta(await world.handle(before), "again")).ranges == []
        assert uid(before) != uid(after)
        done = await world.finished(job)
        assert status(done)["failed"] == 1
        held = await world.api.get(POD, name(pod), "default")
        assert status(held)["phase"] == "Failed"
        assert await api.list(JOB, "default")


async def test_two_sandboxes_on_one_directory_are_refused(tmp_path: Path) -> None:
    async with Sandbox(tmp_path):
        with pytest.raises(DirectoryInUse, match="Another sandbox runs on"):
            await Sandbox(tmp_path).run()


async def test_the_command_says_when_it_is_ready_and_ends_clean_and_a_killed_one_leaves_no_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "orchestrator", "sandbox"]

    async def start() -> asyncio.subprocess.Process:
        made = await asyncio.create_subprocess_exec(
            *command, "--dir", str(tmp_path), stdout=asyncio.subprocess.PIPE, env={**os.environ, "KUBECONFIG": ""}
        )
        assert made.stdout is not None
        line = await asyncio.wait_for(made.stdout.readline(), SHORT)
        assert line.decode().strip() == f"The sandbox is ready: export KUBECONFIG={tmp_path}/kubeconfig"
        return made

    # given: a sandbox that is killed while a pod runs
    process = await start()
    assert stat.S_IMODE((tmp_path / "kubeconfig").stat().st_mode) == 0o600
    async with Api.from_file(tmp_path / "kubeconfig") as api:
        world = World(api)
        claim = await world.claim("cli")
        await world.job("sleeps", "echo $$$$; exec sleep 60", claims={"cli": "cli"}, backoffLimit=0)
        async with asyncio.timeout(SHORT):
            pods = tmp_path / "data" / "pods"
            while not list(pods.glob("*/processes.json")) or not _said(pods):
                await asyncio.sleep(0.02)
        image = await world.image(claim)
        assert await asyncio.to_thread(main, ["sandbox", "path", "cli", "--dir", str(tmp_path)]) == 0
        assert capsys.readouterr().out == f"{image}\n"
    process.send_signal(signal.SIGKILL)
    await process.wait()
    pid = int(_said(pods))
    assert alive(pid)
    # when: it is started again, it ends what was left, and itself on SIGTERM
    process = await start()
    process.terminate()
    assert await asyncio.wait_for(process.wait(), SHORT) == 0
    async with asyncio.timeout(SHORT):  # it was killed; a busy machine takes its time to be rid of it
        while alive(pid):
            await asyncio.sleep(0.02)


async def test_what_an_earlier_life_left_is_ended_before_the_sandbox_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()
    end_leftovers = Kubelet.end_leftovers

    def slow(self: Kubelet) -> None:
        begun.set()
        go.wait(SHORT)
        end_leftovers(self)

    monkeypatch.setattr(Kubelet, "end_leftovers", slow)
    sandbox = Sandbox(tmp_path)
    running = asyncio.create_task(sandbox.run())
    try:
        assert await asyncio.to_thread(begun.wait, SHORT)
        await asyncio.sleep(0.1)
        assert not sandbox.ready.is_set()
        go.set()
        await asyncio.wait_for(sandbox.ready.wait(), SHORT)
    finally:
        go.set()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


def _said(pods: Path) -> str:
    """Return what the only pod said so far."""
    return "".join(log.read_text() for log in pods.glob("*/logs/main.log"))


def alive(pid: int) -> bool:
    """Return whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
