"""The cache: what it knows after everything that a server and a network can do to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest

from orchestrator.kube.cache import Cache, Caches, Timing
from orchestrator.kube.client import Client
from orchestrator.kube.selector import Selector
from tests.kube.fakes import FakeApi, Widget, status, widget

QUICK = Timing(watch_s=30, idle_s=5, backoff_s=0.01, backoff_max_s=0.05, absent_s=0.05, stable_s=1)


@asynccontextmanager
async def running(cache: Cache[Widget], *, synced: bool = True) -> AsyncIterator[Cache[Widget]]:
    """Run the cache as the house does."""
    task = asyncio.create_task(cache.run())
    try:
        if synced:
            async with asyncio.timeout(15):
                await cache.synced.wait()
        yield cache
        assert not task.done(), "a cache never ends by itself"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(cache: Cache[Widget], condition: Callable[[], bool]) -> None:
    """Wait for a change of the cache after which `condition` holds."""
    changed = asyncio.Event()
    cache.subscribe(lambda _old, _new: changed.set())
    async with asyncio.timeout(15):
        while not condition():
            changed.clear()
            await changed.wait()


def sizes(cache: Cache[Widget]) -> dict[str, int]:
    return {item.name: item.size for item in cache.all()}


async def test_it_knows_what_was_there_and_what_happens_later(api: FakeApi, client: Client) -> None:
    api.put(widget("a", size=1))
    api.put(widget("b", size=2))
    async with running(Cache(client, Widget, timing=QUICK)) as cache:
        assert sizes(cache) == {"a": 1, "b": 2}

        api.put(widget("a", size=10))
        api.put(widget("c", size=3))
        api.remove("b")
        await until(cache, lambda: sizes(cache) == {"a": 10, "c": 3})

        c = cache.get("c", "ns")
        assert c is not None
        assert cache.by_uid(c.uid) == c
        assert api.count("GET", "widgets", limit="500") == 1


async def test_subscribers_hear_each_change_once_in_order_with_both_states(api: FakeApi, client: Client) -> None:
    api.put(widget("a", size=1))
    heard: list[tuple[int | None, int | None]] = []
    cache = Cache(client, Widget, timing=QUICK)
    cache.subscribe(lambda old, new: heard.append((old and old.size, new and new.size)))
    async with running(cache):
        api.put(widget("a", size=2))
        api.remove("a")
        await until(cache, lambda: not sizes(cache))

    assert heard == [(None, 1), (1, 2), (2, None)]


async def test_a_dropped_watch_goes_on_where_it_was(api: FakeApi, client: Client) -> None:
    api.put(widget("a", size=1))
    async with running(Cache(client, Widget, timing=QUICK)) as cache:
        for size in range(2, 6):
            await api.watched(size - 1)
            api.drop_watches()
            api.put(widget("a", size=size))
            await until(cache, lambda size=size: sizes(cache) == {"a": size})

        assert cache.stats.lists == 1


async def test_a_forgotten_version_makes_it_list_again_and_tell_the_deletions_it_missed(
    api: FakeApi, client: Client
) -> None:
    api.put(widget("a", size=1))
    api.put(widget("b", size=2))
    gone: list[str] = []
    cache = Cache(client, Widget, timing=QUICK)
    cache.subscribe(lambda old, new: gone.append(old.name) if old and not new else None)
    async with running(cache):
        await api.watched()
        api.remove("b", tell=False)
        api.put(widget("c", size=3))
        api.compact()
        api.drop_watches()
        await until(cache, lambda: sizes(cache) == {"a": 1, "c": 3})

        assert gone == ["b"]
        assert cache.stats.lists == 2


async def test_a_bookmark_saves_a_quiet_watch_from_being_forgotten(api: FakeApi, client: Client) -> None:
    api.put(widget("a", size=1))
    async with running(Cache(client, Widget, timing=QUICK)) as cache:
        await api.watched()
        api.version += 50
        api.compact()
        api.bookmark()
        api.drop_watches()
        await api.watched(2)
        api.put(widget("a", size=2))
        await until(cache, lambda: sizes(cache) == {"a": 2})

        assert cache.stats.lists == 1


async def test_one_object_that_does_not_fit_harms_no_other_and_is_named(
    api: FakeApi, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    api.put(widget("bad", size="nine"))
    api.put(widget("good", size=1))
    async with running(Cache(client, Widget, timing=QUICK)) as cache:
        assert sizes(cache) == {"good": 1}
        assert list(cache.bad) == [("ns", "bad")]

        api.put(widget("bad", size="ten"))
        api.put(widget("good", size=2))
        await until(cache, lambda: sizes(cache) == {"good": 2})
        assert cache.stats.undecodable == 2
        assert caplog.text.count("ns/bad") == 1

        api.put(widget("bad", size=3))
        await until(cache, lambda: sizes(cache) == {"good": 2, "bad": 3})
        assert not cache.bad


async def test_an_object_that_stops_to_fit_keeps_its_last_good_version_until_it_is_deleted(
    api: FakeApi, client: Client
) -> None:
    api.put(widget("a", size=1))
    async with running(Cache(client, Widget, timing=QUICK)) as cache:
        api.put(widget("a", size="nine"))
        api.put(widget("b", size=2))
        await until(cache, lambda: sizes(cache) == {"a": 1, "b": 2})
        api.remove("a")
        await until(cache, lambda: sizes(cache) == {"b": 2})
        assert not cache.bad


async def test_a_kind_that_is_not_installed_is_absent_and_found_when_it_comes(api: FakeApi, client: Client) -> None:
    api.missing.add("widgets")
    async with running(Cache(client, Widget, optional=True, timing=QUICK)) as cache:
        assert cache.absent
        api.put(widget("a", size=1))
        api.missing.clear()
        await until(cache, lambda: sizes(cache) == {"a": 1})
        assert not cache.absent

        api.missing.add("widgets")
        api.compact()
        api.drop_watches()
        await until(cache, lambda: sizes(cache) == {})


async def test_a_needed_kind_that_is_not_installed_keeps_it_unsynced_with_a_reason(
    api: FakeApi, client: Client
) -> None:
    api.missing.add("widgets")
    caches = Caches()
    async with running(caches.add(Cache(client, Widget, timing=QUICK)), synced=False) as cache:
        await api.until(lambda: api.count("GET", "widgets") >= 2)

        assert not cache.synced.is_set()
        assert "widgets.test.dev" in caches.unsynced()[0]


async def test_every_kind_of_refusal_and_garbage_is_survived(api: FakeApi, client: Client) -> None:
    api.put(widget("a", size=1))
    client.timeout_s = 0.2
    api.fail("GET", "widgets", 500)
    api.fail("GET", "widgets", 403, "Forbidden")
    api.garbage("GET", "widgets")
    api.slow("GET", "widgets", 2)
    api.hang_up("GET", "widgets", times=3)
    async with running(Cache(client, Widget, timing=QUICK)) as cache:
        lines = (
            b"{half a line",
            b'{"type":"ADDED"}\n',
            b'{"type":"NEW","object":{}}\n',
            b"\xff\xfe\n",
            b'{"type":"ERROR","object":"no status"}\n',
            b'{"type":"ERROR","object":{"code":"x"}}\n',
            b'{"type":"BOOKMARK","object":7}\n',
            b'{"type":"MODIFIED","object":7}\n',
        )
        for number, line in enumerate(lines, 1):
            await api.watched(number)
            api.say(line)
            api.drop_watches()
        api.fail("GET", "watch=true", 500, times=2)
        api.put(widget("a", size=2))
        await until(cache, lambda: sizes(cache) == {"a": 2})


async def test_an_error_event_in_mid_stream_is_read_by_its_code(api: FakeApi, client: Client) -> None:
    api.put(widget("a", size=1))
    async with running(Cache(client, Widget, timing=QUICK)) as cache:
        await api.watched()
        api.remove("a", tell=False)
        api.say({"type": "ERROR", "object": status(410, "Expired")})
        await until(cache, lambda: sizes(cache) == {})


async def test_a_stuck_watch_is_left_and_begun_anew(api: FakeApi, client: Client) -> None:
    api.put(widget("a", size=1))
    async with running(Cache(client, Widget, timing=QUICK._replace(idle_s=0.1))) as cache:
        await api.watched()
        for watcher in api.watchers:
            watcher.plural = "deaf"
        api.put(widget("a", size=2))
        await until(cache, lambda: sizes(cache) == {"a": 2})


async def test_a_reply_to_our_own_write_is_known_at_once_and_the_watch_cannot_take_it_back(
    api: FakeApi, client: Client
) -> None:
    api.put(widget("a", size=1))
    caches = Caches()
    client.on_reply.append(caches.learn)
    async with running(caches.add(Cache(client, Widget, timing=QUICK))) as cache:
        heard: list[int] = []
        await client.merge_patch(Widget, "a", "ns", {"size": 2})
        assert sizes(cache) == {"a": 2}

        cache.subscribe(lambda old, new: heard.append(new.size) if old and new else None)
        late = api.put(widget("a", size=3))
        cache.learn(msgspec.convert({**late, "size": 9}, Widget))
        old = {**late, "size": 1, "metadata": {**late["metadata"], "resourceVersion": "1"}}
        api.say({"type": "MODIFIED", "object": old})
        api.put(widget("b"))
        await until(cache, lambda: cache.get("b", "ns") is not None)

        assert sizes(cache)["a"] == 9
        assert heard == [9]


async def test_a_late_reply_does_not_raise_the_dead(api: FakeApi, client: Client) -> None:
    stored = api.put(widget("a", size=1))
    async with running(Cache(client, Widget, timing=QUICK)) as cache:
        reply = msgspec.convert(api.put(widget("a", size=2)), Widget)
        api.remove("a")
        await until(cache, lambda: sizes(cache) == {})

        cache.learn(reply)
        assert sizes(cache) == {}

        # With versions that can't be compared only the uid says that it is dead.
        odd = {**stored, "metadata": {**stored["metadata"], "resourceVersion": "zz"}}
        cache.learn(msgspec.convert(odd, Widget))
        assert sizes(cache) == {}


async def test_what_we_made_after_the_list_was_read_survives_the_list(api: FakeApi, client: Client) -> None:
    api.put(widget("a", size=1))
    async with running(Cache(client, Widget, timing=QUICK)) as cache:
        newer = {**widget("mine", size=5, uid="u-mine", resourceVersion=str(api.version + 10_000))}
        cache.learn(msgspec.convert(newer, Widget))
        api.compact()
        api.drop_watches()
        api.put(widget("b", size=2))
        await until(cache, lambda: cache.get("b", "ns") is not None)

        assert sizes(cache) == {"a": 1, "b": 2, "mine": 5}


async def test_a_name_made_anew_is_told_as_a_deletion_and_a_creation(api: FakeApi, client: Client) -> None:
    api.put(widget("a", size=1))
    heard: list[tuple[bool, bool]] = []
    async with running(Cache(client, Widget, timing=QUICK)) as cache:
        cache.subscribe(lambda old, new: heard.append((old is not None, new is not None)))
        await api.watched()
        old = api.objects["widgets"]["ns", "a"]
        api.remove("a", tell=False)
        api.put(widget("a", size=2))
        await until(cache, lambda: sizes(cache) == {"a": 2})
        # The old one's deletion arrives late: it must not hit the new one.
        api.say({"type": "DELETED", "object": old})
        api.put(widget("b"))
        await until(cache, lambda: cache.get("b", "ns") is not None)

        assert sizes(cache) == {"a": 2, "b": 0}
        assert heard[:3] == [(False, True), (True, False), (False, True)]


async def test_indices_follow_every_change(api: FakeApi, client: Client) -> None:
    cache = Cache(client, Widget, timing=QUICK, indexers={"size": lambda w: [str(w.size)]})
    api.put(widget("a", size=1))
    api.put(widget("b", size=1))
    async with running(cache):
        assert [w.name for w in cache.by_index("size", "1")] == ["a", "b"]
        api.put(widget("a", size=2))
        api.remove("b")
        await until(cache, lambda: sizes(cache) == {"a": 2})

        assert cache.by_index("size", "1") == []
        assert [w.name for w in cache.by_index("size", "2")] == ["a"]


async def test_a_limited_cache_learns_nothing_that_its_watch_would_not_see(api: FakeApi, client: Client) -> None:
    cache = Cache(client, Widget, namespace="ns", labels="app=x", timing=QUICK)

    def learn(name: str, namespace: str, **labels: str) -> None:
        made = widget(name, namespace, labels=labels, uid=name, resourceVersion="7")
        cache.learn(msgspec.convert(made, Widget))

    learn("other-namespace", "elsewhere", app="x")
    learn("other-label", "ns", app="y")
    learn("ours", "ns", app="x", more="z")

    assert list(sizes(cache)) == ["ours"]


async def test_a_subscriber_that_fails_does_not_stop_the_watch(
    api: FakeApi, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(client, Widget, timing=QUICK)

    def broken(_old: Widget | None, _new: Widget | None) -> None:
        raise RuntimeError("mine")

    cache.subscribe(broken)
    async with running(cache):
        api.put(widget("a", size=1))
        await until(cache, lambda: sizes(cache) == {"a": 1})

    assert "RuntimeError: mine" in caplog.text


@pytest.mark.quick
@pytest.mark.parametrize(
    ("text", "labels", "fits"),
    [
        ("", {}, True),
        ("a=1", {"a": "1"}, True),
        ("a==1", {"a": "1"}, True),
        ("a=1", {"a": "2"}, False),
        ("a!=1", {}, True),
        ("a!=1", {"a": "1"}, False),
        ("a", {"a": ""}, True),
        ("a", {}, False),
        ("!a", {}, True),
        ("!a", {"a": "x"}, False),
        ("a=1, b", {"a": "1", "b": "2"}, True),
        ("a=1,b", {"a": "1"}, False),
    ],
)
def test_selectors_fit_as_the_api_server_would_have_it(text: str, labels: dict[str, str], fits: bool) -> None:
    assert Selector.parse(text).matches(labels) is fits


@pytest.mark.quick
def test_a_set_based_selector_is_refused() -> None:
    with pytest.raises(ValueError, match="set-based"):
        Selector.parse("a in (1,2)")
