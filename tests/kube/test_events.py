"""Events: counted, limited, and never anybody's problem."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from orchestrator.api.meta import ObjectMeta
from orchestrator.clock import SystemClock
from orchestrator.errors import LeaseStale
from orchestrator.kube.client import Client
from orchestrator.kube.events import BURST, PENDING, Recorder
from tests.kube.fakes import FakeApi, Widget

OBJ = Widget(metadata=ObjectMeta(name="w", namespace="ns", uid="u1", resource_version="7"))


def written(api: FakeApi) -> list[dict[str, Any]]:
    return list(api.objects.get("events", {}).values())


@asynccontextmanager
async def running(recorder: Recorder) -> AsyncIterator[None]:
    task = asyncio.create_task(recorder.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_an_event_says_what_happened_to_which_object(api: FakeApi, client: Client) -> None:
    recorder = Recorder(client, SystemClock(), instance="pod-1")
    recorder.event(OBJ, "Warning", "SnapshotFailed", "the driver said no")
    await recorder.drain()

    (event,) = written(api)
    assert event["involvedObject"] == {
        "apiVersion": "test.dev/v1",
        "kind": "Widget",
        "namespace": "ns",
        "name": "w",
        "uid": "u1",
        "resourceVersion": "7",
    }
    assert (event["type"], event["reason"], event["message"]) == ("Warning", "SnapshotFailed", "the driver said no")
    assert event["reportingInstance"] == "pod-1"
    assert event["metadata"]["namespace"] == "ns"


async def test_equal_events_count_up_in_one_object(api: FakeApi, client: Client) -> None:
    recorder = Recorder(client, SystemClock())
    async with running(recorder):
        for _ in range(3):
            recorder.event(OBJ, "Normal", "Copied", "done")
        await api.until(lambda: len(written(api)) == 1)
        for _ in range(2):
            recorder.event(OBJ, "Normal", "Copied", "done")
        await api.until(lambda: api.count("PATCH", "events") == 1)
        await recorder.drain()

    assert [event["count"] for event in written(api)] == [5]


async def test_an_event_that_expired_on_the_server_is_made_anew(api: FakeApi, client: Client) -> None:
    recorder = Recorder(client, SystemClock())
    recorder.event(OBJ, "Normal", "Copied", "done")
    await recorder.drain()
    api.objects["events"].clear()
    recorder.event(OBJ, "Normal", "Copied", "done")
    await recorder.drain()

    assert [event["count"] for event in written(api)] == [1]


async def test_an_event_of_a_cluster_scoped_object_lies_in_default(api: FakeApi, client: Client) -> None:
    recorder = Recorder(client, SystemClock())
    recorder.event(Widget(metadata=ObjectMeta(name="w", uid="u2")), "Normal", "Ready", "yes")
    await recorder.drain()

    assert next(iter(api.objects["events"]))[0] == "default"


async def test_one_noisy_object_is_limited_and_the_others_are_heard(api: FakeApi, client: Client) -> None:
    recorder = Recorder(client, SystemClock())
    for number in range(BURST * 2):
        recorder.event(OBJ, "Normal", "Noise", f"message {number}")
    recorder.event(Widget(metadata=ObjectMeta(name="quiet", namespace="ns", uid="u9")), "Normal", "Ready", "yes")
    await recorder.drain(5)

    reasons = [event["reason"] for event in written(api)]
    assert reasons.count("Noise") == BURST
    assert reasons.count("Ready") == 1
    assert recorder.dropped == BURST


async def test_a_refusing_server_and_a_full_queue_harm_nobody(api: FakeApi, client: Client) -> None:
    recorder = Recorder(client, SystemClock())
    api.fail("POST", "events", 403, "Forbidden", times=1)
    api.hang_up("POST", "events", times=1)
    recorder.event(OBJ, "Normal", "A", "1")
    recorder.event(OBJ, "Normal", "B", "2")
    recorder.event(OBJ, "Normal", "C", "3")
    await recorder.drain()
    assert [event["reason"] for event in written(api)] == ["C"]

    for number in range(PENDING + 5):
        recorder.event(OBJ, "Normal", "Flood", str(number))
    assert recorder.dropped == 2 + 5


async def test_a_message_is_bounded_and_holds_no_token(api: FakeApi, client: Client) -> None:
    recorder = Recorder(client, SystemClock())
    recorder.event(OBJ, "Warning", "Odd", "Bearer abc.def " + "x" * 5000)
    await recorder.drain()

    (event,) = written(api)
    assert len(event["message"]) <= 1024
    assert "abc.def" not in event["message"]


async def test_a_stale_lease_ends_the_recorder(api: FakeApi, client: Client) -> None:
    class Closed:
        def check(self) -> None:
            raise LeaseStale("too old")

    client.fence = Closed()
    recorder = Recorder(client, SystemClock())
    recorder.event(OBJ, "Normal", "A", "1")

    with pytest.raises(LeaseStale):
        await asyncio.wait_for(recorder.run(), 2)
