"""The image: pinned, small, not root, and what the chart and the played node take it for. No engine is needed.

Where one is (docker with a daemon, buildah), the image is built and asked for its version.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.sandbox.node.isolation import IMAGE_ENVIRONMENT
from orchestrator.sandbox.node.launching import ENTRYPOINT
from tests.charts.goldens import HERE as CHARTS
from tests.charts.goldens import ROOT, documents, only

DOCKERFILE = ROOT / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Return (instruction, arguments), continued lines joined, comments left out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def arguments(word: str) -> list[str]:
    return [rest for found, rest in instructions() if found == word]


def copied(folder: Path) -> list[str]:
    """Copy what the build's first stage copies out of the context into `folder`; return the names."""
    names = [name for line in arguments("COPY") if "--from" not in line for name in line.split()[:-1]]
    for name in names:
        source = ROOT / name
        assert passes(name), f"{name} is copied but ignored by .dockerignore"
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return names


def passes(name: str) -> bool:
    """Return whether .dockerignore lets a name of the top folder into the context; the last rule that fits counts."""
    found = True
    for rule in (ROOT / ".dockerignore").read_text().split():
        if fnmatch.fnmatch(name, rule.removeprefix("!")):
            found = rule.startswith("!")
    return found


@pytest.mark.quick
def test_the_linter_has_nothing_to_say() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    command = [str(linter), "--failure-threshold", "style", str(DOCKERFILE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.quick
def test_the_base_is_pinned_and_the_same_for_both_stages() -> None:
    [base] = [rest.removeprefix("BASE=") for rest in arguments("ARG")]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-[a-z]+|.+@sha256:[0-9a-f]{64}", base)
    assert arguments("FROM") == ["${BASE} AS build", "${BASE}"]


@pytest.mark.quick
def test_nothing_is_fetched_but_by_lock_file_and_pinned_installer() -> None:
    text = DOCKERFILE.read_text()
    assert not arguments("ADD")
    assert not re.search(r"\b(curl|wget|apt-get|git)\b", text)
    [version] = re.findall(r"uv==(\S+)", text)
    assert f"UV_VERSION := {version}" in (ROOT / "Makefile").read_text()
    assert "--frozen" in text


@pytest.mark.quick
def test_the_image_is_what_chart_and_played_node_take_it_for() -> None:
    pod = only(documents(CHARTS / "values" / "default.yaml"), "Deployment")["spec"]["template"]["spec"]
    user = f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
    assert arguments("USER")[-1] == user
    assert json.loads(arguments("ENTRYPOINT")[0]) == list(ENTRYPOINT)
    assert json.loads(arguments("CMD")[0]) == [pod["containers"][0]["args"][0]]
    played = {f"{name}={value}" for name, value in IMAGE_ENVIRONMENT.items() if name != "HOME"}
    assert played <= set(arguments("ENV")[0].split())


@pytest.mark.quick
def test_the_context_holds_what_is_copied_and_nothing_else() -> None:
    names = {name for line in arguments("COPY") if "--from" not in line for name in line.split()[:-1]}
    context = {path.name for path in ROOT.iterdir() if passes(path.name)}
    assert context == names
    for secret in (".git", ".env", "master.key", "tests", ".venv"):
        assert not passes(secret)


@pytest.mark.real
def test_what_is_copied_and_locked_is_enough_to_run(tmp_path: Path) -> None:
    """The build's own steps without an engine: no test tool, no extra, no file of the checkout is there to help."""
    source, home = tmp_path / "src", tmp_path / "opt"
    source.mkdir()
    copied(source)
    [run] = arguments("RUN")
    sync = run.rpartition("UV_PROJECT_ENVIRONMENT=/opt/tidemark ")[2].split()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=60)
    # With the machine's cache of packages, and without half a minute of compiling: neither changes what is installed.
    kept = (word for word in sync[1:] if word not in {"--no-cache", "--compile-bytecode"})
    sync = [str(Path(sys.executable).parent / "uv"), *kept]
    environment = {**os.environ, "UV_PROJECT_ENVIRONMENT": str(home)}
    environment.pop("VIRTUAL_ENV", None)
    done = subprocess.run(sync, cwd=source, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(source)

    program = str(home / "bin" / "tidemark")
    for words in (["--version"], ["controller", "--help"], ["mover", "backup", "--help"], ["doctor", "--help"]):
        done = subprocess.run(
            [program, *words],
            cwd="/",
            env={"PATH": "/usr/bin"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, (words, done.stderr)
    assert not (home / "lib" / "python3.11" / "site-packages" / "pytest").exists()


def builders() -> list[list[str]]:
    """Return the commands that can build an image here."""
    found = []
    if shutil.which("buildah"):
        found.append(["buildah", "build"])
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0:
        found.append(["docker", "build"])
    return found


@pytest.mark.real
@pytest.mark.timeout(1500)
def test_it_builds_where_a_builder_is() -> None:
    found = builders()
    if not found:
        pytest.skip("this machine has no builder of images")
    for builder in found:
        subprocess.run([*builder, "-t", "tidemark:test", str(ROOT)], check=True, timeout=800)
