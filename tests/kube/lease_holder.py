"""A process that holds a lease and says whether it may write: `lease_holder.py KUBECONFIG DURATION RENEW`.

It checks only when told to (a line on stdin), so that what is printed after a SIGCONT is the very first check.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

from orchestrator.errors import LeaseStale
from orchestrator.kube.lease import Lease


async def main(kubeconfig: str, duration_s: float, renew_s: float) -> None:
    lease = Lease(namespace="ns", name="l", kubeconfig=kubeconfig, duration_s=duration_s, renew_s=renew_s)
    holding = asyncio.create_task(lease.run())
    await asyncio.wait([holding, asyncio.create_task(lease.acquired.wait())], return_when=asyncio.FIRST_COMPLETED)
    print("holding", flush=True)
    while (line := await asyncio.to_thread(sys.stdin.readline)).strip() == "check":
        try:
            lease.check()
            print("fresh", flush=True)
        except LeaseStale:
            print("stale", flush=True)
            await asyncio.wait([holding], timeout=10)  # the loss itself ends run()
    if not holding.done():
        holding.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        try:
            await holding
        except LeaseStale:
            print("lost", flush=True)
            sys.exit(3)
    print(f"ended {line.strip()}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
