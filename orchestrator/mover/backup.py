"""`tidemark mover backup`: copy one shard of a planned point, and commit the point if it was the last shard."""

from __future__ import annotations

from typing import Literal

from orchestrator.api.mover import MoverConfig, MoverOutcome, Progress
from orchestrator.blocks.backup import Copied, CopyOptions, backup
from orchestrator.blocks.tally import Tallies
from orchestrator.mover.arguments import Arguments
from orchestrator.mover.report import Reporter, log
from orchestrator.mover.vault import opened_vault


async def run(config: MoverConfig, arguments: Arguments, reporter: Reporter) -> MoverOutcome:
    """Run the backup; its progress counts planned bytes."""
    tallies = Tallies()

    def look() -> Progress:
        total = tallies.sum()
        copied = bool(tallies.total_bytes) and total.done >= tallies.total_bytes
        stage: Literal["copying", "committing"] = "committing" if copied else "copying"
        return Progress(stage=stage, done=total.done, total=tallies.total_bytes, read=total.read, uploaded=total.stored)

    reporter.watch(look)
    options = CopyOptions(readers=config.readers, bandwidth_limit=config.bandwidth_limit, iops_limit=config.iops_limit)
    async with opened_vault(config) as vault:
        ended = await backup(
            vault, arguments.point, arguments.device, shard=arguments.shard, options=options, tallies=tallies
        )
    total = tallies.sum()
    point = ended.point if isinstance(ended, Copied) else ended
    uploaded = ended.shard.stats.uploaded if isinstance(ended, Copied) else 0
    log.info("read %d bytes, stored %d, of %d planned", total.read, uploaded, tallies.total_bytes)
    reporter.watch(
        lambda: Progress(
            stage="done", done=tallies.total_bytes, total=tallies.total_bytes, read=total.read, uploaded=uploaded
        )
    )
    return MoverOutcome(
        ok=True,
        manifest_key=point.key if point else "",
        manifest_digest=point.digest if point else "",
        read=total.read,
        uploaded=uploaded,
    )
