"""The command line finds its commands without importing them, and says what went wrong in one line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli import main as cli
from orchestrator.errors import Retryable, Terminal

pytestmark = pytest.mark.quick
ROOT = Path(__file__).parents[2]


class Broken(Terminal):
    """A terminal error."""

    remedy = "Mend it."


class Busy(Retryable):
    """A passing error."""


def commands_loaded() -> set[str]:
    return {name for name in sys.modules if name.startswith("orchestrator.cli.") and ".parts" not in name}


def test_every_command_is_listed_with_its_line_and_none_is_imported(capsys: pytest.CaptureFixture[str]) -> None:
    loaded = commands_loaded()
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in [*cli.command_names(), "mover"]:
        assert name in shown
    assert commands_loaded() == loaded


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.command_names():
        assert cli.command_help(name), f"{name} has no docstring"


@pytest.mark.parametrize("arguments", [["rstore"], ["restore", "--no-such-option"], ["key"], []])
def test_wrong_usage_ends_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err + said.out


def test_a_misspelt_command_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["rstore"])
    assert "Did you mean 'restore'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (Broken("it is broken"), 65, "tidemark: it is broken. Mend it.\n"),
        (Busy("come\n back later"), 75, "tidemark: come back later\n"),
        (ExceptionGroup("two tasks", [Broken("one of them")]), 65, "tidemark: one of them. Mend it.\n"),
        (KeyboardInterrupt(), 130, "tidemark: interrupted\n"),
    ],
)
def test_an_expected_error_is_one_line_and_an_exit_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def main(self, **_: object) -> None:
            raise error

    monkeypatch.setattr(cli, "build", Failing)
    found = cli.main(["anything"])
    said = capsys.readouterr()
    assert found == code
    assert said.err == line
    assert said.out == ""


def test_what_nobody_expected_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def main(self, **_: object) -> None:
            raise ExceptionGroup("a bug", [ZeroDivisionError()])

    monkeypatch.setattr(cli, "build", Failing)
    with pytest.raises(ExceptionGroup, match="a bug"):
        cli.main(["anything"])


@pytest.mark.parametrize(("name", "shown"), [("tidemark", "tidemark"), ("kubectl-tidemark", "kubectl tidemark")])
def test_it_calls_itself_what_the_person_called_it(name: str, shown: str) -> None:
    assert cli.program_name(f"/usr/local/bin/{name}") == shown


def test_the_mover_is_reached_without_the_command_lines_libraries() -> None:
    script = (
        "import sys; sys.argv[1:] = ['mover', '--help']; from orchestrator.__main__ import main\n"
        "try: main()\nexcept SystemExit: pass\nprint(sorted(set(sys.modules) & {'typer', 'rich', 'orchestrator.cli'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "usage: tidemark mover" in done.stdout


def test_copy_starts_without_what_takes_longer_than_an_incremental() -> None:
    script = (
        "import sys; sys.argv[1:] = ['copy', '--help']; from orchestrator.__main__ import main\n"
        "print(main(), sorted(set(sys.modules) & {'typer', 'rich', 'pydantic', 'numpy'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "--extents FILE|-" in done.stdout


def test_a_copy_into_a_directory_imports_nothing_that_its_libraries_want_only_in_passing(tmp_path: Path) -> None:
    # given a file and a key
    (tmp_path / "disk").write_bytes(bytes(1000))
    (tmp_path / "key").write_text("ab" * 32)
    given = ["copy", f"{tmp_path}/disk", "--repository", f"file://{tmp_path}/r", "--key-file", f"{tmp_path}/key"]
    script = (
        f"import sys; sys.argv[1:] = {[*given, '--create']!r}; from orchestrator.__main__ import main\n"
        "print(main(), *sys.modules)"
    )
    # when it is copied
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    # then each of these, which cost milliseconds, is left out
    code, *modules = done.stdout.splitlines()[-1].split()
    assert code == "0", done.stderr
    heavy = {"ssl", "typing_extensions", "platform", "shutil", "dataclasses", "hashlib", "json", "pkgutil"}
    heavy |= {"inspect", "traceback", "tokenize", "textwrap", "locale", "gettext", "ntpath", "msgspec.inspect"}
    heavy |= {"obstore", "cryptography.hazmat.primitives.ciphers", "orchestrator.observe.log"}
    assert set(modules) & heavy == set()


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    # given a pipe that nobody reads
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator", "--help"], cwd=ROOT, stdout=out, stderr=subprocess.PIPE, text=True
        )
    assert "Traceback" not in done.stderr


def test_every_environment_variable_names_an_option_that_its_store_knows() -> None:
    from orchestrator.cli.parts.opening import ENVIRONMENT
    from orchestrator.repository import cloud

    known = {"s3": cloud.S3_OPTIONS, "gs": cloud.GS_OPTIONS, "az": cloud.AZ_OPTIONS}
    assert {name: set(options.values()) - known[name] for name, options in ENVIRONMENT.items()} == {
        name: set() for name in ENVIRONMENT
    }


def test_a_command_ends_its_process_without_the_interpreters_own_end() -> None:
    # given something that would happen while the interpreter ends, as a native thread's last call would
    script = (
        "import atexit, sys; atexit.register(print, 'the interpreter ends'); sys.argv[1:] = ['--version']\n"
        "from orchestrator.__main__ import run\nrun()"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    # then it doesn't happen, and all that was to be said is said
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"tidemark \S+\n", done.stdout)


def test_a_second_wish_to_end_does_not_disturb_what_the_first_one_began() -> None:
    with cli.orderly_end() as came:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert came == [signal.SIGTERM] * 2
