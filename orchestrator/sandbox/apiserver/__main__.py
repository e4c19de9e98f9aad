"""Run an API server alone: `python -m orchestrator.sandbox.apiserver --dir DIR [--port N]`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from orchestrator.sandbox.apiserver.server import ApiServer


async def _serve(directory: Path, port: int) -> None:
    server = ApiServer(directory, port=port)
    ready = asyncio.Event()
    serving = asyncio.ensure_future(server.run(ready))
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, serving.cancel)
    started = asyncio.ensure_future(ready.wait())
    await asyncio.wait({serving, started}, return_when=asyncio.FIRST_COMPLETED)
    if ready.is_set():
        path = directory / "kubeconfig"
        path.touch(mode=0o600)
        path.write_text(server.kubeconfig())
        sys.stdout.write(f"serving at {server.url}, KUBECONFIG={path}\n")
        sys.stdout.flush()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.sandbox.apiserver", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="where the cluster's state lives")
    parser.add_argument(
        "--port", type=int, default=0, help="port on 127.0.0.1; by default the last one, else a free one"
    )
    options = parser.parse_args()
    asyncio.run(_serve(options.dir, options.port))


if __name__ == "__main__":
    main()
