"""`tidemark mover verify`: prove what one namespace holds, write down what is damaged, and leave the result."""

from __future__ import annotations

from orchestrator.api.mover import MoverConfig, MoverOutcome, Progress
from orchestrator.blocks.throttle import pace_of
from orchestrator.clock import SystemClock
from orchestrator.mover.arguments import Arguments
from orchestrator.mover.report import Reporter, log
from orchestrator.mover.vault import opened_vault
from orchestrator.repository.verified import put_result, result_of
from orchestrator.repository.verify import Depth, verify

LOGGED = 1000
"""Damaged objects that the log names."""


async def run(config: MoverConfig, arguments: Arguments, reporter: Reporter) -> MoverOutcome:
    """Run one verification at the depth that the configuration asks for."""
    state = [0, 0]
    reporter.watch(lambda: Progress(stage="verifying", done=state[0], total=state[1]))

    def note(done: int, total: int) -> None:
        state[:] = done, total

    depth: Depth = "quick" if config.sample <= 0 else "full" if config.sample >= 1 else config.sample
    clock = SystemClock()
    begun = clock.now()
    async with opened_vault(config) as vault:
        pace = pace_of(config.bandwidth_limit, config.iops_limit)
        report = await verify(vault, depth=depth, turn=config.turn, progress=note, clock=clock, pace=pace)
        if config.run:
            result = result_of(report, begun=begun, ended=clock.now(), share=config.sample)
            await put_result(vault, config.run, result)
    for finding in report.findings[:LOGGED]:
        log.error("%s: %s; hurts %d points", finding.key, finding.what, len(finding.points))
    if len(report.findings) > LOGGED:
        log.error("%d more damaged objects", len(report.findings) - LOGGED)
    if report.read_again:
        told = "%d objects came wrong and, read again, right: the store or the way to it is ill, they aren't; first: %s"
        log.warning(told, len(report.read_again), report.read_again[0])
    reporter.watch(lambda: Progress(stage="done", done=state[1], total=state[1]))
    what = f"{report.points} points, {report.pages} pages, {report.chunks} chunks"
    if report.ok:
        return MoverOutcome(ok=True, message=what, read=report.bytes_read)
    first = report.findings[0]
    return MoverOutcome(
        ok=False,
        reason="Damaged",
        message=f"{len(report.findings)} damaged objects in {what}; first: {first.key}: {first.what}",
        read=report.bytes_read,
    )
