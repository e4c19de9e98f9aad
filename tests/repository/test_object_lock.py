"""Object lock on a real S3 server that has it: what lives can't be deleted, by whom ever, and stays so."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from orchestrator.fence import OpenFence
from orchestrator.repository.crypto import Bytes
from orchestrator.repository.errors import (
    AccessDenied,
    Damaged,
    ManifestMissing,
    ObjectConflict,
    PointCancelled,
    StoreOptionUnknown,
    StoreUnavailable,
)
from orchestrator.repository.keys import MasterKey
from orchestrator.repository.lock import (
    LockedStore,
    LockMode,
    LockUnsupported,
    ObjectLock,
    is_locked,
    open_locked_store,
)
from orchestrator.repository.lockclient import S3LockClient
from orchestrator.repository.lockrenewal import due, last_renewed, renew, renew_if_due
from orchestrator.repository.maintenance import plan_sweep, sweep
from orchestrator.repository.manifest import open_manifest
from orchestrator.repository.point import remove
from orchestrator.repository.repository import Repository
from orchestrator.repository.vault import Vault
from orchestrator.repository.verify import verify
from tests.mover.movers import Pod, end
from tests.repository.engine import NAMESPACE, backup, new_vault, restore
from tests.repository.faults import Fault, FaultyStore, ProcessDied, Shelf
from tests.repository.lockservers import BUCKET, SERVER, LockServer

real = pytest.mark.real
SIZE = 1024
DAY = timedelta(days=1)
LOCK = ObjectLock(retention=30 * DAY, renew_every=7 * DAY)
NOW = datetime(2026, 3, 1, tzinfo=UTC)
REFUSED = r"AccessDenied|WORM protected"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LockServer]:
    server = LockServer(tmp_path_factory.mktemp("lock"))
    with server.running():
        asyncio.run(server.make_bucket())
        yield server


@pytest.fixture
def url() -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


class Clock:
    """The time that retention is reckoned from: the server takes only what lies ahead of its own."""

    def __init__(self) -> None:
        self.instant = datetime.now(UTC)

    def now(self) -> datetime:
        return self.instant

    def monotonic(self) -> float:
        return self.instant.timestamp()


@contextlib.asynccontextmanager
async def opened(server: LockServer, url: str, who: str, clock: Clock | None = None) -> AsyncIterator[Vault]:
    store = await open_locked_store(url, server.options(who), LOCK)
    assert isinstance(store, LockedStore)
    if clock is not None:
        store._clock = clock
    try:
        repository = await Repository.open_or_create(store, MasterKey(bytes(32)))
        yield await repository.vault(NAMESPACE, create=True)
    finally:
        await store.close()


def _volume(seed: int) -> bytes:
    return random.Random(seed).randbytes(60 * SIZE)


async def _retained(vault: Vault) -> dict[str, datetime | None]:
    store = vault.store
    assert isinstance(store, LockedStore)
    assert isinstance(store.client, S3LockClient)
    return {info.key: await store.client.retained_until(info.key) async for info in store.list("")}


@real
async def test_a_writer_that_may_delete_nothing_makes_points_and_all_that_a_restore_needs_is_locked(
    server: LockServer, url: str
) -> None:
    started = datetime.now(UTC)
    async with opened(server, url, "writer") as vault:
        base = await backup(vault, _volume(1), sequence=1, chunk_size=SIZE)
        changed = b"x" * SIZE + _volume(1)[SIZE:]
        heir = await backup(vault, changed, sequence=2, touched=[0], base=base, chunk_size=SIZE)
        assert await restore(vault, base) == _volume(1)
        assert await restore(vault, heir) == changed
        retained = await _retained(vault)
        for key, until in retained.items():
            if is_locked(key):
                assert until is not None, key
                assert until >= started + LOCK.retention - timedelta(seconds=2)
            else:
                assert until is None, key
        assert sum(map(is_locked, retained)) >= 7
        # and this credential deletes nothing, nor ends or shortens a lock
        pack = next(key for key in retained if "/packs/" in key)
        with pytest.raises(AccessDenied):
            await vault.store.delete(pack)
        assert isinstance(vault.store, LockedStore)
        await vault.store.renew(pack, started + DAY)
        assert (await _retained(vault))[pack] == retained[pack]
        assert (await verify(vault, depth="full", record=False)).ok


@real
async def test_not_even_the_buckets_owner_deletes_a_version_that_is_locked(server: LockServer, url: str) -> None:
    async with opened(server, url, "writer") as vault:
        ref = await backup(vault, _volume(2), sequence=1, chunk_size=SIZE)
        prefix = url.removeprefix(f"s3://{BUCKET}/")
        found = await server.call("root", "list_object_versions", Prefix=f"{prefix}/n/")
        locked = [v for v in found["Versions"] if is_locked(v["Key"].removeprefix(f"{prefix}/"))]
        assert len(locked) >= 3
        for version in locked:
            with pytest.raises(ClientError, match=REFUSED):
                await server.call("root", "delete_object", Key=version["Key"], VersionId=version["VersionId"])
        # hidden by a marker, it comes back when the marker goes
        (pack,) = (version["Key"] for version in locked if "/packs/" in version["Key"])
        marker = await server.call("root", "delete_object", Key=pack)
        assert marker["DeleteMarker"]
        await server.call("root", "delete_object", Key=pack, VersionId=marker["VersionId"])
        assert await restore(vault, ref) == _volume(2)


@real
async def test_a_locked_name_is_taken_once(server: LockServer, url: str) -> None:
    async with opened(server, url, "writer") as vault:
        key = vault.names.packs + "twice"
        await vault.store.put_new(key, b"first")
        await vault.store.put_new(key, b"first")
        with pytest.raises(ObjectConflict):
            await vault.store.put_new(key, b"other")
        assert await vault.store.get(key) == b"first"


@real
async def test_maintenance_renews_what_lives_and_lets_the_rest_run_out(server: LockServer, url: str) -> None:
    clock = Clock()
    async with opened(server, url, "root", clock) as vault:
        base = await backup(vault, _volume(3), sequence=1, chunk_size=SIZE)
        garbage = vault.names.pack(_stranger())
        await vault.store.put_new(garbage, b"x" * 100)
        first = await _retained(vault)
        assert due(LOCK, await last_renewed(vault), clock.now())
        # when a renewal runs five days later
        clock.instant += 5 * DAY
        done = await renew(vault, OpenFence(), now=clock.now())
        second = await _retained(vault)
        # then what lives is kept as long as if it had been put then, and what nothing reaches isn't
        living = {key for key in first if is_locked(key)} - {garbage}
        assert done.objects == len(living)
        for key in living:
            until = second[key]
            assert until is not None
            assert until >= clock.now() + LOCK.retention - timedelta(seconds=1), key
        assert second[garbage] == first[garbage]
        last = await last_renewed(vault)
        assert last is not None
        assert abs(last - clock.now()) < timedelta(seconds=1)
        assert not due(LOCK, last, clock.now() + 5 * DAY)
        assert due(LOCK, last, clock.now() + 6 * DAY)
        clock.instant += 6 * DAY
        await renew(vault, OpenFence(), now=clock.now())
        assert len([info async for info in vault.store.list(vault.names.renewed)]) == 1
        # and a sweep hides the garbage, though its version can't go yet
        for days in (12, 14):
            now = clock.now() + days * DAY
            await sweep(vault, await plan_sweep(vault, now=now, grace=DAY, intent_age=7 * DAY), OpenFence())
        assert await vault.store.head(garbage) is None
        assert await restore(vault, base) == _volume(3)


@real
async def test_a_point_is_removed_for_good_by_who_may_delete_nothing(server: LockServer, url: str) -> None:
    prefix = url.removeprefix(f"s3://{BUCKET}/")
    async with opened(server, url, "writer") as vault:
        gone = await backup(vault, _volume(4), sequence=1, chunk_size=SIZE)
        kept = await backup(vault, _volume(5), sequence=2, chunk_size=SIZE)
        manifest = await vault.store.get(gone.key)
        # when one is removed, and removed again
        await remove(vault, gone, OpenFence())
        await remove(vault, gone, OpenFence())
        # then it is gone, and its writer, stopped before the commit, can't bring it back
        with pytest.raises(PointCancelled):
            await open_manifest(vault, gone.key)
        with pytest.raises(ObjectConflict):
            await vault.store.put_new(gone.key, manifest)
        assert await restore(vault, kept) == _volume(5)
        assert (await verify(vault, depth="full", record=False)).ok
    # and what it was stays under the record that ended it, undeletable until its own lock is over
    record, old = await server.versions(f"{prefix}/{gone.key}")
    assert (record["IsLatest"], old["IsLatest"], old["Size"]) == (True, False, len(manifest))
    for version in (record, old):
        with pytest.raises(ClientError, match=REFUSED):
            await server.call("root", "delete_object", Key=version["Key"], VersionId=version["VersionId"])


@real
async def test_what_removed_points_used_is_swept_and_its_versions_wait_for_their_lock(
    server: LockServer, url: str
) -> None:
    prefix = url.removeprefix(f"s3://{BUCKET}/")
    async with opened(server, url, "root") as vault:
        gone = await backup(vault, _volume(6), sequence=1, chunk_size=SIZE)
        kept = await backup(vault, _volume(7), sequence=2, chunk_size=SIZE)
        await remove(vault, gone, OpenFence())
        for days in (0, 2, 4, 6):
            now = datetime.now(UTC) + days * DAY
            await sweep(vault, await plan_sweep(vault, now=now, grace=DAY, intent_age=36500 * DAY), OpenFence())
        packs = await server.versions(f"{prefix}/{vault.names.packs}")
        lone = [v for v in packs if not v["IsMarker"] and not v["IsLatest"]]
        assert len(packs) == 3
        assert [v["Key"] for v in lone] == [v["Key"] for v in packs if v["IsMarker"]]
        with pytest.raises(ClientError, match=REFUSED):
            await server.call("root", "delete_object", Key=lone[0]["Key"], VersionId=lone[0]["VersionId"])
        assert await restore(vault, kept) == _volume(7)
        assert (await verify(vault, depth="full", record=False)).ok


@real
async def test_a_point_hidden_by_a_stranger_is_brought_back_or_removed(server: LockServer, url: str) -> None:
    prefix = url.removeprefix(f"s3://{BUCKET}/")
    async with opened(server, url, "writer") as vault:
        ref = await backup(vault, _volume(8), sequence=1, chunk_size=SIZE)
        marker = await server.call("root", "delete_object", Key=f"{prefix}/{ref.key}")
        with pytest.raises(ManifestMissing):
            await open_manifest(vault, ref.key)
        await server.call("root", "delete_object", Key=f"{prefix}/{ref.key}", VersionId=marker["VersionId"])
        assert await restore(vault, ref) == _volume(8)
        # so does what was put on top of it, by copying the older version over that
        assert isinstance(vault.store, LockedStore)
        old = (await server.versions(f"{prefix}/{ref.key}"))[0]
        await vault.store.put_over(ref.key, b"of a stranger")
        with pytest.raises(Damaged):
            await open_manifest(vault, ref.key)
        source = {"Bucket": BUCKET, "Key": old["Key"], "VersionId": old["VersionId"]}
        await server.call("root", "copy_object", Key=old["Key"], CopySource=source)
        assert await restore(vault, ref) == _volume(8)
        # a name that holds nothing but a marker can be ended too, on every server
        await server.call("root", "delete_object", Key=f"{prefix}/{ref.key}")
        await remove(vault, ref, OpenFence())
        with pytest.raises(PointCancelled):
            await open_manifest(vault, ref.key)


@real
@pytest.mark.parametrize("mode", ["COMPLIANCE", "GOVERNANCE"])
async def test_a_lock_ends_when_its_time_is_over_or_by_a_permission_in_governance_mode(
    server: LockServer, url: str, mode: LockMode
) -> None:
    prefix = url.removeprefix(f"s3://{BUCKET}/")
    client = S3LockClient(url, server.options("root"))
    try:
        until = datetime.now(UTC) + timedelta(hours=1)
        assert await client.put_locked("object", b"long", mode, until)
        over = datetime.now(UTC) + timedelta(seconds=3)
        assert await client.put_locked("brief", b"brief", mode, over)
        long, brief = [
            {"Key": version["Key"], "VersionId": version["VersionId"]}
            for name in ("object", "brief")
            for version in await server.versions(f"{prefix}/{name}")
        ]
        # a lock is made longer by who may renew, never shorter
        longer = until + timedelta(minutes=1)
        await client.renew("object", mode, longer)
        await client.renew("object", mode, until)
        assert abs(await _until(client) - longer) < timedelta(seconds=1)
        # and who renews with another mode, after a change of the promise, keeps it all the same
        await client.renew("object", "GOVERNANCE", longer := longer + timedelta(minutes=1))
        assert abs(await _until(client) - longer) < timedelta(seconds=1)
        with pytest.raises(ClientError, match=REFUSED):
            await server.call("root", "delete_object", **long)
        if mode == "COMPLIANCE":
            with pytest.raises(ClientError, match=REFUSED):
                await server.call("root", "delete_object", **long, BypassGovernanceRetention=True)
        else:
            await server.call("root", "delete_object", **long, BypassGovernanceRetention=True)
        while datetime.now(UTC) < over + timedelta(seconds=1):
            await asyncio.sleep(0.2)  # the server's clock is the real one
        await server.call("root", "delete_object", **brief)
        left = await server.versions(prefix)
        assert [version["Key"] for version in left] == ([long["Key"]] if mode == "COMPLIANCE" else [])
    finally:
        await client.close()


async def _until(client: S3LockClient) -> datetime:
    found = await client.retained_until("object")
    assert found is not None
    return found


@real
async def test_a_clock_that_is_behind_breaks_no_promise(server: LockServer, url: str) -> None:
    clock = Clock()
    clock.instant -= timedelta(minutes=14)  # one that is further behind is refused by the store
    async with opened(server, url, "writer", clock) as vault:
        await backup(vault, _volume(9), sequence=1, chunk_size=SIZE)
        kept = [until for key, until in (await _retained(vault)).items() if is_locked(key) and "/n/" in f"/{key}"]
        assert len(kept) >= 3
        assert all(until is not None and until >= datetime.now(UTC) + LOCK.retention for until in kept)


@real
async def test_a_mover_that_sweeps_renews_what_lives_once_a_period(
    server: LockServer, url: str, tmp_path: Path
) -> None:
    clock = Clock()
    clock.instant -= 10 * DAY
    async with opened(server, url, "root", clock) as vault:
        ref = await backup(vault, _volume(10), sequence=1, chunk_size=SIZE)
        lock = {"lock_retention_s": LOCK.retention.total_seconds(), "lock_renew_s": LOCK.renew_every.total_seconds()}
        said = []
        for _ in range(2):
            pod = Pod.make(
                tmp_path,
                vault,
                url,
                "maintain",
                vault.namespace_id,
                tmp_path / "none",
                store_options=server.options("root"),
                **lock,
            )
            process = pod.start()
            try:
                code, _, log = end(process, timeout_s=200)
            finally:
                process.kill()
            assert code == 0, log
            said.append("renewed the lock of" in log)
        assert said == [True, False]
        assert all(
            until is not None and until > datetime.now(UTC) + 29 * DAY
            for key, until in (await _retained(vault)).items()
            if is_locked(key)
        )
        assert await restore(vault, ref) == _volume(10)


@real
async def test_what_is_wrong_with_a_bucket_is_said(server: LockServer) -> None:
    client = S3LockClient(f"s3://{BUCKET}/p", server.options("root"))
    assert await client.problems() == ["no lifecycle rule expires noncurrent versions: space never comes back"]
    await client.close()
    plain = S3LockClient("s3://plain-bucket/p", server.options("root"))
    try:
        await (await plain._opened()).create_bucket(Bucket="plain-bucket")
        assert "it keeps no versions" in await plain.problems()
        assert "object lock is not enabled on it" in await plain.problems()
    finally:
        await plain.close()
    store = await open_locked_store("s3://plain-bucket/p", server.options("root"), LOCK)
    with pytest.raises((LockUnsupported, StoreUnavailable)):
        await store.put_new("tidemark", b"{}")
    await store.close()
    wrong = await open_locked_store(f"s3://{BUCKET}/p", {**server.options("root"), "secret_access_key": "no"}, LOCK)
    with pytest.raises(AccessDenied) as refused:
        await wrong.put_new("tidemark", b"{}")
    assert "secret" not in str(refused.value)
    await wrong.close()


@pytest.mark.quick
async def test_a_lock_is_refused_by_name_where_there_is_none(tmp_path: Path) -> None:
    for url, name in [(f"file://{tmp_path}", "file"), ("gs://bucket/x", "gs"), ("az://box/x", "az")]:
        with pytest.raises(LockUnsupported, match=f"of type {name}"):
            await open_locked_store(url, {}, LOCK)
    with pytest.raises(LockUnsupported, match="shorter"):
        ObjectLock(retention=7 * DAY, renew_every=7 * DAY)
    with pytest.raises(StoreOptionUnknown, match="role_arn"):
        await open_locked_store("s3://bucket/x", {"role_arn": "arn"}, LOCK)
    assert await open_locked_store(f"file://{tmp_path}", {}, None) is not None


class ShelfLocks:
    """A lock's calls on a store in memory, where the past is a version; a put over may be late, or its answer lost."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf, self.fault = shelf, ""
        self.late: list[tuple[str, bytes]] = []

    async def put_locked(self, key: str, data: Bytes, mode: LockMode, until: datetime) -> bool:
        if key in self.shelf.objects:
            return False
        await self.shelf.put_new(key, data)
        return True

    async def put_over(self, key: str, data: Bytes, mode: LockMode, until: datetime) -> None:
        fault, self.fault = self.fault, ""
        if fault == "late":
            self.late.append((key, bytes(data)))
        elif fault != "refused":
            self.shelf.objects[key] = (bytes(data), self.shelf.now)
        if fault:
            raise StoreUnavailable("memory://shelf", fault)

    async def renew(self, key: str, mode: LockMode, until: datetime) -> None:
        self.shelf._data(key)

    async def problems(self) -> list[str]:
        return []

    async def close(self) -> None:
        return


