"""Run one part as a program: a client of a kubeconfig, one TaskGroup, a clean end on SIGTERM and SIGINT."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from pathlib import Path

from orchestrator.sandbox.api import Api
from orchestrator.sandbox.roles import Part


def run_part(kubeconfig: Path, make: Callable[[Api], Part]) -> None:
    """Run the part that `make` builds until a signal ends it; print one line when it is ready."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(_run(kubeconfig, make))


async def _run(kubeconfig: Path, make: Callable[[Api], Part]) -> None:
    async with Api.from_file(kubeconfig) as api:
        part = make(api)
        running = asyncio.create_task(part.run(), name=part.name)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, running.cancel)
        announcing = asyncio.create_task(_announce(part))
        try:
            await running
        except asyncio.CancelledError:
            return
        finally:
            announcing.cancel()


async def _announce(part: Part) -> None:
    await part.ready.wait()
    print(f"{part.name} is ready", flush=True)  # noqa: T201 - the one line a person or a script waits for
