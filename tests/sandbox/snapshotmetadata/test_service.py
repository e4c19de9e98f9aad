"""The metadata service against a plain gRPC client: cbt-contract 1.4 (guarantees), 2.2 (codes) and 9 (cases)."""

from __future__ import annotations

import os
import stat

import pytest
import pytest_asyncio
from grpclib import GRPCError
from grpclib.client import Channel
from grpclib.const import Status

from orchestrator.sandbox.cluster import Sandbox
from orchestrator.sandbox.kinds import SERVICE_ACCOUNT, SNAPSHOT, SNAPSHOT_CLASS
from orchestrator.wire import csi
from tests.sandbox.cluster.world import BLOCK, MIB, World

pytestmark = pytest.mark.asyncio(loop_scope="module")


def write(path: os.PathLike[str], *blocks: int, byte: bytes = b"x") -> None:
    with open(path, "r+b") as file:  # noqa: PTH123
        for block in blocks:
            file.seek(block * BLOCK)
            file.write(byte * BLOCK)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(world: World) -> tuple[str, str]:
    """Snapshots s1 (blocks 1,3,4,5,9 written) and s2 (4 rewritten, 9 discarded, 20 written) of one volume."""
    claim = await world.claim("source", "4Mi")
    image = await world.image(claim)
    write(image, 1, 3, 4, 5, 9)
    s1 = await world.snapshot("s1", "source")
    write(image, 4, 20, byte=b"y")
    write(image, 9, byte=b"\0")
    s2 = await world.snapshot("s2", "source")
    return await world.handle(s1), await world.handle(s2)


async def test_allocated_reports_what_was_written(world: World, pair: tuple[str, str]) -> None:
    answer = await world.allocated("s1")

    assert answer.blocks == {1, 3, 4, 5, 9}
    assert {m.volume_capacity_bytes for m in answer.messages} == {4 * MIB}
    assert {m.block_metadata_type.value for m in answer.messages} == {2}


async def test_delta_reports_changed_added_and_zeroed_blocks(world: World, pair: tuple[str, str]) -> None:
    assert (await world.delta(pair[0], "s2")).blocks == {4, 9, 20}


async def test_delta_of_a_snapshot_with_itself_is_empty(world: World, pair: tuple[str, str]) -> None:
    assert (await world.delta(pair[0], "s1")).ranges == []


@pytest.mark.parametrize("max_results", [1, 2, 2**31 - 1])
async def test_pages_hold_no_more_than_asked_and_say_the_same(
    world: World, pair: tuple[str, str], max_results: int
) -> None:
    answer = await world.allocated("s1", max_results=max_results)

    assert all(len(m.block_metadata) <= max_results for m in answer.messages)
    assert answer.blocks == {1, 3, 4, 5, 9}


@pytest.mark.parametrize("kind", ["VARIABLE_LENGTH", "FIXED_LENGTH"])
async def test_a_stream_resumes_at_any_offset_with_all_that_ends_behind_it(
    sandbox: Sandbox, world: World, pair: tuple[str, str], kind: str
) -> None:
    await sandbox.fault("cbt-block-type", kind)
    whole = await world.allocated("s1")

    for start in [0, 1, BLOCK, BLOCK + 1, 4 * BLOCK, 4 * BLOCK + 100, 6 * BLOCK, 10 * BLOCK, 4 * MIB]:
        answer = await world.allocated("s1", start=start)
        assert answer.blocks == {b for b in whole.blocks if (b + 1) * BLOCK > start}
        assert all(at + size > start for at, size in answer.ranges)
    assert ({size for _, size in whole.ranges} == {BLOCK}) == (kind == "FIXED_LENGTH")
    await sandbox.fault("cbt-block-type", None)


@pytest.mark.parametrize(
    ("start", "max_results", "code"),
    [(-1, 0, Status.OUT_OF_RANGE), (4 * MIB + 1, 0, Status.OUT_OF_RANGE), (0, -1, Status.INVALID_ARGUMENT)],
)
async def test_bad_numbers_are_refused(
    world: World, pair: tuple[str, str], start: int, max_results: int, code: Status
) -> None:
    with pytest.raises(GRPCError) as refused:
        await world.allocated("s1", start=start, max_results=max_results)
    assert refused.value.status is code


