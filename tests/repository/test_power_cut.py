"""A directory store against power cuts: replay every prefix of what was done, without what was not synced.

The trace is recorded through the store's own seam. A cut keeps a file's content only if that file was synced, and a
name only if its directory was synced after (or, worse, keeps any subset of the unsynced names: both are tried).
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from orchestrator.repository.crypto import Bytes
from orchestrator.repository.directory import TEMPORARY, DirectoryStore, FileOperations
from orchestrator.repository.errors import ObjectConflict

pytestmark = pytest.mark.quick
Step = tuple[str, ...]


class Recording(FileOperations):
    """Does everything, and writes down what was done; `write` is create, write and fsync as `FileOperations` does."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, Path, object]] = []

    def mkdir(self, path: Path) -> None:
        super().mkdir(path)
        self.steps.append(("mkdir", path, None))

    def write(self, path: Path, data: Bytes) -> None:
        super().write(path, data)
        self.steps.append(("create", path, None))
        self.steps.append(("content", path, bytes(data)))

    def link(self, source: Path, target: Path) -> None:
        super().link(source, target)
        self.steps.append(("link", target, source))

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.steps.append(("unlink", path, None))

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        self.steps.append(("sync", path, None))


class Disk:
    """What survives: synced names of each directory, changes of names not synced yet, contents of synced files."""

    def __init__(self, root: Path) -> None:
        self.durable: dict[Path, object] = {root.parent: "directory"}
        self.pending: list[tuple[Path, object]] = []
        self.live: dict[Path, object] = {}

    def play(self, step: tuple[str, Path, object]) -> None:
        what, path, more = step
        if what == "sync":
            for name, value in [item for item in self.pending if item[0].parent == path]:
                self._settle(name, value)
            self.pending = [item for item in self.pending if item[0].parent != path]
        elif what == "content":
            # The file was synced before it got its second name: whoever finds a name finds this.
            self.live[path] = more
            self.pending = [(name, more if name == path else value) for name, value in self.pending]
        else:
            value: object = {"mkdir": "directory", "create": b"?", "unlink": None}.get(what)
            if what == "link":
                assert isinstance(more, Path)
                value = self.live[more]
            self.live[path] = value
            self.pending.append((path, value))

    def _settle(self, name: Path, value: object) -> None:
        if value is None:
            self.durable.pop(name, None)
        else:
            self.durable[name] = value

    def after_cut(self, kept: tuple[bool, ...]) -> dict[Path, bytes]:
        """Return the files that can be reached, when these of the pending changes of names made it to disk."""
        names = dict(self.durable)
        for (name, value), keep in zip(self.pending, kept, strict=True):
            if keep and value is not None:
                names[name] = value
            elif keep:
                names.pop(name, None)
        return {
            name: value
            for name, value in names.items()
            if isinstance(value, bytes) and all(parent in names for parent in self._parents(name))
        }

    def _parents(self, name: Path) -> list[Path]:
        return list(itertools.takewhile(lambda parent: parent != self.top, name.parents))

    @property
    def top(self) -> Path:
        return next(iter(self.durable)) if self.durable else Path("/")


async def _record(root: Path) -> tuple[Recording, list[tuple[int, str, bytes]]]:
    """Put some objects; return the trace and, for each put that returned, how long the trace was then."""
    recording = Recording()
    store = DirectoryStore(root, recording)
    done: list[tuple[int, str, bytes]] = []
    for key, data in [
        ("a", b"1" * 10),
        ("n/x/packs/i/p1", b"2" * 5000),
        ("n/x/packs/i/p2", b""),
        ("n/x/points/l/1", b"m"),
    ]:
        await store.put_new(key, data)
        done.append((len(recording.steps), key, data))
    with pytest.raises(ObjectConflict):
        await store.put_new("a", b"other")
    await store.put_new("a", b"1" * 10)
    return recording, done


async def test_after_a_power_cut_anywhere_an_object_is_absent_or_whole_and_what_was_acknowledged_is_there(
    tmp_path: Path,
) -> None:
    root = tmp_path / "r"
    recording, done = await _record(root)
    contents = {root / key: data for _, key, data in done}
    cuts = 0
    for length in range(len(recording.steps) + 1):
        disk = Disk(root)
        for step in recording.steps[:length]:
            disk.play(step)
        for kept in itertools.islice(itertools.product((False, True), repeat=len(disk.pending)), 256):
            cuts += 1
            files = disk.after_cut(kept)
            for path, data in files.items():
                if TEMPORARY not in path.parts:
                    assert contents[path] == data, "a name appeared before its content"
            for when, key, data in done:
                if when <= length:
                    assert files.get(root / key) == data, f"{key} was acknowledged and is lost"
    assert cuts > 100


async def test_the_replay_itself_notices_a_store_that_does_not_sync(tmp_path: Path) -> None:
    recording, done = await _record(tmp_path / "r")
    disk = Disk(tmp_path / "r")
    for step in recording.steps:
        if step[0] != "sync":
            disk.play(step)
    assert disk.after_cut((False,) * len(disk.pending)) == {}
    assert done
