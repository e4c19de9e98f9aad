"""Mover Jobs: one Secret with one namespace's keys, one Job with one pod, and how far it is.

A Job is one attempt (`backoffLimit: 0`): whether another one makes sense is decided from the mover's own outcome, not
by counting pods. What must never happen here: a pod with an API token, a capability or more keys than it needs; a
Secret's content in a log; an outcome believed over what is in the repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec

from orchestrator.api.foreign.core import Job, Pod, Secret
from orchestrator.api.meta import K8sObject
from orchestrator.api.mover import (
    CONFIG_KEY,
    CONFIG_MOUNT,
    DEVICE_PATH,
    TERMINATION_LOG,
    MoverConfig,
    MoverOutcome,
    Progress,
)
from orchestrator.api.tidemark.fields import LABEL_MANAGED_BY, LABEL_TASK, MANAGED_BY
from orchestrator.clock import Clock, SystemClock
from orchestrator.config import Settings
from orchestrator.kube.cache import Caches
from orchestrator.kube.client import Client
from orchestrator.kube.errors import Invalid, NotFound, Unavailable
from orchestrator.volumes.ownership import create_ours, is_ours, owner_of

ANNOTATION_ATTEMPT = "tidemark.dev/attempt"
"""Which try a Job is, counted from 1; survives a crash between making the Job and writing it into a status."""
LABEL_JOB = "batch.kubernetes.io/job-name"
GRACE_S = 30
"""Seconds a mover gets to stop after SIGTERM."""
CONTAINER = "mover"
BOUNDED = frozenset({"maintain", "verify"})
"""Tasks that a deadline ends; how far the others are is followed, and a volume may be large."""
LOST = "The pod should have gone long ago; its node does not answer."

State = Literal["missing", "pending", "running", "succeeded", "failed"]


@dataclass(frozen=True)
class MoverJob:
    """What a mover's Job needs to be made."""

    name: str
    task: str
    config: MoverConfig
    args: tuple[str, ...] = ()
    device_pvc: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    """Must name the work: point, restore or repository uid."""
    annotations: dict[str, str] = field(default_factory=dict)
    node_affinity: dict[str, Any] | None = None
    """A PersistentVolume's spec.nodeAffinity."""
    read_only: bool = False
    attempt: int = 1
    owner: K8sObject | None = None
    """A cluster-scoped object with which Secret and Job go: nothing else finds a Secret whose Job was never made."""
    deadline_s: float | None = None
    """Ends it after so long; None: tasks in BOUNDED have the settings' maintenance deadline, others none."""


@dataclass(frozen=True)
class JobSeen:
    """How a mover's Job stands."""

    state: State
    pod: str = ""
    node: str = ""
    outcome: MoverOutcome | None = None
    """What the pod said last; a hint."""
    message: str = ""
    """Why it is pending, or how it failed, in words."""
    attempt: int = 0
    deleting: bool = False
    uid: str = ""
    lost: bool = False
    """Its pod should have gone long ago: it failed, and what it does on its node nobody knows."""


def labels_of(job: MoverJob) -> dict[str, str]:
    """Return the labels of the Job, its pod and its Secret."""
    return {**job.labels, LABEL_MANAGED_BY: MANAGED_BY, LABEL_TASK: job.task}


def _owners(job: MoverJob) -> dict[str, Any]:
    if job.owner is None:
        return {}
    kind = job.owner.RESOURCE
    owner = {"apiVersion": kind.api_version, "kind": kind.kind, "name": job.owner.name, "uid": job.owner.uid}
    return {"ownerReferences": [owner]}


def build_secret(job: MoverJob, settings: Settings) -> dict[str, Any]:
    """Return the Secret's manifest. Holds keys: never logged."""
    return {
        "metadata": {"name": job.name, "namespace": settings.namespace, "labels": labels_of(job), **_owners(job)},
        "type": "Opaque",
        "data": msgspec.to_builtins({CONFIG_KEY: msgspec.json.encode(job.config)}),
    }


def build(job: MoverJob, settings: Settings) -> dict[str, Any]:
    """Return the Job's manifest: root without any capability, no API token, read-only root (control plane rule 4)."""
    labels = labels_of(job)
    annotations = {**job.annotations, ANNOTATION_ATTEMPT: str(job.attempt)}
    limit_s = settings.maintenance_deadline_s if job.deadline_s is None and job.task in BOUNDED else job.deadline_s
    deadline = {"activeDeadlineSeconds": max(1, int(limit_s))} if limit_s is not None else {}
    return {
        "metadata": {
            "name": job.name,
            "namespace": settings.namespace,
            "labels": labels,
            "annotations": annotations,
            **_owners(job),
        },
        "spec": {
            **deadline,
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "podReplacementPolicy": "Failed",
            "template": {
                "metadata": {"labels": labels, "annotations": job.annotations},
                "spec": _pod_spec(job, settings),
            },
        },
    }


