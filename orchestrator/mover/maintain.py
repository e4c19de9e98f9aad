"""`tidemark mover maintain`: sweep what nothing in one namespace reaches any more, compact what is mostly dead."""

from __future__ import annotations

from datetime import timedelta

from orchestrator.api.mover import MoverConfig, MoverOutcome, Progress
from orchestrator.clock import SystemClock
from orchestrator.fence import OpenFence
from orchestrator.mover.arguments import Arguments
from orchestrator.mover.report import Reporter, log
from orchestrator.mover.vault import opened_vault
from orchestrator.repository.maintenance import plan_sweep, sweep


async def run(config: MoverConfig, arguments: Arguments, reporter: Reporter) -> MoverOutcome:
    """Run one sweep. It needs no lease: whatever runs at the same time can't be harmed (docs/repository-format.md)."""
    reporter.watch(lambda: Progress(stage="sweeping"))
    reporter.tell()
    async with opened_vault(config) as vault:
        plan = await plan_sweep(
            vault,
            now=SystemClock().now(),
            grace=timedelta(seconds=config.grace_s),
            intent_age=timedelta(seconds=config.intent_age_s),
        )
        log.info("%s", plan.sentence())
        reporter.watch(lambda: Progress(stage="sweeping", total=plan.deletion_bytes))
        result = await sweep(vault, plan, OpenFence())
        if config.lock_retention_s:
            # Imported here: most repositories have no lock.
            from orchestrator.repository.lockrenewal import renew_if_due

            renewal = await renew_if_due(vault, OpenFence(), now=SystemClock().now())
            if renewal is not None:
                log.info("renewed the lock of %d objects until %s", renewal.objects, renewal.until.isoformat())
    reporter.watch(lambda: Progress(stage="done", done=result.deleted_bytes, total=plan.deletion_bytes))
    return MoverOutcome(
        ok=True,
        message=f"deleted {result.deleted_objects} objects with {result.deleted_bytes} bytes; "
        f"{result.candidates} more wait out the grace time; {result.cancelled_intents} old intents ended; "
        f"{result.compacted.packs} packs compacted into {result.compacted.written} bytes",
    )
