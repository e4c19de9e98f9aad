"""A person with a file, a directory and a key: back up, list, restore, verify, without any cluster."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.main import main
from orchestrator.cli.parts.errors import OptionsUnreadable
from orchestrator.cli.parts.offline import store_options
from orchestrator.cli.parts.rate import bytes_per_second
from orchestrator.repository.directory import DirectoryStore
from orchestrator.repository.keys import MasterKey
from orchestrator.repository.repository import Repository
from orchestrator.repository.store import open_store
from tests.blocks.volumes import CHUNK, Volume
from tests.repository.engine import NAMESPACE, backup
from tests.waiting import LONG


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    volume = Volume(tmp_path / "disk.img", 80 * CHUNK + 512)
    volume.noise(3 * CHUNK, 20 * CHUNK)
    volume.text(40 * CHUNK, 10 * CHUNK)
    return volume


class Person:
    """Types commands in one folder."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        self.key = folder / "master.key"
        assert main(["key", "generate", str(self.key)]) == 0
        self.where = ["--repository", f"file://{folder / 'repository'}", "--key-file", str(self.key)]

    def types(self, *command: str, where: bool = True) -> tuple[int, str, str]:
        """Run a command on the repository; return exit code, stdout and stderr."""
        self.capsys.readouterr()
        code = main([*command, *(self.where if where else [])])
        said = self.capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    def copies(self, path: Path, *more: str) -> dict[str, Any]:
        """Back up and return the figures."""
        code, out, err = self.types("copy", str(path), "--json", "-", *more)
        assert code == 0, err
        found: dict[str, Any] = json.loads(out)
        return found


@pytest.fixture
def person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Person:
    return Person(tmp_path, capsys)


def test_a_file_is_backed_up_listed_and_brought_back(tmp_path: Path, person: Person, volume: Volume) -> None:
    # given a point, and a delta of one changed place on it
    full = person.copies(volume.path, "--create", "--chunk-size", "64K")
    first = volume.sha256()
    volume.noise(5 * CHUNK + 10, 100)
    changed = tmp_path / "changed"
    changed.write_text(f"# offset length\n{5 * CHUNK + 10} 100\n")
    delta = person.copies(volume.path, "--base", full["point"], "--extents", str(changed))
    # when they are listed and brought back
    _, listed, _ = person.types("restore", "--list", "-o", "json")
    back, code = tmp_path / "back.img", []
    for number, point in enumerate((full, delta)):
        target = back.with_suffix(f".{number}")
        code.append(person.types("restore", "--point", point["point"][:8], "--to", str(target), "--sha256"))
    # then each is what the file was, and the delta cost what changed
    assert [one["point"] for one in json.loads(listed)] == [full["point"], delta["point"]]
    assert [one[0] for one in code] == [0, 0]
    assert hashlib.sha256((tmp_path / "back.0").read_bytes()).hexdigest() == first
    assert (tmp_path / "back.1").read_bytes() == volume.path.read_bytes()
    assert volume.sha256() in code[1][1]
    assert (full["mode"], delta["mode"]) == ("allocated", "delta")
    assert delta["stats"]["read"] == CHUNK
    assert delta["stats"]["chunksStored"] == 1


def test_a_second_copy_without_extents_uploads_no_chunk_again(person: Person, volume: Volume) -> None:
    person.copies(volume.path, "--create")
    again = person.copies(volume.path)
    assert again["stats"]["chunksStored"] == 0
    assert again["stats"]["packs"] == 0


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, person: Person, volume: Volume) -> None:
    source = str(volume.path)
    code, _, err = person.types("copy", source)
    assert (code, err.count("\n")) == (65, 1)
    assert "No repository at" in err
    made = person.copies(volume.path, "--create")
    target = tmp_path / "there"
    target.write_bytes(b"keep me")
    cases = {
        ("copy", str(tmp_path / "gone")): "can't open",
        ("copy", source, "--base", "ffffffff"): "no point ffffffff",
        ("restore", "--point", "ffffffff", "--to", "new"): "no point ffffffff",
        ("restore", "--point", made["point"], "--to", str(target)): "exists already",
        ("restore", "--point", made["point"], "--to", str(target), "--overwrite"): "the recovery point needs",
        ("restore", "--point", made["point"], "--to", "x", "--expect", "00"): "digest",
        ("copy", source, "--base", made["point"], "--extents", source): "not `offset length`",
        ("copy", source, "--base", made["point"], "--extents", str(tmp_path / "gone")): "can't read",
    }
    for command, said in cases.items():
        code, _, err = person.types(*command)
        assert code == 65, command
        assert said in err
        assert err.count("\n") == 1
    assert target.read_bytes() == b"keep me"


