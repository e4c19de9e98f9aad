"""The house: up in order, down in order, and down as a whole when a part dies."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from orchestrator import app
from orchestrator.api.meta import ObjectMeta
from orchestrator.api.tidemark.backup_policy import BackupPolicy, BackupPolicySpec
from orchestrator.app.house import Health, House, Part, PartDied
from orchestrator.app.kinds import KINDS
from orchestrator.config import Settings
from orchestrator.controllers.base import Context, Controller, Key, Requeue
from orchestrator.errors import LeaseStale, Retryable, Terminal
from orchestrator.kube.errors import Unauthorized
from tests.kube.fakes import FakeApi, serving, write_kubeconfig
from tests.waiting import SHORT

SETTINGS = Settings(metrics_address="127.0.0.1:0", lease_duration_s=6, lease_renew_s=4, workers=2)


class Policies(Controller[BackupPolicy]):
    """Does nothing but note and, when told, wait."""

    name = "backup_policy"
    kind = BackupPolicy

    def __init__(self, context: Context, gate: asyncio.Event | None = None) -> None:
        super().__init__(context)
        self.begun = asyncio.Event()
        self.ended: list[Key] = []
        self.gate = gate

    async def reconcile(self, key: Key) -> Requeue | None:
        self.begun.set()
        if self.gate is not None:
            await self.gate.wait()
        found = self.cache.get(key[1], key[0])
        if found is not None:
            self.context.recorder.event(found, "Normal", "Seen", "it was seen")
        self.ended.append(key)
        return None


def policy(name: str = "p", namespace: str = "ns") -> dict[str, Any]:
    obj = BackupPolicy(metadata=ObjectMeta(name=name, namespace=namespace), spec=BackupPolicySpec())
    return obj.to_manifest()


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    """A scripted API server with what every cluster has."""
    async with serving(FakeApi()) as running:
        running.put({"metadata": {"name": "kube-system", "uid": "cluster-1"}}, "namespaces")
        yield running


@pytest.fixture
def kubeconfig(api: FakeApi, tmp_path: Path) -> str:
    return str(write_kubeconfig(tmp_path, api.url))


class Running:
    """A house that runs."""

    def __init__(self, kubeconfig: str, build: Callable[[Context], House], settings: Settings) -> None:
        self.stop = asyncio.Event()
        self.up: asyncio.Future[Health] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(
            app.run(settings, kubeconfig=kubeconfig, build=build, stop=self.stop, started=self.up.set_result)
        )

    async def health(self) -> Health:
        async with asyncio.timeout(SHORT):
            await asyncio.wait([self.task, self.up], return_when=asyncio.FIRST_COMPLETED)
            if self.task.done():
                await self.task
            return await self.up

    async def end(self) -> None:
        self.stop.set()
        async with asyncio.timeout(SHORT):
            await self.task


@asynccontextmanager
async def house(
    kubeconfig: str, build: Callable[[Context], House] = lambda _: House(), settings: Settings = SETTINGS
) -> AsyncIterator[Running]:
    running = Running(kubeconfig, build, settings)
    try:
        yield running
    finally:
        running.task.cancel()
        await asyncio.gather(running.task, return_exceptions=True)


async def test_it_comes_up_leads_works_serves_and_ends_clean(api: FakeApi, kubeconfig: str) -> None:
    api.put(policy(), "backuppolicies")
    made: list[Policies] = []

    def build(context: Context) -> House:
        assert context.cluster_id == "cluster-1"
        context.fence.check()
        made.append(Policies(context))
        return House(controllers=made)

    async with house(kubeconfig, build) as running:
        health = await running.health()
        await asyncio.wait_for(made[0].begun.wait(), SHORT)
        assert health.web is not None
        await health.web.started.wait()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{health.web.port}") as session:
            for path in ("/readyz", "/healthz", "/metrics", "/status.json", "/"):
                async with session.get(path) as response:
                    text = await response.text()
                    assert response.status == 200, (path, text)
            async with session.get("/status.json") as response:
                page = await response.json()
        assert page["leading"] is True
        assert [row["name"] for row in page["policies"]] == ["p"]
        await running.end()

    assert made[0].ended == [("ns", "p")]
    assert [event["reason"] for event in api.objects["events"].values()] == ["Seen"]
    assert api.objects["leases"]["tidemark-system", "tidemark-controller"]["spec"]["holderIdentity"] == ""


async def test_work_in_hand_is_finished_before_the_lease_is_given_back(api: FakeApi, kubeconfig: str) -> None:
    api.put(policy(), "backuppolicies")
    gate, made = asyncio.Event(), []

    def build(context: Context) -> House:
        made.append(Policies(context, gate))
        return House(controllers=made)

    async with house(kubeconfig, build) as running:
        health = await running.health()
        await asyncio.wait_for(made[0].begun.wait(), SHORT)
        running.stop.set()
        await api.until(lambda: api.count("PATCH", "leases") >= 2)
        lease = api.objects["leases"]["tidemark-system", "tidemark-controller"]
        assert lease["spec"]["holderIdentity"] != ""
        assert health.unready() == "stopping"
        gate.set()
        await asyncio.wait_for(running.task, SHORT)

    assert made[0].ended == [("ns", "p")]


async def test_a_second_controller_stands_by_ready_and_takes_over_when_the_first_ends(
    api: FakeApi, kubeconfig: str
) -> None:
    async with house(kubeconfig) as first:
        await first.health()
        async with house(kubeconfig) as second:
            await api.until(lambda: api.count("GET", "leases") >= 4)
            assert not second.up.done()
            await first.end()

            assert (await second.health()).leading
            await second.end()


async def test_without_leader_election_nothing_waits_for_a_lease(api: FakeApi, kubeconfig: str) -> None:
    alone = Settings(metrics_address="", leader_elect=False)
    async with house(kubeconfig, settings=alone) as running:
        health = await running.health()
        assert (health.lease, health.web) == (None, None)
        await running.end()

    assert "leases" not in api.objects


async def test_a_part_that_dies_takes_the_house_down_and_is_named(api: FakeApi, kubeconfig: str) -> None:
    async def die() -> None:
        raise RuntimeError("out of cheese")

    async with house(kubeconfig, lambda _: House(parts=[Part("timers", die)])) as running:
        with pytest.raises(PartDied, match="'timers' ended: out of cheese") as caught:
            await asyncio.wait_for(running.task, SHORT)

    assert isinstance(caught.value, Retryable)


async def test_a_part_that_just_returns_is_as_bad(api: FakeApi, kubeconfig: str) -> None:
    async def end() -> None:
        return

    async with house(kubeconfig, lambda _: House(parts=[Part("timers", end)])) as running:
        with pytest.raises(PartDied, match="'timers' ended: it returned"):
            await asyncio.wait_for(running.task, SHORT)


async def test_a_part_that_can_never_work_says_so_as_it_is(api: FakeApi, kubeconfig: str) -> None:
    taken = Settings(metrics_address="192.0.2.1:1", leader_elect=False)
    async with house(kubeconfig, settings=taken) as running:
        with pytest.raises(Terminal, match=r"192\.0\.2\.1"):
            await asyncio.wait_for(running.task, SHORT)


async def test_a_lost_lease_ends_the_house(api: FakeApi, kubeconfig: str) -> None:
    async with house(kubeconfig) as running:
        await running.health()
        lease = api.objects["leases"]["tidemark-system", "tidemark-controller"]
        thief = {"holderIdentity": "thief", "leaseDurationSeconds": 60}
        api.put({**lease, "spec": thief}, "leases")
        with pytest.raises(PartDied, match="thief"):
            await asyncio.wait_for(running.task, SHORT)

    assert lease["spec"]["holderIdentity"] != "thief"


async def test_a_controller_that_meets_a_stale_lease_ends_the_house(api: FakeApi, kubeconfig: str) -> None:
    api.put(policy(), "backuppolicies")

    class Stale(Policies):
        async def reconcile(self, key: Key) -> Requeue | None:
            raise LeaseStale("too old")

    async with house(kubeconfig, lambda context: House(controllers=[Stale(context)])) as running:
        with pytest.raises(PartDied, match="too old"):
            await asyncio.wait_for(running.task, SHORT)


async def test_told_to_stop_before_it_leads_it_just_ends(api: FakeApi, kubeconfig: str) -> None:
    other = {"holderIdentity": "other", "leaseDurationSeconds": 3600}
    api.put({"metadata": {"name": "tidemark-controller", "namespace": "tidemark-system"}, "spec": other}, "leases")
    async with house(kubeconfig) as running:
        await api.until(lambda: api.count("GET", "leases") >= 2)
        await running.end()

    lease = api.objects["leases"]["tidemark-system", "tidemark-controller"]
    assert lease["spec"]["holderIdentity"] == "other"


async def test_without_our_crds_it_is_not_ready_and_says_why(api: FakeApi, kubeconfig: str) -> None:
    api.missing.add("backuppolicies")
    async with house(kubeconfig) as running:
        await api.until(lambda: api.count("GET", "backuppolicies") >= 1 and api.count("GET", "leases") >= 1)
        assert not running.up.done()
        await running.end()


async def test_without_snapshot_crds_it_works_all_the_same(api: FakeApi, kubeconfig: str) -> None:
    api.missing |= {"volumesnapshots", "volumesnapshotcontents", "volumesnapshotclasses", "snapshotmetadataservices"}
    async with house(kubeconfig) as running:
        health = await running.health()
        assert health.unready() is None
        await running.end()


async def test_an_api_server_that_does_not_know_us_is_a_clear_error(api: FakeApi, tmp_path: Path) -> None:
    path = str(write_kubeconfig(tmp_path, api.url, token="wrong"))
    with pytest.raises(Unauthorized):
        await app.run(SETTINGS, kubeconfig=path)


async def test_the_command_ends_with_0_on_sigterm(api: FakeApi, kubeconfig: str) -> None:
    root = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "orchestrator",
        "controller",
        "--metrics-address=127.0.0.1:0",
        "--lease-duration=6",
        cwd=root,
        env={**os.environ, "KUBECONFIG": kubeconfig, "POD_NAMESPACE": "elsewhere"},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    lines: list[str] = []
    try:
        async with asyncio.timeout(SHORT):
            while "tidemark is running" not in "".join(lines):
                line = await process.stderr.readline()
                assert line, "".join(lines)
                lines.append(line.decode())
            assert api.objects["leases"]["elsewhere", "tidemark-controller"]["spec"]["holderIdentity"]
            process.send_signal(signal.SIGTERM)
            rest = (await process.stderr.read()).decode()
            assert await process.wait() == 0, rest
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert api.objects["leases"]["elsewhere", "tidemark-controller"]["spec"]["holderIdentity"] == ""
    assert "Traceback" not in "".join(lines) + rest


@pytest.mark.quick
def test_every_kind_has_one_row_and_only_ours_are_needed() -> None:
    kinds = [row.kind for row in KINDS]

    assert len(kinds) == len(set(kinds))
    assert all(not row.optional for row in KINDS if row.kind.RESOURCE.group == "tidemark.dev")
    assert all(row.kind.RESOURCE.plural != "secrets" for row in KINDS), "Secrets never lie in a cache"
