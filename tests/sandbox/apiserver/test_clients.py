"""The client library that the controllers use, and the way of a pod's log."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path

import kubernetes_asyncio
import yaml
from aiohttp import web
from kubernetes_asyncio.watch import Watch

from tests.sandbox.apiserver.conftest import Client
from tests.waiting import SHORT


async def test_kubernetes_asyncio_reads_writes_and_watches(client: Client, tmp_path: Path) -> None:
    config = kubernetes_asyncio.client.Configuration()
    text = yaml.safe_load(client.server.kubeconfig())
    await kubernetes_asyncio.config.load_kube_config_from_dict(text, client_configuration=config)
    async with kubernetes_asyncio.client.ApiClient(config) as api:
        core = kubernetes_asyncio.client.CoreV1Api(api)
        made = await core.create_namespaced_config_map("default", {"metadata": {"name": "a"}, "data": {"k": "v"}})
        found = await core.list_namespaced_config_map("default")
        assert "a" in [m.metadata.name for m in found.items]
        await core.patch_namespaced_config_map("a", "default", {"data": {"k": "w"}})
        seen = []
        rv = made.metadata.resource_version
        async with asyncio.timeout(SHORT), Watch() as watch:
            await core.delete_namespaced_config_map("a", "default")
            stream = watch.stream(core.list_namespaced_config_map, "default", resource_version=rv, timeout_seconds=5)
            async for event in stream:
                seen.append((event["type"], event["object"].metadata.name))
                if event["type"] == "DELETED":
                    break
        assert seen == [("MODIFIED", "a"), ("DELETED", "a")]


async def test_logs_are_fetched_from_the_pods_node(client: Client) -> None:
    asked: list[tuple[str, dict[str, str], str]] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.path, dict(request.query), request.headers["Authorization"]))
        return web.Response(text="line 1\nline 2\n")

    app = web.Application()
    app.router.add_get("/containerLogs/{ns}/{pod}/{container}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }
    node = await client.made("/api/v1/nodes", {"metadata": {"name": "n1"}})
    await client.call("PUT", "/api/v1/nodes/n1/status", {**node, "status": status})
    secret = {"metadata": {"name": "sandbox-node-n1"}, "data": {"token": base64.b64encode(b"hush").decode()}}
    await client.made("/api/v1/namespaces/kube-system/secrets", secret)
    spec = {"containers": [{"name": "c", "image": "i"}], "nodeName": "n1"}
    await client.made("/api/v1/namespaces/default/pods", {"metadata": {"name": "p"}, "spec": spec})
    try:
        url = client.server.url + "/api/v1/namespaces/default/pods/p/log"
        async with client.session.get(url, params={"tailLines": "2"}) as response:
            assert (response.status, await response.text()) == (200, "line 1\nline 2\n")
        assert asked == [("/containerLogs/default/p/c", {"tailLines": "2"}, "Bearer hush")]
        async with client.session.get(url, params={"container": "none"}) as response:
            assert response.status == 400
            assert json.loads(await response.text())["message"] == "container none is not valid for pod p"
    finally:
        await runner.cleanup()
    async with client.session.get(url) as response:
        assert response.status == 500
        assert "hush" not in await response.text()


async def test_exec_is_refused_clearly(client: Client) -> None:
    spec = {"containers": [{"name": "c", "image": "i"}]}
    await client.made("/api/v1/namespaces/default/pods", {"metadata": {"name": "p"}, "spec": spec})
    status, body = await client.call("POST", "/api/v1/namespaces/default/pods/p/exec")
    assert (status, body["reason"]) == (501, "NotImplemented")
