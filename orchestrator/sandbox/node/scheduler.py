"""Play kube-scheduler as far as volumes matter: filter nodes, tell storage which was selected, bind.

A pod waits until its claims exist and are bound; for a class that waits for its consumer the chosen node is written on
the claim first. Node selectors, required node affinity, the affinity of bound volumes and the attach limit are
honoured; resources are not.
"""

from __future__ import annotations

from typing import Any

from orchestrator.sandbox.api import NotFound
from orchestrator.sandbox.events import Recorder
from orchestrator.sandbox.faults import Faults
from orchestrator.sandbox.kinds import NODE, PERSISTENT_VOLUME, PERSISTENT_VOLUME_CLAIM, POD, STORAGE_CLASS
from orchestrator.sandbox.objects import (
    Key,
    Manifest,
    annotations_of,
    deleting,
    key,
    labels,
    name,
    namespace,
    spec,
    status,
    timestamp,
)
from orchestrator.sandbox.roles import Part, Role
from orchestrator.sandbox.storage.protection import claims_of
from orchestrator.sandbox.storage.pv_controller import BIND_COMPLETED, SELECTED_NODE

_AGAIN_S = 0.5


class Scheduler(Role):
    """Keys are pods."""

    name = "scheduler"

    def __init__(self, part: Part, faults: Faults) -> None:
        super().__init__()
        self._api = part.api
        self._faults = faults
        self._pods = part.mirror(POD)
        self._nodes = part.mirror(NODE)
        self._claims = part.mirror(PERSISTENT_VOLUME_CLAIM)
        self._volumes = part.mirror(PERSISTENT_VOLUME)
        self._classes = part.mirror(STORAGE_CLASS)
        self._events = Recorder(part.api, "default-scheduler")
        self._pods.listen(lambda obj, gone: self.want(key(obj)) if not gone else self._all_waiting())
        for mirror in (self._nodes, self._claims, self._volumes):
            mirror.listen(lambda _obj, _gone: self._all_waiting())

    def _all_waiting(self) -> None:
        for pod in self._pods:
            if not spec(pod).get("nodeName"):
                self.want(key(pod))

    async def reconcile(self, at: Key) -> float | None:
        """Try to place one pod."""
        pod = self._pods.at(at)
        if (
            pod is None
            or deleting(pod)
            or spec(pod).get("nodeName")
            or spec(pod).get("schedulingGates")
            or spec(pod).get("schedulerName", "default-scheduler") != "default-scheduler"
        ):
            return None
        claims, problem = self._claims_for(pod)
        if problem is None:
            fitting, problem = self._fitting(pod, claims)
            if fitting:
                return await self._place(pod, fitting, claims)
        await self._unschedulable(pod, problem or "no nodes available to schedule pods")
        return _AGAIN_S

    def _claims_for(self, pod: Manifest) -> tuple[list[Manifest], str | None]:
        found = []
        for claim_name in claims_of(pod):
            claim = self._claims.get(namespace(pod), claim_name)
            if claim is None:
                return [], f'persistentvolumeclaim "{claim_name}" not found'
            if deleting(claim):
                return [], f'persistentvolumeclaim "{claim_name}" is being deleted'
            if status(claim).get("phase") == "Lost":
                return [], f'persistentvolumeclaim "{claim_name}" bound to non-existent persistentvolume'
            if not _bound(claim) and not self._waits_for_consumer(claim):
                return [], "pod has unbound immediate PersistentVolumeClaims"
            found.append(claim)
        return found, None

    def _waits_for_consumer(self, claim: Manifest) -> bool:
        found = self._classes.get("", spec(claim).get("storageClassName") or "") or {}
        return found.get("volumeBindingMode") == "WaitForFirstConsumer"

    def _fitting(self, pod: Manifest, claims: list[Manifest]) -> tuple[list[Manifest], str | None]:
        problems: dict[str, int] = {}
        fitting = []
        for node in self._nodes:
            problem = self._misfit(pod, claims, node)
            if problem is None:
                fitting.append(node)
            else:
                problems[problem] = problems.get(problem, 0) + 1
        total = len(list(self._nodes))
        said = ", ".join(f"{count} {problem}" for problem, count in sorted(problems.items()))
        return fitting, f"0/{total} nodes are available: {said}." if not fitting else None

    def _misfit(self, pod: Manifest, claims: list[Manifest], node: Manifest) -> str | None:
        if spec(node).get("unschedulable") or not _is_ready(node):
            return "node(s) were unschedulable"
        wanted = spec(pod).get("nodeSelector") or {}
        affinity = ((spec(pod).get("affinity") or {}).get("nodeAffinity") or {}).get(
            "requiredDuringSchedulingIgnoredDuringExecution"
        )
        if any(labels(node).get(label) != value for label, value in wanted.items()) or not matches(affinity, node):
            return "node(s) didn't match Pod's node affinity/selector"
        for claim in claims:
            chosen = annotations_of(claim).get(SELECTED_NODE)
            if not _bound(claim) and chosen and chosen != name(node) and self._nodes.get("", chosen):
                return "node(s) did not have the claim's selected node"
            volume = self._volumes.get("", spec(claim).get("volumeName") or "")
            if volume and not matches((spec(volume).get("nodeAffinity") or {}).get("required"), node):
                return "node(s) had volume node affinity conflict"
        limit = self._faults.number("attach-limit", off=0)
        if limit and len(self._attached(node) | {key(c) for c in claims}) > limit and claims:
            return "node(s) exceed max volume count"
        return None

    def _attached(self, node: Manifest) -> set[Key]:
        """Return the claims that pods on the node use now."""
        return {
            (namespace(pod), claim)
            for pod in self._pods
            if spec(pod).get("nodeName") == name(node) and status(pod).get("phase") not in {"Succeeded", "Failed"}
            for claim in claims_of(pod)
        }

    async def _place(self, pod: Manifest, fitting: list[Manifest], claims: list[Manifest]) -> float | None:
        load = {name(node): 0 for node in fitting}
        for other in self._pods:
            if spec(other).get("nodeName") in load and status(other).get("phase") in {"Pending", "Running"}:
                load[spec(other)["nodeName"]] += 1
        chosen = min(load, key=lambda node: (load[node], node))
        waiting = [claim for claim in claims if not _bound(claim)]
        for claim in waiting:
            if annotations_of(claim).get(SELECTED_NODE) != chosen:
                marks = {"metadata": {"annotations": {SELECTED_NODE: chosen}}}
                self._claims.saw(await self._api.patch(PERSISTENT_VOLUME_CLAIM, claim, marks))
        if waiting:
            return _AGAIN_S
        await self._bind(pod, chosen)
        message = f"Successfully assigned {namespace(pod)}/{name(pod)} to {chosen}"
        await self._events.say(POD, pod, "Normal", "Scheduled", message)
        return None

    async def _bind(self, pod: Manifest, node: str) -> None:
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name(pod), "namespace": namespace(pod)},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        try:
            await self._api.call("POST", POD.path(namespace(pod), name(pod), "binding"), body=binding)
        except NotFound:
            # An API server without the subresource, or a pod that is gone: then this answers 404 as well.
            self._pods.saw(await self._api.patch(POD, pod, {"spec": {"nodeName": node}}))

    async def _unschedulable(self, pod: Manifest, message: str) -> None:
        held: Manifest = next((c for c in status(pod).get("conditions") or [] if c["type"] == "PodScheduled"), {})
        if held.get("message") != message:
            condition = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": message,
                "lastTransitionTime": timestamp(),
            }
            kept = [c for c in status(pod).get("conditions") or [] if c["type"] != "PodScheduled"]
            self._pods.saw(await self._api.patch_status(POD, pod, {"conditions": [*kept, condition]}))
            await self._events.say(POD, pod, "Warning", "FailedScheduling", message)


def _bound(claim: Manifest) -> bool:
    return BIND_COMPLETED in annotations_of(claim) and status(claim).get("phase") == "Bound"


def _is_ready(node: Manifest) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in status(node).get("conditions") or [])


def matches(selector: dict[str, Any] | None, node: Manifest) -> bool:
    """Return whether a node satisfies a NodeSelector: any of its terms, all expressions of the term."""
    if not selector:
        return True
    return any(_term(term, node) for term in selector.get("nodeSelectorTerms") or [])


def _term(term: dict[str, Any], node: Manifest) -> bool:
    expressions = term.get("matchExpressions") or []
    fields = term.get("matchFields") or []
    held = {**labels(node), "metadata.name": name(node)}
    return bool(expressions or fields) and all(_holds(e, held) for e in [*expressions, *fields])


def _holds(expression: dict[str, Any], held: dict[str, str]) -> bool:
    value, values = held.get(expression["key"]), expression.get("values") or []
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return value is not None and int(value) > int(values[0])
        case "Lt":
            return value is not None and int(value) < int(values[0])
        case _:
            return False
