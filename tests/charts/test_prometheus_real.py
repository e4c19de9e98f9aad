"""Every query of every panel, and every alert, run on a real Prometheus that scrapes our real page."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.api.real_apiserver import find_tool, free_port
from tests.charts.test_dashboards import RULES, expressions, rules
from tests.observe.test_metrics import full
from tests.web.test_server import make, serving

pytestmark = pytest.mark.real

VARIABLES = {"$namespace": ".*", "$policy": ".*", "$__rate_interval": "1m"}


def runnable(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


async def ask(session: aiohttp.ClientSession, path: str, **parameters: str) -> Any:
    async with session.get(f"/api/v1/{path}", params=parameters) as answer:
        body = await answer.json()
        assert body["status"] == "success", f"{parameters}: {body.get('error')}"
        return body["data"]


@contextlib.asynccontextmanager
async def prometheus(tool: Path, folder: Path, target: int) -> AsyncIterator[aiohttp.ClientSession]:
    """Run a Prometheus that scrapes `target` each second, until it has scraped some values."""
    port = free_port()
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "tidemark", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [str(tool), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session, asyncio.timeout(60):
                while True:
                    with contextlib.suppress(aiohttp.ClientError, AssertionError):
                        seen = await ask(session, "query", query="count_over_time(tidemark_build_info[1m]) > 3")
                        if seen["result"]:
                            break
                    assert child.returncode is None, (folder / "log").read_text()[-2000:]
                    await asyncio.sleep(0.2)  # a real process: there is nothing to await
                yield session
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
            await child.wait()


async def test_every_query_of_the_dashboard_and_every_alert_runs(tmp_path: Path) -> None:
    # given
    tool = find_tool("prometheus")
    if tool is None:
        pytest.skip("needs prometheus (Debian: prometheus)")
    web = make(full().registry)
    async with serving(web), prometheus(tool, tmp_path, web.port) as session:
        # when
        empty = []
        for where, expression in expressions():
            if expression.startswith("label_values"):
                continue
            result = await ask(session, "query", query=runnable(expression))
            if not result["result"]:
                empty.append(where)
        groups = (await ask(session, "rules"))["groups"]
        broken = await ask(session, "query", query="max by (namespace, pvc, policy) (tidemark_rpo_breached)")
    # then every panel showed something, and of the alerts those that the page gives cause for
    alerts = {rule["alert"] for rule in rules()}
    assert set(empty) <= alerts | {"Recovery points by phase"}, "completed points are left out there"
    assert {rule["name"] for group in groups for rule in group["rules"]} == alerts
    assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
    assert broken["result"][0]["metric"] == {"namespace": "shop", "pvc": "data", "policy": "nightly"}
    assert "TidemarkRPOBreached" not in empty
    assert "TidemarkFallback" not in empty, "the first event of a counter counts"
    assert "TidemarkControllerDown" in empty
