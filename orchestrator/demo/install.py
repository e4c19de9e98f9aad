"""Put Tidemark into a cluster as the chart would, as far as a sandbox needs it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any

import yaml

from orchestrator.api.crd import files
from orchestrator.api.foreign.cluster import (
    ClusterRole,
    ClusterRoleBinding,
    CustomResourceDefinition,
    ServiceAccount,
)
from orchestrator.api.foreign.core import Namespace, Secret
from orchestrator.api.tidemark.backup_repository import BackupRepository
from orchestrator.config import Settings
from orchestrator.kube.client import Client

ESTABLISHED_S = 30.0


async def definitions(client: Client) -> None:
    """Apply the CRDs and wait until they are served."""
    manifests: list[dict[str, Any]] = [yaml.safe_load(text) for text in files().values()]
    for manifest in manifests:
        await client.apply(CustomResourceDefinition, manifest)
    async with asyncio.timeout(ESTABLISHED_S):
        for manifest in manifests:
            name = manifest["metadata"]["name"]
            while not (await client.get(CustomResourceDefinition, name)).established:
                await asyncio.sleep(0.1)


async def namespace(client: Client, name: str, annotations: Mapping[str, str] | None = None) -> Namespace:
    """Make a namespace (or set its annotations)."""
    metadata: dict[str, Any] = {"name": name}
    if annotations:
        metadata["annotations"] = dict(annotations)
    return await client.apply(Namespace, {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})


async def controller_home(client: Client, settings: Settings) -> None:
    """Make the controller's namespace and service accounts."""
    await namespace(client, settings.namespace)
    for account in (settings.service_account, settings.mover_service_account):
        body = {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": account, "namespace": settings.namespace},
        }
        await client.apply(ServiceAccount, body)
    await grant_cbt(client, settings)


async def grant_cbt(client: Client, settings: Settings) -> None:
    """Let the account whose tokens the CBT services get read VolumeSnapshots: the services ask for just that."""
    name = "tidemark-cbt-client"
    rule = {"apiGroups": ["snapshot.storage.k8s.io"], "resources": ["volumesnapshots"], "verbs": ["get"]}
    group, kind = "rbac.authorization.k8s.io", "ClusterRole"
    await client.apply(
        ClusterRole, {"apiVersion": f"{group}/v1", "kind": kind, "metadata": {"name": name}, "rules": [rule]}
    )
    binding = {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": group, "kind": kind, "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": settings.service_account, "namespace": settings.namespace}],
    }
    await client.apply(ClusterRoleBinding, binding)


async def repository(client: Client, settings: Settings, name: str, url: str) -> str:
    """Make a repository with a key of its own; return the key in hex."""
    found = await client.find(Secret, f"{name}-key", settings.namespace)
    key = found.data["master.key"].decode() if found is not None else secrets.token_hex(32)
    if found is None:
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": f"{name}-key", "namespace": settings.namespace},
            "stringData": {"master.key": key},
        }
        await client.create_raw(Secret.RESOURCE, secret, Secret)
    body = {
        "apiVersion": BackupRepository.RESOURCE.api_version,
        "kind": "BackupRepository",
        "metadata": {"name": name},
        "spec": {"url": url, "encryptionSecret": f"{name}-key", "allowedNamespaces": ["*"]},
    }
    await client.apply(BackupRepository, body)
    return key