def test_changed_ranges_without_the_point_they_count_from_are_refused(
    tmp_path: Path, person: Person, volume: Volume
) -> None:
    # given a point, and a list of what changed since
    person.copies(volume.path, "--create")
    changed = tmp_path / "changed"
    changed.write_text(f"0 {CHUNK}\n")
    # when the list is given without the point, then no point is made: all else would be zeros in it
    code, _, err = person.types("copy", str(volume.path), "--extents", str(changed))
    assert code == 2
    assert "--extents needs --base" in err
    assert len(json.loads(person.types("restore", "--list", "-o", "json")[1])) == 1


def test_a_volume_whose_name_is_no_text_is_backed_up_and_listed(tmp_path: Path, person: Person) -> None:
    path = Path(os.fsdecode(bytes(tmp_path) + b"/a\xff\nb"))
    path.write_bytes(b"content")
    first, again = person.copies(path, "--create"), person.copies(path)
    assert again["stats"]["chunksReused"] == 1
    _, listed, _ = person.types("restore", "--list", "-o", "json")
    assert [one["pvc"] for one in json.loads(listed)] == ["a\\xff\nb"] * 2
    assert person.types("restore", "--point", first["point"], "--to", str(tmp_path / "back"))[0] == 0
    assert (tmp_path / "back").read_bytes() == b"content"


def test_a_volume_is_cut_finely_unless_it_is_huge_or_its_owner_says_otherwise_and_stays_so(
    tmp_path: Path, person: Person
) -> None:
    path = tmp_path / "volume"
    path.write_bytes(b"content")
    before: str | None = None
    # when a volume is copied for the first time, in no size or another, and again when it has grown beyond 4 TiB
    for size, given, cut in ((1 << 42, [], 64), (2 << 42, [], 64), (2 << 42, ["--chunk-size", "1M"], 1024)):
        os.truncate(path, size)
        made = person.copies(path, *([] if before else ["--create"]), *given)
        assert (made["chunkSize"], before is None or made["stats"]["chunksReused"]) == (cut * 1024, cut == 64)
        before = made["point"]
    # and one that is huge from the first
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate((1 << 42) + 1)
    assert person.copies(tmp_path / "huge")["chunkSize"] == 256 * 1024


def test_a_number_that_a_stranger_put_at_a_points_name_leaves_numbers_for_the_next_points(
    tmp_path: Path, person: Person, volume: Volume
) -> None:
    # given a point, and beside it a name with the last number that there is, from somebody without the key
    made = person.copies(volume.path, "--create")
    there = tmp_path / "repository" / made["manifest"]
    (there.parent / f"{10**12 - 1}-{made['point']}").write_bytes(b"mine")
    # when the volume is backed up, then the point counts on from what is true
    numbers = [person.copies(volume.path)["manifest"].rpartition("/")[2].partition("-")[0] for _ in range(2)]
    assert numbers == ["000000000002", "000000000003"]


