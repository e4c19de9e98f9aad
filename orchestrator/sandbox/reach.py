"""Reach into a running sandbox from outside: the file behind a claim, the process behind a pod.

The command line loads this and not `cluster`, whose API server takes seconds to import.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

from orchestrator.errors import Terminal
from orchestrator.sandbox.api import Api, NotFound
from orchestrator.sandbox.kinds import PERSISTENT_VOLUME, PERSISTENT_VOLUME_CLAIM, POD
from orchestrator.sandbox.node.process import kill_recorded
from orchestrator.sandbox.objects import Manifest, spec, uid


class NoSuchVolume(Terminal):
    """The claim has no volume of the sandbox behind it."""

    reason: ClassVar[str] = "NoSuchVolume"


class NoSuchPod(Terminal):
    """The pod is not there, or nothing of it runs."""

    reason: ClassVar[str] = "NoSuchPod"


async def kill_pod(api: Api, directory: Path, pod: str, namespace: str) -> list[str]:
    """Kill the processes of a pod of the sandbox on `directory`. Raises NoSuchPod."""
    try:
        held = await api.get(POD, pod, namespace)
    except NotFound as err:
        raise NoSuchPod(f"There is no pod {pod} in namespace {namespace}") from err
    hit = await asyncio.to_thread(kill_recorded, directory / "data" / "pods" / uid(held))
    if not hit:
        raise NoSuchPod(f"Pod {namespace}/{pod} has no process of the sandbox on {directory} that runs")
    return hit


async def volume_path(api: Api, claim: str, namespace: str) -> Path:
    """Return the file behind a claim. Raises NoSuchVolume."""
    try:
        held = await api.get(PERSISTENT_VOLUME_CLAIM, claim, namespace)
    except NotFound as err:
        raise NoSuchVolume(f"There is no PVC {claim} in namespace {namespace}") from err
    bound = spec(held).get("volumeName")
    if not bound:
        raise NoSuchVolume(f"PVC {namespace}/{claim} is not bound to a volume yet")
    volume: Manifest = await api.get(PERSISTENT_VOLUME, bound)
    path = ((spec(volume).get("csi") or {}).get("volumeAttributes") or {}).get("path")
    if not path:
        raise NoSuchVolume(f"PVC {namespace}/{claim} is not a volume of the sandbox")
    return Path(path)
