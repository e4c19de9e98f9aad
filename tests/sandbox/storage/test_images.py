"""Images: copies, locks, and differences against brute force."""

from __future__ import annotations

import fcntl
import random
import sqlite3
import struct
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.sandbox.storage import compare
from orchestrator.sandbox.storage.images import BadHandle, ImageStore, NoSuchSnapshot, data_extents

pytestmark = pytest.mark.quick

BLOCK = 4096
COUNT = 40
SIZE = BLOCK * COUNT - 1000

change = st.tuples(
    st.sampled_from(["write", "zero", "punch", "same"]), st.integers(0, COUNT - 1), st.integers(0, BLOCK - 1)
)
changes = st.lists(change, max_size=12)


def apply(path: Path, todo: list[tuple[str, int, int]], seed: int) -> None:
    made = random.Random(seed)
    with path.open("r+b") as file:
        for what, block, shift in todo:
            at = min(block * BLOCK + shift, SIZE - 1)
            length = min(made.randrange(1, 3 * BLOCK), SIZE - at)
            file.seek(at)
            if what == "write":
                file.write(made.randbytes(length))
            elif what == "zero":
                file.write(bytes(length))
            elif what == "same":
                held = file.read(length)
                file.seek(at)
                file.write(held)
            else:
                punch(file.fileno(), at, length)
            file.flush()


def punch(fd: int, at: int, length: int) -> None:
    """Discard a range: what an unmap does to an image file."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if libc.fallocate(fd, 0x03, at, length):
        raise OSError(ctypes.get_errno(), "fallocate")


def covered(ranges: compare.Ranges) -> set[int]:
    return {b for first, last in ranges for b in range(first, last)}


@settings(deadline=None, max_examples=60)
@given(first=changes, second=changes, block_bytes=st.sampled_from([512, 4096, 65536]))
def test_a_delta_is_the_brute_force_difference_and_rebuilds_the_target(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[tuple[str, int, int]],
    second: list[tuple[str, int, int]],
    block_bytes: int,
) -> None:
    store = ImageStore(tmp_path_factory.mktemp("images"))
    live = store.create_volume("v", SIZE)
    apply(live, first, 1)
    store.take_snapshot("s1", "v")
    apply(live, second, 2)
    store.take_snapshot("s2", "v")
    base, target = store.snapshot_path("s1"), store.snapshot_path("s2")

    found = covered(compare.changed(base, target, SIZE, block_bytes))

    old, new = base.read_bytes(), target.read_bytes()
    blocks = range(-(-SIZE // block_bytes))
    assert found == {b for b in blocks if old[b * block_bytes :][:block_bytes] != new[b * block_bytes :][:block_bytes]}
    held = covered(compare.allocated(target, SIZE, block_bytes))
    assert all(b in held for b in blocks if any(new[b * block_bytes :][:block_bytes]))


def test_a_snapshot_keeps_its_bytes_and_its_holes_when_the_volume_moves_on(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    live = store.create_volume("v", 64 << 20)
    with live.open("r+b") as file:
        file.seek(8 << 20)
        file.write(b"before")
    record = store.take_snapshot("s", "v")
    with live.open("r+b") as file:
        file.seek(8 << 20)
        file.write(b"after!")

    copy = store.snapshot_path("s")
    with copy.open("rb") as file:
        file.seek(8 << 20)
        assert file.read(6) == b"before"
        assert len(list(data_extents(file.fileno(), 64 << 20))) == 1
    assert (record.size_bytes, copy.stat().st_size) == (64 << 20, 64 << 20)
    assert copy.stat().st_blocks * 512 < 1 << 20
    assert store.take_snapshot("s", "v") == record


def test_a_clone_is_larger_than_its_source_with_zeros_behind(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    store.create_volume("v", 4096).write_bytes(b"a" * 4096)
    store.take_snapshot("s", "v")

    clone = store.create_volume("c", 8192, store.snapshot_path("s"))

    assert clone.read_bytes() == b"a" * 4096 + bytes(4096)


def test_a_volume_grows_and_never_shrinks(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    store.create_volume("v", 4096)

    store.grow_volume("v", 8192)
    store.grow_volume("v", 4096)

    assert store.volume_size("v") == 8192


@pytest.mark.parametrize("handle", ["../x", "", "a/b", "..", "x" * 200, "A"])
def test_a_handle_never_becomes_a_path_outside(tmp_path: Path, handle: str) -> None:
    store = ImageStore(tmp_path)

    with pytest.raises(BadHandle):
        store.volume_path(handle)
    with pytest.raises(NoSuchSnapshot):
        store.snapshot(handle)


def test_half_made_copies_of_a_killed_process_go_at_the_next_start(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    (tmp_path / "snapshots" / "s.part").write_bytes(b"half")

    store.tidy()

    assert list((tmp_path / "snapshots").iterdir()) == []


def test_a_database_that_is_written_all_the_time_is_whole_in_every_snapshot(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    live = store.create_volume("v", 0)
    stop = threading.Event()

    def write() -> None:
        database = sqlite3.connect(live, timeout=10)
        database.execute("pragma journal_mode=memory")
        database.execute("create table t (a integer, b integer)")
        database.commit()
        number = 0
        while not stop.is_set():
            number += 1
            with database:
                database.executemany("insert into t values (?, ?)", [(number, i) for i in range(200)])
        database.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while not live.stat().st_size:
            pass
        for number in range(5):
            store.take_snapshot(f"s{number}", "v")
    finally:
        stop.set()
        writer.join()

    for number in range(5):
        held = sqlite3.connect(store.snapshot_path(f"s{number}"))
        assert held.execute("pragma integrity_check").fetchone() == ("ok",)
        tables = held.execute("select count(*) from sqlite_master").fetchone()[0]
        if tables:
            assert held.execute("select count(*) % 200 from t").fetchone() == (0,)
        held.close()


def test_a_discarded_block_is_in_the_delta(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    live = store.create_volume("v", SIZE)
    with live.open("r+b") as file:
        file.write(b"x" * 12 * BLOCK)
    store.take_snapshot("s1", "v")
    with live.open("r+b") as file:
        punch(file.fileno(), 9 * BLOCK, BLOCK)
    store.take_snapshot("s2", "v")

    assert covered(compare.changed(store.snapshot_path("s1"), store.snapshot_path("s2"), SIZE, BLOCK)) == {9}
    assert 9 not in covered(compare.allocated(store.snapshot_path("s2"), SIZE, BLOCK))


def test_a_snapshot_waits_for_a_writer_that_holds_a_lock(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    live = store.create_volume("v", 8)
    half, done = threading.Event(), threading.Event()

    def transaction() -> None:
        with live.open("r+b", buffering=0) as file:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
            file.write(b"half")
            half.set()
            done.wait(0.2)
            file.write(b"done")

    writer = threading.Thread(target=transaction)
    writer.start()
    half.wait()
    store.take_snapshot("s", "v")
    done.set()
    writer.join()

    assert store.snapshot_path("s").read_bytes() == b"halfdone"
