"""One answer, against a scripted service: what is whole is delivered, and nothing else is."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from grpclib.const import Status

from benchmarks.cbt_decode import CAPACITY, FIRST, STEP, encode
from orchestrator.cbt.errors import (
    BaseNotFound,
    CBTAuthFailed,
    CBTForbidden,
    ContractViolation,
    Exhausted,
    NotTracked,
    OutOfRange,
    RequestRefused,
    Rung,
    RungFailed,
    SnapshotGone,
    Unsupported,
)
from orchestrator.cbt.stream import Evidence, Settings, Snapshot, allocated, delta
from orchestrator.extents import Extents
from tests.cbt.server import (
    BLOCK,
    FIXED,
    GIB,
    Act,
    Collected,
    Drop,
    Fail,
    Goaway,
    Hang,
    Once,
    Raw,
    Request,
    Reset,
    Say,
    World,
    say,
    world,
)

SNAPSHOT = Snapshot("shop", "db-2")
BASE = "handle-1"


async def ask_delta(here: World, sink: Collected, size_bytes: int = GIB) -> Evidence:
    return await delta(here.client, SNAPSHOT, BASE, size_bytes=size_bytes, sink=sink)


async def ask_allocated(here: World, sink: Collected, size_bytes: int = GIB) -> Evidence:
    return await allocated(here.client, SNAPSHOT, size_bytes=size_bytes, sink=sink)


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


async def test_a_connection_dropped_inside_a_message_loses_nothing() -> None:
    sink = Collected()
    whole = say((20 * BLOCK, BLOCK)).data
    half = Raw(b"\0" + len(whole).to_bytes(4, "big") + whole[: len(whole) // 2])
    async with world([say((0, BLOCK)), Once(sink.taken), half, Drop()], [say((20 * BLOCK, BLOCK))]) as here:
        await ask_delta(here, sink)
        assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
    assert sink.ranges == [(0, BLOCK), (20 * BLOCK, BLOCK)]
    assert here.service.offsets[:2] == [0, BLOCK]


async def test_an_end_without_a_status_is_no_end() -> None:
    """X9: only trailers with status 0 end a stream."""
    sink = Collected()
    async with world([say((0, BLOCK)), Once(sink.taken), Raw(b"", end=True)], [say((20 * BLOCK, BLOCK))]) as here:
        evidence = await ask_delta(here, sink)
    assert sink.ranges == [(0, BLOCK), (20 * BLOCK, BLOCK)]
    assert evidence.resumes == 1


async def test_an_ok_after_a_message_that_never_came_is_no_end() -> None:
    """The length of a message, no message, and then a good status: something was lost on the way."""
    sink = Collected()
    script = [[say((0, BLOCK)), Once(sink.taken), Raw(b"\0\0\0\0\x09")], [say((20 * BLOCK, BLOCK))]]
    async with world(*script) as here:
        evidence = await ask_delta(here, sink)
    assert (sink.ranges, evidence.resumes) == ([(0, BLOCK), (20 * BLOCK, BLOCK)], 1)


async def test_a_silent_stream_is_given_up_and_resumed_over_a_new_connection() -> None:
    sink = Collected()
    settings = Settings(idle_timeout_s=0.2)
    async with world(
        [say((0, BLOCK)), Once(sink.taken), Hang()], [say((20 * BLOCK, BLOCK))], settings=settings
    ) as here:
        evidence = await ask_delta(here, sink)
    assert sink.ranges == [(0, BLOCK), (20 * BLOCK, BLOCK)]
    assert evidence.resumes == 1


async def test_no_deadline_and_no_token_travel_in_headers_and_http2_is_agreed_on() -> None:
    """R8: a deadline would reach the driver, which ends its scan with OK when it runs out. Without ALPN some fail."""
    sink = Collected()
    async with world([say((0, BLOCK))]) as here:
        await ask_delta(here, sink)
    for metadata in here.service.metadata:
        assert metadata["deadline"] == "None"
        assert metadata["alpn"] == "h2"
        assert "secret-token" not in str(metadata)


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_an_ok_that_came_too_early_is_found_out_by_the_probe() -> None:
    """R7: a driver that ran out of its own time ended with OK; the next call brings the rest."""
    sink = Collected()
    async with world([say((0, BLOCK))], [say((64 * BLOCK, BLOCK))]) as here:
        evidence = await ask_delta(here, sink)
    assert sink.ranges == [(0, BLOCK), (64 * BLOCK, BLOCK)]
    assert here.service.offsets == [0, BLOCK, 65 * BLOCK]
    assert (evidence.probes, evidence.resumes) == (2, 0)


def honest(ranges: Sequence[tuple[int, int]], page: int, cap: int = GIB) -> list[object]:
    """Return a script for many calls, each sending one page of the ranges that end after the starting offset."""

    def answer(request: Request) -> Sequence[Act]:
        rest = [r for r in ranges if r[0] + r[1] > request.starting_offset][:page]
        return [say(*rest, cap=cap)] if rest else []

    return [answer] * (len(ranges) + 2)


async def test_a_driver_that_pages_is_called_until_it_has_no_more() -> None:
    ranges = [(index * 2 * BLOCK, BLOCK) for index in range(25)]
    sink = Collected()
    async with world(*honest(ranges, page=4)) as here:  # type: ignore[arg-type]
        evidence = await ask_allocated(here, sink)
    assert sink.ranges == ranges
    assert (evidence.tuples, evidence.probes) == (25, 7)
    # Once it is known to page, bigger pages are asked for: sidecars serve few calls a second.
    assert [request.max_results for request in here.service.requests] == [10_000, 10_000, *[190_000] * 6]


async def test_a_trusted_driver_is_not_probed() -> None:
    sink = Collected()
    settings = Settings(whole_answers=frozenset({"block.csi.example.com"}))
    async with world([say((0, BLOCK))], settings=settings) as here:
        evidence = await ask_delta(here, sink)
    assert here.service.offsets == [0]
    assert evidence.probes == 0
    assert "no completeness probe" in evidence.notes[0]


async def test_an_answer_that_reaches_the_device_end_needs_no_probe() -> None:
    """R6: from the end on there is nothing to ask, and some drivers call that offset an error."""
    sink = Collected()
    async with world([say((GIB - BLOCK, BLOCK))]) as here:
        evidence = await ask_delta(here, sink)
    assert here.service.offsets == [0]
    assert evidence.last_end == GIB


async def test_a_stream_cut_after_the_last_byte_is_complete() -> None:
    sink = Collected()
    async with world([say((GIB - BLOCK, BLOCK)), Once(sink.taken), Drop()]) as here:
        evidence = await ask_delta(here, sink)
    assert (sink.ranges, evidence.resumes) == ([(GIB - BLOCK, BLOCK)], 0)


@pytest.mark.parametrize("empty", [[], [Say(b"")], [say()]], ids=["no message", "an empty message", "no ranges"])
async def test_an_empty_answer_is_an_answer(empty: Sequence[Act]) -> None:
    """Nothing allocated, nothing changed: valid, and nobody may conclude that the volume has 0 bytes."""
    sink = Collected()
    async with world(empty) as here:
        evidence = await ask_delta(here, sink)
    assert (sink.ranges, evidence.tuples, here.service.offsets) == ([], 0, [0])
    assert evidence.capacity in (None, GIB)


async def test_a_device_of_no_bytes_is_not_asked_about() -> None:
    sink = Collected()
    async with world() as here:
        evidence = await ask_allocated(here, sink, 0)
    assert (here.service.requests, evidence.block_type, evidence.capacity) == ([], None, None)


async def test_out_of_range_at_the_capacity_is_the_end() -> None:
    """The server's volume is smaller than the device: its end is an error for it, and the tail is for us to read."""
    sink, cap = Collected(), 16 * BLOCK
    script = [[say((0, BLOCK), (15 * BLOCK, BLOCK), cap=cap)], [Fail(Status.OUT_OF_RANGE, "beyond the volume")]]
    async with world(*script) as here:
        evidence = await ask_delta(here, sink, 20 * BLOCK)
    assert sink.ranges == [(0, BLOCK), (15 * BLOCK, BLOCK), (16 * BLOCK, 4 * BLOCK)]
    assert evidence.bytes_reported == 6 * BLOCK
    assert any("capacity" in note for note in evidence.notes)


