"""Credentials of instances and workloads of Google and Azure: found without a Secret, kept, and never shown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.errors import TidemarkError
from orchestrator.repository.store import Store, open_store
from tests.repository.identities import WORKLOAD_TOKEN, Cloud, serving
from tests.waiting import LONG


@pytest.fixture
async def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    monkeypatch.setenv("HOME", str(tmp_path))  # gcloud keeps credentials there
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "AZURE_CLIENT_ID", "AZURE_TENANT_ID"):
        monkeypatch.delenv(name, raising=False)
    async with serving() as cloud:
        yield cloud


async def _used(store: Store, cloud: Cloud) -> set[str]:
    """Put and get a few objects; return the tokens that the store saw."""
    for name in ("a", "b"):
        await store.put_new(name, b"x")
        assert await store.get(name) == b"x"
    await store.close()
    return cloud.bearers


async def test_an_instance_of_google_needs_no_secret(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", cloud.url.removeprefix("http://"))
    store = await open_store("gs://bucket/p", {"base_url": cloud.url})
    assert await _used(store, cloud) == {"google-1"}, "asked once, and kept until it expires"


async def test_a_managed_identity_of_azure_needs_no_secret(cloud: Cloud) -> None:
    where = {"account_name": "backups", "endpoint": f"{cloud.url}/backups"}
    imds = {"msi_endpoint": f"{cloud.url}/metadata/identity/oauth2/token"}
    store = await open_store("az://bucket/p", {**where, **imds})
    assert await _used(store, cloud) == {"azure-1"}
    assert cloud.asked[0]["resource"] == "https://storage.azure.com"
    # and of several identities one is chosen
    cloud.objects.clear()
    store = await open_store("az://bucket/p", {**where, **imds, "object_id": "11111111-2222-3333-4444-555555555555"})
    await _used(store, cloud)
    assert cloud.asked[1]["object_id"] == "11111111-2222-3333-4444-555555555555"


@pytest.mark.parametrize("where", ["secret", "environment"])
async def test_a_workload_of_azure_changes_its_token_for_one_of_the_store(
    cloud: Cloud, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text(WORKLOAD_TOKEN)
    given = {
        "client_id": "workload",
        "tenant_id": "ours",
        "federated_token_file": str(token),
        "authority_host": cloud.url,
    }
    options = {"account_name": "backups", "endpoint": f"{cloud.url}/backups"}
    if where == "secret":
        options |= given
    else:  # as Azure's webhook puts them into the pod
        for name, value in given.items():
            monkeypatch.setenv(f"AZURE_{name.upper()}", value)
    store = await open_store("az://bucket/p", options)
    assert await _used(store, cloud) == {"workload-1"}
    (seen,) = cloud.asked
    assert (seen["tenant"], seen["client_id"]) == ("ours", "workload")


async def test_a_token_that_is_about_to_expire_is_asked_for_again_with_the_file_as_it_is_then(
    cloud: Cloud, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text(WORKLOAD_TOKEN)
    cloud.lives_s = 60
    options = {"account_name": "backups", "endpoint": f"{cloud.url}/backups", "client_id": "w", "tenant_id": "ours"}
    options |= {"federated_token_file": str(token), "authority_host": cloud.url}
    store = await open_store("az://bucket/p", options)
    await store.put_new("first", b"x")
    token.write_text(f"{WORKLOAD_TOKEN}-of-the-next-hour")  # as the kubelet does
    async with asyncio.timeout(LONG):
        while len(cloud.asked) < 2:  # a token just fetched is kept for a moment, however short its life
            await store.put_new(f"object-{len(cloud.objects)}", b"x")
    assert cloud.asked[0]["client_assertion"] == WORKLOAD_TOKEN
    assert cloud.asked[-1]["client_assertion"] == f"{WORKLOAD_TOKEN}-of-the-next-hour"
    assert len(cloud.bearers) >= 2


@pytest.mark.parametrize("scheme", ["gs", "az"])
async def test_where_no_identity_is_given_that_is_said_and_no_token_shown(
    cloud: Cloud, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.refuses = True
    monkeypatch.setenv("GCE_METADATA_HOST", cloud.url.removeprefix("http://"))
    monkeypatch.setenv("GCE_METADATA_IP", cloud.url.removeprefix("http://"))
    options = {"base_url": cloud.url}
    if scheme == "az":
        options = {"account_name": "backups", "endpoint": f"{cloud.url}/backups"}
        options["msi_endpoint"] = f"{cloud.url}/metadata/identity/oauth2/token"
    store = await open_store(f"{scheme}://bucket/p", {**options, "retries": "0"})
    with pytest.raises(TidemarkError) as refused:
        await store.get("a")
    assert not cloud.bearers
    assert "token" not in str(refused.value).lower()
