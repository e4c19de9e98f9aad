"""The same scenes against the sandbox's API server and, with `-m real`, against a real kube-apiserver."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from orchestrator import app
from orchestrator.api.crd import definition
from orchestrator.api.meta import K8sObject, ObjectMeta, Resource
from orchestrator.api.tidemark import KINDS
from orchestrator.app.house import Health, House
from orchestrator.clock import SystemClock
from orchestrator.config import Settings
from orchestrator.kube import errors
from orchestrator.kube.cache import Cache, Timing
from orchestrator.kube.client import Client
from orchestrator.kube.events import Event, Recorder
from orchestrator.kube.lease import Lease, LeaseObject
from orchestrator.kube.tokens import AccountTokens
from orchestrator.sandbox.apiserver.server import ApiServer
from tests.api.real_apiserver import TOKEN, find_tool, real_apiserver


class ConfigMap(K8sObject, frozen=True, kw_only=True):
    RESOURCE: ClassVar[Resource] = Resource("", "v1", "ConfigMap", "configmaps", namespaced=True)

    data: dict[str, str] = {}  # noqa: RUF012 - msgspec copies it


class Account(K8sObject, frozen=True, kw_only=True):
    RESOURCE: ClassVar[Resource] = Resource("", "v1", "ServiceAccount", "serviceaccounts", namespaced=True)


class Crd(K8sObject, frozen=True, kw_only=True):
    RESOURCE: ClassVar[Resource] = Resource(
        "apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", namespaced=False
    )


@contextlib.asynccontextmanager
async def sandbox(folder: Path) -> AsyncIterator[str]:
    server = ApiServer(folder / "state")
    ready = asyncio.Event()
    serving = asyncio.create_task(server.run(ready))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait([serving, waiting], return_when=asyncio.FIRST_COMPLETED)
    path = folder / "kubeconfig"
    path.write_text(server.kubeconfig())
    try:
        yield str(path)
    finally:
        serving.cancel()
        waiting.cancel()
        await asyncio.gather(serving, waiting, return_exceptions=True)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Any:
    etcd, apiserver = find_tool("etcd"), find_tool("kube-apiserver")
    if etcd is None or apiserver is None:
        pytest.skip("needs etcd and kube-apiserver in KUBEBUILDER_ASSETS")
    folder = tmp_path_factory.mktemp("real")
    with real_apiserver(etcd, apiserver, folder) as server:
        path = folder / "kubeconfig"
        cluster = {"server": server.url, "certificate-authority": str(server.certificate)}
        config = {
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": TOKEN}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path.write_text(yaml.safe_dump(config))
        yield str(path)


@pytest.fixture(params=["sandbox", pytest.param("real", marks=pytest.mark.real)])
async def kubeconfig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    if request.param == "real":
        yield request.getfixturevalue("real")
        return
    async with sandbox(tmp_path) as path:
        yield path


@pytest.fixture
async def client(kubeconfig: str) -> AsyncIterator[Client]:
    async with await Client.connect(kubeconfig=kubeconfig, timeout_s=10) as connected:
        yield connected


@pytest.fixture
async def namespace(client: Client, request: pytest.FixtureRequest) -> str:
    resource = Resource("", "v1", "Namespace", "namespaces", namespaced=False)
    made = await client.create_raw(resource, {"metadata": {"generateName": "kube-test-"}}, Named)
    return made.name


class Named(K8sObject, frozen=True, kw_only=True):
    RESOURCE: ClassVar[Resource] = Resource("", "v1", "Namespace", "namespaces", namespaced=False)


def config(name: str, namespace: str, labels: dict[str, str] | None = None, **data: str) -> ConfigMap:
    return ConfigMap(metadata=ObjectMeta(name=name, namespace=namespace, labels=labels or {}), data=data)


async def test_objects_are_made_changed_and_deleted_as_the_seam_says(client: Client, namespace: str) -> None:
    made = await client.create(config("a", namespace, k="1"))
    with pytest.raises(errors.AlreadyExists):
        await client.create(config("a", namespace))
    with pytest.raises(errors.Invalid) as invalid:
        await client.create(config("Not A Name", namespace))
    assert invalid.value.causes

    patched = await client.merge_patch(ConfigMap, "a", namespace, {"data": {"k": "2", "l": "3"}})
    assert patched.data == {"k": "2", "l": "3"}
    stale = {"metadata": {"resourceVersion": made.metadata.resource_version}, "data": {"k": "9"}}
    with pytest.raises(errors.Conflict):
        await client.merge_patch(ConfigMap, "a", namespace, stale)
    ops = [{"op": "test", "path": "/data/k", "value": "2"}, {"op": "remove", "path": "/data/l"}]
    assert (await client.json_patch(ConfigMap, "a", namespace, ops)).data == {"k": "2"}
    with pytest.raises(errors.Invalid):
        await client.json_patch(ConfigMap, "a", namespace, ops)
    wanted = {"metadata": {"name": "b", "namespace": namespace}, "data": {"k": "1"}}
    assert (await client.apply(ConfigMap, wanted)).data == {"k": "1"}
    assert (await client.apply(ConfigMap, wanted)).data == {"k": "1"}

    assert await client.delete(ConfigMap, "a", namespace, uid="another") is False
    assert await client.delete(ConfigMap, "a", namespace, uid=made.uid) is True
    assert await client.delete(ConfigMap, "a", namespace, uid=made.uid) is False
    assert await client.find(ConfigMap, "a", namespace) is None
    assert await client.find(ConfigMap, "b", namespace) is not None


async def test_without_force_another_owners_field_is_a_conflict(client: Client, namespace: str) -> None:
    await client.merge_patch(ConfigMap, (await client.create(config("a", namespace, k="1"))).name, namespace, {})
    client.field_manager = "somebody-else"
    taken = {"metadata": {"name": "a", "namespace": namespace}, "data": {"k": "2"}}

    with pytest.raises(errors.Conflict):
        await client.apply(ConfigMap, taken, force=False)
    assert (await client.apply(ConfigMap, taken)).data == {"k": "2"}


async def test_a_long_list_comes_in_chunks_and_whole(client: Client, namespace: str) -> None:
    for number in range(12):
        await client.create(config(f"c{number:02}", namespace, labels={"app": "x"}))

    found, version = await client.list(ConfigMap, namespace, labels="app=x", limit=5)

    assert [item.name for item in found] == [f"c{number:02}" for number in range(12)]
    assert version.isdigit()


async def test_a_deletion_held_by_a_finalizer_is_told_by_the_reply(client: Client, namespace: str) -> None:
    held = ConfigMap(metadata=ObjectMeta(name="a", namespace=namespace, finalizers=("tidemark.dev/in-flight",)))
    made = await client.create(held)
    replies: list[K8sObject] = []
    client.on_reply.append(replies.append)

    assert await client.delete(ConfigMap, "a", namespace, uid=made.uid)

    assert replies[0].deleting
    await client.merge_patch(ConfigMap, "a", namespace, {"metadata": {"finalizers": None}})
    assert await client.find(ConfigMap, "a", namespace) is None


async def changed(cache: Cache[ConfigMap], condition: Callable[[], bool]) -> None:
    event = asyncio.Event()
    cache.subscribe(lambda _old, _new: event.set())
    async with asyncio.timeout(10):
        while not condition():
            event.clear()
            await event.wait()


async def test_a_cache_follows_and_lets_go_of_what_leaves_its_selector(client: Client, namespace: str) -> None:
    cache = Cache(client, ConfigMap, namespace=namespace, labels="app=x", timing=Timing(watch_s=1))
    await client.create(config("a", namespace, labels={"app": "x"}, k="1"))
    task = asyncio.create_task(cache.run())
    try:
        async with asyncio.timeout(10):
            await cache.synced.wait()
        assert [item.data for item in cache.all()] == [{"k": "1"}]
        await client.create(config("b", namespace, labels={"app": "x"}))
        await client.merge_patch(ConfigMap, "a", namespace, {"data": {"k": "2"}})
        await changed(cache, lambda: [item.data for item in cache.all()] == [{"k": "2"}, {}])
        await client.merge_patch(ConfigMap, "a", namespace, {"metadata": {"labels": {"app": "y"}}})
        await changed(cache, lambda: [item.name for item in cache.all()] == ["b"])
        # More than one watch later (each lasts about 1 s) it still follows, without another list.
        before = cache.stats.watches
        async with asyncio.timeout(10):
            while cache.stats.watches < before + 2:
                await asyncio.sleep(0.05)
        await client.create(config("c", namespace, labels={"app": "x"}))
        await changed(cache, lambda: [item.name for item in cache.all()] == ["b", "c"])
        assert cache.stats.lists == 1
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_kind_that_is_not_installed_is_absent(client: Client) -> None:
    class Nothing(K8sObject, frozen=True, kw_only=True):
        RESOURCE: ClassVar[Resource] = Resource("nothing.dev", "v1", "Nothing", "nothings", namespaced=True)

    cache = Cache(client, Nothing, optional=True)
    task = asyncio.create_task(cache.run())
    async with asyncio.timeout(10):
        await cache.synced.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert cache.absent
    assert await client.preferred("nothing.dev", [Nothing.RESOURCE]) is None
    assert await client.preferred("", [ConfigMap.RESOURCE]) == ConfigMap.RESOURCE
    assert "v1" in (await client.api_groups())["coordination.k8s.io"]


async def test_the_lease_is_taken_renewed_and_given_back(client: Client, kubeconfig: str, namespace: str) -> None:
    lease = Lease(namespace=namespace, name="l", kubeconfig=kubeconfig, duration_s=3, renew_s=1)
    task = asyncio.create_task(lease.run())
    async with asyncio.timeout(10):
        await lease.acquired.wait()
    lease.check()
    first = await client.get(LeaseObject, "l", namespace)
    async with asyncio.timeout(10):
        while (await client.get(LeaseObject, "l", namespace)).spec.renew_time == first.spec.renew_time:
            await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert first.spec.holder_identity == lease.identity
    assert (await client.get(LeaseObject, "l", namespace)).spec.holder_identity == ""


async def test_events_are_accepted_and_counted(client: Client, namespace: str) -> None:
    recorder = Recorder(client, SystemClock(), instance="i")
    obj = await client.create(config("a", namespace))
    for _ in range(2):
        for _ in range(3):
            recorder.event(obj, "Warning", "SnapshotFailed", "the driver said no")
        recorder.event(Named(metadata=ObjectMeta(name=namespace, uid="u")), "Normal", "Ready", "cluster scoped")
        await recorder.drain(5)

    found, _ = await client.list(Event, namespace)
    assert [event.count for event in found] == [6]
    assert recorder.dropped == 0


async def test_tokens_have_one_audience_and_never_the_servers_own(client: Client, namespace: str) -> None:
    await client.create(Account(metadata=ObjectMeta(name="tidemark-controller", namespace=namespace)))
    tokens = AccountTokens(
        client, SystemClock(), service_account="tidemark-controller", namespace=namespace, environ={}
    )

    token = await tokens.token("some-cbt-service")

    assert token.value.count(".") == 2
    assert (token.expires_at - SystemClock().now()).total_seconds() > 3000
    for own in ("https://kubernetes.default.svc", client.host, ""):
        with pytest.raises(errors.TokenRefused):
            await tokens.token(own)


async def test_the_whole_house_comes_up_and_ends_clean(client: Client, kubeconfig: str, namespace: str) -> None:
    for kind in KINDS:
        with contextlib.suppress(errors.AlreadyExists):
            await client.create_raw(Crd.RESOURCE, definition(kind), Crd)
    stop = asyncio.Event()
    up: asyncio.Future[Health] = asyncio.get_running_loop().create_future()
    settings = Settings(namespace=namespace, metrics_address="", lease_duration_s=3, lease_renew_s=2)
    # CRDs take a moment to be served; the caches wait for them.
    running = asyncio.create_task(
        app.run(settings, kubeconfig=kubeconfig, build=lambda _: House(), stop=stop, started=up.set_result)
    )
    async with asyncio.timeout(60):
        await asyncio.wait([running, up], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            await running
        health = await up
        assert health.unready() is None
        stop.set()
        await running
    # The watches' connections say goodbye by TLS, which nobody waits for; this test's loop must not end before.
    await asyncio.sleep(1)
