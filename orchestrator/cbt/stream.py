"""Get one whole, lawful answer out of a metadata service: resume what is cut, prove that the end is the end, or fail.

    call -> messages -> decode -> checks -> sink -> the resume point moves
      ended OK  -> the last end reaches the device's end, or a further call from there says "nothing": complete
      failed    -> `codes.judge`: repeat from the resume point, begin again once, or raise the error that names the rung

The resume point is always 0 or the end of a range that the server itself reported: at any other offset a driver was
seen to lose a change. The sink has a range before the resume point passes it. An OK is not believed by itself: drivers
were seen to end with OK on a page limit, on their own deadline, and on a cancel.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from orchestrator.cbt.checks import Checks
from orchestrator.cbt.client import MOST_RESULTS, Client, Question, Settings
from orchestrator.cbt.codec import decode
from orchestrator.cbt.codes import ALLOCATED, DELTA, Code, Failure, Kind, Verdict, backoff_s, explain, judge
from orchestrator.cbt.errors import ContractViolation, Exhausted, Rung, RungFailed, Unsupported
from orchestrator.errors import TidemarkError
from orchestrator.extents import Extents

__all__ = ["Client", "Evidence", "Settings", "Sink", "Snapshot", "allocated", "delta"]

_IN_THREAD_BYTES = 160 * 1024
"""A message above this (some 12,000 ranges) would hold the loop for more than a millisecond or two."""
_BATCH = 8 * 1024
"""Ranges handed to the sink without letting the loop run."""
_MANY_OUTSIDE = 64
_MOST_NOTES = 16
_LEAST_RESULTS = 100
_USUAL_RESULTS = 10_000
_MOST_CALLS = 500_000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The VolumeSnapshot whose data will be read."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why the answer is believed to be whole. Offsets and sizes in bytes.

    `block_type` and `capacity` are None if no message came (nothing allocated, nothing changed). Messages, tuples and
    bytes are those of the accepted pass; resumes and probes count all of them. `clipped` and `dropped` are ranges that
    reached past the device or lay outside it.
    """

    block_type: int | None
    capacity: int | None
    messages: int
    tuples: int
    bytes_reported: int
    last_end: int
    resumes: int
    probes: int
    clipped: int
    dropped: int
    notes: tuple[str, ...]
    service_revision: str


class Sink(Protocol):
    """What takes the ranges."""

    def accept(self, extents: Extents) -> None:
        """Take a batch: ascending over all batches since the last reset, inside the device. Must not block the loop."""

    def reset(self) -> None:
        """Forget every batch: the answer begins again, or has failed."""


async def delta(client: Client, snapshot: Snapshot, base_id: str, *, size_bytes: int, sink: Sink) -> Evidence:
    """Feed `sink` what changed between the base (the storage system's id, verbatim) and `snapshot`.

    `size_bytes` is the size of the device made from the snapshot: ranges are clipped to it. If the server's volume is
    smaller, the tail that it can't know is reported too. The caller adds what the volume grew since the base, and must
    have made sure that base and snapshot are of one volume, in that order, and not the same.

    Raises RungFailed (see its `next_rung`) or SnapshotGone, after a reset of the sink.
    """
    if not base_id:
        raise ValueError("a delta needs a base id")
    question = Question(DELTA, snapshot.namespace, snapshot.name, base_id)
    return await _Answer(client, question, size_bytes, sink).complete()


async def allocated(client: Client, snapshot: Snapshot, *, size_bytes: int, sink: Sink) -> Evidence:
    """Feed `sink` the ranges of `snapshot` that were ever written; sizes and errors as for `delta`."""
    question = Question(ALLOCATED, snapshot.namespace, snapshot.name)
    return await _Answer(client, question, size_bytes, sink).complete()


class _BeginAgain(Exception):
    """What came can't be joined to what came before."""

    def __init__(self, error: RungFailed) -> None:
        super().__init__(str(error))
        self.error = error


