"""What a repository says about its own lock: no command and no controller forgets a promise that was made once."""

from __future__ import annotations

import contextlib
import json
import random
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from orchestrator.cli.main import main
from orchestrator.cli.parts.opening import repository
from orchestrator.repository.errors import Damaged, StoreUnavailable
from orchestrator.repository.keys import MasterKey
from orchestrator.repository.lock import LockedStore, ObjectLock, UnclearPromise, is_locked, locked, past_unclear
from orchestrator.repository.lockclient import S3LockClient
from orchestrator.repository.repository import Repository
from tests.repository.bucket import IDENTITY, ROLE_KEY, Bucket, serving
from tests.repository.engine import NAMESPACE
from tests.repository.faults import Shelf
from tests.repository.lockservers import BUCKET, LockServer

DAY = timedelta(days=1)
MONTH = ObjectLock(retention=30 * DAY, renew_every=7 * DAY)
YEAR = ObjectLock(retention=365 * DAY, renew_every=30 * DAY, mode="GOVERNANCE")
MASTER = MasterKey(bytes(32))


@pytest.mark.quick
async def test_a_promise_is_kept_in_the_repository_until_another_takes_its_place() -> None:
    shelf = Shelf()
    opened = await Repository.open_or_create(shelf, MASTER)
    assert await opened.lock() is None
    assert not await opened.promise(None)
    for number, lock in enumerate([MONTH, YEAR, None, MONTH]):
        assert await opened.promise(lock)
        assert not await opened.promise(lock)
        again = await Repository.open(shelf, MASTER)
        assert await again.lock() == lock
        assert len([info async for info in shelf.list("locks/")]) == number + 1
    for key, data in shelf.plain().items():
        assert is_locked(key)
        assert b"retention" not in data


@pytest.mark.quick
async def test_a_promise_that_does_not_open_is_said_and_can_be_made_again() -> None:
    shelf = Shelf()
    opened = await Repository.open_or_create(shelf, MASTER)
    await opened.promise(MONTH)
    # a stranger's document, or that of another repository, is none
    other = await Repository.open_or_create(Shelf(), MASTER)
    await other.promise(None if await other.lock() else YEAR)
    await shelf.put_new("locks/00000007", await other.store.get("locks/00000000"))
    with pytest.raises(Damaged, match="locks/00000007"):
        await opened.lock()
    assert await opened.promise(MONTH)
    assert await opened.lock() == MONTH
    # and when no number is left after it, it has to go first
    await shelf.put_new("locks/99999999", b"junk")
    with pytest.raises(Damaged, match="no number is left"):
        await opened.promise(YEAR)


@contextlib.contextmanager
def _files(folder: Path, options: dict[str, str]) -> Iterator[tuple[Path, Path]]:
    key, store = folder / "master.key", folder / "store.env"
    key.write_text(bytes(32).hex())
    store.write_text("".join(f"{name}={value}\n" for name, value in options.items()))
    yield key, store


@contextlib.asynccontextmanager
async def _promised(folder: Path) -> AsyncIterator[tuple[Bucket, str, Path, Path]]:
    """Give a bucket with a repository that promises a month, its address, and the files of its key and its store."""
    url = "s3://bucket/p"
    async with serving() as bucket:
        options = {"endpoint": bucket.url, "access_key_id": "a", "secret_access_key": "s"}
        with _files(folder, options) as (key, store):
            async with repository(url, key, store, create=True) as opened:
                assert locked(opened.store) is None
                await opened.promise(MONTH)
            yield bucket, url, key, store


async def test_a_command_puts_with_the_lock_that_the_repository_says(tmp_path: Path) -> None:
    async with _promised(tmp_path) as (bucket, url, key, store):
        async with repository(url, key, store) as opened:
            found = locked(opened.store)
            assert isinstance(found, LockedStore)
            assert found.lock == MONTH
            await opened.vault(NAMESPACE, create=True)
        asked = {name: headers for name, headers in bucket.locks.items() if name.startswith("p/namespaces/")}
        assert [mode for mode, _ in asked.values()] == ["COMPLIANCE"]
        assert all(until >= datetime.now(UTC) + 29 * DAY for _, until in asked.values())


async def test_a_promise_that_cannot_be_read_stops_what_is_to_last_and_no_restore(tmp_path: Path) -> None:
    async with _promised(tmp_path) as (bucket, url, key, store):
        async with repository(url, key, store) as opened:
            vault = await opened.vault(NAMESPACE, create=True)
            pack = vault.names.packs + "one"
            await vault.store.put_new(pack, b"pack")
        bucket.objects["p/locks/00000009"] = b"junk" * 40
        async with repository(url, key, store) as opened:
            found = locked(opened.store)
            assert isinstance(found, LockedStore)
            assert isinstance(found.client, UnclearPromise)
            vault = await opened.vault(NAMESPACE)
            assert await vault.store.get(pack) == b"pack"
            with pytest.raises(Damaged, match="locks/00000009"):
                await vault.store.put_new(pack + "more", b"pack")
            opened.store = past_unclear(opened.store)
            assert await opened.promise(YEAR)
        async with repository(url, key, store) as opened:
            assert await opened.lock() == YEAR


