"""History is bounded: what fell out of it is 410, and clients can go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.sandbox.apiserver.conftest import Client, serving

MAPS = "/api/v1/namespaces/default/configmaps"


async def _first_event(client: Client, **query: str) -> Any:
    url = client.server.url + MAPS
    async with client.session.get(url, params={"watch": "true", "timeoutSeconds": "5", **query}) as response:
        return json.loads(await response.content.readline())


async def test_a_watch_from_before_the_history_is_gone(tmp_path: Path) -> None:
    async with serving(tmp_path, history=5) as client:
        first = await client.made(MAPS, {"metadata": {"name": "m0"}})
        for number in range(1, 10):
            await client.made(MAPS, {"metadata": {"name": f"m{number}"}})
        rv = first["metadata"]["resourceVersion"]
        event = await _first_event(client, resourceVersion=rv)
        assert event["type"] == "ERROR"
        assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")
        assert event["object"]["message"].startswith(f"too old resource version: {rv} (")


async def test_a_dropped_history_can_be_relisted(client: Client) -> None:
    first = await client.made(MAPS, {"metadata": {"name": "m0"}})
    client.server.store.forget_history()
    await client.made(MAPS, {"metadata": {"name": "m1"}})
    gone = await _first_event(client, resourceVersion=str(int(first["metadata"]["resourceVersion"]) - 1))
    assert gone["object"]["code"] == 410
    _, found = await client.call("GET", MAPS)
    await client.made(MAPS, {"metadata": {"name": "m2"}})
    event = await _first_event(client, resourceVersion=found["metadata"]["resourceVersion"])
    assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", "m2")


async def test_a_continue_that_is_too_old_offers_another(client: Client) -> None:
    for number in range(4):
        await client.made(MAPS, {"metadata": {"name": f"m{number}"}})
    _, page = await client.call("GET", MAPS, limit="2")
    await client.made(MAPS, {"metadata": {"name": "m9"}})
    client.server.store.forget_history()
    status, expired = await client.call("GET", MAPS, **{"limit": "2", "continue": page["metadata"]["continue"]})
    assert (status, expired["reason"]) == (410, "Expired")
    status, rest = await client.call("GET", MAPS, **{"continue": expired["metadata"]["continue"]})
    assert status == 200
    assert [o["metadata"]["name"] for o in rest["items"]][-1] == "m9"


async def test_bookmarks_come_when_asked(client: Client) -> None:
    client.server.bookmark_every_s = 0.05
    await client.made(MAPS, {"metadata": {"name": "m0"}})
    _, found = await client.call("GET", MAPS)
    event = await _first_event(client, resourceVersion=found["metadata"]["resourceVersion"], allowWatchBookmarks="true")
    assert event["type"] == "BOOKMARK"
    assert event["object"]["kind"] == "ConfigMap"
    assert int(event["object"]["metadata"]["resourceVersion"]) >= int(found["metadata"]["resourceVersion"])