def test_a_restore_keeps_to_its_limits(tmp_path: Path, person: Person) -> None:
    path, target = tmp_path / "one", tmp_path / "back"
    path.write_bytes(os.urandom(16 * CHUNK))
    point = person.copies(path, "--create", "--chunk-size", "256K")["point"]
    # when four writes may go in a second, or its size, then it takes that long (but for the first burst), and is whole
    for limit in (["--iops-limit", "4"], ["--limit", f"{path.stat().st_size >> 10}Ki"]):
        target.unlink(missing_ok=True)
        code, out, err = person.types("restore", "--point", point, "--to", str(target), "--json", "-", *limit)
        assert code == 0, err
        assert json.loads(out)["seconds"] >= 0.25
        assert target.read_bytes() == path.read_bytes()
    # and what limits nothing is wrong usage
    assert person.types("restore", "--point", point, "--to", "x", "--limit", "0")[0] == 2
    # and the other commands that have a limit take quantities too
    assert person.types("verify", "--limit", "1Gi")[0] == 0
    assert person.types("copy", str(path), "--limit", "100M")[0] == 0


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("1", 1),
        ("65536", 65536),
        ("10M", 10_000_000),
        ("100Mi", 100 << 20),
        ("1Gi", 1 << 30),
        ("1.5k", 1500),
        ("1e6", 10**6),
    ],
)
def test_a_limit_is_bytes_or_a_quantity(text: str, limit: int) -> None:
    assert bytes_per_second(text) == limit


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0", "less than 1"),
        ("-1", "less than 1"),
        ("-10Mi", "less than 1"),
        ("0Mi", "less than 1"),
        ("10m", "a million is M"),
        ("10MB", "is not a quantity"),
        ("10 Mi", "is not a quantity"),
        ("fast", "is not a quantity"),
        ("", "is not a quantity"),
        ("1e999999999", "is not a quantity"),
        ("8E", "more than anything does"),
    ],
)
def test_what_is_no_limit_is_wrong_usage_of_every_command_that_has_one(
    tmp_path: Path, person: Person, text: str, said: str
) -> None:
    for command in (("copy", str(tmp_path)), ("restore", "--point", "p", "--to", "x"), ("verify",)):
        # when it is given as a limit
        code, out, err = person.types(*command, f"--limit={text}")
        # then that is told, and nothing is done
        assert code == 2, (command, out, err)
        assert said in " ".join(err.replace("│", " ").split()), (command, err)
    assert not (tmp_path / "repository").exists()


def test_a_target_that_reads_back_different_gets_no_name(
    tmp_path: Path, person: Person, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a medium that changes a byte of what is written to it
    point = person.copies(volume.path, "--create", "--chunk-size", "64K")["point"]
    write, write_row = os.pwrite, os.pwritev

    def lying(descriptor: int, content: bytes, offset: int) -> int:
        return write(descriptor, _lie(content, offset), offset)

    def lying_in_a_row(descriptor: int, pieces: Sequence[bytes], offset: int) -> int:
        return write_row(descriptor, [_lie(piece, offset + at * CHUNK) for at, piece in enumerate(pieces)], offset)

    def _lie(content: bytes, offset: int) -> bytes:
        return bytes([content[0] ^ 1, *content[1:]]) if offset == 4 * CHUNK else content

    monkeypatch.setattr(os, "pwrite", lying)
    monkeypatch.setattr(os, "pwritev", lying_in_a_row)
    # when a point is brought back
    code, _, said = person.types("restore", "--point", point, "--to", str(tmp_path / "back"))
    # then it is refused, and nothing is left that could be taken for the volume
    assert (code, "chunk 4 of" in said) == (65, True), said
    assert not list(tmp_path.glob("back*"))


@pytest.mark.system
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_restore_that_is_told_to_end_leaves_no_half_file(
    tmp_path: Path, person: Person, number: signal.Signals
) -> None:
    # given a restore that would take minutes
    path, target, partial = tmp_path / "one", tmp_path / "back", tmp_path / "back.partial"
    path.write_bytes(os.urandom(64 * CHUNK))
    point = person.copies(path, "--create")["point"]
    command = ["restore", "--point", point, "--to", str(target), "--limit", "65536", *person.where]
    with subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *command], stderr=subprocess.PIPE, text=True
    ) as restore:
        try:
            deadline = time.monotonic() + LONG
            while not partial.exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            # when its target is there, and the machine wants it to end, and says so twice
            restore.send_signal(number)
            restore.send_signal(number)
            _, said = restore.communicate(timeout=LONG)
        finally:
            restore.kill()
    # then nothing that looks like the volume is left, and it says so if it could
    assert not target.exists()
    if number is not signal.SIGKILL:
        assert (restore.returncode, said) == (128 + number, f"tidemark: ended by {number.name}\n")
        assert not partial.exists()
        return
    # and what is left when it could not is named by the next try, which succeeds without it
    code, _, said = person.types("restore", "--point", point, "--to", str(target))
    assert (code, str(partial) in said) == (65, True), said
    partial.unlink()
    assert person.types("restore", "--point", point, "--to", str(target))[0] == 0
    assert target.read_bytes() == path.read_bytes()


