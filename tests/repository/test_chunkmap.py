"""The chunk map against a plain dict: any changes, any size, any base, any number of shards."""

from __future__ import annotations

import random
import uuid

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.repository.chunkmap import MapReader
from orchestrator.repository.errors import Damaged
from orchestrator.repository.layout import LEAF_CHUNKS, ObjectRef
from orchestrator.repository.leafupdate import decode_updates
from orchestrator.repository.manifest import MapRoot, PointStats
from orchestrator.repository.mapbuilder import ShardBuilder
from orchestrator.repository.mapobject import MapObjectWriter
from orchestrator.repository.pack import Entry
from orchestrator.repository.page import Inner, Leaf, Ref, encode_inner, encode_leaf, levels_for
from orchestrator.repository.store import CountingStore, open_store
from orchestrator.repository.upperpages import UpperBuilder
from orchestrator.repository.vault import Vault
from tests.repository.engine import new_vault

pytestmark = pytest.mark.quick
INTENT = str(uuid.UUID(int=7))
PACKS = [ObjectRef(uuid.UUID(int=7).bytes, bytes([n]) * 16) for n in range(5)]
Changes = dict[int, Entry | None]


def _entry(seed: int) -> Entry:
    rng = random.Random(seed)
    return Entry(rng.randbytes(32), rng.choice(PACKS), rng.randrange(1, 1 << 24), rng.randrange(1, 1 << 22), seed % 2)


async def _build(
    vault: Vault, count: int, changes: Changes, base: MapRoot | None, *, shards: int = 1, tail: int = 0
) -> MapRoot:
    """Make a map of `count` chunks of 1 KiB (the last short by `tail`) with these changes on a base."""
    size = count * 1024 - tail
    updates = []
    for number in range(shards):
        reader = None if base is None else MapReader(vault, base)
        builder = ShardBuilder(
            vault, INTENT, volume_size=size, chunk_size=1024, base=reader, number=number, shards=shards
        )
        first, stop = builder.range
        for index, entry in sorted(changes.items()):
            if first <= index < stop:
                if entry is None:
                    builder.clear(index)
                else:
                    builder.set(index, *entry)
                await builder.flush_below(index)
        updates.extend(decode_updates((await builder.finish(PointStats())).updates))
    writer = MapObjectWriter(vault, INTENT)
    reader = None if base is None else MapReader(vault, base)
    root = await UpperBuilder(writer, reader, updates, volume_size=size, chunk_size=1024).build()
    await writer.finish()
    return root


async def _all(vault: Vault, root: MapRoot) -> dict[int, Entry]:
    return {index: entry async for batch in MapReader(vault, root).batches() for index, entry in batch}


def _apply(model: dict[int, Entry], changes: Changes, count: int) -> dict[int, Entry]:
    merged: Changes = {**model, **changes}
    return {index: entry for index, entry in merged.items() if entry is not None and index < count}


_step = st.tuples(
    st.sampled_from([1, 5, LEAF_CHUNKS - 1, LEAF_CHUNKS, LEAF_CHUNKS + 3, 3 * LEAF_CHUNKS, 4 * LEAF_CHUNKS + 17]),
    st.integers(0, 2**32),
    st.sampled_from([0, 1, 5, 12, 13, 40, 1500]),
    st.integers(1, 4),
    st.booleans(),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(_step, min_size=1, max_size=6))
async def test_any_history_of_changes_reads_back_as_a_dict_would(steps: list[tuple[int, int, int, int, bool]]) -> None:
    vault = await new_vault(await open_store(f"memory://{uuid.uuid4().hex}"))
    root, model = None, dict[int, Entry]()
    for count, seed, amount, shards, fresh in steps:
        rng = random.Random(seed)
        changes: Changes = {
            rng.randrange(count): None if rng.random() < 0.3 else _entry(rng.randrange(2**32)) for _ in range(amount)
        }
        base = None if fresh else root
        if base is None:
            model = {}
        older = None if root is None else (root, await _all(vault, root))
        root = await _build(vault, count, changes, base, shards=shards)
        model = _apply(model, changes, count)
        assert await _all(vault, root) == model
        some = [rng.randrange(count + 5) for _ in range(50)]
        assert await MapReader(vault, root).lookup(some) == {i: model[i] for i in some if i in model}
        if older is not None:
            assert await _all(vault, older[0]) == older[1], "an older map changed"


