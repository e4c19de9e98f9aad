"""Cut the controller off at seeded moments, start it again: the point is made, holds the data, and nothing is left.

A cut is at a write to the API server (before it is sent, or after it was done and before anybody heard of it), or after
some time, wherever the controller stands then, a repository's store included.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from orchestrator.api.foreign.core import PersistentVolumeClaim
from orchestrator.api.tidemark.backup_policy import VolumeOptions
from orchestrator.api.tidemark.recovery_point import FINAL_PHASES, PointPhase, RecoveryPoint
from orchestrator.controllers.base import Context
from tests.controllers.bed import TENANT, Bed, bed
from tests.waiting import LONG

pytestmark = pytest.mark.asyncio(loop_scope="module")

MiB = 1024 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bed]:
    """One cluster for this file; the controller is started and cut off by each test."""
    directory: Path = tmp_path_factory.mktemp("crashes")
    async with bed(directory, mover_attempts=10) as made:
        yield made


class Cut:
    """Ends the controller at the n-th write that it makes, before or after it is done, or after some time."""

    def __init__(self, chance: random.Random) -> None:
        self.at = chance.choice(["before", "after", "time"])
        self.write = chance.randint(1, 25)
        self.seconds = chance.uniform(0.1, 4.0)
        self.over = asyncio.Event()

    def __call__(self, context: Context) -> None:
        transport = context.client._transport
        send = transport.request

        @contextlib.asynccontextmanager
        async def request(method: str, path: str, **more: Any) -> AsyncIterator[aiohttp.ClientResponse]:
            if method == "GET" or "/events" in path:
                async with send(method, path, **more) as response:
                    yield response
                return
            self.write -= 1
            if self.write == 0 and self.at == "before":
                await self._end()
            async with send(method, path, **more) as response:
                if self.write == 0 and self.at == "after":
                    await response.read()
                    await self._end()
                yield response

        transport.request = request  # type: ignore[method-assign]
        if self.at == "time":
            asyncio.get_running_loop().call_later(self.seconds, self.over.set)

    async def _end(self) -> None:
        self.over.set()
        await asyncio.sleep(3600)  # nothing more is done: the process is about to be gone

    def __str__(self) -> str:
        return f"{self.at} {self.seconds:.2f} s" if self.at == "time" else f"{self.at} write {self.write}"


async def survives(cluster: Bed, seed: int, cuts: int, claim_name: str) -> None:
    chance = random.Random(seed)
    claim = await cluster.volume(claim_name)
    held = bytearray(4 * MiB)
    for round_ in range(2):
        offset = chance.randrange(0, 3 * MiB)
        piece = chance.randbytes(chance.randrange(1, MiB))
        held[offset : offset + len(piece)] = piece
        await cluster.write(claim_name, piece, offset)
        point = await cluster.point(claim, options=VolumeOptions(bandwidth_limit="2Mi" if round_ else None))
        for number in range(cuts):
            cut = Cut(chance)
            async with cluster.controller(hook=cut) as running:
                ended = asyncio.create_task(_final(cluster, point))
                over = asyncio.create_task(cut.over.wait())
                done = await asyncio.wait({ended, over, running}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
                for task in (ended, over):
                    task.cancel()
                assert running not in done[0] or not running.exception(), (seed, round_, number, running)
        async with cluster.controller():
            point = await cluster.ended(point)
        assert point.status.phase is PointPhase.COMPLETED, (seed, round_, point.status)
        assert point.status.mode == ("delta" if round_ else "allocated"), point.status
        await cluster.nothing_is_left_of(point, snapshot=True)
        assert await cluster.restored(point) == bytes(held), (seed, round_)


async def _final(cluster: Bed, point: RecoveryPoint) -> None:
    while (await cluster.client.get(RecoveryPoint, point.name, TENANT)).status.phase not in FINAL_PHASES:
        await asyncio.sleep(0.1)


@pytest.mark.chaos
async def test_a_clone_that_never_comes_up_gives_its_slot_back_and_ends_the_point(cluster: Bed) -> None:
    claim = await cluster.volume("stuck")
    await cluster.write("stuck", b"data")
    impatient = dataclasses.replace(cluster.settings, clone_timeout_s=2.0, mover_attempts=2)
    clones: set[str] = set()
    await cluster.sandbox.fault("clone-pending")
    try:
        async with asyncio.timeout(LONG), cluster.controller(impatient):
            ended = await cluster.point(claim)
            while ended.status.phase not in FINAL_PHASES:
                ended = await cluster.client.get(RecoveryPoint, ended.name, TENANT)
                claims, _ = await cluster.client.list(PersistentVolumeClaim, cluster.settings.namespace)
                clones |= {claim.uid for claim in claims}
                await asyncio.sleep(0.1)
            ended = await cluster.ended(ended)
    finally:
        await cluster.sandbox.fault("clone-pending", None)
    assert (ended.status.phase, ended.status.reason) == (PointPhase.FAILED, "CloneTimeout")
    assert "2 clones did not come up in time. The clone is" in ended.status.message
    assert len(clones) == 2
    await cluster.nothing_is_left_of(ended, snapshot=False)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(1, 11))
async def test_a_point_survives_a_controller_that_is_cut_off_again_and_again(cluster: Bed, seed: int) -> None:
    await survives(cluster, seed=seed, cuts=5, claim_name=f"crash-{seed}")
