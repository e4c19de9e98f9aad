"""Put Tidemark into a cluster as the chart would, as far as a sandbox needs it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import yaml

from orchestrator.api.crd import files
from orchestrator.api.foreign.core import Namespace, Secret
from orchestrator.api.meta import Condition, K8sObject, Resource
from orchestrator.api.tidemark.backup_repository import BackupRepository
from orchestrator.config import Settings
from orchestrator.kube.client import Client

ESTABLISHED_S = 30.0


class _DefinitionStatus(msgspec.Struct, frozen=True, kw_only=True):
    conditions: tuple[Condition, ...] = ()


class _Definition(K8sObject, frozen=True, kw_only=True):
    RESOURCE: ClassVar[Resource] = Resource(
        "apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", namespaced=False
    )
    status: _DefinitionStatus = _DefinitionStatus()


class _ServiceAccount(K8sObject, frozen=True, kw_only=True):
    RESOURCE: ClassVar[Resource] = Resource("", "v1", "ServiceAccount", "serviceaccounts", namespaced=True)


async def definitions(client: Client) -> None:
    """Apply the CRDs and wait until they are served."""
    manifests: list[dict[str, Any]] = [yaml.safe_load(text) for text in files().values()]
    for manifest in manifests:
        await client.apply(_Definition, manifest)
    async with asyncio.timeout(ESTABLISHED_S):
        for manifest in manifests:
            name = manifest["metadata"]["name"]
            while not _established(await client.get(_Definition, name)):
                await asyncio.sleep(0.1)


def _established(found: _Definition) -> bool:
    return any(c.type == "Established" and c.status == "True" for c in found.status.conditions)


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
        await client.apply(_ServiceAccount, body)


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
