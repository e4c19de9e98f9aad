"""What a node knows of one pod while it lives, and how that reads in the pod's status. No I/O but making folders."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from orchestrator.sandbox.node.probes import has_probes
from orchestrator.sandbox.node.process import ContainerProcess
from orchestrator.sandbox.objects import Key, Manifest, spec, timestamp, uid

_RESTART_FIRST_S = 1.0
_RESTART_LAST_S = 60.0


class PodState:
    """Containers of one pod: running, ended, still to start."""

    def __init__(self, at: Key, pod: Manifest) -> None:
        self.key = at
        self.uid = uid(pod)
        self.prepared = False
        self.broken = False
        self.asked_to_end = False
        self.volumes: dict[str, Path] = {}
        self.environments: dict[str, dict[str, str]] = {}
        self.running: dict[str, ContainerProcess] = {}
        self.states: dict[str, Manifest] = {}
        self.restarts: dict[str, int] = {}
        self.started_up: set[str] = set()
        """Containers whose startup probe has succeeded, or that have none."""
        self.ready: set[str] = set()
        self.renew_at: dict[str, float] = {}
        """When (monotonic) which volume must be filled anew."""
        self._last: dict[str, Manifest] = {}
        self._due: dict[str, float] = {}
        self._grace_from: float | None = None
        # As pods on a network of their own have: two programs of one port don't meet, and a probe asks the right one.
        self.address = f"127.{'.'.join(str(1 + byte % 254) for byte in hashlib.sha256(self.uid.encode()).digest()[:3])}"
        self._policy = spec(pod).get("restartPolicy", "Always")
        self._init: list[Manifest] = spec(pod).get("initContainers") or []
        self._main: list[Manifest] = spec(pod)["containers"]

    def containers(self) -> list[Manifest]:
        """Return init containers, then the others."""
        return [*self._init, *self._main]

    def folder(self, home: Path) -> Path:
        """Return the working directory of the pod's containers."""
        folder = home / "work"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def termination(self, home: Path, container: str) -> Path:
        """Return where a container's termination message goes."""
        return home / "termination" / container

    async def start_next(self, start: Callable[[Manifest], Awaitable[None]]) -> None:
        """Start what may start now: init containers one after the other, then all others; ended ones by policy."""
        for container in self._init:
            if not self._succeeded(container["name"]):
                await self._start_if_due(container, start, again=self._policy != "Never")
                return
        for container in self._main:
            await self._start_if_due(container, start, again=self._again(container["name"]))

    def _again(self, container: str) -> bool:
        if self._policy == "OnFailure":
            return not self._succeeded(container)
        return bool(self._policy == "Always")

    def _succeeded(self, container: str) -> bool:
        ended: Manifest = (self.states.get(container) or {}).get("terminated", {})
        return bool(ended.get("exitCode") == 0)

    async def _start_if_due(
        self, container: Manifest, start: Callable[[Manifest], Awaitable[None]], *, again: bool
    ) -> None:
        called = container["name"]
        if called in self.running:
            return
        if "terminated" in (self.states.get(called) or {}):
            if not again:
                return
            if time.monotonic() < self._due.get(called, 0):
                return
            self._last[called] = self.states.pop(called)
            self.restarts[called] = self.restarts.get(called, 0) + 1
        await start(container)

    def next_restart_s(self) -> float | None:
        """Return seconds until a container may start again, None if none waits."""
        waiting = [due for called, due in self._due.items() if called not in self.running and self._may_restart(called)]
        return max(min(waiting) - time.monotonic(), 0.0) if waiting else None

    def _may_restart(self, called: str) -> bool:
        ended = "terminated" in (self.states.get(called) or {})
        is_init = any(c["name"] == called for c in self._init)
        return ended and (self._policy != "Never" and not self._succeeded(called) if is_init else self._again(called))

    def started(self, process: ContainerProcess) -> None:
        """Note a container that runs now; one without probes is ready at once."""
        self.running[process.name] = process
        if not any(has_probes(c) for c in self._main if c["name"] == process.name):
            self.told(process.name, "started", True)
            self.told(process.name, "ready", True)
        self.states[process.name] = {"running": {"startedAt": timestamp()}}

    def told(self, container: str, what: str, holds: bool) -> None:
        """Note what a probe said: "started" or "ready", and whether it is."""
        noted = self.started_up if what == "started" else self.ready
        if holds and container in self.running:
            noted.add(container)
        else:
            noted.discard(container)

    def all_ready(self) -> bool:
        """Return whether every container of the pod runs and is ready."""
        return all(container["name"] in self.ready for container in self._main)

    def next_step_s(self) -> float | None:
        """Return seconds until there is something to do without a change, None if there is not."""
        due = [at - time.monotonic() for at in self.renew_at.values()]
        restart = self.next_restart_s()
        return max(0.0, min([*due, *([] if restart is None else [restart])])) if due or restart is not None else None

    def ended(self, process: ContainerProcess) -> None:
        """Note how a container ended."""
        code = process.exit_code or 0
        begun = (self.states.get(process.name) or {}).get("running", {}).get("startedAt")
        self.running.pop(process.name, None)
        self.told(process.name, "started", False)
        self.told(process.name, "ready", False)
        self._terminated(process.name, code, "Completed" if code == 0 else "Error", process.message(), begun)

    def could_not_start(self, container: str, message: str, *, code: int = 128, reason: str = "StartError") -> None:
        """Note a container that never ran here."""
        self._terminated(container, code, reason, message, None)

    def _terminated(self, called: str, code: int, reason: str, message: str, begun: str | None) -> None:
        ended = {"exitCode": code, "reason": reason, "finishedAt": timestamp(), "startedAt": begun or timestamp()}
        if message:
            ended["message"] = message
        self.states[called] = {"terminated": ended}
        pause = min(_RESTART_FIRST_S * 2 ** self.restarts.get(called, 0), _RESTART_LAST_S)
        self._due[called] = time.monotonic() + pause

    def grace_left(self, grace_s: int) -> float:
        """Return seconds until the pod must be killed, counted from the first call."""
        if self._grace_from is None:
            self._grace_from = time.monotonic()
        return self._grace_from + grace_s - time.monotonic()

    def last(self, container: str) -> Manifest:
        """Return a container's state before its last restart."""
        return self._last.get(container, {})


