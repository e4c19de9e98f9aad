"""One answer, against a scripted service: what is whole is delivered, and nothing else is."""

from __future__ import annotations

import pytest
from grpclib.const import Status

from orchestrator.cbt.stream import Snapshot, allocated, delta
from tests.cbt.server import BLOCK, FIXED, GIB, Act, Collected, Drop, Fail, Goaway, Once, Raw, Reset, say, world

SNAPSHOT = Snapshot("shop", "db-2")
BASE = "handle-1"


async def test_an_answer_is_delivered_and_its_evidence_kept() -> None:
    """Two messages, then OK, then a probe that brings nothing: the answer is whole."""
    sink = Collected()
    async with world([say((0, BLOCK), (BLOCK, BLOCK), kind=FIXED), say((1 << 20, BLOCK), kind=FIXED)]) as here:
        evidence = await delta(here.client, SNAPSHOT, BASE, size_bytes=GIB, sink=sink)
    assert sink.ranges == [(0, BLOCK), (BLOCK, BLOCK), (1 << 20, BLOCK)]
    first, probe = here.service.requests
    assert (first.namespace, first.target_snapshot_name, first.base_snapshot_id) == ("shop", "db-2", BASE)
    assert (first.starting_offset, first.max_results, first.security_token) == (0, 10_000, "secret-token-1")
    assert probe.starting_offset == (1 << 20) + BLOCK
    assert (evidence.block_type, evidence.capacity, evidence.messages, evidence.tuples) == (FIXED, GIB, 2, 3)
    assert (evidence.bytes_reported, evidence.last_end) == (3 * BLOCK, (1 << 20) + BLOCK)
    assert (evidence.resumes, evidence.probes, evidence.service_revision) == (0, 1, "uid-1/7")


@pytest.mark.parametrize(
    "cut", [Reset(), Drop(), Goaway(), Fail(Status.DEADLINE_EXCEEDED), Raw(b"\0\0\0\1\0abc", end=True)], ids=repr
)
async def test_a_cut_stream_is_resumed_at_the_last_end(cut: Act) -> None:
    """The call after the cut starts where the server's last range ended, and the union is whole."""
    sink = Collected()
    first = [say((0, BLOCK), (8 * BLOCK, BLOCK)), Once(sink.taken), cut]
    async with world(first, [say((20 * BLOCK, BLOCK))]) as here:
        evidence = await allocated(here.client, SNAPSHOT, size_bytes=GIB, sink=sink)
    assert sink.ranges == [(0, BLOCK), (8 * BLOCK, BLOCK), (20 * BLOCK, BLOCK)]
    assert here.service.offsets == [0, 9 * BLOCK, 21 * BLOCK]
    assert (evidence.resumes, evidence.probes, here.rechecks) == (1, 1, 1)
