"""Run the pods of one node as local processes, from the claim's wait to the last signal.

Every pass looks at one pod and at what this process knows of it, and takes the next step; the API server and
`DIR/pods/<uid>` are the only memory. A pod that an earlier life of the node had started is ended, not adopted: its
process is killed and the pod Failed (or started again, as its restart policy says).
"""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.sandbox.api import Api, ApiError, NotFound
from orchestrator.sandbox.events import Recorder
from orchestrator.sandbox.faults import Faults, switch
from orchestrator.sandbox.kinds import DRIVER, PERSISTENT_VOLUME, PERSISTENT_VOLUME_CLAIM, POD, VOLUME_ATTACHMENT
from orchestrator.sandbox.node.attach import attached
from orchestrator.sandbox.node.isolation import Isolation
from orchestrator.sandbox.node.launching import Launch, refused
from orchestrator.sandbox.node.mounts import (
    BlockVolume,
    NotMountable,
    NotPlayed,
    environment,
    fill,
    make_volumes,
)
from orchestrator.sandbox.node.probes import has_probes, watch
from orchestrator.sandbox.node.process import ContainerProcess, Record, end_leftover
from orchestrator.sandbox.node.state import PodState, container_statuses, phase_of, pod_conditions
from orchestrator.sandbox.objects import (
    Key,
    Manifest,
    deleting,
    key,
    meta,
    name,
    namespace,
    spec,
    status,
    timestamp,
    uid,
)
from orchestrator.sandbox.roles import Part, Role
from orchestrator.sandbox.storage.protection import claims_of

log = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
_LOST = "the container was running when its node restarted"