async def test_a_base_that_is_unknown_empty_or_newer_is_refused(world: World, pair: tuple[str, str]) -> None:
    for base, code in [("snap-unknown", Status.NOT_FOUND), ("", Status.INVALID_ARGUMENT), ("../x", Status.NOT_FOUND)]:
        with pytest.raises(GRPCError) as refused:
            await world.delta(base, "s2")
        assert refused.value.status is code
    with pytest.raises(GRPCError) as reversed_:
        await world.delta(pair[1], "s1")
    assert reversed_.value.status is Status.INVALID_ARGUMENT


async def test_snapshots_of_different_volumes_have_no_delta(world: World, pair: tuple[str, str]) -> None:
    await world.claim("stranger")
    await world.snapshot("t1", "stranger")

    with pytest.raises(GRPCError) as refused:
        await world.delta(pair[0], "t1")
    assert refused.value.status is Status.INVALID_ARGUMENT


async def test_a_volume_that_was_never_written_has_no_ranges(world: World) -> None:
    await world.claim("blank")
    await world.snapshot("blank", "blank")

    assert (await world.allocated("blank")).ranges == []


async def test_an_empty_argument_is_refused_before_the_token_is_looked_at(world: World) -> None:
    for token, snapshot in [("", "s1"), ("garbage", "")]:
        with pytest.raises(GRPCError) as refused:
            await world.allocated(snapshot, token=token)
        assert refused.value.status is Status.INVALID_ARGUMENT


async def test_a_token_that_is_garbage_or_for_another_audience_is_refused(world: World, pair: tuple[str, str]) -> None:
    for token in ["garbage", await world.token(audience="https://somebody.else")]:
        with pytest.raises(GRPCError) as refused:
            await world.allocated("s1", token=token)
        assert refused.value.status is Status.UNAUTHENTICATED
        assert token not in str(refused.value)


async def test_a_caller_that_may_not_read_snapshots_is_refused(world: World, pair: tuple[str, str]) -> None:
    await world.api.create(SERVICE_ACCOUNT, {"metadata": {"name": "nobody", "namespace": "default"}})

    with pytest.raises(GRPCError) as refused:
        await world.allocated("s1", token=await world.token("nobody"))
    assert refused.value.status is Status.PERMISSION_DENIED


async def test_a_snapshot_that_is_absent_or_has_no_status_is_unavailable_and_the_server_lives(
    sandbox: Sandbox, world: World, pair: tuple[str, str]
) -> None:
    body = {
        "metadata": {"name": "early", "namespace": "default"},
        "spec": {"source": {"volumeSnapshotContentName": "absent"}},
    }
    await world.api.create(SNAPSHOT, body)

    for at in ["absent", "early"]:
        with pytest.raises(GRPCError) as refused:
            await world.allocated(at)
        assert refused.value.status is Status.UNAVAILABLE
    assert (await world.allocated("s1")).ranges


async def test_a_class_that_is_gone_makes_the_call_unavailable(world: World, pair: tuple[str, str]) -> None:
    held = await world.api.get(SNAPSHOT_CLASS, "sandbox")
    await world.api.delete(SNAPSHOT_CLASS, held)

    with pytest.raises(GRPCError) as refused:
        await world.allocated("s1")

    kept = {k: held[k] for k in ("driver", "deletionPolicy")}
    marks = {"name": "sandbox", "annotations": held["metadata"]["annotations"]}
    await world.api.create(SNAPSHOT_CLASS, {"metadata": marks, **kept})
    assert refused.value.status is Status.UNAVAILABLE
    assert "sandbox" in str(refused.value.message)


async def test_the_drivers_own_socket_tells_the_same_and_its_capability(
    sandbox: Sandbox, world: World, pair: tuple[str, str]
) -> None:
    path = sandbox.directory / "data" / "csi.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    channel = Channel(path=str(path))
    try:
        [capability] = (await csi.IdentityStub(channel).get_plugin_capabilities()).capabilities
        assert capability.service is not None
        assert capability.service.type.value == 4
        stub = csi.SnapshotMetadataStub(channel)
        asked = csi.GetMetadataDeltaRequest(base_snapshot_id=pair[0], target_snapshot_id=pair[1])
        found = [(b.byte_offset, b.size_bytes) async for m in stub.get_metadata_delta(asked) for b in m.block_metadata]
        assert found == (await world.delta(pair[0], "s2")).ranges
        with pytest.raises(GRPCError) as refused:
            async for _ in stub.get_metadata_allocated(csi.GetMetadataAllocatedRequest(snapshot_id="")):
                pass
        assert refused.value.status is Status.INVALID_ARGUMENT
    finally:
        channel.close()
