"""What every store must do; each back end inherits the suite."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.repository.directory import DirectoryStore, FileOperations
from orchestrator.repository.errors import (
    AccessDenied,
    ConditionalPutMissing,
    ObjectConflict,
    ObjectMissing,
    StoreFull,
    StoreMissing,
    StoreOptionUnknown,
)
from orchestrator.repository.keys import MasterKey
from orchestrator.repository.probe import probe_conditional_put
from orchestrator.repository.repository import Repository
from orchestrator.repository.store import CountingStore, Store, coalesce, open_store
from orchestrator.repository.verify import verify
from tests.repository import emulators
from tests.repository.engine import backup, new_vault, restore


async def lives_in(store: Store) -> None:
    """Make a repository with a chain of points, read it back whole, prove it."""
    vault = await new_vault(store)
    first = secrets.token_bytes(40 * 1024)
    one = await backup(vault, first, sequence=1, chunk_size=1024)
    second = first[:1024] + bytes(1024) + first[2048:]
    two = await backup(vault, second, sequence=2, touched=[1], base=one, chunk_size=1024)
    assert await restore(vault, one) == first
    assert await restore(vault, two) == second
    assert (await verify(vault, depth="full")).ok


class StoreContract:
    """Inherit, and give a `store` fixture."""

    async def test_an_object_comes_back_as_it_was_put(self, store: Store) -> None:
        data = secrets.token_bytes(300_000)
        await store.put_new("a/b/one", data)
        assert await store.get("a/b/one") == data
        assert await store.get_range("a/b/one", 1000, 50) == data[1000:1050]
        assert await store.get_range("a/b/one", 299_990, 50) == data[299_990:]
        assert await store.get_range("a/b/one", 300_000, 50) == b""
        assert await store.get_range("a/b/one", 400_000, 50) == b""

    async def test_ranges_come_back_in_the_order_asked(self, store: Store) -> None:
        data = secrets.token_bytes(900_000)
        await store.put_new("r", data)
        ranges = [(800_000, 10), (5, 7), (100, 0), (6, 300), (400_000, 4)]
        assert await store.get_ranges("r", ranges) == [data[at : at + size] for at, size in ranges]

    async def test_the_same_bytes_again_are_success_and_others_a_conflict(self, store: Store) -> None:
        await store.put_new("k", b"first")
        await store.put_new("k", b"first")
        for other in (b"other", b"firs", b"first!", b""):
            with pytest.raises(ObjectConflict):
                await store.put_new("k", other)
        assert await store.get("k") == b"first"

    async def test_views_of_reused_memory_can_be_put(self, store: Store) -> None:
        buffer = bytearray(b"x" * 100)
        await store.put_new("v", memoryview(buffer)[10:20])
        buffer[:] = b"y" * 100
        assert await store.get("v") == b"x" * 10

    async def test_of_many_writers_at_once_exactly_one_wins(self, store: Store) -> None:
        bodies = [bytes([n]) * 70_000 for n in range(6)]
        results = await asyncio.gather(*(store.put_new("race", body) for body in bodies), return_exceptions=True)
        winners = [n for n, result in enumerate(results) if result is None]
        assert len(winners) == 1
        assert all(isinstance(r, ObjectConflict) for n, r in enumerate(results) if n not in winners)
        assert await store.get("race") == bodies[winners[0]]

    async def test_what_is_missing_is_said_to_be_missing(self, store: Store) -> None:
        for call in (store.get("no/pe"), store.get_range("no/pe", 0, 1), store.get_ranges("no/pe", [(0, 1)])):
            with pytest.raises(ObjectMissing):
                await call
        assert await store.head("no/pe") is None
        await store.delete("no/pe")
        assert [info async for info in store.list("no/")] == []

    async def test_a_listing_shows_name_size_and_the_stores_own_time(self, store: Store) -> None:
        for key in ("p/a", "p/q/b", "p/q/c", "pp/d", "z"):
            await store.put_new(key, key.encode())
        found = {info.key: info async for info in store.list("p/")}
        assert sorted(found) == ["p/a", "p/q/b", "p/q/c"]
        assert found["p/q/b"].size == 5
        assert abs(found["p/a"].last_modified - datetime.now(UTC)) < timedelta(minutes=5)
        assert {info.key async for info in store.list("")} == {"p/a", "p/q/b", "p/q/c", "pp/d", "z"}
        head = await store.head("z")
        assert head is not None
        assert head.size == 1

    async def test_a_listing_of_more_than_one_page_is_whole(self, store: Store) -> None:
        await asyncio.gather(*(store.put_new(f"many/{n:05d}", b"x") for n in range(1050)))
        assert len([1 async for _ in store.list("many/")]) == 1050

    async def test_a_deleted_object_is_gone_and_its_name_is_free(self, store: Store) -> None:
        await store.put_new("d/e/f", b"1")
        await store.delete("d/e/f")
        assert await store.head("d/e/f") is None
        await store.put_new("d/e/f", b"2")
        assert await store.get("d/e/f") == b"2"

    async def test_it_honours_conditional_put(self, store: Store) -> None:
        await probe_conditional_put(store)
        assert [info async for info in store.list("")] == []

    async def test_a_repository_lives_there(self, store: Store) -> None:
        await lives_in(store)


@pytest.mark.quick
class TestMemory(StoreContract):
    @pytest.fixture
    async def store(self) -> Store:
        return await open_store(f"memory://{uuid.uuid4().hex}")


class TestDirectory(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> Store:
        return await open_store((tmp_path / "r p").as_uri())

    @pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "a//b", "", ".tmp/x", "a/./b", "a\0b", "a/"])
    async def test_no_name_leads_outside_the_root(self, store: Store, key: str, tmp_path: Path) -> None:
        for call in (store.put_new(key, b"x"), store.get(key), store.delete(key)):
            with pytest.raises(ValueError, match="not an object's name"):
                await call
        assert [path.name for path in tmp_path.iterdir()] in ([], ["r p"])

    async def test_a_missing_parent_is_not_made(self, tmp_path: Path) -> None:
        store = await open_store((tmp_path / "not-mounted" / "repo").as_uri())
        with pytest.raises(StoreMissing):
            await store.put_new("k", b"x")
        assert list(tmp_path.iterdir()) == []

    async def test_a_full_disk_is_said_to_be_full_and_nothing_is_left(self, tmp_path: Path) -> None:
        class Full(FileOperations):
            def write(self, path: Path, data: object) -> None:
                path.write_bytes(b"half")
                raise OSError(28, "No space left on device")

        store = DirectoryStore(tmp_path / "r", Full())
        with pytest.raises(StoreFull):
            await store.put_new("k", b"x" * 100)
        assert [info async for info in store.list("")] == []
        assert list((tmp_path / "r" / ".tmp").iterdir()) == []

    async def test_left_over_temporary_files_are_not_listed_and_swept_by_age(self, tmp_path: Path) -> None:
        store = DirectoryStore(tmp_path / "r")
        await store.put_new("k", b"x")
        left = tmp_path / "r" / ".tmp" / "dead"
        left.write_bytes(b"half")
        assert [info.key async for info in store.list("")] == ["k"]
        assert await store.sweep_leftovers(datetime.now(UTC) - timedelta(hours=1)) == 0
        os.utime(left, (0, 0))
        assert await store.sweep_leftovers(datetime.now(UTC) - timedelta(hours=1)) == 1
        assert not left.exists()

    async def test_an_emptied_folder_goes_and_comes_back(self, tmp_path: Path) -> None:
        store = DirectoryStore(tmp_path / "r")
        await store.put_new("n/packs/i/a", b"x")
        other = DirectoryStore(tmp_path / "r")
        await other.delete("n/packs/i/a")
        assert not (tmp_path / "r/n/packs/i").exists()
        await store.put_new("n/packs/i/b", b"y")
        assert await other.get("n/packs/i/b") == b"y"

    async def test_eexist_of_our_own_repeated_link_is_success(self, tmp_path: Path) -> None:
        class RepeatedLink(FileOperations):
            def link(self, source: Path, target: Path) -> None:
                super().link(source, target)
                raise FileExistsError

        store = DirectoryStore(tmp_path / "r", RepeatedLink())
        await store.put_new("k", b"ours")
        assert await store.get("k") == b"ours"


@pytest.mark.quick
async def test_a_store_that_overwrites_is_refused() -> None:
    inner = await open_store(f"memory://{uuid.uuid4().hex}")

    class Overwriting(CountingStore):
        async def put_new(self, key: str, data: object) -> None:
            await self.inner.delete(key)
            await self.inner.put_new(key, data)  # type: ignore[arg-type]

    with pytest.raises(ConditionalPutMissing):
        await probe_conditional_put(Overwriting(inner))


@pytest.mark.quick
@pytest.mark.parametrize(
    ("url", "options", "word"),
    [
        ("ftp://x/y", {}, "scheme"),
        ("s3://bucket/p", {"acess_key": "SECRETVALUE"}, "acess_key"),
        ("file:///tmp/x", {"region": "r"}, "region"),
        ("file://host/x", {}, "absolute"),
        ("s3:///p", {}, "bucket"),
        ("s3://user:SECRETVALUE@bucket/p", {}, "credentials"),
        ("s3://b/p", {"allow_http": "SECRETVALUE"}, "allow_http"),
        ("s3://b/p", {"allow_http": "no", "endpoint": "http://SECRETVALUE"}, "allow_http"),
        ("az://c/p", {"account_name": "a", "account_key": "SECRETVALUE!"}, "options"),
    ],
)
async def test_bad_urls_and_options_are_refused_by_name(url: str, options: dict[str, str], word: str) -> None:
    with pytest.raises(StoreOptionUnknown, match=word) as caught:
        await open_store(url, options)
    assert "SECRETVALUE" not in str(caught.value) + repr(caught.value.__cause__)


@pytest.mark.quick
def test_near_ranges_are_joined_and_far_ones_are_not() -> None:
    assert coalesce([(0, 10), (20, 10), (1_000_000, 5)], gap=100) == [(0, 30, [0, 1]), (1_000_000, 5, [2])]
    assert coalesce([(50, 10), (0, 10), (5, 2)], gap=0) == [(0, 10, [1, 2]), (50, 10, [0])]


def _versitygw() -> str | None:
    folders = [os.environ.get("KUBEBUILDER_ASSETS", ""), str(Path.home() / ".cache/tidemark/tools/bin")]
    return next(
        (found for folder in folders if folder and (found := shutil.which("versitygw", path=folder))), None
    ) or (shutil.which("versitygw"))


@contextlib.contextmanager
def _s3_server(folder: Path) -> Iterator[str]:
    program = _versitygw()
    if program is None:
        pytest.skip("versitygw is not here: put it on PATH or into KUBEBUILDER_ASSETS")
    (folder / "data" / "bucket").mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "ROOT_ACCESS_KEY": "testkey", "ROOT_SECRET_KEY": "testsecret"}
    server = subprocess.Popen(
        [program, "--port", f"127.0.0.1:{port}", "posix", str(folder / "data")],
        env=environment,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


async def _s3(endpoint: str, secret: str = "testsecret", bucket: str = "bucket") -> Store:
    options = {"access_key_id": "testkey", "secret_access_key": secret, "endpoint": endpoint, "region": "us-east-1"}
    return await open_store(f"s3://{bucket}/some/{uuid.uuid4().hex}", options)


@pytest.mark.real
class TestS3(StoreContract):
    @pytest.fixture
    async def endpoint(self, tmp_path: Path) -> AsyncIterator[str]:
        with _s3_server(tmp_path) as endpoint:
            store = await _s3(endpoint)
            # The client's own retries wait until the server listens.
            assert await store.head("ready") is None
            yield endpoint

    @pytest.fixture
    async def store(self, endpoint: str) -> Store:
        return await _s3(endpoint)

    async def test_large_puts_of_an_existing_name_are_settled(self, store: Store) -> None:
        body, other = secrets.token_bytes(16 << 20), secrets.token_bytes(16 << 20)
        await store.put_new("big", body)
        for _ in range(5):
            await store.put_new("big", body)
            with pytest.raises(ObjectConflict):
                await store.put_new("big", other)

    async def test_wrong_credentials_and_missing_buckets_are_told_apart(self, endpoint: str) -> None:
        denied = await _s3(endpoint, secret="another")
        with pytest.raises(AccessDenied):
            await denied.put_new("k", b"x")
        with pytest.raises(AccessDenied):
            await denied.get("k")
        missing = await _s3(endpoint, bucket="nobucket")
        with pytest.raises(StoreMissing):
            await missing.put_new("k", b"x")
        with pytest.raises(StoreMissing):
            assert [info async for info in missing.list("")] == []


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with emulators.azure(tmp_path_factory.mktemp("azure")) as options:
        yield options


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with emulators.gcs(tmp_path_factory.mktemp("gcs")) as url:
        yield url


@pytest.mark.real
class TestAzure(StoreContract):
    @pytest.fixture
    def options(self, azurite: dict[str, str]) -> dict[str, str]:
        return azurite

    @pytest.fixture
    async def store(self, options: dict[str, str]) -> Store:
        return await open_store(f"az://bucket/some/{uuid.uuid4().hex}", options)

    async def test_wrong_credentials_and_missing_containers_are_told_apart(self, options: dict[str, str]) -> None:
        wrong = base64.b64encode(b"another").decode()
        denied = await open_store("az://bucket/p", {**options, "account_key": wrong})
        with pytest.raises(AccessDenied):
            await denied.get("k")
        with pytest.raises(AccessDenied):
            await denied.put_new("k", b"x")
        missing = await open_store("az://nobucket/p", options)
        with pytest.raises(StoreMissing):
            await missing.put_new("k", b"x")
        with pytest.raises(StoreMissing):
            assert [info async for info in missing.list("")] == []

    async def test_a_shared_access_signature_is_enough(self, options: dict[str, str]) -> None:
        sas = emulators.azure_sas(options)
        held = {"account_name": options["account_name"], "endpoint": options["endpoint"], "sas_key": sas}
        store = await open_store(f"az://bucket/sas/{uuid.uuid4().hex}", held)
        await store.put_new("k", b"x")
        with pytest.raises(ObjectConflict):
            await store.put_new("k", b"y")
        assert await store.get("k") == b"x"


@pytest.mark.real
class TestGoogle(StoreContract):
    @pytest.fixture
    async def store(self, emulator: str) -> AsyncIterator[Store]:
        async with emulators.gcs_front(emulator) as options:
            yield await open_store(f"gs://bucket/some/{uuid.uuid4().hex}", options)

    async def test_a_store_that_never_heard_of_preconditions_is_refused(self, emulator: str) -> None:
        async with emulators.gcs_front(emulator, deaf=True) as options:
            store = await open_store(f"gs://bucket/deaf/{uuid.uuid4().hex}", options)
            with pytest.raises(ConditionalPutMissing):
                await Repository.open_or_create(store, MasterKey(bytes(32)))
            assert [info async for info in store.list("")] == [], "nothing is begun there"