def _pod_spec(job: MoverJob, settings: Settings) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "serviceAccountName": settings.mover_service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": {
            "runAsUser": settings.mover_run_as_user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(job, settings)],
        "volumes": [
            {"name": "config", "secret": {"secretName": job.name, "defaultMode": 0o400}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    if job.device_pvc:
        source = {"claimName": job.device_pvc, **({"readOnly": True} if job.read_only else {})}
        spec["volumes"].append({"name": "volume", "persistentVolumeClaim": source})
    required = (job.node_affinity or {}).get("required")
    if required:
        spec["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    return spec


def _container(job: MoverJob, settings: Settings) -> dict[str, Any]:
    command = [*settings.mover_command, "mover", job.task, "--point", job.config.point]
    command += ["--config", f"{CONFIG_MOUNT}/{CONFIG_KEY}"]
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": settings.mover_image,
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "File",
        "resources": {
            "requests": {"cpu": settings.mover_cpu, "memory": settings.mover_memory},
            "limits": {"memory": settings.mover_memory},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_MOUNT, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  # a memory-less scratch directory of the pod's own
        ],
    }
    if job.device_pvc:
        command += ["--device", DEVICE_PATH]
        container["volumeDevices"] = [{"name": "volume", "devicePath": DEVICE_PATH}]
    container["command"] = [*command, "--termination-log", TERMINATION_LOG, *job.args]
    return container


async def ensure(client: Client, job: MoverJob, settings: Settings) -> Job:
    """Make the Secret, then the Job; idempotent. Raises NameTaken when a stranger has the name."""
    manifest = build_secret(job, settings)
    secret = await create_ours(client, Secret, manifest)
    if secret.data.get(CONFIG_KEY) != msgspec.json.encode(job.config):
        # An earlier try left it: credentials or address may have changed since. Made again, not patched: so our role
        # needs no right to write into Secrets that are there.
        await client.delete(Secret, job.name, settings.namespace, uid=secret.uid)
        await create_ours(client, Secret, manifest)
    return await create_ours(client, Job, build(job, settings))


async def look(
    client: Client,
    caches: Caches,
    name: str,
    settings: Settings,
    owner: Mapping[str, str] | None = None,
    *,
    clock: Clock | None = None,
) -> JobSeen:
    """Return how the Job stands, read from the API server: a stale outcome would start a mover too many.

    What was read goes into `caches`, for others that decide from them. With `owner` (labels that name the work)
    somebody else's Job of that name counts as missing: `ensure` tells.
    """
    job = await client.find(Job, name, settings.namespace)
    if job is None or (owner is not None and not is_ours(job, owner)):
        return JobSeen("missing")
    caches.learn(job)
    pod = _newest(await _pods(client, name, settings), job.uid)
    attempt = _attempt(job.metadata.annotations)
    base = JobSeen(_state(job, pod), attempt=attempt, deleting=job.deleting, uid=job.uid)
    if pod is None:
        return replace(base, message=_job_words(job))
    if base.state in ("pending", "running") and overdue(pod, settings, (clock or SystemClock()).now()):
        return replace(base, state="failed", pod=pod.name, node=pod.spec.node_name, message=LOST, lost=True)
    outcome, words = _ending(pod)
    words = words or _job_words(job)
    return replace(base, pod=pod.name, node=pod.spec.node_name, outcome=outcome, message=words)


async def progress(client: Client, seen: JobSeen, settings: Settings) -> Progress | None:
    """Return the mover's last progress line, None when there is none (yet) to be had."""
    if seen.state != "running" or not seen.pod:
        return None
    try:
        text = await client.pod_log_tail(seen.pod, settings.namespace, container=CONTAINER, lines=1)
    except (NotFound, Invalid, Unavailable):
        return None  # not started, or just gone, or its node is slow: the next look tells
    line = text.strip().rsplit("\n", 1)[-1]
    try:
        return msgspec.json.decode(line, type=Progress)
    except msgspec.MsgspecError:
        return None  # a line of the program's log


def overdue(pod: Pod, settings: Settings, now: datetime) -> bool:
    """Return whether a pod that is being deleted should have gone by now."""
    asked = pod.metadata.deletion_timestamp
    return asked is not None and now > asked + timedelta(seconds=GRACE_S + settings.pod_overdue_s)


async def remove(
    client: Client, name: str, settings: Settings, owner: Mapping[str, str], *, clock: Clock | None = None
) -> bool:
    """Delete Job, pods and Secret of that name and owner; True when all of them are gone. Idempotent.

    `owner` are the labels that name the work: an object that doesn't carry them is left alone. A pod whose node lets
    it linger is deleted without asking the node: two movers of one point are harmless (control plane rule 4).
    """
    wanted = owner_of({**owner, LABEL_MANAGED_BY: MANAGED_BY})
    job = await client.find(Job, name, settings.namespace)
    ours = job is not None and owner_of(job.metadata.labels) == wanted
    if job is not None and ours and not job.deleting:
        await client.delete(Job, name, settings.namespace, uid=job.uid, propagation="Background")
        return False
    # A Job that is going still may be waiting for its pods, and these may be what never goes.
    if await _remove_pods(client, name, settings, wanted, (clock or SystemClock()).now()) or ours:
        return False
    secret = await client.find(Secret, name, settings.namespace)
    if secret is not None and owner_of(secret.metadata.labels) == wanted:
        await client.delete(Secret, name, settings.namespace, uid=secret.uid)
    return True


async def lingering(
    client: Client, name: str, settings: Settings, owner: Mapping[str, str], *, clock: Clock | None = None
) -> Literal["", "going", "overdue"]:
    """Return whether pods of that name and owner are left, and whether they should have gone long ago."""
    wanted, now = owner_of({**owner, LABEL_MANAGED_BY: MANAGED_BY}), (clock or SystemClock()).now()
    pods = [pod for pod in await _pods(client, name, settings) if owner_of(pod.metadata.labels) == wanted]
    if any(overdue(pod, settings, now) for pod in pods):
        return "overdue"
    return "going" if pods else ""


async def remove_overdue(
    client: Client, name: str, settings: Settings, owner: Mapping[str, str], *, clock: Clock | None = None
) -> None:
    """Delete pods that should have gone long ago, of Jobs of that name and owner, without asking their nodes."""
    wanted, now = owner_of({**owner, LABEL_MANAGED_BY: MANAGED_BY}), (clock or SystemClock()).now()
    for pod in await _pods(client, name, settings):
        if owner_of(pod.metadata.labels) == wanted and overdue(pod, settings, now):
            await client.delete(Pod, pod.name, settings.namespace, uid=pod.uid, grace_s=0)


async def _remove_pods(
    client: Client, name: str, settings: Settings, owner: tuple[str, str] | None, now: datetime
) -> bool:
    """Delete the pods of that owner; return whether there were any."""
    going = [pod for pod in await _pods(client, name, settings) if owner_of(pod.metadata.labels) == owner]
    for pod in going:
        if not pod.deleting:
            await client.delete(Pod, pod.name, settings.namespace, uid=pod.uid)
        elif overdue(pod, settings, now):
            await client.delete(Pod, pod.name, settings.namespace, uid=pod.uid, grace_s=0)
    return bool(going)


async def _pods(client: Client, name: str, settings: Settings) -> list[Pod]:
    pods, _ = await client.list(Pod, settings.namespace, labels=f"{LABEL_JOB}={name}")
    return pods


def _newest(pods: list[Pod], job_uid: str) -> Pod | None:
    """Return the newest pod that this very Job made: a pod of an attempt before it has another owner."""
    mine = [pod for pod in pods if any(owner.uid == job_uid for owner in pod.metadata.owner_references)]
    return max(
        mine,
        key=lambda pod: (pod.metadata.creation_timestamp is not None, pod.metadata.creation_timestamp, pod.uid),
        default=None,
    )


def _state(job: Job, pod: Pod | None) -> State:
    if job.complete:
        return "succeeded"
    if job.failed:
        return "failed"
    return "running" if pod is not None and pod.status.phase == "Running" else "pending"


def _ending(pod: Pod) -> tuple[MoverOutcome | None, str]:
    """Return what the pod said when it ended, and in words why it ended or doesn't start."""
    for status in pod.status.container_statuses:
        if status.name != CONTAINER:
            continue
        ended = status.state.terminated
        if ended is not None:
            outcome = _outcome(ended.message)
            if outcome is not None:
                return outcome, outcome.message
            return None, f"The mover ended with exit code {ended.exit_code} ({ended.reason or 'no reason given'})"
        waiting = status.state.waiting
        if waiting is not None and waiting.reason not in ("", "ContainerCreating", "PodInitializing"):
            return None, f"{waiting.reason}: {waiting.message}".rstrip(": ")
    if pod.status.reason or pod.status.message:
        return None, f"{pod.status.reason}: {pod.status.message}".strip(": ")
    unscheduled = next((c for c in pod.status.conditions if c.type == "PodScheduled" and c.status == "False"), None)
    return None, f"{unscheduled.reason}: {unscheduled.message}" if unscheduled else ""


def _outcome(text: str) -> MoverOutcome | None:
    try:
        return msgspec.json.decode(text, type=MoverOutcome)
    except msgspec.MsgspecError:
        return None  # killed before it could say


def _job_words(job: Job) -> str:
    failed = next((c for c in job.status.conditions if c.type == "Failed" and c.status == "True"), None)
    return f"{failed.reason}: {failed.message}" if failed else ""


def _attempt(annotations: Mapping[str, str]) -> int:
    text = annotations.get(ANNOTATION_ATTEMPT, "")
    return int(text) if text.isdecimal() else 1
