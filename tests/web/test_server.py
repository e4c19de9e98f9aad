"""The real server, asked by a real client over loopback."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from orchestrator.observe.metrics import Metrics, RpoSample, Sources
from orchestrator.web.errors import AddressRefused, AddressTaken, BadAddress
from orchestrator.web.server import Web, parse_address
from orchestrator.web.status import PointRow, PolicyRow, RepositoryRow, StatusPage, render
from tests.waiting import SHORT

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
NASTY = "<script>alert('x')</script>"

PAGE = StatusPage(
    at=NOW,
    version="1.2.3",
    leading=True,
    policies=(
        PolicyRow(
            namespace="shop",
            name="nightly",
            standing="breached",
            target_s=3600.0,
            worst_age_s=7260.0,
            worst_pvc="data",
            compliant="1/2",
            last_point=NOW - timedelta(minutes=5),
            message=NASTY,
        ),
    ),
    points=(PointRow(namespace="shop", name="p-1", pvc=NASTY, phase="Copying", progress="45%"),),
    repositories=(RepositoryRow(name="main", url="s3://bucket", ready="True", points=3, size="1.2 GiB"),),
)


def metrics(count: int = 1) -> Metrics:
    rows = [RpoSample("shop", f"data-{n}", "nightly", 90.0, 60.0, True, 1.8e9, False) for n in range(count)]
    return Metrics(Sources(rpo=lambda: rows), version="1.2.3")


@contextlib.asynccontextmanager
async def serving(web: Web) -> AsyncIterator[aiohttp.ClientSession]:
    task = asyncio.create_task(web.run())
    try:
        async with asyncio.timeout(SHORT):
            started = asyncio.create_task(web.started.wait())
            await asyncio.wait({task, started}, return_when=asyncio.FIRST_COMPLETED)
            started.cancel()
            if task.done():
                await task
        async with aiohttp.ClientSession(
            f"http://127.0.0.1:{web.port}", auto_decompress=False, headers={"Accept-Encoding": "identity"}
        ) as session:
            yield session
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def make(
    registry: Any = None,
    checks: Mapping[str, Callable[[], str | None]] | None = None,
    health: Mapping[str, Callable[[], str | None]] | None = None,
    page: StatusPage = PAGE,
) -> Web:
    return Web("127.0.0.1:0", registry or CollectorRegistry(), checks or {}, lambda: page, health)


async def test_prometheus_gets_openmetrics_and_others_plain_text() -> None:
    async with serving(make(metrics().registry)) as session:
        async with session.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}) as answer:
            assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
            families = {f.name: f for f in openmetrics((await answer.read()).decode())}
            assert families["tidemark_rpo_seconds"].samples[0].value == 90.0
        async with session.get("/metrics", headers={"Accept": "text/plain"}) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            names = {f.name for f in plain((await answer.read()).decode())}
            assert "tidemark_rpo_breached" in names


async def test_a_large_page_is_compressed_for_those_who_accept_it() -> None:
    async with serving(make(metrics(500).registry)) as session:
        async with session.get("/metrics", headers={"Accept-Encoding": "gzip"}) as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
            packed = await answer.read()
        async with session.get("/metrics", headers={"Accept-Encoding": "identity"}) as answer:
            assert "Content-Encoding" not in answer.headers
            body = await answer.read()
    assert len(packed) * 5 < len(body)
    assert gzip.decompress(packed).count(b"tidemark_rpo_seconds{") == 500


async def test_samples_are_collected_on_the_loop_and_written_elsewhere() -> None:
    """The caches belong to the loop: read in a thread they change while one iterates."""
    seen: list[int] = []

    def source() -> list[RpoSample]:
        seen.append(threading.get_ident())
        return []

    async with serving(make(Metrics(Sources(rpo=source)).registry)) as session, session.get("/metrics") as answer:
        assert answer.status == 200
    assert seen == [threading.get_ident()]


async def test_readiness_names_the_check_that_failed_and_health_is_another_matter() -> None:
    def broken() -> str | None:
        raise RuntimeError("token=abcdef")

    checks = {"caches": lambda: "not synced: Backup", "lease": lambda: None, "odd": broken}
    async with serving(make(checks=checks, health={"loop": lambda: None})) as session:
        async with session.get("/readyz") as answer:
            assert answer.status == 503
            text = (await answer.read()).decode()
        assert text == "caches: not synced: Backup\nlease: ok\nodd: the check itself failed (RuntimeError)\n"
        async with session.get("/healthz") as answer:
            assert (answer.status, await answer.read()) == (200, b"loop: ok\n")


async def test_all_checks_well_means_ready() -> None:
    async with serving(make(checks={"caches": lambda: None})) as session, session.get("/readyz") as answer:
        assert answer.status == 200


async def test_the_status_page_is_self_contained_and_escapes_everything() -> None:
    async with serving(make()) as session, session.get("/") as answer:
        page = (await answer.read()).decode()
        policy = answer.headers["Content-Security-Policy"]
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in policy
    assert "RPO breached" in page
    assert "2h1m (data)" in page
    assert "5m ago" in page
    assert "45%" in page


async def test_an_empty_page_says_so() -> None:
    empty = StatusPage(at=NOW, version="1", leading=False)
    async with serving(make(page=empty)) as session, session.get("/") as answer:
        page = (await answer.read()).decode()
    assert "No BackupPolicy yet." in page
    assert "standing by" in page


async def test_the_same_facts_are_there_for_scripts() -> None:
    async with serving(make()) as session, session.get("/status.json") as answer:
        assert answer.headers["Content-Type"] == "application/json"
        facts = json.loads(await answer.read())
    assert facts["policies"][0]["worstAgeS"] == 7260.0
    assert facts["policies"][0]["message"] == NASTY
    assert facts["repositories"][0]["name"] == "main"


async def test_every_answer_carries_the_guarding_headers() -> None:
    async with serving(make()) as session:
        for path, status in (("/", 200), ("/metrics", 200), ("/nothing", 404)):
            async with session.get(path) as answer:
                assert answer.status == status
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert answer.headers["Cache-Control"] == "no-store"


async def test_nothing_can_be_sent_or_changed() -> None:
    async with serving(make()) as session:
        async with session.post("/metrics", data=b"x") as answer:
            assert answer.status in {400, 405}
        async with session.get("/", data=b"x" * 10) as answer:
            assert answer.status == 400
        async with session.get("/", headers={"X-Long": "x" * 9000}) as answer:
            assert answer.status == 400


async def test_a_taken_port_is_told_with_what_to_do() -> None:
    first = make()
    async with serving(first):
        second = Web(f"127.0.0.1:{first.port}", CollectorRegistry(), {}, lambda: PAGE)
        with pytest.raises(AddressTaken) as caught:
            await second.run()
    assert "--metrics-address" in caught.value.sentence()


async def test_an_address_of_another_machine_is_told_with_what_to_do() -> None:
    with pytest.raises(AddressRefused) as caught:
        await Web("192.0.2.1:0", CollectorRegistry(), {}, lambda: PAGE).run()
    assert caught.value.reason == "AddressRefused"


@pytest.mark.quick
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        (":8080", ("0.0.0.0", 8080)),
        ("[::]:9", ("::", 9)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_an_address_is_read(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text) == expected


@pytest.mark.quick
@pytest.mark.parametrize("text", ["", "8080", "host", "host:port", "host:99999", "[zz]:1", "http://x:1", "::1:80"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadAddress):
        parse_address(text)


def test_the_page_tells_of_points_that_the_last_verification_found_hurt() -> None:
    at = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
    sound = RepositoryRow(name="main", url="s3://b", ready="True", last_verified=at - timedelta(hours=2))
    hurt = RepositoryRow(name="other", url="s3://c", ready="True", last_verified=at, hurt=3, message="<b>Hurt")
    page = render(StatusPage(at=at, version="1", leading=True, repositories=(sound, hurt)))
    assert page.count("points hurt") == 1
    assert "3 points hurt" in page
    assert "2h ago" in page
    assert "&lt;b&gt;Hurt" in page