@pytest.mark.system
def test_where_nothing_can_be_printed_the_work_is_done_and_said_as_far_as_possible(
    tmp_path: Path, person: Person, volume: Volume
) -> None:
    command = [sys.executable, "-m", "orchestrator", "copy", str(volume.path), "--create", *person.where]
    # when stdout is full, then the point is there, and the exit code and stderr tell
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (65, 1)
    assert "stdout takes no more" in done.stderr
    # when stdin, stdout and stderr are closed, then no object gets their numbers, and the point is there too
    assert subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command]).returncode == 0
    assert len(json.loads(person.types("restore", "--list", "-o", "json")[1])) == 2
    assert person.types("verify", "--full")[0] == 0


def test_another_key_and_a_foreign_directory_are_refused_and_nothing_is_written(
    tmp_path: Path, person: Person, volume: Volume
) -> None:
    person.copies(volume.path, "--create")
    other = tmp_path / "other.key"
    main(["key", "generate", str(other)])
    foreign = tmp_path / "home"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("dear")
    for url, key, said in [
        (f"file://{tmp_path / 'repository'}", other, "key does not open"),
        (f"file://{foreign}", person.key, "not a Tidemark repository"),
        (f"file://{tmp_path / 'repository'}", volume.path, f"{volume.path} holds neither 32 bytes"),
        ("ftp://host/x", person.key, "scheme"),
    ]:
        code, _, err = person.types(
            "copy", str(volume.path), "--create", "--repository", url, "--key-file", str(key), where=False
        )
        assert code == 65
        assert said in err
    assert [path.name for path in foreign.iterdir()] == ["letter.txt"]


def test_a_key_file_is_private_and_never_overwritten(tmp_path: Path, person: Person) -> None:
    before = person.key.read_bytes()
    code, _, err = person.types("key", "generate", str(person.key), where=False)
    assert code == 65
    assert "File exists" in err
    assert person.key.read_bytes() == before
    assert person.key.stat().st_mode & 0o777 == 0o600


def test_after_a_rewrap_the_new_key_opens_and_the_old_one_does_not(
    tmp_path: Path, person: Person, volume: Volume
) -> None:
    made = person.copies(volume.path, "--create")
    new = tmp_path / "new.key"
    main(["key", "generate", str(new)])
    assert person.types("key", "rewrap", "--new-key-file", str(new))[0] == 0
    person.where[-1] = str(new)
    target = tmp_path / "back"
    assert person.types("restore", "--point", made["point"], "--to", str(target))[0] == 0
    assert target.read_bytes() == volume.path.read_bytes()


def test_data_keys_are_listed_by_number_with_what_was_stored_meanwhile(person: Person, volume: Volume) -> None:
    person.copies(volume.path, "--create")
    assert person.types("key", "rotate")[0] == 0
    code, said = person.types("key", "list")[:2]
    first, second = said.splitlines()
    assert code == 0
    assert "data key 1 of" in first and "the newest" not in first and " 0 objects" not in first
    assert "data key 2 of" in second and ", the newest: " in second


def test_store_options_come_from_the_environment_or_a_file_and_never_from_the_command_line(tmp_path: Path) -> None:
    environment = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "HOME": "/root"}
    assert store_options("s3://b/p", None, environment) == {"access_key_id": "id", "secret_access_key": "secret"}
    assert store_options("file:///x", None, environment) == {}
    file = tmp_path / "options"
    file.write_text("# mine\nregion = eu-1\n\nendpoint=http://here:9000\n")
    assert store_options("s3://b/p", file, environment) == {"region": "eu-1", "endpoint": "http://here:9000"}
    file.write_text("nonsense\n")
    with pytest.raises(OptionsUnreadable, match="line 1"):
        store_options("s3://b/p", file, environment)


