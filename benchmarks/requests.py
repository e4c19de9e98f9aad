"""What points cost in requests to a real S3 server (versitygw; `make real-tools` builds it)."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks._bench import Bench, places, scratch
from benchmarks._report import Row, size
from benchmarks._volume import change, parse_size
from orchestrator.repository.cloud import open_cloud_store
from orchestrator.repository.store import Store

READY = 60


def run(args: Namespace) -> dict[str, Any]:
    """Measure a volume of `args.size` (default 4G), half allocated."""
    program = _program()
    if program is None:
        return {"missing": "versitygw is not here: run `make real-tools`"}
    with scratch(next(iter(places(args).values()))) as folder, _server(program, folder) as endpoint:

        def store() -> Store:
            options = {"access_key_id": "k", "secret_access_key": "secretkey", "endpoint": endpoint}
            return open_cloud_store("s3", "bucket", "bench", {**options, "region": "us-east-1"})

        bench = Bench(folder, parse_size(args.size or "4G"))
        made, full = bench.copy("s3", store=store())
        base = made.manifest.record.point_id
        restore = bench.restore("s3", made, folder / "back", store=store())
        lines = [f"{at} {length}" for at, length in change(bench.volume, bench.ranges, 0.01, 1)]
        increment = bench.copy("s3", lines, base, store=store())[1]
        unchanged = bench.copy("s3", [], base, store=store())[1]
        return {"volume": bench.size, "full": full, "restore": restore, "increment": increment, "noChange": unchanged}


def _program() -> str | None:
    folders = [os.environ.get("KUBEBUILDER_ASSETS", ""), str(Path.home() / ".cache/tidemark/tools/bin")]
    return shutil.which("versitygw", path=os.pathsep.join(filter(None, folders))) or shutil.which("versitygw")


@contextlib.contextmanager
def _server(program: str, folder: Path) -> Iterator[str]:
    (folder / "s3" / "bucket").mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "ROOT_ACCESS_KEY": "k", "ROOT_SECRET_KEY": "secretkey"}
    command = [program, "--port", f"127.0.0.1:{port}", "posix", str(folder / "s3")]
    with subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            yield f"http://127.0.0.1:{port}"  # the client's own retries wait until it listens
        finally:
            server.terminate()


def rows(figures: dict[str, Any]) -> list[Row]:
    """Return the table's lines."""
    if "missing" in figures:
        return [Row("requests to S3", "", figures["missing"])]
    full, restore, unchanged = figures["full"], figures["restore"], figures["noChange"]
    gib = full["written"] / 2**30
    puts, gets, total = full["requests"]["put"], restore["requests"]["get"], sum(unchanged["requests"].values())
    told = f"{puts} for {size(full['written'])}: {puts / gib:.1f} per GiB, the point's own six among them"
    return [
        Row("PUTs of a full", "<= 25 per GiB stored", told, puts <= 25 * gib),
        Row(
            "GETs of its restore",
            "<= 25 per GiB + 20",
            f"{gets} for {size(full['written'])}",
            gets <= 25 * gib + 20,
        ),
        Row("a no-change point", "<= 12", f"{total}: {_told(unchanged['requests'])}", total <= 12),
        Row(
            "an increment of 1 %",
            "",
            f"{sum(figures['increment']['requests'].values())}: {_told(figures['increment']['requests'])}, "
            f"{size(figures['increment']['uploaded'])} stored",
        ),
    ]


def _told(requests: dict[str, int]) -> str:
    return ", ".join(f"{count} {verb}" for verb, count in sorted(requests.items()))
