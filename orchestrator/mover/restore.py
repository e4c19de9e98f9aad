"""`tidemark mover restore`: fill the prime volume with a point, and read it back."""

from __future__ import annotations

import asyncio

from orchestrator.api.mover import MoverConfig, MoverOutcome, Progress
from orchestrator.blocks.readback import read_back
from orchestrator.blocks.restore import RestoreOptions, write_point
from orchestrator.blocks.tally import Tallies
from orchestrator.blocks.target import Target
from orchestrator.mover.arguments import Arguments
from orchestrator.mover.report import Reporter
from orchestrator.mover.vault import opened_vault
from orchestrator.repository.manifest import open_manifest


async def run(config: MoverConfig, arguments: Arguments, reporter: Reporter) -> MoverOutcome:
    """Run the restore; its progress counts bytes of the volume."""
    async with opened_vault(config) as vault:
        manifest, ref = await open_manifest(vault, config.manifest_key, digest=config.manifest_digest or None)
        size = manifest.root.volume_size
        writing, checking = Tallies(), Tallies()

        def look_writing() -> Progress:
            return Progress(stage="copying", done=writing.sum().done, total=size)

        def look_checking() -> Progress:
            return Progress(stage="verifying", done=checking.sum().done, total=size)

        reporter.watch(look_writing)
        device = arguments.device
        with await asyncio.to_thread(Target.open, device, size, known_zero=config.target_known_zero) as target:
            options = RestoreOptions(
                writers=config.readers, bandwidth_limit=config.bandwidth_limit, iops_limit=config.iops_limit
            )
            total = await write_point(vault, manifest, target, options, writing)
        sha256 = ""
        if config.read_back or config.sha256:
            reporter.watch(look_checking)
            sha256 = await read_back(
                vault,
                manifest,
                str(device),
                known_zero=config.target_known_zero,
                readers=config.readers,
                sha256=config.sha256,
                tallies=checking,
            )
    reporter.watch(lambda: Progress(stage="done", done=size, total=size))
    return MoverOutcome(
        ok=True,
        manifest_key=ref.key,
        manifest_digest=ref.digest,
        sha256=sha256,
        read=total.fetched,
        written=total.written,
    )
