"""Every way in which a network or a proxy breaks, at the requests of backups, restores, verifications and maintenance.

What `test_faults_everywhere` does at our own `Store`, this does below the library that speaks to buckets: at the bytes
of HTTP. First the requests of an undisturbed run are counted, then one is broken, in a world of its own. A fault that
passes is overcome; whatever else happens is one typed error. Nothing that was committed is lost, no point is wrong,
and the next run completes.

The default breaks one seeded request in each way; `TIDEMARK_WIRE_CASES=200` takes so many cases of each deed, and
`TIDEMARK_WIRE_CASES=all` every request in every way.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme

from orchestrator.errors import TidemarkError
from orchestrator.fence import OpenFence
from orchestrator.repository import patience
from orchestrator.repository.errors import AccessDenied
from orchestrator.repository.manifest import PointRef
from orchestrator.repository.point import remove
from orchestrator.repository.store import Store, open_store
from orchestrator.repository.verify import verify
from tests.blocks.volumes import Volume, give_back, take, vault_on
from tests.repository.faults import Shelf
from tests.repository.test_faults_everywhere import (
    Points,
    _complete,
    _settled,
    base_world,
    lived_in,
    prepared,
    read_all,
    sweep_once,
    whole_backup,
)
from tests.repository.wire import ONLY, Cut, Objects, Request, Wire

SECRET = "MOSTSECRETKEY"
CASES = os.environ.get("TIDEMARK_WIRE_CASES", "")
pytestmark = pytest.mark.timeout(7200 if CASES else 1500)
AT_ONCE = 16
RETRIES = 10
BEYOND = (Cut.FORBIDDEN, Cut.HALF, Cut.STALE)
"""What no further try can or may overcome: a refusal, and answers that lie and yet look right."""
OPTIONS = {
    "access_key_id": "AKIDOFTHESECRET",
    "secret_access_key": SECRET,
    "request_timeout": "30",
    "connect_timeout": "10",
    "retries": str(RETRIES),
    "retry_timeout": "60",
}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.03)


@asynccontextmanager
async def reached(wire: Wire, **options: str) -> AsyncIterator[Store]:
    """Open the bucket behind a wire, with the options that users have."""
    async with wire.serving():
        store = await open_store("s3://bucket/p", {**OPTIONS, "endpoint": wire.url, **options})
        yield store
        await store.close()


@dataclass
class Deed:
    """Something that is done to a repository over the wire, and what must hold afterwards."""

    shelf: Shelf
    do: Callable[[Store, Path], Awaitable[object]]
    check: Callable[[Shelf, Path], Awaitable[None]]
    """Everything that must hold, the next run included; gets the world and a free path."""
    requests: list[Request] = field(default_factory=list)
    """Those of an undisturbed run."""

    async def count(self, tmp_path: Path) -> None:
        wire = Wire(Objects(self.shelf.copy()))
        async with reached(wire) as store:
            await self.do(store, tmp_path / "undisturbed")
        self.requests = list(wire.seen)

    def places(self, cut: Cut) -> list[int]:
        """Return the requests at which a fault is a case of its own."""
        verbs = ONLY.get(cut)
        return [number for number, each in enumerate(self.requests) if verbs is None or each.verb in verbs]

    async def given_up(self, cut: Cut, number: int, folder: Path) -> None:
        """Break every request from one on, for good, then check the world."""
        folder.mkdir()
        world = self.shelf.copy()
        wire = Wire(Objects(world), lambda at, each: cut if at >= number else None)
        async with reached(wire, retries="2") as store:
            with pytest.raises(TidemarkError) as caught:
                await self.do(store, folder / "one")
        where = f"{cut.name} from {number}, {self.requests[number].verb} {self.requests[number].path}"
        _clear(caught.value, where)
        # some calls at once, each with two further tries, twice as many where a create is read back
        assert len(wire.seen) <= number + 60, (where, len(wire.seen))
        await self.check(world, folder / "two")

    async def broken(self, cut: Cut, number: int, folder: Path) -> None:
        """Break one request, then check the world."""
        folder.mkdir()
        world = self.shelf.copy()
        tls, options = _told(cut)
        wire = Wire(Objects(world), lambda at, each: cut if at == number else None, tls)
        failed: TidemarkError | None = None
        async with reached(wire, **options) as store:
            try:
                await self.do(store, folder / "one")
            except TidemarkError as error:
                failed = error
        where = f"{cut.name} at {number}, {self.requests[number].verb} {self.requests[number].path}: {failed!r}"
        if failed is not None:
            assert cut in BEYOND, where
            _clear(failed, where)
            assert cut is not Cut.FORBIDDEN or isinstance(failed, AccessDenied), where
        most = len(self.requests) + 6
        if "request_timeout" in options:  # then what a machine at its limits answers late is asked again too
            most += len(self.requests)
        assert len(wire.seen) <= most, where
        await self.check(world, folder / "two")


def _clear(error: TidemarkError, where: str) -> None:
    """One sentence with a reason and a remedy, and nothing that must not be told."""
    text = error.sentence() + repr(error)
    assert error.reason and error.remedy, where
    for secret in (SECRET, "AKIDOFTHESECRET", "Signature", "127.0.0.1"):
        assert secret not in text, where


@functools.cache
def _authority() -> tuple[trustme.CA, trustme.LeafCert]:
    authority = trustme.CA()
    return authority, authority.issue_cert("127.0.0.1")


def _told(cut: Cut) -> tuple[ssl.SSLContext | None, dict[str, str]]:
    """Return the server's side of TLS and the store's options that a fault needs."""
    if cut is Cut.TLS:
        authority, leaf = _authority()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        leaf.configure_cert(context)
        return context, {"ca_certificate": authority.cert_pem.bytes().decode()}
    return None, {"request_timeout": "1"} if cut in (Cut.SILENT, Cut.LATE) else {}


async def _full(tmp_path: Path) -> Deed:
    """A repository's making, and the first backup in it."""
    volume = prepared(tmp_path)
    wanted = volume.sha256()

    async def do(store: Store, _: Path) -> object:
        return await take(await vault_on(store), volume.path)

    async def check(world: Shelf, path: Path) -> None:
        point = await take(await vault_on(world), volume.path)
        found = read_all(world)
        assert set(found.values()) == {wanted}
        assert await give_back(await vault_on(world), point, path) == wanted
        await _sound(world)

    return Deed(Shelf(), do, check)


