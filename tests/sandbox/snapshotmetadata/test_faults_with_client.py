"""Each CBT fault, as the product's own client meets it: healed, or a typed reason. Never a wrong answer."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

from orchestrator.cbt.client import Client, Settings
from orchestrator.cbt.errors import (
    BaseNotFound,
    CBTAuthFailed,
    CBTForbidden,
    ContractViolation,
    Exhausted,
    NotTracked,
    RungFailed,
    ServiceUnreachable,
    Unsupported,
)
from orchestrator.cbt.service import Service, Token
from orchestrator.cbt.stream import Evidence, Snapshot, allocated, delta
from orchestrator.extents import Extents
from orchestrator.sandbox.cluster import Sandbox
from orchestrator.sandbox.kinds import DRIVER, METADATA_SERVICE
from orchestrator.sandbox.objects import spec
from tests.sandbox.cluster.world import BLOCK, MIB, World

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIZE = 4 * MIB
EVEN = set(range(0, 64, 2))


class Sink:
    """Collects blocks."""

    def __init__(self) -> None:
        self.blocks: set[int] = set()

    def accept(self, extents: Extents) -> None:
        for at, length in zip(extents.offsets.tolist(), extents.lengths.tolist(), strict=True):
            self.blocks |= set(range(at // BLOCK, -(-(at + length) // BLOCK)))

    def reset(self) -> None:
        self.blocks = set()


class Seams:
    """Tokens and discovery from the cluster itself."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def token(self, audience: str, *, min_ttl_s: float = 120.0, fresh: bool = False) -> Token:
        return Token(await self.world.token(audience=audience), datetime.now(UTC) + timedelta(minutes=10))

    async def recheck(self) -> None:
        return

    async def discover(self) -> Service:
        found = spec(await self.world.api.get(METADATA_SERVICE, DRIVER))
        ca = base64.b64decode(found["caCert"])
        return Service(driver=DRIVER, address=found["address"], ca_pem=ca, audience=found["audience"])

    async def sleep(self, _seconds: float) -> None:
        return


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(world: World) -> str:
    """Snapshot s1 (every other block written) and s2 (every written block changed); returns the handle of s1."""
    claim = await world.claim("striped", "4Mi")
    image = await world.image(claim)
    for at, byte in (("s1", b"x"), ("s2", b"y")):
        with image.open("r+b") as file:
            for block in EVEN:
                file.seek(block * BLOCK)
                file.write(byte * BLOCK)
        await world.snapshot(at, "striped")
    from orchestrator.sandbox.kinds import SNAPSHOT

    return await world.handle(await world.api.get(SNAPSHOT, "s1", "default"))


@pytest_asyncio.fixture(loop_scope="module")
async def client(world: World) -> AsyncIterator[Client]:
    seams = Seams(world)
    settings = Settings(tries=4, start_jitter_s=0, max_results=8)
    made = Client(
        await seams.discover(),
        seams,
        recheck=seams.recheck,
        rediscover=seams.discover,
        settings=settings,
        sleep=seams.sleep,
    )
    async with made:
        yield made


async def ask(client: Client, base: str) -> tuple[set[int], Evidence]:
    sink = Sink()
    evidence = await delta(client, Snapshot("default", "s2"), base, size_bytes=SIZE, sink=sink)
    return sink.blocks, evidence


@pytest.mark.parametrize("kind", ["VARIABLE_LENGTH", "FIXED_LENGTH"])
async def test_a_sound_service_is_answered_without_a_fallback(
    sandbox: Sandbox, pair: str, client: Client, kind: str
) -> None:
    await sandbox.fault("cbt-block-type", kind)
    assert (await ask(client, pair))[0] == EVEN
    sink = Sink()
    await allocated(client, Snapshot("default", "s1"), size_bytes=SIZE, sink=sink)
    assert sink.blocks == EVEN
    await sandbox.fault("cbt-block-type", None)


@pytest.mark.parametrize("fault", ["cbt-cut-midstream", "cbt-truncated-ok", "cbt-paging"])
async def test_a_stream_that_ends_too_early_is_completed(
    sandbox: Sandbox, pair: str, client: Client, fault: str
) -> None:
    await sandbox.fault(fault)
    try:
        blocks, evidence = await ask(client, pair)
    finally:
        await sandbox.fault(fault, None)

    assert blocks == EVEN
    assert evidence.tuples == len(EVEN)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("cbt-unimplemented", Unsupported),
        ("cbt-delta-unimplemented", Unsupported),
        ("cbt-unavailable", Exhausted),
        ("cbt-internal", Exhausted),
        ("cbt-bad-token", CBTAuthFailed),
        ("cbt-forbidden", CBTForbidden),
        ("cbt-base-not-found", BaseNotFound),
        ("cbt-precondition", NotTracked),
        ("cbt-out-of-order", ContractViolation),
        ("cbt-overlap", ContractViolation),
        ("cbt-type-unknown", ContractViolation),
        ("cbt-capacity-flip", ContractViolation),
        ("cbt-down", ServiceUnreachable),
    ],
)
async def test_each_fault_has_its_reason_and_is_over_when_switched_off(
    sandbox: Sandbox, world: World, pair: str, fault: str, error: type[RungFailed]
) -> None:
    async def meet() -> tuple[set[int], Evidence]:
        # A client of its own: one remembers an unimplemented method for an hour.
        seams = Seams(world)
        settings = Settings(tries=3, start_jitter_s=0, max_results=8)
        found = await seams.discover()
        seam = {"recheck": seams.recheck, "rediscover": seams.discover, "sleep": seams.sleep}
        async with Client(found, seams, settings=settings, **seam) as fresh:
            return await ask(fresh, pair)

    await sandbox.fault(fault)
    try:
        with pytest.raises(error):
            await meet()
    finally:
        await sandbox.fault(fault, None)
    if error is not Unsupported:
        assert (await meet())[0] == EVEN
