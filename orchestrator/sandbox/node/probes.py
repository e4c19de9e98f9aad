"""Ask a container whether it has started, lives and is ready, as a kubelet does.

Startup first, alone; then liveness and readiness side by side, each at its own period. `httpGet` and `tcpSocket` are
played; `exec` and `grpc` are refused by name before the pod starts. Nothing here ends a process: it says that it must
end, once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import aiohttp

from orchestrator.sandbox.objects import Manifest

KINDS = ("startupProbe", "livenessProbe", "readinessProbe")
_AGENT = "kube-probe/1.36"

Told = Callable[[str, bool], None]
"""Called with "started" or "ready", and whether it is."""
Unhealthy = Callable[[str, str], Awaitable[None]]
"""Called with the probe's kind and what was wrong, at every failure."""


def not_played(container: Manifest) -> str | None:
    """Return why a container's probes can't be played here, None if they can."""
    for kind in KINDS:
        probe = container.get(kind) or {}
        if probe and not (probe.get("httpGet") or probe.get("tcpSocket")):
            how = next((h for h in ("exec", "grpc") if probe.get(h)), "unknown")
            return (
                f'container "{container["name"]}" has a {kind} of kind {how}, which the sandbox\'s node does not play'
            )
    return None


def has_probes(container: Manifest) -> bool:
    """Return whether there is anything to ask."""
    return any(container.get(kind) for kind in KINDS)


async def watch(container: Manifest, address: str, told: Told, unhealthy: Unhealthy) -> str:
    """Probe until the container must be ended, and return why ("" if there is nothing more to ask)."""
    startup = container.get("startupProbe")
    if startup and not await _until_started(container, startup, address, unhealthy):
        return "startup"
    told("started", True)
    if not container.get("readinessProbe"):
        told("ready", True)
    async with asyncio.TaskGroup() as asking:
        if container.get("readinessProbe"):
            ready = _readiness(container, container["readinessProbe"], address, told, unhealthy)
            readiness = asking.create_task(ready, name="readiness probe")
        else:
            readiness = None
        if container.get("livenessProbe"):
            await _until_dead(container, container["livenessProbe"], address, unhealthy)
            if readiness is not None:
                readiness.cancel()
            return "liveness"
    return ""


async def _until_started(container: Manifest, probe: Manifest, address: str, unhealthy: Unhealthy) -> bool:
    """Return whether it started, False when it failed too often."""
    failures = 0
    await asyncio.sleep(probe.get("initialDelaySeconds") or 0)
    while True:
        wrong = await ask(container, probe, address)
        if wrong is None:
            return True
        failures += 1
        await unhealthy("Startup", wrong)
        if failures >= int(probe.get("failureThreshold") or 3):
            return False
        await asyncio.sleep(probe.get("periodSeconds") or 10)


async def _until_dead(container: Manifest, probe: Manifest, address: str, unhealthy: Unhealthy) -> None:
    failures = 0
    await asyncio.sleep(probe.get("initialDelaySeconds") or 0)
    while True:
        wrong = await ask(container, probe, address)
        failures = failures + 1 if wrong is not None else 0
        if wrong is not None:
            await unhealthy("Liveness", wrong)
        if failures >= int(probe.get("failureThreshold") or 3):
            return
        await asyncio.sleep(probe.get("periodSeconds") or 10)


async def _readiness(container: Manifest, probe: Manifest, address: str, told: Told, unhealthy: Unhealthy) -> None:
    good = bad = 0
    ready = False
    await asyncio.sleep(probe.get("initialDelaySeconds") or 0)
    while True:
        wrong = await ask(container, probe, address)
        good, bad = (good + 1, 0) if wrong is None else (0, bad + 1)
        if wrong is not None and ready:
            await unhealthy("Readiness", wrong)
        if not ready and good >= int(probe.get("successThreshold") or 1):
            ready = True
            told("ready", ready)
        elif ready and bad >= int(probe.get("failureThreshold") or 3):
            ready = False
            told("ready", ready)
        await asyncio.sleep(probe.get("periodSeconds") or 10)


async def ask(container: Manifest, probe: Manifest, address: str) -> str | None:
    """Ask once; return what was wrong, None if nothing."""
    limit_s = float(probe.get("timeoutSeconds") or 1)
    try:
        async with asyncio.timeout(limit_s):
            if probe.get("httpGet"):
                return await _http(container, probe["httpGet"], address)
            await _tcp(container, probe["tcpSocket"], address)
            return None
    except TimeoutError:
        return f"no answer within {limit_s:g} s"
    except (aiohttp.ClientError, OSError) as err:
        return str(err) or type(err).__name__


async def _http(container: Manifest, get: Manifest, address: str) -> str | None:
    scheme = str(get.get("scheme") or "HTTP").lower()
    host, path = get.get("host") or address, str(get.get("path") or "").lstrip("/")
    url = f"{scheme}://{host}:{port_of(container, get['port'])}/{path}"
    headers = {"User-Agent": _AGENT, **{h["name"]: h["value"] for h in get.get("httpHeaders") or []}}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(url, allow_redirects=False, ssl=False) as answer,
    ):
        if 200 <= answer.status < 400:
            return None
        body = (await answer.content.read(200)).decode(errors="replace")
        return f"HTTP probe failed with statuscode: {answer.status} {body}".strip()


async def _tcp(container: Manifest, socket: Manifest, address: str) -> None:
    _, writer = await asyncio.open_connection(socket.get("host") or address, port_of(container, socket["port"]))
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def port_of(container: Manifest, port: int | str) -> int:
    """Return a port that is named or numbered; 0, which nobody listens on, for a name that there isn't."""
    if isinstance(port, int):
        return port
    named = (p["containerPort"] for p in container.get("ports") or [] if p.get("name") == port)
    return int(next(named, 0))