async def _increment(tmp_path: Path) -> Deed:
    """A delta, from its intent to its commit."""
    volume = prepared(tmp_path)
    shelf, base, before = await base_world(volume)
    wanted = volume.sha256()

    async def do(store: Store, _: Path) -> object:
        return await whole_backup(store, volume, base)  # type: ignore[arg-type]

    async def check(world: Shelf, path: Path) -> None:
        ref = await whole_backup(world, volume, base)
        _right(read_all(world), before, wanted)
        assert await give_back(await vault_on(world), ref, path) == wanted
        await _sound(world)

    return Deed(shelf, do, check)


def _right(found: Points, before: Points, wanted: str) -> None:
    assert before.items() <= found.items()
    assert set(found.values()) <= {*before.values(), wanted}


async def _sound(world: Shelf) -> None:
    report = await verify(await vault_on(world), depth="full")
    assert report.ok, report


async def _point(tmp_path: Path) -> tuple[Volume, Shelf, PointRef]:
    volume = prepared(tmp_path)
    shelf, base, _ = await base_world(volume)
    return volume, shelf, await whole_backup(shelf, volume, base)


async def _restore(tmp_path: Path) -> Deed:
    """A point is given back, and read back."""
    volume, shelf, ref = await _point(tmp_path)
    wanted, before = volume.sha256(), shelf.plain()

    async def do(store: Store, path: Path) -> object:
        assert await give_back(await vault_on(store), ref, path) == wanted
        return None

    async def check(world: Shelf, path: Path) -> None:
        assert world.plain() == before
        assert await give_back(await vault_on(world), ref, path) == wanted

    return Deed(shelf, do, check)


