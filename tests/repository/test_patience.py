"""How a bucket is asked again: never too often, never in step, never for ever, and not while it wants quiet."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from obstore import exceptions as failures

from orchestrator.errors import Retryable
from orchestrator.repository import patience
from orchestrator.repository.cloud import describe
from orchestrator.repository.errors import StoreMissing, StoreOptionUnknown, StoreUnavailable
from orchestrator.repository.patience import Pace, Patience, Tries, Verdict, judge
from orchestrator.repository.store import Store, open_store
from tests.repository.faults import Shelf
from tests.repository.wire import Answer, Cut, Objects, Request, Wire

OPTIONS = {"access_key_id": "a", "secret_access_key": "s", "request_timeout": "5"}


async def opened(wire: Wire, **options: str) -> Store:
    return await open_store("s3://bucket/p", {**OPTIONS, "endpoint": wire.url, **options})


CALLS: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put_new("new", b"x" * 9000),
    "get": lambda store: store.get("a"),
    "range": lambda store: store.get_range("a", 10, 20),
    "head": lambda store: store.head("a"),
    "delete": lambda store: store.delete("a"),
}


async def _shelf() -> Shelf:
    shelf = Shelf()
    await shelf.put_new("a", b"a" * 1000)
    return shelf


@pytest.mark.parametrize("verb", CALLS)
async def test_a_store_that_never_answers_well_is_asked_a_known_number_of_times(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.01)
    for cut in (Cut.RESET, Cut.SLOW_DOWN, Cut.HTML_200):
        if (cut, verb) == (Cut.HTML_200, "head"):
            continue  # an answer without a body can't be told from a bucket's
        wire = Wire(Objects(await _shelf()), lambda at, each, cut=cut: cut)  # type: ignore[misc]
        async with wire.serving():
            with pytest.raises(StoreUnavailable) as caught:
                await CALLS[verb](await opened(wire, retries="3"))  # type: ignore[misc]
        assert isinstance(caught.value, Retryable)
        # one try and three more; a create is also read back, within the same number of waits
        assert len(wire.seen) <= (9 if verb in ("put", "range") else 4), (verb, cut, len(wire.seen))


async def test_no_try_begins_after_the_time_that_was_given() -> None:
    wire = Wire(Objects(await _shelf()), lambda at, each: Cut.ERROR)
    async with wire.serving():
        with pytest.raises(StoreUnavailable):
            await (await opened(wire, retry_timeout="0", retries="50")).get("a")
    assert len(wire.seen) <= 2


async def test_a_store_that_asks_for_quiet_is_left_alone_by_everybody_until_the_second_is_over() -> None:
    # given a bucket that turns everybody away with Retry-After: 1, until nobody has asked for a second
    state = {"quiet": 0.0, "refused": 0}

    def script(at: int, each: Request) -> Cut | None:
        now = asyncio.get_running_loop().time()
        if not state["quiet"]:
            state["quiet"] = now + 1
        if now < state["quiet"]:
            state["refused"] += 1
            return Cut.SLOW_DOWN_AFTER
        return None

    wire = Wire(Objects(await _shelf()), script)
    async with wire.serving():
        store = await opened(wire)
        # when sixteen want something at once
        assert await asyncio.gather(*(store.get("a") for _ in range(16))) == [b"a" * 1000] * 16
    # then each is turned away once at most, and nobody asks before the time
    assert 1 <= state["refused"] <= 16
    assert len(wire.seen) == 16 + state["refused"]


async def test_pauses_grow_while_the_store_goes_on_refusing_and_shrink_with_good_answers() -> None:
    pace = Pace()
    pauses = []
    for _ in range(8):
        pace._quiet_until = 0.0  # the pause is over
        began = asyncio.get_running_loop().time()
        pace.refused(began)
        pauses.append(round(pace._quiet_until - began))
        pace.refused(began)  # another worker's, sent before: the same word once more
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    for _ in range(8):
        pace.answered(began + 1000)
    assert pace._pause == 1


async def test_waits_grow_and_no_two_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    random.seed(1)
    every = []
    for _ in range(2):
        tries = Tries(Patience())
        while await tries.again():
            pass
        every.append(list(slept))
        slept.clear()
    for waits in every:
        assert len(waits) == 8
        assert all(
            low / 2 <= wait <= low * 1.5
            for wait, low in zip(waits, (0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 15), strict=True)
        )
    assert all(one != other for one, other in zip(*every, strict=True)), "the first wait is spread too"


@pytest.mark.parametrize(
    ("text", "kind", "verdict"),
    [
        ("non-2xx status code: 503 Service Unavailable: ", failures.GenericError, Verdict.SLOW),
        ("non-2xx status code: 429 Too Many Requests: ", failures.GenericError, Verdict.SLOW),
        ("Server returned error response: <Code>SlowDown</Code>", failures.GenericError, Verdict.SLOW),
        ("non-2xx status code: 500 Internal Server Error: ", failures.GenericError, Verdict.PASSING),
        ("error sending request", failures.GenericError, Verdict.PASSING),
        ("non-2xx status code: 412 Precondition Failed: ", failures.AlreadyExistsError, Verdict.PASSING),
        ("non-2xx status code: 400 Bad Request: <Code>RequestTimeout</Code>", failures.GenericError, Verdict.PASSING),
        ("non-2xx status code: 400 Bad Request: <Code>BadDigest</Code>", failures.GenericError, Verdict.PASSING),
        ("non-2xx status code: 400 Bad Request: <Code>Other</Code>", failures.GenericError, Verdict.FINAL),
        ("non-2xx status code: 416 Range Not Satisfiable: ", failures.GenericError, Verdict.FINAL),
        # not the object's: the service that hands out credentials has none
        ("non-2xx status code: 404 Not Found: ", failures.GenericError, Verdict.PASSING),
        ("Wanted range starting at 9, but object was only 9 bytes long", failures.GenericError, Verdict.FINAL),
        ("non-2xx status code: 403 Forbidden: ", failures.GenericError, Verdict.DENIED),
        ("non-2xx status code: 403 Forbidden: ", failures.PermissionDeniedError, Verdict.DENIED),
        ("<Error><Code>AccessDenied</Code></Error>", failures.GenericError, Verdict.DENIED),
        ("non-2xx status code: 404 Not Found: <Error><Code>NoSuchKey</Code>", FileNotFoundError, Verdict.MISSING),
        ("non-2xx status code: 404 Not Found: ", FileNotFoundError, Verdict.MISSING),
        ("non-2xx status code: 404 Not Found: <Code>NoSuchBucket</Code>", FileNotFoundError, Verdict.NO_BUCKET),
        ("non-2xx status code: 404 Not Found: default backend - 404", FileNotFoundError, Verdict.PASSING),
        ("non-2xx status code: 404 Not Found: <html><h1>Not Found", FileNotFoundError, Verdict.PASSING),
        ("non-2xx status code: 404 Not Found: no healthy upstream", FileNotFoundError, Verdict.PASSING),
    ],
)
def test_an_error_of_the_library_means(text: str, kind: type[Exception], verdict: Verdict) -> None:
    assert judge(kind(text), xml=True) is verdict


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('https://b/x?sig=secret ConnectError("tcp connect error", 1.2.3.4:1, Os { kind: ConnectionRefused', "refused"),
        ('https://b/x?sig=secret ConnectError("dns error", Custom { kind: Uncategorized', "name isn't known"),
        ("https://b/x?sig=secret invalid peer certificate: UnknownIssuer", "certificate isn't trusted"),
        ("https://b/x?sig=secret something else", "GenericError"),
    ],
)
def test_why_a_store_can_not_be_reached_is_told_in_words_of_ours(text: str, told: str) -> None:
    assert told in describe(failures.GenericError(text))
    assert "secret" not in describe(failures.GenericError(text))


async def test_a_bucket_that_is_not_there_is_told_at_once() -> None:
    async def nobody(request: Request) -> Answer:
        return Answer(404, b"<Error><Code>NoSuchBucket</Code></Error>", {"Content-Type": "application/xml"})

    wire = Wire(nobody)
    async with wire.serving():
        store = await opened(wire)
        for call in CALLS:
            if call != "head":
                with pytest.raises(StoreMissing):
                    await CALLS[call](store)  # type: ignore[misc]
        with pytest.raises(StoreMissing):
            assert [info async for info in store.list("")] == []


@pytest.mark.parametrize("broken", [0, 1, 2])
@pytest.mark.parametrize("cut", [Cut.HTML_200, Cut.XML_200])
async def test_a_page_that_is_none_never_ends_a_listing(broken: int, cut: Cut) -> None:
    # given a listing of two pages, one of which is a proxy's, or the one that asks whether there are more
    shelf = await _shelf()
    for name in "bcd":
        await shelf.put_new(name, b"x")
    wire = Wire(Objects(shelf, page=2), lambda at, each: cut if at == broken else None)
    async with wire.serving():
        # then it is whole all the same: what looks alive and dead hangs on it
        assert [info.key async for info in (await opened(wire)).list("")] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("cut", [Cut.HTML_200, Cut.XML_200])
async def test_of_azure_nothing_but_a_listing_is_taken_for_one(cut: Cut) -> None:
    # what saves its listings the second question: this goes red when the library gets laxer
    wire = Wire(Objects(Shelf()), lambda at, each: cut)
    async with wire.serving():
        options = {"account_name": "x", "account_key": "eA==", "endpoint": wire.url, "retries": "0"}
        store = await open_store("az://bucket/p", options)
        with pytest.raises(StoreUnavailable):
            assert [info async for info in store.list("")] == []


async def test_a_listing_ends_even_where_a_server_ignores_where_to_begin() -> None:
    objects = Objects(await _shelf())

    async def forgetful(request: Request) -> Answer:
        return await objects(Request(request.method, request.target.replace("start-after", "nothing"), request.headers))

    wire = Wire(forgetful)
    async with wire.serving():
        assert [info.key async for info in (await opened(wire)).list("")] == ["a"]
    assert len(wire.seen) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retries", "-1"),
        ("retries", "2.5"),
        ("retries", "101"),
        ("request_timeout", "0"),
        ("connect_timeout", "1m"),
        ("retry_timeout", "nan"),
        ("retry_timeout", "3601"),
        ("ca_certificate", "no pem"),
    ],
)
async def test_a_limit_that_is_no_number_is_refused_by_name(name: str, value: str) -> None:
    for url in ("s3://b/p", "gs://b/p", "az://b/p"):
        options = {"account_name": "x", "account_key": "eA=="} if url.startswith("az") else {}
        with pytest.raises(StoreOptionUnknown, match="options for" if name == "ca_certificate" else name):
            await open_store(url, {**options, name: value})
