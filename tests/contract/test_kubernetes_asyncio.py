"""The public Python client, kubernetes_asyncio, with its own model classes and its own watch, on both servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kubernetes_asyncio import client, config, watch
from kubernetes_asyncio.client.exceptions import ApiException

from tests.contract.clusters import Cluster
from tests.waiting import SHORT


@contextlib.asynccontextmanager
async def _connected(cluster: Cluster) -> AsyncIterator[client.ApiClient]:
    settings = client.Configuration()
    await config.load_kube_config(str(cluster.kubeconfig), client_configuration=settings)
    async with client.ApiClient(settings) as api:
        yield api


async def test_objects_are_made_read_changed_and_deleted(cluster: Cluster, ns: str) -> None:
    async with _connected(cluster) as api, asyncio.timeout(SHORT):
        core = client.CoreV1Api(api)
        body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="c", labels={"a": "b"}), data={"k": "v"})
        made = await core.create_namespaced_config_map(ns, body)
        assert made.metadata.uid
        assert made.metadata.creation_timestamp.tzinfo is not None
        stale = await core.read_namespaced_config_map("c", ns)
        made.data["k"] = "w"
        await core.replace_namespaced_config_map("c", ns, made)
        with pytest.raises(ApiException) as conflict:
            await core.replace_namespaced_config_map("c", ns, stale)
        assert (conflict.value.status, conflict.value.reason) == (409, "Conflict")
        patched = await core.patch_namespaced_config_map("c", ns, {"data": {"l": "x"}})
        assert patched.data == {"k": "w", "l": "x"}
        found = await core.list_namespaced_config_map(ns, label_selector="a=b", limit=1)
        assert [item.metadata.name for item in found.items] == ["c"]
        ended = await core.delete_namespaced_config_map("c", ns)
        assert ended.status == "Success"
        with pytest.raises(ApiException) as missing:
            await core.read_namespaced_config_map("c", ns)
        assert missing.value.status == 404


async def test_its_watch_yields_typed_objects_and_resumes(cluster: Cluster, ns: str) -> None:
    async with _connected(cluster) as api, asyncio.timeout(SHORT):
        core = client.CoreV1Api(api)
        start = await core.list_namespaced_config_map(ns)

        async def change() -> None:
            for name in ("one", "two"):
                await core.create_namespaced_config_map(ns, {"metadata": {"name": name}})
            await core.delete_namespaced_config_map("one", ns)

        seen: list[tuple[str, str]] = []
        async with watch.Watch() as watching, asyncio.TaskGroup() as group:
            group.create_task(change())
            stream: Any = watching.stream(
                core.list_namespaced_config_map, ns, resource_version=start.metadata.resource_version,
                field_selector="metadata.name!=kube-root-ca.crt",
            )  # fmt: skip
            async for event in stream:
                assert isinstance(event["object"], client.V1ConfigMap)
                seen.append((event["type"], event["object"].metadata.name))
                if len(seen) == 3:
                    break
        assert seen == [("ADDED", "one"), ("ADDED", "two"), ("DELETED", "one")]


async def test_custom_kinds_jobs_and_tokens_are_spoken_too(cluster: Cluster, ns: str) -> None:
    async with _connected(cluster) as api, asyncio.timeout(SHORT):
        pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i:1"}]}
        body = {"metadata": {"name": "j"}, "spec": {"suspend": True, "template": {"spec": pod}}}
        job = await client.BatchV1Api(api).create_namespaced_job(ns, body)
        assert (job.spec.parallelism, job.spec.completions, job.spec.backoff_limit) == (1, 1, 6)
        spec = client.V1TokenRequestSpec(audiences=["a.example.com"], expiration_seconds=600)
        asked = client.AuthenticationV1TokenRequest(spec=spec)
        token = await client.CoreV1Api(api).create_namespaced_service_account_token("default", ns, asked)
        review = client.V1TokenReview(
            spec=client.V1TokenReviewSpec(token=token.status.token, audiences=["a.example.com"])
        )
        told = await client.AuthenticationV1Api(api).create_token_review(review)
        assert told.status.authenticated
        assert told.status.user.username == f"system:serviceaccount:{ns}:default"
        kinds = await client.CustomObjectsApi(api).list_cluster_custom_object(
            "apiextensions.k8s.io", "v1", "customresourcedefinitions"
        )
        assert kinds["kind"] == "CustomResourceDefinitionList"
