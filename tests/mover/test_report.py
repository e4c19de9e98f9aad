"""Progress: at once, at most every five seconds, never the same twice, and no trouble when nobody reads."""

from __future__ import annotations

import asyncio
import io
import json

import pytest

from orchestrator.api.mover import Progress
from orchestrator.mover.report import Reporter

pytestmark = pytest.mark.quick


@pytest.mark.looptime
async def test_progress_comes_at_most_every_five_seconds() -> None:
    # given work that moves on all the time
    out = io.StringIO()
    reporter = Reporter(out)
    loop = asyncio.get_running_loop()
    reporter.watch(lambda: Progress(stage="copying", done=int(loop.time() * 1000), total=100_000))
    # when a minute passes
    reporter.tell()
    task = asyncio.create_task(reporter.run())
    await asyncio.sleep(60.5)
    task.cancel()
    # then there are the first line and twelve more, each further on
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(lines) == 13
    done = [line.get("done", 0) for line in lines]
    assert done == sorted(set(done))


def test_nothing_new_is_not_said_again() -> None:
    out = io.StringIO()
    reporter = Reporter(out)
    reporter.tell(Progress(stage="copying", done=1))
    reporter.tell(Progress(stage="copying", done=1))
    assert len(out.getvalue().splitlines()) == 1


def test_a_reader_that_went_away_does_not_stop_the_copy() -> None:
    out = io.StringIO()
    out.close()
    Reporter(out).tell(Progress(stage="copying"))