async def test_the_tail_that_the_server_cannot_know_is_reported() -> None:
    """1.6: a capacity below the device's size means that the bytes beyond it are unknown, so they are read."""
    sink, cap = Collected(), 16 * BLOCK
    async with world([say((0, BLOCK), cap=cap)]) as here:
        await ask_delta(here, sink, 20 * BLOCK)
    assert sink.ranges == [(0, BLOCK), (16 * BLOCK, 4 * BLOCK)]


async def test_a_capacity_above_the_device_is_noted_and_ranges_are_clipped() -> None:
    sink = Collected()
    async with world([say((0, BLOCK), (10 * BLOCK, 10 * BLOCK), (30 * BLOCK, BLOCK))]) as here:
        evidence = await ask_delta(here, sink, 12 * BLOCK)
    assert sink.ranges == [(0, BLOCK), (10 * BLOCK, 2 * BLOCK)]
    assert (evidence.clipped, evidence.dropped) == (1, 1)
    assert any("capacity" in note for note in evidence.notes)


# --- what can't be believed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("acts", "rule"),
    [
        ([say((BLOCK, BLOCK), (0, BLOCK))], "X2"),
        ([say((0, 0))], "X1"),
        ([say((0, -4096))], "X1"),
        ([say((0, BLOCK), kind=0)], "X3"),
        ([say((0, BLOCK), kind=7)], "X3"),
        ([say((0, BLOCK)), say((BLOCK, BLOCK), cap=2 * GIB)], "X4"),
        ([say((0, BLOCK), (BLOCK, 2 * BLOCK), kind=FIXED)], "X5"),
        ([Say(b"\x1a\x05\x08")], "wire"),
        ([Raw(b"\x01\0\0\0\x08" + say((0, 0)).data[:8])], "wire"),
        ([Raw(b"\0\x7f\xff\xff\xff")], "X8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_violation_discards_everything_and_names_the_next_rung(acts: list[Act], rule: str) -> None:
    for ask, then in ((ask_delta, "allocated"), (ask_allocated, "full")):
        sink = Collected()
        async with world([say((0, BLOCK // 2)), *acts] if rule == "wire" else acts) as here:
            with pytest.raises(ContractViolation) as caught:
                await ask(here, sink)
        error = caught.value
        assert (error.id, error.driver, error.next_rung) == (rule, "block.csi.example.com", then)
        assert error.reason == "MetadataContractViolation"
        assert (sink.ranges, sink.resets) == ([], 1)
        assert len(here.service.requests) == 1


async def test_a_first_range_sent_again_on_resume_is_a_violation() -> None:
    """G6: no range of a resumed call ends at or before its starting offset."""
    sink = Collected()
    async with world([say((0, BLOCK)), Once(sink.taken), Reset()], [say((0, BLOCK), (BLOCK, BLOCK))]) as here:
        with pytest.raises(ContractViolation, match="X2"):
            await ask_delta(here, sink)
    assert sink.ranges == []


async def test_a_first_range_that_straddles_the_resume_point_is_clipped() -> None:
    sink = Collected()
    script = [[say((0, 1000)), Once(sink.taken), Reset()], [say((0, BLOCK), (2 * BLOCK, BLOCK))]]
    async with world(*script) as here:
        await ask_delta(here, sink)
    assert sink.ranges == [(0, 1000), (1000, BLOCK - 1000), (2 * BLOCK, BLOCK)]


async def test_another_capacity_after_a_resume_means_once_more_from_the_start() -> None:
    """R4: the two halves are not of one answer."""
    sink = Collected()
    script = [
        [say((0, BLOCK)), Once(sink.taken), Reset()],
        [say((BLOCK, BLOCK), cap=2 * GIB)],
        [say((0, 2 * BLOCK), cap=2 * GIB)],
    ]
    async with world(*script) as here:
        evidence = await ask_delta(here, sink)
    assert (sink.ranges, sink.resets) == ([(0, 2 * BLOCK)], 1)
    assert here.service.offsets == [0, BLOCK, 0, 2 * BLOCK]
    assert (evidence.capacity, evidence.tuples) == (2 * GIB, 1)


async def test_a_capacity_that_keeps_changing_is_a_violation() -> None:
    sink = Collected()
    caps = iter(range(GIB, 2 * GIB, BLOCK))
    async with world(*[lambda r: [say((r.starting_offset, BLOCK), cap=next(caps))]] * 9) as here:
        with pytest.raises(ContractViolation) as caught:
            await ask_delta(here, sink)
    assert (caught.value.id, sink.ranges) == ("R4", [])
    assert here.service.offsets == [0, BLOCK, 0, BLOCK]


async def test_out_of_range_in_the_middle_means_once_more_from_the_start_and_then_the_next_rung() -> None:
    sink = Collected()
    refuse = [Fail(Status.OUT_OF_RANGE)]
    async with world([say((0, BLOCK))], refuse, [say((0, BLOCK))], refuse) as here:
        with pytest.raises(OutOfRange) as caught:
            await ask_delta(here, sink)
    assert (caught.value.next_rung, sink.ranges) == ("allocated", [])
    assert here.service.offsets == [0, BLOCK, 0, BLOCK]


# --- failures with a code --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error", "after_delta", "after_allocated"),
    [
        (Status.INVALID_ARGUMENT, RequestRefused, "allocated", "full"),
        (Status.NOT_FOUND, BaseNotFound, "allocated", "full"),
        (Status.FAILED_PRECONDITION, NotTracked, "allocated", "full"),
        (Status.PERMISSION_DENIED, CBTForbidden, "allocated", "full"),
        (Status.UNIMPLEMENTED, Unsupported, "allocated", "full"),
        (Status.OUT_OF_RANGE, OutOfRange, "full", "full"),
        (Status.ALREADY_EXISTS, RungFailed, "allocated", "full"),
    ],
)
async def test_a_final_code_is_asked_once_and_becomes_its_error(
    status: Status, error: type[RungFailed], after_delta: Rung, after_allocated: Rung
) -> None:
    for ask, then in ((ask_delta, after_delta), (ask_allocated, after_allocated)):
        sink = Collected()
        async with world([Fail(status, "because")]) as here:
            with pytest.raises(error) as caught:
                await ask(here, sink)
        assert (caught.value.next_rung, caught.value.code) == (then, status.name)
        assert "because" in str(caught.value)
        assert (len(here.service.requests), sink.resets) == (1, 1)


async def test_what_is_forbidden_is_said_with_namespace_and_verb() -> None:
    async with world([Fail(Status.PERMISSION_DENIED)]) as here:
        with pytest.raises(CBTForbidden) as caught:
            await ask_delta(here, Collected())
    assert "get volumesnapshots.snapshot.storage.k8s.io in namespace shop" in str(caught.value)


async def test_an_unavailable_service_is_asked_again_with_growing_waits() -> None:
    """Nine failures are borne; each wait doubles up to half a minute, and the snapshot is looked at before each try."""
    sink = Collected()
    async with world(*[[Fail(Status.UNAVAILABLE)]] * 9, [say((0, BLOCK))]) as here:
        evidence = await ask_delta(here, sink)
    assert sink.ranges == [(0, BLOCK)]
    assert (evidence.resumes, here.rechecks) == (9, 9)
    waits = here.clock.waits[1:]
    assert all(0.5 * full <= wait <= full for wait, full in zip(waits, [1, 2, 4, 8, 16, 30, 30, 30, 30], strict=True))


@pytest.mark.parametrize(("status", "calls"), [(Status.UNAVAILABLE, 11), (Status.INTERNAL, 4), (Status.DATA_LOSS, 11)])
async def test_a_failure_that_stays_leads_to_the_next_rung(status: Status, calls: int) -> None:
    sink = Collected()
    async with world(*[[Fail(status, "still no")]] * 50) as here:
        with pytest.raises(Exhausted) as caught:
            await ask_delta(here, sink)
    assert (len(here.service.requests), caught.value.next_rung, caught.value.code) == (calls, "allocated", status.name)
    assert here.service.most_open == 1


async def test_failures_of_many_kinds_are_counted_together() -> None:
    sink = Collected()
    kinds = [Status.UNAVAILABLE, Status.ABORTED, Status.DATA_LOSS, Status.CANCELLED]
    async with world(*[[Fail(kind)] for kind in kinds * 9]) as here:
        with pytest.raises(Exhausted):
            await ask_delta(here, sink)
    assert len(here.service.requests) == 11


async def test_ten_minutes_without_progress_are_enough() -> None:
    """Waiting for readiness eats the time; the tries are not used up."""
    sink = Collected()
    async with world(*[[Fail(Status.UNAVAILABLE)]] * 50) as here:
        here.on_recheck = lambda: setattr(here.clock, "seconds", here.clock.seconds + 250)
        with pytest.raises(Exhausted):
            await ask_delta(here, sink)
    assert len(here.service.requests) == 4


async def test_progress_makes_patience_new() -> None:
    """Thirty failures in all, but a new range after every third: that stream is alive."""
    sink = Collected()
    script: list[Sequence[Act]] = []
    for index in range(10):
        script += [[Fail(Status.UNAVAILABLE)]] * 2
        script.append([say((index * BLOCK, BLOCK)), Fail(Status.INTERNAL)])
    async with world(*script) as here:
        await ask_delta(here, sink)
    assert sink.ranges == [(index * BLOCK, BLOCK) for index in range(10)]


async def test_a_snapshot_that_is_gone_ends_it() -> None:
    sink = Collected()

    def gone() -> None:
        raise SnapshotGone("snapshot shop/db-2 is being deleted")

    async with world([say((0, BLOCK)), Fail(Status.UNAVAILABLE)]) as here:
        here.on_recheck = gone
        with pytest.raises(SnapshotGone) as caught:
            await ask_delta(here, sink)
    assert (caught.value.next_rung, sink.ranges, len(here.service.requests)) == ("fail", [], 1)


async def test_an_unknown_snapshot_is_looked_up_before_the_full_read() -> None:
    """NOT_FOUND of an allocated call: the objects tell whether the snapshot is gone, or its source volume."""
    async with world([Fail(Status.NOT_FOUND)]) as here:
        with pytest.raises(BaseNotFound):
            await ask_allocated(here, Collected())
    assert here.rechecks == 1


async def test_a_message_too_big_for_the_sidecar_makes_the_next_smaller() -> None:
    sink = Collected()
    too_big = [Fail(Status.RESOURCE_EXHAUSTED, "received message larger than max")]
    async with world(too_big, too_big, too_big, [say((0, BLOCK))]) as here:
        await ask_delta(here, sink)
    assert [request.max_results for request in here.service.requests] == [10_000, 1_000, 100, 100, 100]


async def test_a_token_that_is_refused_in_the_middle_is_replaced() -> None:
    """The service object is read again, a new token minted, and the stream goes on where it was."""
    sink = Collected()
    async with world([say((0, BLOCK)), Fail(Status.UNAUTHENTICATED)], [say((8 * BLOCK, BLOCK))]) as here:
        await ask_delta(here, sink)
    assert sink.ranges == [(0, BLOCK), (8 * BLOCK, BLOCK)]
    tokens = [request.security_token for request in here.service.requests]
    assert tokens == ["secret-token-1", "secret-token-2", "secret-token-2"]
    assert here.rediscoveries == 1


async def test_a_token_that_is_refused_twice_is_an_authentication_failure() -> None:
    async with world(*[[Fail(Status.UNAUTHENTICATED, "who are you")]] * 5) as here:
        with pytest.raises(CBTAuthFailed) as caught:
            await ask_delta(here, Collected())
    assert (len(here.service.requests), caught.value.next_rung) == (2, "allocated")


async def test_a_token_about_to_die_is_not_used_for_a_resumed_call() -> None:
    """R5: the first call leaves 100 s of the token's life."""
    sink = Collected()
    async with world([say((0, BLOCK)), Once(sink.taken), Reset()], [say((8 * BLOCK, BLOCK))]) as here:
        here.tokens.ttl_s = 600
        here.on_recheck = lambda: setattr(here.clock, "seconds", 500.0)
        await ask_delta(here, sink)
    assert [request.security_token for request in here.service.requests][:2] == ["secret-token-1", "secret-token-2"]


async def test_a_server_that_repeats_our_token_does_not_get_it_into_an_error() -> None:
    async with world([Fail(Status.INVALID_ARGUMENT, "bad token secret-token-1\nfor you")]) as here:
        with pytest.raises(RequestRefused) as caught:
            await ask_delta(here, Collected())
    text = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caught.value.sentence()
    assert "secret-token" not in text
    error: BaseException | None = caught.value
    while error is not None:
        assert "secret-token" not in str(error)
        error = error.__cause__ or error.__context__


async def test_a_sidecar_that_reads_the_base_as_a_name_is_known_for_what_it_is() -> None:
    """T44: its UNAVAILABLE would otherwise be retried for minutes."""
    said = f"failed to get VolumeSnapshot 'shop/{BASE}': not found"
    async with world([Fail(Status.UNAVAILABLE, said)]) as here:
        with pytest.raises(Unsupported) as caught:
            await ask_delta(here, Collected())
    assert caught.value.next_rung == "allocated"


# --- much and many ---------------------------------------------------------------------------------------------------


async def test_a_message_of_a_million_ranges_leaves_the_loop_free() -> None:
    """It is decoded in a thread, and the loop turns between the slices that the sink gets; a small one needs none."""

    class Threads(ThreadPoolExecutor):
        used = 0

        def submit(self, *args: Any, **options: Any) -> Any:
            self.used += 1
            return super().submit(*args, **options)

    class Slices(Collected):
        def accept(self, extents: Extents) -> None:
            super().accept(extents)
            at_turn.append(turns)

    turns, at_turn = 0, list[int]()

    async def spin() -> None:
        nonlocal turns
        while len(at_turn) < 123:
            await asyncio.sleep(0)
            turns += 1

    with Threads(1) as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        for count, uses in ((1_000, 0), (1_000_000, 1)):
            at_turn.clear()
            sink = Slices()
            async with world([Say(encode(1 << 35, count))]) as here, asyncio.TaskGroup() as group:
                spinner, before = group.create_task(spin()), threads.used
                await allocated(here.client, SNAPSHOT, size_bytes=CAPACITY, sink=sink)
                spinner.cancel()
            assert len(sink.ranges) == count
            assert threads.used - before == uses
    assert len(at_turn) == 123
    assert all(turn < later for turn, later in pairwise(at_turn))


@pytest.mark.system
async def test_ten_million_ranges_are_streamed_and_never_gathered() -> None:
    class Counted(Collected):
        ranges_seen = 0
        last_end = 0
        biggest = 0

        def accept(self, extents: Extents) -> None:
            offsets, lengths = extents.offsets, extents.lengths
            assert int(offsets[0]) >= self.last_end
            self.last_end = int(offsets[-1] + lengths[-1])
            self.ranges_seen += len(offsets)
            self.biggest = max(self.biggest, len(offsets))

    per = 10_000
    messages = [Say(encode(FIRST + at * STEP, per)) for at in range(0, 10_000_000, per)]
    sink = Counted()
    async with world(messages) as here:
        evidence = await allocated(here.client, SNAPSHOT, size_bytes=CAPACITY, sink=sink)
    assert (evidence.tuples, sink.ranges_seen, evidence.messages) == (10_000_000, 10_000_000, 1000)
    assert sink.biggest <= 8 * 1024


async def test_only_two_streams_of_a_driver_run_at_once() -> None:
    """T43: six questions at the same time; the others wait here and not in the sidecar."""
    go = asyncio.Event()
    async with world(*[[say((0, BLOCK)), Once(go), say((BLOCK, BLOCK))]] * 6) as here:
        sinks = [Collected() for _ in range(6)]
        async with asyncio.TaskGroup() as group:
            for sink in sinks:
                group.create_task(ask_allocated(here, sink, 2 * BLOCK))
            await here.service.two_open.wait()
            for _ in range(500):  # the others would be there by now
                await asyncio.sleep(0)
            assert here.service.open_now == 2
            go.set()
    assert here.service.most_open == 2
    assert all(sink.ranges == [(0, BLOCK), (BLOCK, BLOCK)] for sink in sinks)


async def test_a_cancelled_question_ends_at_once_and_leaves_no_task() -> None:
    sink = Collected()
    async with world([say((0, BLOCK)), Hang()]) as here:
        question = asyncio.create_task(ask_delta(here, sink))
        await sink.taken.wait()
        question.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(question, 2)
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("call ")]


async def test_a_sink_that_fails_stops_the_stream_and_is_not_retried() -> None:
    class Full(Collected):
        def accept(self, extents: Extents) -> None:
            raise MemoryError

    async with world([say((0, BLOCK))]) as here:
        with pytest.raises(MemoryError):
            await ask_delta(here, Full())
    assert len(here.service.requests) == 1


def cutting(ranges: Sequence[tuple[int, int]], rng: Random) -> list[object]:
    """Return a script that sends what is asked for a few ranges at a time, halves some, and is cut in every way."""
    calls = 0

    def answer(request: Request) -> Sequence[Act]:
        nonlocal calls
        calls += 1
        rest = [r for r in ranges if r[0] + r[1] > request.starting_offset]
        acts: list[Act] = []
        for _ in range(rng.randrange(1, 4)):
            count = rng.randrange(1, 5)
            acts.append(say(*rest[:count]))
            rest = rest[count:]
        if rest and rest[0][1] > 1 and rest[0][0] + rest[0][1] // 2 > request.starting_offset:
            acts.append(say((rest[0][0], rest[0][1] // 2)))  # the next call shows the whole range, from before
        ends: list[list[Act]] = [[Reset()], [Drop()], [Fail(Status.ABORTED)], [Raw(b"\0\0\0\0\x09\x08", end=True)]]
        return acts if calls % 3 == 0 else acts + rng.choice(ends)

    return [answer] * 400


def covered(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the ranges with touching ones merged."""
    out: list[tuple[int, int]] = []
    for offset, length in ranges:
        if out and sum(out[-1]) == offset:
            out[-1] = (out[-1][0], out[-1][1] + length)
        else:
            out.append((offset, length))
    return out


@pytest.mark.parametrize("seed", range(12))
async def test_any_history_of_cuts_brings_every_byte_exactly_once(seed: int) -> None:
    """A server that pages, cuts and shows ranges again from before the starting offset; the union is what it holds."""
    rng = Random(seed)
    ranges, at = [], 0
    for _ in range(rng.randrange(1, 60)):
        at += rng.randrange(0, 5 * BLOCK)
        ranges.append((at, rng.randrange(1, 3 * BLOCK)))
        at += ranges[-1][1]
    sink = Collected()
    async with world(*cutting(ranges, rng)) as here:  # type: ignore[arg-type]
        await ask_allocated(here, sink)
    assert covered(sink.ranges) == covered(ranges)
    assert all(sum(before) <= after[0] for before, after in pairwise(sink.ranges))