async def _verification(tmp_path: Path) -> Deed:
    """Every byte is looked at: what the wire does is no damage of the repository's."""
    volume, shelf, ref = await _point(tmp_path)
    wanted, points = volume.sha256(), read_all(shelf)

    async def do(store: Store, _: Path) -> object:
        return await verify(await vault_on(store), depth="full")

    async def check(world: Shelf, path: Path) -> None:
        assert read_all(world) == points
        assert await give_back(await vault_on(world), ref, path) == wanted
        await _sound(world)

    return Deed(shelf, do, check)


async def _maintenance(tmp_path: Path) -> Deed:
    """A point is pruned; a sweep and compaction has something of everything to do."""
    volume = prepared(tmp_path)
    shelf, points, open_id, wanted = await lived_in(tmp_path, volume)
    undisturbed = shelf.copy()
    await sweep_once(undisturbed, 3)
    await _complete(undisturbed, volume, open_id)
    left = await _settled(undisturbed)
    vault = await vault_on(shelf)
    more = await take(vault, volume.path)
    after = shelf.copy()

    async def do(store: Store, _: Path) -> object:
        await remove(await vault_on(store), more.ref, OpenFence())
        return await sweep_once(store, 3)  # type: ignore[arg-type]

    async def check(world: Shelf, path: Path) -> None:
        found = read_all(world)
        assert {**found, more.ref.key: wanted} == {**points, more.ref.key: wanted}
        await remove(await vault_on(world), more.ref, OpenFence())
        key = await _complete(world, volume, open_id)
        settled = await _settled(world)
        assert settled["points"] == left["points"] + 1, (settled, left)
        assert settled["packs"] <= left["packs"] + 1, (settled, left)
        assert read_all(world) == {**points, key: wanted}
        await _sound(world)

    return Deed(after, do, check)


DEEDS = {
    "full": _full,
    "increment": _increment,
    "restore": _restore,
    "verification": _verification,
    "maintenance": _maintenance,
}


async def _all(deed: Deed, cases: Sequence[tuple[Cut, int]], tmp_path: Path) -> None:
    """Break one request for each case."""
    await _some_at_once([deed.broken(*case, tmp_path / f"case-{number}") for number, case in enumerate(cases)])


async def _some_at_once(cases: Sequence[Coroutine[None, None, None]]) -> None:
    """Run cases, some at once (most of their time is waiting), to the last: all that failed are told together."""
    turn = asyncio.Semaphore(AT_ONCE)
    failed: list[Exception] = []

    async def one(case: Coroutine[None, None, None]) -> None:
        async with turn:
            try:
                await case
            except Exception as error:  # noqa: BLE001  # whatever it is, the other cases are worth a look
                failed.append(error)

    try:
        async with asyncio.TaskGroup() as tasks:
            for case in cases:
                tasks.create_task(one(case))
    finally:
        for case in cases:
            case.close()  # those that a timeout left without a start
    if failed:
        raise ExceptionGroup(f"{len(failed)} of {len(cases)} cases", failed)


async def test_each_fault_is_overcome_by_each_call_of_a_store() -> None:
    # given a bucket with a listing of three pages, and every fault at every kind of request
    cases = [(cut, verb) for cut in Cut for verb in VERBS if VERBS[verb] in ONLY.get(cut, (VERBS[verb],))]
    # a whole object that was shortened and relabelled is found by its seal; an answer without a body tells nothing
    lies = {(Cut.HALF, "get"), (Cut.STALE, "list"), (Cut.HTML_404, "head"), (Cut.CACHED_200, "head")}

    async def one(cut: Cut, verb: str) -> None:
        shelf = Shelf()
        for number in range(7):
            await shelf.put_new(f"d/{number}", bytes([number]) * 1000)
        tls, options = _told(cut)
        # the second page of the listing, else the first request
        wire = Wire(Objects(shelf, page=3), lambda at, _: cut if at == (verb == "list") else None, tls)
        async with reached(wire, **options) as store:
            if cut is Cut.FORBIDDEN:
                with pytest.raises(AccessDenied):
                    await _call(store, shelf, verb)
            else:
                assert await _call(store, shelf, verb), (cut, verb)
        # then it takes one more request, one to settle what is unclear, and at a listing's end one to be sure
        assert len(wire.seen) <= {"list": 6}.get(verb, 3), (cut, verb, len(wire.seen))

    await _some_at_once([one(cut, verb) for cut, verb in cases if (cut, verb) not in lies])