@pytest.mark.quick
@pytest.mark.parametrize("fault", ["refused", "lost", "late"])
async def test_a_removal_under_a_lock_whose_answer_is_unclear_is_done_by_the_next_try(fault: str) -> None:
    shelf = Shelf()
    locks = ShelfLocks(shelf)
    vault = await new_vault(LockedStore(shelf, locks, LOCK))
    gone = await backup(vault, _volume(1), sequence=1, chunk_size=SIZE)
    kept = await backup(vault, _volume(2), sequence=2, chunk_size=SIZE)
    locks.fault = fault
    with pytest.raises(StoreUnavailable):
        await remove(vault, gone, OpenFence())
    await remove(vault, gone, OpenFence())
    for key, data in locks.late:  # the first one arrives after all
        shelf.objects[key] = (data, shelf.now)
    with pytest.raises(PointCancelled):
        await open_manifest(vault, gone.key)
    assert await restore(vault, kept) == _volume(2)
    assert [key for key in shelf.objects if "/removing/" in key] == []


@pytest.mark.quick
async def test_a_promise_that_was_made_longer_is_kept_from_the_next_renewal_on() -> None:
    shelf = Shelf()
    vault = await new_vault(LockedStore(shelf, ShelfLocks(shelf), LOCK))
    await backup(vault, _volume(1), sequence=1, chunk_size=SIZE)
    assert await renew_if_due(vault, OpenFence(), now=NOW) is not None
    assert await renew_if_due(vault, OpenFence(), now=NOW + DAY) is None
    longer = ObjectLock(retention=90 * DAY, renew_every=7 * DAY)
    vault = Vault(LockedStore(shelf, ShelfLocks(shelf), longer), vault.keys)
    assert await last_renewed(vault) == NOW
    assert await last_renewed(vault, longer) is None
    done = await renew_if_due(vault, OpenFence(), now=NOW + DAY)
    assert done is not None
    assert done.until >= NOW + 91 * DAY
    assert await renew_if_due(vault, OpenFence(), now=NOW + 2 * DAY) is None
    # a record that doesn't open counts for none
    (record,) = [key for key in shelf.objects if "/renewed/" in key]
    shelf.replace(record, b"junk")
    assert await renew_if_due(vault, OpenFence(), now=NOW + 2 * DAY) is not None