class Kubelet(Role):
    """Keys are pods; only those of this node are looked at."""

    def __init__(
        self, part: Part, node: str, directory: Path, faults: Faults, isolation: Isolation | None = None
    ) -> None:
        """Play `node`; with `isolation` every container gets a file system, a user and rights of its own."""
        super().__init__()
        self._isolation = isolation
        self.name = f"kubelet {node}"
        self._part = part
        self._api: Api = part.api
        self._node = node
        self._root = directory / "pods"
        self._faults = faults
        self._pods = part.mirror(POD)
        self._claims = part.mirror(PERSISTENT_VOLUME_CLAIM)
        self._volumes = part.mirror(PERSISTENT_VOLUME)
        self._attachments = part.mirror(VOLUME_ATTACHMENT)
        self._events = Recorder(part.api, "kubelet")
        self._states: dict[str, PodState] = {}
        self._gone: dict[Key, set[str]] = {}
        self._children: asyncio.TaskGroup | None = None
        self._pods.listen(self._pod_changed)
        for mirror in (self._claims, self._volumes, self._attachments):
            mirror.listen(lambda _obj, _gone: self._all_waiting())

    # What the log server asks

    def log_path(self, in_namespace: str, pod_name: str, container: str) -> Path | None:
        """Return a container's log, None if the pod is not here."""
        pod = self._pods.get(in_namespace, pod_name)
        if pod is None or spec(pod).get("nodeName") != self._node:
            return None
        return self._home(uid(pod)) / "logs" / f"{container}.log"

    def is_running(self, in_namespace: str, pod_name: str, container: str) -> bool:
        """Return whether the container's process lives."""
        pod = self._pods.get(in_namespace, pod_name)
        state = self._states.get(uid(pod)) if pod else None
        return state is not None and container in state.running

    # Passes

    def _pod_changed(self, pod: Manifest, gone: bool) -> None:
        if spec(pod).get("nodeName") == self._node:
            if gone:
                self._gone.setdefault(key(pod), set()).add(uid(pod))
            self.want(key(pod))

    def _all_waiting(self) -> None:
        for pod in self._pods:
            if spec(pod).get("nodeName") == self._node and status(pod).get("phase") == "Pending":
                self.want(key(pod))

    async def run(self) -> None:
        """Reconcile; end every container with the node."""
        try:
            async with asyncio.TaskGroup() as children:
                self._children = children
                await super().run()
        finally:
            for state in self._states.values():
                for process in state.running.values():
                    process.signal(signal.SIGKILL)

    async def reconcile(self, at: Key) -> float | None:
        """Take the next step with the pod of that name, and with pods that had it before."""
        for pod_uid in self._gone.pop(at, set()):
            await self._forget(pod_uid)
        pod = self._pods.at(at)
        if pod is None or spec(pod).get("nodeName") != self._node:
            return None
        if deleting(pod):
            return await self._terminate(pod)
        if status(pod).get("phase") in {"Succeeded", "Failed"}:
            await self._clear(uid(pod))
            return None
        if uid(pod) not in self._states:
            if self._was_started(pod):
                return await self._lost(pod)
            self._states[uid(pod)] = PodState(at, pod)
        return await self._advance(pod, self._states[uid(pod)])

    async def _advance(self, pod: Manifest, state: PodState) -> float | None:
        if state.broken:
            return None
        if not state.prepared:
            wait = await self._prepare(pod, state)
            if wait is not None:
                return wait
        await self._renew(pod, state)
        await state.start_next(lambda container: self._start(pod, state, container))
        await self._report(pod, state)
        return state.next_step_s()

    async def _renew(self, pod: Manifest, state: PodState) -> None:
        """Fill anew the projected volumes whose token is getting old."""
        for volume in spec(pod).get("volumes") or []:
            if state.renew_at.get(volume["name"], math.inf) <= time.monotonic():
                state.renew_at[volume["name"]] = time.monotonic() + 5.0  # the next try, if this one fails
                readable = self._isolation is not None
                again_s = await fill(self._api, pod, volume, state.volumes[volume["name"]], readable=readable)
                if again_s is not None:
                    state.renew_at[volume["name"]] = time.monotonic() + again_s

    async def _prepare(self, pod: Manifest, state: PodState) -> float | None:
        """Make volumes and check rights; return seconds to wait if it can't go on yet."""
        await self._report(pod, state)
        pod = self._pods.at(key(pod)) or pod
        isolated = self._isolation is not None
        try:
            refusal = refused(pod, isolated=isolated, any_user=self._faults.on("allow-non-root"))
        except NotPlayed as err:
            refusal = str(err)
        if refusal:
            await self._break(pod, state, refusal)
            return None
        claims = self._ready_claims(pod)
        if claims is None:
            return 2.0
        try:
            await asyncio.sleep(self._faults.number("node-slow-start"))
            made = await make_volumes(self._api, pod, self._home(uid(pod)), claims, readable=isolated)
            state.volumes, state.renew_at = made.at, {at: time.monotonic() + s for at, s in made.renew_s.items()}
            for container in state.containers():
                state.environments[container["name"]] = await environment(self._api, pod, container, ADDRESS)
        except NotMountable as err:
            await self._events.say(POD, pod, "Warning", "FailedMount", f"MountVolume.SetUp failed: {err}")
            return 0.5
        except NotPlayed as err:
            await self._break(pod, state, str(err))
            return None
        state.prepared = True
        return None

    def _ready_claims(self, pod: Manifest) -> dict[str, BlockVolume] | None:
        """Return the pod's volumes if all are bound and attached here."""
        here = {attached(a)[0] for a in self._attachments if attached(a)[1] == self._node and status(a).get("attached")}
        found: dict[str, BlockVolume] = {}
        for claim_name in claims_of(pod):
            claim = self._claims.get(namespace(pod), claim_name)
            volume = self._volumes.get("", spec(claim).get("volumeName") or "") if claim else None
            if claim is None or volume is None or status(claim).get("phase") != "Bound" or name(volume) not in here:
                return None
            csi = spec(volume).get("csi") or {}
            if csi.get("driver") != DRIVER:
                return None
            found[claim_name] = BlockVolume(Path(csi["volumeAttributes"]["path"]), spec(volume)["volumeMode"])
        return found

    # Containers

    async def _start(self, pod: Manifest, state: PodState, container: Manifest) -> None:
        home = self._home(uid(pod))
        given = state.environments[container["name"]]
        termination = state.termination(home, container["name"])
        launch = Launch(pod, container, state.volumes, termination, home, given)
        command, variables = launch.plain() if self._isolation is None else launch.isolated(self._isolation, self._api)
        try:
            process = await ContainerProcess.start(
                container["name"],
                command,
                variables,
                folder=state.folder(home),
                log=home / "logs" / f"{container['name']}.log",
                termination=termination,
            )
        except OSError as err:
            state.could_not_start(container["name"], f"exec {command[0]}: {err.strerror}")
            self.want(state.key)
            return
        state.started(process)
        await asyncio.to_thread(self._write_record, pod, state)
        assert self._children is not None
        self._children.create_task(self._watch(pod, state, container, process), name=f"container {name(pod)}")
        await self._events.say(POD, pod, "Normal", "Started", f"Started container {container['name']}")
        if container.get("volumeDevices") and self._faults.on("mover-kill"):
            self._children.create_task(self._kill_soon(process), name=f"mover-kill {name(pod)}")

    async def _watch(self, pod: Manifest, state: PodState, container: Manifest, process: ContainerProcess) -> None:
        async with asyncio.TaskGroup() as with_it:
            probing = with_it.create_task(self._probe(pod, state, container, process), name=f"probes {name(pod)}")
            await process.wait()
            probing.cancel()
        state.ended(process)
        self.want(state.key)

    async def _probe(self, pod: Manifest, state: PodState, container: Manifest, process: ContainerProcess) -> None:
        """Ask the container's probes until it must be ended; end it then, and let its restart policy go on."""
        if not has_probes(container):
            return

        def told(what: str, holds: bool) -> None:
            state.told(container["name"], what, holds)
            self.want(state.key)

        async def unhealthy(kind: str, wrong: str) -> None:
            await self._events.say(POD, pod, "Warning", "Unhealthy", f"{kind} probe failed: {wrong}"[:900])

        failed = await watch(container, state.address, told, unhealthy)
        if not failed:
            return
        words = f"Container {container['name']} failed {failed} probe, will be restarted"
        await self._events.say(POD, pod, "Normal", "Killing", words)
        process.signal(signal.SIGTERM)
        own_s = (container.get(f"{failed}Probe") or {}).get("terminationGracePeriodSeconds")
        await asyncio.sleep(own_s or spec(pod).get("terminationGracePeriodSeconds") or 30)
        process.signal(signal.SIGKILL)

    async def _kill_soon(self, process: ContainerProcess) -> None:
        """Fault mover-kill: kill this one, and switch the fault off so that the next one lives."""
        await asyncio.sleep(self._faults.number("mover-kill"))
        process.signal(signal.SIGKILL)
        with suppress(ApiError):
            await switch(self._api, "mover-kill", None)

    async def _break(self, pod: Manifest, state: PodState, message: str) -> None:
        state.broken = True
        for container in spec(pod)["containers"]:
            state.could_not_start(container["name"], message)
        await self._events.say(POD, pod, "Warning", "Failed", f"Error: {message}")
        await self._report(self._pods.at(key(pod)) or pod, state)

    # Ends

    async def _terminate(self, pod: Manifest) -> float | None:
        state = self._states.get(uid(pod))
        if state is not None and state.running:
            left = state.grace_left(int(meta(pod).get("deletionGracePeriodSeconds") or 0))
            number = signal.SIGKILL if left <= 0 else signal.SIGTERM
            if number is signal.SIGKILL or not state.asked_to_end:
                state.asked_to_end = True
                for process in state.running.values():
                    process.signal(number)
            return max(left, 0.05)
        if state is None and self._was_started(pod) and status(pod).get("phase") not in {"Succeeded", "Failed"}:
            await self._lost(pod)
            pod = self._pods.at(key(pod)) or pod
        elif state is not None:
            state.broken = True
            await self._report(pod, state, final=True)
        await self._clear(uid(pod))
        await self._api.delete(POD, pod, grace_s=0)
        return None

    async def _lost(self, pod: Manifest) -> float | None:
        state = PodState(key(pod), pod)
        for container in state.containers():
            state.could_not_start(container["name"], _LOST, code=137, reason="NodeRestarted")
        if spec(pod).get("restartPolicy", "Always") == "Never" or deleting(pod):
            state.broken = True
        else:
            self._states[uid(pod)] = state
            await asyncio.to_thread(self._record_path(uid(pod)).unlink, missing_ok=True)
        await self._report(pod, state, final=state.broken)
        return 0.0

    async def _clear(self, pod_uid: str) -> None:
        """Remove secrets and volumes of a pod that ended; its log stays until the pod is deleted."""
        self._states.pop(pod_uid, None)
        home = self._home(pod_uid)
        for folder in ("volumes", "work", "termination"):
            await asyncio.to_thread(shutil.rmtree, home / folder, ignore_errors=True)
        await asyncio.to_thread(self._record_path(pod_uid).unlink, missing_ok=True)

    async def _forget(self, pod_uid: str) -> None:
        """The pod object is gone: so goes everything of it."""
        state = self._states.pop(pod_uid, None)
        for process in state.running.values() if state else ():
            process.signal(signal.SIGKILL)
        await asyncio.to_thread(shutil.rmtree, self._home(pod_uid), ignore_errors=True)

    # What is written

    async def _report(self, pod: Manifest, state: PodState, *, final: bool = False) -> None:
        live = self._pods.at(key(pod))
        if live is None or uid(live) != uid(pod):
            return
        phase = phase_of(live, state, final=final)
        held = status(live)
        change: Manifest = {
            "phase": phase,
            "hostIP": ADDRESS,
            "podIP": state.address,
            "podIPs": [{"ip": state.address}],
            "startTime": held.get("startTime") or timestamp(),
            **container_statuses(live, state),
            "conditions": pod_conditions(held.get("conditions") or [], phase, state),
        }
        if any(held.get(field) != value for field, value in change.items()):
            with suppress(NotFound):
                self._pods.saw(await self._api.patch_status(POD, live, change))

    def _home(self, pod_uid: str) -> Path:
        return self._root / pod_uid

    def _record_path(self, pod_uid: str) -> Path:
        return self._home(pod_uid) / "processes.json"

    def _was_started(self, pod: Manifest) -> bool:
        return status(pod).get("phase") == "Running" or self._record_path(uid(pod)).exists()

    def _write_record(self, pod: Manifest, state: PodState) -> None:
        path = self._record_path(uid(pod))
        content: dict[str, Any] = {"node": self._node, "processes": [p.record for p in state.running.values()]}
        half = path.with_suffix(".part")
        half.write_bytes(msgspec.json.encode(content))
        half.replace(path)

    def end_leftovers(self) -> None:
        """Kill processes of an earlier life of this node; remove what belongs to pods that are gone. Before `run`."""
        known = {uid(pod) for pod in self._pods}
        for home in self._root.glob("*"):
            with suppress(OSError, msgspec.DecodeError, KeyError):
                held = msgspec.json.decode((home / "processes.json").read_bytes())
                if held["node"] == self._node:
                    for record in held["processes"]:
                        end_leftover(msgspec.convert(record, Record))
            if home.name not in known:
                shutil.rmtree(home, ignore_errors=True)
