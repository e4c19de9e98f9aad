"""Bandwidth limits hold, in virtual time."""

from __future__ import annotations

import threading

import pytest

from orchestrator.blocks.throttle import Throttle

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
