"""What a mover is told on its command line, and the configuration it reads from the mounted Secret."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

import msgspec

from orchestrator.api.mover import CONFIG_KEY, CONFIG_MOUNT, DEVICE_PATH, TERMINATION_LOG, MoverConfig, Task
from orchestrator.mover.errors import MoverConfigBad


class Arguments(msgspec.Struct, frozen=True):
    """The command line."""

    task: Task
    point: str
    shard: int
    config: Path
    device: Path
    termination_log: Path


def parse(arguments: Sequence[str]) -> Arguments:
    """Parse the command line; wrong usage leaves by SystemExit(2) with a line on stderr."""
    parser = argparse.ArgumentParser(
        prog="tidemark mover",
        description="Copy blocks between a volume and the repository (what a Job's pod runs).",
        # Of a fixed width: else argparse asks `shutil` at every option, which loads archivers.
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=100),
    )
    parser.add_argument("task", choices=get_args(Task))
    parser.add_argument("--point", required=True, help="uid of the RecoveryPoint or Restore; the namespace's id else")
    parser.add_argument("--shard", type=int, default=None, help="which part of the plan (default: the Job's index)")
    parser.add_argument("--config", type=Path, default=Path(CONFIG_MOUNT) / CONFIG_KEY, help="the mounted Secret")
    parser.add_argument("--device", type=Path, default=Path(DEVICE_PATH), help="the raw volume")
    parser.add_argument("--termination-log", type=Path, default=Path(TERMINATION_LOG), help="where the result goes")
    found = parser.parse_args(list(arguments))
    shard = found.shard if found.shard is not None else int(os.environ.get("JOB_COMPLETION_INDEX") or 0)
    if shard < 0:
        parser.error(f"shard {shard} can't be")
    return Arguments(
        task=cast(Task, found.task),
        point=found.point,
        shard=shard,
        config=found.config,
        device=found.device,
        termination_log=found.termination_log,
    )


def read_config(arguments: Arguments) -> MoverConfig:
    """Read and check the configuration; MoverConfigBad names what is wrong and never a value."""
    try:
        raw = arguments.config.read_bytes()
    except OSError as error:
        raise MoverConfigBad(f"can't read {arguments.config}: {os.strerror(error.errno or 0)}") from error
    try:
        config = msgspec.json.decode(raw, type=MoverConfig)
    except msgspec.ValidationError as error:
        raise MoverConfigBad(f"{arguments.config}: {error}") from None  # its text names the field, not the value
    except msgspec.DecodeError:
        raise MoverConfigBad(f"{arguments.config} is not JSON") from None
    if config.task != arguments.task:
        raise MoverConfigBad(f"{arguments.config} is for {config.task}, not for {arguments.task}")
    if config.point != arguments.point:
        raise MoverConfigBad(f"{arguments.config} is for {config.point}, not for {arguments.point}")
    if not 1 <= config.readers <= 64:
        raise MoverConfigBad(f"{arguments.config}: {config.readers} readers; 1 to 64 are possible")
    if config.bandwidth_limit is not None and config.bandwidth_limit <= 0:
        raise MoverConfigBad(f"{arguments.config}: a bandwidth limit of {config.bandwidth_limit} would never finish")
    if config.iops_limit is not None and config.iops_limit <= 0:
        raise MoverConfigBad(f"{arguments.config}: a limit of {config.iops_limit} operations would never finish")
    return config
