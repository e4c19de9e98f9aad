"""The fast decoder says what the generated messages and Google's own decoder say, and never crashes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orchestrator.cbt.codec import Message, decode
from orchestrator.cbt.errors import ContractViolation
from orchestrator.wire.snapshotmetadata import BlockMetadata, BlockMetadataType, GetMetadataDeltaResponse

pytestmark = pytest.mark.quick

# A busy machine is no failure.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

int64 = st.integers(-(1 << 63), (1 << 63) - 1)
# Numbers around every length that a varint can have, where a vectorised decoder goes wrong.
edges = st.sampled_from([v for bits in range(0, 63, 7) for v in ((1 << bits) - 1, 1 << bits)] + [(1 << 63) - 1, -1])
number = st.one_of(int64, edges)
ranges = st.lists(st.tuples(number, number), max_size=60)


def varint(value: int, *, width: int = 0) -> bytes:
    """Encode, in at least `width` bytes (an overlong but lawful encoding)."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F or len(out) + 1 < width:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def pairs(message: Message) -> list[tuple[int, int]]:
    return list(zip(message.offsets.tolist(), message.sizes.tolist(), strict=True))


def read(data: bytes) -> tuple[int, int, list[tuple[int, int]]]:
    message = decode(data)
    return message.block_type, message.capacity, pairs(message)


@settings(UNHURRIED)
@given(kind=st.integers(0, 9), capacity=number, blocks=ranges)
@example(kind=1, capacity=1 << 40, blocks=[(i * 4096, 4096) for i in range(100)])
def test_it_reads_what_the_generated_messages_write(kind: int, capacity: int, blocks: list[tuple[int, int]]) -> None:
    data = bytes(
        GetMetadataDeltaResponse(
            block_metadata_type=BlockMetadataType(kind),
            volume_capacity_bytes=capacity,
            block_metadata=[BlockMetadata(byte_offset=offset, size_bytes=size) for offset, size in blocks],
        )
    )
    again = GetMetadataDeltaResponse.parse(data)
    oracle = [(block.byte_offset, block.size_bytes) for block in again.block_metadata]
    assert read(data) == (kind, capacity, blocks) == (int(again.block_metadata_type), capacity, oracle)


def test_a_long_message_with_everything_odd_in_the_middle_is_read_whole() -> None:
    """Runs in the usual layout, broken by every other layout, longer than several windows."""
    rng = random.Random(11)
    blocks, data = [], bytearray(b"\x08\x02\x10" + varint(1 << 50))
    for index in range(60_000):
        offset, size = rng.randrange(1 << rng.randrange(1, 63)), rng.randrange(1 << rng.randrange(1, 63))
        first, second = b"\x08" + varint(offset), b"\x10" + varint(size)
        body = first + second
        if index % 5000 in (17, 18, 300):
            body = rng.choice([second + first, first + second + b"\x18\x05", b"\x08\x01" + first + second])
        blocks.append((offset, size))
        data += b"\x1a" + varint(len(body), width=1 + (index % 777 == 5)) + body
        if index % 9000 == 8999:
            data += b"\x22\x03abc" + b"\x10" + varint(index)
    assert read(bytes(data)) == (2, 53999, blocks)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", (0, 0, [])),
        (b"\x1a\x00", (0, 0, [(0, 0)])),
        (b"\x1a\x02\x10\x05", (0, 0, [(0, 5)])),
        (b"\x1a\x02\x08\x05", (0, 0, [(5, 0)])),
        (b"\x1a\x04\x10\x05\x08\x07", (0, 0, [(7, 5)])),
        (b"\x1a\x08\x08\x01\x08\x02\x10\x03\x10\x04", (0, 0, [(2, 4)])),
        (b"\x08\x01\x10\x05\x08\x02\x10\x06", (2, 6, [])),
        (b"\x1a\x04\x08\x01\x10\x01\x10\x09\x08\x01", (1, 9, [(1, 1)])),
        (b"\x9a\x00\x02\x10\x05", (0, 0, [(0, 5)])),
        (b"\x1a\x82\x00\x10\x05", (0, 0, [(0, 5)])),
        (b"\x21" + b"x" * 8 + b"\x25" + b"y" * 4 + b"\x2a\x02ab\x30\x01\x10\x07", (0, 7, [])),
        (b"\x08\x07", (7, 0, [])),
        (b"\x10" + varint(-5), (0, -5, [])),
        (b"\x1a\x16\x08" + varint(-1) + b"\x10" + varint(-2), (0, 0, [(-1, -2)])),
    ],
)
def test_every_lawful_layout_is_read(data: bytes, expected: tuple[int, int, list[tuple[int, int]]]) -> None:
    assert read(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"\x08",
        b"\x08\x80",
        b"\x10" + b"\xff" * 10 + b"\x01",
        b"\x1a\x05\x08\x01\x10",
        b"\x1a\x03\x08\x01\x10",
        b"\x1a\x04\x08\x80\x10\x01\x10\x01",
        b"\x22\x05abc",
        b"\x21abc",
        b"\x25abc",
        b"\x00\x01",
        b"\x0b",
        b"\x0f",
        b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    ],
    ids=lambda data: data.hex(),
)
def test_what_is_no_message_is_a_violation_and_says_where(data: bytes) -> None:
    with pytest.raises(ContractViolation) as caught:
        decode(data, "block.csi.example.com")
    assert caught.value.id == "wire"
    assert "block.csi.example.com" in str(caught.value)


