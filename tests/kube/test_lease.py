"""The lease: one holder, none that is too old, also after a freeze."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import LeaseStale
from orchestrator.kube.lease import Lease, LeaseObject
from tests.kube.fakes import FakeApi, Fault, write_kubeconfig
from tests.waiting import LONG, SHORT


def lease_of(api: FakeApi) -> dict[str, Any]:
    spec: dict[str, Any] = api.objects["leases"]["ns", "l"]["spec"]
    return spec


@pytest.fixture
def kubeconfig(api: FakeApi, tmp_path: Path) -> str:
    return str(write_kubeconfig(tmp_path, api.url))


def make(kubeconfig: str, duration_s: float = 3.0, renew_s: float = 1.0, **more: Any) -> Lease:
    return Lease(namespace="ns", name="l", kubeconfig=kubeconfig, duration_s=duration_s, renew_s=renew_s, **more)


@asynccontextmanager
async def holding(lease: Lease) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(lease.run())
    waiting = asyncio.create_task(lease.acquired.wait())
    async with asyncio.timeout(LONG):
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def renewals(api: FakeApi, count: int) -> None:
    before = api.count("PATCH", "leases/l")
    await api.until(lambda: api.count("PATCH", "leases/l") >= before + count)


async def test_holding_it_lets_writes_through_and_giving_it_back_lets_the_next_one_in(
    api: FakeApi, kubeconfig: str
) -> None:
    first, second = (make(kubeconfig, duration_s=20, renew_s=5) for _ in range(2))
    with pytest.raises(LeaseStale):
        first.check()
    async with holding(first):
        first.check()
        await renewals(api, 2)
        first.check()
        spec = lease_of(api)
        assert spec["holderIdentity"] == first.identity
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", spec["renewTime"])

    assert lease_of(api)["holderIdentity"] == ""
    with pytest.raises(LeaseStale):
        first.check()
    async with holding(second):
        second.check()
        assert lease_of(api)["leaseTransitions"] == 1


async def test_a_second_one_waits_as_long_as_the_first_renews_and_takes_over_when_it_stops(
    api: FakeApi, kubeconfig: str
) -> None:
    other = {
        "metadata": {"name": "l", "namespace": "ns"},
        # A holder whose clock is years off: only that the record moves counts.
        "spec": {"holderIdentity": "other", "leaseDurationSeconds": 1, "renewTime": "2001-01-01T00:00:00.000000Z"},
    }
    api.put(other, "leases")
    lease = make(kubeconfig, renew_s=0.5)
    task = asyncio.create_task(lease.run())
    for _ in range(12):
        before = api.count("GET", "leases/l")
        await api.until(lambda before=before: api.count("GET", "leases/l") > before)
        api.put(other, "leases")
    assert not lease.acquired.is_set()

    async with asyncio.timeout(SHORT):
        await lease.acquired.wait()

    assert lease_of(api)["holderIdentity"] == lease.identity
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_an_unreachable_server_makes_it_stale_before_another_could_take_over(
    api: FakeApi, kubeconfig: str
) -> None:
    lease = make(kubeconfig, duration_s=20, renew_s=4)
    async with holding(lease) as task:
        api.hang_up("PATCH", "leases", times=10**6)
        started = time.monotonic()
        with pytest.raises(LeaseStale):
            await asyncio.wait_for(task, SHORT)

        assert time.monotonic() - started < 18, "the lease itself lasts 20 s"
        with pytest.raises(LeaseStale):
            lease.check()


async def test_a_renewal_whose_answer_was_lost_costs_nothing(api: FakeApi, kubeconfig: str) -> None:
    lease = make(kubeconfig, duration_s=20, renew_s=5)
    async with holding(lease) as task:
        # The write happens, and then somebody labels the lease: our version is out of date both times.
        api.put({**api.objects["leases"]["ns", "l"]}, "leases")
        await renewals(api, 3)
        lease.check()
        assert not task.done()


async def test_one_whose_lease_was_taken_ends_at_the_next_renewal(api: FakeApi, kubeconfig: str) -> None:
    lease = make(kubeconfig)
    async with holding(lease) as task:
        stolen = {**api.objects["leases"]["ns", "l"], "spec": {"holderIdentity": "thief", "leaseDurationSeconds": 9}}
        api.put(stolen, "leases")
        with pytest.raises(LeaseStale, match="thief"):
            await asyncio.wait_for(task, SHORT)

    assert lease_of(api)["holderIdentity"] == "thief", "it is not given back by who does not have it"


async def test_a_blocked_loop_does_not_lose_it(api: FakeApi, kubeconfig: str) -> None:
    # The scripted server lives on this very loop, so it stands still too; the lease's own thread must only hold out.
    lease = make(kubeconfig, duration_s=20, renew_s=5)
    async with holding(lease) as task:
        time.sleep(1)  # noqa: ASYNC251 - blocking is the test
        await renewals(api, 1)
        lease.check()
        assert not task.done()


async def test_the_age_counts_from_before_the_renewal_was_sent(api: FakeApi, kubeconfig: str) -> None:
    now = [1000.0]
    lease = make(kubeconfig, elapsed=lambda: now[0])

    async def answer_late(request: Any) -> Any:
        now[0] += 0.9
        return await api._normal(request, await request.json())

    async with holding(lease):
        api.faults.append(Fault("PATCH", "leases", 1, answer_late))
        api.slow("PATCH", "leases", 5)
        await renewals(api, 2)

        assert lease.age_s == pytest.approx(0.9)


async def test_too_late_once_is_too_late_for_ever(api: FakeApi, kubeconfig: str) -> None:
    now = [1000.0]
    lease = make(kubeconfig, elapsed=lambda: now[0])
    async with holding(lease):
        now[0] += 0.99
        lease.check()
        now[0] += 0.02
        with pytest.raises(LeaseStale):
            lease.check()
        now[0] -= 1
        with pytest.raises(LeaseStale):
            lease.check()


async def test_frozen_for_longer_than_the_lease_it_refuses_at_the_first_check(api: FakeApi, kubeconfig: str) -> None:
    """The proof of control-plane rule 6, with a lease of 3 s, and a SIGSTOP until another has it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("lease_holder.py")),
        kubeconfig,
        "3",
        "2",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdin is not None
    assert process.stdout is not None

    async def ask() -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"check\n")
        return (await process.stdout.readline()).decode().strip()

    try:
        async with asyncio.timeout(LONG):
            assert (await process.stdout.readline()).strip() == b"holding"
            assert await ask() == "fresh"
            process.send_signal(signal.SIGSTOP)
            async with holding(make(kubeconfig, duration_s=20, renew_s=15)) as taken:
                assert lease_of(api)["leaseTransitions"] == 1
                process.send_signal(signal.SIGCONT)
                assert await ask() == "stale"
                process.stdin.close()
                assert (await process.stdout.readline()).strip() == b"lost"
                assert await process.wait() == 3
                assert not taken.done()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_a_deadline_that_is_no_shorter_than_the_lease_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Lease(namespace="ns", duration_s=10, renew_s=10)


def test_the_lease_object_is_the_one_that_other_tools_know() -> None:
    assert LeaseObject.RESOURCE.path("ns", "l") == "/apis/coordination.k8s.io/v1/namespaces/ns/leases/l"
