"""What a bucket may answer: told to slow down, cut off, silent; and whose credentials are shown to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from orchestrator.errors import Retryable
from orchestrator.repository import cloud, patience
from orchestrator.repository.errors import AccessDenied, ObjectConflict, StoreUnavailable
from orchestrator.repository.store import Store, open_store
from orchestrator.repository.verify import verify
from tests.repository.bucket import IDENTITY, MANY, SLOW_DOWN, Bucket, serving
from tests.repository.engine import backup, new_vault, restore

OURS = {"access_key_id": "AKIDOFTHESECRET", "secret_access_key": "s"}
VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_WEB_IDENTITY_TOKEN_FILE")


pytestmark = pytest.mark.system


@pytest.fixture(autouse=True)
def _nobodys_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def bucket() -> AsyncIterator[Bucket]:
    async with serving() as made:
        yield made


async def opened(bucket: Bucket, **options: str) -> Store:
    return await open_store("s3://bucket/p", {"endpoint": bucket.url, **(options or OURS)})


@pytest.mark.parametrize(("status", "text"), [(503, SLOW_DOWN), (429, MANY), (500, "<Error/>")])
async def test_told_to_slow_down_it_waits_and_tries_again(
    bucket: Bucket, status: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.2)
    store = await opened(bucket)
    bucket.script = lambda seen, before: (status, text) if before < 2 else None
    await store.put_new("a", b"x")
    assert await store.get("a") == b"x"
    assert [info.key async for info in store.list("")] == ["a"]
    await store.delete("a")
    assert bucket.objects == {}
    for method, key in (("PUT", "p/a"), ("GET", "p/a"), ("GET", ""), ("POST", "")):
        tries = bucket.tries(method, key)
        # the end of a listing is asked for twice
        good = [200, 200] if (method, key) == ("GET", "") else [200]
        assert [each.status for each in tries] == [status, status, *good], (method, key)
        assert all(later.at - sooner.at > 0.1 for sooner, later in pairwise(tries[:3])), "no hammering"


async def test_a_bucket_that_never_stops_throttling_is_given_up_as_something_that_may_pass(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud, "CALL_TIMEOUT_S", 2.0)
    store = await opened(bucket)
    bucket.script = lambda seen, before: (503, SLOW_DOWN)
    with pytest.raises(StoreUnavailable) as caught:
        await store.get("a")
    assert isinstance(caught.value, Retryable)
    assert len(bucket.seen) < 10


async def test_a_silent_bucket_is_not_waited_for_for_ever(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud, "CALL_TIMEOUT_S", 1.0)
    store = await opened(bucket)
    silence = asyncio.Event()
    bucket.silent = silence
    with pytest.raises(StoreUnavailable):
        await store.get("a")
    silence.set()


async def test_a_create_whose_answer_got_lost_is_settled_by_reading_back(bucket: Bucket) -> None:
    store = await opened(bucket)
    bucket.lost = lambda seen: seen.method == "PUT" and len(bucket.tries("PUT", seen.key)) == 1
    await store.put_new("ours", b"x" * 1000)
    assert bucket.objects == {"p/ours": b"x" * 1000}
    assert [each.method for each in bucket.seen][-1] == "GET"
    # the same, but somebody else was first
    bucket.objects["p/theirs"] = b"y"
    with pytest.raises(ObjectConflict):
        await store.put_new("theirs", b"x")


async def test_a_repository_lives_through_a_store_that_throttles_the_first_request_for_everything(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.05)
    vault = await new_vault(await opened(bucket))
    bucket.script = lambda seen, before: None if before else (503, SLOW_DOWN)
    volume = bytes(range(256)) * 40
    one = await backup(vault, volume, sequence=1, chunk_size=1024)
    assert await restore(vault, one) == volume
    assert (await verify(vault, depth="full")).ok


@pytest.mark.parametrize("where", ["secret", "environment", "instance"])
async def test_credentials_come_from_the_secret_else_the_environment_else_the_instance(
    bucket: Bucket, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = IDENTITY
    options = {"metadata_endpoint": bucket.url}
    if where != "instance":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", wanted := "AKIDOFTHEENVIRONMENT")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    if where == "secret":
        options |= OURS
        wanted = OURS["access_key_id"]
    store = await opened(bucket, **options)
    await store.put_new("a", b"x")
    assert await store.get("a") == b"x"
    assert {each.access_key for each in bucket.seen} == {wanted}
    assert bucket.tokens == (1 if where == "instance" else 0), "asked once, and kept until it expires"


async def test_a_refusal_is_no_throttling_and_shows_no_key(bucket: Bucket) -> None:
    store = await opened(bucket)
    bucket.script = lambda seen, before: (403, "<Error><Code>AccessDenied</Code></Error>")
    with pytest.raises(AccessDenied) as caught:
        await store.get("a")
    assert len(bucket.seen) == 1
    assert "AKID" not in str(caught.value)