@pytest.mark.quick
async def test_a_removal_that_began_without_a_lock_ends_under_one() -> None:
    shelf = Shelf()
    plain = await new_vault(shelf)
    ref = await backup(plain, _volume(1), sequence=1, chunk_size=SIZE)
    cut = FaultyStore.at(shelf, 3, Fault.CRASH_AFTER)
    with contextlib.suppress(ProcessDied):
        await remove(Vault(cut, plain.keys), ref, OpenFence())
    assert [key for key in shelf.objects if "/removing/" in key] != []
    under = Vault(LockedStore(shelf, ShelfLocks(shelf), LOCK), plain.keys)
    await remove(under, ref, OpenFence())
    with pytest.raises(PointCancelled):
        await open_manifest(under, ref.key)
    assert [key for key in shelf.objects if "/removing/" in key] == []


@pytest.mark.quick
def test_the_promise_is_the_retention_less_the_period_of_renewal() -> None:
    assert LOCK.promise == 23 * DAY
    assert LOCK.until(NOW) >= NOW + 30 * DAY
    # a day early, since the next run may be a day away; of short periods a quarter early
    assert due(LOCK, None, NOW)
    assert not due(LOCK, NOW - 6 * DAY + timedelta(minutes=1), NOW)
    assert due(LOCK, NOW - 6 * DAY, NOW)
    assert due(ObjectLock(4 * DAY, DAY), NOW - timedelta(hours=18), NOW)


