"""The same wire before real servers: a repository lives on each of them while every third request breaks."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from orchestrator.repository import patience
from orchestrator.repository.store import open_store
from tests.repository import emulators
from tests.repository.test_stores import _s3_server, lives_in
from tests.repository.wire import ONLY, Cut, Forward, Request, Wire

pytestmark = pytest.mark.real

KINDS = (
    Cut.RESET,
    Cut.RESET_UPLOAD,
    Cut.REFUSED,
    Cut.LOST,
    Cut.SHORT,
    Cut.CHUNKS,
    Cut.ERROR,
    Cut.GATEWAY,
    Cut.SLOW_DOWN_AFTER,
    Cut.TOO_MANY,
    Cut.SILENT,
    Cut.LATE,
    Cut.HTML_200,
    Cut.ETAG,
)
PATIENCE = {"request_timeout": "2", "retries": "10"}


@asynccontextmanager
async def _behind(store: str, folder: Path) -> AsyncIterator[tuple[str, dict[str, str], str]]:
    """Run a server; yield its address, the store's options and which of them says where it is."""
    if store == "s3":
        with _s3_server(folder) as url:
            yield url, {"access_key_id": "testkey", "secret_access_key": "testsecret"}, "endpoint"
    elif store == "az":
        with emulators.azure(folder) as options:
            yield options["endpoint"], options, "endpoint"
    else:
        with emulators.gcs(folder) as emulator:
            async with emulators.gcs_front(emulator) as options:
                url = json.loads(options["service_account_key"])["gcs_base_url"]
                yield url, options, "service_account_key"


@pytest.mark.parametrize("store", ["s3", "az", "gs"])
async def test_a_repository_lives_behind_a_wire_that_breaks_every_third_request(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.05)
    chosen = random.Random(store)
    left = list(KINDS)

    def script(at: int, request: Request) -> Cut | None:
        fitting = [cut for cut in left if request.verb in ONLY.get(cut, (request.verb,))]
        if at % 3 != 1 or not fitting:
            return None
        cut = chosen.choice(fitting)
        left.remove(cut)
        if not left:
            left.extend(KINDS)
        return cut

    async with _behind(store, tmp_path) as (url, options, name):
        where = urlsplit(url)
        assert where.hostname and where.port
        wire = Wire(Forward(where.hostname, where.port), script)
        async with wire.serving():
            front = options[name].replace(url, wire.url + where.path) if name in options else wire.url
            opened = await open_store(f"{store}://bucket/{uuid.uuid4().hex}", {**options, name: front, **PATIENCE})
            # `lives_in` makes points, reads them back and proves them
            await lives_in(opened)
            await opened.close()
    assert len(wire.hits) >= len(KINDS) - 3, wire.hits