def test_verify_proves_a_sound_repository_and_names_the_points_that_damage_hurts(
    tmp_path: Path, person: Person, volume: Volume
) -> None:
    # given two points, the second with one chunk of its own
    first = person.copies(volume.path, "--create")
    volume.noise(60 * CHUNK, CHUNK)
    second = person.copies(volume.path)
    sound = person.types("verify", "--full")
    # when one bit flips in the pack that only the second uses
    packs = sorted((tmp_path / "repository").rglob("packs/*/*"), key=lambda path: path.stat().st_size)
    flipped = bytearray(packs[0].read_bytes())
    flipped[300] ^= 1
    packs[0].chmod(0o600)
    packs[0].write_bytes(flipped)
    code, out, err = person.types("verify", "--full")
    # then just that point is named
    assert sound[0] == 0, sound
    assert "Sound: 2 points" in sound[1]
    assert code == 65
    assert second["point"] in out
    assert first["point"] not in out
    assert "damaged" in err
    # and for a program stdout holds the findings and nothing else
    code, out, _ = person.types("verify", "--full", "--json", "-")
    assert code == 65
    assert len(json.loads(out)[0]["findings"]) == 1
    # and the point goes by either name that was printed
    hurt = second["manifest"].rpartition("/")[2]
    assert f"Hurt: point {hurt} " in person.types("verify")[1]
    assert person.types("prune", "--yes", "--point", hurt)[0] == 0
    assert person.types("verify", "--full")[0] == 0
    # and once more it is told that it is gone, with a remedy that makes sense
    code, _, err = person.types("prune", "--yes", "--point", second["manifest"])
    assert code == 65
    assert "was removed" in err
    assert "Choose another recovery point" in err