def _stranger() -> Any:
    from orchestrator.repository.layout import ObjectRef

    return ObjectRef.new(str(uuid.uuid4()))


if SERVER == "minio":  # versitygw knows no lifecycle rules

    @real
    async def test_a_lifecycle_rule_takes_old_versions_once_their_lock_is_over_and_no_sooner(
        server: LockServer, url: str
    ) -> None:
        client = S3LockClient(url, server.options("root"))
        key = f"{url.removeprefix(f's3://{BUCKET}/')}/object"
        # Days can't be waited for in a test; a rule by number acts at once.
        rule = {"ID": "old", "Status": "Enabled", "Filter": {"Prefix": key}}
        expiration = {"NoncurrentVersionExpiration": {"NewerNoncurrentVersions": 1}}
        try:
            assert await client.no_lifecycle() != []
            until = datetime.now(UTC) + timedelta(seconds=20)
            for number in range(3):
                await client.put_over("object", b"%d" % number, "COMPLIANCE", until)
            configuration = {"Rules": [{**rule, **expiration}]}
            await server.call("root", "put_bucket_lifecycle_configuration", LifecycleConfiguration=configuration)
            assert await client.problems() == []
            while len(found := await server.versions(key)) == 3:
                assert datetime.now(UTC) < until + timedelta(minutes=5)
                await asyncio.sleep(0.5)  # a real process: there is nothing to wait on
            assert datetime.now(UTC) >= until - timedelta(seconds=1)
            assert len(found) == 2
        finally:
            await server.call("root", "delete_bucket_lifecycle")
            await client.close()
