"""Probes against a real server on loopback: started, ready, and when a container must be ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web

from orchestrator.sandbox.node.probes import ask, not_played, port_of, watch
from tests.waiting import SHORT

pytestmark = pytest.mark.asyncio


class Program:
    """A server whose answers a test sets."""

    def __init__(self) -> None:
        self.status = 200
        self.asked: list[str] = []
        self.port = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        return web.Response(status=self.status, text="not yet" if self.status != 200 else "ok")

    def probe(self, path: str = "/healthz", **more: float) -> dict[str, object]:
        return {"httpGet": {"path": path, "port": "web"}, "periodSeconds": 0.01, "timeoutSeconds": 5, **more}

    def container(self, **probes: object) -> dict[str, object]:
        return {"name": "c", "ports": [{"name": "web", "containerPort": self.port}], **probes}


@pytest_asyncio.fixture
async def program() -> AsyncIterator[Program]:
    made = Program()
    app = web.Application()
    app.router.add_get("/{at:.*}", made.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()


class Heard:
    """What was told, and a way to wait for it."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bool]] = []
        self.wrong: list[str] = []
        self.news = asyncio.Event()

    def tell(self, what: str, holds: bool) -> None:
        self.told.append((what, holds))
        self.news.set()

    async def unhealthy(self, kind: str, wrong: str) -> None:
        self.wrong.append(f"{kind}: {wrong}")
        self.news.set()

    async def until(self, entry: tuple[str, bool]) -> None:
        async with asyncio.timeout(SHORT):
            while entry not in self.told:
                self.news.clear()
                await self.news.wait()


async def test_readiness_comes_and_goes_without_ending_the_container(program: Program) -> None:
    heard = Heard()
    container = program.container(readinessProbe=program.probe("/readyz", failureThreshold=2))
    watching = asyncio.create_task(watch(container, "127.0.0.1", heard.tell, heard.unhealthy))

    await heard.until(("ready", True))
    program.status = 503
    await heard.until(("ready", False))

    assert not watching.done()
    assert heard.told == [("started", True), ("ready", True), ("ready", False)]
    assert heard.wrong[0] == "Readiness: HTTP probe failed with statuscode: 503 not yet"
    watching.cancel()


async def test_a_dead_container_is_to_be_ended_after_its_threshold(program: Program) -> None:
    heard = Heard()
    program.status = 500
    container = program.container(livenessProbe=program.probe(failureThreshold=3), readinessProbe=program.probe())

    async with asyncio.timeout(SHORT):
        assert await watch(container, "127.0.0.1", heard.tell, heard.unhealthy) == "liveness"

    assert sum(line.startswith("Liveness") for line in heard.wrong) == 3
    assert ("ready", True) not in heard.told


async def test_nothing_else_is_asked_before_the_start(program: Program) -> None:
    heard = Heard()
    program.status = 500
    container = program.container(
        startupProbe=program.probe("/start", failureThreshold=2), livenessProbe=program.probe("/live")
    )

    async with asyncio.timeout(SHORT):
        assert await watch(container, "127.0.0.1", heard.tell, heard.unhealthy) == "startup"

    assert program.asked == ["/start", "/start"]
    assert heard.told == []


async def test_a_port_that_nobody_listens_on_is_a_failure_and_no_error(program: Program) -> None:
    probe = {"tcpSocket": {"port": 1}}

    assert await ask({"name": "c"}, {"tcpSocket": {"port": program.port}}, "127.0.0.1") is None
    assert await ask({"name": "c"}, probe, "127.0.0.1") is not None
    assert port_of({"ports": []}, "web") == 0


async def test_what_is_not_played_is_refused_by_name() -> None:
    assert "exec" in (not_played({"name": "c", "livenessProbe": {"exec": {"command": ["true"]}}}) or "")
    assert not_played({"name": "c", "livenessProbe": {"httpGet": {"port": 1}}}) is None