class _Answer:
    """One question, asked in as many calls as it takes."""

    def __init__(self, client: Client, question: Question, size_bytes: int, sink: Sink) -> None:
        if size_bytes < 0:
            raise ValueError("a device has no negative size")
        self.client = client
        self.question = question
        self.size_bytes = size_bytes
        self.sink = sink
        self.down: Rung = "allocated" if question.method == DELTA else "full"
        self.max_results = client.settings.max_results
        self.begun_again = self.after_ok = self.shrunk = False
        self.fresh_token = False
        self.secret = ""
        self.calls = self.resumes = self.probes = 0
        self.notes: dict[str, None] = {}
        self._start_over()
        self._progressed()

    def _start_over(self) -> None:
        self.at = 0  # the resume point (R1, R2)
        self.block_type: int | None = None
        self.capacity: int | None = None
        self.messages = self.tuples = self.bytes = self.clipped = self.dropped = 0
        self.smallest = self.size_bytes or 1

    def _progressed(self) -> None:
        self.failures: dict[str, int] = {}
        self.progress_at = self.client.clock.monotonic()

    async def complete(self) -> Evidence:
        """Ask until the answer is whole."""
        client = self.client
        await client.sleep(client.random.uniform(0, client.settings.start_jitter_s))
        try:
            while self.at < self.size_bytes:  # R6: from the end on there is nothing to ask
                if await self._one_call():
                    break
            self._add_tail()
        except ContractViolation as error:
            self.sink.reset()
            raise error.at(client.driver, self.question.method, self.down) from None
        except TidemarkError:
            self.sink.reset()
            raise
        return self._evidence()

    async def _one_call(self) -> bool:
        """Make one call from the resume point; return True if the answer is whole."""
        self.calls += 1
        if self.calls > _MOST_CALLS:
            raise self._failed(Exhausted, f"{_MOST_CALLS} calls")
        began_at, before = self.at, self.tuples
        try:
            failure = await self._listen()
        except _BeginAgain as again:
            self._begin_again(again.error)
            return False
        if self.tuples > before:
            self._progressed()
        if failure is None:
            return self._ended_well(empty=self.tuples == before)
        return await self._ended_badly(failure, began_at)

    async def _listen(self) -> Failure | None:
        """Take in one stream: decode, check, hand over, and only then move the resume point (R1)."""
        client = self.client
        checks = Checks(client.driver, start=self.at, size_bytes=self.size_bytes, max_results=self.max_results)
        earlier = (self.messages, self.tuples, self.clipped, self.dropped)
        fresh, self.fresh_token = self.fresh_token, False
        async with client.call(self.question, offset=self.at, max_results=self.max_results, fresh_token=fresh) as (
            call,
            self.secret,
        ):
            async for data in call:
                if len(data) > _IN_THREAD_BYTES:
                    extents = await asyncio.to_thread(_judged, checks, data)
                else:
                    extents = _judged(checks, data)
                self._compare(checks)
                await self._hand_over(extents)
                self._count(checks, earlier)
        if checks.oversized:
            self._note("X7: a message had more ranges than asked for")
        return call.failure

    def _compare(self, checks: Checks) -> None:
        """Hold R4: all calls of one answer show the same type and capacity."""
        if checks.block_type is None:
            return
        seen = (checks.block_type, checks.capacity)
        if self.block_type is None:
            self.block_type, self.capacity = seen
        elif seen != (self.block_type, self.capacity):
            rule = "type and capacity are the same in every call of one answer"
            detail = f"type and capacity {seen} after {(self.block_type, self.capacity)}"
            raise _BeginAgain(ContractViolation(self.client.driver, "R4", rule, detail))

    async def _hand_over(self, extents: Extents) -> None:
        for first in range(0, len(extents), _BATCH):
            await asyncio.sleep(0)
            part = slice(first, first + _BATCH)
            self.sink.accept(Extents(extents.offsets[part], extents.lengths[part]))
        self.bytes += extents.total_bytes

    def _count(self, checks: Checks, earlier: tuple[int, int, int, int]) -> None:
        messages, tuples, clipped, dropped = earlier
        self.messages = messages + checks.messages
        self.tuples = tuples + checks.tuples
        self.clipped = clipped + checks.clipped
        self.dropped = dropped + checks.dropped
        self.smallest = min(self.smallest, checks.smallest)
        self.at = checks.last_end

    def _ended_well(self, *, empty: bool) -> bool:
        """Judge an OK. It is believed if nothing more can come, or if a call from here already brought nothing (R7)."""
        if empty or self.at >= self.size_bytes:
            return True
        if self.client.driver in self.client.settings.whole_answers:
            self._note("no completeness probe: the driver is trusted to end with OK only when it is done")
            return True
        if self.after_ok and not self.shrunk and 0 < self.max_results < MOST_RESULTS:
            # The server pages. At 1.6 calls a second, pages had better be big.
            self.max_results = MOST_RESULTS
            self._note(f"the server pages: {MOST_RESULTS} ranges asked for at a time")
        self.after_ok = True
        self.probes += 1
        if self.probes > self.size_bytes // self.smallest + 2:
            rule = "a further call brings ranges or nothing"
            raise ContractViolation(self.client.driver, "R7", rule, f"{self.probes} calls and no end")
        return False

    async def _ended_badly(self, failure: Failure, began_at: int) -> bool:
        """Repeat, begin again or give up; return True if the answer is whole all the same."""
        if self.at >= self.size_bytes:
            self._note(f"{failure.name} after the last byte was covered")
            return True
        if failure.code is Code.OUT_OF_RANGE and self.capacity is not None and 0 < self.capacity <= began_at:
            return True  # R6
        if failure.kind is Kind.OVERSIZE:
            raise ContractViolation(self.client.driver, "X8", "a message is not too big", failure.message)
        if failure.kind is Kind.GARBLED:
            raise ContractViolation(self.client.driver, "wire", "a response is a gRPC message", failure.message)
        if self._reads_the_base_as_a_name(failure):
            raise self._failed(Unsupported, "the sidecar takes the base id for a name: it is older than release 0.2")
        settings = self.client.settings
        verdict = judge(failure, self.question.method, offset=began_at, tries=settings.tries)
        self.failures[failure.name] = self.failures.get(failure.name, 0) + 1
        stuck_s = self.client.clock.monotonic() - self.progress_at
        if (
            self.failures[failure.name] > verdict.retries
            or sum(self.failures.values()) > settings.tries
            or stuck_s > settings.stuck_s
        ):
            await self._give_up(failure, verdict)
        else:
            await self._prepare_retry(verdict)
        return False

    def _reads_the_base_as_a_name(self, failure: Failure) -> bool:
        """Know a sidecar of the first release, in which the base's field held the name of a VolumeSnapshot (T44)."""
        asked = self.question
        return (
            failure.code is Code.UNAVAILABLE
            and asked.method == DELTA
            and asked.base_id != asked.name
            and "VolumeSnapshot" in failure.message
            and f"{asked.namespace}/{asked.base_id}" in failure.message
        )

    async def _prepare_retry(self, verdict: Verdict) -> None:
        client = self.client
        self.resumes += 1
        if verdict.wait:
            await client.sleep(backoff_s(sum(self.failures.values()), client.random.random()))
        if verdict.shrink:
            self.shrunk = True
            self.max_results = max(_LEAST_RESULTS, (self.max_results or _USUAL_RESULTS) // 10)
            self._note(f"fewer ranges per message: {self.max_results}")
        if verdict.rediscover:
            await client.rediscover()
        if verdict.recheck:
            await client.recheck()
        self.fresh_token = verdict.fresh_token

    async def _give_up(self, failure: Failure, verdict: Verdict) -> None:
        """Raise what the caller acts on, or begin again if that was not done yet."""
        then = self.down if verdict.then == "restart" else verdict.then
        asked = self.question
        error = explain(failure, self.client.driver, asked.method, asked.namespace, then, self.secret)
        if verdict.then == "restart":
            self._begin_again(error)
            return
        if verdict.recheck and verdict.retries == 0:
            await self.client.recheck()
        raise error

    def _begin_again(self, error: RungFailed) -> None:
        if self.begun_again:
            raise error
        self.begun_again = True
        self.resumes += 1
        self._note(f"begun again from 0: {error}")
        self.sink.reset()
        self._start_over()
        self._progressed()

    def _failed(self, kind: type[RungFailed], said: str) -> RungFailed:
        return kind(self.client.driver, self.question.method, self.down, said)

    def _add_tail(self) -> None:
        """Report what the server can't know: the device's bytes beyond the volume's capacity (1.6)."""
        if self.dropped >= _MANY_OUTSIDE:
            self._note(f"capacity mismatch: {self.dropped} ranges outside the device")
        if self.capacity is None or self.capacity == self.size_bytes:
            return
        self._note(f"the server's capacity is {self.capacity}, the device has {self.size_bytes}")
        start = max(self.capacity, self.at)
        if start < self.size_bytes:
            tail = Extents(np.array([start], dtype=np.int64), np.array([self.size_bytes - start], dtype=np.int64))
            self.sink.accept(tail)
            self.bytes += tail.total_bytes

    def _note(self, text: str) -> None:
        if len(self.notes) < _MOST_NOTES:
            self.notes[text] = None

    def _evidence(self) -> Evidence:
        return Evidence(
            block_type=self.block_type,
            capacity=self.capacity,
            messages=self.messages,
            tuples=self.tuples,
            bytes_reported=self.bytes,
            last_end=self.at,
            resumes=self.resumes,
            probes=self.probes,
            clipped=self.clipped,
            dropped=self.dropped,
            notes=tuple(self.notes),
            service_revision=self.client.service.revision,
        )


def _judged(checks: Checks, data: bytes) -> Extents:
    """Decode and check one message."""
    return checks.accept(decode(data, checks.driver), len(data))