@pytest.mark.parametrize("where", ["secret", "role", "environment", "instance"])
async def test_a_lock_is_put_with_the_credentials_that_the_store_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    async with serving() as bucket:
        wanted, options = IDENTITY, {"endpoint": bucket.url, "metadata_endpoint": bucket.url, "retries": "1"}
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        if where in ("secret", "environment"):
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", wanted := "AKIDOFTHEENVIRONMENT")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
        if where == "secret":
            options |= {"access_key_id": (wanted := "AKIDOFTHESECRET"), "secret_access_key": "s"}
        if where == "role":
            wanted = ROLE_KEY
            (token := tmp_path / "token").write_text("of-the-workload")
            monkeypatch.setenv("AWS_ENDPOINT_URL_STS", bucket.url)
            options |= {"role_arn": "arn:aws:iam::1:role/backup", "web_identity_token_file": str(token)}
        client = S3LockClient("s3://bucket/p", options)
        try:
            assert await client.put_locked("a", b"x", "COMPLIANCE", datetime.now(UTC) + DAY)
        finally:
            await client.close()
        assert {each.access_key for each in bucket.seen} == {wanted}
        if where == "role":
            assert [asked["WebIdentityToken"] for asked in bucket.roles] == ["of-the-workload"]


async def test_an_authority_of_ones_own_is_believed_and_no_other() -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    pem = authority.cert_pem.bytes().decode().replace("\n", "\\n")  # as in a file of lines
    async with serving(context) as bucket:
        options = {"endpoint": bucket.url, "access_key_id": "a", "secret_access_key": "s", "retries": "0"}
        for more in ({"ca_certificate": pem}, {}):
            client = S3LockClient("s3://bucket/p", {**options, **more})
            try:
                with contextlib.nullcontext() if more else pytest.raises(StoreUnavailable):
                    assert await client.put_locked("a", b"x", "COMPLIANCE", datetime.now(UTC) + DAY)
            finally:
                await client.close()
        assert list(bucket.objects) == ["p/a"]


async def test_a_clock_that_is_too_far_off_is_named(tmp_path: Path) -> None:
    async with serving() as bucket:
        refusal = "<Error><Code>RequestTimeTooSkewed</Code><Message>The difference is too large.</Message></Error>"
        bucket.script = lambda seen, before: (403, refusal)
        options = {"endpoint": bucket.url, "access_key_id": "a", "secret_access_key": "s", "retries": "0"}
        client = S3LockClient("s3://bucket/p", options)
        try:
            with pytest.raises(StoreUnavailable, match="clocks"):
                await client.put_locked("a", b"x", "COMPLIANCE", datetime.now(UTC) + DAY)
        finally:
            await client.close()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--retention", "30d"], 2, "give both"),
        (["--retention", "soon", "--renew-every", "7d"], 2, "not a duration"),
        (["--retention", "7d", "--renew-every", "7d"], 2, "must be longer"),
        (["--retention", "30d", "--renew-every", "7d", "--release"], 2, "either"),
        (["--retention", "30d", "--renew-every", "7d", "--yes"], 65, "only s3 is supported"),
        ([], 0, "No object lock is promised"),
    ],
)
def test_a_lock_that_cannot_be_promised_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], code: int, said: str
) -> None:
    key = tmp_path / "master.key"
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    assert main(["key", "generate", str(key)]) == 0
    where = ["--repository", f"file://{tmp_path / 'repository'}", "--key-file", str(key)]
    assert main(["copy", str(image), *where, "--create"]) == 0
    capsys.readouterr()
    assert main(["lock", *where, *arguments]) == code
    told = capsys.readouterr()
    assert said in " ".join((told.out + told.err).split())
    assert "Traceback" not in told.err


@pytest.mark.real
def test_without_a_cluster_points_are_made_kept_and_removed_under_a_promise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import asyncio

    server = LockServer(tmp_path)
    image, target = tmp_path / "disk.img", tmp_path / "back.img"
    image.write_bytes(random.Random(1).randbytes(300_000))
    with server.running(), _files(tmp_path, server.options("root")) as (key, store):
        asyncio.run(server.make_bucket())
        url = f"s3://{BUCKET}/offline"
        where = ["--repository", url, "--key-file", str(key), "--store-options", str(store)]

        def types(*command: str) -> str:
            capsys.readouterr()
            code = main([*command, *where])
            said = capsys.readouterr()
            assert code == 0, said.err
            return said.out

        def unlocked() -> list[str]:
            async def look() -> list[str]:
                client = S3LockClient(url, server.options("root"))
                try:
                    async with repository(url, key, store) as opened:
                        names = [info.key async for info in opened.store.list("") if is_locked(info.key)]
                    least = datetime.now(UTC) + 29 * DAY
                    kept = {name: await client.retained_until(name) for name in names}
                    return [name for name, until in kept.items() if until is None or until < least]
                finally:
                    await client.close()

            return asyncio.run(look())

        # given a point that was made without a lock
        first = json.loads(types("copy", str(image), "--create", "--json", "-"))["point"]
        assert len(unlocked()) >= 5
        # when a lock is promised, then all of it is locked, and so is what comes after
        said = types("lock", "--retention", "30d", "--renew-every", "7d", "--yes")
        assert "at least 3w2d" in said
        assert unlocked() == []
        image.write_bytes(random.Random(2).randbytes(300_000))
        second = json.loads(types("copy", str(image), "--json", "-"))["point"]
        types("key", "rotate")
        third = json.loads(types("copy", str(image), "--json", "-"))["point"]
        assert unlocked() == []
        # and points go and their data is swept, while the others restore
        types("prune", "--point", first, "--yes")
        assert "at least 3w2d" in types("lock")
        for _ in range(2):
            types("maintenance", "--grace", "0")
        assert first not in types("restore", "--list")
        for point in (second, third):
            types("restore", "--point", point, "--to", str(target))
            assert target.read_bytes() == image.read_bytes()
            target.unlink()
        types("verify", "--full")
        assert unlocked() == []
        types("lock", "--release", "--yes")
        assert "No object lock" in types("lock")