async def test_maps_of_several_levels_grow_and_shrink(vault: Vault) -> None:
    per_page = LEAF_CHUNKS * 256
    model: dict[int, Entry] = {}
    root = None
    for step, count in enumerate([5, per_page, per_page + 1, 3 * per_page + 9, per_page * 256 + 5, 2 * per_page, 1500]):
        changes: Changes = {count - 1: _entry(step), count // 2: _entry(100 + step), step % count: _entry(200 + step)}
        root = await _build(vault, count, changes, root)
        model = _apply(model, changes, count)
        assert root.levels == levels_for(count)
        assert await _all(vault, root) == model


async def test_entries_beyond_a_smaller_size_do_not_come_back_when_it_grows_again(vault: Vault) -> None:
    full: Changes = {index: _entry(index) for index in range(3000)}
    root = await _build(vault, 3000, full, None)
    root = await _build(vault, 1100, {}, root)
    root = await _build(vault, 3000, {}, root)
    assert await _all(vault, root) == {index: _entry(index) for index in range(1100)}


async def test_a_size_that_ends_inside_a_chunk_makes_that_chunk_be_read_again(vault: Vault) -> None:
    root = await _build(vault, 10, {9: _entry(1)}, None, tail=100)
    with pytest.raises(ValueError, match="chunk 9 must be read again"):
        await _build(vault, 20, {}, root)
    grown = await _build(vault, 20, {9: _entry(2)}, root)
    assert await _all(vault, grown) == {9: _entry(2)}


async def test_a_point_without_changes_has_the_same_root(vault: Vault) -> None:
    root = await _build(vault, 5000, {index: _entry(index) for index in range(0, 5000, 7)}, None)
    assert await _build(vault, 5000, {}, root) == root


async def test_unchanged_leaves_are_shared(vault: Vault) -> None:
    root = await _build(vault, 5 * LEAF_CHUNKS, {index: _entry(index) for index in range(5 * LEAF_CHUNKS)}, None)
    changed = await _build(vault, 5 * LEAF_CHUNKS, {index: _entry(index + 9) for index in range(70)}, root)
    before = await MapReader(vault, root).node_refs(0, range(5))
    after = await MapReader(vault, changed).node_refs(0, range(5))
    assert {leaf for leaf in range(5) if before[leaf] != after[leaf]} == {0}


async def test_nothing_may_be_set_below_what_was_flushed(vault: Vault) -> None:
    builder = ShardBuilder(vault, INTENT, volume_size=600 * LEAF_CHUNKS * 1024, chunk_size=1024)
    for leaf in range(300):
        builder.set(leaf * LEAF_CHUNKS, *_entry(leaf))
    await builder.flush_below(280 * LEAF_CHUNKS)
    with pytest.raises(ValueError, match="flushed"):
        builder.set(3, *_entry(3))
    builder.set(256 * LEAF_CHUNKS, *_entry(3))


async def test_many_scattered_changes_rewrite_the_leaves_of_a_page_together(vault: Vault) -> None:
    count = 20 * LEAF_CHUNKS
    model = {index: _entry(index) for index in range(count)}
    root = await _build(vault, count, dict(model), None)
    counting = CountingStore(vault.store)
    vault = Vault(counting, vault.keys)
    rng = random.Random(1)
    folded = 0
    for step in range(30):
        counting.requests.clear()
        before = await MapReader(vault, root).node_refs(0, range(20))
        changes: Changes = {rng.randrange(count): _entry(step * 100 + n) for n in range(20)}
        root = await _build(vault, count, changes, root)
        after = await MapReader(vault, root).node_refs(0, range(20))
        anew = sum(before[leaf] != after[leaf] for leaf in range(20))
        assert anew in (0, 20)
        assert counting.requests["get"] <= 8, "leaves cost no request each"
        folded += anew > 0
        model.update({index: entry for index, entry in changes.items() if entry is not None})
    assert 1 <= folded <= 4
    assert await _all(vault, root) == model


async def test_one_gib_of_scattered_changes_on_16_tib_costs_few_requests_and_bytes() -> None:
    """The budget of the chunk map: at most 5 % of the stored bytes, a few dozen requests."""
    counting = CountingStore(await open_store(f"memory://{uuid.uuid4().hex}"))
    vault = await new_vault(counting)
    count = 16 * 2**40 // (256 * 1024)
    rng = random.Random(3)
    root: MapRoot | None = None
    for _ in range(2):
        counting.requests.clear()
        counting.bytes_written = counting.bytes_read = 0
        changes: Changes = {rng.randrange(count): _entry(n) for n in range(4096)}
        root = await _build(vault, count, changes, root)
        assert counting.bytes_written < 2**30 * 0.05
        assert counting.requests["put"] <= 12
    assert counting.requests["get"] <= 40


@given(st.dictionaries(st.integers(0, LEAF_CHUNKS - 1), st.integers(0, 2**32), max_size=60))
def test_a_leaf_decodes_to_what_was_encoded(seeds: dict[int, int]) -> None:
    entries = {index: _entry(seed) for index, seed in seeds.items()}
    leaf = Leaf(encode_leaf(entries))
    assert dict(leaf.chunks()) == entries
    assert {index: leaf.get(index) for index in range(LEAF_CHUNKS) if leaf.get(index)} == entries
    assert set(leaf.packs) == {entry.pack for entry in entries.values()}
    assert sum(leaf.uses) == len(entries)


@given(st.binary(max_size=400))
def test_garbage_is_no_page_and_never_a_crash(raw: bytes) -> None:
    for lead in (b"", b"\x01\x00", b"\x02\x01"):
        for decode in (Leaf, lambda data: Inner(data, 1)):
            try:
                page = decode(lead + raw)
                if isinstance(page, Leaf):
                    list(page.chunks())
                else:
                    [(page.child(n), page.overlay(n)) for n in page.numbers()]
            except ValueError:
                pass


def test_an_inner_page_decodes_to_what_was_encoded() -> None:
    refs = [Ref(PACKS[n], n, n + 1, bytes([n]) * 32) for n in range(5)]
    children = [(refs[0], []), (None, [(3, _entry(1)), (9, None)]), (None, []), (refs[1], [(1023, _entry(2))])]
    page = Inner(encode_inner(1, children), 1)
    assert [(page.child(n), page.overlay(n)) for n in range(5)] == [*children, (None, [])]
    assert list(page.numbers()) == [0, 1, 3]
    with pytest.raises(ValueError, match="level 2"):
        Inner(encode_inner(1, children), 2)


async def test_a_page_that_is_not_the_one_named_is_found(vault: Vault) -> None:
    root = await _build(vault, 5000, {index: _entry(index) for index in range(5000)}, None)
    other = await _build(vault, 5000, {index: _entry(index + 1) for index in range(5000)}, None)
    assert root.page is not None
    assert other.page is not None
    from msgspec.structs import replace

    mixed = replace(root, page=replace(root.page, object=other.page.object))
    with pytest.raises(Damaged):
        await MapReader(vault, mixed).check_root()
    with pytest.raises(Damaged):
        MapReader(vault, replace(root, levels=2))
