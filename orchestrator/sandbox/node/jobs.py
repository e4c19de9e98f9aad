"""Play the Job controller: Indexed and NonIndexed Jobs, counted once each whatever crashes in between.

A finished pod is first noted in status.uncountedTerminatedPods, then loses its finalizer, then moves into the
counters: that order survives a crash at any line. Not here: podFailurePolicy, successPolicy, backoffLimitPerIndex,
elastic Indexed Jobs.
"""

from __future__ import annotations

import copy
import secrets
from datetime import UTC, datetime

from orchestrator.sandbox.api import AlreadyExists
from orchestrator.sandbox.events import Recorder
from orchestrator.sandbox.kinds import JOB, POD
from orchestrator.sandbox.objects import (
    Key,
    Manifest,
    annotations_of,
    deleting,
    finalizers,
    key,
    labels,
    meta,
    name,
    namespace,
    owner,
    parse_time,
    spec,
    status,
    timestamp,
    uid,
    without,
)
from orchestrator.sandbox.roles import Part, Role

TRACKING = "batch.kubernetes.io/job-tracking"
INDEX = "batch.kubernetes.io/job-completion-index"
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


class JobController(Role):
    """Keys are Jobs; pods call for their Job."""

    name = "job-controller"

    def __init__(self, part: Part, retry_backoff_s: float = 1.0) -> None:
        super().__init__()
        self._api = part.api
        self._retry_backoff_s = retry_backoff_s
        self._jobs = part.mirror(JOB)
        self._pods = part.mirror(POD)
        self._events = Recorder(part.api, "job-controller")
        self._jobs.listen(lambda obj, _gone: self.want(key(obj)))
        self._pods.listen(self._pod_changed)

    def _pod_changed(self, pod: Manifest, _gone: bool) -> None:
        ref = owner(pod)
        if ref and ref.get("kind") == "Job":
            self.want((namespace(pod), ref["name"]))

    def _pods_of(self, at: Key, job_uid: str | None) -> list[Manifest]:
        return [
            pod
            for pod in self._pods
            if namespace(pod) == at[0]
            and (ref := owner(pod))
            and ref.get("kind") == "Job"
            and ref["name"] == at[1]
            and (job_uid is None or ref["uid"] == job_uid)
        ]

    async def reconcile(self, at: Key) -> float | None:
        """Count, finish or carry on one Job."""
        job = self._jobs.at(at)
        if job is None or deleting(job):
            for pod in self._pods_of(at, None):
                await self._release(pod)
            return None
        pods = self._pods_of(at, uid(job))
        if _finished(job):
            for pod in pods:
                await self._release(pod)
            return await self._expire(job)
        pass_ = _Pass(job, pods)
        await self._count(pass_)
        again = await self._carry_on(pass_)
        await self._write(pass_)
        for pod in pass_.counted_now:
            await self._release(pod)
        return again

    async def _release(self, pod: Manifest) -> None:
        live = self._pods.at(key(pod))
        if live is not None and uid(live) == uid(pod) and TRACKING in finalizers(live):
            wanted = without(finalizers(live), TRACKING)
            changed = await self._api.patch(POD, live, {"metadata": {"finalizers": wanted}})
            if not deleting(changed):
                self._pods.saw(changed)

    async def _expire(self, job: Manifest) -> float | None:
        keep = spec(job).get("ttlSecondsAfterFinished")
        ended = _finished(job)
        if keep is None or ended is None:
            return None
        left = float(parse_time(ended["lastTransitionTime"]).timestamp() + keep - datetime.now(UTC).timestamp())
        if left > 0:
            return left
        await self._api.delete(JOB, job)
        return None

    async def _count(self, state: _Pass) -> None:
        """Move what was noted and released into the counters; note what ended since."""
        for outcome, noted in state.uncounted.items():
            for pod_uid in list(noted):
                pod = state.by_uid.get(pod_uid)
                if pod is None or TRACKING not in finalizers(pod):
                    noted.remove(pod_uid)
                    state.status[outcome] = state.status.get(outcome, 0) + 1
        for pod in state.pods:
            phase = status(pod).get("phase")
            if phase in {"Succeeded", "Failed"} and TRACKING in finalizers(pod):
                outcome = phase.lower()
                if uid(pod) not in state.uncounted[outcome]:
                    state.uncounted[outcome].append(uid(pod))
                state.counted_now.append(pod)
                if outcome == "succeeded" and state.indexed:
                    state.done.add(_index(pod))
        if state.indexed:
            state.status["completedIndexes"] = _ranges(state.done)

    async def _carry_on(self, state: _Pass) -> float | None:
        job = state.job
        if spec(job).get("suspend"):
            for pod in state.active:
                await self._api.delete(POD, pod)
            state.status["startTime"] = None
            state.condition("Suspended", "True", "JobSuspended", "Job suspended")
            return None
        if not status(job).get("startTime"):
            state.status["startTime"] = timestamp()
            if any(c["type"] == "Suspended" for c in state.conditions):
                state.condition("Suspended", "False", "JobResumed", "Job resumed")
        failure = state.failure()
        if failure:
            await self._fail(state, *failure)
            return None
        if state.complete():
            await self._complete(state)
            return None
        wait = self._backoff(state)
        if wait > 0:
            return wait
        for index in state.wanted():
            await self._start(state, index)
        deadline = spec(job).get("activeDeadlineSeconds")
        return None if deadline is None else max(state.left(deadline), 0.05)

    async def _fail(self, state: _Pass, reason: str, message: str) -> None:
        for pod in state.active:
            await self._api.delete(POD, pod)
        state.condition("FailureTarget", "True", reason, message)
        if state.quiet():
            state.condition("Failed", "True", reason, message)
            await self._events.say(JOB, state.job, "Warning", reason, message)

    async def _complete(self, state: _Pass) -> None:
        for pod in state.active:
            await self._api.delete(POD, pod)
        message = "Reached expected number of succeeded pods"
        state.condition("SuccessCriteriaMet", "True", "CompletionsReached", message)
        if state.quiet():
            state.condition("Complete", "True", "CompletionsReached", message)
            state.status["completionTime"] = timestamp()
            await self._events.say(JOB, state.job, "Normal", "Completed", "Job completed")

    def _backoff(self, state: _Pass) -> float:
        """Return how long to wait before the next pod, after failures in a row."""
        ended = [_ended(pod) for pod in state.pods if status(pod).get("phase") == "Failed"]
        if not state.failed or not ended:
            return 0
        pause: float = min(self._retry_backoff_s * 2.0 ** (state.failed - 1), 360.0)
        return max(max(ended) + pause - datetime.now(UTC).timestamp(), 0)

    async def _start(self, state: _Pass, index: int | None) -> None:
        job = state.job
        template = copy.deepcopy(spec(job)["template"])
        pod: Manifest = {"metadata": meta(template), "spec": spec(template)}
        tag = "".join(secrets.choice(_ALPHABET) for _ in range(5))
        middle = "" if index is None else f"-{index}"
        own = {
            "job-name": name(job),
            "batch.kubernetes.io/job-name": name(job),
            "controller-uid": uid(job),
            "batch.kubernetes.io/controller-uid": uid(job),
        }
        pod["metadata"] = {
            "name": f"{name(job)[: 63 - len(middle) - 6]}{middle}-{tag}",
            "namespace": namespace(job),
            "labels": {**labels(template), **own},
            "annotations": dict(annotations_of(template)),
            "finalizers": [TRACKING],
            "ownerReferences": [
                {
                    "apiVersion": JOB.api_version,
                    "kind": "Job",
                    "name": name(job),
                    "uid": uid(job),
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        }
        if index is not None:
            _mark_index(pod, name(job), index)
        try:
            made = self._pods.saw(await self._api.create(POD, pod))
        except AlreadyExists:
            return
        state.active.append(made)
        await self._events.say(JOB, job, "Normal", "SuccessfulCreate", f"Created pod: {name(made)}")

    async def _write(self, state: _Pass) -> None:
        state.settle()
        if state.status != status(state.job):
            # A merge patch keeps what it does not name: what went must be named as null.
            change = {**dict.fromkeys(status(state.job).keys() - state.status.keys()), **state.status}
            change["uncountedTerminatedPods"] = {k: v or None for k, v in state.uncounted.items()}
            self._jobs.saw(await self._api.patch_status(JOB, state.job, change))


class _Pass:
    """What one pass over a Job saw, and the status that it will write."""

    def __init__(self, job: Manifest, pods: list[Manifest]) -> None:
        self.job = job
        self.pods = pods
        self.by_uid = {uid(pod): pod for pod in pods}
        self.status: Manifest = copy.deepcopy(status(job))
        noted = self.status.pop("uncountedTerminatedPods", None) or {}
        self.uncounted: dict[str, list[str]] = {
            "succeeded": list(noted.get("succeeded") or []),
            "failed": list(noted.get("failed") or []),
        }
        self.conditions: list[Manifest] = list(self.status.pop("conditions", None) or [])
        self.counted_now: list[Manifest] = []
        self.indexed = spec(job).get("completionMode") == "Indexed"
        self.done = _indexes(self.status.get("completedIndexes") or "") if self.indexed else set()
        running = [pod for pod in pods if status(pod).get("phase") not in {"Succeeded", "Failed"}]
        self.active = [pod for pod in running if not deleting(pod)]
        self.terminating = [pod for pod in running if deleting(pod)]

    @property
    def succeeded(self) -> int:
        return int(self.status.get("succeeded", 0)) + len(self.uncounted["succeeded"])

    @property
    def failed(self) -> int:
        return int(self.status.get("failed", 0)) + len(self.uncounted["failed"])

    @property
    def completions(self) -> int | None:
        wanted: int | None = spec(self.job).get("completions")
        if wanted is None and (self.indexed or spec(self.job).get("parallelism") in (None, 1)):
            return 1 if not self.indexed else spec(self.job).get("parallelism", 1)
        return wanted

    def failure(self) -> tuple[str, str] | None:
        target = next((c for c in self.conditions if c["type"] == "FailureTarget" and c["status"] == "True"), None)
        if target:
            return target["reason"], target["message"]
        if self.failed > spec(self.job).get("backoffLimit", 6):
            return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
        deadline = spec(self.job).get("activeDeadlineSeconds")
        if deadline is not None and self.left(deadline) <= 0:
            return "DeadlineExceeded", "Job was active longer than specified deadline"
        return None

    def left(self, deadline: float) -> float:
        started = self.status.get("startTime")
        return deadline if not started else parse_time(started).timestamp() + deadline - datetime.now(UTC).timestamp()

    def complete(self) -> bool:
        if self.indexed:
            return len(self.done) >= (self.completions or 0)
        if self.completions is None:
            return self.succeeded > 0 and not self.active and not self.terminating
        return self.succeeded >= self.completions

    def quiet(self) -> bool:
        """Return whether every pod ended and was counted: only then may the Job be called finished."""
        return not (self.active or self.terminating or any(self.uncounted.values()))

    def wanted(self) -> list[int | None]:
        """Return the indexes (None: no index) of the pods to start now."""
        held_back = self.terminating if spec(self.job).get("podReplacementPolicy") == "Failed" else []
        room = spec(self.job).get("parallelism", 1) - len(self.active) - len(held_back)
        if self.indexed:
            taken = self.done | {_index(pod) for pod in [*self.active, *held_back]}
            free = [index for index in range(self.completions or 0) if index not in taken]
            return list(free[: max(room, 0)])
        if self.completions is None:
            return [None] * (max(room, 0) if not self.succeeded else 0)
        return [None] * max(min(room, self.completions - self.succeeded - len(self.active) - len(held_back)), 0)

    def condition(self, type_: str, value: str, reason: str, message: str) -> None:
        held = next((c for c in self.conditions if c["type"] == type_), None)
        if held and held["status"] == value:
            return
        self.conditions = [c for c in self.conditions if c["type"] != type_]
        now = timestamp()
        self.conditions.append(
            {
                "type": type_,
                "status": value,
                "reason": reason,
                "message": message,
                "lastProbeTime": now,
                "lastTransitionTime": now,
            }
        )

    def settle(self) -> None:
        """Put the counts of now into the status."""
        self.status["uncountedTerminatedPods"] = {k: v for k, v in self.uncounted.items() if v}
        if self.conditions:
            self.status["conditions"] = self.conditions
        self.status["active"] = len(self.active)
        self.status["terminating"] = len(self.terminating)
        self.status["ready"] = sum(status(pod).get("phase") == "Running" for pod in self.active)
        for field in ("active", "startTime"):
            if not self.status.get(field):
                self.status.pop(field, None)


def _mark_index(pod: Manifest, job_name: str, index: int) -> None:
    pod["metadata"]["annotations"][INDEX] = str(index)
    pod["metadata"]["labels"][INDEX] = str(index)
    pod["spec"]["hostname"] = f"{job_name[:58]}-{index}"
    for container in [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]:
        variables = container.setdefault("env", [])
        if not any(v["name"] == "JOB_COMPLETION_INDEX" for v in variables):
            variables.append({"name": "JOB_COMPLETION_INDEX", "value": str(index)})


def _finished(job: Manifest) -> Manifest | None:
    return next(
        (
            c
            for c in status(job).get("conditions") or []
            if c["type"] in {"Complete", "Failed"} and c["status"] == "True"
        ),
        None,
    )


def _index(pod: Manifest) -> int:
    return int(annotations_of(pod).get(INDEX, -1))


def _ended(pod: Manifest) -> float:
    for container in status(pod).get("containerStatuses") or []:
        ended = ((container.get("state") or {}).get("terminated") or {}).get("finishedAt")
        if ended:
            return parse_time(ended).timestamp()
    return 0.0


def _indexes(text: str) -> set[int]:
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def _ranges(indexes: set[int]) -> str:
    parts: list[str] = []
    for index in sorted(indexes):
        if parts and _indexes(parts[-1]) and max(_indexes(parts[-1])) == index - 1:
            parts[-1] = f"{parts[-1].split('-')[0]}-{index}"
        else:
            parts.append(str(index))
    return ",".join(parts)
