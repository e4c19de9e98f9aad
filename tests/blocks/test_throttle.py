"""Limits of bandwidth and of operations hold: in virtual time, and once for real."""

from __future__ import annotations

import threading
import time as clock

import pytest

from orchestrator.blocks.throttle import Throttle, operations_of

pytestmark = pytest.mark.quick
MIB = 1 << 20


class VirtualTime:
    def __init__(self) -> None:
        self.now = 100.0

    def clock(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("piece", [4096, 256 * 1024, 4 * MIB])
def test_a_limit_holds_within_ten_percent_whatever_the_size_of_the_pieces(piece: int) -> None:
    # given a limit of 10 MiB/s
    time = VirtualTime()
    throttle = Throttle(10 * MIB, clock=time.clock, wait=time.wait)
    # when 100 MiB pass
    start, passed = time.now, 0
    while passed < 100 * MIB:
        throttle.take(piece)
        passed += piece
    # then it took 10 s, give or take a tenth
    assert (time.now - start) == pytest.approx(10.0, rel=0.1)


@pytest.mark.parametrize("piece", [4096, 256 * 1024, 4 * MIB])
def test_a_limit_of_operations_holds_whatever_their_size(piece: int) -> None:
    """A read of more than 256 KiB in a row counts as several."""
    # given a limit of 100 operations a second
    time = VirtualTime()
    throttle = Throttle(None, 100, clock=time.clock, wait=time.wait)
    # when 1,000 operations pass
    start, passed = time.now, 0
    while passed < 1000:
        throttle.take(piece)
        passed += operations_of(piece)
    # then it took 10 s, give or take a tenth
    assert (time.now - start) == pytest.approx(10.0, rel=0.1)


def test_of_two_limits_the_tighter_one_counts() -> None:
    for rate, operations, expected in ((MIB, 1000, 10.0), (1000 * MIB, 16, 10.0)):
        time = VirtualTime()
        throttle = Throttle(rate, operations, clock=time.clock, wait=time.wait)
        start = time.now
        for _ in range(160):
            throttle.take(64 * 1024)
        assert (time.now - start) == pytest.approx(expected, rel=0.1)


def test_readers_share_one_limit_for_real() -> None:
    """However many threads there are. An upper bound only above the limit's own time: a busy machine may be late."""
    # given four readers under one limit of 400 operations a second
    throttle = Throttle(None, 400)
    started = clock.monotonic()

    def read() -> None:
        for _ in range(100):
            throttle.take(4096)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    # then 400 operations take a second, less the burst saved up
    assert clock.monotonic() - started >= 0.7


def test_an_idle_hour_saves_up_no_more_than_a_short_burst() -> None:
    # given a limiter that was idle for an hour
    time = VirtualTime()
    throttle = Throttle(10 * MIB, clock=time.clock, wait=time.wait)
    throttle.take(MIB)
    time.now += 3600
    # when 50 MiB pass after it
    start = time.now
    for _ in range(50):
        throttle.take(MIB)
    # then they still take five seconds
    assert (time.now - start) == pytest.approx(5.0, rel=0.1)


def test_no_limit_never_waits() -> None:
    time = VirtualTime()
    throttle = Throttle(None, clock=time.clock, wait=time.wait)
    assert throttle.take(1 << 40) == 0.0
    assert time.now == 100.0


def test_a_stop_ends_the_sleep_of_a_waiting_reader() -> None:
    # given a reader that would have to wait for minutes
    stop = threading.Event()
    throttle = Throttle(1024, wait=stop.wait)
    throttle.take(MIB)
    done = threading.Event()

    def read() -> None:
        throttle.take(MIB)
        done.set()

    reader = threading.Thread(target=read)
    reader.start()
    # when it is told to stop
    stop.set()
    # then it ends at once
    assert done.wait(5)
    reader.join()


def test_a_limit_that_would_never_finish_is_refused() -> None:
    with pytest.raises(ValueError, match="never finish"):
        Throttle(0)
    with pytest.raises(ValueError, match="never finish"):
        Throttle(None, 0)