def test_a_message_cut_anywhere_is_never_read_as_a_shorter_run_of_whole_and_half_ranges() -> None:
    """A cut inside a range is a violation; a cut between two ranges can't be seen, and is the stream's matter."""
    blocks = [(index * 4096 + (1 << 35), 4096) for index in range(200)]
    whole = bytes(
        GetMetadataDeltaResponse(block_metadata=[BlockMetadata(byte_offset=o, size_bytes=s) for o, s in blocks])
    )
    size = len(whole) // 200
    for cut in range(len(whole)):
        if cut % size == 0:
            assert pairs(decode(whole[:cut])) == blocks[: cut // size]
        else:
            with pytest.raises(ContractViolation):
                decode(whole[:cut])


@pytest.fixture(scope="module")
def google() -> Any:
    """Return Google's own decoder for the same message: the judge for what is lawful and odd."""
    file = descriptor_pb2.FileDescriptorProto(name="oracle.proto", package="oracle", syntax="proto3")
    block = file.message_type.add(name="Block")
    block.field.add(name="offset", number=1, type=3, label=1)
    block.field.add(name="size", number=2, type=3, label=1)
    response = file.message_type.add(name="Response")
    response.field.add(name="type", number=1, type=3, label=1)
    response.field.add(name="capacity", number=2, type=3, label=1)
    response.field.add(name="blocks", number=3, type=11, type_name=".oracle.Block", label=3)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("oracle.Response"))


def _ask(google: Any, data: bytes) -> tuple[int, int, list[tuple[int, int]]] | None:
    try:
        message = google.FromString(data)
    except DecodeError:
        return None
    return message.type, message.capacity, [(block.offset, block.size) for block in message.blocks]


field = st.one_of(
    st.tuples(st.sampled_from([b"\x08", b"\x10", b"\x20"]), number.map(varint)).map(b"".join),
    st.tuples(number, number)
    .map(lambda p: b"\x08" + varint(p[0]) + b"\x10" + varint(p[1]))
    .map(lambda body: b"\x1a" + varint(len(body)) + body),
    st.lists(st.tuples(st.sampled_from([b"\x08", b"\x10", b"\x18"]), number.map(varint)).map(b"".join), max_size=4).map(
        lambda parts: b"\x1a" + varint(len(b"".join(parts)), width=2) + b"".join(parts)
    ),
    st.binary(max_size=5).map(lambda b: b"\x22" + varint(len(b)) + b),
    st.binary(min_size=4, max_size=4).map(lambda b: b"\x0d" + b),
    st.binary(min_size=8, max_size=8).map(lambda b: b"\x11" + b),
)


@settings(UNHURRIED, max_examples=300)
@given(fields=st.lists(field, max_size=40), cut=st.integers(0, 3))
def test_it_agrees_with_googles_decoder_on_odd_messages(google: Any, fields: list[bytes], cut: int) -> None:
    data = b"".join(fields)
    data = data[: len(data) - cut]
    expected = _ask(google, data)
    if expected is None:
        with pytest.raises(ContractViolation):
            decode(data)
    else:
        assert read(data) == expected


@settings(UNHURRIED, max_examples=500)
@given(st.binary(max_size=300))
def test_garbage_is_read_as_google_reads_it_or_refused(google: Any, data: bytes) -> None:
    """Where we refuse what Google accepts, it is for the group wire types, which this protocol has not."""
    try:
        got = read(data)
    except ContractViolation:
        return
    assert got == _ask(google, data)


@pytest.mark.parametrize("seed", range(8))
def test_one_wrong_byte_in_a_table_of_equal_ranges_is_never_overlooked(google: Any, seed: int) -> None:
    """Ranges of one width are read as a table, without looking for the ends of numbers; any byte may spoil that."""
    rng = random.Random(seed)
    long, short = rng.randrange(1, 9), rng.randrange(1, 9)
    rows = [
        (rng.randrange(1 << 7 * (long - 1), 1 << 7 * long), rng.randrange(1 << 7 * (short - 1), 1 << 7 * short))
        for _ in range(400)
    ]
    good = b"".join(
        b"\x1a" + varint(long + short + 2) + b"\x08" + varint(offset) + b"\x10" + varint(size) for offset, size in rows
    )
    assert pairs(decode(good)) == rows
    for _ in range(400):
        spoiled = bytearray(good)
        spoiled[rng.randrange(len(good))] = rng.choice([rng.randrange(256), 0x80, 0x1A, 0x08, 0x10, 0xFF])
        expected = _ask(google, bytes(spoiled))
        try:
            got = read(bytes(spoiled))
        except ContractViolation:
            got = None
        assert got == expected


def test_a_hostile_message_of_tiny_pieces_takes_bounded_time() -> None:
    """Layouts that change at every range must not make the scan start over and over on the whole rest."""
    usual, odd = b"\x1a\x04\x08\x01\x10\x01", b"\x1a\x04\x10\x01\x08\x01"
    message = decode((usual + odd) * 40_000)
    assert len(message) == 80_000
    assert np.all(message.offsets == 1)
    assert np.all(message.sizes == 1)
