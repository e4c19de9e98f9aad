"""The client against a server that misbehaves at the wire."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.api.meta import ObjectMeta
from orchestrator.errors import MESSAGE_LIMIT, LeaseStale, Retryable, Terminal
from orchestrator.kube import errors
from orchestrator.kube.client import Client
from orchestrator.kube.wire import BadItem, WatchEvent
from tests.kube.fakes import TOKEN, FakeApi, Widget, widget

WIDGETS = "/apis/test.dev/v1/namespaces/ns/widgets"


class ClosedFence:
    """A lease that ran out."""

    def check(self) -> None:
        raise LeaseStale("too old")


async def test_an_object_comes_as_its_struct_and_without_unknown_fields(api: FakeApi, client: Client) -> None:
    api.put(widget("a", size=3, managedFields=[{"manager": "x"}]))

    found = await client.get(Widget, "a", "ns")

    assert (found.name, found.size) == ("a", 3)
    assert found.uid


async def test_a_missing_object_is_not_found_and_find_says_none(api: FakeApi, client: Client) -> None:
    with pytest.raises(errors.NotFound) as caught:
        await client.get(Widget, "a", "ns")

    assert isinstance(caught.value, Terminal)
    assert await client.find(Widget, "a", "ns") is None


async def test_a_list_is_read_in_chunks_and_whole(api: FakeApi, client: Client) -> None:
    for number in range(7):
        api.put(widget(f"w{number}"))

    found, version = await client.list(Widget, limit=3)

    assert [item.name for item in found] == [f"w{number}" for number in range(7)]
    assert version == str(api.version)
    assert api.count("GET", "widgets") == 3


async def test_a_continue_token_that_expired_starts_the_list_again(api: FakeApi, client: Client) -> None:
    for number in range(5):
        api.put(widget(f"w{number}"))
    api.fail("GET", "continue=2", 410, "Expired")

    found, _ = await client.list(Widget, limit=2)

    assert len(found) == 5


async def test_a_server_that_compacts_faster_than_we_page_is_asked_for_all_at_once(
    api: FakeApi, client: Client
) -> None:
    for number in range(5):
        api.put(widget(f"w{number}"))
    api.fail("GET", "continue=", 410, "Expired", times=99)

    found, _ = await client.list(Widget, limit=2)

    assert len(found) == 5


async def test_a_list_with_an_object_that_does_not_fit_is_refused_by_name(api: FakeApi, client: Client) -> None:
    api.put(widget("good"))
    api.put(widget("bad", size="nine"))

    with pytest.raises(errors.Undecodable, match="ns/bad"):
        await client.list(Widget)
    listing = await client.listing(Widget)

    assert [item.name for item in listing.items] == ["good"]
    assert [item.metadata.name for item in listing.bad] == ["bad"]


async def test_every_write_carries_the_field_manager_and_its_reply_is_told(api: FakeApi, client: Client) -> None:
    heard: list[str] = []
    client.on_reply.append(lambda obj: heard.append(obj.metadata.resource_version))

    made = await client.create(Widget(metadata=ObjectMeta(name="a", namespace="ns"), size=1))
    patched = await client.merge_patch(Widget, "a", "ns", {"size": 2})
    applied = await client.apply(Widget, {"metadata": {"name": "a", "namespace": "ns"}, "size": 4})

    assert (made.size, patched.size, applied.size) == (1, 2, 4)
    assert heard == [obj.metadata.resource_version for obj in (made, patched, applied)]
    assert {query["fieldManager"] for _, _, query, _ in api.requests} == {"tidemark"}


async def test_no_write_leaves_when_the_lease_is_stale(api: FakeApi, client: Client) -> None:
    api.put(widget("a"))
    client.fence = ClosedFence()

    with pytest.raises(LeaseStale):
        await client.create(Widget(metadata=ObjectMeta(name="b", namespace="ns")))
    with pytest.raises(LeaseStale):
        await client.merge_patch(Widget, "a", "ns", {"size": 2})
    with pytest.raises(LeaseStale):
        await client.delete(Widget, "a", "ns", uid="x")

    assert api.requests == []
    assert (await client.get(Widget, "a", "ns")).size == 0


async def test_a_lease_that_runs_out_while_the_server_asks_for_patience_stops_the_write(
    api: FakeApi, client: Client
) -> None:
    class Once:
        calls = 0

        def check(self) -> None:
            self.calls += 1
            if self.calls > 1:
                raise LeaseStale("too old")

    client.fence = Once()
    api.fail("POST", "widgets", 429, headers={"Retry-After": "0"})

    with pytest.raises(LeaseStale):
        await client.create(Widget(metadata=ObjectMeta(name="b", namespace="ns")))

    assert api.objects == {}


async def test_an_old_resource_version_is_a_conflict(api: FakeApi, client: Client) -> None:
    stored = api.put(widget("a"))
    api.put(widget("a", size=5))

    body = {"metadata": {"resourceVersion": stored["metadata"]["resourceVersion"]}, "size": 9}
    with pytest.raises(errors.Conflict):
        await client.merge_patch(Widget, "a", "ns", body)

    assert api.objects["widgets"]["ns", "a"]["size"] == 5


async def test_a_second_create_is_already_exists(api: FakeApi, client: Client) -> None:
    obj = Widget(metadata=ObjectMeta(name="a", namespace="ns"))
    await client.create(obj)

    with pytest.raises(errors.AlreadyExists):
        await client.create(obj)


async def test_a_delete_hits_only_the_uid_that_it_means(api: FakeApi, client: Client) -> None:
    stored = api.put(widget("a"))

    assert await client.delete(Widget, "a", "ns", uid="another") is False
    assert ("ns", "a") in api.objects["widgets"]
    assert await client.delete(Widget, "a", "ns", uid=stored["metadata"]["uid"]) is True
    assert await client.delete(Widget, "a", "ns", uid=stored["metadata"]["uid"]) is False
    with pytest.raises(ValueError, match="uid"):
        await client.delete(Widget, "a", "ns", uid="")


async def test_too_many_requests_is_waited_out_within_bounds(api: FakeApi, client: Client) -> None:
    api.put(widget("a"))
    api.fail("GET", "widgets/a", 429, headers={"Retry-After": "0"}, times=3)

    assert (await client.get(Widget, "a", "ns")).name == "a"
    api.fail("GET", "widgets/a", 429, headers={"Retry-After": "0"}, times=4)
    with pytest.raises(errors.TooManyRequests):
        await client.get(Widget, "a", "ns")
    api.faults.clear()
    api.fail("GET", "widgets/a", 429, headers={"Retry-After": "3600"})
    with pytest.raises(errors.TooManyRequests) as caught:
        await client.get(Widget, "a", "ns")

    assert caught.value.retry_after_s == 3600


async def test_a_refusal_of_a_server_that_has_just_started_is_waited_out_by_who_has_patience(
    api: FakeApi, client: Client
) -> None:
    api.put(widget("a"))
    api.fail("GET", "widgets/a", 403, "Forbidden", times=3)
    client.refusal_pause_s = 0.01
    assert (await client.get(Widget, "a", "ns")).name == "a"

    api.fail("GET", "widgets/a", 403, "Forbidden", times=4)
    with pytest.raises(errors.Forbidden):
        await client.get(Widget, "a", "ns")

    api.fail("GET", "widgets/a", 403, "Forbidden")
    client.refusal_pause_s = 0
    with pytest.raises(errors.Forbidden):
        await client.get(Widget, "a", "ns")


async def test_unavailable_is_tried_again_only_when_the_server_says_when(api: FakeApi, client: Client) -> None:
    api.put(widget("a"))
    api.fail("PATCH", "widgets/a", 503, headers={"Retry-After": "0"})
    await client.merge_patch(Widget, "a", "ns", {"size": 1})
    api.fail("PATCH", "widgets/a", 503)

    with pytest.raises(errors.Unavailable):
        await client.merge_patch(Widget, "a", "ns", {"size": 2})

    assert api.objects["widgets"]["ns", "a"]["size"] == 1


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (400, "BadRequest", errors.Invalid),
        (401, "Unauthorized", errors.Unauthorized),
        (403, "Forbidden", errors.Forbidden),
        (409, "Conflict", errors.Conflict),
        (410, "Expired", errors.Gone),
        (422, "Invalid", errors.Invalid),
        (500, "InternalError", errors.Unavailable),
        (504, "Timeout", errors.TimedOut),
    ],
)
async def test_each_refusal_has_a_class_a_reason_and_a_remedy(
    api: FakeApi, client: Client, code: int, reason: str, kind: type[errors.ApiError]
) -> None:
    api.fail("GET", "widgets/a", code, reason, "the server's words")

    with pytest.raises(errors.ApiError) as caught:
        await client.get(Widget, "a", "ns")

    assert type(caught.value) is kind
    assert isinstance(caught.value, (Retryable, Terminal))
    assert "ns/a" in str(caught.value)
    assert caught.value.remedy


async def test_a_namespace_that_ends_and_a_used_up_quota_are_told_apart_from_missing_rights(
    api: FakeApi, client: Client
) -> None:
    obj = Widget(metadata=ObjectMeta(name="a", namespace="ns"))
    api.fail(
        "POST", "widgets", 403, "Forbidden", causes=[{"reason": "NamespaceTerminating", "message": "", "field": ""}]
    )
    with pytest.raises(errors.NamespaceTerminating):
        await client.create(obj)
    api.fail("POST", "widgets", 403, "Forbidden", "widgets is forbidden: exceeded quota: q, requested: 1")
    with pytest.raises(errors.QuotaExceeded):
        await client.create(obj)


async def test_an_invalid_object_names_its_causes_and_stays_bounded(api: FakeApi, client: Client) -> None:
    causes = [{"field": f"spec.f{n}", "message": "x" * 900, "reason": "FieldValueInvalid"} for n in range(50)]
    api.fail("POST", "widgets", 422, "Invalid", "y" * 5000, causes=causes)

    with pytest.raises(errors.Invalid) as caught:
        await client.create(Widget(metadata=ObjectMeta(name="a", namespace="ns")))

    assert len(caught.value.causes) == errors.CAUSES
    assert len(caught.value.sentence()) <= MESSAGE_LIMIT
    assert caught.value.causes[0].startswith("spec.f0")


async def test_no_message_ever_holds_a_token_or_quotes_a_secret(api: FakeApi, client: Client) -> None:
    from orchestrator.api.foreign.core import Secret

    api.fail(
        "GET", "widgets/a", 500, "", f"proxy said: Authorization: Bearer {TOKEN} and eyJhbGciOiJSUzI1NiJ9.e30.c2ln"
    )
    with pytest.raises(errors.Unavailable) as caught:
        await client.get(Widget, "a", "ns")
    api.fail("POST", "secrets", 400, "BadRequest", 'cannot be handled as a Secret: ...|"password":"hunter2"|...')
    with pytest.raises(errors.Invalid) as refused:
        await client.create(Secret(metadata=ObjectMeta(name="s", namespace="ns"), data={"password": b"hunter2"}))

    assert TOKEN not in str(caught.value)
    assert "eyJ" not in str(caught.value)
    assert "hunter2" not in refused.value.sentence()


async def test_garbage_silence_and_a_hung_up_connection_are_all_retryable(api: FakeApi, client: Client) -> None:
    client.timeout_s = 0.3
    api.garbage("GET", r"widgets\?")
    with pytest.raises(errors.Unavailable):
        await client.list(Widget)
    api.hang_up("PATCH", "widgets/a")
    with pytest.raises(errors.Unavailable):
        await client.merge_patch(Widget, "a", "ns", {})
    api.slow("GET", "widgets/a", 5)
    with pytest.raises(errors.TimedOut):
        await client.get(Widget, "a", "ns")
    api.garbage("GET", "widgets/b")
    with pytest.raises(errors.Unavailable):
        await client.get(Widget, "b", "ns")


async def test_a_watch_gives_changes_bookmarks_and_misfits_in_order(api: FakeApi, client: Client) -> None:
    api.put(widget("old"))
    since = str(api.version)
    api.put(widget("a", size=1))
    api.put(widget("a", size="nine"))
    api.remove("a")
    seen: list[WatchEvent[Widget] | BadItem] = []

    async for event in client.watch(Widget, resource_version=since, timeout_s=5):
        seen.append(event)
        if len(seen) == 3:
            api.bookmark()
        if len(seen) == 4:
            break

    assert [event.type for event in seen] == ["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    assert isinstance(seen[1], BadItem)
    assert isinstance(seen[3], WatchEvent)
    assert seen[3].resource_version == str(api.version)


async def test_a_watch_from_a_forgotten_version_is_gone(api: FakeApi, client: Client) -> None:
    api.put(widget("a"))
    api.compact()

    with pytest.raises(errors.Gone):
        async for _ in client.watch(Widget, resource_version="1", timeout_s=5):
            pass


async def test_a_watch_that_falls_silent_ends(api: FakeApi, client: Client) -> None:
    with pytest.raises(errors.TimedOut):
        async for _ in client.watch(Widget, resource_version="100", timeout_s=60, idle_s=0.2):
            pass


async def test_a_watch_ends_by_itself_when_the_server_says_so(api: FakeApi, client: Client) -> None:
    events = [event async for event in client.watch(Widget, resource_version="100", timeout_s=1)]

    assert events == []


async def test_events_split_and_joined_anywhere_on_the_wire_come_whole(api: FakeApi, client: Client) -> None:
    line = b'{"type":"ADDED","object":{"metadata":{"name":"%s","namespace":"ns","resourceVersion":"%d"}}}\n'
    whole = b"".join(line % (str(n).encode() * 900, 200 + n) for n in range(20))

    async def feed() -> None:
        await api.until(lambda: bool(api.watchers))
        for start in range(0, len(whole), 333):
            api.say(whole[start : start + 333])
            await asyncio.sleep(0)

    feeding = asyncio.create_task(feed())
    versions = []
    async for event in client.watch(Widget, resource_version="100", timeout_s=5):
        assert isinstance(event, WatchEvent)
        versions.append(event.resource_version)
        if len(versions) == 20:
            break
    await feeding

    assert versions == [str(200 + n) for n in range(20)]


async def test_the_preferred_version_is_the_first_that_the_server_has(api: FakeApi, client: Client) -> None:
    from orchestrator.api.meta import Resource

    new = Resource("test.dev", "v1", "Widget", "widgets", namespaced=True)
    old = new._replace(version="v1beta1")
    api.fail("GET", "^/apis/test.dev/v1$", 404, "NotFound", times=9)
    import json

    from aiohttp import web

    from tests.kube.fakes import Fault

    body = json.dumps({"resources": [{"name": "widgets"}, {"name": "widgets/status"}]})
    api.faults.append(Fault("GET", "^/apis/test.dev/v1beta1$", 9, lambda _: web.Response(text=body)))

    assert await client.preferred("test.dev", [new, old]) == old
    assert await client.preferred("test.dev", [new]) is None


async def test_a_kubeconfig_that_is_no_good_is_a_clear_error(tmp_path: object) -> None:
    with pytest.raises(errors.NotConfigured, match="nowhere"):
        await Client.connect(kubeconfig="/nowhere/kubeconfig")