def test_verify_tells_what_it_had_to_read_twice(
    person: Person, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a store that once gives half of a manifest
    made = person.copies(volume.path, "--create")
    whole, lied = DirectoryStore.get, set[str]()

    async def half(store: DirectoryStore, key: str) -> bytes:
        data = await whole(store, key)
        if key == made["manifest"] and key not in lied:
            lied.add(key)
            return data[: len(data) // 2]
        return data

    monkeypatch.setattr(DirectoryStore, "get", half)
    # when it is verified, then nothing is damaged, and the lie is told
    code, out, _ = person.types("verify")
    assert code == 0
    assert "1 objects came wrong and, read again, right" in out
    assert f"first: {made['manifest']}" in out
    assert "Sound: 1 points" in out
    lied.clear()
    code, out, _ = person.types("verify", "--json", "-")
    assert json.loads(out)[0]["readAgain"] == [made["manifest"]]


def test_figures_that_can_not_be_written_are_refused_before_anything_is_done(
    tmp_path: Path, person: Person, volume: Volume
) -> None:
    # given a repository with a point
    made = person.copies(volume.path, "--create")
    before = sorted(path for path in (tmp_path / "repository").rglob("*") if path.is_file())
    for file in (tmp_path / "nowhere" / "figures.json", tmp_path):
        for command in (
            ("copy", str(volume.path)),
            ("restore", "--point", made["point"], "--to", str(tmp_path / "back")),
            ("verify",),
            ("maintenance",),
        ):
            # when a command is to write its figures where it can't
            code, _, err = person.types(*command, "--json", str(file))
            # then that is said, and nothing was made that a script would take for failed
            assert code == 65, command
            assert f"can't write {file}" in err
    assert not (tmp_path / "back").exists()
    assert sorted(path for path in (tmp_path / "repository").rglob("*") if path.is_file()) == before


def test_a_rolled_back_point_is_found_by_the_digest_kept_elsewhere(person: Person, volume: Volume) -> None:
    made = person.copies(volume.path, "--create")
    expect = ["verify", "--point", made["point"], "--expect"]
    assert person.types(*expect, made["digest"])[0] == 0
    assert person.types(*expect, "00" * 32)[0] == 65
    code, _, err = person.types("restore", "--point", made["point"], "--to", "x", "--expect", "00" * 32)
    assert code == 65
    assert "turned back" in err


def test_maintenance_sweeps_what_was_pruned_and_says_what_it_did(person: Person, volume: Volume) -> None:
    # given a point that goes and one that stays
    first = person.copies(volume.path, "--create", "--chunk-size", "64K")
    volume.noise(3 * CHUNK, 20 * CHUNK)
    second = person.copies(volume.path)
    assert person.types("prune", "--point", first["point"], "--yes")[0] == 0
    # when it runs, first only to say what it would do, then twice without any grace time
    code, plan, err = person.types("maintenance", "--dry-run")
    assert code == 0, err
    assert "delete 0 objects" in plan
    swept = [json.loads(person.types("maintenance", "--grace", "0", "--json", "-")[1])[0] for _ in range(2)]
    # then what only the first point needed is gone
    assert swept[0]["namespace"] == "offline"
    assert swept[0]["result"]["candidates"] > 0
    assert swept[1]["result"]["deletedObjects"] > 0
    code, said, err = person.types("maintenance", "--no-compact")
    assert (code, err) == (0, "")
    assert "offline: 1 points" in said
    assert person.types("verify", "--full")[0] == 0
    assert person.types("restore", "--point", second["point"], "--to", str(person.folder / "back"))[0] == 0
    assert (person.folder / "back").read_bytes() == volume.path.read_bytes()
    code, _, err = person.types("maintenance", "--end-intent", "11111111-1111-1111-1111-111111111111")
    assert code == 2
    assert "needs --namespace" in err
    code, _, err = person.types("maintenance", "-n", "offline", "--end-intent", "11111111-1111-1111-1111-111111111111")
    assert code == 65
    assert "no unfinished backup 11111111" in err


def test_a_namespace_that_is_damaged_keeps_no_other_from_being_swept(
    tmp_path: Path, person: Person, volume: Volume
) -> None:
    # given two namespaces, and in one of them a point whose map is gone
    person.copies(volume.path, "--create")
    pages = list((tmp_path / "repository").rglob("maps/*/*"))
    asyncio.run(_another_namespace(person))
    for page in pages:
        page.unlink()
    # when both are maintained
    code, out, err = person.types("maintenance", "--json", "-")
    # then the other one is, and what is wrong with the first is told
    rows = {row["namespace"]: row for row in json.loads(out)}
    assert code == 65
    assert "missing" in err
    assert rows["offline"]["error"]["reason"] == "SweepBlocked"
    assert "result" not in rows["offline"]
    assert rows["shop"]["plan"].startswith("1 points")
    assert "result" in rows["shop"]
    code, out, _ = person.types("maintenance")
    assert code == 65
    assert "offline: Nothing was deleted" in out
    assert "shop: 1 points" in out


async def _another_namespace(person: Person) -> None:
    store = await open_store(f"file://{person.folder / 'repository'}")
    repository = await Repository.open_or_create(store, MasterKey.from_file(person.key))
    await backup(await repository.vault(NAMESPACE, create=True), bytes(range(256)) * 512, sequence=1)


def test_keys_are_rotated_and_all_points_stay_readable(tmp_path: Path, person: Person, volume: Volume) -> None:
    first = person.copies(volume.path, "--create", "--chunk-size", "64K")
    before = volume.path.read_bytes()
    new = tmp_path / "new.key"
    main(["key", "generate", str(new)])
    code, said, err = person.types("key", "rotate", "--new-key-file", str(new))
    assert code == 0, err
    assert "offline: data key 2" in said
    volume.noise(3 * CHUNK, CHUNK)
    assert person.types("copy", str(volume.path))[0] == 65, "the old master key opens it no more"
    person.key.write_bytes(new.read_bytes())
    second = person.copies(volume.path)
    for point, content in ((first, before), (second, volume.path.read_bytes())):
        target = tmp_path / point["point"]
        assert person.types("restore", "--point", point["point"], "--to", str(target))[0] == 0
        assert target.read_bytes() == content
    assert person.types("verify", "--full")[0] == 0