VERBS = {"put": "PUT", "get": "GET", "range": "GET", "head": "HEAD", "list": "LIST", "delete": "POST"}


async def _call(store: Store, shelf: Shelf, verb: str) -> bool:
    """Make one call; say whether what came of it is true."""
    match verb:
        case "put":
            await store.put_new("new", b"n" * 5000)
            return shelf.plain()["new"] == b"n" * 5000
        case "get":
            return await store.get("d/3") == b"\3" * 1000
        case "range":
            return await store.get_range("d/3", 100, 200) == b"\3" * 200
        case "head":
            info = await store.head("d/3")
            return info is not None and info.size == 1000
        case "list":
            return [info.key async for info in store.list("d/")] == [f"d/{number}" for number in range(7)]
        case _:
            await store.delete("d/3")
            return "d/3" not in shelf.plain()


@pytest.mark.system
@pytest.mark.parametrize("name", ["increment", "restore"])
async def test_each_fault_of_the_wire_somewhere(tmp_path: Path, name: str) -> None:
    # given a backup and a restore, and for each kind of fault one of their requests
    deed = await DEEDS[name](tmp_path)
    await deed.count(tmp_path)
    chosen = random.Random(name)
    kinds = [cut for cut in Cut if deed.places(cut) and (name == "increment") == (cut not in (Cut.HALF, Cut.ETAG))]
    # when it breaks, then it is overcome or told, and nothing is lost
    await _all(deed, [(cut, chosen.choice(deed.places(cut))) for cut in kinds], tmp_path)


@pytest.mark.system
@pytest.mark.parametrize("name", DEEDS)
async def test_every_fault_of_the_wire_at_every_request(tmp_path: Path, name: str) -> None:
    # given every request of a whole run, with every way in which it can break (or a seeded sample of them)
    deed = await DEEDS[name](tmp_path)
    await deed.count(tmp_path)
    chosen = random.Random(name)
    cases = [(cut, chosen.choice(deed.places(cut))) for cut in Cut if deed.places(cut)]
    if CASES:
        cases = [(cut, number) for cut in Cut for number in deed.places(cut)]
        chosen.shuffle(cases)
        cases = cases[: None if CASES == "all" else int(CASES)]
    assert len(cases) > 15
    # when it breaks, then it is overcome or told, and nothing is lost
    await _all(deed, cases, tmp_path)


@pytest.mark.system
@pytest.mark.parametrize("name", DEEDS)
async def test_a_wire_that_stays_broken_ends_every_deed_with_one_clear_error(tmp_path: Path, name: str) -> None:
    # given the moment from which on nothing comes through any more
    deed = await DEEDS[name](tmp_path)
    await deed.count(tmp_path)
    chosen = random.Random(name)
    kinds = (Cut.RESET, Cut.ERROR, Cut.SLOW_DOWN, Cut.FORBIDDEN, Cut.HTML_200, Cut.XML_200, Cut.CACHED_200)
    # the last request may be one that is allowed to fail
    places = range(len(deed.requests) - 2)
    cases = [(cut, number) for cut in kinds for number in chosen.sample(places, 3 if not CASES else len(places) // 2)]
    # when it breaks there, then that is told, and the next run completes
    await _some_at_once([deed.given_up(*case, tmp_path / f"case-{number}") for number, case in enumerate(cases)])
