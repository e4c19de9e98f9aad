"""Jobs and pods: what runs, with what, how it ends, and that nothing is left."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from orchestrator.sandbox.api import MERGE
from orchestrator.sandbox.cluster import Sandbox
from orchestrator.sandbox.kinds import (
    CONFIG_MAP,
    EVENT,
    JOB,
    NODE,
    POD,
    SECRET,
    VOLUME_ATTACHMENT,
)
from orchestrator.sandbox.objects import Manifest, labels, name, spec, status, uid
from tests.sandbox.cluster.world import World
from tests.waiting import SHORT

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = {"securityContext": {"runAsUser": 0}}


def condition(job: Manifest) -> tuple[str, str]:
    found = next(c for c in status(job)["conditions"] if c["type"] in {"Complete", "Failed"})
    return found["type"], found["reason"]


def ended(pod: Manifest) -> Manifest:
    found: Manifest = status(pod)["containerStatuses"][0]["state"]["terminated"]
    return found


async def gone(world: World, job: Manifest) -> None:
    await world.api.delete(JOB, job)
    await world.until_gone(JOB, job)


async def until_running(world: World, job: str) -> Manifest:
    async with asyncio.timeout(SHORT):
        while True:
            for pod in await world.pods(job):
                if status(pod).get("phase") == "Running":
                    return pod
            await asyncio.sleep(0.02)


async def log(world: World, pod: Manifest, **query: str) -> str:
    """Read a log through the API server, as kubectl does."""
    session: Any = world.api._session
    url = f"{world.api._config.server}{POD.path('default', name(pod), 'log')}"
    async with session.get(url, params=query) as answer:
        return str(await answer.text())


async def test_a_job_reads_its_device_secret_and_environment_and_leaves_a_message(
    sandbox: Sandbox, world: World
) -> None:
    claim = await world.claim("device", storage_class="sandbox-wffc", wait=False)
    await world.api.create(
        SECRET, {"metadata": {"name": "keys", "namespace": "default"}, "stringData": {"mover.json": '{"k": 1}'}}
    )
    await world.api.create(
        CONFIG_MAP, {"metadata": {"name": "words", "namespace": "default"}, "data": {"word": "tide"}}
    )
    script = (
        'cat "$0"; echo; stat -c %a "$0"; echo "$WORD $POD_NAME $(basename "$DEVICE")"; '
        'printf written | dd of="$DEVICE" conv=notrunc status=none; echo "message of $POD_NAMESPACE" > "$LOG"'
    )
    container = {
        "args": ["/etc/keys/mover.json"],
        "env": [
            {"name": "WORD", "valueFrom": {"configMapKeyRef": {"name": "words", "key": "word"}}},
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
            {"name": "DEVICE", "value": "/dev/data"},
            {"name": "LOG", "value": "/dev/termination-log"},
        ],
        "volumeDevices": [{"name": "data", "devicePath": "/dev/data"}],
        "volumeMounts": [{"name": "keys", "mountPath": "/etc/keys"}],
        **ROOT,
    }
    volumes = [
        {"name": "data", "persistentVolumeClaim": {"claimName": "device"}},
        {"name": "keys", "secret": {"secretName": "keys"}},
    ]

    job = await world.job("reads", script, container=container, pod={"volumes": volumes})

    assert condition(await world.finished(job)) == ("Complete", "CompletionsReached")
    [pod] = await world.pods("reads")
    image = await world.image(await world.bound(claim))
    assert (await log(world, pod)).splitlines() == ['{"k": 1}', "600", f"tide {name(pod)} {image.name}"]
    assert ended(pod)["message"] == "message of default\n"
    assert image.read_bytes()[:8] == b"written\0"
    home = sandbox.directory / "data" / "pods" / uid(pod)
    await until(lambda: not (home / "volumes").exists())
    await until_no_attachment(world)
    await gone(world, job)
    await until(lambda: not home.exists())


async def test_a_mount_over_the_programs_own_folder_does_not_hide_it(world: World) -> None:
    container = {
        "command": ["/bin/sh", "-c", 'echo "$0"', "/bin/here"],
        "volumeMounts": [{"name": "scratch", "mountPath": "/bin"}],
    }
    job = await world.job("hidden", "", container=container, pod={"volumes": [{"name": "scratch", "emptyDir": {}}]})

    assert condition(await world.finished(job)) == ("Complete", "CompletionsReached")
    [pod] = await world.pods("hidden")
    assert (await log(world, pod)).strip().endswith("/volumes/scratch/here")


async def until(holds: Any, timeout_s: float = SHORT) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.02)


async def until_no_attachment(world: World) -> None:
    async with asyncio.timeout(SHORT):
        while (await world.api.list(VOLUME_ATTACHMENT))[0]:
            await asyncio.sleep(0.02)


async def test_an_indexed_job_runs_each_index_once(world: World) -> None:
    job = await world.job(
        "shards", "echo shard $JOB_COMPLETION_INDEX", completions=3, parallelism=2, completionMode="Indexed"
    )

    done = await world.finished(job)

    assert (status(done)["succeeded"], status(done)["completedIndexes"]) == (3, "0-2")
    pods = await world.pods("shards")
    assert sorted([(await log(world, pod)).strip() for pod in pods]) == ["shard 0", "shard 1", "shard 2"]
    assert {labels(pod)["batch.kubernetes.io/job-completion-index"] for pod in pods} == {"0", "1", "2"}
    assert all(not pod["metadata"].get("finalizers") for pod in pods)


async def test_a_failing_job_ends_after_its_backoff_limit_and_counts_every_pod_once(world: World) -> None:
    job = await world.job(
        "fails",
        "echo no > $TL; exit 75",
        backoffLimit=2,
        container={"env": [{"name": "TL", "value": "/dev/termination-log"}]},
    )

    done = await world.finished(job)

    assert condition(done) == ("Failed", "BackoffLimitExceeded")
    assert status(done)["failed"] == 3
    pods = await world.pods("fails")
    assert [(ended(pod)["exitCode"], ended(pod)["message"]) for pod in pods] == [(75, "no\n")] * 3


async def test_a_job_past_its_deadline_is_failed_and_its_process_is_gone(world: World) -> None:
    job = await world.job("late", "echo $$$$; sleep 600", pod={"terminationGracePeriodSeconds": 1})
    pod = await until_running(world, "late")
    await until_log(world, pod)
    pid = int(await log(world, pod))

    deadline = {"spec": {"activeDeadlineSeconds": 1}}
    await world.api.call("PATCH", JOB.path("default", "late"), body=deadline, content_type=MERGE)

    assert condition(await world.finished(job)) == ("Failed", "DeadlineExceeded")
    assert not Path(f"/proc/{pid}").exists()


async def until_log(world: World, pod: Manifest) -> None:
    async with asyncio.timeout(SHORT):
        while not (await log(world, pod)).strip().isdigit():
            await asyncio.sleep(0.02)


async def test_a_finished_job_goes_after_its_time_to_live_and_takes_its_pods_along(world: World) -> None:
    job = await world.job("short", "true", ttlSecondsAfterFinished=0)

    await world.until_gone(JOB, job)

    async with asyncio.timeout(SHORT):
        while await world.pods("short"):
            await asyncio.sleep(0.02)


async def test_a_suspended_job_runs_nothing_until_it_is_resumed(world: World) -> None:
    job = await world.job("later", "true", suspend=True)
    await world.until(JOB, job, lambda j: any(c["type"] == "Suspended" for c in status(j).get("conditions") or []))
    assert await world.pods("later") == []

    live = await world.api.get(JOB, "later", "default")
    await world.api.patch(JOB, live, {"spec": {"suspend": False}})

    assert condition(await world.finished(job))[0] == "Complete"


async def test_a_killed_pod_fails_and_its_job_starts_another(sandbox: Sandbox, world: World) -> None:
    job = await world.job(
        "killed",
        'test -e "$D/once" && exit 0; touch "$D/once"; sleep 60',
        container={"env": [{"name": "D", "value": str(sandbox.directory)}]},
        backoffLimit=3,
    )
    pod = await until_running(world, "killed")
    await until(lambda: (sandbox.directory / "once").exists())

    assert await sandbox.kill(name(pod), "default") == ["main"]

    done = await world.finished(job)
    assert (status(done)["succeeded"], status(done)["failed"]) == (1, 1)
    assert ended(await world.api.get(POD, name(pod), "default"))["exitCode"] == 137


async def test_a_deleted_pod_is_asked_first_and_killed_after_its_grace(world: World) -> None:
    for at, script, grace_s in [
        ("asks", "trap 'exit 0' TERM; echo $$$$; sleep 60 & wait", 30),
        ("deaf", "trap '' TERM; echo $$$$; sleep 60 & wait; sleep 60", 1),
    ]:
        pod = {
            "metadata": {"name": at, "namespace": "default"},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": grace_s,
                "containers": [{"name": "main", "image": "none", "command": ["sh", "-c", script]}],
            },
        }
        made = await world.api.create(POD, pod)
        await world.until(POD, made, lambda p: status(p).get("phase") == "Running")
        await until_log(world, made)
        pid = int(await log(world, made))
        before = asyncio.get_running_loop().time()

        await world.api.delete(POD, made)
        await world.until_gone(POD, made)

        took_s = asyncio.get_running_loop().time() - before
        assert took_s > 0.9 if at == "deaf" else took_s < grace_s
        assert not Path(f"/proc/{pid}").exists()


async def test_a_mover_that_is_not_root_is_refused_unless_allowed(sandbox: Sandbox, world: World) -> None:
    await world.claim("guarded")
    user = {"securityContext": {"runAsUser": 65532}}
    job = await world.job("nonroot", "true", claims={"guarded": "guarded"}, container=user, backoffLimit=0)
    assert condition(await world.finished(job))[0] == "Failed"
    [pod] = await world.pods("nonroot")
    assert "permission denied" in ended(pod)["message"]

    await sandbox.fault("allow-non-root")
    job = await world.job("allowed", "true", claims={"guarded": "guarded"}, container=user, backoffLimit=0)
    assert condition(await world.finished(job))[0] == "Complete"
    await sandbox.fault("allow-non-root", None)


async def test_a_volume_is_attached_to_one_node_only(world: World) -> None:
    await world.claim("single")
    nodes = [name(node) for node in (await world.api.list(NODE))[0]]
    assert len(nodes) == 2
    pin = {"nodeSelector": {"kubernetes.io/hostname": nodes[0]}, "terminationGracePeriodSeconds": 1}
    first = await world.job("first", "sleep 60", claims={"v": "single"}, pod=pin)
    await until_running(world, "first")
    pin = {"nodeSelector": {"kubernetes.io/hostname": nodes[1]}}
    second = await world.job("second", "true", claims={"v": "single"}, pod=pin)
    async with asyncio.timeout(SHORT):
        while not [e for e in (await world.api.list(EVENT, "default"))[0] if "Multi-Attach" in e["message"]]:
            await asyncio.sleep(0.02)
    [pod] = await world.pods("second")
    assert [spec(a)["nodeName"] for a in (await world.api.list(VOLUME_ATTACHMENT))[0]] == [nodes[0]]
    assert status(pod)["phase"] == "Pending"

    await world.api.delete(JOB, first)

    assert condition(await world.finished(second))[0] == "Complete"
    await until_no_attachment(world)


async def test_a_volume_that_waited_stays_in_the_zone_of_its_consumer(world: World) -> None:
    zone = {"nodeSelector": {"topology.kubernetes.io/zone": "zone-b"}}
    claim = await world.claim("zonal", storage_class="sandbox-wffc", wait=False)
    await world.finished(await world.job("chooses", "true", claims={"v": "zonal"}, pod=zone))
    terms = spec(await world.volume(await world.bound(claim)))["nodeAffinity"]["required"]["nodeSelectorTerms"]
    assert terms[0]["matchExpressions"][0]["values"] == ["zone-b"]

    follower = await world.job("follows", "true", claims={"v": "zonal"})
    await world.finished(follower)

    [pod] = await world.pods("follows")
    assert spec(pod)["nodeName"] == "sandbox-2"


async def test_a_node_attaches_no_more_than_its_limit(sandbox: Sandbox, world: World) -> None:
    await sandbox.fault("attach-limit", "1")
    for at in ("one", "two", "three"):
        await world.claim(f"limit-{at}")
        await world.job(
            f"limit-{at}", "sleep 60", claims={"v": f"limit-{at}"}, pod={"terminationGracePeriodSeconds": 0}
        )
    async with asyncio.timeout(SHORT):
        while (
            len(
                [
                    p
                    for at in ("one", "two", "three")
                    for p in await world.pods(f"limit-{at}")
                    if spec(p).get("nodeName")
                ]
            )
            < 2
        ):
            await asyncio.sleep(0.05)
    waiting = [
        p for at in ("one", "two", "three") for p in await world.pods(f"limit-{at}") if not spec(p).get("nodeName")
    ]
    assert len(waiting) == 1
    held = await world.until(POD, waiting[0], lambda p: status(p).get("conditions"))
    assert "exceed max volume count" in status(held)["conditions"][0]["message"]

    await sandbox.fault("attach-limit", None)

    await world.until(POD, waiting[0], lambda p: status(p).get("phase") == "Running")
    for at in ("one", "two", "three"):
        await gone(world, await world.api.get(JOB, f"limit-{at}", "default"))


async def test_a_log_can_be_read_from_its_end_and_limited(world: World) -> None:
    job = await world.job("talks", "for i in 1 2 3 4 5; do echo line $i; done")
    await world.finished(job)
    [pod] = await world.pods("talks")

    assert await log(world, pod, tailLines="1") == "line 5\n"
    assert await log(world, pod, tailLines="2") == "line 4\nline 5\n"
    assert await log(world, pod, limitBytes="6") == "line 1"
    assert (await log(world, pod, follow="true")).count("line") == 5


async def test_a_command_that_is_nowhere_and_a_volume_that_is_not_played_say_so(world: World) -> None:
    job = await world.job("nowhere", "", container={"command": ["no-such-program"]}, backoffLimit=0)
    await world.finished(job)
    [pod] = await world.pods("nowhere")
    assert (ended(pod)["reason"], "no-such-program" in ended(pod)["message"]) == ("StartError", True)

    job = await world.job(
        "nfs", "true", pod={"volumes": [{"name": "n", "nfs": {"server": "s", "path": "/p"}}]}, backoffLimit=0
    )
    await world.finished(job)
    [pod] = await world.pods("nfs")
    assert "nfs" in ended(pod)["message"]


async def test_fault_mover_kill_hits_the_next_mover_once(sandbox: Sandbox, world: World) -> None:
    await world.claim("victim")
    await sandbox.fault("mover-kill", "0.1")
    job = await world.job("mover", "sleep 0.6", claims={"v": "victim"}, backoffLimit=3)

    done = await world.finished(job)

    assert (status(done)["failed"], status(done)["succeeded"]) == (1, 1)
    assert await sandbox.faults() == {}


async def test_no_process_secret_or_attachment_is_left(sandbox: Sandbox, world: World) -> None:
    for job in (await world.api.list(JOB, "default"))[0]:
        await world.api.delete(JOB, job)
    await until_no_attachment(world)
    await until(lambda: not any((sandbox.directory / "data" / "pods").iterdir()))
