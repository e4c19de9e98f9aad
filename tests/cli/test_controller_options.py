"""Whatever an installation may set reaches the controller's settings, from a flag or from the environment."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from orchestrator import app as house
from orchestrator.cli import controller
from orchestrator.config import Settings

pytestmark = pytest.mark.quick

FIXED = {
    "mover_command", "finalizer_bound_s", "cbt_streams_per_driver", "extra",
    "pod_overdue_s",
}  # fmt: skip
"""Settings that no installation sets: part of the build or the format, or bounds with room for every use."""

GIVEN = {
    "max_movers_per_node": ("--max-movers-per-node", "TIDEMARK_MAX_MOVERS_PER_NODE", "3", 3),
    "max_movers_per_driver": ("--max-movers-per-driver", "TIDEMARK_MAX_MOVERS_PER_DRIVER", "5", 5),
    "max_movers_per_repository": ("--max-movers-per-repository", "TIDEMARK_MAX_MOVERS_PER_REPOSITORY", "6", 6),
    "mover_memory": ("--mover-memory", "TIDEMARK_MOVER_MEMORY", "1Gi", "1Gi"),
    "mover_cpu": ("--mover-cpu", "TIDEMARK_MOVER_CPU", "500m", "500m"),
    "mover_attempts": ("--mover-attempts", "TIDEMARK_MOVER_ATTEMPTS", "2", 2),
    "snapshot_timeout_s": ("--snapshot-timeout", "TIDEMARK_SNAPSHOT_TIMEOUT", "30", 30.0),
    "clone_timeout_s": ("--clone-timeout", "TIDEMARK_CLONE_TIMEOUT", "40", 40.0),
    "mover_stall_s": ("--mover-stall", "TIDEMARK_MOVER_STALL", "90", 90.0),
    "maintenance_deadline_s": ("--maintenance-deadline", "TIDEMARK_MAINTENANCE_DEADLINE", "600", 600.0),
}


def started(monkeypatch: pytest.MonkeyPatch, arguments: list[str], env: dict[str, str]) -> Settings:
    """Return the settings that the command starts the house with."""
    taken: list[Settings] = []

    async def run(settings: Settings, **_: Any) -> None:
        taken.append(settings)

    monkeypatch.setattr(house, "run", run)  # the door where the command ends: what is behind it is tested elsewhere
    monkeypatch.setattr("orchestrator.observe.log.setup", lambda *_args, **_kwargs: None)
    done = CliRunner().invoke(controller.app, arguments, env=env)
    assert done.exit_code == 0, done.output
    return taken[0]


def test_each_limit_can_be_given_as_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [word for flag, _, text, _ in GIVEN.values() for word in (flag, text)]
    settings = started(monkeypatch, arguments, {})
    assert {name: getattr(settings, name) for name in GIVEN} == {name: row[3] for name, row in GIVEN.items()}


def test_each_limit_can_be_given_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = started(monkeypatch, [], {env: text for _, env, text, _ in GIVEN.values()})
    assert {name: getattr(settings, name) for name in GIVEN} == {name: row[3] for name, row in GIVEN.items()}


def test_without_anything_given_the_defaults_of_the_settings_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started(monkeypatch, [], {}) == Settings()


def test_every_setting_is_an_option_or_fixed_on_purpose() -> None:
    """Without this a new setting is one that nobody can set."""
    source = Path(controller.__file__).read_text(encoding="utf-8")
    passed = set(re.findall(r"^        (\w+)=", source, re.MULTILINE))
    assert {field.name for field in fields(Settings)} - passed == FIXED


@pytest.mark.parametrize("text", ["", "lots", "0", "0Mi", "-1", "1 Gi"])
def test_a_quantity_that_no_pod_could_have_is_refused_at_the_start(text: str) -> None:
    done = CliRunner().invoke(controller.app, ["--mover-memory", text])
    assert done.exit_code == 2
    assert "Traceback" not in done.output


def test_the_options_are_what_the_chart_sets() -> None:
    command: Any = typer.main.get_command(controller.app)
    known = {option for parameter in command.params for option in parameter.opts}
    chart = (Path(__file__).parents[2] / "charts/tidemark/templates/deployment.yaml").read_text(encoding="utf-8")
    used = set(re.findall(r"^ +- (--[a-z-]+)", chart, re.MULTILINE))
    assert {row[0] for row in GIVEN.values()} <= used <= known
