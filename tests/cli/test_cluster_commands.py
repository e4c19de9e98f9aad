"""What a person types at a cluster: the object that is made, the line that is said, the code that a script sees."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer

from orchestrator.api.foreign.core import PersistentVolumeClaim
from orchestrator.api.meta import K8sObject
from orchestrator.api.tidemark import Backup, BackupPolicy, BackupRepository, RecoveryPoint, Restore
from orchestrator.cli.main import command_names, main
from orchestrator.cli.parts.instant import read_instant
from orchestrator.demo import install
from orchestrator.kube.client import Client
from tests.cli.clusters import SETTINGS, Cluster, install_all, serving
from tests.waiting import SHORT

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class Person:
    """Types commands at one cluster."""

    def __init__(self, cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
        self.cluster, self.capsys = cluster, capsys

    def types(self, *command: str, way_in: str = "admin") -> tuple[int, str, str]:
        """Run a command; return exit code, stdout and stderr."""
        self.capsys.readouterr()
        code = main([*command, "--kubeconfig", self.cluster.kubeconfig(way_in)])
        said = self.capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    def makes(self, *command: str) -> dict[str, Any]:
        """Run a command that makes an object, and return the object."""
        code, out, err = self.types(*command, "-o", "json")
        assert code == 0, err
        made: dict[str, Any] = json.loads(out)
        return made


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with serving(tmp_path_factory.mktemp("cluster")) as running:
        running.do(install_all)
        running.do(_content)
        yield running


@pytest.fixture
def person(cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Person:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    return Person(cluster, capsys)


async def _content(client: Client) -> None:
    """A namespace `shop` with a claim, a policy of it, and three finished points of which retention keeps two."""
    await install.namespace(client, "shop")
    await install.namespace(client, "empty")
    claim = {
        "metadata": {"name": "database", "namespace": "shop"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    await client.create_raw(PersistentVolumeClaim.RESOURCE, claim, PersistentVolumeClaim)
    policy = {"metadata": {"name": "hourly", "namespace": "shop"}, "spec": {"retention": {"keepLast": 2}}}
    judge = await client.create_raw(BackupPolicy.RESOURCE, policy, BackupPolicy)
    backup = {"metadata": {"name": "hourly-1", "namespace": "shop"}, "spec": {"policy": "hourly"}}
    await client.create_raw(Backup.RESOURCE, backup, Backup)
    for number in (1, 2, 3):
        taken = NOW - timedelta(hours=4 - number)
        point = {
            "metadata": {"name": f"point-{number}", "namespace": "shop"},
            "spec": {
                "pvcName": "database",
                "pvcUid": "u-1",
                "policy": {"name": "hourly", "uid": judge.uid},
                "backup": "hourly-1",
                "slot": taken.isoformat(),
            },
        }
        await client.create_raw(RecoveryPoint.RESOURCE, point, RecoveryPoint)
        status = {"phase": "Completed", "snapshotTime": taken.isoformat(), "sequence": number, "mode": "delta"}
        await client.merge_patch(RecoveryPoint, f"point-{number}", "shop", {"status": status}, subresource="status")


# Restore: what is made


@pytest.mark.parametrize(
    ("options", "spec"),
    [
        (
            ["--point", "point-2", "--to-pvc", "then"],
            {"source": {"point": "point-2"}, "target": {"pvcName": "then"}},
        ),
        (
            ["--pvc", "database", "--as-of", "2026-03-01T10:30:00+01:00", "--name-prefix", "back-"],
            {
                "source": {"pvc": {"pvc": "database", "time": "2026-03-01T09:30:00Z"}},
                "target": {"namePrefix": "back-"},
            },
        ),
        (
            ["--pvc", "gone", "--from-repository", "vault", "--no-read-back"],
            {"source": {"pvc": {"pvc": "gone", "repository": "vault"}}, "target": {}, "readBack": False},
        ),
        (
            ["--backup", "hourly-1", "--to-namespace", "empty", "--map-class", "slow=fast", "--map-class", "a=b"],
            {
                "source": {"backup": "hourly-1"},
                "target": {"namespace": "empty", "classMapping": {"slow": "fast", "a": "b"}},
            },
        ),
        (
            ["--repository-point", "3f2a", "--from-repository", "vault", "--storage-class", "fast"],
            {
                "source": {"repositoryPoint": {"repository": "vault", "point": "3f2a"}},
                "target": {"storageClassName": "fast"},
            },
        ),
    ],
)
def test_a_restore_is_made_as_it_was_asked_for(person: Person, options: list[str], spec: dict[str, Any]) -> None:
    made = person.makes("restore", *options, "-n", "shop")
    stored = person.cluster.do(lambda client: client.get(Restore, made["metadata"]["name"], "shop"))
    assert stored.to_manifest()["spec"] == spec


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "say what to restore"),
        (["--point", "a", "--pvc", "b"], "--point and --pvc exclude each other"),
        (["--point", "a", "--as-of", "2h"], "give --pvc NAME too"),
        (["--pvc", "a", "--as-of", "yesterday"], "is not a time"),
        (["--pvc", "a", "--as-of", "2999-01-01"], "is in the future"),
        (["--repository-point", "a"], "give --from-repository REPO too"),
        (["--point", "a", "--from-repository", "vault"], "goes with --repository-point"),
        (["--backup", "a", "--to-pvc", "b"], "use --name-prefix"),
        (["--point", "a", "--to-pvc", "b", "--name-prefix", "c"], "says the whole name already"),
        (["--pvc", "a", "--map-class", "slow"], "is not OLD=NEW"),
        (["--pvc", "a", "--map-class", "slow=fast", "--map-class", "slow=faster"], "mapped twice"),
        (["--pvc", "Data_Base"], "can't be a name"),
        (["--point", "a", "--to", "file"], "works on a repository itself"),
        (["--list"], "works on a repository itself"),
        (["--point", "a", "--writers", "2"], "works on a repository itself"),
        (["--pvc", "a", "--repository", "file:///r", "--key-file", "k"], "needs a cluster"),
        (["--point", "a", "-o", "yaml"], "no output format"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_is_made(
    person: Person, options: list[str], said: str
) -> None:
    before = person.cluster.do(lambda client: client.list(Restore))[0]
    code, out, err = person.types("restore", *options)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())
    assert len(person.cluster.do(lambda client: client.list(Restore))[0]) == len(before)


def test_one_half_of_a_repositorys_address_is_no_cluster(person: Person) -> None:
    code = main(["restore", "--repository", "file:///r", "--list"])
    assert code == 2
    assert "give both --repository URL and --key-file FILE" in person.capsys.readouterr().err


def test_points_of_a_repository_are_told_as_restore_tells_them_without_a_cluster(
    person: Person, tmp_path: Path
) -> None:
    # given a repository that a resource names, with a point of which the cluster knows nothing
    url, key, volume = f"file://{tmp_path / 'stored'}", tmp_path / "key", tmp_path / "volume"
    volume.write_bytes(b"x" * 65536)
    key.write_text(person.cluster.do(lambda client: install.repository(client, SETTINGS, "stored", url)))
    try:
        where = ["--repository", url, "--key-file", str(key)]
        assert main(["copy", str(volume), *where, "--create"]) == 0
        person.capsys.readouterr()
        assert main(["restore", "--list", "-o", "json", *where]) == 0
        wanted = json.loads(person.capsys.readouterr().out)
        # when its points are asked for by the resource's name, then the same is told
        assert len(wanted) == 1
        assert json.loads(person.types("get", "points", "--repository", "stored", "-o", "json")[1]) == wanted
        assert wanted[0]["point"] in person.types("get", "points", wanted[0]["name"], "--repository", "stored")[1]
        code, _, err = person.types("get", "points", "nosuch", "--repository", "stored")
        assert (code, "holds no point nosuch" in err) == (65, True)
    finally:
        made = person.cluster.do(lambda client: client.get(BackupRepository, "stored"))
        person.cluster.do(lambda client: client.delete(BackupRepository, "stored", uid=made.uid))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["restore", "--point", "nosuch", "-n", "shop"], "There is no RecoveryPoint shop/nosuch"),
        (["restore", "--backup", "nosuch", "-n", "shop"], "`tidemark get backups -n shop`"),
        (["restore", "--point", "point-1", "-n", "shop"], "Claim shop/database exists already"),
        (["restore", "--pvc", "a", "--to-pvc", "database", "-n", "shop"], "Claim shop/database exists already"),
        (["restore", "--pvc", "a", "-n", "nosuch"], "There is no namespace nosuch"),
        (["backup", "create", "--policy", "nosuch", "-n", "shop"], "There is no BackupPolicy shop/nosuch"),
        (["backup", "create", "hourly-1", "--pvc", "a", "-n", "shop"], "Backup shop/hourly-1 exists already"),
        (["get", "points", "nosuch", "-n", "shop"], "There is no RecoveryPoint nosuch"),
        (["get", "points", "--repository", "nosuch"], "There is no BackupRepository nosuch"),
        (["prune", "--dry-run", "--policy", "nosuch"], "There is no BackupPolicy nosuch"),
        (["prune", "--point", "nosuch", "-n", "shop", "--yes"], "There is no RecoveryPoint shop/nosuch"),
    ],
)
def test_what_is_not_there_or_there_already_is_one_line_with_a_remedy(
    person: Person, command: list[str], said: str
) -> None:
    code, out, err = person.types(*command)
    assert (code, out) == (65, "")
    assert err.startswith("tidemark: ")
    assert err.count("\n") == 1
    assert said in err


# Waiting


def _when_made(cluster: Cluster, kind: type[K8sObject], act: Callable[[Client, str], Any]) -> threading.Thread:
    """Do something, in a thread, to the next object of a kind that appears in `shop`."""
    there = {obj.name for obj in cluster.do(lambda client: client.list(kind, "shop"))[0]}

    async def watch(client: Client) -> None:
        async with asyncio.timeout(SHORT):
            while True:
                for obj in (await client.list(kind, "shop"))[0]:
                    if obj.name not in there:
                        await act(client, obj.name)
                        return
                await asyncio.sleep(0.05)

    thread = threading.Thread(target=lambda: cluster.do(watch))
    thread.start()
    return thread


def _status(kind: type[K8sObject], **status: Any) -> Callable[[Client, str], Any]:
    body = {"status": status}
    return lambda client, name: client.merge_patch(kind, name, "shop", body, subresource="status")


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (
            {"phase": "Completed", "targetNamespace": "shop", "targetPvc": "then", "point": "point-2"},
            0,
            "claim shop/then holds point-2",
        ),
        ({"phase": "Completed", "children": ["a", "b"]}, 0, "completed: 2 volumes"),
        ({"phase": "Failed", "reason": "WrongKey", "message": "The key is wrong."}, 65, "WrongKey: The key is wrong."),
        ({"phase": "Cancelled"}, 65, "Cancelled: no reason was given"),
    ],
)
def test_waiting_ends_with_the_restore_and_says_how_it_went(
    person: Person, status: dict[str, Any], code: int, said: str
) -> None:
    thread = _when_made(person.cluster, Restore, _status(Restore, **status))
    ended, out, err = person.types("restore", "--point", "point-2", "--to-pvc", "then", "-n", "shop", "--wait")
    thread.join()
    assert ended == code
    assert said in (out if code == 0 else err)


def test_waiting_shows_progress_and_what_keeps_it_back_and_ends_in_time(person: Person) -> None:
    held = {"type": "Progressing", "status": "False", "reason": "PointNotReady", "message": "still being made"}
    status = {"phase": "Filling", "progress": "45%", "conditions": [held]}
    thread = _when_made(person.cluster, Restore, _status(Restore, **status))
    code, out, err = person.types("restore", "--pvc", "x", "-n", "shop", "--wait", "--timeout", "9.6")
    thread.join()
    assert (code, out) == (75, "")
    assert "Filling 45% PointNotReady: still being made" in err
    assert "has not ended within 10 s" in err


def test_a_restore_deleted_while_waited_for_is_said(person: Person) -> None:
    async def remove(client: Client, name: str) -> None:
        made = await client.get(Restore, name, "shop")
        await client.delete(Restore, name, "shop", uid=made.uid)

    thread = _when_made(person.cluster, Restore, remove)
    code, _, err = person.types("restore", "--pvc", "x", "-n", "shop", "--wait")
    thread.join()
    assert code == 65
    assert "was deleted while it was waited for" in err


def test_a_backup_is_made_and_waited_for(person: Person) -> None:
    thread = _when_made(person.cluster, Backup, _status(Backup, phase="Completed", completed=1))
    command = ["backup", "create", "--pvc", "database", "--pvc", "files", "--expire-after", "7d", "--full", "--wait"]
    code, out, err = person.types(*command, "-n", "shop", "-o", "json")
    thread.join()
    assert code == 0, err
    made = json.loads(out)
    selection = {"volumes": {"names": ["database", "files"]}}
    assert made["spec"] == {"selection": selection, "full": True, "expireAfter": "7d"}
    assert made["status"]["phase"] == "Completed"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give either --policy or --pvc"),
        (["--policy", "a", "--pvc", "b"], "give either --policy or --pvc"),
        (["--policy", "a", "--repository", "b"], "a policy names its repository itself"),
        (["--pvc", "a", "--expire-after", "soon"], "is not a duration"),
        (["--pvc", "A"], "can't be a name"),
    ],
)
def test_a_backup_that_says_too_little_or_too_much_is_refused(person: Person, options: list[str], said: str) -> None:
    code, _, err = person.types("backup", "create", *options)
    assert code == 2
    assert said in " ".join(err.split())


# Get and prune


@pytest.mark.parametrize(
    ("what", "shown"),
    [
        ("points", "point-3"),
        ("rp", "database"),
        ("policies", "hourly"),
        ("backups", "hourly-1"),
        ("repositories", "Nothing found."),
    ],
)
def test_each_kind_can_be_shown(person: Person, what: str, shown: str) -> None:
    code, out, _ = person.types("get", what, "-n", "shop")
    assert code == 0
    assert shown in out


def test_a_dry_run_says_what_goes_and_why_and_changes_nothing(person: Person) -> None:
    rows: list[dict[str, Any]] = json.loads(person.types("prune", "--dry-run", "-n", "shop", "-o", "json")[1])
    verdicts = {row["point"]: row["verdict"] for row in rows}
    assert verdicts == {"point-1": "drop", "point-2": "keep", "point-3": "keep"}
    code, out, _ = person.types("prune", "--dry-run", "-n", "shop", "--policy", "hourly")
    assert code == 0
    assert "VERDICT" in out
    points = person.cluster.do(lambda client: client.list(RecoveryPoint, "shop"))[0]
    assert not any(point.spec.prune for point in points)
    assert person.types("prune", "--dry-run", "-n", "empty")[1] == "No points that a policy judges.\n"


def test_pruning_a_point_asks_the_controller_for_it(person: Person) -> None:
    code, out, _ = person.types("prune", "--point", "point-1", "-n", "shop", "--yes")
    assert code == 0
    assert "will be removed by the controller" in out
    assert person.cluster.do(lambda client: client.get(RecoveryPoint, "point-1", "shop")).spec.prune


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give either --dry-run or --point"),
        (["--dry-run", "--point", "a"], "give either --dry-run or --point"),
        (["--point", "a", "--policy", "b"], "goes with --dry-run"),
        (["--point", "a", "--repository", "file:///r"], "give both --repository URL and --key-file FILE"),
        (["--dry-run", "--repository", "file:///r", "--key-file", "k"], "policies are in a cluster"),
    ],
)
def test_prune_asks_before_it_guesses(person: Person, options: list[str], said: str) -> None:
    code, _, err = person.types("prune", *options)
    assert code == 2
    assert said in " ".join(err.split())


# Ways in that are none


@pytest.mark.parametrize(
    "command",
    [
        ["get", "points"],
        ["backup", "create", "--pvc", "a"],
        ["restore", "--pvc", "a"],
        ["prune", "--dry-run"],
    ],
)
@pytest.mark.parametrize(
    ("way_in", "code", "said"),
    [
        ("nosuch", 65, "There is no kubeconfig"),
        ("nonsense", 65, "is not usable"),
        ("dead", 75, "No usable answer from the API server https://127.0.0.1:"),
        ("stranger", 65, "does not accept the kubeconfig's credentials"),
        ("nobody", 65, "You may not "),
    ],
)
def test_each_way_of_not_getting_in_has_its_own_sentence(
    person: Person, command: list[str], way_in: str, code: int, said: str
) -> None:
    folder = person.cluster.folder
    (folder / "nonsense").write_text("clusters: [")
    admin = (folder / "admin").read_text()
    (folder / "dead").write_text(admin.replace(person.cluster.url, "https://127.0.0.1:9"))
    token = next(line for line in admin.splitlines() if "token:" in line)
    (folder / "stranger").write_text(admin.replace(token, token + "x"))
    found, out, err = person.types(*command, way_in=way_in)
    assert (found, out) == (code, "")
    assert said in err
    assert err.count("\n") == 1, err


def test_without_any_kubeconfig_it_says_so(
    person: Person, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert main(["get", "points"]) == 65
    assert "There is no kubeconfig" in capsys.readouterr().err


def test_a_cluster_without_tidemark_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    with serving(tmp_path) as bare:
        person = Person(bare, capsys)
        for command in (["get", "points"], ["backup", "create", "--pvc", "a"], ["restore", "--point", "a"]):
            code, _, err = person.types(*command)
            assert code == 65
            assert "Tidemark is not installed there" in err
        code, out, _ = person.types("doctor", "-o", "json")
        verdicts = {(found["check"], found["verdict"]) for found in json.loads(out)}
        assert code == 1
        assert {("definitions", "failed"), ("namespace", "failed"), ("controller", "failed")} <= verdicts


# Times


@pytest.fixture
def far_away(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose local time is not UTC."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "instant", "assumed"),
    [
        ("2026-03-01T10:00:00Z", NOW - timedelta(hours=2), False),
        ("2026-03-01T11:00+01:00", NOW - timedelta(hours=2), False),
        ("2026-03-01T10:00", NOW - timedelta(hours=2), True),
        ("2026-03-01", datetime(2026, 3, 1, tzinfo=UTC), True),
        ("2h", NOW - timedelta(hours=2), False),
        ("1d12h ago", NOW - timedelta(hours=36), False),
        ("2026-03-01T12:00:30Z", NOW + timedelta(seconds=30), False),
    ],
)
@pytest.mark.usefixtures("far_away")
def test_a_time_is_read_as_people_write_it_wherever_they_are(text: str, instant: datetime, assumed: bool) -> None:
    assert read_instant(text, NOW, "--as-of") == (instant, assumed)


@pytest.mark.parametrize("text", ["", "noon", "2h30", "2026-13-01", "2026-03-01T13:00Z", "0001-01-01T00:00+14:00"])
def test_what_is_no_time_or_not_yet_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        read_instant(text, NOW, "--as-of")


def test_an_assumed_zone_is_said(person: Person) -> None:
    _, _, err = person.types("restore", "--pvc", "x", "--as-of", "2026-03-01T10:00", "-n", "shop")
    assert "as of 2026-03-01T10:00:00Z (no time zone was given: read as UTC)" in err


# Help


def test_no_command_needs_the_heavy_libraries_to_explain_itself() -> None:
    # given a fresh interpreter that prints every command's help
    script = (
        "import sys\nfrom orchestrator.cli.main import main\n"
        f"for line in {[[], *([name] for name in command_names()), ['backup', 'create']]!r}:\n"
        "    assert main([*line, '--help']) == 0, line\n"
        "    print('####', *line)\n"
        "heavy = {'numpy', 'rich', 'kubernetes_asyncio', 'aiohttp', 'grpclib', 'obstore', 'cryptography'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stdout.count("####") == len(command_names()) + 2


def test_the_listing_tells_each_commands_whole_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    commands = capsys.readouterr().out.partition("Commands:")[2]
    assert "restore" in commands
    assert "..." not in commands
