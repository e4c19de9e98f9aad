"""Whatever goes wrong, no key and no credential is in a log, an Event, a status or a metric."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.exposition import generate_latest

from orchestrator.api.foreign.core import Job
from orchestrator.api.mover import MoverConfig
from orchestrator.api.tidemark.backup_repository import BackupRepository
from orchestrator.controllers.backup_repository import BackupRepositoryController
from orchestrator.controllers.repositories import TRUST_S, mover_config
from orchestrator.mover.main import strike_secrets
from orchestrator.observe import log
from orchestrator.repository.keys import NamespaceIdentity
from tests.controllers.desk import CLUSTER, NAMESPACE, SYSTEM, Desk, desk
from tests.mover.movers import Pod, end

pytestmark = pytest.mark.system

ACCESS, PASSWORD = "PlantedAccessKeyId77", "planted/secret+access/key/0123456789abcdef"
CLOUD = {"secret_access_key": PASSWORD, "access_key_id": ACCESS}
KEY = ("", "main")


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path) as made:
        yield made


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Everything that is logged, from debug up, as a controller's log would hold it."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    stream = io.StringIO()
    log.setup("debug", stream=stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)


def forms(key: str) -> set[str]:
    """Return how a 32-byte key could show."""
    raw = bytes.fromhex(key)
    coded = {base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode(), repr(raw)[2:-1]}
    return {key, key.upper(), base64.b64encode(key.encode()).decode(), *coded}


async def told(at: Desk) -> str:
    """Return all that people can read: Events, statuses, Jobs, metrics; of Secrets nothing."""
    await at.context.recorder.drain()
    seen = {plural: list(found.values()) for plural, found in at.api.objects.items() if plural != "secrets"}
    page = generate_latest(at.context.meter.registry).decode()
    return json.dumps(seen) + page


async def controllers_at_work(at: Desk, key: str) -> None:
    """Let a repository work, be swept, lose its credentials, its key and its place."""
    controller = BackupRepositoryController(at.context)
    await at.repository(key=key)
    await controller._process(KEY)
    identity = NamespaceIdentity(CLUSTER, "uid-1", NAMESPACE)
    await at.context.repositories.vault("main", identity, create=True)
    at.clock.pass_(hours=26)
    for _ in range(2):  # the slot is written down, then its first Job is made
        await controller._process(KEY)
    assert at.names(Job) != []
    await at.secret("main-key", master__key=key[:-2])
    at.clock.pass_(seconds=TRUST_S + 1)
    await controller._process(KEY)
    credentials = {"access_key_id": ACCESS, "secret_access_key": PASSWORD, "region": "eu-north-1"}
    for extra in ({"endpoint": "http://127.0.0.1:9", "allow_http": "true"}, {"colour": PASSWORD}):
        await at.secret("main-key", master__key=key)
        await at.secret("cloud", **credentials, **extra)
        spec = {"url": "s3://bucket/x", "encryptionSecret": "main-key", "credentialsSecret": "cloud"}
        whole = {**spec, "allowedNamespaces": ["*"]}
        metadata = at.api.objects["backuprepositories"][("", "main")]["metadata"]
        metadata = {**metadata, "generation": metadata["generation"] + 1}
        await at.change(BackupRepository, "main", spec=whole, metadata=metadata, status={})
        at.clock.pass_(seconds=TRUST_S + 1)
        await controller._process(KEY)
        assert (await at.known(BackupRepository, "main")).status.ready == "False"


async def test_a_controller_never_shows_a_key_or_a_credential(
    at: Desk, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.controllers.repositories.OPEN_TIMEOUT_S", 3.0)
    key = secrets.token_hex(32)
    await controllers_at_work(at, key)
    # and should somebody log one all the same, by whatever form
    for shape in sorted(forms(key) | {ACCESS, PASSWORD}):
        logging.getLogger("careless").error("it is %s", shape, extra={"given": {"x": shape}})
    shown = lines.getvalue() + await told(at)
    assert "careless" in shown
    assert "StoreOptionUnknown" in shown or "StoreUnavailable" in shown
    assert [shape for shape in forms(key) | {ACCESS, PASSWORD, PASSWORD[:20]} if shape in shown] == []
    logging.getLogger("plain").error("eu-north-1 is a place")
    assert "eu-north-1 is a place" in lines.getvalue(), "where the store is, is no secret"


async def test_a_movers_keys_are_struck_from_the_controllers_log(at: Desk, lines: io.StringIO) -> None:
    """A controller holds each namespace's keys while it starts that namespace's movers."""
    await at.repository()
    opened, vault = await at.context.repositories.vault("main", NamespaceIdentity(CLUSTER, "u", "n"), create=True)
    config = mover_config(opened, vault, task="maintain", point=vault.namespace_id)
    held = [*vault.keys.data_keys.values(), vault.keys.chunk_id_key]
    logging.getLogger("careless").error("%s %s", config.keys, [key.hex() for key in held])
    shown = lines.getvalue() + repr(config)
    assert [key for key in held if key.hex() in shown or base64.b64encode(key).decode() in shown] == []


@pytest.mark.parametrize("options", [{}, {"colour": PASSWORD}, CLOUD])
async def test_a_mover_never_shows_a_key_or_a_credential(at: Desk, tmp_path: Path, options: dict[str, Any]) -> None:
    await at.repository()
    _, vault = await at.context.repositories.vault("main", NamespaceIdentity(CLUSTER, "u", "n"), create=True)
    url = f"file://{tmp_path}/main" if not options else "s3://bucket/x"
    if "access_key_id" in options:
        options = {**options, "endpoint": "http://127.0.0.1:9", "allow_http": "true", "retry_timeout": "1s"}
    pod = Pod.make(
        tmp_path, vault, url, "restore", "r-1", tmp_path / "device", store_options=options, manifest_key="ns/absent"
    )
    process = pod.start(TIDEMARK_LOG_LEVEL="debug")
    try:
        code, progress, said = end(process)
    finally:
        process.kill()
    shown = said + json.dumps(progress) + json.dumps(pod.outcome())
    assert code != 0
    assert pod.outcome()["reason"]
    held = [key for raw in (*vault.keys.data_keys.values(), vault.keys.chunk_id_key) for key in forms(raw.hex())]
    assert [shape for shape in [*held, ACCESS, PASSWORD] if shape in shown] == []
    assert SYSTEM not in shown


async def test_a_mover_has_its_keys_struck_before_it_does_anything(at: Desk, lines: io.StringIO) -> None:
    await at.repository()
    opened, vault = await at.context.repositories.vault("main", NamespaceIdentity(CLUSTER, "u", "n"), create=True)
    keys = vault.keys.to_json().decode()
    config = MoverConfig(
        task="verify", point="p", url=opened.url, keys=keys, store_options={**CLOUD, "region": "eu-1-x"}
    )
    strike_secrets(config)
    held = [*vault.keys.data_keys.values(), vault.keys.chunk_id_key]
    for shape in [keys, ACCESS, PASSWORD, *(form for key in held for form in forms(key.hex()))]:
        logging.getLogger("careless").error("it is %s in eu-1-x", shape)
    shown = lines.getvalue()
    assert "eu-1-x" in shown
    assert [key for key in held if forms(key.hex()) & set(re.findall(r"[^\s\"]+", shown))] == []
    assert not any(word in shown for word in (ACCESS, PASSWORD, *(key.hex() for key in held)))