def phase_of(pod: Manifest, state: PodState, *, final: bool) -> str:
    """Return the pod's phase from what its containers do; `final`: nothing will be started again."""
    policy = spec(pod).get("restartPolicy", "Always")
    init = [state.states.get(c["name"], {}) for c in spec(pod).get("initContainers") or []]
    main = [state.states.get(c["name"], {}) for c in spec(pod)["containers"]]
    ended = [s["terminated"]["exitCode"] for s in main if "terminated" in s]
    stays = final or policy == "Never"
    if stays and any(s.get("terminated", {}).get("exitCode", 0) for s in init):
        return "Failed"
    if len(ended) == len(main):
        if stays or state.broken or (policy == "OnFailure" and not any(ended)):
            return "Failed" if any(ended) else "Succeeded"
        return "Running"
    if final and not state.running:
        return "Failed"
    return "Running" if any(s for s in main) else "Pending"


def container_statuses(pod: Manifest, state: PodState) -> Manifest:
    """Return containerStatuses (and initContainerStatuses) of a pod."""
    made: Manifest = {}
    for listed, field in (("containers", "containerStatuses"), ("initContainers", "initContainerStatuses")):
        entries = [_container_status(container, state) for container in spec(pod).get(listed) or []]
        if entries:
            made[field] = entries
    return made


def _container_status(container: Manifest, state: PodState) -> Manifest:
    called = container["name"]
    now = state.states.get(called) or {"waiting": {"reason": "ContainerCreating"}}
    image = container.get("image", "")
    return {
        "name": called,
        "image": image,
        "imageID": image,
        "containerID": f"sandbox://{state.uid}/{called}",
        "ready": called in state.ready,
        "started": called in state.started_up,
        "restartCount": state.restarts.get(called, 0),
        "state": now,
        "lastState": state.last(called),
    }


def pod_conditions(held: list[Manifest], phase: str, state: PodState) -> list[Manifest]:
    """Return the pod's conditions; transition times move only when the status does."""
    ready = "True" if phase == "Running" and state.all_ready() else "False"
    wanted = {
        "PodScheduled": "True",
        "Initialized": "True" if state.prepared else "False",
        "ContainersReady": ready,
        "Ready": ready,
    }
    by_type = {condition["type"]: condition for condition in held}
    made = [condition for condition in held if condition["type"] not in wanted]
    for kind, value in wanted.items():
        old = by_type.get(kind)
        if old and old["status"] == value:
            made.append(old)
            continue
        entry: Manifest = {"type": kind, "status": value, "lastTransitionTime": timestamp()}
        if value == "False" and phase == "Succeeded":
            entry["reason"] = "PodCompleted"
        made.append(entry)
    return made
